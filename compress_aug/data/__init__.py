"""Batches of raw images: digits, CIFAR, an image folder, your own."""

from compress_aug.data.dataset import Data
from compress_aug.data.load import DataSpec, data_names, load_data
from compress_aug.data.own import data_from
from compress_aug.data.sources import MemorySource, Source, StreamedSource

__all__ = [
    "Data",
    "DataSpec",
    "MemorySource",
    "Source",
    "StreamedSource",
    "data_from",
    "data_names",
    "load_data",
]
