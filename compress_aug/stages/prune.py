"""prune: single weights go to zero, and stay there."""

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from compress_aug.errors import RecipeError
from compress_aug.schedule import Ramp, extremes
from compress_aug.stages.augmentation import check_kept
from compress_aug.stages.base import KEPT_NAME, Outlook, Part, Setup, Stage, State, percent

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compress_aug.surgery import LogEntry

_LAYERS = "names, globs or types of the layers that take part; all by default"
_EXCLUDE = "names, globs or types of layers that are left as they are"


def _can_hold_masks(outlook: Outlook) -> None:
    # Their weights would count in the share, and be gone with it after the drop.
    if outlook.attached:
        raise RecipeError("prune cannot follow attach: prune before it, or drop the attached layers first")
    if not outlook.zero_weights:
        raise RecipeError(
            "DoReFa weights have no level at zero, so that none can be pruned: prune first, and quantize by "
            "scheme: integer"
        )


def _rising(sparsity: float, outlook: Outlook) -> None:
    if sparsity < outlook.sparsity:
        raise RecipeError(
            f"sparsity: {sparsity:g} is lower than the {outlook.sparsity:g} of an earlier stage; "
            "sparsity is the total after the stage and can only grow"
        )


def _some_layers(given: object, key: str) -> object:
    """Told before pydantic looks, whose words for it are about lengths and types."""
    if isinstance(given, str):
        raise ValueError(f'expected a list of names, globs or types: write {key}: ["{given}"]')
    if given == []:
        means = "all layers take part" if key == "layers" else "no layer is left out"
        raise ValueError(f"the list is empty: name at least one layer, or leave {key} away ({means})")
    return given


def _of(layers: list[str] | None, exclude: list[str] | None) -> str:
    """Which layers, for a title."""
    return (f" of {', '.join(layers)}" if layers else "") + (f" but {', '.join(exclude)}" if exclude else "")


class Gradual(Part):
    """Within a `train`: the smallest weights go little by little (arXiv 1710.01878)."""

    sparsity: Ramp = Field(description="from the first step on, and from `until` on")
    every: float = Field(
        0.01, gt=0, le=1, description="share of the training after which the masks grow again"
    )
    until: float = Field(0.75, gt=0, le=1, description="share of the training after which the end is reached")
    scope: Literal["global", "layer"] = "global"
    layers: list[str] | None = Field(None, min_length=1, description=_LAYERS)
    exclude: list[str] | None = Field(None, min_length=1, description=_EXCLUDE)

    @field_validator("layers", "exclude", mode="before")
    @classmethod
    def _some(cls, given: object, info: ValidationInfo) -> object:
        return _some_layers(given, str(info.field_name))

    @field_validator("sparsity")
    @classmethod
    def _grows(cls, given: Ramp) -> Ramp:
        low, high = extremes(given)
        if low < 0 or high >= 1 or given.end < given.start:
            raise ValueError(
                f"expected a sparsity that grows within 0..1, as {{start: 0, end: 0.6, shape: cubic}} does, found "
                f"{given.start:g} to {given.end:g}"
            )
        return given

    def foresee(self, outlook: Outlook) -> Outlook:
        """What will be known after the training. Raises RecipeError if zeros would have to come back."""
        _can_hold_masks(outlook)
        if self.layers or self.exclude:
            return outlook
        _rising(self.sparsity.start, outlook)
        return replace(outlook, sparsity=self.sparsity.end)

    def title(self) -> str:
        """A few words for tables."""
        return f"pruned to {percent(self.sparsity.end)}{_of(self.layers, self.exclude)}"

    def on_step(self) -> "Callable[[nn.Module, float], None]":
        """What the training calls before each step."""
        from compress_aug.pruning import gradual

        ramp = self.sparsity
        return gradual(
            ramp.start,
            ramp.end,
            ramp.shape,
            steps=ramp.steps,
            every=self.every,
            until=self.until,
            scope=self.scope,
            layers=self.layers,
            exclude=self.exclude,
        )


