"""YAML <-> list of stages, with every check that needs no model and no data."""

from compress_aug.recipe.recipe import (
    STUDY_SUFFIX,
    Recipe,
    find_recipe,
    found_file,
    load_recipe,
    recipe_names,
    recipe_of,
    set_value,
    with_choices,
)
from compress_aug.recipe.schema import recipe_schema

__all__ = [
    "STUDY_SUFFIX",
    "Recipe",
    "find_recipe",
    "found_file",
    "load_recipe",
    "recipe_names",
    "recipe_of",
    "recipe_schema",
    "set_value",
    "with_choices",
]
