"""Time an ONNX file on this device, alone or in turns with another one, such as the same net in float.

    python bench.py MODEL.onnx [--against OTHER.onnx] [--threads 1] [--repeats 200] [--warmup 20] [--batch 1]
                    [--runtime onnxruntime] [--json FILE]

Needs numpy and the runtime (onnxruntime, or openvino with --runtime openvino), nothing else. Prints a table; with
--json FILE the result goes to that file as well, and --json - prints it in one line instead of the table. Times are
milliseconds for one batch:

    {"version": 1, "file": ..., "bytes": ..., "sha256": ..., "quantized": true, "p50_ms": ..., "p95_ms": ...,
     "load_ms": ..., "memory_mb": ..., "threads": 1, "batch": 1, "repeats": 200, "warmup": 20,
     "runtime": "onnxruntime ...", "versions": {...}, "cpu": ..., "isa": [...], "cores": 4}

load_ms: until the file could run. memory_mb: the most that a process held (10^6 bytes, resident, Python and the
runtime included) which loaded this file alone and ran it; runtime_mb is what it held before it loaded the file.
With --against there are also "against", the same of the other file, "ratio", how many times faster MODEL is by the
medians, and, where integers turn out slower than floats, "note": why that may be, and what helps.
OpenVINO is given the batch's shape before it compiles the file, and computes in float32 what is not on integers: left
to itself it takes bfloat16 where the processor has it, and with an open batch it computes with other roundings.
A mistake is told in one sentence, with exit code 2.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

try:
    import numpy as np
except ImportError as error:
    print(f"There is no {error.name} in this Python: python -m pip install numpy", file=sys.stderr)
    sys.exit(2)

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

# Each of these multiplies and adds 8-bit integers in one go; without one, floats are often as fast.
_MULTIPLY_INTEGERS = {"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"}


# What can run a file; each is imported only where it is asked for.
RUNTIMES = ("onnxruntime", "openvino")


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
            runtime=options.runtime,
        )
        if options.json == "-":
            print(json.dumps(result))
            return 0
        print(table(result))
        if options.json is not None:
            _save(result, Path(options.json))
    except Wrong as mistake:
        print(mistake, file=sys.stderr)
        return 2
    return 0


def bench(
    model: Path,
    *,
    against: Path | None = None,
    threads: int = 1,
    repeats: int = 200,
    warmup: int = 20,
    batch: int = 1,
    runtime: str = "onnxruntime",
) -> dict[str, Any]:
    """Time `model`, in turns with `against` if given; returns what the top of this file describes."""
    paths = [model] if against is None else [model, against]
    for path in paths:
        _check_there(path)
    # Memory is counted in whole processes, so the other file gets one of its own.
    alone = [] if against is None else [_in_a_process(against, threads, warmup, batch, runtime)]
    version = runtime_version(runtime)
    runtime_mb = peak_memory_mb()
    began = time.perf_counter()
    runs = [_prepare(model, threads, batch, runtime)]
    load_ms = 1e3 * (time.perf_counter() - began)
    _repeat(runs[0], max(warmup, 1))
    costs = [{"load_ms": round(load_ms, 3), "memory_mb": peak_memory_mb(), "runtime_mb": runtime_mb}, *alone]
    if against is not None:
        runs.append(_prepare(against, threads, batch, runtime))
        _repeat(runs[1], warmup)
    times = _in_turns(runs, repeats)
    sides = [_side(path, times[number], costs[number]) for number, path in enumerate(paths)]
    result = {
        "version": 1,
        **sides[0],
        "threads": threads,
        "batch": batch,
        "repeats": repeats,
        "warmup": warmup,
        "runtime": f"{runtime} {version}",
        "versions": {"python": platform.python_version(), "numpy": np.__version__, runtime: version},
        "cpu": cpu_name(),
        "isa": isa_flags(),
        "cores": os.cpu_count(),
    }
    if against is not None:
        result["against"] = sides[1]
        result["ratio"] = round(sides[1]["p50_ms"] / sides[0]["p50_ms"], 4)
        slower = why_slower(sides, result["isa"])
        if slower:
            result["note"] = slower
    return result


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time an ONNX file on this device.")
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument(
        "--against", type=Path, metavar="OTHER.onnx", help="time this file in turns with the first"
    )
    parser.add_argument("--threads", type=_positive, default=1, help="threads that one layer may use (1)")
    parser.add_argument("--repeats", type=_positive, default=200, help="timed runs of each file (200)")
    parser.add_argument("--warmup", type=_count, default=20, help="untimed runs before (20)")
    parser.add_argument("--batch", type=_positive, default=1, help="images in one run (1)")
    parser.add_argument(
        "--runtime", choices=RUNTIMES, default=RUNTIMES[0], help="what runs the file (onnxruntime)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the result there too; - prints it alone")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, found {text!r}")
    return int(text)


def _positive(text: str) -> int:
    if _count(text) == 0:
        raise argparse.ArgumentTypeError("expected a number of at least 1, found 0")
    return int(text)


def _save(result: dict[str, Any], path: Path) -> None:
    try:
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise Wrong(f"{path} cannot be written: {error.strerror or error}.") from error


class Loaded(NamedTuple):
    """A file that a runtime has loaded.

    inputs: name, sizes (no number where one is left open) and type of each, as the runtime calls it
    run:    takes the inputs by their names
    """

    inputs: list[tuple[str, list[Any], str]]
    run: Callable[[dict[str, np.ndarray]], Any]


def _prepare(path: Path, threads: int, batch: int, runtime: str) -> Callable[[], None]:
    """A function that runs the file once, on images that stay the same."""
    loaded = load(path, threads, runtime, batch)
    feeds = {entry[0]: _example(entry, path, batch) for entry in loaded.inputs}

    def run() -> None:
        try:
            loaded.run(feeds)
        # A runtime raises one class for each of its status codes, or RuntimeError for all.
        except Exception as error:
            raise Wrong(f"{path} does not run on a batch of {batch}: {_first_line(error)}") from error

    return run


def load(path: Path, threads: int, runtime: str = "onnxruntime", batch: int = 1) -> Loaded:
    """The file on the CPU, in one of the RUNTIMES."""
    _check_there(path)
    module = _imported(runtime)
    try:
        return (_in_openvino if runtime == "openvino" else _in_onnxruntime)(module, path, threads, batch)
    except Wrong:
        raise
    except Exception as error:
        raise Wrong(f"{path} is not a model that {runtime} can load: {_first_line(error)}") from error


def _in_onnxruntime(onnxruntime: Any, path: Path, threads: int, batch: int) -> Loaded:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    inputs = [(entry.name, list(entry.shape), entry.type) for entry in session.get_inputs()]
    return Loaded(inputs, lambda feeds: session.run(None, feeds))


def _in_openvino(openvino: Any, path: Path, threads: int, batch: int) -> Loaded:
    core = openvino.Core()
    model = core.read_model(str(path))
    inputs = []
    for entry in model.inputs:
        sizes = [size.get_length() if size.is_static else "?" for size in entry.partial_shape]
        kind = "tensor(float)" if entry.element_type == openvino.Type.f32 else str(entry.element_type)
        inputs.append((entry.any_name, sizes, kind))
    model.reshape({entry[0]: _sizes(entry, path, batch) for entry in inputs})
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return Loaded(inputs, request.infer)


def _imported(runtime: str) -> Any:
    try:
        return importlib.import_module(runtime)
    except ImportError:
        raise Wrong(
            f"There is no {runtime} in this Python: python -m pip install {runtime}, or choose another --runtime."
        ) from None


def runtime_version(runtime: str) -> str:
    """Its version number; of OpenVINO's long one the part that counts releases."""
    return str(_imported(runtime).__version__).partition("-")[0]


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise Wrong(f"There is no file {path}.")


