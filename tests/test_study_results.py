"""Finished runs as words and pictures: statistics against formulas by hand, verdicts, tables, drawings, the page."""

import io
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from compress_aug.errors import RecipeError, UserError
from compress_aug.pictures import study_drawing
from compress_aug.pictures.paper import paper
from compress_aug.pictures.study_drawing import Dots, Rounds
from compress_aug.policies import Policy, PolicySchedule, Segment, write_schedule
from compress_aug.study import drawing, page, tables, verdict
from compress_aug.study.spread import (
    Spread,
    accuracy_at,
    differences,
    measured,
    newest,
    sparsities,
    spread,
    values,
)
from compress_aug.study.sweeps import swept
from compress_aug.study.words import RunResult, StudyFile, StudyResults


def run(variant: str, seed: int, accuracy: float | None = None, **more: Any) -> RunResult:
    known = {
        key: more.pop(key)
        for key in ("preset", "data", "seconds", "command", "hash", "configuration")
        if key in more
    }
    return RunResult.model_validate(
        {
            "hash": "h",
            "preset": "small",
            "variant": variant,
            "seed": seed,
            "finished": "2026-11-21T12:00:00",
            "seconds": 60.0,
            "command": "compress-aug study paper/some --preset small",
            "machine": {"device": "cpu", "threads": 2},
            "versions": {"torch": "2.15.0"},
            "data": {"name": "cifar10", "train": 45000, "test": 10000},
            "model": "resnet20",
            "figures": {"accuracy": accuracy, **more},
            **known,
        }
    )


def runs_of(**accuracies: list[float]) -> list[RunResult]:
    return [run(name, seed, one) for name, several in accuracies.items() for seed, one in enumerate(several)]


def study(*names: str, **more: Any) -> StudyFile:
    return StudyFile.model_validate(
        {
            "study": 1,
            "title": "A study",
            "source": "arXiv 2305.13232, Fig. 4",
            "question": "Which is better?",
            "model": "resnet20",
            "data": "cifar10",
            "recipe": "some.yaml",
            "variants": {name: {} for name in names},
            "presets": {"small": {"note": "Fewer epochs."}, "paper": {}},
            **more,
        }
    )


def rounds(variant: str, seed: int, *accuracies: tuple[float, float]) -> RunResult:
    """Each round prunes and then trains; the pruned net's own accuracy is bad and must not be taken."""
    stages = [
        {"word": word, "sparsity": at, "accuracy": accuracy if word == "train" else 0.1}
        for at, accuracy in accuracies
        for word in ("prune", "train")
    ]
    return run(variant, seed, accuracies[-1][1], stages=stages)


def sweeping(seed: int, best: dict[float, int | None], variant: str = "net") -> RunResult:
    """Curves over magnitudes that fall off on both sides of the best."""
    place = {None: 0, 4: 1, 8: 2, 14: 3}
    sweep = [
        {
            "sparsity": at,
            "curve": [[m, 0.6 - 0.01 * abs(place[m] - place[top]) + 0.001 * seed, None] for m in place],
            "optimal": top,
            "maximal": top,
        }
        for at, top in best.items()
    ]
    return run(variant, seed, sweep=sweep)


def learned_text(folder: Path) -> str:
    rotate = Policy.from_vector([10, 7] + [0] * 28 + [10, 2] + [0] * 28)
    shear = Policy.from_vector([4, 1] + [0] * 14 + [8, 9] + [0] * 42)
    segments = (Segment(4, Policy.none()), Segment(3, rotate), Segment(2, rotate), Segment(1, shear))
    write_schedule(PolicySchedule(10, segments), folder / "learned.yaml")
    return (folder / "learned.yaml").read_text()


# Statistics.


