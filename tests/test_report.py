"""The report against golden facts (percent, ratio), and against what must never go wrong with one.

A realistic run, a stopped one, one whose every word is hostile, and broken files.
"""

import copy
import io
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from compress_aug.errors import RunFolderError
from compress_aug.report import (
    comparison,
    contract,
    drawing,
    plots,
    read_report,
    report_table,
    words,
    write_page,
)
from compress_aug.report.contract import Report

HOSTILE = '<script>alert("x")</script>[red]$\\frac{\x1b[31m\u202e'


def epochs(count: int, start: float, end: float, magnitude: Any, lr: float = 0.1) -> list[dict[str, Any]]:
    rows = []
    for n in range(count):
        done = (n + 1) / count
        accuracy = start + (end - start) * (1 - math.exp(-4 * done))
        rows.append(
            {
                "epoch": n + 1,
                "loss": 2.3 * (1 - accuracy) + 0.02,
                "train_accuracy": accuracy - 0.02,
                "validation_accuracy": accuracy + 0.004 * math.sin(n),
                "magnitude": magnitude,
                "lr": 0.5 * lr * (1 + math.cos(math.pi * n / count)),
                "images_per_second": 812.5,
                "seconds": 55.4,
            }
        )
    return rows


def stage(index: int, word: str, title: str, accuracy: float, sparsity: float, **more: Any) -> dict[str, Any]:
    return {
        "index": index,
        "word": word,
        "title": title,
        "seconds": 0.8,
        "accuracy": accuracy,
        "loss": None,
        "sparsity": sparsity,
        "parameters": 272474,
        "nonzero_parameters": round(272474 - sparsity * 270000),
        "macs": 40813184,
        "magnitude": None,
        "bits": None,
        "history": None,
        "notes": [],
        **more,
    }


def trained(
    index: int, count: int, span: tuple[float, float], sparsity: float, magnitude: Any
) -> dict[str, Any]:
    rows = epochs(count, *span, magnitude, lr=0.1 if index == 0 else 0.01)
    return stage(
        index,
        "train",
        f"train {count} epochs",
        span[1] - 0.004,
        sparsity,
        seconds=55.4 * count,
        loss=rows[-1]["loss"],
        magnitude=magnitude,
        history=rows,
    )


@pytest.fixture
def report() -> dict[str, Any]:
    quantized = {"bits": {"weights": 4.0, "activations": 4.0}}
    return {
        "version": 1,
        "recipe": "iterative_prune",
        "seed": 0,
        "device": "cpu",
        "finished": True,
        "folder": "runs/iterative_prune",
        "versions": {"compress_aug": "0.1.0", "torch": "2.15.0", "onnxruntime": "1.31.1"},
        "data": {"name": "cifar10", "train": 45000, "validation": 5000, "test": 10000, "classes": 10},
        "target": {"name": "raspberry_pi_4", "proxy": True, "weight_bits": 7},
        "original": {
            "parameters": 272474,
            "macs": 40813184,
            "bytes": 1099000,
            "latency_ms": {"p50": 0.60, "p95": 0.66},
            "accuracy": None,
        },
        "stages": [
            trained(0, 40, (0.10, 0.932), 0.0, [14.0, 14.0]),
            stage(1, "keep", "keep as teacher", 0.928, 0.0),
            stage(2, "prune", "prune to 40 %", 0.871, 0.4),
            trained(3, 20, (0.90, 0.930), 0.4, [8.0, 8.0]),
            stage(4, "prune", "prune to 60 %", 0.802, 0.6),
            trained(5, 20, (0.88, 0.925), 0.6, [4.0, 4.0]),
            stage(
                6,
                "quantize",
                "quantize to 4-bit weights, 4-bit activations",
                0.655,
                0.6,
                notes=["conv1 and linear keep 8 bits"],
                **quantized,
            ),
            trained(7, 12, (0.86, 0.918), 0.6, [None, None]) | quantized,
            stage(8, "export", "export model.onnx", 0.914, 0.6, seconds=14.2, **quantized),
        ],
        "exports": [
            {
                "file": "08-export/model.onnx",
                "float_file": "08-export/model_float.onnx",
                "target": "raspberry_pi_4",
                "bytes": 321715,
                "float_bytes": 1099000,
                "gzip_bytes": 142310,
                "accuracy": 0.9139,
                "model_accuracy": 0.914,
                "max_abs_diff": 3.1e-06,
                "top1_agreement": 0.99999,
                "images": 10000,
                "integer_layers": 20,
                "float_layers": 2,
                "stayed_float": [
                    ["layer3.0.add", "Add", "its inputs have two scales"],
                    ["linear", "Gemm", "this runtime has no integer kernel for a Gemm with a float bias"],
                ],
                "latency_ms": {"p50": 0.30, "p95": 0.33},
                "float_latency_ms": {"p50": 0.60, "p95": 0.66},
                "proxy": True,
                "threads": 1,
                "misses": ["size_mb is 0.322, the budget is 0.2"],
            }
        ],
    }


