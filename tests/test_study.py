"""Studies: files read, stages shared, runs skipped, resumed and judged, and the command."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from compress_aug.cli.commands import app
from compress_aug.errors import Interrupted, RecipeError, RunFolderError, WorkError
from compress_aug.recipe import load_recipe
from compress_aug.running import run
from compress_aug.running.share import begin_like
from compress_aug.study import ResultsFile, conduct, load_study
from compress_aug.study.jobs import jobs
from compress_aug.study.ray_launch import _task, pack, unpack
from compress_aug.study.results import figures_of, read_results
from compress_aug.study.worker import work

STUDY = """\
study: 1
title: Constant and decayed
source: ours
question: Which?
model: {call: "toys:tiny_net"}
data: {call: "toys:tiny_data"}
seeds: [0]
variables: {epochs: 1}
recipe:
  defaults: {train: {lr: 0.05, batch_size: 32}}
  stages:
    - train: {epochs: $epochs, augment: {magnitude: $first}}
    - repeat:
        rounds: $rounds
        stages:
          - prune: {sparsity: $sparsity}
          - train: {epochs: 1, augment: {magnitude: $magnitude}}
variants:
  constant:
    variables: {first: 14, rounds: [{sparsity: 0.2, magnitude: 14}, {sparsity: 0.6, magnitude: 14}]}
  decay:
    variables: {first: 14, rounds: [{sparsity: 0.2, magnitude: 14}, {sparsity: 0.6, magnitude: 4}]}
  masked:
    recipe:
      stages:
        - prune: {like: $mask}
        - redraw
        - train: {epochs: 1, batch_size: 32}
    variables: {mask: {run: decay}}
show: {kind: rounds}
presets:
  two: {seeds: [0, 1], only: [constant]}
  longer: {variables: {epochs: 2}, variants: {decay: {first: 4}}}
"""


@pytest.fixture
def study_file(tmp_path, monkeypatch):
    """Writes a study file and moves to its folder, from which the toys can be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))

    def write(text=STUDY):
        path = tmp_path / "mine.study.yaml"
        path.write_text(text)
        return path

    return write


class Here:
    """Does jobs in this process, one after the other, and remembers which."""

    def __init__(self, fail=()):
        self.did, self.fail = [], fail

    def __call__(self, recipe, folder, start, log):
        self.did.append(recipe.stem)
        if recipe.stem in self.fail:
            return Ended(1, "error: it broke")
        work(recipe, folder, start, "cpu")
        return Ended(0, "")


class Ended:
    def __init__(self, code, said):
        self.code, self.said = code, said

    def poll(self):
        return self.code

    def stop(self, *, now=False):
        pass

    def last_line(self):
        return self.said


def conducted(study, place, launch):
    results = ResultsFile.of(study, place / "results")
    return conduct(study, out=place / "out", results=results, launch=launch, console=Console(quiet=True))


def test_presets_go_before_the_study_and_variants_before_presets(study_file):
    own = load_study(study_file())
    assert [run.name for run in own.runs] == ["constant-0", "decay-0", "masked-0"]
    longer = load_study(study_file(), preset="longer")
    trained = {run.variant: run.recipe["stages"][0].get("train") for run in longer.runs}
    assert trained["constant"]["epochs"] == 2
    assert trained["constant"]["augment"]["magnitude"] == 14
    assert trained["decay"]["augment"]["magnitude"] == 4
    assert [run.name for run in load_study(study_file(), preset="two").runs] == ["constant-0", "constant-1"]


def test_data_on_the_command_line_keeps_the_numbers_of_images(study_file):
    path = study_file(STUDY.replace('{call: "toys:tiny_data"}', "{name: cifar10, train: 400}"))
    given = load_study(path, data={"folder": "images"}).runs[0].recipe["data"]
    assert given == {"train": 400, "folder": "images"}


def test_only_takes_what_it_waits_for(study_file):
    assert [run.variant for run in load_study(study_file(), only=["masked"]).runs] == ["decay", "masked"]


def test_equal_first_stages_are_one_job(study_file):
    todo = jobs(load_study(study_file()).runs)
    shared = todo[0]
    assert shared.run is None and len(shared.recipe["stages"]) == 4
    assert [(job.name, job.start, job.done) for job in todo[1:]] == [
        ("constant-0", shared.name, 4),
        ("decay-0", shared.name, 4),
        ("masked-0", None, 0),
    ]
    assert todo[3].after == ("decay-0",)
    # Each epoch is done once: two shared and one of its own for both, one for the masked one.
    assert sum(job.epochs for job in todo) == 2 + 1 + 1 + 1


