"""The command line as users meet it: what is printed, the exit codes, and one clear sentence for each mistake."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from PIL import Image

from compress_aug import cli

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """Run a command in an empty folder; gives (exit code, what it printed, its errors)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["compress-aug", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


SMALL = """
version: 1
model: {call: "nets:net"}
data: digits
stages:
  - train: {epochs: 1, batch_size: 256, augment: {magnitude: 5}}
  - keep: teacher
  - prune: {sparsity: 0.5}
  - quantize: {calibrate: 64}
  - train: {epochs: 1, batch_size: 256, distill: {teacher: teacher}}
  - export
"""

NETS = """
from torch import nn

def net(classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 64, classes),
    )

def five():
    return net(5)

def broken(x):
    raise RuntimeError("no luck")
"""


@pytest.fixture
def workplace(tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL)
    (tmp_path / "nets.py").write_text(NETS)
    yield tmp_path
    sys.modules.pop("nets", None)


def test_the_whole_way_on_a_model_of_ones_own(call, workplace):
    code, out, err = call("run", "small.yaml", "--out", "runs/a", "--device", "cpu")
    assert (code, err) == (0, "")
    report = json.loads(Path("runs/a/report.json").read_text())
    assert report["finished"] and report["exports"][0]["integer_layers"] == 2
    assert "Everything lies in runs/a" in out and Path("runs/a/report.html").is_file()

    code, out, err = call("run", "small.yaml", "--out", "runs/a", "--device", "cpu", "--resume")
    assert code == 0 and "6 of 6 stages are done" in out

    code, out, err = call("run", "small.yaml", "--out", "runs/a")
    assert code == 2 and "is not empty" in err

    code, out, err = call(
        "run", "small.yaml", "--out", "runs/a", "--resume", "--set", "stages.2.prune.sparsity=0.6"
    )
    assert code == 2 and "stages.2.prune.sparsity is 0.5 there and 0.6 here" in err

    code, out, err = call("report", "runs/a")
    assert code == 0 and "report.html" in out

    code, out, err = call(
        "bench", "runs/a/model.onnx", "--against", "runs/a/model.float.onnx", "--repeats", "5"
    )
    assert code == 0 and "as fast as" in out

    code, out, err = call("export", "runs/a", "--target", "raspberry_pi_4", "--file", "pi.onnx")
    assert code == 0 and Path("runs/a/pi.onnx").is_file()

    code, out, err = call("plan", "small.yaml")
    assert code == 0 and "prune to 50 %" in out

    code, out, err = call("check", "small.yaml", "--device", "cpu")
    assert code == 0 and "every stage works" in out


def test_a_missed_budget_is_exit_1_with_the_table(call, workplace):
    text = SMALL.replace("- export", "- export: {budget: {size_mb: 0.0001}}")
    (workplace / "small.yaml").write_text(text)
    code, out, err = call("run", "small.yaml", "--out", "runs/b", "--device", "cpu")
    assert code == 1
    assert "size_mb is" in err and "Everything lies in runs/b" in out
    assert Path("runs/b/model.onnx").is_file()


def mistake(text, **replacements):
    for old, new in replacements.items():
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "magnitude: 5",
            "magnitud: 5",
            'line 6, stages.0.train.augment.magnitud: unknown key "magnitud": did you mean "magnitude"?',
        ),
        ("epochs: 1", "epochs: one", 'expected a whole number, found "one"'),
        ("magnitude: 5", "magnitude: 31", "expected a magnitude in 0..30 (or none), found 31"),
        ("sparsity: 0.5", "sparsity: 1.0", "expected a number below 1"),
        ("- keep: teacher", "- prune: {sparsity: 0.7}\n  - keep: teacher", "0.5 is lower than the 0.7"),
        ("- keep: teacher", "- drop\n  - keep: teacher", "nothing is attached"),
        ("- keep: teacher", "- keep: teachers", 'did you mean "teachers"?'),
        ("  - export", "\t- export", "line 11: a tab indents this line"),
        ("data: digits", "data: digits\ndata: cifar10", 'the key "data" stands here a second time'),
        ('{call: "nets:net"}', '{call: "nots:net"}', 'there is no module "nots"'),
        ('{call: "nets:net"}', '{call: "nets:nut"}', 'has no function "nut"; did you mean "net"?'),
        ('{call: "nets:net"}', '{call: "nets:five"}', "10"),
        ('{call: "nets:net"}', '{call: "nets:broken", x: 1}', "no luck"),
        ('{call: "nets:net"}', "resnet21", 'there is no model "resnet21"; did you mean "resnet'),
        ("data: digits", "data: digit", 'did you mean "digits"?'),
        ("data: digits", "data: {folder: nowhere}", "nowhere"),
        ("data: digits", "data: {folder: empty}", "empty"),
        ("data: digits", "data: {folder: lonely}", "one"),
        ("data: digits", "data: {folder: broken}", "broken/train/b/bad.png"),
        ("version: 1", "version: 7", "expected version: 1, found 7"),
    ],
)
def test_each_mistake_is_one_sentence_and_exit_2(call, workplace, old, new, told):
    assert old in SMALL
    (workplace / "small.yaml").write_text(SMALL.replace(old, new))
    folders(workplace)
    code, _out, err = call("run", "small.yaml", "--out", "runs/x", "--device", "cpu")
    assert code == 2, err
    assert told in " ".join(err.split()), err
    assert "Traceback" not in err and err.startswith("error: ")
    assert len(err.strip().splitlines()) <= 2, err
    assert not Path("runs").exists(), "nothing is half written"


