"""How long a file takes on this machine, by export/bench.py in a fresh process, as on the device."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from compress_aug.errors import ExportError
from compress_aug.folders import shipped


@dataclass(frozen=True)
class Latency:
    """Milliseconds for one image, and on what they were measured.

    p50_ms, p95_ms: half of the runs took at most p50, 95 % of them at most p95
    against_*:      the same of the other file, timed in turns; None without one
    ratio:          how many times faster the file is than the other one, by the medians
    cpu, isa:       the processor and its instruction sets for integers, where the system tells
    """

    p50_ms: float
    p95_ms: float
    threads: int
    repeats: int
    runtime: str
    cpu: str | None
    isa: tuple[str, ...] | None
    against_p50_ms: float | None = None
    against_p95_ms: float | None = None
    ratio: float | None = None


def latency(path: Path, *, threads: int = 1, repeats: int = 200, against: Path | None = None) -> Latency:
    """Time a file on one image, in turns with another one if `against` names it.

    A fresh process, because the threads and memory of a training process would be measured along.

    Raises ExportError if a file is missing or cannot be run.

    >>> latency(Path("model.onnx"), repeats=5).threads
    1
    """
    script = shipped("export") / "bench.py"
    command = [sys.executable, str(script), f"--threads={threads}", f"--repeats={repeats}"]
    # Resolved: a name that begins with a dash would be read as an option.
    if against is not None:
        command.append(f"--against={against.resolve()}")
    command.append(str(path.resolve()))
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"]
        raise ExportError(f"{path} could not be timed: {said[-1]}")
    try:
        found = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError) as error:
        raise ExportError(f"{path} could not be timed: {script} printed no result.") from error
    other = found.get("against", {})
    return Latency(
        p50_ms=found["p50_ms"],
        p95_ms=found["p95_ms"],
        threads=found["threads"],
        repeats=found["repeats"],
        runtime=found["runtime"],
        cpu=found["cpu"],
        isa=None if found["isa"] is None else tuple(found["isa"]),
        against_p50_ms=other.get("p50_ms"),
        against_p95_ms=other.get("p95_ms"),
        ratio=found.get("ratio"),
    )
