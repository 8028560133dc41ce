"""A page says in three seconds whether a build is good, and in thirty where it is not; and nobody can write on it."""

import re
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.sync_api import Browser
from tests.browsers import LAPTOP, PAPER, PHONE, inaccessible, opened, overflows
from tests.cases.looks import LOOKS, Look
from tests.checkpoints import SMALL, write
from tests.conftest import ROOT, Worded
from tests.full_looks import EXPERTS, evidence
from typer.testing import CliRunner

from requant.audit.builders import builders_of
from requant.card.facts import Fact
from requant.check.checked import position
from requant.check.findings import BINS, Counts
from requant.checkpoint.manifest import FileRecord, Manifest, make_manifest
from requant.cli.options import app
from requant.diff import Diff
from requant.errors import CheckpointError
from requant.recipe import read_recipe
from requant.report import pictures
from requant.report.evidence import Evidence, Kept, Problem, beside_another, of_build, of_checkpoint
from requant.report.findings import Finding, State
from requant.report.judgement import Judgement, judge
from requant.report.measures import Grid, changed, grids, shrink
from requant.report.page import page, shown
from requant.verdict import Outcome, Verdict

QUICK = ("healthy", "a flipped code", "a failed audit")
EVIL = (
    "</title></style><script>alert(1)</script>\"><img src=//evil.example/x onerror=alert(2)>\n\u202egood\u2066{{7*7}}'"
)


@pytest.fixture(scope="module")
def look(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Look]:
    """One of the six builds, each made once."""
    folder = tmp_path_factory.mktemp("looks")
    return cache(lambda name: LOOKS[name](folder / name.replace(" ", "-")))


@pytest.fixture(scope="module")
def known(look: Callable[[str], Look]) -> Callable[[str], Evidence]:
    """What a report says of one of the six, its base at hand."""

    def of(name: str) -> Evidence:
        found = look(name)
        return of_checkpoint(found.checkpoint, found.recipe, "mini", builders_of(found.recipe), base=str(found.base))

    return cache(of)


def written(judgement: Judgement) -> str:
    """A judgement in lines: verdict, ladder, findings, what was not looked at."""
    lines = [f"{judgement.word}: {judgement.sentence}"]
    lines += [f"{each.name} {each.state}: {each.said} {each.by}".rstrip() for each in judgement.rungs]
    lines += [f"found by {each.by}: {each.what} | {each.where} | {each.detail}" for each in judgement.findings]
    return "\n".join([*lines, *(f"unseen: {each}" for each in judgement.unseen)])


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("healthy", State.GOOD),
        ("a flipped code", State.BAD),
        ("a failed audit", State.BAD),
    ],
)
def test_each_build_is_told_from_the_others(
    name: str, state: State, known: Callable[[str], Evidence], worded: Worded
) -> None:
    judgement = judge(known(name))
    assert judgement.state is state
    worded(written(judgement))


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "state"),
    [("a build of another class", State.OPEN), ("a missing journal", State.FAILED), ("a card that lies", State.BAD)],
)
def test_so_are_these(name: str, state: State, known: Callable[[str], Evidence], worded: Worded) -> None:
    judgement = judge(known(name))
    assert judgement.state is state
    worded(written(judgement))


def test_the_rung_reached_is_the_highest_and_whoever_reached_it_is_named(known: Callable[[str], Evidence]) -> None:
    judgement = judge(known("healthy"))
    assert judgement.reached and (judgement.reached.name, judgement.reached.by) == ("Audited", "Ada, Grace")
    assert (judgement.reproduced, judgement.parties, judgement.verified) == (2, ("Ada", "Grace"), True)
    flipped = judge(known("a flipped code"))
    assert flipped.reached and flipped.reached.name == "Recorded"
    assert flipped.reproduced == 0  # what others reproduced are other files


def test_green_blocks_of_other_files_are_said_to_be_of_others(known: Callable[[str], Evidence]) -> None:
    said = "The ones at hand are others"
    pages = {name: page(known(name), judge(known(name))) for name in QUICK}
    assert {name for name, text in pages.items() if said in text} == {"a flipped code"}


