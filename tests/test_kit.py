"""The edge kit: what the folder holds, and that its commands run, and are right, where there is no torch at all.

The reference for accuracy is the report of the run that made the kit.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import onnxruntime
import pytest
from PIL import Image
from rich.console import Console
from toys import tiny_data, tiny_net

import compress_aug
from compress_aug import Export, Quantize, Recipe, Train, deploy
from compress_aug.errors import ExportError, UserError
from compress_aug.folders import shipped
from compress_aug.targets import load_target

QUIET = Console(quiet=True)
FILES = [
    *("README.md", "bench.py", "classify.py", "model.float.onnx", "model.onnx", "preprocess.json"),
    "target.yaml",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with a kit, the accuracy that its report holds, and the test images as files."""
    folder = tmp_path_factory.mktemp("kit")
    recipe = Recipe(
        [
            # Too short to learn everything: an accuracy of 1 would be that of many a mistake.
            Train(epochs=3, batch_size=16, lr=0.05, precision="float32"),
            Quantize(calibrate=32),
            Export(kit=True),
        ],
        name="kit",
    )
    data = tiny_data(test=64)
    result = compress_aug.run(
        recipe, model=tiny_net(), data=data, out=folder / "run", device="cpu", seed=0, console=QUIET
    )
    [row] = result.report["exports"]
    for number, (image, target) in enumerate(zip(data.test.images, data.test.targets.tolist(), strict=True)):
        place = folder / "images" / data.classes[target]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{number}.png")
    assert row["kit"] == "model.kit" and 0.3 < row["accuracy"] < 1
    return folder / "run", row, folder / "images"


@pytest.fixture
def device(made, tmp_path):
    """The kit and the images copied elsewhere, as on the device."""
    run, _, images = made
    shutil.copytree(run / "model.kit", tmp_path / "kit")
    shutil.copytree(images, tmp_path / "kit" / "images")
    first = next((tmp_path / "kit" / "images").rglob("*.png"))
    shutil.copy(first, tmp_path / "kit" / "PICTURE.jpg")
    return tmp_path / "kit"


BLOCK = """\
import sys


class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names}:
            raise ImportError(f"there is no {{name}} on a device")


sys.meta_path.insert(0, Nothing())
"""


@pytest.fixture
def bare(tmp_path):
    """What runs a command in a python that knows neither torch nor this package, nor what comes with them."""
    names = ("torch", "torchvision", "compress_aug", "brevitas", "onnx", "pydantic", "scipy", "sklearn")
    place = tmp_path / "blocked"
    place.mkdir()
    (place / "sitecustomize.py").write_text(BLOCK.format(names=names))

    def run(folder, *arguments):
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(place)},
            capture_output=True,
            text=True,
            check=False,
        )

    for name in ("torch", "compress_aug"):
        blocked = run(tmp_path, "-c", f"import {name}")
        assert blocked.returncode == 1 and f"there is no {name} on a device" in blocked.stderr
    return run


def commands_of(folder):
    """The arguments of the two commands of a kit's README."""
    text = (folder / "README.md").read_text()
    found = [shlex.split(line) for line in re.findall(r"^python ((?:bench|classify)\.py .*)$", text, re.M)]
    assert [command[0] for command in found] == ["bench.py", "classify.py"]
    return found


def assert_kit_works(run, device, row):
    """Both commands of the README, and the accuracy of the report."""
    bench, classify = commands_of(device)
    done = run(device, *bench, "--repeats", "3")
    assert done.returncode == 0, done.stderr
    assert "model.onnx runs " in done.stdout
    told = json.loads((device / "device.json").read_text())
    assert told["bytes"] == row["bytes"] and told["against"]["bytes"] == row["float_bytes"]
    assert (told["quantized"], told["against"]["quantized"]) == (True, False)

    done = run(device, *classify)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"PICTURE\.jpg: [a-d] \d+\.\d %(, [a-d] \d+\.\d %){2}\n", done.stdout)

    done = run(device, "classify.py", "model.onnx", "--accuracy", "images")
    assert done.returncode == 0, done.stderr
    [(images, right)] = re.findall(r"of (\d+) images are named right \((\d+)\)", done.stdout)
    assert int(images) == row["images"] and int(right) / int(images) == row["accuracy"]
    return told


def test_the_kit_works_without_torch_and_without_this_package(bare, device, made):
    told = assert_kit_works(bare, device, made[1])
    assert told["versions"]["onnxruntime"] == onnxruntime.__version__
    assert deploy.read_bench(device / "device.json").against.bytes == made[1]["float_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "packages",
    [("onnxruntime==1.17.3", "numpy<2", "pillow"), ("onnxruntime", "numpy", "pillow")],
    ids=["onnxruntime 1.17", "newest onnxruntime"],
)
def test_the_kit_works_in_an_environment_of_three_packages(device, made, tmp_path, packages):
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True, capture_output=True)
    python = venv / ("Scripts" if os.name == "nt" else "bin") / "python"
    # What the environment of the tests says about paths must not leak into that of the device.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(folder, *arguments):
        return subprocess.run(
            [str(python), *arguments], cwd=folder, env=clean, capture_output=True, text=True, check=False
        )

    installed = run(tmp_path, "-m", "pip", "install", "--disable-pip-version-check", "-q", *packages)
    if installed.returncode:
        pytest.skip(
            f"{', '.join(packages)} cannot be installed here: {installed.stderr.strip().splitlines()[-1]}"
        )
    for name in ("torch", "compress_aug", "onnx"):
        assert run(tmp_path, "-c", f"import {name}").returncode == 1
    told = assert_kit_works(run, device, made[1])
    wanted = packages[0].partition("==")[2]
    assert told["versions"]["onnxruntime"].startswith(wanted)
    assert told["versions"]["numpy"].startswith("1.") == ("numpy<2" in packages)


