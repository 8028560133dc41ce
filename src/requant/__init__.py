"""Reproducible builds of quantized checkpoints, and proofs about published ones.

What a script needs beside the verbs is here: `from requant import Manifest, read_manifest, read_recipe`. It is imported
where it is first asked for, so that `import requant` costs nothing and `requant.verify` needs the standard library
only.

A verb is a function in the module of its name, and is imported from there: `from requant.build import build`, and so
`audit`, `check`, `diff`, `identify`, `inspect` and `verify`. `requant.build` itself is the module.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from requant.build import Built
    from requant.check.checked import Checked
    from requant.check.reader import open_reader
    from requant.checkpoint.manifest import Manifest, make_manifest, read_manifest
    from requant.errors import RequantError
    from requant.inspect.headers import read_headers
    from requant.recipe import Recipe, read_recipe
    from requant.verdict import Outcome, Verdict

__all__ = [
    "Built",
    "Checked",
    "Manifest",
    "Outcome",
    "Recipe",
    "RequantError",
    "Verdict",
    "make_manifest",
    "open_reader",
    "read_headers",
    "read_manifest",
    "read_recipe",
]

_HOMES = {
    "build": ("Built",),
    "check.checked": ("Checked",),
    "check.reader": ("open_reader",),
    "checkpoint.manifest": ("Manifest", "make_manifest", "read_manifest"),
    "errors": ("RequantError",),
    "inspect.headers": ("read_headers",),
    "recipe": ("Recipe", "read_recipe"),
    "verdict": ("Outcome", "Verdict"),
}
"""Modules, and what is public of each."""


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            found = globals()[name] = getattr(import_module(f"requant.{module}"), name)
            return found
    raise AttributeError(f"module 'requant' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