@pytest.fixture
def stopped(report: dict[str, Any]) -> dict[str, Any]:
    """What stands in report.json while the third stage runs, as sparsely as the contract allows."""
    first = {**report["stages"][0], "macs": None, "sparsity": None, "title": None, "accuracy": None}
    del first["nonzero_parameters"], first["notes"]
    return {"version": 1, "finished": False, "stages": [first, {"index": 1, "word": "keep"}], "exports": None}


def table_text(report: dict[str, Any], width: int = 100) -> str:
    console = Console(width=width, force_terminal=False, color_system=None)
    with console.capture() as captured:
        console.print(report_table(report))
    return captured.get()


def page_text(folder: Path, report: dict[str, Any], recipe: str | None = "version: 1\n") -> str:
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    if recipe is not None:
        (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    path = write_page(folder)
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Every element of a page, its attributes, its words; and whether each element is closed in order."""

    VOID = ("meta", "br", "hr", "img")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


# Numbers: checked by hand.


@pytest.mark.parametrize(
    ("share", "digits", "told"),
    [
        (0.9312, 2, "93.12 %"),
        (0.6, 1, "60.0 %"),
        (1.0, 2, "100.00 %"),
        (0.999994, 2, "> 99.99 %"),
        (0.99999, 1, "> 99.9 %"),
        (0.000001, 2, "< 0.01 %"),
        (0.0, 2, "0.00 %"),
        (None, 2, "-"),
        (math.nan, 2, "nan"),
    ],
)
def test_a_share_is_told_in_percent_and_never_rounded_to_all_or_nothing(
    share: float | None, digits: int, told: str
) -> None:
    assert words.percent(share, digits) == told


def test_a_ratio_says_which_way_it_goes() -> None:
    assert words.ratio(1099000, 321715, "smaller", "larger") == "3.42x smaller"
    assert words.ratio(0.30, 0.60, "faster", "slower") == "2.00x slower"
    assert words.ratio(0.30, 0.0, "faster", "slower") == "-"


@pytest.mark.parametrize("number", [1, 10, 999, 1000, 9994, 9996, 999_499, 999_500, 123_456_789, 10**15])
def test_short_numbers_lie_within_half_a_percent_of_the_number(number: int) -> None:
    digits, _, unit = words.short(number).partition(" ")
    factor = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[unit]
    assert float(digits) * factor == pytest.approx(number, rel=0.005)
    assert len(digits.replace(".", "")) <= 4


# The table of the terminal.


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_fits_and_tells_every_stage_and_the_export(report: dict[str, Any], width: int) -> None:
    text = table_text(report, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    row = next(line for line in text.splitlines() if line.startswith(" 3"))
    assert re.split(r"\s{2,}", row.strip())[-6:] == [
        "92.60 %",
        "40.0 %",
        "164 of 272 k",
        "8",
        "0.182",
        "18.5 min",
    ]
    for told in ("3.42x smaller", "2.00x faster", "> 99.99 %", "3.1e-06", "20 integer, 2 float", "0.300 ms"):
        assert told in text
    assert "BUDGET MISSED" in text
    assert "a proxy: timed on this machine" in text
    assert "Everything lies in runs/iterative_prune" in text


def test_the_table_is_plain_text_where_there_is_no_terminal(report: dict[str, Any]) -> None:
    out = io.BytesIO()
    ascii_only = io.TextIOWrapper(out, encoding="ascii", errors="strict")
    Console(file=ascii_only, width=80).print(report_table(report))
    ascii_only.flush()
    assert b"\x1b" not in out.getvalue()


def test_a_timed_target_is_not_called_a_proxy(report: dict[str, Any]) -> None:
    report["exports"][0]["proxy"] = False
    text = table_text(report)
    assert "proxy" not in text
    assert "timed on raspberry_pi_4, 1 thread" in text


def test_a_float_export_is_not_compared_with_itself(report: dict[str, Any], tmp_path: Path) -> None:
    export = report["exports"][0]
    export |= {"float_file": export["file"], "float_bytes": export["bytes"], "integer_layers": 0}
    text = table_text(report)
    assert "against float" not in text
    assert "against original" in text
    assert "Against float" not in page_text(tmp_path, report)


def test_layers_that_stayed_float_are_gathered_by_reason(report: dict[str, Any]) -> None:
    export = report["exports"][0]
    export["stayed_float"] = [[f"block{n}.add", "Add", "two scales"] for n in range(12)]
    text = table_text(report)
    assert "12 Add stayed float (block0.add, block1.add, block2.add, and 9 more): two scales" in text


def test_training_without_magnitude_reads_none_and_a_change_reads_nothing(report: dict[str, Any]) -> None:
    report["stages"][7]["magnitude"] = None
    rows = {line[:2].strip(): line for line in table_text(report).splitlines()}
    assert " none " in rows["7"]
    assert " none " not in rows["2"]
    report["stages"][7]["policy"] = "student_schedule"
    assert " none " not in table_text(report)


def test_an_unfinished_run_still_has_its_table(stopped: dict[str, Any]) -> None:
    text = table_text(stopped, 80)
    assert "NOT FINISHED: 2 stages are done so far" in text
    assert "0.211" in text
    assert "NOT FINISHED: no stage is done" in table_text({"version": 1})


# The page.


def test_the_page_holds_every_part(report: dict[str, Any], tmp_path: Path) -> None:
    page = page_text(tmp_path, report, "# a comment\nversion: 1\n")
    reader = Reader(page)
    assert reader.open == []
    assert reader.tags.count("svg") == 5
    told = " ".join(reader.words.split())
    for expected in (
        "Accuracy",
        "Augmentation magnitude",
        "Sparsity and size",
        "Training loss",
        "Learning rate",
        "3.42x smaller than in float",
        "2.00x faster than in float",
        "quantize to 4-bit weights, 4-bit activations",
        "conv1 and linear keep 8 bits",
        "its inputs have two scales",
        "# a comment version: 1",
        "onnxruntime",
        "1.31.1",
        "compress-aug run runs/iterative_prune/recipe.yaml --seed 0",
        "size_mb is 0.322",
        "110,474",
    ):
        assert expected in told, expected


def test_the_page_needs_no_network_and_no_script(report: dict[str, Any], tmp_path: Path) -> None:
    page = page_text(tmp_path, report)
    reader = Reader(page)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", page)
    assert not {"script", "link", "iframe", "img", "a"} & set(reader.tags)
    assert all(value.startswith("#") for name, value in reader.attributes if name.endswith(("href", "src")))
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in reader.attributes


def test_ids_are_unique_and_every_reference_has_its_id(report: dict[str, Any], tmp_path: Path) -> None:
    page = page_text(tmp_path, report)
    reader = Reader(page)
    found = [value for name, value in reader.attributes if name == "id"]
    assert len(found) == len(set(found))
    wanted = {value[1:] for name, value in reader.attributes if name.endswith("href")}
    wanted |= set(re.findall(r"url\(#([^)]+)\)", page))
    wanted |= {value for name, value in reader.attributes if name == "aria-labelledby"}
    assert wanted
    assert wanted <= set(found)


def test_the_plots_take_their_colours_from_the_page(report: dict[str, Any], tmp_path: Path) -> None:
    page = page_text(tmp_path, report)
    used = set(re.findall(r"var\((--plot-\w+)\)", page))
    assert len(used) == 6
    for name in used:
        assert page.count(f"{name}:") == 3, "for light, for dark, for paper"
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert not [code for drawing in drawings for code in re.findall(r"(?:fill|stroke): (#\w+)", drawing)]


def test_every_plot_is_told_in_words(report: dict[str, Any], tmp_path: Path) -> None:
    labels = [value for name, value in Reader(page_text(tmp_path, report)).attributes if name == "aria-label"]
    assert any("0: 92.80 %" in label and "6: 65.50 %" in label for label in labels)
    assert any("Magnitude by stage. 0: 14; 3: 8; 5: 4; 7: none." in label for label in labels)


def test_hostile_words_stay_words(report: dict[str, Any], tmp_path: Path) -> None:
    hostile = with_hostile_words(report) | {"version": 1}
    text = table_text(hostile)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[red]" in text
    page = page_text(tmp_path, hostile, f"version: 1 # {HOSTILE}\n")
    reader = Reader(page)
    assert "script" not in reader.tags
    assert reader.open == []
    assert '<script>alert("x")</script>[red]' in reader.words
    assert "\x1b" not in page
    assert "\u202e" not in page


def with_hostile_words(value: Any) -> Any:
    """The same report with every text in it, keys of free dictionaries included, made hostile."""
    if isinstance(value, dict):
        made = {key: with_hostile_words(inner) for key, inner in value.items()}
        if "versions" in made:
            made["versions"] = {HOSTILE: HOSTILE}
        return made
    if isinstance(value, list):
        return [with_hostile_words(inner) for inner in value]
    return HOSTILE if isinstance(value, str) else value


def test_an_unfinished_run_still_has_its_page(stopped: dict[str, Any], tmp_path: Path) -> None:
    page = page_text(tmp_path, stopped, recipe=None)
    assert "NOT FINISHED: 2 stages are done so far" in page
    assert "There is no recipe.yaml" in page
    assert Reader(page).tags.count("svg") >= 3
    empty = page_text(tmp_path, {"version": 1})
    assert "There is nothing to draw yet" in empty


def test_every_key_may_be_null(report: dict[str, Any], tmp_path: Path) -> None:
    bare = copy.deepcopy(report)
    for part in (bare, bare["original"], bare["data"], *bare["stages"], *bare["exports"]):
        for key in part:
            if key not in ("version", "original", "data", "stages", "exports"):
                part[key] = None
    assert table_text(bare, 80)
    assert Reader(page_text(tmp_path, bare)).open == []


@pytest.mark.parametrize("key", ["original", "stages", "exports", "data"])
def test_every_key_may_be_absent(report: dict[str, Any], tmp_path: Path, key: str) -> None:
    del report[key]
    assert table_text(report, 80)
    assert Reader(page_text(tmp_path, report)).open == []


def test_a_run_that_trains_nothing_is_drawn_over_its_stages(report: dict[str, Any], tmp_path: Path) -> None:
    report["stages"] = [row | {"history": None} for row in report["stages"] if row["word"] != "train"]
    reader = Reader(page_text(tmp_path, report))
    assert reader.tags.count("svg") == 2
    assert "stages done" in reader.words


def test_numbers_that_are_none_do_not_stop_the_page(report: dict[str, Any], tmp_path: Path) -> None:
    for row in report["stages"][0]["history"]:
        row |= {"loss": math.nan, "lr": 0.0, "validation_accuracy": math.inf}
    report["stages"][0]["loss"] = math.nan
    assert "nan" in page_text(tmp_path, report)


def test_half_a_character_does_not_stop_the_page(tmp_path: Path) -> None:
    assert "a\ufffdb" in page_text(tmp_path, {"version": 1, "recipe": "a\ud800b"})


def test_the_same_report_makes_the_same_page(report: dict[str, Any], tmp_path: Path) -> None:
    assert page_text(tmp_path, report) == page_text(tmp_path, report)


def test_what_is_drawn(report: dict[str, Any]) -> None:
    line = drawing.timeline(contract.as_report(report))
    assert [(span.start, span.end) for span in line.spans] == [
        *((0, 40), (40, 40), (40, 40), (40, 60), (60, 60)),
        *((60, 80), (80, 80), (80, 92), (92, 92)),
    ]
    assert line.unit == "epoch"


# What is not a report.


def test_searches_are_drawn_and_told(report: dict[str, Any], tmp_path: Path) -> None:
    sweep = {
        "kind": "magnitude",
        "kept": "m",
        "summaries": [
            {
                "sparsity": 0.0,
                "curve": [[None, 0.5, None, 1.4], [4, 0.6, None, 1.2]],
                "optimal": 4,
                "maximal": 4,
            },
            {
                "sparsity": 0.6,
                "curve": [[None, 0.4, 0.01, 1.5], [4, 0.3, 0.02, 1.9]],
                "optimal": None,
                "maximal": None,
            },
        ],
    }
    members = {
        "kind": "population",
        "kept": "p",
        "best_member": 1,
        "curves": [[0.1, 0.2], [0.2, 0.9], [None, None]],
    }
    report["stages"][0]["search"], report["stages"][1]["search"] = sweep, members
    drawn = {plot.title: plot for plot in plots.draw(Report.model_validate(report))}
    first, second = list(drawn)[-2:]
    assert "Magnitudes tried by stage 0" in first and "Members of the search of stage 1" in second
    assert "0 % zeros: 4, largest that is no worse than none 4" in drawn[first].description
    assert "60 % zeros: none, largest that is no worse than none none" in drawn[first].description
    assert "from 20.00 % to 90.00 %" in drawn[second].description
    assert drawn[second].svg.count("<path") > 3
    report["stages"][0]["search"] = {"kind": None, "curves": None, "summaries": [{}]}
    report["stages"][1]["search"] = None
    assert len(plots.draw(Report.model_validate(report))) == len(drawn) - 2


def test_a_folder_without_a_report_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no report\.json in"):
        write_page(tmp_path)
    with pytest.raises(RunFolderError, match="there is no folder"):
        read_report(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[" * 200_000, "cannot be read"),
        (b"[]", "holds a list"),
        (b"{}", "version None"),
        (b'{"version": 2}', "version 2"),
        (b'{"version": 1, "stages": 3}', "key stages"),
        (b'{"version": 1, "stages": [{"accuracy": "high"}]}', r"key stages\.0\.accuracy.*'high'"),
        (b'{"version": 1, "original": {"macs": 1' + b"0" * 400 + b"}}", r"key original\.macs"),
        (b'{"version": 1, "seed": 1' + b"0" * 5000 + b"}", "cannot be read"),
    ],
)
def test_a_broken_report_is_told_and_no_page_is_left(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(RunFolderError, match=told):
        write_page(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_the_report_is_read_without_torch_and_the_table_without_matplotlib() -> None:
    code = (
        "import sys, compress_aug.report as r; r.report_table({'version': 1}); "
        "print(sorted({'torch', 'matplotlib', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_template_ships_beside_the_code() -> None:
    assert (Path(contract.__file__).parent / "page.html.j2").is_file()


def test_the_steps_of_a_files_layers_are_told_in_one_line() -> None:
    layers = [
        {"layer": "stem", "quantizer": "relu", "max_steps": 1.0, "flipped": 3e-6, "values": 1_000_000},
        {"layer": "fc", "quantizer": "", "max_steps": 0.01, "flipped": 0.0, "values": 10},
    ]
    export = contract.Export.model_validate({"layers": layers})
    line = comparison.steps(export)
    assert line is not None and "3 of" in line and "1 quantizer " in line and "by 1 step at most" in line
    assert comparison.steps(contract.Export()) is None
    told = comparison.steps(contract.Export.model_validate({"layers": layers, "diverging": "stem"}))
    beyond = "is the first layer that differs by more than rounding explains"
    assert told == f"from equal inputs, stem {beyond}: in 3 of 1.00 M values, by 1 step at most"
    told = comparison.steps(contract.Export.model_validate({"layers": layers, "diverging": "other"}))
    assert told == f"from equal inputs, other {beyond}"
