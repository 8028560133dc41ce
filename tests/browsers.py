"""Debian's Chromium for tests: started once, and left alone with what a page says: no network, a clean console."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

REQUIRED = "REQUANT_REQUIRE_BROWSER"
"""Environment variable: where it is 1, a test without a browser fails, because somebody installed one for it."""
PHONE, LAPTOP, PAPER = (390, 844), (1280, 800), (794, 1123)
"""Widths and heights in CSS pixels; the last is A4 at 96 dots per inch."""


@contextmanager
def browser() -> Iterator[Browser]:
    """A running Chromium, or a skipped test where there is none."""
    program = shutil.which("chromium")
    if program is None:
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"no chromium, and {REQUIRED} is 1")
        pytest.skip("no chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-lcd-text"])
        yield running
        running.close()


@dataclass
class Seen:
    """An open page, and what it said and asked for by now that it should not have."""

    page: Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@contextmanager
def opened(
    running: Browser,
    path: Path,
    size: tuple[int, int] = LAPTOP,
    scheme: Literal["light", "dark"] = "light",
    media: Literal["screen", "print"] = "screen",
) -> Iterator[Seen]:
    """A file as it looks on a screen of some size, light or dark, or on paper."""
    context = running.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, offline=True)
    page = context.new_page()
    seen = Seen(page)
    page.on("console", lambda message: seen.said.append(message.text))
    page.on("pageerror", lambda error: seen.said.append(str(error)))
    page.on("dialog", lambda dialog: seen.said.append(dialog.message))
    page.on("request", lambda request: seen.asked.append(request.url))
    page.emulate_media(media=media)
    page.goto(path.as_uri())
    seen.asked = [each for each in seen.asked if not each.startswith((path.as_uri(), "data:"))]
    try:
        yield seen
    finally:
        context.close()


def inaccessible(page: Page) -> list[str]:
    """What axe-core finds wrong with a page, all of its rules asked."""
    found: Any = Axe().run(page, options={"resultTypes": ["violations"]}).response
    return [f"{each['id']}: {node['html'][:120]}" for each in found["violations"] for node in each["nodes"]]


def overflows(page: Page) -> bool:
    """Whether the page is wider than its window, so that a reader would have to move it sideways."""
    wide: bool = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
    return wide
