"""Studies: files read, stages shared, runs skipped, resumed and judged, and the command."""

import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from rich.console import Console
from ruamel.yaml import YAML
from safetensors.torch import load_file
from typer.testing import CliRunner

from compress_aug.cli.commands import app
from compress_aug.errors import Interrupted, RecipeError, RunFolderError, UserError, WorkError
from compress_aug.folders import shipped
from compress_aug.recipe import load_recipe
from compress_aug.running import run
from compress_aug.running.run import load_inputs
from compress_aug.running.share import begin_like
from compress_aug.study import ResultsFile, ahead, conduct, load_study
from compress_aug.study.ahead import look_ahead
from compress_aug.study.jobs import jobs
from compress_aug.study.ray_launch import _task, pack, travelling, unpack
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
        self.did.append(job_of(folder))
        if job_of(folder) in self.fail:
            return Ended(1, "error: it broke")
        work(recipe, folder, start, "cpu")
        return Ended(0, "")


def job_of(folder):
    """The name of a job by its folder, which has the hash in its name."""
    return folder.name if folder.parent.name == "shared" else folder.name.rpartition("-")[0]


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
        ("seeds: [0]", "seeds: [0, 0]", r"line 7, seeds: expected different whole numbers.*\[0, 0\]"),
        ("seeds: [0]", "seeds: [9223372036854775808]", "line 7, seeds.0: expected a number below"),
        ("only: [constant]", "only: []", "line 32, presets.two.only"),
        ("  constant:", "  ../x:", "line 19.*at most 60 letters.*found"),
        ("  constant:", "  con/x:", "line 19.*at most 60 letters.*found"),
        ("  constant:", "  " + 61 * "x" + ":", "line 19.*at most 60 letters.*found"),
        ("{run: decay}", "{run: decay, file: ../../etc}", "line 29.*file within the folder.*found"),
        ("{run: decay}", "{run: decay, file: /etc/passwd}", "line 29.*file within the folder.*found"),
        ("{run: decay}", "{run: decay, fil: a.yaml}", 'line 29.*unknown key "fil": did you mean "file"'),
        ("{like: $mask}", "{like: ./.run-of/decay}", "variables|no path"),
        (
            "  defaults: {train:",
            "  variables: [1]\n  defaults: {train:",
            "line 10, variables: expected names",
        ),
        ("kind: rounds", "kind: table, measures: []", "line 30, show.measures"),
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
        name = f"{planned.name}-{planned.hash[:6]}"
        file, shared = tmp_path / "out" / "recipes" / f"{name}.yaml", tmp_path / "out" / "runs" / name
        alone = run(file, out=tmp_path / "alone" / planned.name, device="cpu", console=Console(quiet=True))
        # Accuracy, sizes and magnitudes of every stage, and the weights of the last, to the last digit.
        assert figures_of(alone.folder) == figures_of(shared)
        weights = [load_file(folder / "04-train/model.safetensors") for folder in (alone.folder, shared)]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
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
    recipe = load_recipe(next((tmp_path / "out" / "recipes").iterdir()), ["stages.0.train.lr=0.5"])
    with pytest.raises(RunFolderError, match=r"stages\.0\.train\.lr"):
        begin_like(recipe, other, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_stopping_keeps_what_is_done(study_file, tmp_path, ctrl_c):
    def launch(recipe, folder, start, log):
        if job_of(folder) == "decay-0":
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
    arguments += ["--set", "title=A $HOME of one's own"]
    done = runner.invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (result,) = read_results(Path("studies/results/mine.json")).runs
    said = ["compress-aug", "study", "mine.study.yaml", *arguments[2:4], *arguments[-2:]]
    assert shlex.split(result.command) == said
    assert Path("studies/results/mine-own.png").stat().st_size > 0
    assert runner.invoke(app, ["results"], catch_exceptions=False).exit_code == 0
    assert "Constant and decayed" in Path("studies/results.md").read_text()
    path.unlink()
    with pytest.raises(RecipeError, match=r"mine\.json, its study: There is no study"):
        runner.invoke(app, ["results"], catch_exceptions=False)


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
        (["--seeds", "9" * 20], "--seeds: expected whole numbers"),
        (["--preset", "larg"], 'no preset "larg"'),
        (["--device", "gpu"], "--device: expected auto, cpu, cuda"),
    ],
)
def test_mistakes_of_the_command(study_file, arguments, told):
    result = CliRunner().invoke(app, ["study", str(study_file()), *arguments])
    assert told in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--model", "resnet9"], 'there is no model "resnet9"'),
        (["--data", "cifar"], 'there is no data set "cifar"'),
    ],
)
def test_what_no_run_could_do_is_told_once_and_nothing_is_begun(study_file, arguments, told):
    result = CliRunner().invoke(app, ["study", str(study_file()), "--device", "cpu", *arguments])
    assert isinstance(result.exception, UserError) and told in str(result.exception)
    assert not Path("studies").exists()