def test_runs_of_another_seed_share_nothing(study_file):
    todo = jobs(load_study(study_file(), preset="two").runs)
    assert [job.start for job in todo] == [None, None]


def test_stages_that_look_ahead_are_not_shared(study_file):
    text = STUDY.replace("- repeat:", "- prune_channels: {until: {size_mb: 0.01}}\n    - repeat:")
    todo = jobs(load_study(study_file(text), only=["constant", "decay"]).runs)
    assert len(todo[0].recipe["stages"]) == 1
    assert [job.done for job in todo[1:]] == [1, 1]


def test_a_hash_is_of_what_decides_the_result(study_file):
    def hashes(text=STUDY, **choices):
        return {run.name: run.hash for run in load_study(study_file(text), **choices).runs}

    before = hashes()
    assert len(set(before.values())) == 3
    assert hashes(STUDY.replace("title: Constant and decayed", "title: other")) == before
    renamed = STUDY.replace("constant:", "other:").replace("[constant]", "[other]")
    assert hashes(renamed)["other-0"] == before["constant-0"]
    later = hashes(STUDY.replace("{sparsity: 0.6, magnitude: 4}", "{sparsity: 0.6, magnitude: 5}"))
    assert later["constant-0"] == before["constant-0"]
    # Who takes over the mask of another run depends on all that made it.
    assert later["decay-0"] != before["decay-0"] and later["masked-0"] != before["masked-0"]
    here, there = (hashes(data={"folder": place})["decay-0"] for place in ("a/images", "b/images"))
    assert here == there


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("title:", "titel:", "titel.*title"),
        ("variables: {mask: {run: decay}}", "variables: {mask: {run: deca}}", 'no variant "deca".*decay'),
        ("variables: {mask: {run: decay}}", "variables: {mask: {run: masked}}", "wait for its own"),
        ("variables: {epochs: 1}", "variables: {epoch: 1}", r"no recipe of this study uses \$epoch.*epochs"),
        ("only: [constant]", "only: [constnt]", 'no variant "constnt".*constant'),
        ("- redraw", "- redrew", 'variant masked.*line 27.*unknown stage "redrew"'),
        (
            "{epochs: 1, augment: {magnitude: $magnitude}}",
            "{epochs: 1, augment: {magnitude: 31}}",
            "line 17.*round 1.*0..30.*found 31",
        ),
        ("study: 1\n", "", "expected a study.*compress-aug run"),
    ],
)
def test_mistakes_are_told_with_their_place(study_file, old, new, told):
    assert old in STUDY
    with pytest.raises(RecipeError) as error:
        load_study(study_file(STUDY.replace(old, new)))
    assert re.search(told, str(error.value), re.DOTALL), str(error.value)


def test_unknown_names_are_told_with_the_nearest(study_file):
    with pytest.raises(RecipeError, match='no preset "tow": did you mean "two"'):
        load_study(study_file(), preset="tow")
    with pytest.raises(RecipeError, match='--only: there is no variant "decai": did you mean "decay"'):
        load_study(study_file(), only=["decai"])
    with pytest.raises(RecipeError, match=r'There is no study "fig3_decay".*did you mean "paper/fig3_decay"'):
        load_study("fig3_decay")
    with pytest.raises(RecipeError, match="compress-aug study"):
        load_recipe(study_file())


def test_variants_that_wait_for_each_other_are_told(study_file):
    text = STUDY.replace("  decay:\n", "  decay:\n    recipe: {stages: [{prune: {like: $mask}}]}\n")
    text = text.replace(
        "    variables: {first: 14, rounds: [{sparsity: 0.2, magnitude: 14}, {sparsity: 0.6, magnitude: 4}]}",
        "    variables: {mask: {run: masked}}",
    )
    text = text.replace("  longer: {variables: {epochs: 2}, variants: {decay: {first: 4}}}\n", "")
    with pytest.raises(RecipeError, match="wait for each other: decay, masked, decay"):
        load_study(study_file(text))


