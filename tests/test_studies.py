"""Every shipped study: read with each preset, the papers' numbers against those copied here, and run when small."""

import hashlib
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torchvision
from rich.console import Console
from test_study import Here
from typer.testing import CliRunner

from compress_aug.cli.commands import app
from compress_aug.folders import shipped
from compress_aug.study import ResultsFile, conduct, load_study
from compress_aug.study.file import read_study_file, study_names
from compress_aug.study.jobs import jobs
from compress_aug.study.results import read_results

NAMES = study_names()
OURS = Path(__file__).parent.parent / "benchmarks" / "by_hand.study.yaml"

# Vanilla training knows no teacher: of the two pairs with this student it is one run in two rows.
ALIKE = {("paper/table4_full_precision", "vanilla", "pyramidnet_200_240_wrn_16_2_vanilla")}

# arXiv 2004.08861, Tables 1 to 4.
TABLE_1 = {
    4: {"soft": 70.48, "dml": 72.47, "rkd": 71.84, "mhgd": 73.52, "kd_svd": 73.92, "ii_kd": 74.21},
    2: {"soft": 70.09, "dml": 69.72, "rkd": 70.71, "mhgd": 71.80, "kd_svd": 72.97, "ii_kd": 73.35},
}
# AlexNet on CIFAR-10, AlexNet on CIFAR-100, ResNet18 on CIFAR-10, ResNet18 on CIFAR-100.
TABLE_2 = {
    "vanilla_32": [90.58, 65.80, 93.57, 74.85],
    "vanilla_4": [89.72, 60.25, 90.97, 69.81],
    "vanilla_2": [88.77, 58.96, 90.00, 67.06],
    "stage_alpha_32": [91.62, 66.40, 94.49, 75.19],
    "stage_alpha_4": [90.06, 60.65, 91.47, 70.24],
    "stage_alpha_2": [89.28, 58.59, 89.99, 67.32],
    "only_ii_kd_4": [90.55, 65.55, 91.42, 73.85],
    "only_ii_kd_2": [89.18, 63.49, 90.60, 72.44],
    "stage_beta_4": [92.00, 65.69, 94.44, 74.21],
    "stage_beta_2": [90.63, 64.06, 93.20, 73.35],
}
# DML, MHGD, II-KD.
TABLE_3 = {
    "alexnet_teacher": [61.61, 61.62, 64.97],
    "alexnet_student": [63.73, 63.47, 65.69],
    "teacher": [71.78, 69.76, 73.46],
    "student": [72.47, 73.52, 74.21],
}
# Vanilla, stage alpha, only II-KD, stage beta.
TABLE_4 = {
    "": [72.68, 73.79, 74.41, 76.19],
    "wrn_28_10_wrn_16_4_": [77.28, 78.01, 79.30, 80.59],
    "wrn_28_10_preresnet_56_": [71.98, 73.45, 73.04, 74.91],
    "preresnet_164_preresnet_32_": [70.28, 71.68, 70.53, 72.14],
    "pyramidnet_200_240_preresnet_44_": [71.55, 73.31, 73.00, 73.71],
    "pyramidnet_200_240_wrn_16_2_": [72.68, 73.79, 74.64, 75.03],
}


def of_presets():
    return [(name, preset) for name in NAMES for preset in read_study_file(name)[0].presets]


def papers(name):
    """The paper's number of each variant that has one."""
    variants = read_study_file(name)[0].variants
    return {key: variant.paper for key, variant in variants.items() if variant.paper is not None}


def stages_of(name, variant, preset="paper"):
    (run,) = load_study(name, preset=preset, seeds=[0], only=[variant]).runs
    return run.recipe["stages"]


def words(stages):
    return [next(iter(stage)) for stage in stages]


def sharing(name, preset):
    """(jobs, epochs of all of them, epochs if nothing were shared) of the first seed."""
    study = load_study(name, preset=preset, seeds=[0])
    todo = jobs(study.runs)
    return len(todo), sum(job.epochs for job in todo), sum(sum(run.epochs) for run in study.runs)


def test_the_papers_experiments_ship():
    figures = [
        "fig1_sweep",
        "fig2_sweep_folder",
        "fig3_decay",
        "fig4_inherit_prune",
        "fig6_inherit_layers",
        "fig7_teacher_filter",
    ]
    tables = [
        "table1_losses",
        "table2_rolewise",
        "table2_cifar100",
        "table3_schedules",
        "table4_full_precision",
    ]
    others = ["schedules", "auto_magnitude"]
    assert {f"paper/{name}" for name in figures + tables + others} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_its_header_says_what_it_asks_and_how_to_run_it(name):
    text = (shipped("recipes") / f"{name}.study.yaml").read_text()
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert head[0].startswith(f"# {name.rpartition('/')[2]} — ")
    assert any(f"compress-aug study {name} --preset " in line for line in head)


