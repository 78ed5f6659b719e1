"""OpenVINO as the runtime of a target: what is chosen, written and refused; and, where it is installed, the numbers.

A stand-in with the few calls that we make of it takes its place, computes in ONNX Runtime, and refuses what would
make OpenVINO compute with other roundings.
"""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from toys import TinyResidual, tiny_data, tiny_net

import compress_aug
from compress_aug import Export, Quantize, Recipe, Train, deploy, quantization
from compress_aug.errors import ExportError, MissingPart, ParityError, RecipeError
from compress_aug.folders import shipped
from compress_aug.targets import load_target

IS_INSTALLED = importlib.util.find_spec("openvino") is not None
needs_openvino = pytest.mark.skipif(not IS_INSTALLED, reason="openvino is not installed")

TARGET = """\
name: laptop
description: a laptop with OpenVINO
runtime: openvino
threads: 1
round_to: 8
int8_saturates: false
proxy: false
"""

STAND_IN = """
import os

import numpy as np
import onnxruntime

__version__ = "2026.0.0-stand-in"
SHIFT = float(os.environ.get("STAND_IN_SHIFT", "0"))


class Type:
    f32 = "f32"


class Size:
    def __init__(self, size):
        self.size, self.is_static = size, isinstance(size, int)

    def get_length(self):
        return self.size


class Input:
    element_type = Type.f32

    def __init__(self, entry):
        self.any_name = entry.name
        self.partial_shape = [Size(size) for size in entry.shape]


class Model:
    def __init__(self, path):
        try:
            self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except Exception:
            raise RuntimeError("Exception from somewhere:\\nUnable to read the model") from None
        self.inputs, self.shape = [Input(entry) for entry in self.session.get_inputs()], None

    def reshape(self, shapes):
        [self.shape] = shapes.values()


class Told:
    def __init__(self, value):
        self.value = value

    def astype(self, kind):
        return kind(self.value)


class Element:
    def __init__(self, name):
        self.name = name

    def get_element_type(self):
        return self

    def get_type_name(self):
        return self.name


class Layer:
    def __init__(self, kind, names, types):
        self.told, self.types = {"layerType": Told(kind), "originalLayersNames": Told(names)}, types

    def get_rt_info(self):
        return self.told

    def inputs(self):
        return [Element(name) for name in self.types]


class Compiled:
    def __init__(self, model):
        self.model = model

    def create_infer_request(self):
        return self

    def infer(self, feeds):
        [images] = feeds.values()
        assert list(images.shape) == list(self.model.shape), "compiled for another shape"
        logits = self.model.session.run(None, {self.model.inputs[0].any_name: images})[0]
        logits[:, 0] += SHIFT
        return [logits]

    def get_runtime_model(self):
        return self

    def get_ordered_ops(self):
        return [
            Layer("Convolution", "conv/WithoutBiases,Multiply_1,conv", ["u8", "i8", "f32"]),
            Layer("Subgraph", "/Add,quantizer", ["f32", "u8"]),
        ]


class Core:
    def read_model(self, path):
        return Model(path)

    def compile_model(self, model, device, settings):
        assert device == "CPU" and model.shape is not None, "an open batch has other roundings"
        assert settings["INFERENCE_PRECISION_HINT"] == "f32" and settings["INFERENCE_NUM_THREADS"] >= 1
        return Compiled(model)
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """The stand-in, in this process and in those that it starts."""
    place = tmp_path / "stand_in"
    place.mkdir()
    (place / "openvino.py").write_text(STAND_IN)
    monkeypatch.delitem(sys.modules, "openvino", raising=False)
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")]))
    yield
    sys.modules.pop("openvino", None)


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "laptop.yaml"
    path.write_text(TARGET)
    return path


def finalized(bits=8):
    torch.manual_seed(0)
    net, batch = TinyResidual(), torch.randn(16, 3, 8, 8)
    net.train()(batch)
    made = quantization.quantize(net.eval(), batch[:1], weights=bits, activations=bits, calibration=[batch])
    return quantization.finalize(made).eval(), batch


# ------------------------------------------------------------------- without it


def test_a_target_that_names_it_is_refused_in_time_where_it_is_missing(monkeypatch, target, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    sentence = (
        r'runtime: openvino needs openvino, which is not installed: pip install "compress-aug\[openvino\]"'
    )
    with pytest.raises(MissingPart, match=sentence):
        load_target(target)
    deploy.write(tiny_net(), tmp_path / "a.onnx", image_shape=(3, 8, 8))
    for call in (deploy.latency, deploy.audit):
        with pytest.raises(MissingPart, match=sentence):
            call(tmp_path / "a.onnx", runtime="openvino")
    with pytest.raises(MissingPart, match=sentence):
        deploy.check_parity(tiny_net(), tmp_path / "a.onnx", [], runtime="openvino")


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("form: tensorrt", "line 4, form: expected onnxruntime, whose form OpenVINO has integer kernels for"),
        ("opset: 25", "line 4, opset: expected at most 21, since OpenVINO reads no INT2 tensors, found 25"),
    ],
)
def test_what_it_cannot_read_is_refused(target, key, sentence):
    target.write_text(TARGET.replace("threads:", f"{key}\nthreads:"))
    with pytest.raises(RecipeError, match=sentence):
        load_target(target)


@pytest.mark.parametrize("script", ["bench.py", "classify.py"])
def test_a_script_says_what_to_install(script, tmp_path):
    deploy.write(tiny_net(), tmp_path / "a.onnx", image_shape=(3, 8, 8))
    code = (
        "import runpy, sys; sys.modules['openvino'] = None; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    extra = ["picture.jpg"] if script == "classify.py" else []
    command = [sys.executable, "-c", code, str(shipped("export") / script), str(tmp_path / "a.onnx"), *extra]
    done = subprocess.run(
        [*command, "--runtime=openvino"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        "There is no openvino in this Python: python -m pip install openvino, or choose another --runtime.\n"
    )


# ------------------------------------------------------------------- with the stand-in


def test_a_run_proves_and_times_on_it_and_its_kit_names_it(stand_in, target, tmp_path):
    recipe = Recipe(
        [
            Train(epochs=1, batch_size=16, lr=0.05, precision="float32"),
            Quantize(calibrate=32),
            Export(kit=True),
        ],
        name="laptop",
    )
    keys = {"model": tiny_net(), "data": tiny_data(), "device": "cpu", "console": Console(quiet=True)}
    result = compress_aug.run(recipe, out=tmp_path / "run", target=str(target), seed=0, **keys)
    [row] = result.report["exports"]
    assert (row["runtime"], row["target"]) == ("openvino 2026.0.0", "laptop")
    assert row["top1_agreement"] == 1 and row["layers"] and row["diverging"] is None
    [note] = [line for line in result.report["stages"][-1]["notes"] if "openvino" in line]
    assert "compared as the file is written, in ONNX Runtime" in note
    kit = tmp_path / "run" / "model.kit"
    readme = (kit / "README.md").read_text()
    assert "pip install numpy openvino pillow" in readme and "class names are in preprocess.json" in readme
    assert load_target(kit / "target.yaml").runtime == "openvino"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(kit / "PICTURE.jpg")
    commands = [shlex.split(line) for line in re.findall(r"^python (.*\.py .*)$", readme, re.MULTILINE)]
    assert [command[0] for command in commands] == ["bench.py", "classify.py"]
    for command in commands:
        done = subprocess.run(
            [sys.executable, *command], cwd=kit, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    told = json.loads((kit / "device.json").read_text())
    assert told["runtime"] == "openvino 2026.0.0"
    assert set(told["versions"]) == {"python", "numpy", "openvino"}


def test_classes_that_change_on_it_are_blamed_on_it(stand_in, tmp_path, monkeypatch):
    final, batch = finalized()
    deploy.write(final, tmp_path / "a.onnx", image_shape=(3, 8, 8))
    monkeypatch.setenv("STAND_IN_SHIFT", "100")
    parity = deploy.check_parity(
        final, tmp_path / "a.onnx", [(batch, torch.zeros(16).long())], runtime="openvino"
    )
    assert parity.runtime == "openvino" and parity.disagreements > 2 and parity.due_to_runtime == 1
    # What the file itself says is right: its layers are looked at as they are written.
    assert parity.wrong is None and parity.accuracy == 1
    with pytest.raises(
        ParityError, match=r"100% of these are right in ONNX Runtime .*: openvino computes something"
    ):
        deploy.require(parity)


def test_the_audit_reads_what_it_made_of_each_layer(stand_in, tmp_path):
    final, _ = finalized()
    deploy.write(final, tmp_path / "a.onnx", image_shape=(3, 8, 8))
    found = deploy.audit(tmp_path / "a.onnx", runtime="openvino")
    assert found.integer_layers == 1
    assert ("the sum after conv", "Subgraph", "reads f32 in OpenVINO") in found.stayed_float
    assert ("fc", "Gemm", "OpenVINO tells nothing of it") in found.stayed_float


def test_a_file_that_it_cannot_load_is_told(stand_in, tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"nothing")
    for call in (deploy.audit, deploy.latency):
        with pytest.raises(ExportError, match=r"Unable to read the model|Exception from somewhere"):
            call(tmp_path / "a.onnx", runtime="openvino")
    with pytest.raises(ExportError, match="There is no file"):
        deploy.audit(tmp_path / "b.onnx", runtime="openvino")


# ------------------------------------------------------------------- with OpenVINO itself


@needs_openvino
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_it_computes_what_the_model_computes(bits, tmp_path):
    final, _ = finalized(bits)
    path = tmp_path / "a.onnx"
    deploy.write(final, path, image_shape=(3, 8, 8))
    images = torch.randn(128, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    parity = deploy.check_parity(final, path, [(images, torch.zeros(128).long())], runtime="openvino")
    deploy.require(parity)
    found = deploy.audit(path, runtime="openvino")
    assert found.integer_layers >= 3
    timed = deploy.latency(path, repeats=3, against=path, runtime="openvino")
    assert timed.runtime.startswith("openvino 20") and timed.ratio