def test_mean_and_deviation_are_numpys() -> None:
    accuracies = [0.61, 0.652, 0.6333]
    found = spread(values(runs_of(a=accuracies), "a", partial(measured, measure="accuracy")))
    assert found is not None
    assert found.mean == pytest.approx(np.mean(accuracies))
    assert found.deviation == pytest.approx(np.std(accuracies, ddof=1))
    assert found.seeds == 3
    assert spread({}) is None
    assert spread({4: 0.5}) == Spread(0.5, None, 1)


def test_the_last_run_of_a_seed_counts_and_numbers_that_are_none_do_not() -> None:
    runs = [
        run("a", 1, 0.5),
        run("a", 0, 0.4),
        run("a", 1, 0.6),
        run("a", 2, math.nan),
        run("a", 3),
        run("b", 4, 0.1),
    ]
    assert list(newest(runs, "a")) == [0, 1, 2, 3]
    assert values(runs, "a", partial(measured, measure="accuracy")) == {0: 0.4, 1: 0.6}


def test_runs_of_a_variant_that_was_changed_are_not_averaged_with_those_before() -> None:
    """Only one seed was run again: a mean over both forms would be of neither."""
    runs = [
        run("a", 0, 0.4, configuration="before"),
        run("a", 1, 0.5, configuration="before"),
        run("b", 0, 0.1, configuration="other"),
        run("a", 2, 0.9, configuration="now"),
    ]
    assert values(runs, "a", partial(measured, measure="accuracy")) == {2: 0.9}
    assert values(runs, "b", partial(measured, measure="accuracy")) == {0: 0.1}
    assert verdict.compared(runs, "a", "b").finding == "not run"
    text = page.page([StudyResults(study="some", file="some", runs=runs)], lambda name: study("a", "b"))
    assert "- of these, 2 left out: of a variant that was changed since" in text


def test_measures_are_of_the_model_or_of_its_file() -> None:
    one = run("a", 0, 0.6, macs=41, sparsity=0.5, file={"bytes": 900, "latency_ms": 0.4, "accuracy": 0.59})
    words: list[Any] = ["accuracy", "macs", "sparsity", "bytes", "latency_ms", "file_accuracy", "parameters"]
    assert [measured(one, word) for word in words] == [0.6, 41.0, 0.5, 900.0, 0.4, 0.59, None]
    assert measured(run("a", 0, 0.6), "bytes") is None


def test_accuracy_at_a_sparsity_is_that_after_its_last_training() -> None:
    one = rounds("a", 0, (0.0, 0.6), (0.2003, 0.58), (0.2, 0.59), (0.4, 0.5))
    assert accuracy_at(one, 0.2) == 0.59
    assert accuracy_at(one, 0.4049) == 0.5
    assert accuracy_at(one, 0.41) is None
    assert sparsities([one, rounds("a", 1, (0.004, 0.6), (0.6, 0.5))]) == [0.0, 0.2, 0.4, 0.6]


def test_differences_are_of_common_seeds() -> None:
    assert differences({0: 0.5, 1: 0.75, 5: 1.0}, {1: 0.5, 5: 0.5, 7: 0.0}) == {1: 0.25, 5: 0.5}


# Verdicts.


def test_shown_by_hand() -> None:
    ours, other = np.array([0.70, 0.74, 0.72]), np.array([0.60, 0.61, 0.63])
    found = verdict.compared(runs_of(ours=list(ours), other=list(other)), "ours", "other")
    gain = ours - other
    assert found.finding == "shown"
    assert found.mean == pytest.approx(gain.mean())
    assert found.error == pytest.approx(gain.std(ddof=1) / math.sqrt(3))
    assert found.images is None
    back = verdict.compared(runs_of(ours=list(ours), other=list(other)), "other", "ours")
    assert (back.finding, back.mean) == ("opposite", pytest.approx(-gain.mean()))


