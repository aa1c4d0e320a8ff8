"""Blocks, convolutions and activations of other detectors: importing this package registers every file in it."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
