"""The configuration: a closed schema, its defaults, and errors that name the key.

Three kinds of file: ``config/config.yaml`` and its like (which settings, methods and metrics),
``config/settings/NAME.yaml`` (one setting each) and ``config/methods.yaml`` (methods and their
grids). An unknown or mistyped key is an error that names the key and the nearest valid one.
"""

from leaveout.config.defaults import resolved
from leaveout.config.loading import ConfigError, load_yaml, nearest
from leaveout.config.methods import Method, Scalar, grid_point, label, load_methods, split_label
from leaveout.config.sections import CNN, LDS, LOO, MLP, PBRF, Brittleness, Linear, Model, Recipe
from leaveout.config.setting import LAYERS, MAX_CHUNKS, Layer, Setting, load_setting
from leaveout.config.top import Config, Metric, parse_config, select_methods

__all__ = [
    "CNN",
    "LAYERS",
    "LDS",
    "LOO",
    "MAX_CHUNKS",
    "MLP",
    "PBRF",
    "Brittleness",
    "Config",
    "ConfigError",
    "Layer",
    "Linear",
    "Method",
    "Metric",
    "Model",
    "Recipe",
    "Scalar",
    "Setting",
    "grid_point",
    "label",
    "load_methods",
    "load_setting",
    "load_yaml",
    "nearest",
    "parse_config",
    "resolved",
    "select_methods",
    "split_label",
]