def test_the_floor_is_the_noise_of_the_test_images() -> None:
    # Three seeds that agree by chance: their own error is 0, and 0.5 points are less than 10,000 images can tell.
    runs = runs_of(ours=[0.655, 0.645, 0.65], other=[0.65, 0.64, 0.645])
    found = verdict.compared(runs, "ours", "other")
    p, q = 0.65, 0.645
    assert found.error == pytest.approx(math.sqrt((p * (1 - p) + q * (1 - q)) / 10_000 / 3))
    assert (found.finding, found.images) == ("noise", 10_000)
    # With no count of the test images there is no floor.
    unknown = [one.model_copy(update={"data": {}}) for one in runs]
    assert verdict.compared(unknown, "ours", "other").finding == "shown"


def test_one_seed_of_the_other_sign_is_noise() -> None:
    ours, other = [0.60] * 12, [0.50] * 11 + [0.602]
    found = verdict.compared(runs_of(ours=ours, other=other), "ours", "other")
    assert found.mean is not None and found.error is not None
    assert found.mean > 2 * found.error
    assert found.finding == "noise"


CLAIM = {"say": "Ours is best.", "better": "ours", "than": ["a", "b"]}


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        (
            {"ours": [0.70, 0.72], "a": [0.60, 0.60], "b": [0.65, 0.64]},
            "Ours is best: shown (+11.00 ± 1.00 points against a; +6.50 ± 1.50 points against Base B; 2 seeds).",
        ),
        (
            {"ours": [0.70, 0.72], "a": [0.60, 0.62], "b": [0.80, 0.82]},
            "Ours is best: the opposite is shown (+10.00 ± 0.47 points against a; -10.00 ± 0.42 points against Base "
            "B; 2 seeds, ± of 10,000 test images).",
        ),
        (
            {"ours": [0.70, 0.72], "a": [0.60, 0.62], "b": [0.69, 0.73]},
            "Ours is best: within the noise (+10.00 ± 0.47 points against a, 2 seeds, ± of 10,000 test images; +0.00 "
            "± 1.00 points against Base B, 2 seeds).",
        ),
        (
            {"ours": [0.70, 0.72], "a": [0.80, 0.82], "b": [0.70, 0.72]},
            "Ours is best: the opposite is shown (-10.00 ± 0.42 points against a; +0.00 ± 0.45 points against Base B; "
            "2 seeds, ± of 10,000 test images).",
        ),
        (
            {"ours": [0.70], "a": [0.60, 0.62], "b": [0.69, 0.73]},
            "Ours is best: one seed: no judgement (+10.00 points against a; +1.00 points against Base B; 1 seed).",
        ),
        (
            {"ours": [0.70, 0.72], "a": [0.60, 0.62]},
            "Ours is best: not judged (+10.00 ± 0.47 points against a; 2 seeds, ± of 10,000 test images; not run: "
            "Base B).",
        ),
        ({"a": [0.60], "b": [0.5]}, "Ours is best: not judged (not run: ours)."),
        ({}, "Ours is best: not judged (not run: ours, a, Base B)."),
    ],
)
def test_the_sentence_of_a_claim(accuracies: dict[str, list[float]], expected: str) -> None:
    variants: dict[str, Any] = {"ours": {}, "a": {}, "b": {"title": "Base B"}}
    file = study(variants=variants, claims=[CLAIM])
    assert verdict.judged(file, runs_of(**accuracies)) == [expected]


def test_a_claim_at_a_sparsity() -> None:
    claim = {"say": "Ours bears 40 %", "better": "ours", "than": ["a"], "at": 0.4}
    file = study("ours", "a", claims=[claim, {**claim, "at": 0.8}])
    runs = [
        rounds(name, seed, (0.0, 0.7), (0.4, at + 0.01 * seed), (0.6, 0.2))
        for name, at in (("ours", 0.6), ("a", 0.5))
        for seed in range(3)
    ]
    first, second = verdict.judged(file, runs)
    assert (
        first == "Ours bears 40 %: shown (+10.00 ± 0.40 points against a; 3 seeds, ± of 10,000 test images)."
    )
    assert second == "Ours bears 40 %: not judged (no common seed at 80 % zeros: a)."


