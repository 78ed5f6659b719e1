"""The command about exported files: bench."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from compress_aug.cli.base import new_console
from compress_aug.errors import UserError


def bench(
    file: Annotated[Path, typer.Argument(help="An ONNX file.")],
    against: Annotated[Path | None, typer.Option(help="Another file, timed in turns with it.")] = None,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    repeats: Annotated[
        int, typer.Option(min=1, help="Timed runs; the median and the 95th percentile count.")
    ] = 200,
) -> None:
    """Time an ONNX file in a fresh process, one image at a time."""
    for path in (file, against):
        if path is not None and not path.is_file():
            raise UserError(f"There is no file {path}.")
    from compress_aug.deploy import latency

    times = latency(file, threads=threads, repeats=repeats, against=against)
    table = Table()
    for name in ("file", "bytes", "p50 ms", "p95 ms"):
        table.add_column(name, justify="left" if name == "file" else "right")
    table.add_row(str(file), f"{file.stat().st_size:,}", f"{times.p50_ms:.3f}", f"{times.p95_ms:.3f}")
    if against is not None:
        size = f"{against.stat().st_size:,}"
        table.add_row(str(against), size, f"{times.against_p50_ms:.3f}", f"{times.against_p95_ms:.3f}")
    console = new_console()
    console.print(table)
    if against is not None and times.against_p50_ms:
        ratio = times.against_p50_ms / times.p50_ms
        console.print(f"{file} runs {ratio:.2f}x as fast as {against}.", highlight=False)
