"""An audit is read back as it was written; what a stranger sends is read strictly, or refused in words."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.cases.audits import AUDIT, audits
from tests.checkpoints import on_a_disk, on_disk
from tests.conftest import ROOT, Refuses, Worded

from requant.audit.audits import (
    FOLDER,
    PREDICATE_TYPE,
    SUFFIX,
    party,
    read_audit,
    read_audits,
    same_party,
    statement,
)
from requant.audit.audits import write_audit as write
from requant.audit.challenge import MAX_TEXT, Challenge
from requant.audit.distance import Distance
from requant.audit.retuned import Audit, Judgement, Retuned
from requant.audit.untuned import NAMED, Deviation, Untuned
from requant.digest import MAX_STATEMENT, canonical_json, sha256
from requant.errors import CheckpointError, UsageError
from requant.recipe import Recipe, read_recipe


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return replace(read_recipe(ROOT / "builds" / "ec"), path=tmp_path / "recipe.toml")


def read(data: bytes) -> Audit:
    """Read bytes under the name that they should have."""
    with on_disk({f"{sha256(data)}{SUFFIX}": data}) as folder:
        return read_audit(next(folder.iterdir()))


@on_a_disk
@given(audit=audits())
def test_what_is_written_is_read_back(audit: Audit) -> None:
    data = statement(audit)
    assert read(data) == audit
    assert statement(read(data)) == data


def test_an_audit_stands_in_the_recipes_folder_under_its_digest(recipe: Recipe) -> None:
    assert read_audits(recipe) == {}
    paths = [write(recipe, each) for each in (AUDIT, replace(AUDIT, auditor="Grace"), AUDIT)]
    assert paths[0] == paths[2] != paths[1]
    assert paths[0].parent == recipe.path.parent / FOLDER
    assert paths[0].name == f"{sha256(paths[0].read_bytes())}{SUFFIX}"
    assert sorted(each.auditor for each in read_audits(recipe).values()) == ["Ada", "Grace"]
    assert {each.name for each in paths[0].parent.iterdir()} == read_audits(recipe).keys()


def test_a_statement_has_what_in_toto_requires() -> None:
    value = json.loads(statement(AUDIT))
    assert value.keys() == {"_type", "subject", "predicateType", "predicate"}
    assert (value["_type"], value["predicateType"]) == ("https://in-toto.io/Statement/v1", PREDICATE_TYPE)
    assert value["subject"] == [
        {"name": "config.json", "digest": {"sha256": "07" * 32}},
        {"name": "model.safetensors", "digest": {"sha256": "06" * 32}},
    ]
    page = (ROOT / "docs" / "audit.md").read_text()
    listed = re.findall(r"^\| (`[^|]*`) \|", page.partition("has exactly these keys:")[2].partition("\n## ")[0], re.M)
    assert {key for row in listed for key in re.findall(r"`([a-z_]+)`", row)} == value["predicate"].keys()
    assert (value["predicate"]["outcome"], value["predicate"]["first_divergence"]) == ("different", "layers.2")


def test_what_could_not_be_read_back_is_not_written(recipe: Recipe, refuses: Refuses) -> None:
    for spoilt in (replace(AUDIT, auditor=""), replace(AUDIT, blocks=()), replace(AUDIT, files={})):
        with refuses(CheckpointError):
            write(recipe, spoilt)
    many = tuple(Retuned(f"layers.{i}", i, Judgement.UNJUDGED, "r" * MAX_TEXT) for i in range(4000))
    with refuses(CheckpointError):
        write(recipe, replace(AUDIT, blocks=many, count=4000))
    assert not (recipe.path.parent / FOLDER).exists()


@pytest.mark.parametrize("name", ["", "  ", "\x00", "\ud800", "x" * (MAX_TEXT + 1)])
def test_a_name_that_cannot_be_recorded_is_refused(name: str, refuses: Refuses) -> None:
    with refuses(UsageError, vary="'.*'", shared=True):
        party(name)


def test_names_have_one_form() -> None:
    assert party("  Ada\t of\nLondon ") == party("Ada of London") == "Ada of London"


@pytest.mark.parametrize(
    "spelling",
    [
        "ADA LOVELACE",
        "ada lovelace",
        "\uff21\uff44\uff41 Lovelace",
        "Ada\u00a0Lovelace",
        "Ada\u200b Love\u00adlace",
        "A\u2060da Lovelace\u200f",
        "Ada Lovelace\ufe0f",
        "Ada\u034f Lovelace\U000e0101",
        "Ada \u3164 Lovelace",
        "Ada Lovelace\u2800",
        "\U0001d400da \U0001d4dbovelace",
    ],
)
def test_one_party_however_it_is_encoded(spelling: str) -> None:
    assert same_party(spelling) == same_party("Ada Lovelace") == "ada lovelace"


def test_parties_that_read_otherwise_are_two() -> None:
    names = ("Ada Lovelace", "Ada", "Adá Lovelace", "Straße", "Ελένη")
    assert len(set(map(same_party, names))) == len(names)
    assert same_party("STRASSE") == same_party("Straße")
    assert same_party("Ade\u0301") == same_party("ADÉ") == same_party("Ade\u034f\u0301")


@given(name=st.text(min_size=1))
def test_the_form_that_parties_are_counted_by_is_its_own(name: str) -> None:
    assert same_party(same_party(name)) == same_party(name)


def spoilt(edit: Callable[[Any], object]) -> bytes:
    """The statement of AUDIT, edited, in canonical form."""
    value = json.loads(statement(AUDIT))
    edit(value)
    return canonical_json(value) + b"\n"


def predicate(**changes: Any) -> bytes:
    return spoilt(lambda value: value["predicate"].update(changes))


def block(**changes: Any) -> bytes:
    """The audit whose second block, which is different, says something else."""
    return spoilt(lambda value: value["predicate"]["blocks"][1].update(changes))


def untuned(**changes: Any) -> bytes:
    return spoilt(lambda value: value["predicate"]["untuned"].update(changes))


def parts(**changes: Any) -> bytes:
    return spoilt(lambda value: value["predicate"]["blocks"][1]["distance"].update(changes))


def test_the_audit_that_is_spoilt_below_is_one() -> None:
    assert read(predicate()) == read(block()) == read(parts()) == AUDIT


GOOD = statement(AUDIT)


HOSTILE = (
    b"",
    b"[]\n",
    b"null\n",
    b'"text"\n',
    b"[" * 100_000,
    b"\xff\n",
    GOOD[:-1],
    GOOD + b"\n",
    GOOD.replace(b":", b": ", 1),
    GOOD.replace(b'"tiny":"mini"', b'"tiny":"mini","tiny":"mini"'),
    GOOD.replace(b'"count":4', b'"count":NaN'),
    GOOD.replace(b'"count":4', b'"count":4.0'),
    GOOD.replace(b'"count":4', b'"count":1e999'),
    GOOD.replace(b'"count":4', b'"count":' + b"9" * 5000),
    GOOD.replace(b'"Ada"', b'"\\ud800"'),
    spoilt(lambda value: value.pop("subject")),
    spoilt(lambda value: value.update(subject=[])),
    spoilt(lambda value: value["subject"][1]["digest"].update(sha256="00" * 32)),
    spoilt(lambda value: value["subject"][1].update(name="x")),
    spoilt(
        lambda value: (
            value.update(subject=[{"name": "x", "digest": {"sha256": "00" * 32}}]),
            value["predicate"].update(checkpoint=sha256(b"{}")),
        )
    ),
    spoilt(lambda value: value.update(subject={})),
    spoilt(lambda value: value["subject"].append(value["subject"][0])),
    spoilt(lambda value: value["subject"].reverse()),
    spoilt(lambda value: value["subject"][0].update(digest={"sha512": "07" * 32})),
    spoilt(lambda value: value["subject"][0].update(digest={"sha256": "07"})),
    spoilt(lambda value: value.update(predicateType="https://slsa.dev/provenance/v1")),
    spoilt(lambda value: value.update(_type="other")),
    spoilt(lambda value: value.update(more=1)),
    predicate(more=1),
    predicate(outcome="identical"),
    predicate(first_divergence="layers.0"),
    predicate(recipe="A1" * 32),
    predicate(recipe="01" * 32 + "\n"),
    predicate(journal=""),
    predicate(journal=False),
    predicate(checkpoint=None),
    predicate(checkpoint="05" * 32),
    predicate(companions="README.md"),
    predicate(companions=["\x1b[2J"]),
    predicate(untuned=None),
    untuned(outcome="identical"),
    untuned(count=0),
    untuned(count=2),
    untuned(deviations=[], count=0),
    untuned(deviations={}),
    untuned(deviations=[{"kind": "good", "name": "x", "detail": ""}]),
    untuned(deviations=[{"kind": [], "name": "x", "detail": ""}]),
    untuned(open=None),
    untuned(more=1),
    predicate(tiny=["mini"]),
    predicate(tiny=""),
    predicate(count=True),
    predicate(count=-1),
    predicate(count=2),
    predicate(count=2**53),
    predicate(auditor=" Ada"),
    predicate(auditor=" "),
    predicate(auditor="\x1b[2J"),
    predicate(auditor="x" * 10**6),
    predicate(finished="yesterday"),
    predicate(finished="2026-11-21T22:00:00Z\n"),
    predicate(hardware={}),
    predicate(hardware="cpu"),
    predicate(hardware={"gib": 1.5}),
    predicate(hardware={"a": {"b": {"c": {"d": {}}}}}),
    predicate(hardware={"": "x"}),
    predicate(challenge={"text": "t"}),
    predicate(challenge={"text": "", "drawn": 2}),
    predicate(challenge={"text": "t", "drawn": 0}),
    predicate(challenge={"text": "t", "drawn": 5}),
    predicate(challenge={"text": "t", "drawn": 2, "of": 4}),
    predicate(challenge=4),
    predicate(blocks={}),
    predicate(blocks=[]),
    predicate(blocks=[None]),
    block(index=0),
    block(index=4),
    block(index="2"),
    block(block="layers.0"),
    block(judgement="good"),
    block(judgement=[]),
    block(judgement="identical"),
    block(reason=None),
    block(seconds=1),
    block(distance=[]),
    parts(steps=[]),
    parts(steps={"0": 3}),
    parts(steps={"16": 3}),
    parts(steps={"1": 0}),
    parts(steps={"one": 3}),
    parts(steps={"+1": 1, "2": 2}),
    parts(codes=4),
    parts(ulp=None),
    parts(first=""),
)


def test_hostile_audits_are_refused_in_words_that_print(worded: Worded) -> None:
    said = []
    for data in HOSTILE:
        with pytest.raises(CheckpointError) as caught:
            read(data)
        said.append(str(caught.value))
        assert said[-1].isprintable()
        assert len(said[-1]) < 2500
    worded("\n".join(said), vary=r"\w{64}")


def test_every_key_is_needed() -> None:
    for key in json.loads(GOOD)["predicate"]:
        with pytest.raises(CheckpointError):
            read(spoilt(lambda value, key=key: value["predicate"].pop(key)))  # type: ignore[misc]


@on_a_disk
@given(data=st.data())
def test_a_flipped_bit_is_another_audit_or_none(data: st.DataObject) -> None:
    changed = bytearray(GOOD)
    changed[data.draw(st.integers(0, len(GOOD) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        assert read(bytes(changed)) != AUDIT
    except CheckpointError as error:
        assert SUFFIX in str(error)


def test_an_edited_file_is_not_under_its_name(recipe: Recipe, refuses: Refuses) -> None:
    path = write(recipe, AUDIT)
    path.write_bytes(path.read_bytes().replace(b"Ada", b"Bob"))
    with refuses(CheckpointError, vary=r"\w{64}"):
        read_audits(recipe)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "huge", "absent"])
def test_what_is_no_regular_small_file_is_not_opened(
    kind: str, recipe: Recipe, tmp_path: Path, refuses: Refuses
) -> None:
    path = write(recipe, AUDIT)
    if kind == "link":
        path.rename(tmp_path / "real")
        path.symlink_to(tmp_path / "real")
    elif kind == "huge":
        os.truncate(path, MAX_STATEMENT + 1)
    else:
        path.unlink()
        if kind != "absent":
            (os.mkfifo if kind == "pipe" else os.mkdir)(path)
    with refuses(CheckpointError):
        read_audit(path)


def test_a_folder_that_is_a_file_is_named(recipe: Recipe, refuses: Refuses) -> None:
    recipe.beside(FOLDER).write_text("")
    with refuses(CheckpointError):
        read_audits(recipe)


def test_the_largest_audit_fits() -> None:
    """A thousand blocks, all different, in names and reasons longer than any there are, and the rest different too."""
    steps = {step: 2**40 for step in range(-15, 16) if step}
    each = Retuned("", 0, Judgement.DIFFERENT, "r" * 200, Distance("t" * 200, 2**40, 2**40 * 30, steps, 2**40, 65535))
    some = tuple(replace(each, block=f"model.language_model.layers.{i}", index=i) for i in range(1000))
    rest = Untuned((Deviation("changed tensor", "t" * MAX_TEXT, "d" * MAX_TEXT),) * NAMED, 2**40, "o" * MAX_TEXT)
    audit = replace(AUDIT, blocks=some, count=1000, challenge=Challenge("text", 1000), untuned=rest)
    assert len(statement(audit)) < MAX_STATEMENT
    assert read(statement(audit)) == audit
