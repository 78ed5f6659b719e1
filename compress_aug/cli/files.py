"""The command about exported files: bench."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from compress_aug.cli.base import new_console
from compress_aug.errors import UserError

if TYPE_CHECKING:
    from compress_aug.deploy.latency import Bench, Timed


def bench(
    file: Annotated[Path, typer.Argument(help="An ONNX file, or what bench.py --json wrote on a device.")],
    against: Annotated[
        Path | None,
        typer.Option(
            help="Another ONNX file, timed in turns with it; or a device's JSON, shown beside this."
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="1, or those of the JSON.")] = None,
    repeats: Annotated[
        int, typer.Option(min=1, help="Timed runs; the median and the 95th percentile count.")
    ] = 200,
    warmup: Annotated[int, typer.Option(min=0, help="Untimed runs before.")] = 20,
    batch: Annotated[int | None, typer.Option(min=1, help="Images in one run: 1, or as the JSON.")] = None,
    json_: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the result there too.")
    ] = None,
) -> None:
    """Time an ONNX file in a fresh process, one image at a time; or compare with what a device measured."""
    for path in (file, against):
        if path is not None and not path.is_file():
            raise UserError(f"There is no file {path}.")
    from compress_aug.deploy import bench as timed_alone
    from compress_aug.deploy import read_bench

    measured_there = read_bench(against) if against is not None and _is_json(against) else None
    if _is_json(file):
        if against is not None and measured_there is None:
            raise UserError(
                f"{file} is a measurement: it is compared with another one, not with the file {against}."
            )
        here = read_bench(file)
    else:
        like = measured_there
        other = against if like is None else _beside(file, like)
        here = timed_alone(
            file,
            threads=threads or (like.threads if like else 1),
            batch=batch or (like.batch if like else 1),
            repeats=repeats,
            warmup=warmup,
            against=other,
        )
    if json_ is not None:
        _save(json_, here)
    console = new_console()
    if measured_there is None or against is None:
        console.print(_files(here))
        for line in _said(here):
            console.print(line, highlight=False, soft_wrap=True)
        return
    names = (file.name if _is_json(file) else "this machine", against.name)
    console.print(_machines(names, here, measured_there))
    for line in differences(here, measured_there):
        console.print(f"note: {line}", highlight=False, soft_wrap=True)


def _is_json(path: Path) -> bool:
    return path.suffix.lower() == ".json"


def _beside(file: Path, there: "Bench") -> Path | None:
    """The file that the device took turns with, if it lies beside this one here."""
    if there.against is None:
        return None
    # A name from another machine: only its last part, and only as a file beside ours.
    other = file.parent / there.against.name
    return other if other.is_file() else None


def _save(path: Path, result: "Bench") -> None:
    from compress_aug.folders import written_whole

    try:
        with written_whole(path) as temporary:
            temporary.write_text(result.model_dump_json(indent=1, exclude_none=True) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from None


def _files(result: "Bench") -> Table:
    """The files of one measurement below each other."""
    table = Table()
    for name in ("file", "kind", "p50 ms", "p95 ms", "load ms", "memory MB", "bytes"):
        table.add_column(name, justify="left" if name in ("file", "kind") else "right", overflow="fold")
    for side in (result, result.against):
        if side is not None:
            table.add_row(*_cells(side))
    return table


def _cells(side: "Timed") -> tuple[str, ...]:
    from compress_aug.report.words import plain

    kinds = {True: "integer", False: "float", None: "unknown"}
    return (
        plain(side.name),
        kinds[side.quantized],
        f"{side.p50_ms:.3f}",
        f"{side.p95_ms:.3f}",
        _number(side.load_ms, 1),
        _number(side.memory_mb, 1),
        f"{side.bytes:,}",
    )


def _said(result: "Bench") -> list[str]:
    """What the table does not say: who is faster, why, and on what it was measured."""
    from compress_aug.report.words import plain

    lines = []
    if result.against is not None and result.ratio is not None:
        names = [plain(side.name) for side in (result, result.against)]
        lines.append(f"{names[0]} runs {result.ratio:.2f}x as fast as {names[1]}.")
    if result.note is not None:
        lines.append(plain(result.note))
    lines.append(f"On {_machine(result)}: {_conditions(result)}.")
    return lines


def _machines(names: tuple[str, str], here: "Bench", there: "Bench") -> Table:
    """Two measurements side by side."""
    from compress_aug.report.words import plain

    table = Table()
    for name in ("", *names, "times as much"):
        table.add_column(plain(name), justify="left" if not name else "right", overflow="fold")
    rows: list[tuple[str, float | None, float | None, int]] = [
        ("p50 ms", here.p50_ms, there.p50_ms, 3),
        ("p95 ms", here.p95_ms, there.p95_ms, 3),
        ("load ms", here.load_ms, there.load_ms, 1),
        ("memory MB", here.memory_mb, there.memory_mb, 1),
    ]
    if here.against or there.against:
        one, other = here.against, there.against
        rows += [
            ("other file: p50 ms", _of(one, "p50_ms"), _of(other, "p50_ms"), 3),
            ("other file: memory MB", _of(one, "memory_mb"), _of(other, "memory_mb"), 1),
            ("speed against it", here.ratio, there.ratio, 2),
        ]
    for name, first, second, digits in rows:
        times = f"{second / first:.2f}" if first and second else "-"
        table.add_row(name, _number(first, digits), _number(second, digits), times)
    table.add_row("machine", _machine(here), _machine(there), "")
    table.add_row("", _conditions(here), _conditions(there), "")
    return table


def differences(here: "Bench", there: "Bench") -> list[str]:
    """What keeps two measurements from being of the same thing, and what the device says of its integers."""
    from compress_aug.report.words import plain

    found = []
    # Files whose content is not known have at least a size.
    same = [side.bytes if None in (here.sha256, there.sha256) else side.sha256 for side in (here, there)]
    if same[0] != same[1]:
        found.append(
            f"the two files are not the same ({here.bytes:,} and {there.bytes:,} bytes): copy the newer one over."
        )
    for name in ("threads", "batch", "runtime"):
        values = (getattr(here, name), getattr(there, name))
        if values[0] != values[1]:
            found.append(f"{name}: {plain(str(values[0]))} and {plain(str(values[1]))}.")
    if there.note is not None:
        found.append(plain(there.note))
    return found


def _of(side: "Timed | None", key: str) -> float | None:
    return None if side is None else getattr(side, key)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _machine(result: "Bench") -> str:
    from compress_aug.report.words import plain

    return plain(f"{result.cpu or 'unknown processor'} ({' '.join(result.isa or ()) or 'unknown'})")


def _conditions(result: "Bench") -> str:
    from compress_aug.report.words import plain

    threads = f"{result.threads} thread{'s' * (result.threads != 1)}"
    return plain(f"{threads}, batch {result.batch}, median of {result.repeats}, {result.runtime}")
