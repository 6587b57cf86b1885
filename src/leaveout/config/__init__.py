"""The configuration: a closed schema, its defaults, and errors that name the key.

Three kinds of file: ``config/config.yaml`` and its like (which settings, methods and metrics),
``config/settings/NAME.yaml`` (one setting each) and ``config/methods.yaml`` (methods and their
grids). An unknown or mistyped key is an error that names the key and the nearest valid one.
"""

from leaveout.config.defaults import resolved
from leaveout.config.loading import ConfigError, load_yaml, nearest
from leaveout.config.methods import Method, Scalar, grid_point, label, load_methods, split_label
from leaveout.config.own import Own
from leaveout.config.problem import (
    CNN,
    GPT,
    MLP,
    CrossEntropy,
    Dataset,
    Linear,
    Model,
    OwnDataset,
    OwnModel,
    OwnObjective,
    ResNet9,
    model_identity,
    objective_identity,
)
from leaveout.config.sections import LDS, LOO, PBRF, Brittleness, Recipe
from leaveout.config.setting import LAYERS, MAX_CHUNKS, Layer, Setting, load_setting
from leaveout.config.top import Config, Metric, parse_config, select_methods

__all__ = [
    "CNN",
    "GPT",
    "LAYERS",
    "LDS",
    "LOO",
    "MAX_CHUNKS",
    "MLP",
    "PBRF",
    "Brittleness",
    "Config",
    "ConfigError",
    "CrossEntropy",
    "Dataset",
    "Layer",
    "Linear",
    "Method",
    "Metric",
    "Model",
    "Own",
    "OwnDataset",
    "OwnModel",
    "OwnObjective",
    "Recipe",
    "ResNet9",
    "Scalar",
    "Setting",
    "grid_point",
    "label",
    "load_methods",
    "load_setting",
    "load_yaml",
    "model_identity",
    "nearest",
    "objective_identity",
    "parse_config",
    "resolved",
    "select_methods",
    "split_label",
]
