"""Runs: the contract of report.json, what resumes to what, what is refused, and what a stop at any moment leaves."""

import io
import json
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import onnxruntime
import pytest
import torch
from rich.console import Console
from torch import nn
from toys import TinyResidual, tiny_data, tiny_net

import compress_aug
from compress_aug import (
    Attach,
    Augment,
    Distill,
    Drop,
    Export,
    Keep,
    Prune,
    PruneChannels,
    Quantize,
    Ramp,
    Recipe,
    Stage,
    State,
    Train,
    measure,
)
from compress_aug.errors import (
    BudgetMissed,
    Interrupted,
    ModelError,
    RecipeError,
    RunFolderError,
    StageError,
    WorkError,
)

QUIET = Console(quiet=True)


def train(epochs=1, **keys):
    return Train(epochs=epochs, batch_size=16, lr=0.05, precision="float32", **keys)


FULL = [
    Attach(blocks=1),
    train(4, augment=Augment(magnitude=9)),
    Drop(),
    Keep(name="teacher"),
    Prune(sparsity=0.4),
    train(2, augment=Augment(magnitude=Ramp(start=4, end=1))),
    PruneChannels(until={"macs": 0.8}, round_to=2),
    train(1, distill=Distill(teacher="teacher")),
    Quantize(calibrate=32),
    train(2, lr_schedule="constant"),
    Export(),
]


def run(stages, out, **keys):
    recipe = Recipe(stages, name="toy")
    keys = {"model": tiny_net(), "data": tiny_data(), "device": "cpu", "console": QUIET, **keys}
    return compress_aug.run(recipe, out=out, **keys)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """One whole run of every kind of stage, which many tests only look at."""
    return run(FULL, tmp_path_factory.mktemp("full") / "run")


def test_the_report_keeps_its_contract(full):
    report = json.loads((full.folder / "report.json").read_text())
    assert report == full.report
    assert report["version"] == 1 and report["recipe"] == "toy" and report["finished"]
    original = tiny_net()
    assert report["original"]["parameters"] == measure.parameters(original)
    assert report["original"]["macs"] == measure.macs(original, (3, 8, 8))
    assert report["original"]["bytes"] == (full.folder / "original.onnx").stat().st_size
    assert set(report["original"]["latency_ms"]) == {"p50", "p95"}
    words = [row["word"] for row in report["stages"]]
    assert words == [stage.word for stage in FULL]
    keys = {
        "index",
        "word",
        "seconds",
        "accuracy",
        "loss",
        "sparsity",
        "parameters",
        "nonzero_parameters",
        "macs",
    }
    assert all(keys | {"magnitude"} <= set(row) for row in report["stages"])
    assert report["stages"][1]["magnitude"] == [9, 9]
    assert report["stages"][5]["magnitude"] == [4, 1]
    assert report["stages"][5]["sparsity"] == pytest.approx(0.4, abs=0.001)
    assert len(report["stages"][1]["history"]) == 4
    (export,) = report["exports"]
    promised = {
        "file", "target", "bytes", "float_bytes", "accuracy", "max_abs_diff", "top1_agreement",
        "integer_layers", "float_layers", "latency_ms", "float_latency_ms", "proxy",
    }  # fmt: skip
    assert promised <= set(export)
    assert export["integer_layers"] == 3 and export["float_layers"] == 0


def test_the_file_computes_what_the_model_computes(full):
    """Independent of our own parity check: the runtime on one side, `load` on the other."""
    data = tiny_data()
    session = onnxruntime.InferenceSession(full.folder / "model.onnx", providers=["CPUExecutionProvider"])
    images = next(iter(data.test.batches(32))).images
    inputs = data.normalise(images)
    (found,) = session.run(None, {"input": inputs.numpy()})
    model = compress_aug.load(full.folder, model=tiny_net())
    with torch.no_grad():
        expected = model(inputs).numpy()
    assert (found.argmax(1) == expected.argmax(1)).all()
    assert full.report["exports"][0]["accuracy"] == pytest.approx(
        (found.argmax(1) == next(iter(data.test.batches(32))).targets.numpy()).mean()
    )


