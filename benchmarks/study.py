"""Models per hour of a study, by how many of its runs share a device: one after the other, or several at once.

    python benchmarks/study.py [--device auto|cpu|cuda] [--jobs 1,2,4] [--epochs 5] [--images 10000] [--json FILE]

Trains as many ResNet20 of one study, each with a seed of its own, as the largest number of jobs, on random 32x32 images
(speed does not depend on what is on them), with each number of jobs in turn; on a CPU the jobs share its cores. What
counts is the time of the whole study, processes started and images loaded included, as a user waits for it.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from compress_aug.data.assemble import cores
from compress_aug.study import ResultsFile, conduct, in_processes, load_study
from compress_aug.study.results import cpu_name

STUDY = """\
study: 1
title: ResNet20 by seed
source: ours
question: How many models an hour?
model: resnet20
data: {{call: "training:noise", images: {images}}}
seeds: {seeds}
recipe:
  stages:
    - train: {{epochs: {epochs}, batch_size: 128, augment: {{magnitude: 9}}}}
variants: {{model: {{title: one}}}}
"""


def seconds(file: Path, jobs: int, device: str) -> float:
    """Of the whole study with so many runs at once."""
    threads = max(1, cores() // jobs)
    study = load_study(file)
    with tempfile.TemporaryDirectory() as place:
        out = Path(place)
        started = time.perf_counter()
        conduct(
            study,
            out=out / "runs",
            results=ResultsFile.of(study, out / "results"),
            launch=in_processes(device, threads),
            at_once=jobs,
            console=Console(quiet=True),
        )
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--jobs", default="", help="such as 1,2,4; on a CPU 1 and as many as cores by default"
    )
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    given = parser.parse_args()
    device = given.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    usual = [1, 2, 4, 8] if device.startswith("cuda") else [1, cores()]
    jobs = [int(part) for part in given.jobs.split(",")] if given.jobs else list(dict.fromkeys(usual))
    models = max(jobs)
    # Where the runs' own processes find the images: in the file beside this one.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    sys.path.insert(0, str(Path(__file__).parent))
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "speed.study.yaml"
        file.write_text(
            STUDY.format(seeds=list(range(models)), epochs=given.epochs, images=given.images),
            encoding="utf-8",
        )
        taken = {count: seconds(file, count, device) for count in jobs}
    rows = [
        {
            "case": f"{models} x ResNet20, {given.epochs} epochs of {given.images:,} images",
            "jobs": count,
            "models_per_hour": round(3600 * models / time_taken, 2),
            "ratio": round(taken[jobs[0]] / time_taken, 3),
        }
        for count, time_taken in taken.items()
    ]
    name = torch.cuda.get_device_name() if device.startswith("cuda") else f"{cpu_name()}, {cores()} cores"
    table = Table(title=f"{rows[0]['case']} on {name}")
    for column in ("runs at once", "models an hour", f"against {jobs[0]}"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(str(row["jobs"]), f"{row['models_per_hour']:.1f}", f"{row['ratio']:.2f}")
    Console(width=None if sys.stdout.isatty() else 110).print(table)
    if given.json:
        report = {
            "benchmark": "study",
            "machine": {"cpu": cpu_name(), "threads": cores(), "device": device},
            "versions": {"torch": version("torch")},
            "rows": rows,
        }
        given.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