def test_shared_runs_equal_runs_by_themselves(study_file, tmp_path):
    study = load_study(study_file())
    launch = Here()
    found = {result.variant: result for result in conducted(study, tmp_path, launch)}
    assert len(launch.did) == 4 and len(found) == 3
    for planned in study.runs[:2]:
        file = tmp_path / "out" / "recipes" / f"{planned.name}.yaml"
        alone = run(file, out=tmp_path / "alone" / planned.name, device="cpu", console=Console(quiet=True))
        # Accuracy, sizes and magnitudes of every stage, to the last digit.
        assert figures_of(alone.folder) == figures_of(
            tmp_path / "out" / "runs" / f"{planned.name}-{planned.hash[:6]}"
        )
    masked = found["masked"].figures
    assert masked.sparsity == pytest.approx(found["decay"].figures.sparsity)


def test_finished_runs_are_skipped_and_new_ones_done(study_file, tmp_path):
    study = load_study(study_file(), only=["constant"])
    conducted(study, tmp_path, first := Here())
    assert first.did == ["constant-0"]
    conducted(study, tmp_path, second := Here())
    assert second.did == []
    # The results are enough: the folders of runs may be gone, unless another run needs one.
    both = load_study(study_file(), only=["constant", "masked"])
    conducted(both, tmp_path, third := Here())
    assert third.did == ["decay-0", "masked-0"]
    (file,) = (tmp_path / "results").glob("*.json")
    assert {result.variant for result in read_results(file).runs} == {"constant", "decay", "masked"}


def test_results_without_folders_are_done_again_only_where_one_is_needed(study_file, tmp_path):
    conducted(load_study(study_file(), only=["decay"]), tmp_path, Here())
    shutil.rmtree(tmp_path / "out")
    conducted(load_study(study_file(), only=["decay"]), tmp_path, again := Here())
    assert again.did == []
    conducted(load_study(study_file(), only=["masked"]), tmp_path, needed := Here())
    assert needed.did == ["decay-0", "masked-0"]


def test_a_failure_stops_only_what_waits_for_it(study_file, tmp_path):
    study = load_study(study_file())
    with pytest.raises(WorkError) as error:
        conducted(study, tmp_path, launch := Here(fail=["decay-0"]))
    assert "2 of 4 jobs" in str(error.value) and "it broke" in str(error.value)
    assert "masked-0: not begun, because decay-0 failed" in str(error.value)
    assert "constant-0" in launch.did and "masked-0" not in launch.did
    conducted(study, tmp_path, again := Here())
    assert again.did == ["decay-0", "masked-0"]


def test_damaged_results_are_told(study_file, tmp_path):
    study = load_study(study_file(), only=["constant"])
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "mine.json").write_text('{"version": 1, "runs": []}')
    with pytest.raises(RunFolderError, match="key study"):
        conducted(study, tmp_path, Here())
    (tmp_path / "results" / "mine.json").write_text("{")
    with pytest.raises(RunFolderError, match="cannot be read"):
        conducted(study, tmp_path, Here())


def test_a_changed_configuration_replaces_its_result(study_file, tmp_path):
    conducted(load_study(study_file(), only=["constant"]), tmp_path, Here())
    changed = load_study(study_file(STUDY.replace("lr: 0.05", "lr: 0.02")), only=["constant"])
    conducted(changed, tmp_path, again := Here())
    assert again.did == ["constant-0"]
    (result,) = read_results(tmp_path / "results" / "mine.json").runs
    assert result.hash == changed.runs[0].hash


