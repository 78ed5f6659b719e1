"""The population search on Ray Tune: members train side by side on one machine or many, in the logs that Ray writes.

Needs the extra `ray`. Asynchronous, as the paper's own search: a member is compared when it is
ready, so the order of events depends on how fast each one is, and one seed does not give one schedule.
"""

import importlib.util
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import torch

from compress_aug.errors import Interrupted, MissingPart, TrainingError
from compress_aug.folders import written_whole
from compress_aug.policies import Policy, lived_schedule
from compress_aug.search.evolution import explore
from compress_aug.search.population import FoundPolicies, PolicySlot, Progress, check_numbers
from compress_aug.training import Training, mixed_seed

MakeTraining = Callable[[], tuple[Training, PolicySlot]]
"""Makes a training at its beginning, and the slot of its policies; is sent to the workers, so it holds no model."""

_STATE = "training.pt"
_NAME = "population"
_BROKEN = -1.0


def check_ray() -> None:
    """Raise MissingPart unless Ray is installed. Does not import it, which takes seconds."""
    if importlib.util.find_spec("ray") is None:
        raise MissingPart(
            'a search on Ray needs the extra "ray": pip install "compress-aug[ray]", or leave out driver: ray.'
        )


def _ray() -> tuple[Any, Any]:
    """Ray and its Tune, imported late: it takes seconds, and few have it."""
    check_ray()
    import ray
    from ray import tune

    return ray, tune


def _member_class(tune: Any) -> Any:
    class Member(tune.Trainable):  # type: ignore[misc]
        """One member: an epoch of its training is one iteration of Ray's."""

        def setup(self, config: dict[str, Any], make: MakeTraining, seed: int) -> None:
            cpus = self.trial_resources.required_resources.get("CPU", 1)
            torch.set_num_threads(max(1, int(cpus)))
            self._training, self._slot = make()
            self._seed, buffer = seed, io.BytesIO()
            torch.save(self._training.state_dict(), buffer)
            self._start = buffer.getvalue()
            self._take_up(config)

        def _take_up(self, config: dict[str, Any]) -> None:
            self._training.seed = mixed_seed(self._seed, "member", number_of(self.trial_id))
            self._slot.policy = Policy.from_vector(config["hp_policy"])

        def step(self) -> dict[str, float]:
            try:
                # One that took over from a member that has finished has nothing left to do; Ray asks once more.
                if self._training.epochs_done < self._training.settings.epochs:
                    self._training.epoch()
            except TrainingError:
                # The worst there is: it takes over from a better one at the next exchange.
                self._training.history.append({"validation_accuracy": _BROKEN})
            return {"val_acc": self._training.history[-1]["validation_accuracy"]}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            torch.save(self._training.state_dict(), Path(checkpoint_dir) / _STATE)

        def load_checkpoint(self, checkpoint_dir: str) -> None:
            self._load(Path(checkpoint_dir) / _STATE)

        def _load(self, source: Any) -> None:
            device = self._training.fabric.device
            self._training.load_state_dict(torch.load(source, map_location=device, weights_only=True))

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            # The process goes on as another member, with whose checkpoint Ray follows up if there is one: one that
            # has not begun must find neither the weights nor the epochs of the member before.
            self._load(io.BytesIO(self._start))
            self._take_up(new_config)
            return True

    return Member


# Who hears of which search, by the folder of its files. Ray keeps its callbacks in a file, to go on from there: what
# tells users (a terminal, say) has no place in one.
_listeners: dict[str, Callable[[Progress], None]] = {}