@pytest.mark.parametrize(
    ("bests", "expected"),
    [
        ([{0.0: 14, 0.6: 4}, {0.0: 8, 0.6: 4}], "shown"),
        ([{0.0: 8, 0.6: None}, {0.0: 8, 0.6: None}], "shown"),
        ([{0.0: 4, 0.6: 14}, {0.0: 4, 0.6: 8}], "the opposite is shown"),
        ([{0.0: 14, 0.6: 4}, {0.0: 4, 0.6: 4}], "within the noise"),
        ([{0.0: 14, 0.6: 4}], "one seed: no judgement"),
        ([{0.0: 14}, {0.0: 14}], "not judged"),
    ],
)
def test_a_claim_that_the_magnitude_falls(bests: list[dict[float, int | None]], expected: str) -> None:
    file = study("net", claims=[{"say": "It falls", "falls": True}])
    runs = [sweeping(seed, best) for seed, best in enumerate(bests)]
    (sentence,) = verdict.judged(file, runs)
    assert sentence.startswith(f"It falls: {expected} (")


def test_what_is_said_of_a_falling_magnitude() -> None:
    file = study("net", "other", claims=[{"say": "It falls", "falls": True}])
    runs = [sweeping(0, {0.0: 14, 0.6: 4}), sweeping(1, {0.0: 14, 0.6: None})]
    said = "best magnitude 14 at 0 % zeros, none at 60 % zeros over 2 seeds; by seed 14 to 4, 14 to none"
    assert verdict.judged(file, runs) == [f"It falls: shown ({said})."]
    # A second net with one seed keeps the whole from being shown.
    (both,) = verdict.judged(file, [*runs, sweeping(0, {0.0: 8, 0.6: 4}, "other")])
    assert both == (
        f"It falls: one seed: no judgement (net: {said}; other: best magnitude 8 at 0 % zeros, 4 at 60 % zeros)."
    )


def test_several_sweeps_make_one_mean_curve() -> None:
    runs = [sweeping(0, {0.0: 14}), sweeping(1, {0.0: 8}), sweeping(2, {0.0: 8})]
    (found,) = swept(runs, "net")
    assert found.summary.curve[8][0] == pytest.approx(np.mean([0.59, 0.601, 0.602]))
    assert found.summary.curve[8][1] == pytest.approx(np.std([0.59, 0.601, 0.602], ddof=1))
    assert (found.summary.optimal, found.summary.maximal) == (8, 14)
    assert found.optimal == {0: 14, 1: 8, 2: 8}
    # One seed's further magnitudes are no part of the mean; what broke down in a seed is worst.
    one = runs[0].figures.sweep[0]
    curve = [*one.curve[:-1], (14, None, None), (16, 0.99, None)]
    broken = runs[0].model_copy(
        update={
            "figures": runs[0].figures.model_copy(update={"sweep": [one.model_copy(update={"curve": curve})]})
        }
    )
    (found,) = swept([broken, *runs[1:]], "net")
    assert list(found.summary.curve) == [None, 4, 8, 14]
    assert found.summary.curve[14] == (None, None, None)


# Tables.


def test_a_row_for_each_variant() -> None:
    show = {"measures": ["accuracy", "sparsity", "nonzero_parameters", "macs", "bytes", "latency_ms"]}
    file = study(variants={"a": {"title": "A | B"}, "b": {"row": "Second", "paper": 70.5}}, show=show)
    sizes = {"sparsity": 0.6, "nonzero_parameters": 108_990, "macs": 40_800_000}
    runs = [
        run("a", seed, accuracy, **sizes, file={"bytes": 321_715, "latency_ms": latency})
        for seed, (accuracy, latency) in enumerate([(0.65, 0.4), (0.66, 0.5), (0.67, 0.6)])
    ]
    assert tables.markdown(file, [*runs, run("b", 0, 0.6477)]) == (
        "|  | accuracy, % | zeros, % | not zero | MACs | file, kB | latency, ms | paper, % | seeds |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| A \\| B | 66.00 ± 1.00 | 60.00 | 109 k | 40.8 M | 321.7 | 0.500 ± 0.100 | - | 3 |\n"
        "| Second | 64.77 | - | - | - | - | - | 70.50 | 1 |"
    )