def test_sharing_refuses_what_begins_differently(study_file, tmp_path):
    study = load_study(study_file(), only=["decay"])
    conducted(study, tmp_path, Here())
    (other,) = (tmp_path / "out" / "runs").iterdir()
    recipe = load_recipe(tmp_path / "out" / "recipes" / "decay-0.yaml", ["stages.0.train.lr=0.5"])
    with pytest.raises(RunFolderError, match=r"stages\.0\.train\.lr"):
        begin_like(recipe, other, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_stopping_keeps_what_is_done(study_file, tmp_path):
    def launch(recipe, folder, start, log):
        if recipe.stem == "decay-0":
            signal.raise_signal(signal.SIGINT)
        return Here()(recipe, folder, start, log)

    with pytest.raises(Interrupted, match="same command"):
        conducted(load_study(study_file()), tmp_path, launch)
    done = [result.variant for result in read_results(tmp_path / "results" / "mine.json").runs]
    assert done == ["constant", "decay"]
    conducted(load_study(study_file()), tmp_path, again := Here())
    assert again.did == ["masked-0"]


def test_the_command_runs_a_study_in_processes(study_file, tmp_path):
    path = study_file()
    (tmp_path / "toys.py").write_text((Path(__file__).parent / "toys.py").read_text())
    (tmp_path / "conftest.py").write_text("")
    runner = CliRunner()
    arguments = ["study", path.name, "--only", "constant", "--jobs", "1", "--device", "cpu"]
    done = runner.invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (result,) = read_results(Path("studies/results/mine.json")).runs
    assert result.command == "compress-aug study mine.study.yaml --only constant"
    assert Path("studies/results/mine-own.png").stat().st_size > 0
    assert runner.invoke(app, ["results"], catch_exceptions=False).exit_code == 0
    assert "Constant and decayed" in Path("studies/results.md").read_text()


def test_the_plan_runs_nothing(study_file):
    shown = CliRunner().invoke(app, ["study", str(study_file()), "--plan"], catch_exceptions=False)
    assert "4 jobs, 5 epochs; without sharing 7" in shown.output
    assert not Path("studies").exists()


def test_check_tries_every_variant(study_file):
    shown = CliRunner().invoke(
        app, ["study", str(study_file()), "--check", "--device", "cpu"], catch_exceptions=False
    )
    assert "decay: every stage works" in shown.output and "masked: waits for decay" in shown.output
    assert not Path("studies").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--seeds", "1,x"], "--seeds: expected whole numbers"),
        (["--preset", "larg"], 'no preset "larg"'),
    ],
)
def test_mistakes_of_the_command(study_file, arguments, told):
    result = CliRunner().invoke(app, ["study", str(study_file()), *arguments])
    assert told in str(result.exception)


def test_a_task_of_a_machine_that_has_nothing_unpacks_what_it_needs(study_file, tmp_path):
    """What a Ray task does, without Ray: the mask of another run travels there, the run's folder comes back."""
    conducted(load_study(study_file()), tmp_path, Here())
    (ours,) = (tmp_path / "out" / "runs").glob("decay-*")
    (masked,) = (tmp_path / "out" / "runs").glob("masked-*")
    before, packed = figures_of(masked), {str(ours): pack(ours)}
    shutil.rmtree(ours)
    shutil.rmtree(masked)
    recipe = tmp_path / "out" / "recipes" / "masked-0.yaml"
    code, said, content = _task(
        recipe.read_text(), str(recipe), str(masked), "", "cpu", 1, str(tmp_path / "log"), packed
    )
    assert code == 0 and "train 1 epoch" in said
    shutil.rmtree(masked)
    unpack(content, masked)
    assert figures_of(masked) == before


def test_a_task_tells_what_fails(study_file, tmp_path):
    study_file()
    text = "version: 1\nmodel: resnet_none\ndata: digits\nstages: [{train: {epochs: 1}}]\n"
    code, said, content = _task(
        text, str(tmp_path / "r.yaml"), str(tmp_path / "run"), "", "cpu", 1, str(tmp_path / "log"), {}
    )
    assert code == 2 and "resnet_none" in said and content == b""


@pytest.mark.slow
def test_a_run_ends_when_its_study_is_killed(study_file, tmp_path):
    """Nobody would read its results, and a new try would find it in its folder."""
    path = study_file(STUDY.replace("variables: {epochs: 1}", "variables: {epochs: 500}"))
    (tmp_path / "toys.py").write_text((Path(__file__).parent / "toys.py").read_text())
    command = [sys.executable, "-m", "compress_aug.cli", "study", path.name, "--only", "constant"]
    study = subprocess.Popen([*command, "--device", "cpu"], cwd=tmp_path)
    log = tmp_path / "studies/mine-own/logs/constant-0.log"
    deadline = time.monotonic() + 120
    while not (log.is_file() and "epoch   2/500" in log.read_text()):
        assert time.monotonic() < deadline, "the run never began"
        time.sleep(0.5)
    study.kill()
    study.wait()
    while "Stopped in stage 0" not in log.read_text():
        assert time.monotonic() < deadline + 60, "the run went on"
        time.sleep(0.5)
    assert not json.loads(next(tmp_path.glob("studies/mine-own/runs/*/report.json")).read_text())["finished"]