class Prune(Stage):
    """Zero single weights: the smallest, random ones, N:M. They stay zero through all that follows."""

    # One of them, which a list of required keys cannot say.
    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": [key]} for key in ("sparsity", "pattern", "like")]}
    )

    word: ClassVar[str] = "prune"

    sparsity: float | None = Field(
        None, ge=0, lt=1, description="total share of the (chosen) prunable weights that are zero afterwards"
    )
    scope: Literal["global", "layer"] = Field(
        "global", description="global ranks all layers together, layer takes the same share from each"
    )
    method: Literal["l1", "random"] = Field(
        "l1", description="which weights go: the smallest, or random ones"
    )
    pattern: str | None = Field(
        None, description='"2:4": of every 4 consecutive input weights the 2 largest stay; sets the sparsity'
    )
    layers: list[str] | None = Field(None, min_length=1, description=_LAYERS)
    exclude: list[str] | None = Field(None, min_length=1, description=_EXCLUDE)
    like: str | None = Field(
        None, description="a run's folder, or the name of a kept model, whose masks are taken"
    )

    @field_validator("layers", "exclude", mode="before")
    @classmethod
    def _some(cls, given: object, info: ValidationInfo) -> object:
        return _some_layers(given, str(info.field_name))

    @field_validator("pattern")
    @classmethod
    def _n_of_m(cls, given: str | None) -> str | None:
        found = re.fullmatch(r"(\d+):(\d+)", given or "1:2")
        if not found or not 0 < int(found[1]) < int(found[2]):
            raise ValueError(f'expected N:M, N of M weights stay, such as "2:4", found "{given}"')
        return given

    @model_validator(mode="after")
    def _one_way(self) -> "Prune":
        set_keys = [
            key
            for key, field in type(self).model_fields.items()
            if getattr(self, key) != field.default and key != "like"
        ]
        if self.like is not None:
            if set_keys:
                raise ValueError(f"like takes masks as they are: leave out {', '.join(set_keys)}, or like")
        elif self.pattern is not None:
            self._check_pattern()
        elif self.sparsity is None:
            raise ValueError("expected sparsity, or pattern, or like")
        return self

    def _check_pattern(self) -> None:
        if self.method != "l1" or self.scope != "global":
            raise ValueError(
                "a pattern keeps the largest of each group: leave out method and scope, or pattern"
            )
        stay, size = map(int, str(self.pattern).split(":"))
        follows = 1 - stay / size
        if self.sparsity is not None and abs(self.sparsity - follows) > 1e-6:
            raise ValueError(
                f"pattern {self.pattern} is a sparsity of {follows:g} in the layers that it fits, found "
                f"{self.sparsity:g}: leave out sparsity"
            )

    def foresee(self, outlook: Outlook) -> Outlook:
        _can_hold_masks(outlook)
        if self.like is not None:
            self._check_like(self.like, outlook)
        # What share of all weights chosen layers are, and what another model's masks leave, only the model can
        # tell: what is known stays the least that is zero.
        if self.like or self.pattern or self.layers or self.exclude or self.sparsity is None:
            return outlook
        _rising(self.sparsity, outlook)
        return replace(outlook, sparsity=self.sparsity)

    def _check_like(self, like: str, outlook: Outlook) -> None:
        if not _is_path(like):
            hint = f"; for the run's folder write ./{like}" if Path(like).is_dir() else ""
            try:
                check_kept(outlook, like, "model", "like")
            except RecipeError as error:
                raise RecipeError(f"{error}{hint}") from None
            return
        path = checkpoint_of(Path(like))
        if path is None:
            raise RecipeError(
                f"like: there is no run with a finished stage in {like}, neither as seen from the current folder "
                "nor from the recipe's; run that one first"
            )
        if not _has_masks(path):
            raise RecipeError(f"like: {path} holds no masks: name a run that prunes")

    def with_files(self, place: Callable[[str], str]) -> "Prune":
        if self.like is None or not _is_path(self.like):
            return self
        if self.like.endswith(_SUFFIX):
            return self.model_copy(update={"like": place(self.like)})
        # Each run has a recipe.yaml, so that one is what to look for where files are found.
        path = checkpoint_of(Path(self.like)) or checkpoint_of(Path(place(f"{self.like}/recipe.yaml")).parent)
        return self if path is None else self.model_copy(update={"like": place(str(path))})

    def title(self) -> str:
        if self.like is not None:
            return f"prune like {'another run' if _is_path(self.like) else self.like}"
        if self.pattern is not None:
            return f"prune {self.pattern}{_of(self.layers, self.exclude)}"
        at_random = " at random" if self.method == "random" else ""
        return f"prune to {percent(self.sparsity or 0)}{_of(self.layers, self.exclude)}{at_random}"

    def run(self, state: State, setup: Setup) -> State:
        from compress_aug.pruning import chosen_layers, mask_like, mask_pattern, mask_random, mask_smallest
        from compress_aug.surgery import surgery_log

        which: dict[str, Any] = {"layers": self.layers, "exclude": self.exclude}
        if self.like is not None:
            return replace(state, model=mask_like(state.model, self._masks(self.like, state)))
        if self.pattern is not None:
            model = mask_pattern(state.model, self.pattern, **which)
            dense = surgery_log(model)[-1]["dense"]
            if dense:
                setup.note(
                    f"{self.pattern} does not fit the input channels of {', '.join(dense)}: left as they are"
                )
            return replace(state, model=model)
        sparsity = self.sparsity or 0.0
        chosen = chosen_layers(state.model, **which)
        if _cut_since_masked(surgery_log(state.model), chosen):
            groups = [[name] for name in chosen] if self.scope == "layer" else [list(chosen)]
            over = [group for group in groups if _zeros(chosen, group) > sparsity]
            for group in over:
                whose = f' of "{group[0]}"' if self.scope == "layer" else ""
                setup.note(
                    f"cutting channels left {percent(_zeros(chosen, group))} zeros{whose}, more than asked for: "
                    f"the masks stay as they are"
                )
            if len(over) == len(groups):
                return state
            if over:
                which = {"layers": [name for group in groups if group not in over for name in group]}
        if self.method == "random":
            model = mask_random(state.model, sparsity, self.scope, seed=setup.seed, **which)
        else:
            model = mask_smallest(state.model, sparsity, self.scope, **which)
        return replace(state, model=model)

    def _masks(self, like: str, state: State) -> "dict[str, Tensor]":
        from compress_aug.pruning import masks_of, read_masks

        if not _is_path(like):
            kept: Any = state.kept[like]
            return masks_of(kept)
        path = checkpoint_of(Path(like))
        return read_masks(path or Path(like))


