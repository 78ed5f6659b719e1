"""prune_channels in a recipe: budgets of the real file, in the form in which the recipe ends, round by round."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch
from rich.console import Console
from toys import tiny_data, tiny_net

import compress_aug
from compress_aug import Recipe, deploy, load_recipe
from compress_aug.channels import cut_channels
from compress_aug.deploy.latency import Latency
from compress_aug.errors import PruneError, RecipeError
from compress_aug.models import shufflenet_v2
from compress_aug.running import check
from compress_aug.stages import Export, PruneChannels, Quantize, Train
from compress_aug.surgery import surgery_log

WIDTH = 32


def recipe(folder: Path, stages: str, target: str = "host_cpu") -> Any:
    path = folder / "recipe.yaml"
    path.write_text(f"version: 1\ntarget: {target}\nstages:\n{stages}")
    return load_recipe(path)


def ran(folder: Path, stages: str, **given: Any) -> Any:
    out = io.StringIO()
    result = compress_aug.run(
        recipe(folder, stages, given.pop("target", "host_cpu")),
        **{"model": tiny_net(width=WIDTH), "data": tiny_data(), **given},
        device="cpu",
        out=folder / "run",
        console=Console(file=out, width=200),
    )
    return SimpleNamespace(report=result.report, model=result.model, said=out.getvalue())


def rows(result: Any) -> list[dict[str, Any]]:
    return [row for row in result.report["stages"] if row["word"] == "prune_channels"]


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """What was timed; a file takes 1 ms per output channel of its first layer, quantized ones half of that."""
    seen: list[SimpleNamespace] = []

    def latency(path: Path, *, threads: int, **_: Any) -> Any:
        graph = onnx.load(str(path)).graph
        quantized = any(node.op_type == "QuantizeLinear" for node in graph.node)
        first = next(node for node in graph.node if node.op_type == "Conv")
        shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "DequantizeLinear":
                shapes[node.output[0]] = shapes.get(node.input[0])
        channels = shapes[first.input[1]][0]
        seen.append(SimpleNamespace(path=path, quantized=quantized, channels=channels, threads=threads))
        p50 = channels / (2 if quantized else 1)
        return Latency(p50, p50, threads, 1, "none", None, None, against_p50_ms=p50, against_p95_ms=p50)

    monkeypatch.setattr(deploy, "latency", latency)
    return seen


def trials(seen: list[SimpleNamespace]) -> list[SimpleNamespace]:
    return [file for file in seen if file.path.name == "trial.onnx"]


# latency_ms


def test_latency_is_that_of_the_file_in_the_form_in_which_the_recipe_ends(tmp_path: Path, files: Any) -> None:
    result = ran(
        tmp_path,
        "  - prune_channels: {until: {latency_ms: 8}}\n  - train: {epochs: 1}\n"
        "  - quantize: {calibrate: 32}\n  - export\n",
        target="raspberry_pi_4",
    )
    (row,) = rows(result)
    # Half a millisecond a channel: 16 of 32 stay, where a float file would need 8.
    assert row["reached"] == {"latency_ms": 8.0} and result.model.get_submodule("0").out_channels == 16
    assert row["form"] == "quantized" and all(file.quantized for file in trials(files))
    assert row["trials"][0] == {"ratio": 0.0, "value": 16.0}
    assert {"ratio": 0.5, "value": 8.0} in row["trials"]
    # Each cut is measured in three processes.
    assert len(trials(files)) == 3 * len(row["trials"])
    assert {file.threads for file in trials(files)} == {4}
    assert "latency_ms was measured on this machine, a proxy for raspberry_pi_4" in row["notes"]
    assert 'left whole: "8" (its outputs are those of the model)' in row["notes"]
    assert any("as a quantized file; tried" in note for note in row["notes"])
    assert "cut channels, latency_ms ≤ 8" in result.said
    assert not any(file.path.exists() for file in trials(files))


@pytest.mark.parametrize(
    ("form", "after", "quantized"),
    [
        ("", "  - export\n", False),
        ("", "  - export\n  - quantize: {calibrate: 32}\n", False),
        (", form: quantized", "  - export\n", True),
        (", form: float", "  - quantize: {calibrate: 32}\n", False),
        ("", "  - prune_channels: {until: {ratio: 0.8}}\n  - quantize: {calibrate: 32}\n", True),
    ],
)
def test_the_form_can_be_said(tmp_path: Path, files: Any, form: str, after: str, quantized: bool) -> None:
    result = ran(tmp_path, f"  - prune_channels: {{until: {{latency_ms: 24}}{form}}}\n{after}")
    assert {file.quantized for file in trials(files)} == {quantized}
    assert rows(result)[0]["form"] == ("quantized" if quantized else "float")


def test_a_trial_gets_the_bits_of_the_quantize_that_follows() -> None:
    following = (Train(epochs=1), Quantize(weights=4, activations=5, calibrate=500), Export())
    setup: Any = SimpleNamespace(following=following)
    stage = PruneChannels(until={"size_mb": 1.0})
    chosen = stage._quantize(setup)
    assert (chosen.weights, chosen.activations, chosen.calibrate) == (4, 5, 32)
    default = stage.model_copy(update={"form": "quantized"})._quantize(SimpleNamespace(following=()))
    assert (default.weights, default.activations) == (8, 8)


def test_a_trial_survives_statistics_that_a_cut_made_wrong(tmp_path: Path, files: Any) -> None:
    # As it is, hardly anything reaches the classifier, and its bias fits no integer.
    model = tiny_net(width=WIDTH)
    with torch.no_grad():
        model[1].running_var.fill_(1e8)
        model[4].running_var.fill_(1e8)
        model[8].bias.fill_(10.0)
    stage = "  - prune_channels: {until: {latency_ms: 8}, form: quantized}\n"
    assert rows(ran(tmp_path, stage, model=model))[0]["reached"] == {"latency_ms": 8.0}


def test_what_is_fast_enough_stays_and_what_cannot_be_is_refused(tmp_path: Path, files: Any) -> None:
    (tmp_path / "a").mkdir()
    result = ran(tmp_path / "a", "  - prune_channels: {until: {latency_ms: 32}}\n")
    assert result.model.get_submodule("0").out_channels == WIDTH
    assert rows(result)[0]["trials"] == [{"ratio": 0.0, "value": 32.0}]
    assert "the model meets latency_ms as it is: no channel was cut" in rows(result)[0]["notes"]
    with pytest.raises(PruneError, match="brings latency_ms down to 8 at the least, not to 3"):
        ran(tmp_path, "  - prune_channels: {until: {latency_ms: 3}}\n")


def test_a_check_writes_one_file_and_times_none(tmp_path: Path, files: Any) -> None:
    stages = "  - prune_channels: {until: {latency_ms: 0.001}}\n  - quantize: {calibrate: 32}\n"
    written = []
    write = deploy.write

    def watched(*given: Any, **named: Any) -> Any:
        written.append(given[1])
        return write(*given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deploy, "write", watched)
        report = check(
            recipe(tmp_path, stages),
            model=tiny_net(width=WIDTH),
            data=tiny_data(),
            device="cpu",
            console=Console(quiet=True),
        )
    assert len(written) == 1 and files == []
    notes = report["stages"][0]["notes"]
    assert "latency_ms is not measured in a check: one cut was written as a quantized file" in notes


def test_a_real_latency_is_reached(tmp_path: Path) -> None:
    (row,) = rows(ran(tmp_path, "  - prune_channels: {until: {latency_ms: 10000}}\n"))
    assert 0 < row["reached"]["latency_ms"] <= 10000 and row["form"] == "float"


def test_a_search_shows_on_a_terminal_how_many_trials_are_done(tmp_path: Path, files: Any) -> None:
    shown: list[tuple[str, int, int]] = []

    @contextmanager
    def counting(title: str) -> Iterator[Callable[[int, int], None]]:
        yield lambda done, total: shown.append((title, done, total))

    stage = PruneChannels(until={"latency_ms": 8})  # type: ignore[arg-type]

    class Watched(PruneChannels):
        def run(self, state: Any, setup: Any) -> Any:
            return stage.run(state, replace(setup, counting=counting))

    result = compress_aug.run(
        Recipe([Watched(until={"latency_ms": 8})], name="toy"),  # type: ignore[arg-type]
        model=tiny_net(width=WIDTH),
        data=tiny_data(),
        device="cpu",
        out=tmp_path / "run",
        console=Console(quiet=True),
    )
    measured = len(result.report["stages"][0]["trials"])
    assert shown == [("measuring latency_ms", done, 12) for done in range(measured + 1)] and measured > 1


def test_a_ratio_that_rounding_swallows_is_told(tmp_path: Path) -> None:
    (row,) = rows(ran(tmp_path, "  - prune_channels: {until: {ratio: 0.02}}\n"))
    assert row["reached"] == {"ratio": 0.0}
    assert "no channel was cut: that takes a larger ratio, or a round_to below 8" in row["notes"]


# size_mb


@pytest.mark.parametrize(("ends", "limit"), [("  - quantize: {calibrate: 32}\n", 0.009), ("", 0.02)])
def test_size_is_that_of_the_exported_file(tmp_path: Path, ends: str, limit: float) -> None:
    stages = f"  - prune_channels: {{until: {{size_mb: {limit}}}, round_to: 4}}\n{ends}  - export\n"
    result = ran(tmp_path, stages)
    (row,) = rows(result)
    (export,) = result.report["exports"]
    assert export["bytes"] == pytest.approx(1e6 * row["reached"]["size_mb"], rel=0.01)
    assert 0.7 * limit < row["reached"]["size_mb"] <= limit
    values = [trial["value"] for trial in sorted(row["trials"], key=lambda trial: trial["ratio"])]
    assert values == sorted(values, reverse=True) and values[0] > limit


# taylor, shuffles, rounds


def test_taylor_reads_training_images_the_same_on_every_run(tmp_path: Path) -> None:
    stages = "  - prune_channels: {until: {ratio: 0.5}, importance: taylor, images: 32}\n"
    removed = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        removed.append(surgery_log(ran(tmp_path / name, stages).model)[-1]["removed"])
    assert removed[0] == removed[1]
    by_size = cut_channels(tiny_net(width=WIDTH), torch.zeros(1, 3, 8, 8), until={"ratio": 0.5})
    assert surgery_log(by_size)[-1]["removed"] != removed[0]


def test_a_shuffle_is_named(tmp_path: Path) -> None:
    result = ran(
        tmp_path,
        "  - prune_channels: {until: {ratio: 0.3}, importance: taylor, images: 8}\n",
        model=shufflenet_v2(4, width=0.5),
        data=tiny_data(16, 4, 4, size=16),
    )
    in_parts, left = rows(result)[0]["notes"]
    assert (
        in_parts.startswith("torch-pruning cannot follow the whole model: cut were")
        and "Error" not in in_parts
    )
    assert surgery_log(result.model)[-1]["followed_in_parts"].startswith("ZeroDivisionError")
    more = '"stage2.0.branch1.2", "stage2.0.branch2.5" and 17 more (its channels go through view, which'
    assert more in left and '"fc" (its outputs' in left


@pytest.mark.parametrize(
    ("goal", "shares"),
    [("macs", (0.7, 0.4, 0.2)), ("ratio", (0.25, 0.5, 0.75)), ("parameters", (0.6, 0.3, 0.1))],
)
def test_rounds_of_cutting_and_training(tmp_path: Path, goal: str, shares: tuple[float, ...]) -> None:
    rounds = ", ".join(f"{{share: {share}}}" for share in shares)
    result = ran(
        tmp_path,
        f"  - repeat:\n      rounds: [{rounds}]\n      stages:\n"
        f"        - prune_channels: {{until: {{{goal}: $share}}, round_to: 2}}\n"
        "        - train: {epochs: 1, lr: 0.01}\n  - quantize: {calibrate: 32}\n  - export\n",
    )
    cuts, original = rows(result), result.report["original"]
    for row, share in zip(cuts, shares, strict=True):
        if goal == "ratio":
            assert row["reached"]["ratio"] == pytest.approx(share, abs=0.05)
        else:
            assert row["reached"][goal] <= share
            # Relative to the model that came in, not to the round before.
            assert row[goal] / original[goal] == pytest.approx(row["reached"][goal])
    assert [row["macs"] for row in cuts] == sorted({row["macs"] for row in cuts}, reverse=True)
    assert result.report["finished"] and result.report["exports"][0]["top1_agreement"] > 0.9


# What is refused.


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ("until: {latency_ms: 0}", r"expected a number above 0\.0, found 0"),
        (
            "until: {latency_ms: 3, size_mb: 1}",
            "expected exactly one of ratio, parameters, macs, latency_ms, size_mb",
        ),
        (
            "until: {ratio: 0.5}, form: float",
            "form: only until latency_ms and size_mb look at the exported file",
        ),
        (
            "until: {ratio: 0.5}, images: 9",
            "images: only importance taylor reads images, found importance l1",
        ),
        ("until: {latency: 3}", "latency_ms"),
        ("until: 0.5", r"until: expected what to cut until and how far, such as {macs: 0\.5} .*, found 0\.5"),
    ],
)
def test_refuses_keys_that_mean_nothing_together(tmp_path: Path, keys: str, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        recipe(tmp_path, f"  - prune_channels: {{{keys}}}\n")
