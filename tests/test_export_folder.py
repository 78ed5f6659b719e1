"""The folder that leaves for the device: its scripts run alone, without torch and without this package."""

import ast
import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import replace

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
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(folder / "deep.png")
    (folder / "empty").mkdir()
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


@pytest.mark.parametrize("name", ["bench.py", "classify.py"])
def test_a_script_is_python_as_devices_have_it(name):
    """3.8 is what the older board supports ship."""
    ast.parse((EXPORT / name).read_text(), feature_version=(3, 8))
    assert "strict=" not in (EXPORT / name).read_text(), "zip has it from 3.10 on"


def test_bench_prints_one_line_of_json(device):
    done = _python(
        device, "bench.py", "model.onnx", "--repeats", "5", "--warmup", "1", "--batch", "3", "--json", "-"
    )
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.count("\n") == 1
    found = json.loads(done.stdout)
    assert found["file"] == "model.onnx" and found["bytes"] == (device / "model.onnx").stat().st_size
    assert 0 < found["p50_ms"] <= found["p95_ms"]
    assert (found["threads"], found["batch"], found["repeats"]) == (1, 3, 5)
    assert found["runtime"].startswith("onnxruntime ") and found["cpu"]
    assert found["isa"] is None or isinstance(found["isa"], list)
    assert set(found["versions"]) == {"python", "numpy", "onnxruntime"} and found["warmup"] == 1
    assert found["sha256"] == hashlib.sha256((device / "model.onnx").read_bytes()).hexdigest()
    assert found["quantized"] is False and found["load_ms"] > 0
    if sys.platform == "linux":
        assert 0 < found["runtime_mb"] <= found["memory_mb"]
    assert "ratio" not in found and "against" not in found


def test_bench_prints_a_table_and_writes_the_same_as_json(device, tmp_path):
    done = _python(
        device, "bench.py", "model.onnx", "--repeats", "3", "--json", str(tmp_path / "device.json")
    )
    assert done.returncode == 0 and done.stderr == ""
    found = json.loads((tmp_path / "device.json").read_text())
    header, row, *_ = done.stdout.splitlines()
    assert re.split(r"\s{2,}", header) == [
        "file",
        "kind",
        "p50 ms",
        "p95 ms",
        "load ms",
        "memory MB",
        "size kB",
    ]
    assert row.split()[:2] == ["model.onnx", "float"] and f"{found['p50_ms']:.3f}" in row
    assert "1 thread, batch 1, median of 3 runs after 20" in done.stdout and np.__version__ in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of one process")
def test_memory_is_that_of_the_process_that_runs_the_file_alone(device):
    """A big program that starts it, as training is, must not be counted."""
    code = (
        "import subprocess, sys; held = bytearray(400_000_000)\n"
        "done = subprocess.run([sys.executable, 'bench.py', 'model.onnx', '--against', 'model.float.onnx', "
        "'--repeats=2', '--json=-'], capture_output=True, check=True)\n"
        "print(len(held) and done.stdout.decode())"
    )
    found = json.loads(_python(device, "-c", code).stdout)
    assert 0 < found["memory_mb"] < 300 and 0 < found["against"]["memory_mb"] < 300


