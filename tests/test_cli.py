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


SCHEDULE = """
format: 1
space: pba15x2
epochs: 10
segments:
  - {epochs: 4, ops: []}
  - {epochs: 6, ops: [{op: Rotate, probability: 0.8, magnitude: 9}]}
"""

MAGNITUDE = "format: 1\nspace: randaugment30\nmagnitude: {start: 14, end: 0}\n"


@pytest.fixture
def schedules(tmp_path):
    """A learned policy, a magnitude, a recipe that names both, and a text that is none of these."""
    (tmp_path / "policy.yaml").write_text(SCHEDULE)
    (tmp_path / "magnitude.yaml").write_text(MAGNITUDE)
    (tmp_path / "recipe.yaml").write_text(
        "version: 1\nmodel: resnet8\ndata: digits\nstages:\n"
        "  - train: {epochs: 3, augment: {policy: policy.yaml}}\n  - prune: {sparsity: 0.4}\n"
        "  - train: {epochs: 2, augment: {magnitude: magnitude.yaml}}\n  - export\n"
    )
    (tmp_path / "untrained.yaml").write_text(
        "version: 1\nmodel: resnet8\ndata: digits\nstages:\n  - export\n"
    )
    (tmp_path / "notes.png").write_text("my notes")
    (tmp_path / "events.txt").write_text("hello\n")
    return tmp_path


def size(file):
    with Image.open(file) as image:
        return image.size


@pytest.mark.parametrize(
    ("arguments", "rows", "told"),
    [
        (
            [],
            15,
            "14 operations at magnitude 14 on 4 training images of 4 of the 10 classes of digits, the default",
        ),
        (["--magnitude", "3", "--fill", "1,2,3", "--interpolation", "bilinear"], 15, "at magnitude 3"),
        (["--rows", "magnitudes", "--data", "digits"], 9, "at rising magnitudes on 4 training images"),
        (["--policy", "policy.yaml"], 3, "policy.yaml: learned policies over 10 epochs"),
    ],
)
def test_show_augment(call, schedules, arguments, rows, told):
    code, out, err = call("show-augment", "--samples", "4", *arguments)
    assert (code, err) == (0, "")
    assert out.startswith("augment.png shows ") and told in out and out.count("\n") == 1
    assert ("the default" in out) == ("--data" not in arguments)
    assert size("augment.png")[1] > rows * 100
    assert call("show-augment", "--samples", "1", *arguments)[0] == 0, "a picture is made anew"


def test_show_augment_on_a_folder_of_images(call, tmp_path):
    folders(tmp_path)
    (tmp_path / "broken" / "train" / "b" / "bad.png").unlink()
    code, out, err = call("show-augment", "--data", "broken", "--samples", "4", "--out", "mine.png")
    assert (code, err) == (0, "") and "4 training images of all 2 classes of broken." in out
    assert Path("mine.png").is_file()


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("policy.yaml", "2 policies over 10 epochs, of policy.yaml"),
        ("magnitude.yaml", "the magnitude 14 → 0 over a stage, of magnitude.yaml"),
        ("recipe.yaml", "the magnitude of recipe.yaml over the 5 epochs of its 2 trainings"),
        ("quickstart", "the magnitude of quickstart over the 42 epochs of its 5 trainings"),
    ],
)
def test_show_schedule(call, schedules, source, told):
    code, out, err = call("show-schedule", source)
    assert (code, err) == (0, "") and out == f"schedule.png shows {told}.\n"
    assert size("schedule.png")[0] >= 900


def test_show_schedule_replayed(call, schedules):
    code, out, err = call(
        "show-schedule", "policy.yaml", "--epochs", "50", "--replay", "legacy", "--out", "a.png"
    )
    assert (code, err) == (0, "") and "replayed over 50 epochs (legacy)" in out and Path("a.png").is_file()