def test_rows_and_columns() -> None:
    cell = {"row": "Ours", "column": "4 bits", "paper": 65.69}
    variants = {
        "a": cell,
        "b": {"row": "Ours", "column": "2 bits"},
        "c": {"row": "Plain", "column": "4 bits"},
    }
    found = tables.told(study(variants=variants), runs_of(a=[0.64, 0.66], b=[0.6]))
    assert found.header == ("accuracy, %", "4 bits", "2 bits", "seeds")
    assert found.rows == (
        ("Ours", "65.00 ± 1.41\npaper 65.69", "60.00", "1 to 2"),
        ("Plain", "-", "-", "0"),
    )
    assert "| Ours | 65.00 ± 1.41<br>paper 65.69 | 60.00 |" in tables.markdown(
        study(variants=variants), runs_of(a=[0.64, 0.66], b=[0.6])
    )


def test_rounds_are_columns() -> None:
    file = study("a", "b", show={"kind": "rounds"})
    runs = [rounds("a", 0, (0.0, 0.7), (0.4, 0.6)), rounds("a", 1, (0.0, 0.72), (0.4, 0.62))]
    found = tables.told(file, [*runs, rounds("b", 0, (0.0, 0.5), (0.6, 0.4))])
    assert found.header == ("accuracy, %", "0 % zeros", "40 % zeros", "60 % zeros", "seeds")
    assert found.rows == (
        ("a", "71.00 ± 1.41", "61.00 ± 1.41", "-", "2"),
        ("b", "50.00", "-", "40.00", "1"),
    )


def test_sweeps_are_rows() -> None:
    file = study("net", show={"kind": "sweep"})
    one = tables.told(file, [sweeping(0, {0.0: 14, 0.6: 4})])
    assert one.header == ("zeros", "optimal M", "maximal M", "accuracy, %", "without, %")
    assert one.rows == (("0 %", "14", "14", "60.00", "57.00"), ("60 %", "4", "4", "60.00", "59.00"))
    two = tables.told(file, [sweeping(0, {0.0: 14}), sweeping(1, {0.0: 8})])
    assert two.header[2] == "by seed"
    # Both are as good on the mean curve: of equal ones the smaller counts.
    assert two.rows == (("0 %", "8", "14, 8", "14", "59.55 ± 0.78", "57.55 ± 0.78"),)


def test_schedules_are_rows(tmp_path: Path) -> None:
    file = study("net", "none", show={"kind": "schedules"})
    found = tables.told(file, [run("net", 3, schedules={"student": learned_text(tmp_path)})])
    # Both copies of Rotate at 1 for five epochs, one of them at 0.4 for one: (5 + 0.2) / 10; ShearX 0.8 / 2 / 10.
    assert found.rows == (
        ("net, student", "3", "4 of 10", "3.3", "Rotate 0.52, ShearX 0.04"),
        ("none", "-", "-", "-", "-"),
    )
    with pytest.raises(RecipeError, match="broken"):
        tables.told(file, [run("net", 0, schedules={"broken": "format: 1\n"})])


def test_variants_that_a_preset_leaves_out_are_no_rows() -> None:
    file = study("a", "b", "c", presets={"small": {"only": ["a", "b"]}})
    assert list(verdict.shown(file, runs_of(a=[0.6]))) == ["a", "b"]
    assert list(verdict.shown(file, runs_of(a=[0.6], c=[0.5]))) == ["a", "b", "c"]
    assert list(verdict.shown(file, [])) == ["a", "b", "c"]


