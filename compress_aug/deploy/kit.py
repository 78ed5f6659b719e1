"""The edge kit: a folder to copy to the device, with the model, how to prepare images, and scripts without torch."""

import json
import shlex
import shutil
from pathlib import Path

from compress_aug.deploy.write import read_metadata
from compress_aug.errors import ExportError, UserError
from compress_aug.folders import shipped, written_whole
from compress_aug.targets import Target

_SCRIPTS = ("bench.py", "classify.py")

# What makes a folder a kit that may be written anew.
_MARK = "preprocess.json"


def write_kit(path: Path, folder: Path, *, target: Target, float_path: Path | None = None) -> list[str]:
    """Make a folder to copy to the device: `scp -r FOLDER`.

    path:       a file that `write` made, with `image_metadata` in it
    folder:     new, empty, or a kit, whose files are written anew
    target:     the device; the commands in the kit's README use its threads
    float_path: the same net in float, to be timed in turns with the file

    It holds the model, preprocess.json (how images become inputs, and the names of the classes), bench.py,
    classify.py, target.yaml, and README.md with the two commands. They need numpy, Pillow and the target's runtime.

    Returns the names of the files.

    Raises UserError if the folder holds something else, ExportError if the file does not say how to prepare its
    images or the folder cannot be written.

    >>> from compress_aug.deploy import image_metadata, write
    >>> from compress_aug.targets import load_target
    >>> told = image_metadata(image_shape=(3, 8, 8), mean=[0.5] * 3, std=[0.25] * 3, classes=["a", "b", "c", "d"])
    >>> _ = write(model, Path("net.onnx"), image_shape=(3, 8, 8), metadata=told)
    >>> write_kit(Path("net.onnx"), Path("kit"), target=load_target("raspberry_pi_4"))
    ['README.md', 'bench.py', 'classify.py', 'net.onnx', 'preprocess.json', 'target.yaml']
    """
    check_kit_folder(folder)
    told = _preprocessing(path, float_path)
    texts = {
        _MARK: json.dumps(told, indent=1, ensure_ascii=False) + "\n",
        "target.yaml": target.as_yaml(),
        "README.md": _readme(path, float_path, target),
    }
    copies = [shipped("export") / name for name in _SCRIPTS]
    copies += [file for file in (path, float_path) if file is not None]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            with written_whole(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
        for source in copies:
            with written_whole(folder / source.name) as temporary:
                shutil.copyfile(source, temporary)
    except OSError as error:
        raise ExportError(f"The kit {folder} cannot be written: {error.strerror or error}.") from error
    return sorted([*texts, *(source.name for source in copies)])


def check_kit_folder(folder: Path) -> None:
    """Raises UserError if a kit cannot be written there without touching something else."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: expected a folder for the kit, new, empty or a kit.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / _MARK).is_file():
        raise UserError(f"{folder} is not empty and no kit: choose another folder, or empty it.")


def _preprocessing(path: Path, float_path: Path | None) -> dict[str, object]:
    inside = read_metadata(path)
    try:
        told = {key: json.loads(inside[key]) for key in ("image_shape", "mean", "std", "classes")}
    except (KeyError, ValueError):
        raise ExportError(
            f"{path} does not say how to prepare its images: write it with metadata=image_metadata(...)."
        ) from None
    grey = told["image_shape"][0] == 1
    return {
        "version": 1,
        "model": path.name,
        "float_model": None if float_path is None else float_path.name,
        "input": "input, float32 (N, C, H, W)",
        "output": "logits, float32 (N, classes)",
        "colours": "grey" if grey else "RGB",
        "resize": "the shorter side to the image's, bilinear and antialiased (Pillow); then the centre is cut out",
        "normalise": "(pixel / 255 - mean) / std, per channel, pixels in 0..255",
        **told,
    }


_README = """\
# {model} for {target}

Copy this folder to the device, and there install, once, what it needs (no torch):

```
scp -r FOLDER USER@DEVICE:
python -m pip install numpy {runtime} pillow
```

How fast is it there? Milliseconds, memory, the processor; device.json is for the comparison at home:

```
python {bench}
```

What is on a picture? Size, normalisation and class names are in {told}; `--accuracy FOLDER` counts right answers
on a folder of classes instead:

```
python {classify}
```

At home, beside the same {model}: `compress-aug bench {model} --against device.json`{at_home}.

For programs of your own: preprocess.json says how a picture becomes the model's input and what its outputs are called;
target.yaml says for which device the model was made.
"""

_TENSORRT = """
For TensorRT (a plain signed symmetric QuantizeLinear / DequantizeLinear graph; we have not run it on such a device):

```
trtexec --onnx={model} --int8 --fp16 --shapes=input:1x{shape} --saveEngine=model.engine
```
"""


def _readme(path: Path, float_path: Path | None, target: Target) -> str:
    model = shlex.quote(path.name)
    against = "" if float_path is None else f" --against {shlex.quote(float_path.name)}"
    options = f" --threads {target.threads}"
    is_usual = target.runtime == "onnxruntime"
    if not is_usual:
        options += f" --runtime {target.runtime}"
    text = _README.format(
        model=path.name,
        target=target.description,
        runtime=target.runtime,
        told="the model" if is_usual else "preprocess.json",
        at_home="" if is_usual else " (which times it with ONNX Runtime there, and says so)",
        bench=f"bench.py {model}{against}{options} --json device.json",
        classify=f"classify.py {model} PICTURE.jpg --top 3{options}",
    )
    if target.form == "tensorrt":
        shape = "x".join(str(size) for size in json.loads(read_metadata(path)["image_shape"]))
        text += _TENSORRT.format(model=model, shape=shape)
    return text
