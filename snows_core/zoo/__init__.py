"""Experiment networks and data: ``experiment(name)`` for both, ``load_data(name)`` for images alone."""

from snows_core.errors import require_extra

require_extra("zoo", "timm", "torchvision", "sklearn", "platformdirs")

from snows_core.zoo.data import DATASETS, DataBundle, Split, load_data, load_folder
from snows_core.zoo.experiment import Experiment, Record
from snows_core.zoo.registry import EXPERIMENTS, experiment
from snows_core.zoo.resnet_cifar import ResNetCIFAR, resnet20, resnet56
from snows_core.zoo.train import train
from snows_core.zoo.weights import load_weights

__all__ = [
    "DATASETS",
    "EXPERIMENTS",
    "DataBundle",
    "Experiment",
    "Record",
    "ResNetCIFAR",
    "Split",
    "experiment",
    "load_data",
    "load_folder",
    "load_weights",
    "resnet20",
    "resnet56",
    "train",
]
