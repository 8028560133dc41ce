"""Pictures of pages for the docs: those of three recorded tiny builds, to where the tables of how they were made begin.

`nox -s pictures`, or `python -m tests.pictures`, draws them anew. Fonts differ by machine, so no test compares them.
"""

import io
import tempfile
from pathlib import Path

from PIL import Image
from tests.browsers import browser, opened
from tests.conftest import ROOT

from requant.audit.builders import builders_of
from requant.recipe import read_recipe
from requant.report.evidence import of_build
from requant.report.judgement import judge
from requant.report.page import page

FOLDER = ROOT / "docs" / "pictures"
NAMES = ("ec", "gb10", "intel")
SIZE = (900, 800)
COLOURS = 64


def main() -> None:
    """Draw them."""
    FOLDER.mkdir(exist_ok=True)
    with browser() as running, tempfile.TemporaryDirectory() as folder:
        for name in NAMES:
            recipe = read_recipe(ROOT / "builds" / name)
            found = of_build(recipe, "mini", builders_of(recipe))
            path = Path(folder, f"{name}.html")
            path.write_text(page(found, judge(found)))
            with opened(running, path, SIZE) as seen:
                end = seen.page.locator("#made").bounding_box()
                assert end
                whole = {"x": 0, "y": 0, "width": SIZE[0], "height": end["y"] - 20}
                drawn = seen.page.screenshot(full_page=True, clip=whole)  # type: ignore[arg-type]
            few = Image.open(io.BytesIO(drawn)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
            few.save(FOLDER / f"report-{name}.png", optimize=True)


if __name__ == "__main__":
    main()
