"""The budget of an exported file: every limit that is missed is told, after everything is written."""

import json
import sys

import onnx
import pytest
from rich.console import Console
from toys import tiny_data, tiny_net

import compress_aug
from compress_aug import Export, Recipe, Train
from compress_aug.errors import BudgetMissed
from compress_aug.targets import load_target

ROW = {
    "latency_ms": {"p50": 2.0},
    "bytes": 500_000,
    "accuracy": 0.9,
    "memory_mb": 70.0,
    "proxy": True,
    "target": "raspberry_pi_4",
}


@pytest.mark.parametrize(
    ("limits", "change", "misses"),
    [
        ({}, {}, []),
        ({"latency_ms": 2.0, "size_mb": 0.5, "accuracy": 0.9, "memory_mb": 70.0}, {}, []),
        (
            {"latency_ms": 1.9},
            {},
            ["latency_ms is 2, at most 1.9 is allowed (measured on this host, a proxy"],
        ),
        ({"size_mb": 0.4}, {}, ["size_mb is 0.5, at most 0.4 is allowed"]),
        ({"accuracy": 0.95}, {}, ["accuracy is 0.9000, at least 0.95 is wanted"]),
        ({"memory_mb": 64}, {}, ["memory_mb is 70, at most 64 is allowed (measured on this host, a proxy"]),
        ({"memory_mb": 64}, {"proxy": False}, ["memory_mb is 70, at most 64 is allowed"]),
        ({"memory_mb": 64}, {"memory_mb": None}, ["memory_mb is not known"]),
        (
            {"latency_ms": 1, "size_mb": 0.1, "memory_mb": 1, "accuracy": 1.0},
            {},
            ["lat", "size", "mem", "acc"],
        ),
    ],
)
def test_each_limit_that_is_missed_is_one_sentence(limits, change, misses):
    found = Export(budget=limits).budget.misses({**ROW, **change})
    assert len(found) == len(misses)
    assert all(sentence.startswith(miss) for sentence, miss in zip(found, misses, strict=True))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell the peak of a process")
def test_a_missed_memory_budget_fails_the_run_with_everything_written(tmp_path):
    stages = [
        Train(epochs=1, batch_size=16, lr=0.05, precision="float32"),
        Export(budget={"memory_mb": 1.0}, kit=True),
    ]
    with pytest.raises(BudgetMissed, match=r"memory_mb is \d+(\.\d+)?, at most 1 is allowed"):
        compress_aug.run(
            Recipe(stages, name="memory"),
            model=tiny_net(),
            data=tiny_data(),
            out=tmp_path / "run",
            device="cpu",
            console=Console(quiet=True),
        )
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    [row] = report["exports"]
    assert report["finished"] and row["memory_mb"] > 1 and len(row["misses"]) == 1
    # A float model has no float twin: the kit holds the file alone.
    assert (tmp_path / "run" / "model.kit" / "model.onnx").is_file()
    assert not (tmp_path / "run" / "model.kit" / "model.float.onnx").exists()


def test_a_target_says_which_operators_its_files_have(tmp_path):
    own = tmp_path / "late.yaml"
    own.write_text(load_target("host_cpu").as_yaml().replace("opset: 13", "opset: 21"))
    compress_aug.run(
        Recipe([Export()], name="late", target=str(own)),
        model=tiny_net(),
        data=tiny_data(),
        out=tmp_path / "run",
        device="cpu",
        console=Console(quiet=True),
    )
    written = onnx.load(str(tmp_path / "run" / "model.onnx"))
    assert [(entry.domain, entry.version) for entry in written.opset_import] == [("", 21)]
