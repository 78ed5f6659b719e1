"""Name the class of images with an ONNX file that compress_aug wrote.

    python classify.py MODEL.onnx IMAGE [IMAGE ...] [--top 1] [--threads 1]

Needs numpy, onnxruntime and Pillow, nothing else. How to prepare an image, and the names of the classes, are
read from the file itself. Prints one line for each image: its path, then classes with their share in percent.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image


class Wrong(Exception):
    """A mistake of the user, told in one sentence."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code. An image that cannot be read does not stop the others."""
    parser = argparse.ArgumentParser(description="Name the class of images.")
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    parser.add_argument("--top", type=int, default=1, help="how many classes to show, best first (1)")
    parser.add_argument("--threads", type=int, default=1, help="threads that one layer may use (1)")
    options = parser.parse_args(arguments)
    mistakes = 0
    try:
        classifier = Classifier(options.model, threads=options.threads)
        for path in options.images:
            try:
                ranked = classifier.rank(read_image(path))
            except Wrong as mistake:
                print(mistake, file=sys.stderr)
                mistakes += 1
                continue
            shown = [f"{name} {100 * share:.1f} %" for name, share in ranked[: max(options.top, 1)]]
            print(f"{path}: {', '.join(shown)}")
    except Wrong as mistake:
        print(mistake, file=sys.stderr)
        return 2
    return 2 if mistakes else 0


class Classifier:
    """A file, and what it says about itself: the shape of images, their normalisation, the classes' names."""

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        self._session = _load(path, threads)
        told = self._session.get_modelmeta().custom_metadata_map
        self.channels, self.height, self.width = _listed(told, "image_shape", path)
        shape = (1, self.channels, 1, 1)
        self._mean = np.array(_listed(told, "mean", path), np.float32).reshape(shape)
        self._std = np.array(_listed(told, "std", path), np.float32).reshape(shape)
        self._classes = _listed(told, "classes", path)

    def rank(self, image: Image.Image) -> list[tuple[str, float]]:
        """Every class with its share in [0, 1], the likeliest first."""
        inputs = self.prepare(image)
        logits = self._session.run(None, {self._session.get_inputs()[0].name: inputs})[0][0].astype(
            np.float64
        )
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        order = np.argsort(-shares, kind="stable")
        return [(self._name(int(number)), float(shares[number])) for number in order]

    def prepare(self, image: Image.Image) -> np.ndarray:
        """A picture of any size as float32 (1, C, H, W): resized, the centre cut out, normalised."""
        fitted = _fit(image.convert("L" if self.channels == 1 else "RGB"), self.width, self.height)
        pixels = np.asarray(fitted, np.float32).reshape(1, self.height, self.width, -1).transpose(0, 3, 1, 2)
        return np.ascontiguousarray((pixels / 255 - self._mean) / self._std)

    def _name(self, number: int) -> str:
        return str(self._classes[number]) if number < len(self._classes) else f"class {number}"


def read_image(path: Path) -> Image.Image:
    """An image file, decoded."""
    try:
        with Image.open(path) as image:
            image.load()
            return image.copy()
    except FileNotFoundError:
        raise Wrong(f"There is no file {path}.") from None
    # Pillow raises SyntaxError for broken PNG files and ValueError for some broken headers.
    except (OSError, SyntaxError, ValueError) as error:
        raise Wrong(f"{path} is not an image that can be read: {_first_line(error)}") from error


def _fit(image: Image.Image, width: int, height: int) -> Image.Image:
    # The same steps as in training: what is resized otherwise is recognised worse.
    scale = max(width / image.width, height / image.height)
    size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _load(path: Path, threads: int) -> onnxruntime.InferenceSession:
    if not path.is_file():
        raise Wrong(f"There is no file {path}.")
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    # The runtime raises one class for each of its status codes, all of them plain Exceptions.
    except Exception as error:
        raise Wrong(f"{path} is not a model that onnxruntime can load: {_first_line(error)}") from error


def _listed(told: dict[str, str], key: str, path: Path) -> list[Any]:
    try:
        value = json.loads(told[key])
    except (KeyError, ValueError):
        value = None
    if not isinstance(value, list):
        raise Wrong(
            f'{path} does not say its "{key}": export it with compress_aug, which writes that into the file.'
        )
    return value


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".") + "."


if __name__ == "__main__":
    sys.exit(main())
