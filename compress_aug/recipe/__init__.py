"""YAML <-> list of stages, with every check that needs no model and no data."""

from compress_aug.recipe.recipe import Recipe, find_recipe, load_recipe, recipe_names, with_choices
from compress_aug.recipe.schema import recipe_schema

__all__ = ["Recipe", "find_recipe", "load_recipe", "recipe_names", "recipe_schema", "with_choices"]
