"""Settings of all tests: one thread, so that tiny nets do not spend their time waking up others."""

import os

import matplotlib
import pytest
import torch

matplotlib.use("Agg")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_images():
    """The folder named by COMPRESS_AUG_DATA, which holds cifar10/{train,test}/CLASS/*.jpg; skips without it."""
    folder = os.environ.get("COMPRESS_AUG_DATA")
    if not folder:
        pytest.skip("COMPRESS_AUG_DATA names no folder with real images")
    return folder
