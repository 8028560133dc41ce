"""Answer what is asked in each folder: `survey FOLDER...`; in the place of an answer, why there is none."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.worker.prepared import ROOT, answer

from requant.errors import BuildError
from requant.protocol import Survey, asked
from requant.recipe import read_recipe
from requant.worker.autoround import survey


def main(*folders: str) -> dict[str, Any]:
    """Ask of each in turn, with the recipe EC."""
    recipe = read_recipe(ROOT / "builds" / "ec")
    found: dict[str, Any] = {}
    for folder in map(Path, folders):
        task = asked(folder)
        assert isinstance(task, Survey)
        try:
            answers = survey.ask(task, recipe, folder / "counted")
            found[folder.name] = {name: asdict(each) for name, each in answers.items()}
        except BuildError as error:
            found[folder.name] = str(error)
    return found


if __name__ == "__main__":
    answer(main)
