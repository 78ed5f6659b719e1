"""Our own file of a schedule, YAML that people read and edit: of policies, or of RandAugment's magnitude."""

from collections import Counter
from collections.abc import Iterator, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML

from compress_aug.errors import RecipeError, nearest
from compress_aug.policies.file_keys import FileKeys, MagnitudeFile, PolicyFile, SegmentKeys
from compress_aug.policies.files import write_text
from compress_aug.policies.policy import Policy
from compress_aug.policies.provenance import plain_mapping
from compress_aug.policies.schedule import PolicySchedule, Segment
from compress_aug.policies.space import COPIES, ENTRIES, MAX_PROBABILITY, OPERATIONS, SPACE
from compress_aug.reading import Document, ended, parse_yaml, read_yaml, sentences
from compress_aug.schedule import AnySchedule

FORMAT = 1
MAGNITUDE_SPACE = "randaugment30"

_KINDS: dict[str, type[FileKeys]] = {SPACE: PolicyFile, MAGNITUDE_SPACE: MagnitudeFile}


def read_schedule(path: str | Path) -> PolicySchedule | AnySchedule:
    """The schedule that `write_schedule` wrote, or somebody by hand.

    `space: pba15x2` gives a PolicySchedule: `epochs`, and `segments` of `epochs` and `ops`. The first mention of
    an operation within `ops` is its first copy, the second mention the second; one that is not mentioned has
    probability and magnitude 0. `space: randaugment30` gives a schedule of RandAugment's magnitude 0..30: a number,
    or a mapping as in a recipe. Nothing in the file is run.

    Raises RecipeError with file, line and key of every mistake.
    """
    if Path(path).suffix == ".txt":
        raise RecipeError(
            f"{path} looks like a log: `compress-aug convert-schedule {path} schedule.yaml --epochs E` makes a "
            "schedule file of it."
        )
    return _schedule(read_yaml(Path(path)))


def parse_schedule(text: str, name: str) -> PolicySchedule | AnySchedule:
    """The schedule in the text of such a file. name: what errors call it. Raises RecipeError as `read_schedule`."""
    return _schedule(parse_yaml(text, name=name))


def write_schedule(
    schedule: PolicySchedule | AnySchedule, path: str | Path, provenance: Mapping[str, Any] | None = None
) -> None:
    """Write a schedule as YAML that `read_schedule` reads back to an equal one, all 60 numbers of each policy.

    schedule:   of policies, or of RandAugment's magnitude 0..30
    provenance: plain values that say where it comes from; they join those of a PolicySchedule, and win

    Raises RecipeError for a magnitude out of range, values that are not plain, and a file that cannot be written.

    >>> rotate = Policy.from_vector([3, 7] + [0] * 58)
    >>> write_schedule(PolicySchedule(4, (Segment(4, rotate),)), "a.yaml", {"seed": 0})
    >>> print(Path("a.yaml").read_text())
    # An operation that is listed twice has two copies; one that is not listed is off.
    format: 1
    space: pba15x2
    epochs: 4
    segments:
      - epochs: 4
        ops:
          - {op: Rotate, probability: 0.3, magnitude: 7}
    provenance:
      seed: 0
    """
    given = plain_mapping(provenance or {})
    if isinstance(schedule, PolicySchedule):
        body = "\n".join(_policy_lines(schedule))
        given = {**schedule.provenance, **given}
    else:
        body = f"format: {FORMAT}\nspace: {MAGNITUDE_SPACE}\nmagnitude: {_flow(_checked_magnitude(schedule))}"
    text = f"{body}\n{_block({'provenance': given}) if given else ''}"
    # A schedule can have more values than a reader takes from strangers: better told now than at its use.
    written = parse_yaml(text, name=f"{path} (not written)").data
    if written.get("provenance", {}) != given:
        raise RecipeError("provenance: holds a control character that YAML does not keep; leave it out")
    write_text(Path(path), text)


def _schedule(document: Document) -> PolicySchedule | AnySchedule:
    kind = _kind(document)
    try:
        found = kind.model_validate(document.data)
    except ValidationError as error:
        raise RecipeError(
            [f"{document.where(key)}: {ended(sentence)}" for key, sentence in sentences(error, kind)]
        ) from None
    if isinstance(found, MagnitudeFile):
        return found.magnitude
    assert isinstance(found, PolicyFile)
    return _policy_schedule(found, document)