def test_a_kit_holds_what_a_device_needs(made):
    run, _, _ = made
    kit = run / "model.kit"
    assert sorted(path.name for path in kit.iterdir()) == sorted(FILES)
    for name in ("bench.py", "classify.py"):
        assert (kit / name).read_bytes() == (shipped("export") / name).read_bytes()
    for name in ("model.onnx", "model.float.onnx"):
        assert (kit / name).read_bytes() == (run / name).read_bytes()
    assert load_target(kit / "target.yaml") == load_target("host_cpu")
    told = json.loads((kit / "preprocess.json").read_text())
    inside = deploy.read_metadata(kit / "model.onnx")
    assert {key: json.loads(inside[key]) for key in ("image_shape", "mean", "std", "classes")}.items() <= (
        told.items()
    )
    assert (told["model"], told["float_model"]) == ("model.onnx", "model.float.onnx")
    assert "torch" not in re.sub("no torch", "", (kit / "README.md").read_text())


def test_export_again_makes_a_kit_for_another_target(made, tmp_path):
    run, _, _ = made
    shutil.copytree(run, tmp_path / "run")
    keys = {"model": tiny_net(), "data": tiny_data(test=64), "console": QUIET}
    kit = tmp_path / "for the pi"
    compress_aug.export_again(
        tmp_path / "run", target="raspberry_pi_4", file="deep/pi 4.onnx", kit=kit, **keys
    )
    assert {"pi 4.onnx", "pi 4.float.onnx"} <= {path.name for path in kit.iterdir()}
    bench, classify = commands_of(kit)
    assert bench == [
        *("bench.py", "pi 4.onnx", "--against", "pi 4.float.onnx", "--threads", "4"),
        *("--json", "device.json"),
    ]
    assert classify[1] == "pi 4.onnx" and load_target(kit / "target.yaml").name == "raspberry_pi_4"

    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and no kit"):
        compress_aug.export_again(tmp_path / "run", file="other.onnx", kit=full, **keys)
    # Told before any work.
    assert not (tmp_path / "run" / "other.onnx").exists()


def test_a_kit_is_written_anew_and_leaves_other_files_alone(made, tmp_path):
    run, _, _ = made
    kit = tmp_path / "kit"
    for _ in range(2):
        deploy.write_kit(run / "model.onnx", kit, target=load_target("host_cpu"))
        assert sorted(p.name for p in kit.iterdir()) == sorted(set(FILES) - {"model.float.onnx"})
        (kit / "bench.py").write_text("old")
    (kit / "device.json").write_text("{}")
    deploy.write_kit(run / "model.onnx", kit, target=load_target("host_cpu"))
    assert (kit / "device.json").read_text() == "{}"
    assert "--against model" not in (kit / "README.md").read_text().split("At home")[0]


def test_what_a_kit_cannot_be_made_of_is_told(tmp_path):
    host = load_target("host_cpu")
    (tmp_path / "file").write_text("")
    for place, sentence in ((tmp_path / "file", "is a file"), (tmp_path, "is not empty and no kit")):
        with pytest.raises(UserError, match=sentence):
            deploy.write_kit(tmp_path / "a.onnx", place, target=host)
    deploy.write(tiny_net(), tmp_path / "a.onnx", image_shape=(3, 8, 8))
    with pytest.raises(ExportError, match=r"does not say how to prepare its images"):
        deploy.write_kit(tmp_path / "a.onnx", tmp_path / "kit", target=host)
    assert not (tmp_path / "kit").exists()


def test_a_kit_for_tensorrt_says_how_and_that_we_have_not_run_it(made, tmp_path):
    deploy.write_kit(made[0] / "model.onnx", tmp_path / "kit", target=load_target("jetson"))
    text = (tmp_path / "kit" / "README.md").read_text()
    assert "--shapes=input:1x3x8x8" in text and "have not run it" in text


def test_a_run_for_the_jetson_writes_plain_signed_quantizers(tmp_path):
    """Values that are never negative get 7 bits from the start of training, because int8 has no more for them."""
    from test_signed import assert_plain

    recipe = Recipe(
        [
            Train(epochs=1, batch_size=16, lr=0.05, precision="float32"),
            Quantize(calibrate=32),
            Export(),
        ],
        name="jetson",
    )
    keys = {"model": tiny_net(), "data": tiny_data(), "device": "cpu", "console": QUIET}
    result = compress_aug.run(recipe, out=tmp_path / "run", target="jetson", **keys)
    import onnx

    assert_plain(onnx.load(str(tmp_path / "run" / "model.onnx")))
    assert any("7 bits" in note for note in result.report["stages"][1]["notes"])
    [row] = result.report["exports"]
    assert row["proxy"] and row["target"] == "jetson"
