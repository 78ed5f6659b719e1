"""on_ray: the jobs of a study as tasks of a Ray cluster, whose machines need not share a disk."""

import contextlib
import io
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compress_aug.errors import CompressAugError, WorkError
from compress_aug.reading import read_yaml
from compress_aug.search.ray_driver import check_ray
from compress_aug.study.launch import Launch, Work, last_line
from compress_aug.study.results import alone_in, finished

_TRIES = 3


def on_ray(address: str, device: str, *, cpus: float = 1.0, gpus: float = 0.0) -> Launch:
    """Each job as a task. Folders have the same absolute path on every machine; those that a task needs and that
    are not there travel with it, and its own comes back when it ends.

    address:    of a running cluster, as `ray.init` takes it; "local" begins one on this machine
    cpus, gpus: that each task asks for; a part of a GPU lets several jobs use it at once

    Images must lie on every machine, at the path that the study names. A task whose machine is lost begins again.
    Raises MissingPart unless Ray is installed, WorkError if the cluster cannot be reached.
    """
    check_ray()
    import ray

    if not ray.is_initialized():
        try:
            ray.init(address=None if address == "local" else address, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise WorkError(f"--ray {address}: the cluster cannot be reached: {error}") from None
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=_TRIES - 1)(_task)

    def launch(recipe: Path, folder: Path, start: Path | None, log: Path) -> Work:
        text = recipe.read_text(encoding="utf-8")
        needed = [place for place in travelling(recipe, folder, start) if place.is_dir()]
        packed = {str(place): pack(place) for place in needed}
        threads = max(1, int(cpus))
        reference = task.remote(
            text, str(recipe), str(folder), str(start or ""), device, threads, str(log), packed
        )
        return _Task(ray, reference, folder, log)

    return launch


def travelling(recipe: Path, folder: Path, start: Path | None) -> list[Path]:
    """The folders that a job needs: where its first stages were done, its own, and the runs that its recipe names."""
    runs = folder.parent.parent / "runs"
    paths = (Path(text) for text in _texts(read_yaml(recipe).data) if text.startswith(f"{runs}/"))
    named = sorted({runs / path.relative_to(runs).parts[0] for path in paths})
    return [*([start] if start else []), folder, *named]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def pack(folder: Path) -> bytes:
    """A folder as a compressed archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        archive.add(folder, arcname=".")
    return buffer.getvalue()


def unpack(packed: bytes, folder: Path) -> None:
    """The inverse, whole or not at all; takes the place of a folder that is there."""
    temporary, before = (folder.with_name(f".{folder.name}.{word}") for word in ("part", "before"))
    for left in (temporary, before):
        shutil.rmtree(left, ignore_errors=True)
    temporary.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
        # "data" refuses links and paths that lead out of the folder.
        archive.extractall(temporary, filter="data")
    if folder.exists():
        folder.rename(before)
    temporary.replace(folder)
    shutil.rmtree(before, ignore_errors=True)


def _task(
    text: str,
    recipe: str,
    folder: str,
    start: str,
    device: str,
    threads: int,
    log: str,
    packed: dict[str, bytes],
) -> tuple[int, str, bytes]:
    """On the machine that Ray chose: the exit code, what was said, and the run's folder as it is then."""
    import torch

    from compress_aug.study.worker import work

    torch.set_num_threads(threads)
    for place, content in packed.items():
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        # Several tasks of one machine may need it; and an earlier try may have left less of it here.
        with alone_in(Path(place).parent):
            if not finished(Path(place)):
                unpack(content, Path(place))
    for name in (recipe, folder, log):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(recipe).write_text(text, encoding="utf-8")
    code = 0
    with Path(log).open("a", encoding="utf-8") as said, contextlib.redirect_stdout(said):
        try:
            work(recipe, folder, start or None, device)
        except CompressAugError as error:
            print(f"error: {' '.join(str(error).splitlines())}")
            code = error.exit_code
        except Exception as error:
            print(f"error: {type(error).__name__}: {error}")
            code = 1
    done = Path(folder)
    return code, Path(log).read_text(encoding="utf-8"), pack(done) if done.is_dir() else b""


class _Task:
    """A task under way, seen from the machine of the study."""

    def __init__(self, ray: Any, reference: Any, folder: Path, log: Path) -> None:
        self._ray, self._reference, self._folder, self._log = ray, reference, folder, log
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None and self._ray.wait([self._reference], timeout=0)[0]:
            self._code = self._brought_home()
        return self._code

    def _brought_home(self) -> int:
        try:
            code, said, content = self._ray.get(self._reference)
        except self._ray.exceptions.RayError as error:
            with self._log.open("a", encoding="utf-8") as log:
                log.write(f"error: the task was lost: {str(error).splitlines()[0]}\n")
            return 1
        self._log.write_text(said, encoding="utf-8")
        # Where the disk is shared it is here already.
        if content and not (code == 0 and finished(self._folder)):
            unpack(content, self._folder)
        return int(code)

    def stop(self, *, now: bool = False) -> None:
        if self._code is None:
            self._ray.cancel(self._reference, force=now)

    def last_line(self) -> str:
        return last_line(self._log)
