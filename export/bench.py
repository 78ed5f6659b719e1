"""Time an ONNX file on this device, alone or in turns with another one.

    python bench.py MODEL.onnx [--against OTHER.onnx] [--threads 1] [--repeats 200] [--warmup 20] [--batch 1]

Needs numpy and onnxruntime, nothing else. Prints one line of JSON, times in milliseconds for one batch:

    {"file": ..., "bytes": ..., "p50_ms": ..., "p95_ms": ..., "threads": 1, "batch": 1, "repeats": 200,
     "runtime": "onnxruntime ...", "cpu": ..., "isa": [...]}

With --against there are also "against", the same first four keys of the other file, and "ratio", how many
times faster MODEL is by the medians. A mistake is told in one sentence, with exit code 2.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

# What decides how fast integer kernels are, by the names that Linux gives them.
_ISA = (
    *(
        "sse4_1",
        "avx2",
        "avx512f",
        "avx512bw",
        "avx_vnni",
        "avx512_vnni",
        "avx512_bf16",
        "amx_int8",
        "amx_bf16",
    ),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)


class Wrong(Exception):
    """A mistake of the user, told in one sentence."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parse(arguments)
    try:
        result = bench(
            options.model,
            against=options.against,
            threads=options.threads,
            repeats=options.repeats,
            warmup=options.warmup,
            batch=options.batch,
        )
    except Wrong as mistake:
        print(mistake, file=sys.stderr)
        return 2
    print(json.dumps(result))
    return 0


def bench(
    model: Path,
    *,
    against: Path | None = None,
    threads: int = 1,
    repeats: int = 200,
    warmup: int = 20,
    batch: int = 1,
) -> dict[str, Any]:
    """Time `model`, in turns with `against` if given; returns what `main` prints."""
    paths = [model] if against is None else [model, against]
    runs = [_prepare(path, threads, batch) for path in paths]
    for run in runs:
        for _ in range(warmup):
            run()
    times = _in_turns(runs, repeats)
    sides = [_side(path, times[number]) for number, path in enumerate(paths)]
    result = {
        **sides[0],
        "threads": threads,
        "batch": batch,
        "repeats": repeats,
        "runtime": f"onnxruntime {onnxruntime.__version__}",
        "cpu": cpu_name(),
        "isa": isa_flags(),
    }
    if against is not None:
        result["against"] = sides[1]
        result["ratio"] = round(sides[1]["p50_ms"] / sides[0]["p50_ms"], 4)
    return result


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time an ONNX file on this device; prints one line of JSON.")
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument(
        "--against", type=Path, metavar="OTHER.onnx", help="time this file in turns with the first"
    )
    parser.add_argument("--threads", type=_positive, default=1, help="threads that one layer may use (1)")
    parser.add_argument("--repeats", type=_positive, default=200, help="timed runs of each file (200)")
    parser.add_argument("--warmup", type=_count, default=20, help="untimed runs before (20)")
    parser.add_argument("--batch", type=_positive, default=1, help="images in one run (1)")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, found {text!r}")
    return int(text)


def _positive(text: str) -> int:
    if _count(text) == 0:
        raise argparse.ArgumentTypeError("expected a number of at least 1, found 0")
    return int(text)


def _prepare(path: Path, threads: int, batch: int) -> Callable[[], None]:
    """A function that runs the file once, on images that stay the same."""
    session = load(path, threads)
    feeds = {entry.name: _example(entry, path, batch) for entry in session.get_inputs()}

    def run() -> None:
        try:
            session.run(None, feeds)
        # The runtime raises one class for each of its status codes, all of them plain Exceptions.
        except Exception as error:
            raise Wrong(f"{path} does not run on a batch of {batch}: {_first_line(error)}") from error

    return run


def load(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """The file as a session on the CPU."""
    if not path.is_file():
        raise Wrong(f"There is no file {path}.")
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise Wrong(f"{path} is not a model that onnxruntime can load: {_first_line(error)}") from error


def _example(entry: onnxruntime.NodeArg, path: Path, batch: int) -> np.ndarray:
    shape = [
        batch if place == 0 and not isinstance(size, int) else size for place, size in enumerate(entry.shape)
    ]
    if not all(isinstance(size, int) for size in shape):
        raise Wrong(
            f"{path} leaves the size of its input {entry.name} open: {entry.shape}; only a batch may be."
        )
    if entry.type != "tensor(float)":
        raise Wrong(f"{path} wants {entry.type} for its input {entry.name}; only tensor(float) can be timed.")
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def _in_turns(runs: list[Callable[[], None]], repeats: int) -> list[list[float]]:
    """Seconds of each run of each file. The files take turns: what slows the machine slows all of them."""
    times: list[list[float]] = [[] for _ in runs]
    gc.disable()
    try:
        for _ in range(repeats):
            for number, run in enumerate(runs):
                # Untimed: brings this file's weights back into the caches that the other one has used.
                run()
                start = time.perf_counter()
                run()
                times[number].append(time.perf_counter() - start)
    finally:
        gc.enable()
    return times


def _side(path: Path, seconds: list[float]) -> dict[str, Any]:
    p50, p95 = np.percentile(np.array(seconds) * 1e3, [50, 95])
    size = path.stat().st_size
    return {"file": str(path), "bytes": size, "p50_ms": round(float(p50), 5), "p95_ms": round(float(p95), 5)}


def cpu_name() -> str | None:
    """What this processor (or single-board computer) calls itself; None if it does not."""
    named = _cpuinfo("model name") or _cpuinfo("Model") or _cpuinfo("Hardware")
    return named or platform.processor() or platform.machine() or None


def isa_flags() -> list[str] | None:
    """The instruction sets that matter to integer kernels; None where the system does not tell."""
    flags = _cpuinfo("flags") or _cpuinfo("Features")
    if flags is None:
        return None
    present = set(flags.split())
    return [name for name in _ISA if name in present]


def _cpuinfo(key: str) -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == key and value.strip():
            return value.strip()
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".") + "."


if __name__ == "__main__":
    sys.exit(main())
