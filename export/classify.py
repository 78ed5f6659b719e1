"""Name the class of images with an ONNX file that compress_aug wrote.

    python classify.py MODEL.onnx IMAGE [IMAGE ...] [--top 1] [--threads 1] [--runtime onnxruntime]
    python classify.py MODEL.onnx --accuracy FOLDER

Needs numpy, Pillow and the runtime (onnxruntime, or openvino with --runtime openvino), nothing else. How to prepare an
image, and the names of the classes, are read from the file itself, or from preprocess.json beside it where the file
does not say; OpenVINO does not hand out what the file says, so that it needs preprocess.json. Prints one line for
each image: its path, then classes with their share in percent. With --accuracy: which share of the images in a folder
of classes (FOLDER/CLASS/IMAGE) it names right. A mistake is told in one sentence, with exit code 2.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    import numpy as np
    from PIL import Image
except ImportError as error:
    print(f"There is no {error.name} in this Python: python -m pip install numpy pillow", file=sys.stderr)
    sys.exit(2)


class Wrong(Exception):
    """A mistake of the user, told in one sentence."""


# What counts as an image in a folder of classes.
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code. An image that cannot be read does not stop the others."""
    parser = argparse.ArgumentParser(description="Name the class of images.")
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument("images", type=Path, nargs="*", metavar="IMAGE")
    parser.add_argument("--top", type=int, default=1, help="how many classes to show, best first (1)")
    parser.add_argument("--threads", type=int, default=1, help="threads that one layer may use (1)")
    parser.add_argument(
        "--runtime", choices=("onnxruntime", "openvino"), default="onnxruntime", help="what runs the file"
    )
    parser.add_argument(
        "--accuracy", type=Path, metavar="FOLDER", help="count right answers on the images of FOLDER/CLASS/"
    )
    options = parser.parse_args(arguments)
    if not options.images and options.accuracy is None:
        parser.error("expected images, or --accuracy with a folder of classes")
    mistakes = 0
    try:
        classifier = Classifier(options.model, threads=options.threads, runtime=options.runtime)
        for path in options.images:
            try:
                ranked = classifier.rank(read_image(path))
            except Wrong as mistake:
                print(mistake, file=sys.stderr)
                mistakes += 1
                continue
            shown = [f"{name} {100 * share:.1f} %" for name, share in ranked[: max(options.top, 1)]]
            print(f"{path}: {', '.join(shown)}")
        if options.accuracy is not None:
            right, images = accuracy(classifier, options.accuracy)
            print(f"{100 * right / images:.2f} % of {images} images are named right ({right}).")
    except Wrong as mistake:
        print(mistake, file=sys.stderr)
        return 2
    return 2 if mistakes else 0


def accuracy(classifier: Classifier, folder: Path) -> tuple[int, int]:
    """How many images below FOLDER/CLASS are named CLASS, and how many there are."""
    if not folder.is_dir():
        raise Wrong(f"There is no folder {folder}.")
    right = images = 0
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        if place.name not in classifier.classes:
            raise Wrong(f"{place} is no class of the model; its classes: {', '.join(classifier.classes)}.")
        for path in sorted(place.rglob("*")):
            if path.suffix.lower() in _SUFFIXES and not path.name.startswith("."):
                right += classifier.rank(read_image(path))[0][0] == place.name
                images += 1
    if not images:
        raise Wrong(f"{folder} holds no images: expected {folder}/CLASS/IMAGE.")
    return right, images


class Classifier:
    """A file, and what it says about itself: the shape of images, their normalisation, the classes' names."""

    def __init__(self, path: Path, *, threads: int = 1, runtime: str = "onnxruntime") -> None:
        self._run, inside = _load(path, threads, runtime)
        told = _told(inside, path)
        self.channels, self.height, self.width = _listed(told, "image_shape", path)
        self.classes = [str(name) for name in _listed(told, "classes", path)]
        mean, std = (np.array(_listed(told, key, path), np.float64) for key in ("mean", "std"))
        # In the same roundings as in training, so that not a single quantized input differs: (pixel / 255 - mean)
        # / std as a product and a sum, both of float32 numbers, rounded once.
        shape = (1, self.channels, 1, 1)
        self._scale = (1 / (255 * std)).astype(np.float32).astype(np.float64).reshape(shape)
        self._shift = (-mean / std).astype(np.float32).astype(np.float64).reshape(shape)

    def rank(self, image: Image.Image) -> list[tuple[str, float]]:
        """Every class with its share in [0, 1], the likeliest first."""
        inputs = self.prepare(image)
        logits = self._run(inputs)[0].astype(np.float64)
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        order = np.argsort(-shares, kind="stable")
        return [(self._name(int(number)), float(shares[number])) for number in order]

    def prepare(self, image: Image.Image) -> np.ndarray:
        """A picture of any size as float32 (1, C, H, W): resized, the centre cut out, normalised."""
        fitted = _fit(image.convert("L" if self.channels == 1 else "RGB"), self.width, self.height)
        pixels = np.asarray(fitted, np.float64).reshape(1, self.height, self.width, -1).transpose(0, 3, 1, 2)
        return np.ascontiguousarray(pixels * self._scale + self._shift, np.float32)

    def _name(self, number: int) -> str:
        return self.classes[number] if number < len(self.classes) else f"class {number}"


