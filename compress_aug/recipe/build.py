"""From the plain data of a YAML file to stages: defaults merged, repeats unrolled, every problem collected."""

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compress_aug.calls import import_call
from compress_aug.errors import UserError, nearest
from compress_aug.reading import Document, Key, sentences
from compress_aug.schedule import Ramp, over_rounds
from compress_aug.stages import STAGES, Stage
from compress_aug.stages.base import Part
from compress_aug.targets import target_names

VERSION = 1
TOP_KEYS = ("version", "name", "model", "data", "seed", "target", "variables", "defaults", "stages")
_COLUMN = re.compile(r"\$(\w+)")


class Build:
    """Turns a document into stages. `problems` holds a sentence for each thing that is wrong with it.

    stages: the unrolled list;  places: file, line and key of each
    """

    def __init__(self, document: Document) -> None:
        self._document = document
        self.problems: list[str] = []
        self.stages: list[Stage] = []
        self.places: list[str] = []
        self._defaults: dict[str, dict[str, Any]] = {}

    def _problem(self, key: Key, sentence: str) -> None:
        self.problems.append(f"{self._document.where(key)}: {sentence}")

    def read(self, name: str) -> dict[str, Any]:
        """Read everything; returns the top-level values by name (model, data, seed, target, name)."""
        data = self._document.data
        if not isinstance(data, dict):
            self._problem((), "expected a recipe with the keys version and stages")
            return {}
        if "study" in data:
            self._problem((), "this is a study of several runs: use `compress-aug study`")
            return {}
        for word in data:
            if word not in TOP_KEYS:
                self._problem((word,), f'unknown key "{word}": {nearest(str(word), TOP_KEYS)}')
        self._check_version(data)
        variables = self._variables(data)
        self._read_defaults(data.get("defaults", {}), variables)
        stages = data.get("stages")
        if not isinstance(stages, list) or not stages:
            self._problem(
                ("stages",) if "stages" in data else (), "stages: expected a list of at least one stage"
            )
        else:
            self._read_stages(stages, ("stages",), variables, "")
        return {
            "model": self._typed(data, "model", (str, dict), None, "a name or {call: ...}"),
            "data": self._typed(data, "data", (str, dict), None, "a name, {folder: ...} or {call: ...}"),
            "seed": self._seed(data),
            "target": self._target(data),
            "name": self._typed(data, "name", (str,), name, "a word"),
        }

    def _variables(self, data: dict[Any, Any]) -> dict[str, Any]:
        """What $names stand for in all stages and defaults."""
        given = data.get("variables")
        if given is None:
            return {}
        if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
            self._problem(("variables",), "expected names and values, such as {student_schedule: student}")
            return {}
        used = names_in([data.get("stages"), data.get("defaults")])
        for name in given:
            if self._is_name(name, ("variables", name)) and name not in used:
                self._problem(("variables", name), f"no stage uses ${name}: write it where the value belongs")
        return dict(given)

    def _is_name(self, name: object, key: Key) -> bool:
        """Whether a $name can be written for it; if not, it is told."""
        if isinstance(name, str) and re.fullmatch(r"\w+", name):
            return True
        self._problem(key, f'"{name}" cannot be written as a $name: use letters, digits and _')
        return False

    def _check_version(self, data: dict[Any, Any]) -> None:
        if "version" not in data:
            self._problem((), f"the key version is missing: write version: {VERSION} at the top")
        elif data["version"] != VERSION or isinstance(data["version"], bool):
            self._problem(("version",), f"expected version: {VERSION}, found {data['version']!r}")

    def _typed(
        self, data: dict[Any, Any], key: str, kinds: tuple[type, ...], default: Any, expected: str
    ) -> Any:
        given = data.get(key)
        if given is None:
            return default
        if not isinstance(given, kinds) or isinstance(given, bool):
            self._problem((key,), f"expected {expected}, found {given!r}")
            return default
        return given

    def _seed(self, data: dict[Any, Any]) -> int:
        seed: int = self._typed(data, "seed", (int,), 0, "a whole number")
        if not 0 <= seed < 2**63:
            self._problem(("seed",), f"expected a whole number in 0..2^63-1, found {seed}")
        return seed

    def _target(self, data: dict[Any, Any]) -> str:
        target: str = self._typed(data, "target", (str,), "host_cpu", "a device's name or a path")
        if target not in target_names() and not Path(target).is_file():
            self._problem(("target",), f'there is no target "{target}": {nearest(target, target_names())}')
        return target

    def _read_defaults(self, defaults: Any, variables: Mapping[str, Any]) -> None:
        if not isinstance(defaults, dict):
            self._problem(("defaults",), "expected stage words with their keys, such as {train: {lr: 0.1}}")
            return
        for word, given in defaults.items():
            if word not in STAGES:
                self._problem(
                    ("defaults", word), f'unknown stage "{word}": {nearest(str(word), list(STAGES))}'
                )
                continue
            if isinstance(given, str):
                given, _ = fill(given, variables)
            if not isinstance(given, dict):
                self._problem(("defaults", word), f"expected keys and values, found {given!r}")
                continue
            known = list(STAGES[word].model_fields)
            for key in [key for key in given if key not in known]:
                self._problem(("defaults", word, key), f'unknown key "{key}": {nearest(str(key), known)}')
            self._defaults[word] = {key: value for key, value in given.items() if key in known}

    def _read_stages(self, items: list[Any], key: Key, columns: Mapping[str, Any], round_text: str) -> None:
        for number, item in enumerate(items):
            here = (*key, number)
            if isinstance(item, str):
                item = {item: {}}
            if not isinstance(item, dict) or len(item) != 1:
                self._problem(
                    here, "expected one stage, such as `- train: {epochs: 5}`; is the indentation right?"
                )
                continue
            ((word, arguments),) = item.items()
            if word == "repeat":
                self._repeat(arguments, (*here, word), columns, round_text)
            else:
                self._stage(word, {} if arguments is None else arguments, (*here, word), columns, round_text)

    def _repeat(self, given: Any, key: Key, columns: Mapping[str, Any], round_text: str) -> None:
        if not isinstance(given, dict) or not isinstance(given.get("stages"), list) or "rounds" not in given:
            self._problem(key, "expected rounds (a number, or a list of rows) and stages (a list)")
            return
        own, missing = fill({name: value for name, value in given.items() if name != "stages"}, columns)
        if missing:
            self._tell_missing(missing, columns, key, round_text)
            return
        rows = self._rows(own, key)
        words = {name for row in rows for name in row}
        for name in sorted(words, key=str):
            self._is_name(name, (*key, name) if name in given else (*key, "rounds"))
        used = names_in([given["stages"], self._defaults])
        for unused in sorted(words - used, key=str):
            place = (*key, unused) if unused in given else (*key, "rounds")
            if isinstance(unused, str) and re.fullmatch(r"\w+", unused):
                self._problem(
                    place, f'no stage of this repeat uses ${unused}: write it where "{unused}" belongs'
                )
        for number, row in enumerate(rows, 1):
            where = f"{round_text}round {number}, "
            self._read_stages(given["stages"], (*key, "stages"), {**columns, **row}, where)

    def _rows(self, given: dict[str, Any], key: Key) -> list[dict[str, Any]]:
        """One dict of columns per round, from a list of rows or from the short form with ramps."""
        rounds = given["rounds"]
        ramps = {name: value for name, value in given.items() if name not in ("rounds", "stages")}
        if isinstance(rounds, list):
            if ramps:
                self._problem(
                    key, f'a list of rounds holds its columns itself; "{next(iter(ramps))}" belongs there'
                )
            bad = [n for n, row in enumerate(rounds) if not isinstance(row, dict)]
            for n in bad:
                self._problem((*key, "rounds", n), "expected a row such as {sparsity: 0.2, magnitude: 12}")
            if not rounds:
                self._problem((*key, "rounds"), "expected at least one row")
            return [] if bad else rounds
        if not isinstance(rounds, int) or isinstance(rounds, bool) or not 1 <= rounds <= 1000:
            self._problem(
                (*key, "rounds"), f"expected a list of rows or a number in 1..1000, found {rounds!r}"
            )
            return []
        before = len(self.problems)
        columns = {name: self._column(value, rounds, (*key, name)) for name, value in ramps.items()}
        if len(self.problems) > before:
            # Told once: stages without these columns would only repeat it in other words, round by round.
            return []
        return [{name: values[n] for name, values in columns.items()} for n in range(rounds)]

    def _column(self, value: Any, rounds: int, key: Key) -> list[Any]:
        if not isinstance(value, dict):
            return [value] * rounds
        try:
            values = over_rounds(Ramp.model_validate(value), rounds)
        except ValidationError as error:
            for place, sentence in sentences(error, Ramp):
                self._problem((*key, *place), sentence)
            return [None] * rounds
        # A magnitude is a whole number, a sparsity is not: ramps between whole numbers above 1 stay whole.
        whole = all(float(value[end]).is_integer() for end in ("start", "end")) and max(values) > 1
        return [round(v) for v in values] if whole else values

    def _stage(self, word: Any, given: Any, key: Key, columns: Mapping[str, Any], round_text: str) -> None:
        kind = self._stage_class(word, key)
        if kind is None:
            return
        filled, missing = fill(given, columns)
        self._tell_missing(missing, columns, key, round_text)
        if missing:
            return
        if isinstance(filled, dict):
            before = len(self.problems)
            merged = _merged(self._defaults_of(word, columns, round_text), filled, kind)
            filled = self._with_inner_defaults(merged, kind, columns, round_text)
            if len(self.problems) > before:
                return
        try:
            self.stages.append(kind.model_validate(filled))
            self.places.append(self._document.where(key) + (f" ({round_text[:-2]})" if round_text else ""))
        except ValidationError as error:
            for place, sentence in sentences(error, kind):
                own = (*key, *place)
                inherited = ("defaults", word, *place)
                at = (
                    inherited
                    if own not in self._document.lines and inherited in self._document.lines
                    else own
                )
                self._problem(at, round_text + sentence)

    def _tell_missing(
        self, missing: list[str], columns: Mapping[str, Any], key: Key, round_text: str
    ) -> None:
        for name in missing:
            words = list(columns)
            hint = (
                nearest(name, words) if words else "it comes from variables, or from the rounds of a repeat"
            )
            self._problem(key, f"{round_text}${name} has no value: {hint}")

    def _defaults_of(self, word: Any, columns: Mapping[str, Any], round_text: str) -> dict[str, Any]:
        """The defaults of a word, with the values of their $names here."""
        filled, missing = fill(self._defaults.get(word, {}), columns)
        self._tell_missing(missing, columns, ("defaults", word), round_text)
        return dict(filled)

    def _with_inner_defaults(
        self, given: dict[str, Any], kind: type[Stage], columns: Mapping[str, Any], round_text: str
    ) -> dict[str, Any]:
        """A stage within a stage (the `train` of a search) has the defaults of its word too."""
        merged = dict(given)
        for key, value in given.items():
            inner = kind.model_fields[key].annotation if key in kind.model_fields else None
            if isinstance(value, dict) and isinstance(inner, type) and issubclass(inner, Stage):
                merged[key] = _merged(self._defaults_of(inner.word, columns, round_text), value, inner)
        return merged

    def _stage_class(self, word: Any, key: Key) -> type[Stage] | None:
        if word in STAGES:
            return STAGES[word]
        if isinstance(word, str) and ":" in word:
            try:
                kind = import_call(word, "the stage")
            except UserError as error:
                self._problem(key, str(error))
                return None
            if isinstance(kind, type) and issubclass(kind, Stage):
                return kind
            self._problem(key, f'"{word}" is not a class derived from compress_aug.Stage')
            return None
        self._problem(key, f'unknown stage "{word}": {nearest(str(word), [*STAGES, "repeat"])}')
        return None