def _cut_since_masked(log: "list[LogEntry]", layers: "dict[str, nn.Module]") -> bool:
    """Whether the zeros of these layers are what a cut left of earlier ones."""
    for entry in reversed(log):
        if entry["verb"] == "mask" and not layers.keys().isdisjoint(entry["layers"]):
            return False
        if entry["verb"] == "cut_channels":
            return True
    return False


def _zeros(layers: "dict[str, nn.Module]", names: list[str]) -> float:
    """The share of these layers' weights that is masked, in [0, 1]."""
    from compress_aug.measure import effective_weight

    masks = [getattr(layers[name], "weight_mask", None) for name in names]
    masked = sum(int((mask == 0).sum()) for mask in masks if mask is not None)
    return masked / sum(effective_weight(layers[name]).numel() for name in names)


_SUFFIX = ".safetensors"


def _is_path(like: str) -> bool:
    return not re.fullmatch(KEPT_NAME, like)


def checkpoint_of(place: Path) -> Path | None:
    """The checkpoint after the last finished stage of a run's folder; a checkpoint itself; None if there is none."""
    if place.suffix == _SUFFIX:
        return place if place.is_file() else None
    if not (place / "recipe.yaml").is_file():
        return None
    folders = {int(path.parent.name.split("-")[0]): path.parent for path in place.glob("[0-9]*-*/done.json")}
    # As when it is resumed: a stage before which one is missing is not done.
    done = [folders[number] for number in takewhile(folders.__contains__, range(len(folders)))]
    paths = [folder / f"model{_SUFFIX}" for folder in [place / "start", *done]]
    return next((path for path in reversed(paths) if path.is_file()), None)


def _has_masks(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    from compress_aug.surgery import masked_layer

    try:
        with safe_open(path, framework="numpy") as opened:
            return any(masked_layer(name) is not None for name in opened.keys())  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RecipeError(f"like: {path} is not a checkpoint: {error}") from None