def test_what_a_stage_of_a_variant_names_is_tried_before_any_run(study_file):
    text = STUDY.replace("    - repeat:", "    - model: toys:nothing\n    - repeat:", 1)
    with pytest.raises(UserError, match=r"variant constant: .*toys"):
        look_ahead(load_study(study_file(text)).runs)


def test_inputs_are_loaded_once_for_all_variants(study_file, monkeypatch):
    loaded = []
    monkeypatch.setattr(ahead, "load_inputs", lambda *given: loaded.append(load_inputs(*given)) or loaded[-1])
    look_ahead(load_study(study_file()).runs)
    assert len(loaded) == 1


def test_a_task_of_a_machine_that_has_nothing_unpacks_what_it_needs(study_file, tmp_path):
    """What a Ray task does, without Ray: the mask of another run travels there, the run's folder comes back."""
    conducted(load_study(study_file()), tmp_path, Here())
    (ours,) = (tmp_path / "out" / "runs").glob("decay-*")
    (masked,) = (tmp_path / "out" / "runs").glob("masked-*")
    before, packed = figures_of(masked), {str(ours): pack(ours)}
    shutil.rmtree(ours)
    shutil.rmtree(masked)
    recipe = tmp_path / "out" / "recipes" / f"{masked.name}.yaml"
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


def test_what_is_shared_is_known_by_all_that_made_it(study_file, tmp_path):
    """Another mask or another schedule file under the same path must not be taken for the earlier one."""
    text = (
        STUDY[: STUDY.index("  masked:")]
        + """\
  masked: &masked
    recipe:
      stages:
        - prune: {like: $mask}
        - redraw
        - train: {epochs: 1, batch_size: 32, augment: {magnitude: falling.yaml}}
        - train: {epochs: 1, batch_size: 32, augment: {magnitude: $late}}
    variables: {mask: {run: decay}, late: 2}
  again: *masked
"""
    )

    def shared(text, to=4):
        magnitude = f"{{start: 14, end: {to}}}"
        (tmp_path / "falling.yaml").write_text(f"format: 1\nspace: randaugment30\nmagnitude: {magnitude}\n")
        # Equal but for the last training.
        planned = load_study(study_file(text), overrides=["variants.again.variables.late=3"]).runs
        (job,) = (job for job in jobs(planned) if job.run is None and job.after)
        assert job.after == ("decay-0",) and len(job.recipe["stages"]) == 3
        return job.name

    before = shared(text)
    assert shared(text) == before
    assert shared(text.replace("{sparsity: 0.6, magnitude: 4}", "{sparsity: 0.6, magnitude: 5}")) != before
    assert shared(text, to=5) != before


def test_a_beginning_that_is_done_is_taken_up_by_whoever_begins_so(study_file):
    study = load_study(study_file())
    whole = jobs(study.runs)
    # The other one that shares it is done.
    alone = [run for run in study.runs if run.variant == "decay"]
    assert [(job.start, job.done) for job in jobs(alone)] == [(None, 0)]
    (job,) = jobs(alone, lambda name: name == whole[0].name)
    assert (job.start, job.done, job.epochs) == (whole[0].name, 4, 1)
    # A study whose variants part earlier now.
    changed = STUDY.replace(
        "{sparsity: 0.2, magnitude: 14}, {sparsity: 0.6, magnitude: 4}", "{sparsity: 0.2, magnitude: 4}"
    )
    first, *_ = jobs(
        load_study(study_file(changed), only=["constant", "decay"]).runs, lambda name: name == whole[0].name
    )
    assert first.run is None and len(first.recipe["stages"]) == 2


def test_a_begun_run_needs_no_beginning_any_more(study_file, tmp_path):
    study = load_study(study_file(), only=["constant", "decay"])
    conducted(study, tmp_path, Here())
    for folder in (tmp_path / "out" / "runs").iterdir():
        (folder / "report.json").unlink()
        (folder / "04-train" / "done.json").unlink()
    shutil.rmtree(tmp_path / "out" / "shared")
    shutil.rmtree(tmp_path / "results")
    conducted(study, tmp_path, again := Here())
    assert again.did == ["constant-0", "decay-0"]