@pytest.mark.parametrize("name", NAMES)
def test_its_presets_are_small_and_whole_and_say_what_they_changed(name):
    presets = read_study_file(name)[0].presets
    assert {"micro", "cpu", "gpu", "paper"} == set(presets)
    assert all(preset.note for preset in presets.values())
    assert presets["micro"].seeds == [0] or read_study_file(name)[0].seeds == [0]


@pytest.mark.parametrize(("name", "preset"), of_presets())
def test_it_loads_and_its_runs_differ(name, preset):
    runs = load_study(name, preset=preset).runs
    assert runs
    seen: dict[tuple[str, int], str] = {}
    for run in runs:
        other = seen.setdefault((run.hash, run.seed), run.variant)
        assert other == run.variant or (name, other, run.variant) in ALIKE
    # A seed is part of what a run is.
    assert len({(run.hash, run.variant) for run in runs}) == len(runs)


@pytest.mark.parametrize("name", NAMES)
def test_all_of_its_runs_come_to_an_end_in_micro(name):
    assert sum(job.epochs for job in jobs(load_study(name, preset="micro").runs)) <= 60


def test_the_numbers_of_table_1():
    said = papers("paper/table1_losses")
    assert said == {f"{loss}_{bits}": number for bits, row in TABLE_1.items() for loss, number in row.items()}


@pytest.mark.parametrize(("name", "data"), [("paper/table2_rolewise", 0), ("paper/table2_cifar100", 1)])
def test_the_numbers_of_table_2(name, data):
    alexnet = {f"alexnet_{row}": numbers[data] for row, numbers in TABLE_2.items()}
    assert papers(name) == {**{row: numbers[2 + data] for row, numbers in TABLE_2.items()}, **alexnet}


def test_the_numbers_of_table_3():
    losses = ("dml", "mhgd", "ii_kd")
    assert papers("paper/table3_schedules") == {
        f"{row}_{loss}": number
        for row, numbers in TABLE_3.items()
        for loss, number in zip(losses, numbers, strict=True)
    }


def test_the_numbers_of_table_4():
    rows = ("vanilla", "stage_alpha", "only_ii_kd", "stage_beta")
    assert papers("paper/table4_full_precision") == {
        f"{pair}{row}": number
        for pair, numbers in TABLE_4.items()
        for row, number in zip(rows, numbers, strict=True)
    }


def test_the_two_halves_of_table_2_are_one_study():
    one, other = (read_study_file(name)[0] for name in ("paper/table2_rolewise", "paper/table2_cifar100"))
    assert (one.data, other.data) == ("cifar10", "cifar100")
    assert one.recipe == other.recipe and one.claims == other.claims
    # The cutout of the paper's code depends on the data.
    assert {**one.variables, "cutout": 8} == other.variables
    for name, variant in one.variants.items():
        assert variant.model_copy(update={"paper": None}) == other.variants[name].model_copy(
            update={"paper": None}
        )


def test_the_rows_of_table_2_are_what_they_are_called():
    train, student = ["train"], ["train", "keep", "quantize"]
    rows = {
        "vanilla_32": train,
        "stage_alpha_32": ["search", *train],
        "vanilla_4": ["quantize", *train],
        "stage_alpha_4": ["search", "quantize", *train],
        "only_ii_kd_4": [*student, "train"],
        "stage_beta_4": ["search", *student, "search", "train"],
    }
    for name, stages in rows.items():
        assert words(stages_of("paper/table2_rolewise", name)) == stages


def test_the_schedules_of_table_2():
    *_, teacher, _, _, search, last = stages_of("paper/table2_rolewise", "stage_beta_4")
    assert teacher["train"]["augment"]["policy"] == "teacher"
    assert search["search"]["train"]["distill"]["loss"] == last["train"]["distill"]["loss"] == "ii_kd"
    assert last["train"]["augment"]["policy"] == "student"
    *_, last = stages_of("paper/table2_rolewise", "only_ii_kd_4")
    assert "policy" not in last["train"]["augment"]


def test_students_of_table_3_differ_in_their_schedule_alone():
    teachers, own = (stages_of("paper/table3_schedules", f"{name}_ii_kd") for name in ("teacher", "student"))
    assert words(own) == [*words(teachers)[:4], "search", "train"]
    assert own[:4] == teachers[:4]
    assert own[-1]["train"]["augment"].pop("policy") == "student"
    assert teachers[-1]["train"]["augment"].pop("policy") == "teacher"
    assert own[-1] == teachers[-1]


