"""The folder that leaves for the device: its scripts run alone, without torch and without this package."""

import ast
import importlib.util
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from toys import tiny_data, tiny_net

from compress_aug import deploy
from compress_aug.data import images as package_images
from compress_aug.folders import shipped

EXPORT = shipped("export")
ALLOWED = {"numpy", "onnxruntime", "PIL", "__future__"}


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    """A folder as on the device: the scripts, a model, another model and a picture."""
    folder = tmp_path_factory.mktemp("device")
    for name in ("bench.py", "classify.py"):
        (folder / name).write_text((EXPORT / name).read_text())
    told = deploy.image_metadata(
        image_shape=(3, 8, 8), mean=[0.3, 0.4, 0.5], std=[0.2, 0.3, 0.25], classes=["cat", "dog", "Käse"]
    )
    deploy.write(tiny_net(), folder / "model.onnx", image_shape=(3, 8, 8), metadata=told)
    deploy.write(tiny_net(width=16), folder / "model.float.onnx", image_shape=(3, 8, 8))
    pixels = np.random.default_rng(0).integers(0, 256, (20, 13, 3), dtype=np.uint8)
    for name in ("cat.jpg", "dog.jpg"):
        Image.fromarray(pixels).save(folder / name)
    return folder


def _python(folder, *arguments):
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", ["bench.py", "classify.py"])
def test_a_script_needs_nothing_that_a_device_lacks(name):
    tree = ast.parse((EXPORT / name).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    roots = {module.split(".")[0] for module in imported}
    assert roots - ALLOWED <= sys.stdlib_module_names


def test_bench_prints_one_line_of_json(device):
    done = _python(device, "bench.py", "model.onnx", "--repeats", "5", "--warmup", "1", "--batch", "3")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.count("\n") == 1
    found = json.loads(done.stdout)
    assert found["file"] == "model.onnx" and found["bytes"] == (device / "model.onnx").stat().st_size
    assert 0 < found["p50_ms"] <= found["p95_ms"]
    assert (found["threads"], found["batch"], found["repeats"]) == (1, 3, 5)
    assert found["runtime"].startswith("onnxruntime ") and found["cpu"]
    assert found["isa"] is None or isinstance(found["isa"], list)
    assert "ratio" not in found and "against" not in found


def test_bench_times_two_files_in_turns(device):
    done = _python(device, "bench.py", "model.onnx", "--against", "model.float.onnx", "--repeats", "5")
    found = json.loads(done.stdout)
    assert found["against"]["file"] == "model.float.onnx"
    assert found["against"]["bytes"] == (device / "model.float.onnx").stat().st_size
    assert found["ratio"] == pytest.approx(found["against"]["p50_ms"] / found["p50_ms"], rel=1e-3)


def test_the_files_take_turns_and_each_timed_run_follows_an_untimed_one():
    spec = importlib.util.spec_from_file_location("bench", EXPORT / "bench.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    order = []
    runs = [lambda: order.append("a"), lambda: order.append("b")]
    times = bench._in_turns(runs, 3)
    assert order == list("aabb" * 3)
    assert [len(taken) for taken in times] == [3, 3]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["bench.py", "none.onnx"], "There is no file none.onnx."),
        (["bench.py", "model.onnx", "--against", "none.onnx"], "There is no file none.onnx."),
        (["bench.py", "cat.jpg"], "cat.jpg is not a model that onnxruntime can load"),
        (["bench.py", "model.onnx", "--repeats", "0"], "expected a number of at least 1, found 0"),
        (["bench.py", "model.onnx", "--threads", "two"], "expected a whole number, found 'two'"),
        (["classify.py", "none.onnx", "cat.jpg"], "There is no file none.onnx."),
        (["classify.py", "model.onnx", "none.jpg"], "There is no file none.jpg."),
        (["classify.py", "model.onnx", "bench.py"], "bench.py is not an image that can be read"),
        (["classify.py", "model.float.onnx", "cat.jpg"], 'model.float.onnx does not say its "image_shape"'),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(device, arguments, sentence):
    done = _python(device, *arguments)
    assert done.returncode == 2
    assert sentence in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""


def test_classify_names_what_the_model_says(device):
    done = _python(device, "-X", "utf8", "classify.py", "model.onnx", "cat.jpg", "dog.jpg", "--top", "4")
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["cat.jpg", "dog.jpg"]

    data = tiny_data()
    decoded = package_images.decode_file(device / "cat.jpg", 8)[None]
    # What training does to a picture, with the numbers that the file carries.
    mean, std = torch.tensor([0.3, 0.4, 0.5]), torch.tensor([0.2, 0.3, 0.25])
    inputs = (decoded / 255 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    assert data.image_shape == tuple(inputs.shape[1:])
    with torch.no_grad():
        shares = tiny_net().eval()(inputs).softmax(1)[0]
    names = ["cat", "dog", "Käse", "class 3"]
    wanted = [(names[k], 100 * float(shares[k])) for k in shares.argsort(descending=True)]
    shown = re.findall(r"(\w+(?: \d)?) (\d+\.\d) %", lines[0])
    assert [name for name, _ in shown] == [name for name, _ in wanted]
    assert [float(share) for _, share in shown] == pytest.approx([share for _, share in wanted], abs=0.06)


def test_a_broken_picture_does_not_stop_the_others(device):
    done = _python(device, "classify.py", "model.onnx", "none.jpg", "cat.jpg")
    assert done.returncode == 2
    assert "none.jpg" in done.stderr and done.stdout.startswith("cat.jpg: ")


def test_a_grey_model_takes_a_colour_picture(device, tmp_path):
    told = deploy.image_metadata(image_shape=(1, 8, 8), mean=[0.3], std=[0.2], classes=list("abcd"))
    deploy.write(tiny_net(channels=1), tmp_path / "grey.onnx", image_shape=(1, 8, 8), metadata=told)
    done = _python(device, "classify.py", str(tmp_path / "grey.onnx"), "cat.jpg")
    assert done.returncode == 0 and done.stdout.startswith("cat.jpg: ")


def test_the_commands_of_the_readme_run(device):
    text = (EXPORT / "README.md").read_text()
    commands = re.findall(r"^python (\w+\.py .*)$", text, flags=re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        short = ["--repeats", "2"] if command.startswith("bench") else []
        done = _python(device, *command.split(), *short)
        assert done.returncode == 0, done.stderr
    [program] = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    done = _python(device, "-c", program.replace("(1, 3, 32, 32)", "(1, 3, 8, 8)"))
    assert done.returncode == 0, done.stderr
