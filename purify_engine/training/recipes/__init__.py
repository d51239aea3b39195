"""Trainings by name, from `--data` to a purifier's folder: `purify-engine train recipe NAME`."""

from purify_engine.training.recipes.cifar import CIFAR10, CIFAR10_SMALL, CIFAR100
from purify_engine.training.recipes.digits import DIGITS
from purify_engine.training.recipes.recipe import NamedPreset, Part, Recipe

__all__ = ["RECIPES", "NamedPreset", "Part", "Recipe"]

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (CIFAR10_SMALL, CIFAR10, CIFAR100, DIGITS)}
