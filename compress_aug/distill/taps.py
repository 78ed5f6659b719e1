"""Feature taps: maps inside a model, found by rule or named by module path, read through hooks that leave no trace."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from compress_aug.distill.probe import Event, Key, Seen, is_quantizer, look
from compress_aug.errors import ModelError, RecipeError, nearest

# Letters of shapes in this folder, beside those of batch.py:
#   D channels of a feature map, P its positions: H * W of a map (N, D, H, W), or the tokens of one (N, P, D).

Wanted = Literal["auto"] | Sequence[str]


@dataclass(frozen=True)
class Tap:
    """Where a feature map is read.

    call:  the how-manieth call of the module in a forward pass, from 1; None is the last
    reads: what the module reads instead of what it returns

    >>> str(Tap.parse("layer1.0.relu:2")), Tap.parse("conv2:input")
    ('layer1.0.relu:2', Tap(path='conv2', call=None, reads=True))

    Raises RecipeError for a text of another form.
    """

    path: str
    call: int | None = None
    reads: bool = False

    @classmethod
    def parse(cls, text: str) -> "Tap":
        """`PATH`, `PATH:CALL`, `PATH:input` or `PATH:CALL:input`."""
        path, *marks = text.split(":")
        reads = marks[-1:] == ["input"]
        numbers = marks[:-1] if reads else marks
        if not path or len(numbers) > 1 or not all(n.isdecimal() and int(n) > 0 for n in numbers):
            raise RecipeError(
                f'"{text}" is no tap: write the path of a module (layer1), its second call (relu:2), or what it reads '
                "(conv2:input)"
            )
        return cls(path, int(numbers[0]) if numbers else None, reads)

    def __str__(self) -> str:
        number = f":{self.call}" if self.call is not None else ""
        return f"{self.path}{number}{':input' if self.reads else ''}"


class Taps:
    """Reads feature maps of a model while it runs, through hooks that `close` (or the end of a `with`) removes.

    example: float (N, C, H, W): the model runs on it once, in eval mode and without gradients, to find the taps
    taps:    "auto": of each resolution above 1x1 what the last activation function put out, as far as a module
             returns or reads it. Or texts as `Tap` reads them
    with_gradients_only: maps are kept only of passes that a gradient can go back through

    Values are read as they are before the quantizer behind them, if the model is quantized. `state_dict` knows
    nothing of taps, and in a copy of the model nobody listens.

    >>> with Taps(model, torch.zeros(1, 3, 8, 8)) as taps:
    ...     _ = model(torch.zeros(2, 3, 8, 8))
    ...     [(name, tuple(features.shape)) for name, features in zip(taps.names, taps.take())]
    [('5', (2, 8, 8, 8))]

    Raises RecipeError for paths that the model has not, does not run, or where there is no feature map, and if the
    rule finds none.

    Source: arXiv 2004.08861 taps the last ReLU of each stage of a ResNet; the rule for other nets is ours.
    """

    def __init__(
        self, model: nn.Module, example: Tensor, taps: Wanted = "auto", *, with_gradients_only: bool = False
    ) -> None:
        seen = look(model, example)
        calls = Counter(event.module for event in seen.events if event.reads)
        events = _by_rule(seen, calls) if taps == "auto" else [_named(model, seen, text) for text in taps]
        self.names = [_name(event, calls) for event in events]
        self.widths = [_width(event) for event in events]
        self._maps: list[Tensor | None] = [None] * len(events)
        self._calls = [0] * len(events)
        self._listens = torch.is_grad_enabled if with_gradients_only else lambda: True
        self._handles: list[Any] = [model.register_forward_pre_hook(_Hook(self._begin))]
        for place, event in enumerate(events):
            self._hang(place, event)

    def _hang(self, place: int, event: Event) -> None:
        # Not the event itself, which holds a map.
        call, overwritten = event.call, event.is_overwritten

        def keep(value: object) -> None:
            self._calls[place] += 1
            if self._calls[place] == call and isinstance(value, Tensor) and self._listens():
                self._maps[place] = value.clone() if overwritten else value

        if event.reads:
            before = _Hook(lambda module, inputs: keep(inputs[0]))
            self._handles.append(event.module.register_forward_pre_hook(before))
        else:
            behind = _Hook(lambda module, inputs, output: keep(output))
            self._handles.append(event.module.register_forward_hook(behind))

    def _begin(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._maps = [None] * len(self._maps)
        self._calls = [0] * len(self._calls)

    def take(self) -> list[Tensor]:
        """The maps of the last forward pass, (N, D, H, W) or (N, P, D) each, which are then let go.

        Raises ModelError if a tap was not run in it.
        """
        maps, self._maps = self._maps, [None] * len(self._maps)
        found = [features for features in maps if features is not None]
        if len(found) < len(maps):
            missing = [name for name, features in zip(self.names, maps, strict=True) if features is None]
            raise ModelError(
                f"Nothing came by at the tap {', '.join(missing)} in this forward pass, though it did in the first: "
                "name taps that are run every time."
            )
        return found

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._maps = [None] * len(self._maps)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Hook:
    """A function as a hook, of which a copied model has none: a copy would write into the taps of the first one."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __call__(self, *given: Any) -> None:
        self._function(*given)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _deaf


