"""A board lists every build by what is known of it, forgets nothing, and is the same from the same records."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from jsonschema import Draft202012Validator
from playwright.sync_api import Browser
from tests.browsers import LAPTOP, PHONE, inaccessible, opened, overflows
from tests.conftest import ROOT, Refuses
from tests.schemas import schema
from tests.test_coverage import GPU, JOURNAL, audit, keyed, known
from typer.testing import CliRunner

from requant.audit.audits import write_audit
from requant.audit.untuned import Deviation, Untuned
from requant.cli.options import app
from requant.errors import CheckpointError, UsageError
from requant.evidence.signatures import sign_file
from requant.recipe import read_recipe
from requant.report.board import Board, Entry, make_board, places, read_board, read_builds, slug
from requant.report.site import badge, feed, write_site

ATOM = "{http://www.w3.org/2005/Atom}"


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """The builds ec and llama-current, each with what is recorded of its tiny model mini, and two known builders."""
    folder = tmp_path / "ours"
    for name in ("ec", "llama-current"):
        (folder / name).mkdir(parents=True)
        for path in (ROOT / "builds" / name).glob("mini.*"):
            shutil.copyfile(path, folder / name / path.name)
        shutil.copyfile(ROOT / "builds" / name / "recipe.toml", folder / name / "recipe.toml")
    for name in ("bases", "datasets"):
        shutil.copytree(ROOT / "builds" / name, folder / name)
    known(folder, Ada=keyed("ada", tmp_path), Bob=keyed("bob", tmp_path))
    return folder


def audited(folder: Path, who: str, judgement: str = "identical", **changes: Any) -> None:
    """Record a signed audit of all blocks of ec."""
    path = write_audit(
        read_recipe(folder / "ec"), audit(dict.fromkeys(range(len(JOURNAL.blocks)), judgement), auditor=who, **changes)
    )
    sign_file(path, keyed(who.lower(), folder.parent))


def made(folder: Path, site: Path) -> Board:
    """Make a board of one folder, as the command does."""
    before = read_board(site)
    found = tuple(read_builds(places([str(folder)])))
    board = make_board(found, before)
    write_site(site, board, found, before)
    return board


def entry(board: Board, id_: str = "ours/ec/mini") -> Entry:
    return next(each for each in board.builds if each.id == id_)


def bytes_of(site: Path) -> dict[str, bytes]:
    return {str(path.relative_to(site)): path.read_bytes() for path in site.rglob("*") if path.is_file()}


def test_a_build_goes_from_unknown_to_reproduced_to_bad(ours: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    first = entry(made(ours, site))
    assert (first.status, first.reproduced, first.rung, dict(first.classes)) == ("unknown", 0, "Recorded", {})
    audited(ours, "Ada")
    audited(ours, "Bob", hardware=GPU)
    second = entry(made(ours, site))
    assert (second.status, second.reproduced, second.verified, second.rung) == ("reproduced", 2, True, "Audited")
    assert sorted(second.classes.values()) == [("Ada",), ("Bob",)]  # hardware classes stand apart
    audited(ours, "Bob", untuned=Untuned((Deviation("changed tensor", "lm_head.weight"),), 1))
    board = made(ours, site)
    assert entry(board).status == "bad"
    mine = [each for each in board.history if each.id == "ours/ec/mini"]
    assert [(each.was, each.status) for each in mine] == [
        ("", "unknown"),
        ("unknown", "reproduced"),
        ("reproduced", "bad"),
    ]
    assert [each.finished for each in mine[1:]] == [max(first.finished, "2026-11-21T22:00:00Z")] * 2
    assert [(each.name, bool(each.key), len(each.found)) for each in board.builders] == [
        ("Ada", True, 1),
        ("Bob", True, 2),
    ]


def test_the_same_records_give_the_same_site(ours: Path, tmp_path: Path) -> None:
    audited(ours, "Ada")
    made(ours, tmp_path / "one")
    made(ours, tmp_path / "two")
    first = bytes_of(tmp_path / "one")
    assert first == bytes_of(tmp_path / "two")
    made(ours, tmp_path / "one")
    assert bytes_of(tmp_path / "one") == first


def test_what_is_gone_is_withdrawn_and_its_page_goes(ours: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    page = entry(made(ours, site)).page
    (site / "mine.txt").write_text("kept")
    shutil.rmtree(ours / "ec")
    board = made(ours, site)
    assert [(each.id, each.status) for each in board.history][-1] == ("ours/ec/mini", "withdrawn")
    assert not (site / page).exists() and (site / "mine.txt").exists()
    assert made(ours, site).history == board.history


def test_what_cannot_be_read_is_listed_as_failed_and_stops_nobody(ours: Path, tmp_path: Path) -> None:
    (ours / "ec" / "mini.journal.jsonl").unlink()
    (ours / "llama-current" / "mini.manifest.json").write_text("{}")
    (ours / "broken").mkdir()
    (ours / "broken" / "recipe.toml").write_text("= what")
    board = made(ours, tmp_path / "site")
    failed = {each.id for each in board.builds if each.status == "failed"}
    assert failed == {"ours/ec/mini", "ours/llama-current/mini", "ours/broken/full"}
    assert "journal" in (tmp_path / "site" / entry(board).page).read_text()


def test_what_a_broken_recipe_has_recorded_is_not_withdrawn(ours: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    made(ours, site)
    (ours / "ec" / "recipe.toml").write_bytes(b"\0\xff")
    board = made(ours, site)
    assert [(each.id, each.status) for each in board.history[2:]] == [
        ("ours/ec/full", "failed"),
        ("ours/ec/mini", "failed"),
    ]
    assert not any(str(tmp_path) in text.decode() for text in bytes_of(site).values())  # nor where it was made


def test_a_name_that_is_no_text_is_a_build_like_others(ours: Path, tmp_path: Path) -> None:
    shutil.copytree(ours / "ec", ours / os.fsdecode(b"\xff<b>"))
    board = made(ours, tmp_path / "site")
    assert entry(board, "ours/\\xff<b>/mini").status == "unknown"
    assert read_board(tmp_path / "site") == board


@pytest.mark.parametrize("name", ["builds/ours", "builds/ours/ec-mini.html", "index.html"])
def test_a_link_in_a_site_leads_nowhere(name: str, ours: Path, tmp_path: Path, refuses: Refuses) -> None:
    site, mine = tmp_path / "site", tmp_path / "mine"
    made(ours, site)
    mine.mkdir()
    path = site / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(mine if name == "builds/ours" else mine / "file", target_is_directory=name == "builds/ours")
    before = bytes_of(site)
    with refuses(UsageError):
        made(ours, site)
    assert bytes_of(site) == before and not [*mine.iterdir()]


def test_what_nobody_has_signed_for_reproduces_nothing(ours: Path, tmp_path: Path) -> None:
    (ours / "builders.toml").unlink()
    write_audit(read_recipe(ours / "ec"), audit(dict.fromkeys(range(len(JOURNAL.blocks)), "identical"), auditor="Eve"))
    board = made(ours, tmp_path / "site")
    assert (entry(board).status, entry(board).reproduced, entry(board).verified) == ("unknown", 1, False)
    assert [(each.name, each.key) for each in board.builders] == [("Eve", "")]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda value: value["history"].pop(0),
        lambda value: value["history"][1].update(status="reproduced"),
        lambda value: value.update(schema="requant.board/9"),
        lambda value: value["builds"][0].update(status="fine"),
    ],
)
def test_a_history_that_was_rewritten_is_refused(
    spoil: Callable[[Any], Any], ours: Path, tmp_path: Path, refuses: Refuses
) -> None:
    site = tmp_path / "site"
    made(ours, site)
    index = json.loads((site / "index.json").read_text())
    spoil(index)
    (site / "index.json").write_text(json.dumps(index))
    with refuses(CheckpointError):
        read_board(site)


def test_a_folder_of_something_else_is_left_alone(ours: Path, tmp_path: Path, refuses: Refuses) -> None:
    with refuses(UsageError):
        read_board(ours)
    with refuses(UsageError):
        places([str(ours), f"ours={tmp_path}"])
    with refuses(UsageError):
        places([str(tmp_path / "nowhere")])
    assert [each.label for each in places([str(ours), f"theirs={ours}"])] == ["ours", "theirs"]


def test_an_index_leads_to_no_file_outside_of_the_site(ours: Path, tmp_path: Path) -> None:
    site, mine = tmp_path / "site", tmp_path / "mine.html"
    made(ours, site)
    mine.write_text("kept")
    index = json.loads((site / "index.json").read_text())
    index["builds"][0] |= {"page": "../mine.html", "badge": "builds/../../mine.html"}
    index["builds"][1] |= {"page": str(mine), "badge": "index.html"}
    (site / "index.json").write_text(json.dumps(index))
    shutil.rmtree(ours / "ec")
    made(ours, site)
    assert mine.read_text() == "kept" and (site / "index.html").exists()


def test_names_of_strangers_are_safe_and_apart() -> None:
    names = ["ec", "EC", "a/b", "a-b", "..", ".", "\u202e", "", "é", "e" * 300, "e" * 301, "a b", "a\nb"]
    names += [slug("EC"), slug("a b")]  # nobody can take the place that another's name is given
    slugs = [slug(each) for each in names]
    assert len({*slugs}) == len(names)
    assert all(each.strip(".") == each and set(each) <= {*"abcdefghijklmnopqrstuvwxyz0123456789._-"} for each in slugs)


def test_an_index_is_as_its_schema_says(ours: Path, tmp_path: Path) -> None:
    audited(ours, "Ada")
    made(ours, tmp_path / "site")
    value = json.loads((tmp_path / "site" / "index.json").read_text())
    assert value["builders"] and value["history"]
    assert [*Draft202012Validator(schema("requant.board/1", closed=True)).iter_errors(value)] == []


def test_a_feed_has_an_entry_for_each_event_newest_first(ours: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    made(ours, site)
    audited(ours, "Ada")
    board = made(ours, site)
    root = ElementTree.fromstring((site / "feed.xml").read_text())  # noqa: S314 (ours)
    assert root.tag == f"{ATOM}feed" and root.findtext(f"{ATOM}updated") == max(each.finished for each in board.history)
    entries = root.findall(f"{ATOM}entry")
    assert entries[0].findtext(f"{ATOM}title") == "ours/ec/mini: reproduced by 1, was unknown"
    assert len(entries) == len(board.history) == len({each.findtext(f"{ATOM}id") for each in entries})
    assert all(each.findtext(f"{ATOM}updated") for each in entries)


EVIL = '"/><script>alert(1)</script>]]>&\u202e\x00'


def test_no_name_is_markup_in_badges_and_feeds(ours: Path, tmp_path: Path) -> None:
    board = made(ours, tmp_path / "site")
    plain = entry(board)
    evil = replace(plain, id=EVIL, build=EVIL, sentence=EVIL)
    for text in (badge(plain), badge(evil)):
        tags = [each.tag.rpartition("}")[2] for each in ElementTree.fromstring(text).iter()]  # noqa: S314
        assert tags == ["svg", "title", "clipPath", "rect", "g", "rect", "rect", "g", "text", "text"]
    event = board.history[0]
    made_up = Board((evil,), (), (replace(event, id=EVIL),), "")
    root = ElementTree.fromstring(feed(made_up))  # noqa: S314
    assert {each.tag for each in root.iter()} == {
        f"{ATOM}{name}" for name in ("feed", "id", "title", "updated", "author", "name", "link", "entry", "summary")
    }


def test_the_command_says_what_is_new(ours: Path, tmp_path: Path) -> None:
    words = ["board", str(ours), "--out", str(tmp_path / "site")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and "4 builds: 0 reproduced, 0 bad, 0 failed, 4 unknown; 2 changes" in done.stdout
    audited(ours, "Ada")
    assert "1 reproduced, 0 bad, 0 failed, 3 unknown; 1 change since" in CliRunner().invoke(app, words).stdout


def test_a_board_in_a_browser(ours: Path, tmp_path: Path, chromium: Browser) -> None:
    audited(ours, "Ada")
    site = tmp_path / "site"
    board = made(ours, site)
    with opened(chromium, site / "index.html", LAPTOP) as seen:
        assert not overflows(seen.page)
        seen.page.locator("#reproduced ~ .wide a").first.click()
        assert seen.page.locator("h1").inner_text() == "ec"
        seen.page.get_by_text("All builds").click()
        assert seen.page.locator("h1").inner_text() == "Builds, and who made them again"
        assert (seen.said, [each for each in seen.asked if not each.startswith(site.as_uri())]) == ([], [])
    for name in (board.builders[0].page, "history.html"):
        with opened(chromium, site / name, PHONE, "dark") as seen:
            assert not overflows(seen.page)
            assert (seen.said, seen.asked) == ([], [])


@pytest.mark.full
def test_every_kind_of_page_of_a_board_is_accessible(ours: Path, tmp_path: Path, chromium: Browser) -> None:
    audited(ours, "Ada")
    site = tmp_path / "site"
    board = made(ours, site)
    for name in ("index.html", "history.html", board.builders[0].page):
        for size, scheme in ((PHONE, "dark"), (LAPTOP, "light")):
            with opened(chromium, site / name, size, scheme) as seen:  # type: ignore[arg-type]
                assert inaccessible(seen.page) == []


@pytest.mark.full
def test_a_thousand_builds_are_a_board_in_a_minute(ours: Path, tmp_path: Path) -> None:
    """Ten times the time that it takes on two idle cores, so that it fails for what grows with the square alone."""
    import time

    audited(ours, "Ada")
    for number in range(1000):
        shutil.copytree(ours / "ec", ours / f"copy-{number:04d}")
    started = time.process_time()
    board = made(ours, tmp_path / "site")
    assert len([each for each in board.builds if each.tiny]) == 1002
    assert time.process_time() - started < 300
