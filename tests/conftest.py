"""Settings of all tests: one thread, so that tiny nets do not spend their time waking up others."""

import os
import signal

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


@pytest.fixture
def ctrl_c():
    """As in a terminal: a shell that runs the tests in the background has Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