def test_markdown_is_harmless() -> None:
    file = study(variants={"a": {"title": "<b>x</b> `|` [y](z) *w*\n# no"}})
    line = tables.markdown(file, runs_of(a=[0.5])).splitlines()[-1]
    assert line == "| \\<b\\>x\\</b\\> \\`\\|\\` \\[y\\](z) \\*w\\* # no | 50.00 | 1 |"


def test_the_terminal_shows_all_numbers_at_110_columns() -> None:
    measures = [
        "accuracy", "sparsity", "parameters", "nonzero_parameters", "macs", "bytes", "latency_ms", "file_accuracy",
    ]  # fmt: skip
    title = "A variant with [red]quite a long title\x1b[31m that must be folded"
    file = study(variants={"a": {"title": title, "paper": 70.5}}, show={"measures": measures})
    sizes = {"sparsity": 0.6, "parameters": 272_474, "nonzero_parameters": 108_990, "macs": 40_800_000}
    runs = [
        run(
            "a",
            seed,
            0.65 + seed / 100,
            **sizes,
            file={"bytes": 321_715, "latency_ms": 0.4 + seed, "accuracy": 0.6},
        )
        for seed in range(3)
    ]
    out = io.StringIO()
    Console(file=out, width=110).print(tables.rich_table(file, runs, "A study, preset small"))
    printed = out.getvalue()
    for number in (
        "66.00 ± 1.00",
        "60.00 ± 0.00",
        "272 k",
        "109 k",
        "40.8 M",
        "321.7",
        "1.400 ± 1.000",
        "70.50",
    ):
        assert number in printed
    assert "A study, preset small" in printed
    assert "[red]" in printed and "\x1b" not in printed
    assert max(map(len, printed.splitlines())) <= 110


# Pictures.


def test_variants_are_drawn_in_panels_with_names_that_do_not_meet() -> None:
    long = (
        "A name so long that it takes two lines at least, and a third one if it could have it at all, it says"
    )
    found = [
        Dots(long, [64.0, 65.0, 66.0], "4 bits", paper=65.7),
        Dots("other", [60.0], "4 bits", paper=99.0),
        Dots(long, [50.0, 51.0], "2 bits"),
        Dots("other", [], "2 bits"),
    ]
    with paper():
        figure = study_drawing._variants(found, "Title", "note", "accuracy, %")
    four, two, whole = figure.axes
    assert [axes.get_title(loc="left") for axes in (four, two)] == ["4 bits", "2 bits"]
    assert [text.get_text() for text in four.texts] == ["paper 65.70", "paper 99.00"]
    assert [text.get_text() for text in two.texts] == ["not run"]
    dots = [line.get_xdata() for line in four.lines if line.get_marker() == "o"]
    assert [list(map(float, one)) for one in dots] == [[64.0, 65.0, 66.0], [60.0]]
    # The paper's 99 would squeeze the runs: a diamond stands for 65.7 alone.
    assert [line.get_marker() for line in four.lines].count("D") == 1
    figure.canvas.draw()
    names = [label.get_window_extent() for axes in (four, two) for label in axes.get_yticklabels()]
    assert all(not a.overlaps(b) for place, a in enumerate(names) for b in names[place + 1 :])
    legend = whole.get_legend()
    assert legend is not None
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0
    assert not box.overlaps(two.xaxis.label.get_window_extent())
    assert min(name.x0 for name in names) >= 0


def test_rounds_are_drawn_as_lines_of_means() -> None:
    found = [Rounds("a", {0.0: [70.0, 72.0], 40.0: [60.0]}), Rounds("b", {0.0: [65.0], 40.0: [63.0]})]
    with paper():
        figure = study_drawing._rounds(found, "Title", "note")
    axes = figure.axes[0]
    lines = {line.get_label(): line for line in axes.lines if not str(line.get_label()).startswith("_")}
    assert {name: [float(y) for y in line.get_ydata()] for name, line in lines.items()} == {
        "a": [71.0, 60.0],
        "b": [65.0, 63.0],
    }
    assert len({(line.get_color(), line.get_marker()) for line in lines.values()}) == 2
    # Only the point of two seeds has a bar.
    assert [len(container[2][0].get_segments()) for container in axes.containers] == [1]