def _teller(tune: Any, place: str, population: int, epochs: int) -> Any:
    class Teller(tune.Callback):  # type: ignore[misc]
        """Hands on what Ray hears of its members."""

        def __init__(self) -> None:
            self._done = dict.fromkeys(range(population), 0)
            self._scores: dict[int, float | None] = dict.fromkeys(range(population))

        def on_trial_result(
            self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            number = number_of(trial.trial_id)
            self._done[number] = min(result["training_iteration"], epochs)
            self._scores[number] = None if result["val_acc"] == _BROKEN else result["val_acc"]
            counts = self._done.values()
            from compress_aug.search.ray_driver import _listeners

            if place in _listeners:
                progress = Progress(
                    sum(counts), population * epochs, min(counts), tuple(self._scores.values())
                )
                _listeners[place](progress)

    return Teller()


class _Explore:
    """Ray's `custom_explore_fn`: the policy changes, all else of a configuration stays."""

    def __init__(self, seed: int, resample: float) -> None:
        self._rng, self._resample = Random(mixed_seed(seed, "explore")), resample

    def __call__(self, config: dict[str, Any]) -> dict[str, Any]:
        policy = explore(Policy.from_vector(config["hp_policy"]), self._rng, self._resample)
        return {**config, "hp_policy": policy.vector()}


def number_of(trial_id: str) -> int:
    """The number of a member: what follows the last underscore of Ray's name for it.

    >>> number_of("b1c2d_00003")
    3
    """
    return int(trial_id.rsplit("_", 1)[-1])


def search_population_on_ray(
    make: MakeTraining,
    *,
    epochs: int,
    folder: Path,
    population: int = 16,
    every: int = 3,
    quantile: float = 0.25,
    resample: float = 0.2,
    seed: int = 0,
    cpus: float = 1.0,
    gpus: float = 0.0,
    address: str | None = None,
    told: Callable[[Progress], None] = lambda progress: None,
    about: Mapping[str, Any] | None = None,
) -> FoundPolicies:
    """The search of `search_population` by Ray Tune's `PopulationBasedTraining`, with our `explore`.

    As there, members are trained epoch by epoch, and no `fit` is called.

    make:    see `MakeTraining`; is called once in each worker
    epochs:  of each member: those of the training's settings
    folder:  for Ray's files; a search that was stopped goes on from there. On several machines, one that all see
    cpus, gpus: of each member; parts of a GPU let several share one
    address: of a Ray cluster, None starts Ray on this machine
    the others: as for `search_population`

    A worker that dies is started again from the member's last checkpoint, up to three times.

    Raises RecipeError for numbers out of range, MissingPart without Ray, TrainingError if members failed
    for good, Interrupted at Ctrl-C (each member is kept as it was at its last checkpoint).

    Source: arXiv 1905.05393, which ran on Ray; pairs and order of exchanges are Ray's own.
    """
    check_numbers(population, every, epochs)
    ray, tune = _ray()
    started = not ray.is_initialized()
    if started:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        results = _fit(
            tune, make, epochs, folder, population, every, quantile, resample, seed, (cpus, gpus), told
        )
    finally:
        if started:
            ray.shutdown()
    return _found(results, folder, population, epochs, dict(about or {}))


def _fit(
    tune: Any,
    make: MakeTraining,
    epochs: int,
    folder: Path,
    population: int,
    every: int,
    quantile: float,
    resample: float,
    seed: int,
    resources: tuple[float, float],
    told: Callable[[Progress], None],
) -> Any:
    trainable = tune.with_resources(
        tune.with_parameters(_member_class(tune), make=make, seed=seed),
        {"cpu": resources[0], "gpu": resources[1]},
    )
    place = str(folder.resolve() / _NAME)
    _listeners[place] = told
    if tune.Tuner.can_restore(place):
        _put_by(folder)
        return tune.Tuner.restore(place, trainable, resume_errored=True, resume_unfinished=True).fit()
    scheduler = tune.schedulers.PopulationBasedTraining(
        time_attr="training_iteration",
        metric="val_acc",
        mode="max",
        perturbation_interval=every,
        quantile_fraction=quantile,
        custom_explore_fn=_Explore(seed, resample),
        log_config=True,
    )
    tuner = tune.Tuner(
        trainable,
        param_space={"hp_policy": Policy.none().vector()},
        tune_config=tune.TuneConfig(scheduler=scheduler, num_samples=population, reuse_actors=True),
        run_config=tune.RunConfig(
            name=_NAME,
            storage_path=str(folder.resolve()),
            stop={"training_iteration": epochs},
            callbacks=[_teller(tune, place, population, epochs)],
            failure_config=tune.FailureConfig(max_failures=3),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=every, num_to_keep=4),
            verbose=0,
        ),
    )
    return tuner.fit()


