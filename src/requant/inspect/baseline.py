"""What `inspect` says of a healthy build of a recipe, by hand, with a reason each: `builds/<name>/baseline.toml`."""

import tomllib
from dataclasses import dataclass

from requant.digest import MAX_TOML, read_whole
from requant.errors import RecipeError
from requant.inspect.findings import Expected, Severity, Target
from requant.recipe import Recipe

FILE = "baseline.toml"


@dataclass(frozen=True)
class Known:
    """A rule that a healthy build breaks for these loaders at these degrees of parallelism, and why that is right.

    A finding that is worse than `at_most` is not expected.
    """

    rule: str
    loaders: tuple[str, ...]
    tensor_parallel: tuple[int, ...]
    at_most: Severity
    why: str


def read_baseline(recipe: Recipe) -> tuple[Known, ...]:
    """Read a recipe's baseline; without the file there is none. Raises RecipeError for anything else."""
    path = recipe.beside(FILE)
    if not path.exists():
        return ()
    try:
        entries = tomllib.loads(read_whole(path, MAX_TOML).decode())["known"]
        return tuple(
            Known(
                str(each["rule"]),
                tuple(map(str, each["loaders"])),
                tuple(map(int, each["tensor_parallel"])),
                Severity(each["at_most"]),
                str(each["why"]),
            )
            for each in entries
        )
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}") from None
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise RecipeError(f"{path}: not a baseline: {error!r}", "baseline.py describes the format.") from None


def expected(known: tuple[Known, ...]) -> Expected:
    """Return a baseline as what findings are marked by: rule and target, and the worst severity of each."""
    return {
        (each.rule, Target(loader, degree)): each.at_most
        for each in known
        for loader in each.loaders
        for degree in each.tensor_parallel
    }