def test_a_schedule_goes_to_a_log_and_back(call, schedules):
    from compress_aug.policies import read_schedule

    code, out, err = call("convert-schedule", "policy.yaml", "log.txt")
    assert (code, err) == (
        0,
        "",
    ) and "policy.yaml: 2 policies over 10 epochs. log.txt is a log of PBA now" in out
    line = Path("log.txt").read_text().replace('"1", "0"', '"7", "6"')
    Path("log.txt").write_text(line + Path("log.txt").read_text())
    code, out, err = call("convert-schedule", "log.txt", "again.yaml", "--epochs", "10")
    assert (code, err) == (0, "")
    assert out == (
        "log.txt: 1 of 2 lines tell the life of trial 1, the others are left from lives that it gave up. "
        "again.yaml holds 2 policies over 10 epochs.\n"
    )
    assert read_schedule("again.yaml") == read_schedule("policy.yaml")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["show-augment", "--magnitude", "31"], "magnitude must be a whole number in 0..30"),
        (["show-augment", "--rows", "operation"], 'did you mean "operations"?'),
        (["show-augment", "--rows", "policy"], "needs the file of a learned policy: --policy FILE"),
        (
            ["show-augment", "--rows", "magnitudes", "--magnitude", "3"],
            "--magnitude is for rows of operations",
        ),
        (
            ["show-augment", "--rows", "operations", "--policy", "policy.yaml"],
            "leave out --rows, or --policy",
        ),
        (["show-augment", "--policy", "magnitude.yaml"], "holds a magnitude, not a learned policy"),
        (["show-augment", "--policy", "none.yaml"], "There is no file none.yaml"),
        (["show-augment", "--data", "digit"], 'did you mean "digits"?'),
        (["show-augment", "--data", "no/folder"], "there is no such folder"),
        (["show-augment", "--data", "lonely"], "lonely/train"),
        (
            ["show-augment", "--data", "{name: digits, train: 5}", "--samples", "6"],
            "digits has 5 training images: expected samples in 1..5, found 6",
        ),
        (["show-augment", "--fill", "red"], "--fill red: expected 0..255, RED,GREEN,BLUE of them, or mean"),
        (["show-augment", "--fill", "1,2,256"], "expected 0..255"),
        (["show-augment", "--interpolation", "cubic"], "cubic"),
        (["show-augment", "--out", "a.jpg"], "let the name end in .png"),
        (["show-augment", "--out", "none/a.png"], "There is no folder none"),
        (["show-augment", "--out", "notes.png"], "is no PNG, so it is not overwritten"),
        (["show-schedule", "none.yaml"], "There is no file none.yaml"),
        (["show-schedule", "quikstart"], 'did you mean "quickstart"?'),
        (["show-schedule", "events.txt"], "compress-aug convert-schedule events.txt events.yaml --epochs"),
        (
            ["show-schedule", "quickstart", "--epochs", "3"],
            "--epochs is for a learned policy, but quickstart is a recipe",
        ),
        (["show-schedule", "magnitude.yaml", "--replay", "legacy"], "magnitude.yaml holds a magnitude"),
        (["show-schedule", "policy.yaml", "--epochs", "0"], "expected a whole number in 1..1000000, found 0"),
        (["show-schedule", "policy.yaml", "--replay", "legasy"], 'did you mean "legacy"?'),
        (["show-schedule", "policy.yaml", "--replay", "flatten"], "use proportional or legacy"),
        (["show-schedule", "untrained.yaml"], "trains nothing"),
        (["show-schedule", "quickstart", "--out", "notes.png"], "is no PNG, so it is not overwritten"),
        (["convert-schedule", "none.txt", "a.yaml"], "There is no file none.txt"),
        (["convert-schedule", "events.txt", "a.yaml"], "give --epochs with events.txt"),
        (
            ["convert-schedule", "events.txt", "a.yaml", "--epochs", "9"],
            "events.txt, line 1: this is neither JSON",
        ),
        (["convert-schedule", "events.txt", "a.txt", "--epochs", "9"], "let a.txt end in .yaml"),
        (["convert-schedule", "policy.yaml", "a.yaml"], "let a.yaml end in .txt"),
        (
            ["convert-schedule", "policy.yaml", "events.txt"],
            "events.txt exists already and is not overwritten",
        ),
        (["convert-schedule", "policy.yaml", "none/a.txt"], "There is no folder none"),
        (["convert-schedule", "policy.yaml", "a.txt", "--epochs", "9"], "policy.yaml says itself how many"),
        (["convert-schedule", "magnitude.yaml", "a.txt"], "holds a magnitude, not a learned policy"),
    ],
)
def test_wrong_arguments_of_pictures(call, schedules, arguments, told):
    folders(schedules)
    before = sorted(path.name for path in Path().iterdir())
    code, _out, err = call(*arguments)
    assert code == 2 and told in " ".join(err.split()), err
    assert "Traceback" not in err and err.startswith("error: ") and len(err.strip().splitlines()) == 1
    assert sorted(path.name for path in Path().iterdir()) == before, "nothing is written"
    assert Path("notes.png").read_text() == "my notes"