def test_several_runs_go_on_from_one_beginning_at_the_same_time(study_file, tmp_path):
    """Each compares its recipe with that of the beginning, in files of its own."""
    conducted(load_study(study_file()), tmp_path, Here())
    (shared,) = (tmp_path / "out" / "shared").iterdir()
    recipe = next((tmp_path / "out" / "recipes").glob("decay-*"))
    code = (
        "import sys; from compress_aug.recipe import load_recipe; from compress_aug.running.share import begin_like\n"
        "recipe = load_recipe(sys.argv[1])\n"
        "for number in range(20): begin_like(recipe, sys.argv[2], f'{sys.argv[3]}-{number}')"
    )
    several = [
        subprocess.Popen([sys.executable, "-c", code, recipe, shared, tmp_path / name], env=os.environ)
        for name in ("one", "other")
    ]
    assert [process.wait() for process in several] == [0, 0]
    assert not list(shared.glob(".*"))


def test_an_export_is_not_shared(study_file, tmp_path):
    study = load_study(study_file(STUDY.replace("- repeat:", "- export: {}\n    - repeat:")))
    assert [run.shareable for run in study.runs] == [1, 1, 3]


def test_names_in_other_letters_decide_results_too(study_file):
    def masked(text):
        runs = load_study(study_file(text.replace("decay", "größer"))).runs
        return {run.variant: run.hash for run in runs}["masked"]

    assert masked(STUDY) != masked(
        STUDY.replace("{sparsity: 0.6, magnitude: 4}", "{sparsity: 0.6, magnitude: 5}")
    )


def test_the_device_of_a_file_decides_results_too(study_file, tmp_path):
    def hash_of(threads):
        shipped_one = (shipped("export") / "targets" / "host_cpu.yaml").read_text()
        (tmp_path / "mine.yaml").write_text(re.sub("(?m)^threads: \\d+", f"threads: {threads}", shipped_one))
        text = STUDY.replace(
            "  defaults: {train: {lr: 0.05", "  target: mine.yaml\n  defaults: {train: {lr: 0.05"
        )
        return load_study(study_file(text)).runs[0].hash

    assert hash_of(1) != hash_of(2)


def test_a_variable_of_the_whole_study_waits_only_where_it_is_used(study_file):
    text = STUDY.replace("    variables: {mask: {run: decay}}\n", "")
    text = text.replace("variables: {epochs: 1}", "variables: {epochs: 1, mask: {run: decay}}")
    assert {run.variant: run.after for run in load_study(study_file(text)).runs} == {
        "constant": (),
        "decay": (),
        "masked": ("decay",),
    }