def test_a_student_of_table_4_is_another_net_than_its_teacher():
    (run,) = load_study("paper/table4_full_precision", preset="paper", seeds=[0], only=["stage_beta"]).runs
    assert run.recipe["model"] == "wrn_28_10"
    assert {"model": {"name": "wrn_16_2", "arguments": {}}} in run.recipe["stages"]


def test_what_runs_share_is_trained_once():
    # Teacher, then fourteen students, of which each searches a schedule of its own.
    count, epochs, alone = sharing("paper/table1_losses", "paper")
    teacher, student = 16 * 200 + 200, 16 * 200 + 200
    assert (count, epochs, alone) == (15, teacher + 14 * student, 14 * (teacher + student))
    # One teacher of vanilla rows, one search and one teacher of stages alpha and beta.
    assert sharing("paper/table2_rolewise", "micro") == (9, 14, 24)
    # Search and teacher once for four students.
    assert sharing("paper/table3_schedules", "micro") == (5, 17, 32)
    count, epochs, alone = sharing("paper/auto_magnitude", "paper")
    assert (count, alone - epochs) == (15, 13 * 160)


def test_our_side_and_the_one_by_hand_begin_with_one_net(monkeypatch):
    monkeypatch.syspath_prepend(str(OURS.parent))
    for preset in ("micro", "paper", "cpu", "gpu"):
        study = load_study(OURS, preset=preset, seeds=[0])
        hashes = [run.hash for run in study.runs]
        assert len(set(hashes)) == len(hashes)
        first = jobs(study.runs)[0]
        assert first.run is None and words(first.recipe["stages"]) == ["train", "keep"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, str(OURS)])
def test_it_runs_to_its_end_when_small(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # For this process and for those that it starts.
    monkeypatch.syspath_prepend(str(OURS.parent))
    monkeypatch.setenv("PYTHONPATH", str(OURS.parent))
    result = CliRunner().invoke(app, ["study", name, "--preset", "micro", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    study = load_study(name, preset="micro")
    found = read_results(Path("studies/results") / f"{study.name}.json")
    assert {(run.variant, run.hash) for run in found.runs} == {(run.variant, run.hash) for run in study.runs}
    assert Path(f"studies/results/{study.name}-micro.png").stat().st_size > 0
    for claim in study.file.claims:
        assert re.sub(r"\s+", " ", claim.say.rstrip(".")) in re.sub(r"\s+", " ", result.output)


def written(path, content):
    """A file of CIFAR-100 as torchvision finds it on disk; returns its MD5 sum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def cifar100(tmp_path, monkeypatch):
    """A folder with files in the format of CIFAR-100: 100 classes, 400 images to train on, 200 to test; random ones."""
    generator = np.random.default_rng(0)
    place = tmp_path / "data" / "cifar-100-python"

    def part(images):
        pixels = generator.integers(0, 256, (images, 3 * 32 * 32), dtype=np.uint8)
        return {"data": pixels, "fine_labels": [n % 100 for n in range(images)]}

    files = {name: written(place / name, part(images)) for name, images in (("train", 400), ("test", 200))}
    meta = written(place / "meta", {"fine_label_names": [f"thing {n}" for n in range(100)]})
    kind = torchvision.datasets.CIFAR100
    monkeypatch.setattr(kind, "train_list", [["train", files["train"]]])
    monkeypatch.setattr(kind, "test_list", [["test", files["test"]]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": meta})
    return place.parent


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name in ("paper/fig3_decay", "paper/fig6_inherit_layers")]
)
def test_its_form_for_cifar_100_runs_on_files_in_that_format(name, cifar100, tmp_path):
    assert classes_of_runs(name, cifar100, tmp_path) == {100}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_form_for_cifar_100_runs_on_files_in_that_format(name, cifar100, tmp_path):
    assert classes_of_runs(name, cifar100, tmp_path) == {100}


def classes_of_runs(name, cifar100, tmp_path):
    """Of the first variant of the smallest preset, run on these files, and of what it waits for."""
    data = {"name": "cifar100", "root": str(cifar100)}
    first = load_study(name, preset="micro").runs[0].variant
    study = load_study(name, preset="micro", only=[first], data=data, seeds=[0])
    results = ResultsFile.of(study, tmp_path / "results")
    found = conduct(study, out=tmp_path / "out", results=results, launch=Here(), console=Console(quiet=True))
    return {run.data["classes"] for run in found}