def test_every_kind_is_drawn(tmp_path: Path) -> None:
    kinds = {
        "table": runs_of(net=[0.6, 0.61]),
        "rounds": [rounds("net", 0, (0.0, 0.7))],
        "sweep": [sweeping(seed, {0.0: 14, 0.6: 4}, name) for seed in range(2) for name in ("net", "other")],
        "schedules": [run("net", 0, schedules={"student": learned_text(tmp_path)})],
    }
    for kind, runs in kinds.items():
        file = study("net", "other", show={"kind": kind})
        path = drawing.draw(file, runs, tmp_path / f"{kind}.png", "a note")
        assert path == tmp_path / f"{kind}.png"
        drawn = np.asarray(Image.open(path))
        assert drawn.shape[1] > 500 and drawn.min() < 100 and drawn[0].min() == 255
        with pytest.raises(UserError, match="nothing to draw"):
            drawing.draw(file, [], tmp_path / "empty.png", "a note")
    assert not (tmp_path / "empty.png").exists()
    (tmp_path / "words.png").write_text("words")
    with pytest.raises(UserError, match="no PNG"):
        drawing.draw(study("net"), kinds["table"], tmp_path / "words.png", "a note")


def test_pictures_are_stacked(tmp_path: Path) -> None:
    for name, (width, height) in {"a": (30, 20), "b": (40, 10)}.items():
        Image.new("RGB", (width, height)).save(tmp_path / f"{name}.png")
    study_drawing.stack([tmp_path / "a.png", tmp_path / "b.png"], tmp_path / "both.png")
    both = np.asarray(Image.open(tmp_path / "both.png"))
    gap = study_drawing._EDGE
    assert both.shape == (30 + 2 * gap, 40, 3)
    assert both[gap, 29].max() == 0 and both[gap, 30].min() == 255 and both[-1, -1].max() == 0


# The page.


def test_the_page(tmp_path: Path) -> None:
    file = study(
        "ours", "a", title="Ours | others", claims=[{"say": "Ours wins.", "better": "ours", "than": ["a"]}]
    )
    runs = runs_of(ours=[0.7, 0.72], a=[0.6, 0.62])
    text = page.page(
        [StudyResults(study="some", file="some", runs=runs), StudyResults(study="later", file="later")],
        {"some": file, "later": study("x", title="Later")}.__getitem__,
        lambda found, preset: f"results/{found.study}-{preset}.png",
        lambda name, preset: "A *remark* of ours.",
    )
    assert verdict.RULE in text
    assert text[text.index("## Ours") :] == (
        """## Ours \\| others

Study `some`. Source: arXiv 2305.13232, Fig. 4

Question: Which is better?

### Ours \\| others: preset `small`

Fewer epochs.

|  | accuracy, % | seeds |
| --- | ---: | ---: |
| ours | 71.00 ± 1.41 | 2 |
| a | 61.00 ± 1.41 | 2 |

![Ours \\| others, small](results/some-small.png)

Claims:

- Ours wins: shown (+10.00 ± 0.47 points against a; 2 seeds, ± of 10,000 test images).

A *remark* of ours.

How it was run:

- 4 runs, seeds 0, 1, finished 2026-11-21
- model: resnet20
- data: name cifar10, train 45,000, test 10,000
- hardware: device cpu, threads 2
- versions: torch 2.15.0
- time: 4.00 min, of all runs together, without what they share

```
compress-aug study paper/some --preset small
```

Not run: preset `paper`.

## Later

Study `later`. Source: arXiv 2305.13232, Fig. 4

Question: Which is better?

Not run.
"""
    )