def test_a_recipe_is_looked_for_beside_the_study(study_file, tmp_path, monkeypatch):
    path = study_file(STUDY[: STUDY.index("  masked:")] + "  other: {recipe: other.yaml}\n")
    (tmp_path / "other.yaml").write_text("version: 1\nstages: [{train: {epochs: 3}}]\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_study(path).runs[2].epochs == (3,)


def test_two_forms_of_a_study_at_once_do_not_mix(study_file, tmp_path):
    """A process reads its recipe seconds after it was begun: another study must not have written over it."""
    for lr in ("0.05", "0.02"):
        study = load_study(study_file(STUDY.replace("lr: 0.05", f"lr: {lr}")), only=["constant"])
        conducted(study, tmp_path, Here())
    assert len(list((tmp_path / "out" / "recipes").iterdir())) == 2


def test_no_result_is_lost_when_studies_add_at_once(study_file, tmp_path):
    study = load_study(study_file(), only=["constant"])
    conducted(study, tmp_path, Here())
    results = ResultsFile.of(study, tmp_path / "results")
    (one,) = results.read().runs
    others = [one.model_copy(update={"seed": seed}) for seed in range(1, 30)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(results.add, others))
    assert sorted(run.seed for run in results.read().runs) == list(range(30))


def test_results_of_another_study_are_left_alone(study_file, tmp_path):
    (tmp_path / "results").mkdir()
    path = tmp_path / "results" / "mine.json"
    path.write_text(text := '{"version": 1, "study": "yours", "file": "yours.yaml", "runs": []}')
    with pytest.raises(RunFolderError, match="of the study yours, not of mine"):
        conducted(load_study(study_file(), only=["constant"]), tmp_path, Here())
    assert path.read_text() == text
    path.write_text('{"version": 1, "study": "../mine", "file": "mine.yaml", "runs": []}')
    with pytest.raises(RunFolderError, match="key study"):
        read_results(path)


def test_a_report_that_cannot_be_read_fails_its_run_alone(study_file, tmp_path):
    def launch(recipe, folder, start, log):
        ended = Here()(recipe, folder, start, log)
        if job_of(folder) == "constant-0":
            (folder / "report.json").write_text('{"version": 7, "finished": true}')
        return ended

    with pytest.raises(WorkError, match=r"1 of 4 jobs(.|\n)*constant-0: .*version 7"):
        conducted(load_study(study_file()), tmp_path, launch)
    found = read_results(tmp_path / "results" / "mine.json").runs
    assert [result.variant for result in found] == ["decay", "masked"]


def test_what_cannot_be_written_to_is_told(study_file, tmp_path):
    study = load_study(study_file(), only=["constant"])
    (tmp_path / "out").write_text("")
    with pytest.raises(RunFolderError, match=r"out cannot be written to.*--out"):
        conducted(study, tmp_path, Here())
    (tmp_path / "out").unlink()
    (tmp_path / "results").write_text("")
    with pytest.raises(RunFolderError, match=r"mine\.json cannot be written to.*--results"):
        conducted(study, tmp_path, Here())
    (tmp_path / "results").unlink()
    conducted(study, tmp_path, again := Here())
    assert again.did == []


def test_a_run_that_was_killed_in_its_first_moments_begins_again(study_file, tmp_path):
    study = load_study(study_file(), only=["constant"])
    left = tmp_path / "out" / "runs" / f"constant-0-{study.runs[0].hash[:6]}" / "schedules"
    left.mkdir(parents=True)
    (left / "a.yaml").write_text("")
    (result,) = conducted(study, tmp_path, Here())
    assert result.variant == "constant" and not left.exists()


def test_a_run_that_is_ended_from_outside_is_told_so(study_file, tmp_path):
    def launch(recipe, folder, start, log):
        return Ended(-9, "epoch 3/10 · loss 1.2")

    with pytest.raises(
        WorkError, match=r"constant-0: it was ended from outside \(signal 9\): was there enough memory"
    ):
        conducted(load_study(study_file(), only=["constant"]), tmp_path, launch)


def test_a_run_waits_for_another_process_that_is_at_work_on_it(tmp_path):
    log = tmp_path / "constant-0.log"
    command = [
        sys.executable,
        "-m",
        "compress_aug.study.worker",
        "none.yaml",
        str(tmp_path / "run"),
        "",
        "cpu",
    ]
    with log.open("ab") as held, log.open("ab") as out:
        fcntl.flock(held, fcntl.LOCK_EX)
        second = subprocess.Popen([*command, str(os.getpid())], stdout=out, cwd=tmp_path)
        deadline = time.monotonic() + 120
        while "waits until another process" not in log.read_text():
            assert time.monotonic() < deadline and second.poll() is None
            time.sleep(0.1)
    assert second.wait() == 2
    assert "none.yaml" in log.read_text()


def test_tasks_take_along_the_runs_that_they_name(study_file, tmp_path):
    """Also the beginning that several share, which lies elsewhere; and names that YAML would break or quote."""
    place = tmp_path / ("a place " * 12).strip()
    recipe = tmp_path / "r.yaml"
    named = {
        "stages": [{"prune": {"like": str(place / "runs" / "decay-0-abcdef" / "kept" / "a.safetensors")}}]
    }
    YAML(typ="safe", pure=True).dump(named, recipe)
    start, folder = place / "shared" / "shared-0", place / "shared" / "shared-1"
    assert travelling(recipe, folder, start) == [start, folder, place / "runs" / "decay-0-abcdef"]


def test_what_travels_takes_the_place_of_less(study_file, tmp_path):
    conducted(load_study(study_file(), only=["constant"]), tmp_path, Here())
    (folder,) = (tmp_path / "out" / "runs").iterdir()
    packed, whole = pack(folder), figures_of(folder)
    (folder / "report.json").unlink()
    (folder / "more").write_text("")
    unpack(packed, folder)
    assert figures_of(folder) == whole and not (folder / "more").exists()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.slow
def test_a_run_ends_when_its_study_is_killed(study_file, tmp_path):
    """Nobody would read its results, and a new try would find it in its folder."""
    path = study_file(STUDY.replace("variables: {epochs: 1}", "variables: {epochs: 500}"))
    (tmp_path / "toys.py").write_text((Path(__file__).parent / "toys.py").read_text())
    command = [sys.executable, "-m", "compress_aug.cli", "study", path.name, "--only", "constant"]
    study = subprocess.Popen([*command, "--device", "cpu"], cwd=tmp_path)
    deadline, logs = time.monotonic() + 120, tmp_path / "studies/mine-own/logs"
    while not any("epoch   2/500" in log.read_text() for log in logs.glob("constant-0-*.log")):
        assert time.monotonic() < deadline, "the run never began"
        time.sleep(0.5)
    study.kill()
    study.wait()
    (log,) = logs.iterdir()
    while "Stopped in stage 0" not in log.read_text():
        assert time.monotonic() < deadline + 60, "the run went on"
        time.sleep(0.5)
    assert not json.loads(next(tmp_path.glob("studies/mine-own/runs/*/report.json")).read_text())["finished"]