def _example(entry: tuple[str, list[Any], str], path: Path, batch: int) -> np.ndarray:
    sizes = _sizes(entry, path, batch)
    if entry[2] != "tensor(float)":
        raise Wrong(f"{path} wants {entry[2]} for its input {entry[0]}; only tensor(float) can be timed.")
    return np.random.default_rng(0).standard_normal(sizes, dtype=np.float32)


def _sizes(entry: tuple[str, list[Any], str], path: Path, batch: int) -> list[int]:
    """The sizes of an input, for so many images."""
    name, given, _ = entry
    sizes = [batch if place == 0 and not isinstance(size, int) else size for place, size in enumerate(given)]
    if not all(isinstance(size, int) for size in sizes):
        raise Wrong(f"{path} leaves the size of its input {name} open: {given}; only a batch may be.")
    return sizes


def _repeat(run: Callable[[], None], times: int) -> None:
    for _ in range(times):
        run()


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


def _in_a_process(path: Path, threads: int, warmup: int, batch: int, runtime: str) -> dict[str, Any]:
    """What a file costs to load and hold, by this script in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), str(path.resolve()), "--repeats=1", "--json=-"]
    command += [f"--threads={threads}", f"--warmup={warmup}", f"--batch={batch}", f"--runtime={runtime}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"its process ended with code {done.returncode}"]
        raise Wrong(said[-1].replace(str(path.resolve()), str(path)))
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return {key: found[key] for key in ("load_ms", "memory_mb", "runtime_mb")}


def peak_memory_mb() -> float | None:
    """The most memory that this process has held so far, in 10^6 bytes; None where the system does not tell."""
    # Not getrusage on Linux: its peak includes that of the program which started this one.
    held = _told("/proc/self/status", "VmHWM")
    if held is not None:
        return round(int(held.split()[0]) * 1024 / 1e6, 2)
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 2)


def _side(path: Path, seconds: list[float], cost: dict[str, Any]) -> dict[str, Any]:
    p50, p95 = np.percentile(np.array(seconds) * 1e3, [50, 95])
    content = path.read_bytes()
    return {
        "file": str(path),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        # Operators stand in the file by their names.
        "quantized": b"DequantizeLinear" in content,
        "p50_ms": round(float(p50), 5),
        "p95_ms": round(float(p95), 5),
        **cost,
    }


def why_slower(sides: list[dict[str, Any]], isa: list[str] | None) -> str | None:
    """Why integers may be slower than floats here and what helps; None if they are not, or are not compared."""
    integer = [side for side in sides if side["quantized"]]
    floats = [side for side in sides if not side["quantized"]]
    if len(integer) != 1 or len(floats) != 1 or integer[0]["p50_ms"] <= floats[0]["p50_ms"]:
        return None
    times = integer[0]["p50_ms"] / floats[0]["p50_ms"]
    said = [f"On this device integers take {times:.2f} times as long as floats."]
    if isa is not None and not _MULTIPLY_INTEGERS & set(isa):
        said.append(
            "The processor has no instructions that multiply and add 8-bit integers (VNNI on x86, dot product on "
            "ARM), so that integers save memory here rather than time: for speed take the float file, and cut channels."
        )
    said.append(
        f"What {'else ' if len(said) > 1 else ''}helps: as many threads as a layer can use, which in a small net is "
        "1; a newer version of the runtime; and, if the export names layers that stayed float, each of which costs "
        "conversions around it, fewer of them: plain ReLU instead of hard-swish and squeeze-and-excitation, say."
    )
    return " ".join(said)


def table(result: dict[str, Any]) -> str:
    """The result as lines of text, for people."""
    sides = [result, *([result["against"]] if "against" in result else [])]
    rows = [("file", "kind", "p50 ms", "p95 ms", "load ms", "memory MB", "size kB")]
    for side in sides:
        rows.append(
            (
                Path(side["file"]).name,
                "integer" if side["quantized"] else "float",
                f"{side['p50_ms']:.3f}",
                f"{side['p95_ms']:.3f}",
                f"{side['load_ms']:.1f}",
                "unknown" if side["memory_mb"] is None else f"{side['memory_mb']:.1f}",
                f"{side['bytes'] / 1e3:.1f}",
            )
        )
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(widths[place]) if place < 2 else cell.rjust(widths[place])
            for place, cell in enumerate(row)
        ]
        lines.append("  ".join(cells).rstrip())
    if "ratio" in result:
        names = [Path(side["file"]).name for side in sides]
        lines += ["", f"{names[0]} runs {result['ratio']:.2f}x as fast as {names[1]}."]
    if "note" in result:
        lines.append(result["note"])
    lines += ["", _circumstances(result)]
    return "\n".join(lines)


def _circumstances(result: dict[str, Any]) -> str:
    plural = "s" if result["threads"] != 1 else ""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    isa = " ".join(result["isa"] or []) or "instruction sets unknown"
    cpu = result["cpu"] or "unknown processor"
    return (
        f"{cpu} ({isa}), {result['cores']} cores, {result['threads']} thread{plural}, "
        f"batch {result['batch']}, median of {result['repeats']} runs after {result['warmup']}, {versions}"
    )


def cpu_name() -> str | None:
    """What this processor (or single-board computer) calls itself; None if it does not."""
    named = [_told("/proc/cpuinfo", key) for key in ("model name", "Model", "Hardware")]
    return next(filter(None, named), None) or platform.processor() or platform.machine() or None


def isa_flags() -> list[str] | None:
    """The instruction sets that matter to integer kernels; None where the system does not tell."""
    flags = _told("/proc/cpuinfo", "flags") or _told("/proc/cpuinfo", "Features")
    if flags is None:
        return None
    present = set(flags.split())
    return [name for name in _ISA if name in present]


def _told(path: str, key: str) -> str | None:
    """What one of the system's lists of "key: value" says; None if nothing."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
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
