"""Answer what `request.json` asks of each folder: `survey FOLDER...`; in the place of an answer, why there is none."""

import json
from pathlib import Path
from typing import Any

from tests.worker.prepared import ROOT, answer

from requant.errors import BuildError
from requant.recipe import read_recipe
from requant.worker.autoround import survey


def main(*folders: str) -> dict[str, Any]:
    """Ask of each in turn, with the recipe EC."""
    recipe = read_recipe(ROOT / "builds" / "ec")
    found: dict[str, Any] = {}
    for folder in map(Path, folders):
        try:
            survey.ask(folder, recipe)
            found[folder.name] = json.loads((folder / "survey.json").read_text())
        except BuildError as error:
            found[folder.name] = str(error)
    return found


if __name__ == "__main__":
    answer(main)