SCANNED = """
version: 1
model: {call: "nets:net"}
data: digits
stages:
  - train: {epochs: 1, batch_size: 64, augment: {magnitude: 0}}
  - prune: {sparsity: 0.5}
  - quantize: {calibrate: 64}
"""


def test_sensitivity(call, workplace):
    (workplace / "scanned.yaml").write_text(SCANNED)
    assert call("run", "scanned.yaml", "--out", "runs/s", "--device", "cpu")[0] == 0

    code, out, err = call("sensitivity", "runs/s", "--stage", "0", "--json", "s.json", "--device", "cpu")
    assert (code, err) == (0, "")
    found = json.loads(Path("s.json").read_text())
    assert f"{100 * found['base']:.1f} % of 144 validation images are right" in out
    assert "zeros" not in out and "sensitivity.png shows it as a map; the numbers are in s.json" in out
    assert size("sensitivity.png")[0] >= 700
    assert [layer["name"] for layer in found["layers"]] == ["0", "4"]
    assert found["amounts"] == [0.3, 0.5, 0.7, 0.8, 0.9, 0.95] and found["images"] == 144
    assert found["after"] == "after stage 0 (train 1 epoch)" and found["model"] == "nets:net"
    assert set(found["bears"]) == {"0", "4"} and found["tolerance_points"] == 1.0
    for layer in found["layers"]:
        row = next(line.split() for line in out.splitlines() if line.split()[:1] == [layer["name"]])
        assert row[4:10] == [f"{100 * accuracy:.1f}" for accuracy in layer["accuracies"]]

    arguments = ["--sparsities", "0.4,0.9", "--layers", "Linear", "--images", "50", "--tolerance", "100"]
    code, out, err = call("sensitivity", "runs/s", *arguments, "--json", "s.json", "--out", "a.png")
    assert (code, err) == (0, "") and "of 50 validation images" in out and "at most 100 points" in out
    found = json.loads(Path("s.json").read_text())
    assert found["after"].startswith("after stage 2 (quantize")
    assert [(layer["name"], layer["already"]) for layer in found["layers"]] == [("4", 1)]
    assert found["bears"] == {"4": 0.9}

    arguments = ["--stage", "1", "--bits", "8,2", "--json", "b.json", "--out", "b.png", "--tolerance", "50"]
    for more, kind in (([], "bits"), (["--activations"], "bits with inputs")):
        code, out, err = call("sensitivity", "runs/s", *arguments, *more)
        assert (
            (code, err) == (0, "")
            and "8 bits" in out
            and "the fewest bits that cost at most 50 points" in out
        )
        found = json.loads(Path("b.json").read_text())
        assert found["kind"] == kind and found["amounts"] == [8, 2]
        assert "weights and inputs of one layer" in out if more else "the weights of one layer" in out
        for layer in found["layers"]:
            row = next(line.split() for line in out.splitlines() if line.split()[:1] == [layer["name"]])
            told = zip(layer["accuracies"], layer["cross_entropies"], strict=True)
            grown = [
                (f"{100 * right:.1f}", f"{loss - found['base_cross_entropy']:+.3f}") for right, loss in told
            ]
            assert row[6:10] == [word for pair in grown for word in pair]

    folders(workplace)
    (workplace / "mine.json").write_text("{}")
    (workplace / "unfinished").mkdir()
    (workplace / "unfinished" / "recipe.yaml").write_text(SCANNED)
    before = sorted(path.name for path in Path().iterdir())
    for arguments, told in [
        (["nowhere"], "nowhere holds no run"),
        (["unfinished"], "No stage of unfinished is finished yet"),
        (["runs/s", "--stage", "3"], "--stage 3: the finished stages of runs/s are 0 to 2"),
        (["runs/s", "--sparsities", "0.5,1"], "from 0 to below 1; found 1.0"),
        (["runs/s", "--sparsities", "50%"], "such as 0.5,0.8"),
        (["runs/s", "--bits", "8"], "quantized already"),
        (["runs/s", "--stage", "0", "--bits", "8,9"], "from 2 to 8; found 9"),
        (["runs/s", "--stage", "0", "--bits", "4.5"], "expected whole numbers from 2 to 8"),
        (["runs/s", "--bits", "8", "--sparsities", "0.5"], "give one of them"),
        (["runs/s", "--activations"], "--activations goes with --bits"),
        (["runs/s", "--layers", "QuantConv"], 'did you mean "QuantConv2d"?'),
        (["runs/s", "--data", "{name: digits, validation: 0}"], "digits has no validation images"),
        (["runs/s", "--data", "cifar"], "there is no data set"),
        (["runs/s", "--data", "lonely"], "lonely/train"),
        (["runs/s", "--device", "tpu"], "expected auto, cpu, cuda or cuda:N"),
        (["runs/s", "--out", "a.jpg"], "let the name end in .png"),
        (["runs/s", "--json", "mine.json"], "mine.json is there already and is none of this command"),
        (["runs/s", "--json", "none/s.json"], "There is no folder none"),
    ]:
        code, _out, err = call("sensitivity", *arguments)
        assert code == 2 and told in " ".join(err.split()), err
        assert err.startswith("error: ") and len(err.strip().splitlines()) == 1
        assert sorted(path.name for path in Path().iterdir()) == before, "nothing is written"
    assert Path("mine.json").read_text() == "{}"