def _kind(document: Document) -> type[FileKeys]:
    """Which keys to expect: `format` and `space` decide, so they are looked at first."""
    data = document.data
    if not isinstance(data, dict):
        raise RecipeError(f"{document.name}: expected keys and values, beginning with format: {FORMAT}.")
    if "stages" in data:
        raise RecipeError(f"{document.name}: this is a recipe, not a schedule file.")
    for word in ("format", "space"):
        if word not in data:
            raise RecipeError(f'{document.where(())}: the key "{word}" is missing.')
    if data["format"] != FORMAT or not isinstance(data["format"], int) or isinstance(data["format"], bool):
        raise RecipeError(f"{document.where(('format',))}: expected {FORMAT}, found {data['format']!r}.")
    space = data["space"]
    if not isinstance(space, str) or space not in _KINDS:
        sentence = f'there is no space "{space}": {nearest(str(space), list(_KINDS))}'
        raise RecipeError(f"{document.where(('space',))}: {ended(sentence)}")
    return _KINDS[space]


def _policy_schedule(found: PolicyFile, document: Document) -> PolicySchedule:
    problems = [
        f"{document.where(('segments', n, 'ops', place))}: {op} stands here a third time; "
        f"an operation has {COPIES} copies."
        for n, segment in enumerate(found.segments)
        for place, op in _third_mentions(segment)
    ]
    total = sum(segment.epochs for segment in found.segments)
    if total != found.epochs:
        problems.append(
            f"{document.where(('segments',))}: their epochs add up to {total}, but epochs is {found.epochs}."
        )
    if problems:
        raise RecipeError(problems)
    segments = tuple(Segment(segment.epochs, _policy(segment)) for segment in found.segments)
    return PolicySchedule(found.epochs, segments, found.provenance)


def _third_mentions(segment: SegmentKeys) -> Iterator[tuple[int, str]]:
    seen: Counter[str] = Counter()
    for place, entry in enumerate(segment.ops):
        seen[entry.op] += 1
        if seen[entry.op] == COPIES + 1:
            yield place, entry.op


def _policy(segment: SegmentKeys) -> Policy:
    probabilities, magnitude = [0] * len(ENTRIES), [0] * len(ENTRIES)
    seen: Counter[str] = Counter()
    for entry in segment.ops:
        place = OPERATIONS.index(entry.op) + seen[entry.op] * len(OPERATIONS)
        seen[entry.op] += 1
        probabilities[place] = round(entry.probability * MAX_PROBABILITY)
        magnitude[place] = entry.magnitude
    return Policy(tuple(probabilities), tuple(magnitude))


def _policy_lines(schedule: PolicySchedule) -> Iterator[str]:
    yield "# An operation that is listed twice has two copies; one that is not listed is off."
    yield f"format: {FORMAT}\nspace: {SPACE}\nepochs: {schedule.epochs}\nsegments:"
    for segment in schedule.segments:
        yield f"  - epochs: {segment.epochs}"
        entries = list(_entry_lines(segment.policy))
        yield "    ops:" if entries else "    ops: []"
        yield from entries


def _entry_lines(policy: Policy) -> Iterator[str]:
    numbers = list(zip(policy.probabilities, policy.magnitudes, strict=True))
    half = len(OPERATIONS)
    for place, (op, (probability, magnitude)) in enumerate(zip(ENTRIES, numbers, strict=True)):
        # A first copy that is off keeps its line where the second is not: mentions are counted.
        if any(numbers[place]) or (place < half and any(numbers[place + half])):
            share = probability / MAX_PROBABILITY
            yield f"      - {{op: {op}, probability: {share:.1f}, magnitude: {magnitude}}}"


def _checked_magnitude(schedule: AnySchedule) -> AnySchedule:
    data = {"format": FORMAT, "space": MAGNITUDE_SPACE, "magnitude": schedule}
    try:
        return MagnitudeFile.model_validate(data).magnitude
    except ValidationError as error:
        problems = [f"magnitude: {ended(sentence)}" for _, sentence in sentences(error, MagnitudeFile)]
        raise RecipeError(problems) from None


def _flow(value: Any) -> str:
    """A number, word or mapping of them on one line."""
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_defaults=True)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _block(data: dict[str, Any]) -> str:
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.allow_unicode = True
    yaml.width = 110
    out = StringIO()
    yaml.dump(data, out)
    return out.getvalue()
