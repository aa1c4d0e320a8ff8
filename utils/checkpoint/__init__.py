"""Weights into networks; `load_model` and `import_state_dict` are the ways in."""

from utils.checkpoint.importing import import_state_dict as import_state_dict
from utils.checkpoint.importing import load_model as load_model