def test_sensitivity_stops_without_a_traceback(call, workplace, monkeypatch):
    def stopped(*arguments):
        raise KeyboardInterrupt

    (workplace / "scanned.yaml").write_text(SCANNED.replace("  - quantize: {calibrate: 64}\n", ""))
    assert call("run", "scanned.yaml", "--out", "runs/s", "--device", "cpu")[0] == 0
    monkeypatch.setattr("compress_aug.sensitivity.scan_pruning", stopped)
    code, _out, err = call("sensitivity", "runs/s", "--device", "cpu")
    assert code == 1 and err == "error: Stopped; nothing is written.\n"
    assert not Path("sensitivity.png").exists()


@pytest.mark.skipif(
    not (Path(os.environ.get("COMPRESS_AUG_DATA", "none")) / "pba_schedules").is_dir(),
    reason="COMPRESS_AUG_DATA names no folder with pba_schedules/",
)
@pytest.mark.parametrize(
    ("name", "epochs", "lines", "policies"),
    [
        ("rcifar10_16_wrn", 200, "16 of 16", 17),
        ("rsvhn_16_wrn", 160, "13 of 13", 14),
        ("rolekd_c100_resnet18_2bit_policy0", 200, "4 of 10", 5),
    ],
)
def test_published_logs(call, name, epochs, lines, policies):
    log = Path(os.environ["COMPRESS_AUG_DATA"]).resolve() / "pba_schedules" / f"{name}.txt"
    code, out, err = call("convert-schedule", log, "a.yaml", "--epochs", epochs)
    assert (code, err) == (0, "")
    assert f"{lines} lines" in out and f"a.yaml holds {policies} policies over {epochs} epochs" in out
    assert call("show-schedule", "a.yaml")[0] == 0
    assert Path("schedule.png").stat().st_size < 1_000_000


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
    for arguments in (
        ["--help"],
        ["run", "--help"],
        ["show-augment", "--help"],
        ["sensitivity", "--help"],
        ["plan", "quickstart"],
        ["schema"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, check=False
        )
        assert done.returncode == 0, done.stderr


def test_a_mistake_of_ours_is_called_one(call, monkeypatch):
    monkeypatch.setattr("compress_aug.recipe.load_recipe", lambda *a, **k: 1 / 0)
    code, _, err = call("plan", "quickstart")
    assert code == 1 and "internal error: ZeroDivisionError" in err and "--debug" in err
