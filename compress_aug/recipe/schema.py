"""The JSON Schema of recipe files, for editors that complete and check while one types."""

from typing import Any

from pydantic.json_schema import models_json_schema

from compress_aug.recipe.build import VERSION
from compress_aug.stages import STAGES

_COLUMN = {"type": "string", "pattern": r"^\$\w+$", "description": "a variable, or a column of the repeat"}


def recipe_schema() -> dict[str, Any]:
    """The schema of a whole recipe file (draft 2020-12), made from the stage classes.

    >>> sorted(recipe_schema()["properties"])
    ['data', 'defaults', 'model', 'name', 'seed', 'stages', 'target', 'variables', 'version']
    """
    kinds = list(STAGES.values())
    _, shared = models_json_schema(
        [(kind, "validation") for kind in kinds], ref_template="#/$defs/{model}", title="compress_aug recipe"
    )
    definitions = shared["$defs"]
    for definition in definitions.values():
        # Within a repeat any value may be a $column.
        for name, field in definition.get("properties", {}).items():
            keep = {key: field.pop(key) for key in ("title", "description", "default") if key in field}
            definition["properties"][name] = {**keep, "anyOf": [field, _COLUMN]}
    definitions["stages"] = {"type": "array", "items": {"anyOf": [*map(_one, STAGES), _REPEAT, _OWN, _BARE]}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "compress_aug recipe",
        "type": "object",
        "required": ["version", "stages"],
        "additionalProperties": False,
        "properties": {
            "version": {"const": VERSION},
            "name": {"type": "string"},
            "model": {
                "type": ["string", "object"],
                "description": "a name, package.module:function, or {call: ...}",
            },
            "data": {"type": ["string", "object"], "description": "a name, {folder: path}, or {call: ...}"},
            "seed": {"type": "integer", "default": 0},
            "target": {"type": "string", "default": "host_cpu"},
            "variables": {
                "type": ["object", "null"],
                "description": "what $NAME stands for in stages and defaults; --set variables.NAME=VALUE changes one",
            },
            "defaults": {"type": "object", "properties": {word: {"type": "object"} for word in STAGES}},
            "stages": {"$ref": "#/$defs/stages"},
        },
        "$defs": definitions,
    }


def _one(word: str) -> dict[str, Any]:
    kind = STAGES[word]
    forms: list[dict[str, Any]] = [{"$ref": f"#/$defs/{kind.__name__}"}, {"type": "null"}]
    if word in ("keep", "model"):
        forms.append({"type": "string"})
    return {
        "type": "object",
        "required": [word],
        "additionalProperties": False,
        "properties": {word: {"anyOf": forms}},
    }


_REPEAT = {
    "type": "object",
    "required": ["repeat"],
    "additionalProperties": False,
    "properties": {
        "repeat": {
            "type": "object",
            "required": ["rounds", "stages"],
            "properties": {
                "rounds": {
                    "anyOf": [
                        {"type": "integer", "minimum": 1},
                        {"type": "array", "items": {"type": "object"}},
                        _COLUMN,
                    ]
                },
                "stages": {"$ref": "#/$defs/stages"},
            },
        }
    },
}
_OWN = {
    "type": "object",
    "minProperties": 1,
    "maxProperties": 1,
    "patternProperties": {"^[\\w.]+:\\w+$": {}},
    "additionalProperties": False,
}
_BARE = {
    "enum": [
        word for word, kind in STAGES.items() if not any(f.is_required() for f in kind.model_fields.values())
    ]
}