def read_image(path: Path) -> Image.Image:
    """An image file, decoded."""
    try:
        with Image.open(path) as image:
            image.load()
            # Conversion to 8 bits would clip these to white without a word.
            if image.mode in ("I", "F") or image.mode.startswith("I;"):
                raise Wrong(f"{path} has more than 8 bits a channel: convert it to 8 bits.")
            return image.copy()
    except FileNotFoundError:
        raise Wrong(f"There is no file {path}.") from None
    # Pillow raises SyntaxError for broken PNG files and ValueError for some broken headers.
    except (OSError, SyntaxError, ValueError) as error:
        raise Wrong(f"{path} is not an image that can be read: {_first_line(error)}") from error


def _fit(image: Image.Image, width: int, height: int) -> Image.Image:
    # The same steps and roundings as in training: what is resized otherwise is recognised worse.
    wide = image.width * height >= image.height * width
    if wide:
        size = (int(height * image.width / image.height), height)
    else:
        size = (width, int(width * image.height / image.width))
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


_Run = Callable[[np.ndarray], np.ndarray]


def _load(path: Path, threads: int, runtime: str) -> tuple[_Run, dict[str, str]]:
    """What computes logits of one image, and what the file says about itself, as far as the runtime tells."""
    if not path.is_file():
        raise Wrong(f"There is no file {path}.")
    try:
        module = importlib.import_module(runtime)
    except ImportError:
        raise Wrong(
            f"There is no {runtime} in this Python: python -m pip install {runtime}, or choose another --runtime."
        ) from None
    try:
        return (_in_openvino if runtime == "openvino" else _in_onnxruntime)(module, path, threads)
    # Runtimes raise one class for each of their status codes, or RuntimeError for all.
    except Exception as error:
        raise Wrong(f"{path} is not a model that {runtime} can load: {_first_line(error)}") from error


def _in_onnxruntime(onnxruntime: Any, path: Path, threads: int) -> tuple[_Run, dict[str, str]]:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    told = dict(session.get_modelmeta().custom_metadata_map)
    return lambda images: session.run(None, {name: images})[0], told


def _in_openvino(openvino: Any, path: Path, threads: int) -> tuple[_Run, dict[str, str]]:
    core = openvino.Core()
    model = core.read_model(str(path))
    # With an open batch it computes with other roundings, and without the hint in bfloat16 where the processor can.
    entry = model.inputs[0]
    sizes = [size.get_length() if size.is_static else 1 for size in entry.partial_shape]
    model.reshape({entry.any_name: [1, *sizes[1:]]})
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda images: request.infer({entry.any_name: images})[0], {}


def _told(inside: dict[str, str], path: Path) -> dict[str, Any]:
    """What the file says about itself as JSON values, or else what preprocess.json beside it says."""
    told: dict[str, Any] = {}
    for key, value in inside.items():
        try:
            told[key] = json.loads(value)
        except ValueError:
            told[key] = value
    beside = path.parent / "preprocess.json"
    if "image_shape" in told or not beside.is_file():
        return told
    try:
        found = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Wrong(f"{beside} cannot be read: {_first_line(error)}") from error
    return found if isinstance(found, dict) else told


def _listed(told: dict[str, Any], key: str, path: Path) -> list[Any]:
    value = told.get(key)
    if not isinstance(value, list):
        raise Wrong(
            f'{path} does not say its "{key}": export it with compress_aug, which writes that into the file.'
        )
    return value


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".") + "."


if __name__ == "__main__":
    sys.exit(main())