# Ray writes these anew when a search goes on, over those of the time before.
_BEFORE = "before"
_EVENTS, _ROWS = "pbt_global.txt", "result.json"


def _put_by(folder: Path) -> None:
    """Keep what Ray has written so far of events and accuracies."""
    place = folder / _NAME
    for path in (place / _EVENTS, *place.glob(f"*/{_ROWS}")):
        if path.is_file():
            name = path.relative_to(place)
            goal = folder / _BEFORE / name
            goal.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(goal) as temporary:
                temporary.write_text(_whole(folder, name), encoding="utf-8")


def _whole(folder: Path, name: Path | str) -> str:
    """What was put by and what Ray wrote since."""
    before, now = (
        path.read_text(encoding="utf-8") if path.is_file() else ""
        for path in (folder / _BEFORE / name, folder / _NAME / name)
    )
    # Stopped before Ray wrote anything anew, it is still the file that was put by.
    return before if before.endswith(now) else before + now


def _lines_of(events: list[str], number: int) -> list[str]:
    """The events that led to a member: those of the one that it took over, up to there, and its own.

    >>> _lines_of(['["1", "0", 2, 2]', '["0", "2", 4, 4]', '["2", "1", 6, 6]'], 2)
    ['["1", "0", 2, 2]', '["2", "1", 6, 6]']
    """
    lines: dict[int, list[str]] = {}
    for event in events:
        target, source = (int(tag) for tag in json.loads(event)[:2])
        lines[target] = [*lines.get(source, []), event]
    return lines.get(number, [])


def _found(results: Any, folder: Path, population: int, epochs: int, about: dict[str, Any]) -> FoundPolicies:
    if results.num_errors:
        raise TrainingError(
            f"{results.num_errors} of {population} members failed for good: {results.errors[0]}"
        )
    # Ray catches Ctrl-C, and returns as if all were done; of a member that has not begun there are no numbers at all.
    reached = [(result.metrics or {}).get("training_iteration", 0) for result in results]
    if len(reached) < population or min(reached) < epochs:
        raise Interrupted(
            f"Stopped when {sum(map(epochs.__le__, reached))} of {population} members were done."
        )
    curves: dict[int, tuple[float | None, ...]] = {}
    policies: dict[int, list[int]] = {}
    for result in results:
        number = number_of(result.metrics["trial_id"])
        text = _whole(folder, f"{Path(result.path).name}/{_ROWS}")
        curves[number] = _curve(text, epochs, result.metrics["val_acc"])
        policies[number] = list(result.config["hp_policy"])
    best = max(curves, key=lambda number: _rank(curves[number][-1]))
    score = curves[best][-1]
    if score is None:
        raise TrainingError("Every member of the search broke down: its loss is no number. Try a smaller lr.")
    events = _whole(folder, _EVENTS).splitlines()
    first = Policy.from_vector(policies[best])
    name = str(folder / _NAME / _EVENTS)
    schedule = lived_schedule(_lines_of(events, best), epochs=epochs, first=first, name=name)
    schedule = type(schedule)(schedule.epochs, schedule.segments, {**schedule.provenance, **about})
    return FoundPolicies(
        schedule, best, score, tuple(curves[number] for number in sorted(curves)), len(events)
    )


def _curve(text: str, epochs: int, last: float) -> tuple[float | None, ...]:
    """A member's accuracy in each epoch, from Ray's rows of it; `last` is that at the end.

    Some epochs may be there twice, since a process died, and some not at all, because the member took over from one
    that was further ahead, or because Ray had not written them yet when it was stopped: those are None too.
    """
    rows = [json.loads(line) for line in text.splitlines()]
    # One that took over at the very end is asked for one epoch more, in which nothing happens.
    found = {min(row["training_iteration"], epochs): row["val_acc"] for row in rows} | {epochs: last}
    values = [found.get(epoch, _BROKEN) for epoch in range(1, epochs + 1)]
    return tuple(None if value < 0 else value for value in values)


def _rank(score: float | None) -> float:
    return _BROKEN if score is None else score