def _deaf(*given: Any) -> None:
    """What a hook of ours is in a copy of the model."""


def _by_rule(seen: Seen, calls: Counter[nn.Module]) -> list[Event]:
    """Of each resolution the last output of an activation that can be read, in the order of the network."""
    places: dict[Key, list[Event]] = {}
    for event in seen.events:
        places.setdefault(event.key, []).append(event)
    last: dict[torch.Size, tuple[int, Event]] = {}
    for order, (key, tensor) in enumerate(seen.made):
        if tensor.ndim == 4 and tensor.shape[2:].numel() > 1 and key in places:
            # Where a container returns it, its name says more than that of the layer inside.
            best = min(
                places[key], key=lambda e: (e.reads, calls[e.module] > 1, e.path.count("."), len(e.path))
            )
            last[tensor.shape[2:]] = (order, best)
    if not last:
        raise RecipeError(
            "no feature map was found that an activation puts out and a module returns or reads: name the taps by "
            "the paths of modules, taps: [features.3, features.6]"
        )
    return [event for _, event in sorted(last.values(), key=lambda found: found[0])]


def _named(model: nn.Module, seen: Seen, text: str) -> Event:
    """The event that a tap means. Raises RecipeError if there is none, or no feature map."""
    tap = Tap.parse(text)
    modules = dict(model.named_modules(remove_duplicate=False))
    if tap.path not in modules:
        known = [name for name in modules if name]
        hint = nearest(tap.path, known)
        hint = hint if "did you" in hint else f"its parts are {_some(dict(model.named_children()))}"
        raise RecipeError(f'no module is called "{tap.path}" in {type(model).__name__}; {hint}')
    events = [
        event for event in seen.events if event.module is modules[tap.path] and event.reads == tap.reads
    ]
    if tap.call is not None:
        events = [event for event in events if event.call == tap.call]
    if not events:
        raise RecipeError(
            f'the tap "{text}" is not run in a forward pass, or no tensor comes by there: name another module'
        )
    event = _unquantized(seen, events[-1])
    if event.tensor.ndim not in (3, 4):
        shape = tuple(event.tensor.shape)
        raise RecipeError(
            f'at the tap "{text}" there is no feature map (images, channels, height, width) or (images, tokens, '
            f"channels), but {shape}: name an earlier module"
        )
    return event


def _unquantized(seen: Seen, event: Event) -> Event:
    """The same value before the quantizer that it went through last, if it did."""
    for other in seen.events:
        if not other.reads and other.key == event.key and is_quantizer(other.module):
            return next(
                e for e in seen.events if e.reads and (e.module, e.call) == (other.module, other.call)
            )
    return event


def _name(event: Event, calls: Counter[nn.Module]) -> str:
    return str(Tap(event.path, event.call if calls[event.module] > 1 else None, event.reads))


def _width(event: Event) -> int:
    """The channels of the map: D of (N, D, H, W) or of (N, P, D)."""
    return event.tensor.shape[1 if event.tensor.ndim == 4 else 2]


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:8]) + (" ..." if len(listed) > 8 else "")


def positions(features: Tensor) -> Tensor:
    """A map (N, D, H, W) or (N, P, D) as a matrix of positions and channels, (N, P, D), in float32."""
    if features.ndim == 4:
        # Channels last first: reshaped as it is, a row would mix channels and positions.
        features = features.permute(0, 2, 3, 1).flatten(1, 2)
    return features if features.dtype == torch.float64 else features.float()