def names_in(value: Any) -> set[str]:
    """All NAMEs that stand as $NAME anywhere in plain data."""
    if isinstance(value, str):
        return set(_COLUMN.findall(value))
    if isinstance(value, dict):
        return {name for inner in value.values() for name in names_in(inner)}
    return {name for inner in value for name in names_in(inner)} if isinstance(value, list) else set()


def fill(value: Any, columns: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """The value with each $name replaced by its column, and the names that have none."""
    missing = sorted(name for name in names_in(value) if name not in columns)
    if missing:
        return value, missing

    def filled(inner: Any) -> Any:
        if isinstance(inner, str):
            whole = _COLUMN.fullmatch(inner)
            return columns[whole[1]] if whole else _COLUMN.sub(lambda m: str(columns[m[1]]), inner)
        if isinstance(inner, dict):
            return {key: filled(item) for key, item in inner.items()}
        return [filled(item) for item in inner] if isinstance(inner, list) else inner

    return filled(value), []


def _merged(defaults: Mapping[str, Any], given: Mapping[str, Any], kind: type[Part]) -> dict[str, Any]:
    """The stage's keys over the defaults'; within a group of keys (augment, distill, filter) key by key as well."""
    merged = {**copy.deepcopy(dict(defaults)), **given}
    for key, value in given.items():
        both = isinstance(value, dict) and isinstance(defaults.get(key), dict)
        group = _group(kind.model_fields[key].annotation) if both and key in kind.model_fields else None
        if group is not None:
            merged[key] = _merged(defaults[key], value, group)
    return merged


def _group(annotation: Any) -> type[Part] | None:
    """The class of a group of keys, None for a plain value."""
    kinds = getattr(annotation, "__args__", (annotation,))
    groups = (kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Part))
    return next(groups, None)
