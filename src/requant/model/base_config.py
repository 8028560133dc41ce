"""The `config.json` of a recipe's base, which says everything about its tensors but their values."""

from pathlib import Path
from typing import Any

from requant.digest import read_whole, strict_json
from requant.errors import RecipeError
from requant.hub.pinned import pins_for
from requant.recipe import Recipe


def base_config(recipe: Recipe) -> dict[str, Any]:
    """Return the `config.json` of a recipe's base, as it stands beside its pins: `<stem>.config.json`.

    Without `generator`, which says there where it comes from and is not the model's. Raises RecipeError where it
    cannot be read, and where the pins beside it are of another repository or revision than the recipe's.
    """
    pins = recipe.beside(recipe.base.files)
    config = _read(pins.with_suffix(".config.json"))
    pins_for(pins, recipe.base.repository, recipe.base.revision, recipe.path)
    return {key: value for key, value in config.items() if key != "generator"}


def _read(path: Path) -> dict[str, Any]:
    try:
        value = strict_json(read_whole(path))
    except OSError as error:
        raise RecipeError(
            f"{path}: {error.strerror}", "The base's config.json stands beside its pins, under this name."
        ) from None
    except ValueError as error:
        raise RecipeError(f"{path}: not JSON as requant reads it: {error}") from None
    if not isinstance(value, dict):
        raise RecipeError(f"{path}: not a JSON object")
    return value
