"""search: finds how strong augmentation should be, at each sparsity or epoch by epoch, and keeps what it found."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from compress_aug.errors import RecipeError
from compress_aug.schedule import MAX_MAGNITUDE
from compress_aug.stages.augmentation import RESERVED, Augment
from compress_aug.stages.base import KEPT_NAME, Outlook, Setup, Stage, State
from compress_aug.stages.train import Train

_DEFAULTS: dict[str, dict[str, Any]] = {
    "population": {
        "population": 16,
        "every": 3,
        "quantile": 0.25,
        "resample": 0.2,
        "train_images": 4000,
        "validation_images": 5000,
        "driver": "here",
        "cpus": 1.0,
        "gpus": 0.0,
    },
    "magnitude": {
        "grid": "coarse",
        "sparsity": None,
        "scope": "global",
        "start": "model",
        "refine": 2,
        "seeds": 1,
        "tolerance": 0.0,
        "judge": "clean",
        "train_images": None,
        "validation_images": None,
    },
}
"""Of each kind, the keys that it has beside kind, keep and train, with what they are if not given."""

_KEPT_AS = {"population": "policy", "magnitude": "schedule"}


def _filled_with_mean(train: Any) -> Any:
    """As with a policy that is found already: pixels that it uncovers get the mean colour, unless told otherwise."""
    if isinstance(train, Train):
        augment = _filled_with_mean_by(train.augment)
        return train if augment is train.augment else train.model_copy(update={"augment": augment})
    if not isinstance(train, dict):
        return train
    return {**train, "augment": _filled_with_mean_by(train.get("augment", {}))}


def _filled_with_mean_by(augment: Any) -> Any:
    if isinstance(augment, dict):
        return {"fill": "mean", **augment}
    if isinstance(augment, Augment) and "fill" not in augment.model_fields_set:
        return augment.model_copy(update={"fill": "mean"})
    return augment


class Search(Stage):
    """Find a schedule of augmentation and keep it under a name. The model comes out as it went in.

    population: which learned policy when (arXiv 1905.05393, 2004.08861); used by `augment: {policy: NAME}`
    magnitude:  which magnitude of RandAugment at which sparsity (arXiv 2305.13232); by `augment: {magnitude: NAME}`
    Keys of one kind are null for the other. Candidates are trained by loops of the search's own: a `fit` that is given
    to `run` is for `train` stages alone.
    """

    word: ClassVar[str] = "search"
    changes_model: ClassVar[bool] = False

    kind: Literal["population", "magnitude"] = Field(description="of what is searched")
    keep: str = Field(pattern=f"^{KEPT_NAME}$", description="the name under which the schedule is kept")
    only_if_used: bool | None = Field(
        None, description="leave the search out of a recipe in which no later stage names what it keeps"
    )
    train: Train = Field(description="how each candidate is trained: the keys of a train stage")
    train_images: int | None = Field(
        None, ge=1, description="to train on; 4000 for population, all for magnitude"
    )
    validation_images: int | None = Field(
        None,
        ge=1,
        description="to judge by, never of the test split; 5000 for population, the split for magnitude",
    )
    population: int | None = Field(
        None, ge=2, le=1000, description="population: how many train at the same time"
    )
    every: int | None = Field(None, ge=1, description="population: epochs from one exchange to the next")
    quantile: float | None = Field(
        None, gt=0, le=0.5, description="population: share that gives up, and share that is copied"
    )
    resample: float | None = Field(
        None, ge=0, le=1, description="population: probability that a number is drawn anew instead of moved"
    )
    driver: Literal["here", "ray"] | None = Field(
        None, description="population: one after the other in this process, or side by side on Ray"
    )
    cpus: float | None = Field(None, gt=0, description="population on Ray: processors of each member")
    gpus: float | None = Field(None, ge=0, description="population on Ray: GPUs of each member, such as 0.25")
    address: str | None = Field(
        None, description="population on Ray: of a running cluster; this machine if not given"
    )
    grid: Literal["coarse", "paper20", "full"] | list[int | Literal["none"]] | None = Field(
        None, description="magnitude: those that are tried, a name or a list with numbers 0..30 and none"
    )
    sparsity: list[float] | None = Field(
        None, description="magnitude: totals to try at, each from the model as it is; its own if not given"
    )
    scope: Literal["global", "layer"] | None = Field(None, description="magnitude: of pruning, see prune")
    start: Literal["model", "trained"] | None = Field(
        None, description="magnitude: prune the model as it is, or one first trained with the same magnitude"
    )
    refine: int | None = Field(
        None, ge=0, le=10, description="magnitude: how far beside the best two more are tried; 0 for none"
    )
    seeds: int | None = Field(None, ge=1, le=100, description="magnitude: trainings of each")
    tolerance: float | None = Field(
        None, ge=0, lt=1, description="magnitude: how much worse than none the maximal one may be"
    )
    judge: Literal["clean", "augmented"] | None = Field(
        None, description="magnitude: by clean images and accuracy, or augmented ones and cross entropy"
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_kinds(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("kind") not in _DEFAULTS:
            return given
        chosen = {key: value for key, value in given.items() if value is not None}
        if given["kind"] == "population" and "train" in chosen:
            chosen["train"] = _filled_with_mean(chosen["train"])
        return {**_DEFAULTS[given["kind"]], **chosen}

    @field_validator("grid", mode="before")
    @classmethod
    def _numbers(cls, given: Any) -> Any:
        for value in given if isinstance(given, list) else []:
            if value != "none" and (isinstance(value, bool) or not isinstance(value, int)):
                raise ValueError(
                    f"expected different numbers in 0..{MAX_MAGNITUDE}, and none, found {value!r}"
                )
        return given

    @field_validator("grid")
    @classmethod
    def _magnitudes(cls, given: Any) -> Any:
        if isinstance(given, list):
            wrong = [value for value in given if isinstance(value, int) and not 0 <= value <= MAX_MAGNITUDE]
            if wrong or not given or len(set(given)) < len(given):
                found = wrong[0] if wrong else given
                raise ValueError(f"expected different numbers in 0..{MAX_MAGNITUDE}, and none, found {found}")
        return given

    @field_validator("sparsity")
    @classmethod
    def _shares(cls, given: list[float] | None) -> list[float] | None:
        if given is not None and (not given or any(not 0 <= value < 1 for value in given)):
            raise ValueError(f"expected shares in [0, 1), found {given}")
        return None if given is None else sorted(set(given))

    @model_validator(mode="after")
    def _keys_of_the_kind(self) -> "Search":
        own = _DEFAULTS[self.kind]
        other = {key for keys in _DEFAULTS.values() for key in keys} - set(own)
        for key in sorted(other):
            if getattr(self, key) is not None:
                raise ValueError(
                    f"{key} is not of kind {self.kind}: leave it out (where defaults set it, write {key}: null), or "
                    "choose the other kind"
                )
        if self.kind == "magnitude" and self.address is not None:
            raise ValueError(
                "address is not of kind magnitude: leave it out (where defaults set it, write address: null), or "
                "choose the other kind"
            )
        if self.driver == "here" and (self.address is not None or self.cpus != 1 or self.gpus != 0):
            raise ValueError(
                "cpus, gpus and address are of members on Ray: write driver: ray, or leave them out"
            )
        augment = self.train.augment
        if augment.magnitude != "none" or augment.policy is not None or augment.filter is not None:
            raise ValueError(
                "train.augment: what is searched for is not given: leave out magnitude, policy and filter (where "
                "defaults set one of them, write magnitude: none, policy: null or filter: null)"
            )
        if self.train.prune is not None or self.train.weights == "best":
            raise ValueError(
                "train: a search has neither prune nor weights: best (where defaults set one of them, write "
                "prune: null or weights: last)"
            )
        if self.kind == "population" and self.every is not None and self.every >= self.train.epochs:
            raise ValueError(
                f"every: {self.every} of {self.train.epochs} epochs leaves no epoch behind an exchange: nothing would "
                "be searched"
            )
        return self

    def foresee(self, outlook: Outlook) -> Outlook:
        if self.keep in RESERVED:
            raise RecipeError(f'keep: "{self.keep}" has a meaning of its own; choose another name')
        if self.keep in outlook.kept:
            raise RecipeError(f'keep: something is kept under the name "{self.keep}" already')
        self.train.foresee(outlook)
        least = min(self.sparsity or [outlook.sparsity])
        if least < outlook.sparsity - 1e-6:
            raise RecipeError(
                f"sparsity: {least:g} is less than the {outlook.sparsity:.3g} that the model has then; masks only grow"
            )
        if self.sparsity and max(self.sparsity) > 0 and not outlook.zero_weights:
            raise RecipeError(
                "sparsity: the levels of DoReFa have no zero, so nothing can be pruned any more"
            )
        if self.sparsity and max(self.sparsity) > outlook.sparsity + 1e-6 and outlook.attached:
            raise RecipeError(
                "sparsity: a candidate cannot be pruned further while layers are attached: search before attach, drop "
                "the attached layers first, or leave sparsity out"
            )
        return replace(outlook, kept={**outlook.kept, self.keep: _KEPT_AS[self.kind]})

    def is_used(self, following: Sequence[Stage]) -> bool:
        """Whether a later stage names what this one keeps."""
        inner = [stage.train if isinstance(stage, Search) else stage for stage in following]
        augments = [stage.augment for stage in inner if isinstance(stage, Train)]
        return any(self.keep in (augment.magnitude, augment.policy) for augment in augments)

    def title(self) -> str:
        if self.kind == "population":
            return f"search policies, {self.population} members, keep {self.keep}"
        places = f"at {len(self.sparsity)} sparsities, " if self.sparsity and len(self.sparsity) > 1 else ""
        return f"search magnitudes {places}keep {self.keep}"

    def plan(self) -> dict[str, str]:
        row = self.train.plan()
        if self.kind == "population":
            return {**row, "epochs": f"{self.population} x {self.train.epochs}", "magnitude": "searched"}
        from compress_aug.stages.sweep import trainings

        return {**row, "epochs": f"{trainings(self)} x {self.train.epochs}", "magnitude": "searched"}

    def run(self, state: State, setup: Setup) -> State:
        from compress_aug.stages.policies import find_policies
        from compress_aug.stages.sweep import find_magnitudes

        if setup.fabric.world_size > 1:
            raise RecipeError("search: runs in one process; start it on one device")
        found = (
            find_policies(self, state, setup)
            if self.kind == "population"
            else find_magnitudes(self, state, setup)
        )
        return replace(state, kept={**state.kept, self.keep: found})