def folders(place):
    (place / "empty").mkdir()
    for name, classes in (("lonely", ["a"]), ("broken", ["a", "b"])):
        for part in ("train", "test"):
            for label in classes:
                (place / name / part / label).mkdir(parents=True)
                for n in range(3):
                    Image.new("RGB", (32, 32), (n, 0, 0)).save(place / name / part / label / f"{n}.png")
    (place / "broken" / "train" / "b" / "bad.png").write_bytes(b"this is no image")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "quikstart"], 'did you mean "quickstart"?'),
        (["plan", "nothing.yaml"], "There is no recipe file nothing.yaml"),
        (["run", "quickstart", "--set", "stages.0.train.epoch=2"], 'did you mean "epochs"?'),
        (["run", "quickstart", "--data", "no/such/folder"], "there is no such folder"),
        (["run", "quickstart", "--target", "raspbery_pi_4"], 'did you mean "raspberry_pi_4"?'),
        (["run", "quickstart", "--device", "tpu"], "expected auto, cpu, cuda or cuda:N"),
        (["run", "quickstart", "--resume"], "There is no run"),
        (["run", "quickstart", "--from", "nowhere"], "holds no run"),
        (["report", "nowhere"], "nowhere"),
        (["bench", "nowhere.onnx"], "There is no file nowhere.onnx"),
        (["export", "nowhere"], "holds no run"),
        (["copy", "quickstart", "no/such/folder/mine.yaml"], "There is no folder"),
    ],
)
def test_wrong_arguments(call, arguments, told):
    code, _out, err = call(*arguments)
    assert code == 2 and told in " ".join(err.split()), err
    assert "Traceback" not in err
    assert list(Path().iterdir()) == []


def test_an_unknown_option_is_exit_2(call):
    code, _, err = call("run", "quickstart", "--epocs", "3")
    assert code == 2 and "--epocs" in err


def test_debug_shows_the_traceback(call):
    code, _, err = call("run", "quikstart", "--debug")
    assert code == 2 and "Traceback" in err


def test_list_copy_and_schema(call):
    code, out, _ = call("list")
    assert code == 0
    for word in ("quickstart", "raspberry_pi_4", "resnet20", "digits", "quantize"):
        assert word in out
    code, out, _ = call("copy", "quickstart")
    assert code == 0 and Path("quickstart.yaml").is_file()
    assert call("copy", "quickstart")[0] == 2, "never over a file that is there"
    assert call("plan", "quickstart.yaml")[0] == 0, "it is a recipe like any other"
    code, out, _ = call("schema")
    assert code == 0 and json.loads(out)["properties"]["version"] == {"const": 1}


@pytest.mark.slow
def test_two_processes_share_the_training_and_one_writes(workplace):
    """DDP on the CPU: every process walks the recipe, the first one alone prunes, quantizes, exports and prints."""
    command = [sys.executable, "-m", "compress_aug.cli", "run", "small.yaml", "--out", "runs/two"]
    done = subprocess.run(
        [*command, "--device", "cpu", "--devices", "2"],
        cwd=workplace,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Everything lies in runs/two") == 1
    report = json.loads((workplace / "runs" / "two" / "report.json").read_text())
    assert report["devices"] == 2 and report["finished"]
    row = report["stages"][0]["history"][0]
    assert row["train_accuracy"] * 1280 == pytest.approx(round(row["train_accuracy"] * 1280)), (
        "images of both"
    )
    assert report["exports"][0]["integer_layers"] == 2
    assert report["stages"][2]["sparsity"] == pytest.approx(0.5, abs=0.01)


def test_help_needs_no_torch():
    code = textwrap.dedent(
        """
        import sys
        from compress_aug.cli import main
        sys.argv = ["compress-aug", *sys.argv[1:]]
        try:
            main()
        except SystemExit as stop:
            assert not stop.code, stop.code
        heavy = {"torch", "torchvision", "brevitas", "onnx", "onnxruntime", "matplotlib"} & set(sys.modules)
        assert not heavy, heavy
        """
    )
    for arguments in (["--help"], ["run", "--help"], ["plan", "quickstart"], ["schema"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, check=False
        )
        assert done.returncode == 0, done.stderr


def test_a_mistake_of_ours_is_called_one(call, monkeypatch):
    monkeypatch.setattr("compress_aug.recipe.load_recipe", lambda *a, **k: 1 / 0)
    code, _, err = call("plan", "quickstart")
    assert code == 1 and "internal error: ZeroDivisionError" in err and "--debug" in err
