"""YAML files read into plain data with the line of every key, and mistakes in them told in one sentence each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from compress_aug.errors import RecipeError, nearest

Key = tuple[str | int, ...]
"""Where a value stands: ("stages", 0, "train", "epochs")."""

_PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq")}

# A recipe is a page of text. Far above that, aliases of aliases are blowing it up on purpose.
_MOST_VALUES = 100_000


def dotted(key: Sequence[str | int]) -> str:
    """A place as users type it.

    >>> dotted(("stages", 0, "train", "epochs"))
    'stages.0.train.epochs'
    """
    return ".".join(str(part) for part in key)


@dataclass
class Document:
    """Plain data (dicts, lists, text, numbers, true, false, null) and the line on which each key stands.

    name:  the file, as it is called in messages
    lines: key -> line, counted from 1
    """

    name: str
    data: Any
    lines: dict[Key, int] = field(default_factory=dict)

    def where(self, key: Sequence[str | int]) -> str:
        """File, line and key, for the beginning of a message. The line is that of the nearest key that has one."""
        known = tuple(key)
        while known and known not in self.lines:
            known = known[:-1]
        line = self.lines.get(known)
        return ", ".join(part for part in (self.name, f"line {line}" if line else "", dotted(key)) if part)


def read_yaml(path: Path) -> Document:
    """Read one YAML 1.2 file: no tags, no tabs, no key twice, nothing that runs code.

    Raises RecipeError, with file and line, for text that is not such a file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"There is no file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read as text: {error}.") from None
    return parse_yaml(text, name=str(path))


def parse_yaml(text: str, name: str = "recipe") -> Document:
    """The same for text in memory.

    >>> parse_yaml("train: {epochs: 1e1}").data
    {'train': {'epochs': 10.0}}
    """
    for number, line in enumerate(text.splitlines(), 1):
        if "\t" in line[: len(line) - len(line.lstrip())]:
            raise RecipeError(f"{name}, line {number}: a tab indents this line; YAML wants spaces.")
    yaml = YAML(typ="rt")
    try:
        node = yaml.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line_number = mark.line + 1 if mark else 1
        raise RecipeError(f"{name}, line {line_number}: this is not YAML: {error.problem}.") from None
    except (YAMLError, ValueError) as error:
        raise RecipeError(f"{name}: this is not YAML: {error}.") from None
    document = Document(name, None)
    if node is not None:
        document.data = _Plain(yaml, document).value(node, ())
    return document


class _Plain:
    """Turns composed nodes into plain data, noting lines on the way."""

    def __init__(self, yaml: YAML, document: Document) -> None:
        self._construct = yaml.constructor.construct_object
        self._document = document
        self._count = 0

    def value(self, node: Node, key: Key) -> Any:
        line = node.start_mark.line + 1
        self._document.lines.setdefault(key, line)
        self._count += 1
        if self._count > _MOST_VALUES or len(key) > 40:
            raise RecipeError(f"{self._document.name}, line {line}: too many or too deeply nested values.")
        if node.tag not in _PLAIN:
            shown = str(node.tag).replace("tag:yaml.org,2002:", "!!")
            raise RecipeError(
                f"{self._document.where(key)}: the tag {shown} is not allowed, only plain values are."
            )
        if isinstance(node, MappingNode):
            return dict(self._pairs(node, key))
        if isinstance(node, SequenceNode):
            return [self.value(item, (*key, n)) for n, item in enumerate(node.value)]
        assert isinstance(node, ScalarNode)
        return _scalar(self._construct(node), node)

    def _pairs(self, node: MappingNode, key: Key) -> Iterator[tuple[Any, Any]]:
        seen: dict[Any, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, ScalarNode) or key_node.tag not in _PLAIN:
                raise RecipeError(f"{self._document.name}, line {line}: a key must be a word or a number.")
            word = _scalar(self._construct(key_node), key_node)
            if word in seen:
                raise RecipeError(
                    f'{self._document.name}, line {line}: the key "{word}" stands here a second time '
                    f"(first in line {seen[word]})."
                )
            seen[word] = line
            self._document.lines[(*key, word)] = line
            yield word, self.value(value_node, (*key, word))


