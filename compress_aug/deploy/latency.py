"""How long a file takes and what it holds, by export/bench.py in a fresh process, as on the device."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compress_aug.errors import ExportError, UserError
from compress_aug.folders import shipped
from compress_aug.targets import Runtime, require_runtime


class _Part(BaseModel):
    # A bench.py of another version may say more.
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Timed(_Part):
    """One file, as export/bench.py timed it.

    quantized:      whether it holds quantizers
    p50_ms, p95_ms: for one batch: half of the runs took at most p50, 95 % of them at most p95
    load_ms:        until it could run
    memory_mb:      the most that a process held which loaded and ran this file alone, in 10^6 bytes, with Python and
                    the runtime; None where the system does not tell
    runtime_mb:     what it held before it loaded the file
    """

    file: str
    bytes: int = Field(ge=0)
    sha256: str | None = None
    quantized: bool | None = None
    p50_ms: float = Field(gt=0)
    p95_ms: float = Field(gt=0)
    load_ms: float | None = None
    memory_mb: float | None = None
    runtime_mb: float | None = None

    @property
    def name(self) -> str:
        """The file without its folders, on whatever system it lay."""
        return self.file.replace("\\", "/").rpartition("/")[2]


class Bench(Timed):
    """What export/bench.py says: a file, maybe another one that it took turns with, and the machine.

    ratio: how many times faster the file is than the other one, by the medians
    note:  why integers are slower than floats there and what helps; None if they are not
    """

    threads: int = Field(ge=1)
    batch: int = Field(1, ge=1)
    repeats: int = Field(ge=1)
    warmup: int | None = None
    runtime: str
    versions: dict[str, str] = {}
    cpu: str | None = None
    isa: tuple[str, ...] | None = None
    cores: int | None = None
    against: Timed | None = None
    ratio: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class Latency:
    """Milliseconds for one image, and on what they were measured.

    p50_ms, p95_ms: half of the runs took at most p50, 95 % of them at most p95
    against_*:      the same of the other file, timed in turns; None without one
    ratio:          how many times faster the file is than the other one, by the medians
    cpu, isa:       the processor and its instruction sets for integers, where the system tells
    memory_mb:      the most that a process held which ran this file alone, in 10^6 bytes, Python and the runtime
                    included; None where the system does not tell
    note:           why integers are slower than floats here and what helps; None if they are not
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
    memory_mb: float | None = None
    against_memory_mb: float | None = None
    note: str | None = None


def latency(
    path: Path,
    *,
    threads: int = 1,
    repeats: int = 200,
    against: Path | None = None,
    runtime: Runtime = "onnxruntime",
) -> Latency:
    """Time a file on one image, in turns with another one if `against` names it.

    A fresh process, because the threads and memory of a training process would be measured along.

    Raises ExportError if a file is missing or cannot be run, MissingPart if the runtime is not installed.

    >>> latency(Path("model.onnx"), repeats=5).threads
    1
    """
    found = bench(path, threads=threads, repeats=repeats, against=against, runtime=runtime)
    other = found.against
    return Latency(
        p50_ms=found.p50_ms,
        p95_ms=found.p95_ms,
        threads=found.threads,
        repeats=found.repeats,
        runtime=found.runtime,
        cpu=found.cpu,
        isa=found.isa,
        against_p50_ms=other.p50_ms if other else None,
        against_p95_ms=other.p95_ms if other else None,
        ratio=found.ratio,
        memory_mb=found.memory_mb,
        against_memory_mb=other.memory_mb if other else None,
        note=found.note,
    )


def bench(
    path: Path,
    *,
    threads: int = 1,
    repeats: int = 200,
    warmup: int = 20,
    batch: int = 1,
    against: Path | None = None,
    runtime: Runtime = "onnxruntime",
) -> Bench:
    """The same with all that export/bench.py has to say: memory, versions, the processor, what helps.

    batch: images in one run

    Raises ExportError if a file is missing or cannot be run, MissingPart if the runtime is not installed.

    >>> bench(Path("model.onnx"), repeats=5).quantized
    False
    """
    require_runtime(runtime)
    script = shipped("export") / "bench.py"
    command = [sys.executable, str(script), "--json=-", f"--threads={threads}", f"--repeats={repeats}"]
    command += [f"--warmup={warmup}", f"--batch={batch}", f"--runtime={runtime}"]
    # Resolved: a name that begins with a dash would be read as an option.
    if against is not None:
        command.append(f"--against={against.resolve()}")
    command.append(str(path.resolve()))
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"]
        raise ExportError(f"{path} could not be timed: {said[-1]}")
    try:
        return Bench.model_validate_json(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValidationError) as error:
        raise ExportError(f"{path} could not be timed: {script} printed no result.") from error


def read_bench(path: Path) -> Bench:
    """What `bench.py --json FILE` wrote, here or on another device.

    Raises UserError if the file is missing or is not that.

    >>> _ = Path("device.json").write_text(bench(Path("model.onnx"), repeats=5).model_dump_json())
    >>> read_bench(Path("device.json")).threads
    1
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not JSON: expected what bench.py --json FILE writes.") from None
    try:
        return Bench.model_validate(told)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise UserError(
            f"{path} is not what bench.py --json FILE writes: {key}: {first['msg'].lower()}."
        ) from None
