"""Importing this module registers every built-in layer, and every file that a user drops into one of the folders below.

It is the only module that is imported for its side effect.
"""

import importlib
import pkgutil

import models.attention
import models.blocks
import models.common
import models.heads
import models.necks

for _folder in (models.attention, models.blocks, models.necks, models.heads):
    for _module in pkgutil.iter_modules(_folder.__path__, f"{_folder.__name__}."):
        importlib.import_module(_module.name)