def _scalar(value: Any, node: ScalarNode) -> Any:
    # The round-trip constructor gives subclasses that remember how a number was written; plain ones are wanted.
    if value is None or isinstance(value, bool):
        return value
    if str(node.tag).endswith(":bool"):
        return bool(value)
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return str(node.value)


def plain_scalar(text: str) -> Any:
    """What `text` means as a YAML value, for `--set key=text`.

    >>> plain_scalar("1e-3"), plain_scalar("none"), plain_scalar("{start: 14, end: 4}")
    (0.001, 'none', {'start': 14, 'end': 4})
    """
    return parse_yaml(text, name=f"--set ...={text}").data


def sentences(error: ValidationError, model: type[BaseModel]) -> list[tuple[Key, str]]:
    """Each mistake that pydantic found as (key, sentence in plain words).

    model: the pydantic class that was to be built; its fields are the words that are offered.
    """
    found = []
    for detail in error.errors(include_url=False, include_input=True, include_context=True):
        # Parts like "<ramp>" or "[key]" name a form of a union, not a key of the file.
        key = tuple(p for p in detail["loc"] if not (isinstance(p, str) and p[:1] in "<["))
        found.append((key, _sentence(detail, key, model)))
    return found


def _sentence(detail: ErrorDetails, key: Key, model: type[BaseModel]) -> str:
    kind, given, context = detail["type"], detail.get("input"), detail.get("ctx", {})
    if kind == "extra_forbidden":
        known = _fields_at(model, detail["loc"][:-1])
        return f'unknown key "{key[-1]}": {nearest(str(key[-1]), known)}'
    if kind == "missing":
        return f'the key "{key[-1]}" is missing'
    if kind == "value_error":
        return str(context.get("error", detail["msg"]))
    expected = _EXPECTED[kind].format_map(context) if kind in _EXPECTED else None
    if expected is None and kind == "union_tag_invalid":
        expected = "a number, or a schedule such as {start: 14, end: 4}"
    if expected is None:
        message = detail["msg"].removeprefix("Input should be ")
        expected = message[:1].lower() + message[1:]
    options = context.get("expected", "") if kind == "literal_error" else ""
    hint = ""
    if options and isinstance(given, str):
        words = [word.strip(" '") for word in options.replace(" or ", ", ").split(",")]
        hint = f"; {nearest(given, words)}" if "did you" in nearest(given, words) else ""
    return f"expected {expected}, found {_shown(given)}{hint}"


_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "string_type": "a word",
    "list_type": "a list",
    "dict_type": "keys and values",
    "model_type": "keys and values",
    "model_attributes_type": "keys and values",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "finite_number": "a finite number",
}


def _shown(value: Any) -> str:
    text = repr(value) if not isinstance(value, str) else f'"{value}"'
    return text if len(text) <= 60 else text[:57] + "..."


def _fields_at(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """The field names of the pydantic class that stands at `location` within `model`."""
    here: type[BaseModel] = model
    union: list[type[BaseModel]] = []
    for part in location:
        if isinstance(part, int):
            continue
        candidates = list(_models_in(here.model_fields[part].annotation)) if part in here.model_fields else []
        if candidates:
            here = candidates[0]
            union = candidates
        elif part.startswith("<"):
            named = [c for c in union if c.__name__.lower() == part.strip("<>")]
            here = named[0] if named else here
    return [info.alias or name for name, info in here.model_fields.items()]


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def without_nulls(data: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping less the keys whose value is null."""
    return {key: value for key, value in data.items() if value is not None}


def ended(sentence: str) -> str:
    """A sentence with its full stop; what ends by a question has its mark.

    >>> ended("expected 3"), ended('did you mean "lr"?')
    ('expected 3.', 'did you mean "lr"?')
    """
    return sentence if sentence.endswith(("?", ".")) else f"{sentence}."