def test_load_gives_the_model_of_the_result(full):
    loaded = compress_aug.load(full.folder, model=tiny_net())
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(loaded(x), full.model(x))
    assert not loaded.training


def test_load_needs_the_untouched_model_if_it_was_an_object(full):
    with pytest.raises(ModelError, match="give an untouched one"):
        compress_aug.load(full.folder)
    with pytest.raises(RunFolderError, match="does not fit this model"):
        compress_aug.load(full.folder, model=TinyResidual())
    with pytest.raises(RunFolderError, match="holds no run"):
        compress_aug.load(full.folder / "nothing")


def test_the_model_that_was_given_is_left_alone(tmp_path):
    model = tiny_net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run([Prune(sparsity=0.5), train()], tmp_path / "run", model=model)
    assert set(model.state_dict()) == set(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def comparable(report):
    """The report less what a clock, the memory of a process or a second file name decides."""

    def clean(value):
        if isinstance(value, dict):
            clock = ("seconds", "images_per_second", "latency_ms", "float_latency_ms", "slower")
            memory = ("memory_mb", "float_memory_mb")
            return {key: clean(inner) for key, inner in value.items() if key not in clock + memory}
        return [clean(inner) for inner in value] if isinstance(value, list) else value

    return clean(report)


def test_twice_the_same_seed_is_twice_the_same_run(full, tmp_path):
    model = tiny_net()
    torch.manual_seed(12345)  # what was drawn before must not matter
    again = run(FULL, tmp_path / "again", model=model)
    assert comparable(again.report) == comparable(full.report)
    assert (tmp_path / "again" / "model.onnx").read_bytes() == (full.folder / "model.onnx").read_bytes()
    other = run(FULL[:2], tmp_path / "other", seed=5)
    assert other.report["stages"][1]["loss"] != full.report["stages"][1]["loss"]


class Stop(Exception):
    """Raised in the middle of things, like a power cut."""


@pytest.mark.parametrize("stage", [1, 5, 7, 9])
def test_cut_off_in_any_training_and_resumed_it_is_the_same_run(full, tmp_path, stage, monkeypatch):
    """The cut comes between two steps; epochs before it are on the disk, the rest is done again."""
    out = tmp_path / "run"
    wanted = sum(s.word == "train" for s in FULL[:stage])
    trainings = 0

    def cut_off(training, *, checkpoint, progress):
        nonlocal trainings
        trainings += 1
        if trainings - 1 == wanted:
            steps = 0

            def power_cut(training):
                nonlocal steps
                steps += 1
                if steps == training.steps_per_epoch * training.settings.epochs - 1:
                    raise Stop
                return False

            from compress_aug.training import driver as module

            while training.epochs_done < training.settings.epochs:
                training.epoch(power_cut)
                module._save(training, checkpoint)
        return compress_aug.fit(training, checkpoint=checkpoint, progress=progress)

    with pytest.raises(Stop):
        run(FULL, out, fit=cut_off)
    assert not json.loads((out / "report.json").read_text())["finished"]
    resumed = run(FULL, out, resume=True)
    assert comparable(resumed.report) == comparable(full.report)
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(resumed.model(x), full.model(x))
    assert (out / "model.onnx").read_bytes() == (full.folder / "model.onnx").read_bytes()


def test_load_wants_a_module(full):
    for wrong in ("nets:Mine", nn.Linear):
        with pytest.raises(ModelError, match=r"model must be a module, untouched, such as MyNet\(\)"):
            compress_aug.load(full.folder, model=wrong)


def test_ctrl_c_says_how_to_go_on_and_resumes(full, tmp_path):
    out = tmp_path / "run"

    pressed = []

    class Press(Stage):
        word = "press"
        changes_model = False

        def run(self, state, setup):
            if pressed:
                return state
            pressed.append(True)
            raise KeyboardInterrupt

    stages = FULL[:5]
    with pytest.raises(Interrupted, match=r"go on with --resume"):
        run([*stages, Press()], out)
    assert not json.loads((out / "report.json").read_text())["finished"]
    resumed = run([*stages, Press()], out, resume=True)
    assert comparable(resumed.report["stages"][:5]) == comparable(full.report["stages"][:5])


SCRIPT = """
import sys
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
from rich.console import Console
from test_running import FULL, run
run(FULL, {out!r}, resume={resume})
"""


def in_a_process(out, resume=False):
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    code = SCRIPT.format(paths=paths, out=str(out), resume=resume)
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stderr=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.parametrize(
    "marker", ["01-train/training.pt", "03-keep", "07-train", "08-quantize", "model.unproven.onnx"]
)
def test_killed_at_a_moment_it_resumes_to_the_same_run(full, tmp_path, marker):
    """kill -9 as soon as a certain file shows up; whatever half-written thing lies there must not hurt."""
    from test_running import in_a_process

    out = tmp_path / "run"
    process = in_a_process(out)
    while process.poll() is None and not (out / marker).exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    resumed = run(FULL, out, resume=(out / "recipe.yaml").exists())
    assert comparable(resumed.report) == comparable(full.report)
    assert (out / "model.onnx").read_bytes() == (full.folder / "model.onnx").read_bytes()


@pytest.mark.parametrize("limit", [3_000, 12_000])
def test_a_full_disk_is_one_sentence_and_the_run_resumes(full, tmp_path, limit):
    """A limit on file sizes stands for the disk: the write fails in the same place with the same kind of error."""
    out = tmp_path / "run"
    stages = FULL[:6]
    whole = run(stages, tmp_path / "whole")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        with pytest.raises(WorkError, match="The disk is full") as caught:
            run(stages, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert "--resume" in str(caught.value)
    assert not list(out.rglob("*.part")), "no half-written file is left"
    resumed = run(stages, out, resume=True)
    assert comparable(resumed.report) == comparable(whole.report)


def test_resuming_another_recipe_is_refused_with_the_difference(full):
    stages = [Attach(blocks=2), *FULL[1:]]
    with pytest.raises(RunFolderError, match=r"stages\.0\.attach\.blocks is 1 there and 2 here"):
        run(stages, full.folder, resume=True)
    with pytest.raises(RunFolderError, match="seed is 0 there and 3 here"):
        run(FULL, full.folder, resume=True, seed=3)


def test_folders_are_never_overwritten(full, tmp_path, monkeypatch):
    with pytest.raises(RunFolderError, match="is not empty"):
        run(FULL, full.folder)
    with pytest.raises(RunFolderError, match="holds no run"):
        run(FULL, tmp_path / "nothing", resume=True)
    monkeypatch.chdir(tmp_path)
    first = run([Prune(sparsity=0.1)], None)
    second = run([Prune(sparsity=0.1)], None)
    assert (first.folder, second.folder) == (Path("runs/toy"), Path("runs/toy-2"))
    assert run([Prune(sparsity=0.1)], None, resume=True).folder == Path("runs/toy-2"), "the newest"


@pytest.mark.parametrize("out", ["a file/run", "a file"])
def test_a_folder_that_cannot_be_written_is_told(tmp_path, out):
    (tmp_path / "a file").write_text("in the way")
    with pytest.raises(RunFolderError, match=r"cannot be written to|is not empty"):
        run(FULL, tmp_path / out)


class Fail(Stage):
    word = "fail"

    def run(self, state, setup):
        raise WorkError("as asked")


def test_what_has_not_begun_may_be_another_stage_when_a_run_goes_on(tmp_path):
    """A mistake in a late stage costs nothing of what came before it; more stages may follow a finished run."""
    out, said = tmp_path / "run", Console(width=200, file=io.StringIO())
    start = [Prune(sparsity=0.2), train()]
    with pytest.raises(WorkError, match="as asked"):
        run([*start, Fail()], out)
    written = (out / "01-train" / "model.safetensors").stat().st_mtime_ns
    longer = [*start, Prune(sparsity=0.5), train()]
    result = run(longer, out, resume=True, console=said)
    assert "note: stage 2 had not begun and is prune now, not test_running:Fail" in said.file.getvalue()
    assert (out / "01-train" / "model.safetensors").stat().st_mtime_ns == written, "what was done is kept"
    straight = run(longer, tmp_path / "straight")
    assert comparable(result.report) == comparable(straight.report)
    assert (out / "recipe.yaml").read_bytes() == (tmp_path / "straight" / "recipe.yaml").read_bytes()
    further = run([*longer, Prune(sparsity=0.6)], out, resume=True)
    assert further.report["stages"][4]["sparsity"] == pytest.approx(0.6, abs=0.01)
    with pytest.raises(
        RunFolderError, match=r"stages\.3\.train\.epochs is 1 there and 2 here.*delete 03-train and"
    ):
        run([*longer[:3], train(2)], out, resume=True)
    shutil.rmtree(out / "03-train")
    shutil.rmtree(out / "04-prune")
    assert run([*longer[:3], train(2)], out, resume=True).report["finished"]


def test_a_finished_run_resumes_to_itself(full):
    again = run(FULL, full.folder, resume=True)
    assert again.report == full.report


def test_from_a_run_a_new_recipe_goes_on(full, tmp_path):
    stages = [Prune(sparsity=0.7), train(1, distill=Distill(teacher="teacher")), Export()]
    result = run(stages, tmp_path / "next", start_from=full.folder)
    assert result.report["original"]["accuracy"] is not None, "what came in had learned something"
    assert result.report["original"]["parameters"] == full.report["stages"][-1]["parameters"]
    assert result.report["stages"][0]["sparsity"] == pytest.approx(0.7, abs=0.01)
    assert result.report["stages"][0]["bits"]["weights"] == 8
    loaded = compress_aug.load(tmp_path / "next", model=tiny_net())
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(loaded(x), result.model(x))
    with pytest.raises(RecipeError, match=r"lower than the 0\.4"):
        run([Prune(sparsity=0.2)], tmp_path / "third", start_from=full.folder)
    with pytest.raises(RunFolderError, match="holds no run"):
        run(stages, tmp_path / "fourth", start_from=tmp_path / "nothing")
    assert not (tmp_path / "third").exists() and not (tmp_path / "fourth").exists()


def test_a_run_from_one_that_is_not_finished_says_so(full, tmp_path):
    def first_lines(source, out):
        said = Console(width=200, file=io.StringIO())
        run([Prune(sparsity=0.7)], out, start_from=source, console=said)
        return said.file.getvalue()

    assert "after 10-export\n" in first_lines(full.folder, tmp_path / "one")
    with pytest.raises(WorkError, match="as asked"):
        run([Prune(sparsity=0.2), Fail()], tmp_path / "half")
    said = first_lines(tmp_path / "half", tmp_path / "two")
    assert "after 00-prune; that run is not finished, its later stages are missing" in said


def test_a_run_from_another_resumes_without_it(full, tmp_path):
    """It has its own copy of what it started from, and needs no --from to go on."""
    source = tmp_path / "source"
    shutil.copytree(full.folder, source)
    stages = [train(1, distill=Distill(teacher="teacher")), Prune(sparsity=0.7)]
    whole = run(stages, tmp_path / "whole", start_from=source)
    run(stages, tmp_path / "next", start_from=source)
    shutil.rmtree(source)
    shutil.rmtree(tmp_path / "next" / "01-prune")
    resumed = run(stages, tmp_path / "next", resume=True)
    assert comparable(resumed.report) == comparable(whole.report)
    fresh = run([Prune(sparsity=0.1)], tmp_path / "fresh")
    with pytest.raises(RunFolderError, match="did not start from another run"):
        run([Prune(sparsity=0.1)], fresh.folder, resume=True, start_from=full.folder)


def test_what_a_kill_left_before_the_recipe_is_no_obstacle(full, tmp_path):
    out = tmp_path / "run"
    (out / "start").mkdir(parents=True)
    (out / ".recipe.yaml.part").write_text("half")
    assert run([Prune(sparsity=0.7)], out, start_from=full.folder).report["finished"]


def test_data_that_cannot_go_through_the_start_is_refused_before_anything_is_written(full, tmp_path):
    with pytest.raises(RunFolderError, match="image_shape"):
        run([Prune(sparsity=0.7)], tmp_path / "run", start_from=full.folder, data=tiny_data(size=16))
    assert not (tmp_path / "run").exists()


def test_a_factory_that_gives_the_same_object_again_is_safe(tmp_path):
    recipe = Recipe(
        [Prune(sparsity=0.5), Keep(name="teacher"), train()], model=f"{__name__}:shared", name="toy"
    )
    keys = {"data": tiny_data(), "device": "cpu", "console": QUIET}
    compress_aug.run(recipe, out=tmp_path / "run", **keys)
    assert measure.sparsity(compress_aug.load(tmp_path / "run")) == pytest.approx(0.5, abs=0.01)


def shared(_made=[]):  # noqa: B006
    if not _made:
        _made.append(tiny_net())
    return _made[0]


def test_marks_in_names_are_just_text(tmp_path):
    printed = Console(file=(tmp_path / "log").open("w"), width=100)
    run([Prune(sparsity=0.1)], tmp_path / "[/x] :smile:", console=printed)
    printed.file.close()
    assert "[/x] :smile:" in (tmp_path / "log").read_text().replace("\n", " ")


def test_a_missed_budget_comes_after_everything_is_written(tmp_path):
    stages = [
        train(),
        Export(budget={"size_mb": 0.001, "accuracy": 1.0, "latency_ms": 1e-6}),
        Prune(sparsity=0.2),
    ]
    with pytest.raises(BudgetMissed) as caught:
        run(stages, tmp_path / "run")
    assert (
        len(caught.value.misses) >= 2 and "size_mb" in str(caught.value) and "latency_ms" in str(caught.value)
    )
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["finished"] and len(report["stages"]) == 3
    assert [f"model.onnx: {miss}" for miss in report["exports"][0]["misses"]] == caught.value.misses
    with pytest.raises(BudgetMissed):
        run(stages, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "model.onnx").is_file()


@pytest.mark.parametrize(
    ("keys", "error", "told"),
    [
        ({"model": None}, RecipeError, "no model is given"),
        ({"data": None}, RecipeError, "no data is given"),
        ({"model": nn.Flatten()}, ModelError, "4"),
        ({"model": tiny_net(classes=7)}, ModelError, "7"),
        ({"device": "gpu"}, RecipeError, "expected auto, cpu, cuda or cuda:N"),
        ({"target": "nothing"}, RecipeError, 'There is no target "nothing"'),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_written(tmp_path, keys, error, told):
    with pytest.raises(error, match=told):
        run([train()], tmp_path / "run", **keys)
    assert not (tmp_path / "run").exists()


def test_fit_of_ones_own(tmp_path):
    """The third depth of use: the walk is ours, the training theirs."""
    seen = []

    def my_fit(training, *, checkpoint, progress):
        seen.append((training.settings.epochs, checkpoint.name))
        while training.epochs_done < training.settings.epochs:
            training.epoch()
        return training.history

    result = run([train(2), train(1)], tmp_path / "run", fit=my_fit)
    assert seen == [(2, "training.pt"), (1, "training.pt")]
    assert len(result.report["stages"][0]["history"]) == 2


class Halve(Stage):
    """A stage of a user's own that keeps a schedule and writes to the report."""

    word = "halve"

    def foresee(self, outlook):
        from dataclasses import replace

        return replace(outlook, kept={**outlook.kept, "mine": "schedule"})

    def run(self, state, setup):
        with torch.no_grad():
            for parameter in state.model.parameters():
                parameter.mul_(0.5)
        setup.record("halved", True)
        setup.note("halved all weights")
        return State(state.model, {**state.kept, "mine": Ramp(start=6, end=2)})


def test_a_stage_of_ones_own_keeps_a_schedule_that_training_uses(tmp_path):
    result = run([Halve(), train(2, augment=Augment(magnitude="mine"))], tmp_path / "run")
    assert result.report["stages"][0]["halved"] is True
    assert result.report["stages"][0]["notes"] == ["halved all weights"]
    assert result.report["stages"][1]["magnitude"][0] == 6
    resumed = run([Halve(), train(2, augment=Augment(magnitude="mine"))], tmp_path / "run", resume=True)
    assert resumed.report == result.report


class Careless(Stage):
    word = "careless"
    how: str

    def run(self, state, setup):
        return state.nothing if self.how == "raises" else None


@pytest.mark.parametrize(
    ("how", "told"), [("raises", "raised AttributeError"), ("forgets", "returned a NoneType")]
)
def test_a_mistake_in_a_stage_of_ones_own_is_told_as_that(tmp_path, how, told):
    with pytest.raises(StageError, match=rf"The stage test_running:\S*Careless {told}"):
        run([Careless(how=how)], tmp_path / "run")


def test_check_tries_everything_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = Recipe(FULL, name="toy")
    report = compress_aug.check(recipe, model=tiny_net(), data=tiny_data(), device="cpu", console=QUIET)
    assert [row["word"] for row in report["stages"]] == [stage.word for stage in FULL]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ModelError):
        compress_aug.check(recipe, model=tiny_net(classes=3), data=tiny_data(), device="cpu", console=QUIET)


def test_two_schemes_see_the_same_images_in_the_same_order(tmp_path):
    """Seeds go by the how-manieth training it is, so a prune in between changes nothing about the data."""
    orders = []

    def spy(training, *, checkpoint, progress):
        original = training._augment

        def watched(batch, magnitude, epoch, seed):
            orders[-1].append(batch.index.tolist())
            return original(batch, magnitude, epoch, seed)

        orders.append([])
        training._augment = watched
        return compress_aug.fit(training, checkpoint=checkpoint, progress=progress)

    run([train(), Prune(sparsity=0.3), train()], tmp_path / "a", fit=spy)
    run([Prune(sparsity=0.3), train(), train()], tmp_path / "b", fit=spy)
    assert orders[0] == orders[2] and orders[1] == orders[3] and orders[0] != orders[1]


def saturating_target(folder):
    path = folder / "old.yaml"
    path.write_text(
        "name: old\ndescription: an old processor\nruntime: onnxruntime\nthreads: 1\nround_to: 8\n"
        "proxy: true\nint8_saturates: true\n"
    )
    return path


def test_export_again_for_another_target(full, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(full.folder, folder)
    keys = {"model": tiny_net(), "data": tiny_data(), "console": QUIET}
    row = compress_aug.export_again(folder, target="raspberry_pi_4", file="pi.onnx", **keys)
    assert row["proxy"] and row["target"] == "raspberry_pi_4" and (folder / "pi.onnx").is_file()
    assert len(json.loads((folder / "report.json").read_text())["exports"]) == 2
    saturating = saturating_target(tmp_path)
    from compress_aug.errors import QuantizeError

    with pytest.raises(QuantizeError, match=r"run the recipe again with --target"):
        compress_aug.export_again(folder, target=str(saturating), **keys)


def test_a_target_whose_products_saturate_gets_seven_bits(tmp_path):
    saturating = saturating_target(tmp_path)
    result = run([train(), Quantize(calibrate=32)], tmp_path / "run", target=str(saturating))
    assert result.report["stages"][1]["bits"]["weights"] == 7
    assert any("7 bits" in note for note in result.report["stages"][1]["notes"])


def test_nothing_outside_the_folder_is_touched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run([train(), Quantize(calibrate=32), Export(file="deep/model.onnx")], tmp_path / "run")
    assert (tmp_path / "run" / "deep" / "model.onnx").is_file()
    assert {p.name for p in tmp_path.iterdir()} == {"run"}