def test_records_alone_are_their_builders_word(worded: Worded) -> None:
    for size in ("mini", None):
        recipe = read_recipe(ROOT / "builds" / "ec")
        judgement = judge(of_build(recipe, size, builders_of(recipe)))
        assert judgement.state is State.OPEN and judgement.reproduced == 0
        worded(written(judgement))


def test_a_second_build_is_held_against_the_first(tmp_path: Path) -> None:
    first = write(tmp_path / "first", SMALL)
    second = write(tmp_path / "second", {**SMALL, "config.json": b'{"a":2}'})
    whole = beside_another(Evidence("x"), first, second)
    assert isinstance(whole.differing, Diff) and whole.differing.outcome is Outcome.EQUIVALENT
    (tmp_path / "first.manifest.json").write_bytes(make_manifest(first).to_json())
    for found, folder, other in (
        (Evidence("x"), second, first.with_name("first")),
        (Evidence("x", own=Kept("first", make_manifest(first))), None, second),
    ):
        if folder:
            shutil.rmtree(first)
        by_digest = beside_another(found, folder, other)
        assert isinstance(by_digest.differing, Verdict) and by_digest.differing.outcome is Outcome.EQUIVALENT
        assert "config.json" in page(by_digest, judge(by_digest))
        write(first, SMALL)
    with pytest.raises(CheckpointError):
        beside_another(Evidence("x"), None, ROOT / "docs")


def test_a_page_is_the_same_each_time_and_says_no_time_but_that_of_evidence(known: Callable[[str], Evidence]) -> None:
    found = known("healthy")
    assert page(found, judge(found)) == page(found, judge(found))
    assert {*re.findall(r"20\d\d-\d\d-\d\d", page(found, judge(found)))} == {"2026-11-20"}


