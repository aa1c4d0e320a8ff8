"""Necks and upsampling: importing this package registers every file in it, so a dropped-in file is a layer."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