def _bench_script():
    spec = importlib.util.spec_from_file_location("bench", EXPORT / "bench.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    return bench


@pytest.mark.parametrize(
    ("integer_ms", "isa", "told", "untold"),
    [
        (0.5, [], None, None),
        (1.0, [], None, None),
        (1.5, ["avx2", "avx512f"], "no instructions that multiply and add 8-bit integers", None),
        (1.5, ["asimd"], "no instructions that multiply and add 8-bit integers", None),
        (1.5, ["avx2", "avx512_vnni"], "if the export names layers that stayed float", "no instructions"),
        (1.5, ["asimd", "asimddp"], "if the export names layers that stayed float", "no instructions"),
        (1.5, None, "integers take 1.50 times as long as floats", "no instructions"),
    ],
)
def test_integers_that_are_slower_are_told_with_what_helps(integer_ms, isa, told, untold):
    sides = [{"quantized": True, "p50_ms": integer_ms}, {"quantized": False, "p50_ms": 1.0}]
    for order in (sides, sides[::-1]):
        said = _bench_script().why_slower(order, isa)
        assert (said is None) == (told is None)
        assert said is None or (told in said and (untold is None or untold not in said))
    alike = [{"quantized": True, "p50_ms": 9.0}, {"quantized": True, "p50_ms": 1.0}]
    assert _bench_script().why_slower(alike, isa) is None


def test_bench_times_two_files_in_turns(device):
    done = _python(
        device, "bench.py", "model.onnx", "--against", "model.float.onnx", "--repeats=5", "--json=-"
    )
    found = json.loads(done.stdout)
    assert found["against"]["file"] == "model.float.onnx"
    assert found["against"]["bytes"] == (device / "model.float.onnx").stat().st_size
    assert found["ratio"] == pytest.approx(found["against"]["p50_ms"] / found["p50_ms"], rel=1e-3)


def test_the_files_take_turns_and_each_timed_run_follows_an_untimed_one():
    bench = _bench_script()
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
        (["classify.py", "model.onnx"], "expected images, or --accuracy with a folder of classes"),
        (["classify.py", "model.onnx", "--accuracy", "nowhere"], "There is no folder nowhere."),
        (
            ["classify.py", "model.onnx", "--accuracy", "empty"],
            "empty holds no images: expected empty/CLASS/IMAGE.",
        ),
        (["classify.py", "model.onnx", "deep.png"], "deep.png has more than 8 bits a channel"),
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
    for name in ("cat", "dog"):
        (device / "classes" / name).mkdir(parents=True)
        (device / "classes" / name / "a.jpg").write_bytes((device / "cat.jpg").read_bytes())
    text = (EXPORT / "README.md").read_text()
    commands = re.findall(r"^python (\w+\.py .*)$", text, flags=re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        short = ["--repeats", "2"] if command.startswith("bench") else []
        command = command.replace("path/to/images", "classes")
        done = _python(device, *command.split(), *short)
        assert done.returncode == 0, done.stderr
    [program] = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    done = _python(device, "-c", program.replace("(1, 3, 32, 32)", "(1, 3, 8, 8)"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("size", [8, 31])
def test_a_picture_becomes_the_very_same_input_as_in_training(size, tmp_path):
    """Bit by bit: the same resize, the same cut and the same roundings, or quantized inputs would differ."""
    spec = importlib.util.spec_from_file_location("classify", EXPORT / "classify.py")
    classify = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(classify)
    draw = np.random.default_rng(0)
    mean, std = (tuple(draw.uniform(0.2, 0.5, 3).tolist()) for _ in range(2))
    told = deploy.image_metadata(image_shape=(3, size, size), mean=mean, std=std, classes=list("abcd"))
    deploy.write(tiny_net(), tmp_path / "a.onnx", image_shape=(3, size, size), metadata=told)
    classifier = classify.Classifier(tmp_path / "a.onnx")
    data = replace(tiny_data(), mean=mean, std=std)
    for number in range(40):
        height, width = draw.integers(5, 70, 2)
        path = tmp_path / f"{number}.png"
        Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        wanted = data.normalise(package_images.decode_file(path, size)[None]).numpy()
        found = classifier.prepare(classify.read_image(path))
        assert found.dtype == np.float32 and np.array_equal(found, wanted)


def test_classify_reads_preprocess_json_where_the_file_does_not_say(device, tmp_path):
    for name in ("classify.py", "cat.jpg"):
        (tmp_path / name).write_bytes((device / name).read_bytes())
    deploy.write(tiny_net(), tmp_path / "model.onnx", image_shape=(3, 8, 8))
    told = {"image_shape": [3, 8, 8], "mean": [0.3, 0.4, 0.5], "std": [0.2, 0.3, 0.25]}
    (tmp_path / "preprocess.json").write_text(json.dumps({**told, "classes": ["cat", "dog", "Käse"]}))
    done = _python(tmp_path, "-X", "utf8", "classify.py", "model.onnx", "cat.jpg", "--top=4")
    said = _python(device, "-X", "utf8", "classify.py", "model.onnx", "cat.jpg", "--top=4")
    assert done.returncode == 0 and done.stdout == said.stdout
    (tmp_path / "preprocess.json").write_text("{")
    done = _python(tmp_path, "classify.py", "model.onnx", "cat.jpg")
    assert done.returncode == 2 and "preprocess.json cannot be read" in done.stderr


@pytest.mark.parametrize(
    ("script", "missing"), [("bench", "numpy"), ("classify", "numpy"), ("classify", "PIL")]
)
def test_a_package_that_the_device_lacks_is_told_in_a_sentence(script, missing):
    code = (
        "import runpy, sys\n"
        f"sys.modules[{missing!r}] = None\n"
        f"sys.argv = ['{script}.py', 'model.onnx', 'image.png']\n"
        f"runpy.run_path({str(shipped('export') / script)!r} + '.py', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "python -m pip install numpy" in done.stderr and "Traceback" not in done.stderr