def test_the_command_writes_a_page_and_never_over_another(tmp_path: Path) -> None:
    words = ["report", str(ROOT / "builds" / "ec"), "--tiny", "--size", "mini", "--out", str(tmp_path / "ec.html")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and "not decided" in done.output
    assert (tmp_path / "ec.html").read_text().startswith("<!doctype html>")
    for wrong in (words, [*words[:-1], str(tmp_path / "b.html"), "--base", "x"]):
        assert CliRunner().invoke(app, wrong).exit_code != 0
    assert [*tmp_path.iterdir()] == [tmp_path / "ec.html"]


# Codes and scales


def test_layers_have_places() -> None:
    assert position("model.layers.3.mlp.experts.7.up_proj") == ("model.layers.3", "mlp.experts.up_proj", 7)
    assert position("model.layers.3.self_attn.q_proj") == ("model.layers.3", "self_attn.q_proj", None)
    assert position("lm_head") == ("", "lm_head", None)


def test_shares_are_those_that_a_check_counted() -> None:
    bins = [0] * (BINS + 1)
    bins[BINS // 2], bins[BINS] = 1, 3
    counts = Counts(codes=8, moved=2, shrunk=tuple(bins))
    assert changed(counts) == 0.25
    assert shrink(counts) == pytest.approx(1 - ((32.5 / 64) + 3) / 4)
    assert (changed(Counts()), shrink(Counts())) == (None, None)


def test_every_layer_has_its_cell(known: Callable[[str], Evidence]) -> None:
    checked = known("a flipped code").checked
    assert checked
    drawn = grids(checked)
    assert [each.title for each in drawn[:2]] == ["", ""] and len(drawn) == 8
    cells = sum(
        each is not None for grid in drawn if grid.measure == "Changed codes" for row in grid.values for each in row
    )
    experts = {name for name in checked.counts if ".experts." in name}
    places = {position(name)[:2] for name in checked.counts}
    assert cells == len(experts) + len(places)
    assert {(grid.title, grid.rows[y], grid.columns[x]) for grid in drawn[2::2] for y, x in grid.marked} == {
        ("mlp.experts.up_proj", "model.language_model.layers.2", "1")
    }


def test_a_heat_map_is_a_png_with_a_pixel_for_each_cell() -> None:
    grid = Grid("m", "", ("a", "b"), ("x", "y", "z"), "block", ((0.0, 0.5, 1.0), (None, 1.0, 0.0)))
    assert pictures.heat(grid).startswith("data:image/png;base64,iVBORw0KGgo")
    data = pictures.png([[0, 32, 63], [pictures.ABSENT, 63, 0]])
    chunks, at = {}, 8
    while at < len(data):
        size, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + size]
        assert int.from_bytes(data[at + 8 + size : at + 12 + size], "big") == zlib.crc32(name + body)
        chunks[name], at = body, at + 12 + size
    assert chunks[b"IHDR"][:8] == (3).to_bytes(4, "big") + (2).to_bytes(4, "big")
    assert zlib.decompress(chunks[b"IDAT"]) == bytes([0, 0, 32, 63, 0, 64, 63, 0])
    assert len(chunks[b"PLTE"]) == 3 * len(chunks[b"tRNS"]) == 3 * (pictures.LEVELS + 1)


@given(st.lists(st.tuples(st.floats(1e-9, 1e3), st.floats(0, 1e3)), min_size=1, max_size=90))
@settings(max_examples=25)
def test_losses_are_drawn_inside_the_picture(values: list[tuple[float, float]]) -> None:
    drawn = pictures.losses([(f"b.{number}", *each) for number, each in enumerate(values)])
    for point, (before, after) in zip(drawn.points, values, strict=True):
        assert pictures.LEFT <= point.x <= drawn.width
        assert all(0 <= y <= drawn.height for y in (point.before, point.after))
        assert (point.after > point.before) <= (after < before)
    assert all(0 <= y <= drawn.height for y, _ in drawn.lines)


@pytest.fixture(scope="module")
def full() -> str:
    found = evidence()
    return page(found, judge(found))


@pytest.mark.full
def test_a_build_of_full_size_is_one_small_page(full: str) -> None:
    assert len(full.encode()) < 1_000_000
    assert len(re.findall(r"<td>\d", full)) >= 2 * 3 * 40 * EXPERTS  # each share of each expert, as text


# Strangers


class Tags(HTMLParser):
    """The tags and attributes of a page, in order, with what addresses and handlers they have."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attrs)))
        self.addresses += [str(value) for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile(word: str) -> Evidence:
    """A build in which everything that a stranger can name is called the same."""
    kept = Kept(word, Manifest({f"{word}.safetensors": FileRecord(1, "0" * 64)}, {}), None, {word: word}, (word,))
    whole = evidence()
    covered, journal = whole.covered, whole.recorded and whole.recorded.journal
    assert covered and journal and whole.checked
    rows = [replace(each, block=word, identical={word: (word,)}) for each in covered.blocks[:1]]
    block = replace(journal.blocks[0], block=word)
    return replace(
        whole,
        name=word,
        folder=word,
        recorded=replace(kept, journal=replace(journal, blocks=(block,))),
        own=None,
        facts={
            "base.repository": Fact(word, word),
            "scheme.name": Fact(word, word),
            "scheme.group_size": Fact(1, word),
        },
        covered=replace(
            covered, blocks=tuple(rows), untuned=replace(covered.untuned, identical={}), own=word, stale={word: word}
        ),
        checked=replace(
            whole.checked,
            findings=tuple(replace(each, tensor=word, detail=word) for each in whole.checked.findings),
            counts={f"{word}.layers.1.{word}": Counts(8, 2)},
        ),
        other=word,
        differing=Verdict(Outcome.DIFFERENT),
        problems=(Problem(word, word),),
    )


def test_a_name_is_text_and_nothing_else() -> None:
    plain, evil = (Tags(page(each, judge(each))) for each in map(hostile, ("name", EVIL)))
    assert evil.found == plain.found
    assert not {"script", "img", "iframe", "object", "form"} & {tag for tag, _ in evil.found}
    assert not any(name.startswith("on") or name == "style" for _, names in evil.found for name in names)
    assert all(each.startswith(("#", "data:image/png;base64,")) for each in evil.addresses)
    assert "<script>alert(1)</script>" in evil.text and "{{7*7}}" in evil.text
    assert "\\u202egood\\u2066" in evil.text and not {"\u202e", "\u2066"} & {*evil.text}


@given(st.text(min_size=1, max_size=30))
@settings(max_examples=30)
def test_no_text_reaches_a_page_as_markup(word: str) -> None:
    assert Tags(spoken(word)).found == Tags(spoken("word")).found


def spoken(word: str) -> str:
    """A page of which every sentence is the same word."""
    finding = Finding(State.BAD, "check", word, word, word)
    return page(Evidence(word), Judgement(State.BAD, word, (), (finding,), 1, (), (word,), 0, (), False))


def test_what_is_too_long_is_cut_and_what_hides_is_spelled_out() -> None:
    assert shown("a\u202eb\n") == "a\\u202eb\\n"
    assert str(shown("x" * 5000)).endswith("… (5,000 characters)")


def test_a_page_forbids_scripts_and_the_network() -> None:
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', spoken("word"))
    said = dict(each.split(" ", 1) for each in policy.replace("&#39;", "'").split("; "))
    assert said.pop("style-src").startswith("'sha256-")
    assert said == {"default-src": "'none'", "img-src": "data:", "base-uri": "'none'", "form-action": "'none'"}


# Seen


@pytest.mark.parametrize(
    ("name", "size", "scheme", "media"),
    [
        ("healthy", LAPTOP, "light", "screen"),
        pytest.param("a flipped code", PHONE, "dark", "screen", marks=pytest.mark.full),
        pytest.param("a failed audit", LAPTOP, "dark", "screen", marks=pytest.mark.full),
        pytest.param("a flipped code", LAPTOP, "light", "screen", marks=pytest.mark.full),
        pytest.param("a build of another class", PHONE, "light", "screen", marks=pytest.mark.full),
        pytest.param("a missing journal", PHONE, "dark", "screen", marks=pytest.mark.full),
        pytest.param("a card that lies", LAPTOP, "dark", "screen", marks=pytest.mark.full),
        pytest.param("healthy", PAPER, "dark", "print", marks=pytest.mark.full),
    ],
)
def test_a_page_in_a_browser(
    name: str,
    size: tuple[int, int],
    scheme: Any,
    media: Any,
    known: Callable[[str], Evidence],
    chromium: Browser,
    tmp_path: Path,
) -> None:
    """No word on the console, no request, nothing that axe-core minds, and no need to scroll sideways."""
    found = known(name)
    path = tmp_path / "page.html"
    path.write_text(page(found, judge(found)))
    with opened(chromium, path, size, scheme, media) as seen:
        assert inaccessible(seen.page) == []
        assert not overflows(seen.page)
        word = seen.page.locator(".word")
        box = word.bounding_box()
        assert word.inner_text() == judge(found).word and box and box["y"] + box["height"] < size[1] / 2
        assert (seen.said, seen.asked) == ([], [])


def test_a_hostile_page_in_a_browser(chromium: Browser, tmp_path: Path) -> None:
    found = hostile(EVIL)
    path = tmp_path / "page.html"
    path.write_text(page(found, judge(found)))
    with opened(chromium, path, PHONE) as seen:
        assert seen.page.locator("script, iframe, img").count() == 0
        assert not overflows(seen.page)
        assert (seen.said, seen.asked) == ([], [])


@pytest.mark.full
def test_a_page_is_walked_through_by_keys(known: Callable[[str], Evidence], chromium: Browser, tmp_path: Path) -> None:
    """The first key leads past the head; each fold opens by the keyboard, and headings lose no level."""
    found = known("healthy")
    path = tmp_path / "page.html"
    path.write_text(page(found, judge(found)))
    with opened(chromium, path) as seen:
        seen.page.keyboard.press("Tab")
        assert seen.page.evaluate("document.activeElement.className") == "skip"
        fold = seen.page.locator("details").first
        fold.locator("summary").focus()
        seen.page.keyboard.press("Enter")
        assert fold.get_attribute("open") is not None
        levels = seen.page.eval_on_selector_all("h1, h2, h3", "all => all.map(each => +each.tagName[1])")
        assert levels[0] == 1 and all(after <= before + 1 for before, after in pairwise(levels))
        pictures_ = seen.page.locator("svg[role=img]")
        assert pictures_.count() == seen.page.locator("svg[role=img][aria-label]").count() > 5


@pytest.mark.full
def test_a_page_of_full_size_in_a_browser(full: str, chromium: Browser, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(full)
    with opened(chromium, path, PHONE) as seen:
        assert not overflows(seen.page)
        assert (seen.said, seen.asked) == ([], [])
