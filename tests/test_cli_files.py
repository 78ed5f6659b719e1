"""compress-aug bench: files beside each other, a device's measurement beside this machine's, and each mistake."""

import json
import sys

import pytest
from toys import tiny_net

from compress_aug import cli, deploy

FILE = {
    "version": 1,
    "file": "kit/model.onnx",
    "bytes": 4000,
    "sha256": "0",
    "quantized": True,
    "p50_ms": 2.0,
    "p95_ms": 3.0,
    "load_ms": 40.0,
    "memory_mb": 60.0,
    "threads": 1,
    "batch": 1,
    "repeats": 200,
    "warmup": 20,
    "runtime": "onnxruntime 1.17.3",
    "versions": {"python": "3.11.2"},
    "cpu": "Raspberry Pi 4 Model B",
    "isa": ["asimd"],
    "cores": 4,
    "ratio": 0.5,
    "against": {"file": "kit\\model.float.onnx", "bytes": 9000, "p50_ms": 1.0, "p95_ms": 1.5},
    "note": "Integers take 2.00 times as long as floats.",
    "a key of a later version": 1,
}


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """Run `bench` in a folder with two files; gives (exit code, what it printed, its errors)."""
    monkeypatch.chdir(tmp_path)
    for name, width in (("model", 4), ("model.float", 8)):
        deploy.write(tiny_net(width=width), tmp_path / f"{name}.onnx", image_shape=(3, 8, 8))

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["compress-aug", "bench", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def rows_of(table):
    """The cells of each row of a printed table, by its first cell."""
    lines = [[cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")] for line in table]
    return {cells[0]: cells[1:] for cells in lines if len(cells) > 1 and cells[0]}


def test_two_files_stand_below_each_other_and_go_to_json(call, tmp_path):
    code, out, err = call(
        "model.onnx", "--against", "model.float.onnx", "--repeats", 3, "--batch", 2, "--json", "a.json"
    )
    assert (code, err) == (0, "")
    rows = rows_of(out.splitlines())
    found = deploy.read_bench(tmp_path / "a.json")
    assert rows["model.onnx"][1] == f"{found.p50_ms:.3f}"
    assert rows["model.float.onnx"][1] == f"{found.against.p50_ms:.3f}"
    assert f"{found.ratio:.2f}x as fast as model.float.onnx" in out
    assert (found.batch, found.repeats, found.threads) == (2, 3, 1)


def test_a_devices_measurement_stands_beside_this_machines(call, tmp_path):
    (tmp_path / "device.json").write_text(json.dumps({**FILE, "threads": 2, "batch": 3}))
    code, out, err = call("model.onnx", "--against", "device.json", "--repeats", 3, "--json", "host.json")
    assert (code, err) == (0, "")
    here = deploy.read_bench(tmp_path / "host.json")
    # Measured as on the device: its threads, its batch, in turns with the file of the same name.
    assert (here.threads, here.batch) == (2, 3)
    assert here.against.file.endswith("model.float.onnx")
    rows = rows_of(out.splitlines())
    assert rows["p50 ms"] == [f"{here.p50_ms:.3f}", "2.000", f"{2.0 / here.p50_ms:.2f}"]
    assert rows["memory MB"][1] == "60.0" and rows["speed against it"][1] == "0.50"
    assert rows["machine"][1].startswith("Raspberry Pi 4")
    assert f"the two files are not the same ({here.bytes:,} and 4,000 bytes)" in out
    assert "note: Integers take 2.00 times as long as floats." in out

    # The same from two measurements, without measuring again.
    code, again, err = call("host.json", "--against", "device.json")
    assert (code, err) == (0, "")
    assert rows_of(again.splitlines())["p50 ms"] == rows["p50 ms"]


def test_a_measurement_alone_is_shown(call, tmp_path):
    (tmp_path / "device.json").write_text(json.dumps(FILE))
    code, out, _ = call("device.json")
    assert code == 0 and rows_of(out.splitlines())["model.onnx"][1] == "2.000"
    assert "model.onnx runs 0.50x as fast as model.float.onnx." in out and "Raspberry Pi 4" in out


def test_the_same_file_on_both_sides_is_no_note(call, tmp_path):
    call("model.onnx", "--repeats", 2, "--json", "a.json")
    code, out, _ = call("a.json", "--against", "a.json")
    assert code == 0 and "note" not in out
    assert rows_of(out.splitlines())["p50 ms"][2] == "1.00"


def test_what_a_device_says_cannot_move_the_cursor(call, tmp_path):
    (tmp_path / "device.json").write_text(json.dumps({**FILE, "cpu": "a\x1b[2Jb", "note": "c\x1b[2Jd"}))
    _, out, _ = call("device.json")
    assert "\x1b" not in out and "a\ufffd[2Jb" in out and "c\ufffd[2Jd" in out


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is not JSON: expected what bench.py --json FILE writes."),
        ("[]", "is not what bench.py --json FILE writes: the whole:"),
        (
            json.dumps({**FILE, "p50_ms": "fast"}),
            "is not what bench.py --json FILE writes: p50_ms: input should be",
        ),
        (json.dumps({**FILE, "p50_ms": float("inf")}), "p50_ms: input should be a finite number"),
        (json.dumps({**FILE, "against": {"file": "x"}}), "against.bytes: field required"),
    ],
)
def test_a_measurement_that_is_none_is_told(call, tmp_path, content, sentence):
    (tmp_path / "device.json").write_text(content)
    for arguments in (("model.onnx", "--against", "device.json"), ("device.json",)):
        code, out, err = call(*arguments)
        assert (code, out) == (2, "") and sentence in err and "device.json" in err


def test_a_measurement_is_not_compared_with_a_file(call, tmp_path):
    (tmp_path / "device.json").write_text(json.dumps(FILE))
    code, _, err = call("device.json", "--against", "model.onnx")
    assert code == 2 and "is compared with another one, not with the file model.onnx" in err