def test_what_the_page_tells_of_runs_that_differ() -> None:
    runs = [
        run("ours", 0, 0.7, preset="own"),
        run("ours", 1, 0.7, preset="own", data={"test": 1000}),
        run("ours", 2, 0.7, preset="own", data={"test": 1000}, command="compress-aug study `rm`"),
        run("old", 0, 0.7, preset="own"),
    ]
    text = page.page([StudyResults(study="some", file="some", runs=runs)], lambda name: study("ours", "a"))
    assert "### A study: as the study says" in text
    assert "- not run of this preset: a\n" in text
    assert "- run, but not in the study's file any more: old\n" in text
    assert "- data: name cifar10, train 45,000, test 10,000 (2 runs); test 1,000 (2 runs)\n" in text
    assert "compress-aug study 'rm'\n```" in text
    assert "Not run: presets `small`, `paper`." in text
    assert "![" not in text


def test_the_page_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    results = StudyResults(study="some", file="some", runs=runs_of(a=[0.6]))
    (folder / "some-small.png").write_bytes(b"")
    (folder / "some-small.md").write_text("Why it is so.\n")
    to = page.write_page([results], tmp_path / "results.md", folder, lambda name: study("a"))
    text = to.read_text()
    assert "![A study, small](results/some-small.png)" in text and "\n\nWhy it is so.\n\n" in text
    assert "## Not run" not in text
    more = page.write_page(
        [results], tmp_path / "results.md", folder, lambda name: study("a"), {"b": "B | C"}
    )
    assert more.read_text().removeprefix(text) == (
        "\n## Not run\n\nThese studies ship too, and have no results here:\n\n- `b`: B \\| C\n"
    )
    text = more.read_text()
    with pytest.raises(KeyError):
        page.write_page([results], to, folder, {}.__getitem__)
    assert to.read_text() == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results", "results.md"]


def test_a_margin_lets_a_little_worse_count() -> None:
    runs = runs_of(a=[0.595, 0.594, 0.596], b=[0.60, 0.60, 0.60])
    claim = {"say": "a is at most a point worse", "better": "a", "than": ["b"]}
    strict, loose = (
        verdict.judged(study("a", "b", claims=[{**claim, **more}]), with_images(runs, 10**6))[0]
        for more in ({}, {"margin": 1})
    )
    assert "the opposite is shown" in strict
    # The numbers stay what they are: half a point worse.
    assert "a is at most a point worse: shown (-0.50 ± 0.06 points against b" in loose
    far = verdict.judged(study("a", "b", claims=[{**claim, "margin": 0.2}]), with_images(runs, 10**6))[0]
    assert "the opposite is shown" in far


def with_images(runs: list[RunResult], test: int) -> list[RunResult]:
    return [one.model_copy(update={"data": {**one.data, "test": test}}) for one in runs]


def test_claims_leave_out_what_the_preset_leaves_out() -> None:
    claims = [
        {"say": "a is better", "better": "a", "than": ["b", "c"]},
        {"say": "c is better", "better": "c", "than": ["a"]},
    ]
    presets = {"small": {"only": ["a", "b"]}}
    found = verdict.judged(
        study("a", "b", "c", claims=claims, presets=presets), runs_of(a=[0.9, 0.91], b=[0.5, 0.52])
    )
    assert found[0].startswith("a is better: shown") and "left out by this preset: c" in found[0]
    assert found[1] == "c is better: not asked by this preset."


def test_the_papers_numbers_are_told_apart_from_ours() -> None:
    with_paper = study("a", variants={"a": {"paper": 70.5}})
    line = tables.about_paper(with_paper, runs_of(a=[0.6]))
    assert line is not None and line.startswith("The paper's numbers are its own")
    whole = [one.model_copy(update={"preset": "paper"}) for one in runs_of(a=[0.6])]
    assert tables.about_paper(with_paper, whole) is None
    assert tables.about_paper(study("a"), runs_of(a=[0.6])) is None
