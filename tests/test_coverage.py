"""Every block is covered by those who reproduced it, in the class where they did; what went against it is shown."""

import base64
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st
from tests.cases.audits import HINTED
from tests.checkpoints import on_a_disk, on_disk
from tests.conftest import ROOT, Refuses, Worded
from tests.processes import requant

from requant.audit import coverage as module
from requant.audit.audits import statement, write_audit
from requant.audit.builders import builders_of, read_builders
from requant.audit.challenge import Challenge, StepChallenge, draw, draw_steps
from requant.audit.coverage import Coverage
from requant.audit.distance import Distance
from requant.audit.parties import Party
from requant.audit.retuned import Audit, Judgement, Retuned
from requant.audit.untuned import Deviation, Untuned
from requant.build import RECORDED
from requant.checkpoint.manifest import FileRecord, Manifest, read_manifest
from requant.digest import canonical_json, sha256, sha256_file
from requant.errors import CheckpointError
from requant.evidence.journal import read_journal
from requant.evidence.keys import PrivateKey, read_private
from requant.evidence.signatures import Fault, bundle_path, sign, sign_file
from requant.evidence.statements import hardware_of
from requant.recipe import Recipe, read_recipe

EC = ROOT / "builds" / "ec"
JOURNAL = read_journal(EC / "mini.journal.jsonl")
NAMES = tuple(each.block for each in JOURNAL.blocks)
MANIFEST = read_manifest(EC / "mini.manifest.json")
FILES = {path: record.sha256 for path, record in MANIFEST.files.items()}
HARDWARE = hardware_of(EC / "mini.intoto.jsonl")
GPU = {"accelerator": "NVIDIA H200", "multiprocessors": 132}
DISTANCE = Distance("a.qweight", 1, 1, {1: 1})


def blocks(judgements: Mapping[int, str]) -> tuple[Retuned, ...]:
    return tuple(
        Retuned(NAMES[index], index, Judgement(each), "", DISTANCE if each == "different" else None)
        for index, each in sorted(judgements.items())
    )


def audit(judgements: Mapping[int, str], **changes: Any) -> Audit:
    """An audit of the recorded tiny model mini of ec."""
    made = Audit(
        recipe=JOURNAL.header.recipe,
        tiny="mini",
        environment=JOURNAL.header.environment,
        base=JOURNAL.header.base,
        journal=sha256_file(EC / "mini.journal.jsonl"),
        files=FILES,
        companions=(),
        hardware=HARDWARE,
        challenge=None,
        count=len(NAMES),
        blocks=blocks(judgements),
        untuned=Untuned(),
        auditor="Ada",
        finished="2026-11-21T22:00:00Z",
        requant="0.1.0",
    )
    return replace(made, **changes)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """The recipe in a folder of its own, with what is recorded of its tiny model mini."""
    return copied(tmp_path)


def copied(folder: Path) -> Recipe:
    for name in ("recipe.toml", *(f"mini.{each}" for each in RECORDED)):
        shutil.copyfile(EC / name, folder / name)
    return read_recipe(folder)


def coverage(recipe: Recipe, tiny: str | None, builders: Path | None = None) -> Coverage:
    return module.coverage(recipe, tiny, builders_of(recipe, builders))


def covered(recipe: Recipe, *audits: Audit) -> Coverage:
    for each in audits:
        write_audit(recipe, each)
    return coverage(recipe, "mini")


def claims(found: Coverage) -> list[int]:
    return [each.claims for each in found.blocks]


def test_without_an_audit_nothing_is_covered(recipe: Recipe) -> None:
    found = covered(recipe)
    assert (claims(found), found.negatives, found.exit_status) == ([0, 0, 0, 0], 0, 3)


def test_parties_and_classes_are_counted_block_by_block(recipe: Recipe) -> None:
    found = covered(
        recipe,
        audit({0: "identical", 1: "identical"}),
        audit({1: "identical", 2: "identical"}, finished="2026-11-22T22:00:00Z"),
        audit({1: "identical"}, auditor="Grace", hardware=GPU),
        audit({1: "identical"}, auditor="Ada", hardware=GPU),
        audit({1: "identical"}, auditor="GRACE"),
        audit({1: "identical"}, auditor="ADA", hardware=GPU),
    )
    assert (claims(found), found.negatives, found.exit_status) == ([1, 2, 1, 0], 0, 0)
    assert [sorted(each.claimed.values()) for each in found.blocks] == [
        [("Ada",)],
        [("ADA", "Grace"), ("Ada", "GRACE")],
        [("Ada",)],
        [],
    ]
    assert sorted(found.hardware.values(), key=len) == [GPU, HARDWARE]
    assert len(found.counted) == 6


def test_a_negative_result_counts_beside_positive_ones(recipe: Recipe) -> None:
    found = covered(
        recipe,
        audit({2: "identical"}),
        audit({2: "different", 3: "unjudged"}, auditor="Grace"),
        audit({3: "inconclusive"}, hardware=GPU),
    )
    assert (claims(found), found.negatives, found.exit_status) == ([0, 0, 1, 0], 1, 1)
    (negative,) = found.blocks[2].disputed
    assert (negative.party.name, negative.what) == ("Grace", blocks({2: "different"})[0].line())
    assert negative.audit in found.counted
    assert [len(each.open) for each in found.blocks] == [0, 0, 0, 2]


def test_audits_that_settle_nothing_are_no_negative_result(recipe: Recipe) -> None:
    assert covered(recipe, audit({3: "unjudged"}), audit({2: "inconclusive"})).exit_status == 0


def test_an_audit_without_a_journal_counts(recipe: Recipe) -> None:
    assert claims(covered(recipe, audit({0: "identical"}, journal=None))) == [1, 0, 0, 0]


@pytest.mark.parametrize("judgement", ["identical", "different"])
@pytest.mark.parametrize("key", ["recipe", "base"])
def test_an_audit_of_something_else_is_named_and_not_counted(key: str, judgement: str, recipe: Recipe) -> None:
    changes: dict[str, Any] = {key: "ab" * 32}
    found = covered(recipe, audit({0: judgement}, **changes))
    assert (claims(found), found.negatives, found.exit_status, found.counted) == ([0, 0, 0, 0], 0, 3, {})
    assert list(found.stale.values()) == [f"another {key} than the recorded one"]
    assert found.untuned.claims == 0


@pytest.mark.parametrize("judgement", ["identical", "different"])
@pytest.mark.parametrize("files", ["changed", "renamed", "more", "fewer"])
def test_an_audit_of_other_weight_files_is_not_counted(files: str, judgement: str, recipe: Recipe) -> None:
    first = min(path for path in FILES if path.endswith(".safetensors"))
    other = {
        "changed": {**FILES, first: "ab" * 32},
        "renamed": {f"sub/{path}" if path == first else path: digest for path, digest in FILES.items()},
        "more": {**FILES, "x.safetensors": "ab" * 32},
        "fewer": {path: digest for path, digest in FILES.items() if path != first},
    }[files]
    found = covered(recipe, audit({0: judgement}, files=other))
    assert (claims(found), found.negatives, found.exit_status, found.counted) == ([0, 0, 0, 0], 0, 3, {})
    assert list(found.stale.values()) == ["another checkpoint than the recorded one"]


def test_a_manifest_of_ruined_files_is_not_covered_by_audits_of_the_honest_ones(recipe: Recipe) -> None:
    """Its records of tensors are the honest build's; what would be downloaded and verified is not."""
    ruined = {path: FileRecord(each.bytes, sha256(path.encode())) for path, each in MANIFEST.files.items()}
    recipe.beside("mini.manifest.json").write_bytes(Manifest(ruined, MANIFEST.tensors).to_json())
    found = covered(recipe, audit(dict.fromkeys(range(4), "identical")))
    assert (claims(found), found.untuned.claims, found.exit_status) == ([0, 0, 0, 0], 0, 3)
    assert list(found.stale.values()) == ["another checkpoint than the recorded one"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"environment": "ab" * 32}, "another environment than the build's"),
        ({"hardware": GPU}, "another hardware class than the build's, "),
        ({"journal": "ab" * 32}, "another journal than the recorded one"),
    ],
)
def test_equal_bits_count_wherever_they_come_from_and_other_bits_accuse_nobody_there(
    change: dict[str, Any], why: str, recipe: Recipe
) -> None:
    """An environment changes with every edit of the worker's code; what was reproduced before stays reproduced."""
    found = covered(recipe, audit({1: "identical"}, **change), audit({2: "different"}, auditor="Eve", **change))
    assert (claims(found), found.negatives, found.exit_status, found.stale) == ([0, 1, 0, 0], 0, 0, {})
    (result,) = found.blocks[2].open
    assert (result.party.name, result.audit in found.counted) == ("Eve", True)
    assert result.what.startswith(f"{NAMES[2]}: different, ")
    assert f"no accusation: {why}" in result.what


def test_audits_are_labelled(recipe: Recipe) -> None:
    covered(recipe, audit({0: "identical"}))
    covered(recipe, audit({0: "identical"}, auditor="Bob", journal=None, environment="ab" * 32, hardware=GPU))
    found = covered(recipe, audit({0: "identical"}, auditor="Eve", journal="ab" * 32))
    labels = {each.auditor: each for each in found.counted.values()}
    assert {name: (each.own_environment, each.journal) for name, each in labels.items()} == {
        "Ada": (True, "recorded"),
        "Bob": (False, "none"),
        "Eve": (True, "another"),
    }
    assert labels["Bob"].environment == "ab" * 32
    assert labels["Bob"].hardware.startswith("NVIDIA H200 [")
    assert labels["Ada"].hardware == found.own


def test_all_that_is_not_tuned_is_a_row_of_its_own(recipe: Recipe) -> None:
    bad = Untuned((Deviation("changed tensor", "lm_head.weight", "other bytes"),), 1)
    found = covered(recipe, audit({0: "identical"}), audit({1: "identical"}, auditor="Bob"))
    assert (found.untuned.claims, found.untuned.disputed, found.exit_status) == (2, (), 0)
    covered(recipe, audit({0: "unjudged"}, auditor="Sue", untuned=Untuned(open="no version")))
    found = covered(recipe, audit({2: "identical"}, auditor="Eve", hardware=GPU, environment="ab" * 32, untuned=bad))
    assert (claims(found), found.untuned.claims, found.negatives, found.exit_status) == ([1, 1, 1, 0], 2, 1, 1)
    (negative,) = found.untuned.disputed
    assert (negative.party.name, negative.what) == (
        "Eve",
        "not tuned: different; changed tensor: lm_head.weight: other bytes",
    )
    (open_one,) = found.untuned.open
    assert (open_one.party.name, open_one.what) == ("Sue", "not tuned: inconclusive; no version")


@pytest.mark.parametrize("untuned", [Untuned(), Untuned((Deviation("extra file", "x.bin"),), 1)])
@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({**FILES, "x.bin": "ab" * 32}, "x.bin"),
        ({**FILES, "config.json": "ab" * 32}, "config.json"),
        ({name: each for name, each in FILES.items() if name != "config.json"}, "config.json"),
    ],
)
def test_an_audit_of_other_files_is_not_counted(
    files: dict[str, str], named: str, untuned: Untuned, recipe: Recipe
) -> None:
    found = covered(recipe, audit({0: "identical"}, files=files, untuned=untuned))
    assert (claims(found), found.untuned.claims, found.negatives) == ([0, 0, 0, 0], 0, 0)
    assert list(found.stale.values()) == [f"of other files than the recorded ones: {named!r}"]


def test_an_audit_of_other_blocks_is_not_counted(recipe: Recipe) -> None:
    renamed = audit({0: "identical"}, blocks=(Retuned("layers.7", 0, Judgement.IDENTICAL),))
    found = covered(recipe, renamed, audit({0: "identical"}, count=5))
    assert list(found.stale.values()) == ["its blocks are not those of the recorded journal"] * 2


def test_other_bits_on_another_hardware_class_are_no_negative_result(recipe: Recipe) -> None:
    found = covered(recipe, audit({2: "different"}, hardware=GPU))
    assert (found.negatives, found.exit_status, len(found.counted), found.stale) == (0, 0, 1, {})
    assert [len(each.open) for each in found.blocks] == [0, 0, 1, 0]


def test_what_hints_led_to_is_a_class_of_its_own_and_accuses_from_every_class_of_cpus(recipe: Recipe) -> None:
    elsewhere = {**HARDWARE, "caps": {"capability": "AVX512", "threads": "2"}}

    def followed(judgements: Mapping[int, str], **changes: Any) -> Audit:
        found = tuple(replace(each, hinted=HINTED) for each in blocks(judgements))
        return audit({}, **{"hardware": elsewhere, "portable": True, "blocks": found, **changes})

    repeated = audit(dict.fromkeys(range(4), "identical"), auditor="Grace")
    found = covered(recipe, repeated, followed(dict.fromkeys(range(4), "identical")))
    assert claims(found) == [2, 2, 2, 2]
    assert [sorted(each.claimed.values()) for each in found.blocks] == [[("Ada",), ("Grace",)]] * 4
    assert {each.portable: each.hardware.endswith(", by hints") for each in found.counted.values()} == {
        True: True,
        False: False,
    }
    assert found.exit_status == 0
    assert covered(recipe, followed({1: "different"}, hardware=GPU)).negatives == 0
    assert covered(recipe, followed({1: "different"}, environment="0" * 64)).negatives == 0
    assert covered(recipe, audit({1: "different"}, hardware=elsewhere)).negatives == 0
    assert covered(recipe, followed({1: "different"})).negatives == 1


def test_single_steps_leave_their_blocks_open_and_accuse_from_every_class_of_cpus(recipe: Recipe) -> None:
    drawn = draw_steps("drand 1", sha256_file(EC / "mini.journal.jsonl"), NAMES, recipe.effort(tiny=True).iterations, 3)

    def judged(judgement: str, steps: StepChallenge = drawn) -> Audit:
        found = tuple(replace(each, hinted=HINTED) for each in blocks(dict.fromkeys(steps.by_block, judgement)))
        elsewhere = {**HARDWARE, "caps": {"capability": "AVX512", "threads": "2"}}
        return audit({}, hardware=elsewhere, portable=True, blocks=found, steps=steps)

    found = covered(recipe, judged("identical"))
    assert claims(found) == [0, 0, 0, 0]
    assert (found.untuned.claims, found.exit_status, found.stale) == (1, 0, {})
    assert [len(each.open) for each in found.blocks] == [int(index in drawn.by_block) for index in range(4)]
    index, iterations = next(iter(drawn.by_block.items()))
    said = f"{NAMES[index]}: {len(iterations)} of its {drawn.iterations} steps follow, drawn and revealed"
    assert found.blocks[index].open[0].what == said
    assert covered(recipe, judged("different")).negatives == len(drawn.by_block)
    other = replace(drawn, text="drand 2")
    assert [*covered(recipe, judged("identical", other)).stale.values()] == [
        "its text draws other steps, or those of another journal"
    ]


def test_a_draw_is_drawn_again(recipe: Recipe) -> None:
    challenge = Challenge("drand 5000000", 2)
    drawn = {NAMES.index(name) for name in draw(NAMES, challenge)}
    others = set(range(4)) - drawn
    honest, chosen, fewer = (
        audit(dict.fromkeys(some, "identical"), challenge=challenge, auditor=name)
        for name, some in (("Ada", drawn), ("Bob", others), ("Eve", {min(drawn)}))
    )
    found = covered(recipe, honest, chosen, fewer)
    assert claims(found) == [int(index in drawn) for index in range(4)]
    assert len(found.stale) == 2
    assert all("its text draws other blocks" in reason for reason in found.stale.values())


def test_what_comes_to_light_on_the_way_to_a_drawn_block_counts(recipe: Recipe) -> None:
    challenge = Challenge("drand 5000000", 2)
    drawn = {NAMES.index(name) for name in draw(NAMES, challenge)}
    other = min(set(range(4)) - drawn)
    found = covered(recipe, audit({**dict.fromkeys(drawn, "unjudged"), other: "different"}, challenge=challenge))
    assert (found.negatives, found.stale) == (1, {})
    assert found.blocks[other].disputed


def test_audits_of_another_tiny_model_are_another_build_s(recipe: Recipe) -> None:
    found = covered(recipe, audit({0: "identical"}, tiny="demo"), audit({0: "identical"}, tiny=None))
    assert (found.counted, found.stale) == ({}, {})
    for tiny in ("demo", None):
        other = coverage(recipe, tiny)
        assert other.exit_status == 3
        assert [reason.partition(":")[0] for reason in other.stale.values()] == ["nothing is recorded"]


def test_a_spoilt_record_or_audit_is_an_error(recipe: Recipe, refuses: Refuses) -> None:
    path = write_audit(recipe, audit({0: "identical"}))
    path.write_bytes(path.read_bytes() + b"\n")
    with refuses(CheckpointError, vary=r"\w{64}"):
        coverage(recipe, "mini")
    path.unlink()
    recipe.beside("mini.journal.jsonl").write_text("")
    with refuses(CheckpointError):
        coverage(recipe, "mini")


judged = st.dictionaries(st.integers(0, 3), st.sampled_from([*Judgement]), min_size=1)


@on_a_disk
@given(found=st.lists(st.tuples(judged, st.sampled_from(["Ada", "Bob", "Eve"]), st.sampled_from([GPU, HARDWARE]))))
def test_what_was_found_is_what_is_counted(found: list[tuple[dict[int, str], str, dict[str, Any]]]) -> None:
    with on_disk({}) as folder:
        recipe = copied(folder)
        result = covered(recipe, *(audit(each, auditor=who, hardware=where) for each, who, where in found))
    distinct = {(tuple(sorted(each.items())), who, where is GPU) for each, who, where in found}
    for index, block in enumerate(result.blocks):
        by = {who for each, who, _ in distinct if dict(each).get(index) == "identical"}
        assert block.claims == len(by)
        said = [(dict(each)[index], gpu) for each, _, gpu in distinct if index in dict(each)]
        assert len(block.disputed) == said.count(("different", False))
        assert len(block.open) == sum(
            each not in ("identical", "different") or (each, gpu) == ("different", True) for each, gpu in said
        )
    assert result.exit_status == (1 if result.negatives else 0 if distinct else 3)


def test_where_nothing_is_recorded_no_blocks_are_counted(recipe: Recipe, tmp_path: Path) -> None:
    (recipe.path.parent / "mini.manifest.json").unlink()
    write_audit(recipe, audit({0: "identical"}))
    full, mini = (requant("coverage", str(tmp_path), *more) for more in ((), ("--tiny", "--size", "mini")))
    assert (full.returncode, full.stdout) == (3, f"{tmp_path.name}: nothing is recorded for the full build\n")
    assert mini.returncode == 3
    assert mini.stdout.startswith("not counted: ")
    assert mini.stdout.endswith(f"\n{tmp_path.name}, tiny model mini: nothing is recorded\n")


def ordered(said: str) -> str:
    """Put the lines about audits in the order of their words: they come in that of digests."""
    lines = said.splitlines(keepends=True)
    audits = iter(sorted((line for line in lines if line.startswith("audit ")), key=lambda line: line.split()[2]))
    return "".join(next(audits) if line.startswith("audit ") else line for line in lines)


def test_what_a_person_reads(recipe: Recipe, tmp_path: Path, worded: Worded) -> None:
    recorded = rf"\b[0-9a-f]{{8,}}\b|{re.escape(HARDWARE['model'])}"  # with every change of the worker
    command = ("coverage", str(tmp_path), "--tiny", "--size", "mini")
    done = requant(*command)
    assert done.returncode == 3
    worded(ordered(done.stdout), recorded)
    covered(recipe, audit({0: "identical"}), audit({0: "identical"}, auditor="[Grace]", hardware=GPU))
    covered(recipe, audit({0: "identical"}, base="ab" * 32))
    done = requant(*command)
    assert done.returncode == 0
    worded(ordered(done.stdout), recorded)
    covered(recipe, audit({1: "different"}, auditor="Eve"))
    done = requant(*command)
    assert done.returncode == 1
    worded(ordered(done.stdout), recorded)
    known(tmp_path, Bob=keyed("bob", tmp_path))
    listed = (*command, "--builders", str(tmp_path / "builders.toml"))
    done = requant(*listed)
    assert done.returncode == 3
    worded("".join(done.stdout.splitlines(keepends=True)[-4:]), recorded)
    sign_file(write_audit(recipe, audit({2: "identical", 3: "different"})), keyed("bob", tmp_path))
    done = requant(*listed)
    assert done.returncode == 1
    worded(ordered(done.stdout), recorded)
    for path in recipe.beside("audits").glob("*.sigstore.json"):
        path.with_name(path.name.replace("sigstore.json", "intoto.jsonl")).unlink()
        path.unlink()
    done = requant(*command, "--json")
    assert done.returncode == 1
    value = json.loads(done.stdout)
    assert [len(each["disputed"]) for each in value["blocks"]] == [0, 1, 0, 0]
    assert [each["claims"] for each in value["blocks"]] == [2, 0, 0, 0]
    assert (len(value["counted"]), len(value["stale"])) == (3, 1)


def keyed(name: str, folder: Path) -> PrivateKey:
    """Somebody's key: always the same."""
    path = folder / f"{name}.key"
    secret = Ed25519PrivateKey.from_private_bytes(sha256(name.encode()).encode()[:32])
    path.write_bytes(secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return read_private(path)


def known(folder: Path, until: str = "", **names: PrivateKey) -> Path:
    """A list of builders, that calls each as the keyword says."""
    path = folder / "builders.toml"
    last = f"until = {until}\n" if until else ""
    tables = (
        f"[[builder]]\nname = {json.dumps(name)}\n{last}key = '''\n{key.public.pem}'''\n" for name, key in names.items()
    )
    path.write_text("".join(tables))
    return path


def test_a_party_is_a_key_and_what_is_not_signed_is_shown_apart(recipe: Recipe, tmp_path: Path) -> None:
    """Ada has two names, and her key is one party; so are two that call themselves alike, with two keys."""
    ada, bob, eve = (keyed(name, tmp_path) for name in ("ada", "bob", "eve"))
    builders = known(tmp_path, Ada=ada, Bob=bob)
    for key, found in (
        (ada, audit({0: "identical"}, auditor="Ada")),
        (ada, audit({0: "identical", 1: "identical"}, auditor="Ada's friend")),
        (bob, audit({0: "identical"}, auditor="Ada", finished="2026-11-22T22:00:00Z")),
        (eve, audit({0: "identical", 2: "identical"}, auditor="Bob")),
        (None, audit({0: "identical", 2: "different"}, auditor="Grace")),
    ):
        path = write_audit(recipe, found)
        if key:
            sign_file(path, key)
    found_all = coverage(recipe, "mini", builders)
    assert [each.parties for each in found_all.blocks] == [2, 1, 0, 0]
    assert claims(found_all) == [2, 0, 1, 0]
    assert ([*found_all.blocks[0].identical.values()], [*found_all.blocks[0].claimed.values()]) == (
        [("Ada", "Bob")],
        [("Bob", "Grace")],
    )
    assert (found_all.untuned.parties, found_all.untuned.claims) == (2, 2)
    (negative,) = found_all.blocks[2].disputed
    assert negative.party == Party("", "Grace", "not signed")
    assert (found_all.blocks[2].different, found_all.negatives, found_all.exit_status) == ((), 0, 0)
    whys = {(each.party.key, each.party.name): each.party.why for each in found_all.counted.values()}
    assert whys == {
        (ada.public.id, "Ada"): "",
        (bob.public.id, "Bob"): "",
        ("", "Bob"): f"{Fault.UNKNOWN_KEY}: {eve.public.id}",
        ("", "Grace"): "not signed",
    }
    (tmp_path / "none.toml").touch()
    assert [each.parties for each in coverage(recipe, "mini", tmp_path / "none.toml").blocks] == [0, 0, 0, 0]


@pytest.mark.parametrize("forger", ["eve", None])
@pytest.mark.parametrize("listed", [True, False])
def test_who_is_not_listed_neither_accuses_nor_acquits(
    listed: bool, forger: str | None, recipe: Recipe, tmp_path: Path
) -> None:
    """Where the list names nobody, claims are all there is, and count among themselves."""
    ada, who = keyed("ada", tmp_path), forger and keyed(forger, tmp_path)
    builders = known(tmp_path, Ada=ada) if listed else known(tmp_path)

    def found(by: PrivateKey | None, judgement: str, **changes: Any) -> Coverage:
        path = write_audit(recipe, audit({0: judgement}, **changes))
        if by:
            sign_file(path, by)
        return coverage(recipe, "mini", builders)

    claimed = found(who or None, "identical", auditor="Eve")
    assert (claims(claimed)[0], claimed.blocks[0].parties, claimed.exit_status) == (1, 0, 3 if listed else 0)
    bad = Untuned((Deviation("changed tensor", "lm_head.weight", "other bytes"),), 1)
    disputed = found(who or None, "different", auditor="Eve", untuned=bad)
    assert (len(disputed.blocks[0].disputed), len(disputed.untuned.disputed)) == (1, 1)
    assert (disputed.negatives, disputed.disputes) == ((0, 2) if listed else (2, 0))
    assert disputed.exit_status == (3 if listed else 1)
    assert found(ada, "identical").exit_status == (0 if listed else 1)
    accused = found(ada, "different", finished="2026-11-22T22:00:00Z")
    assert (accused.negatives, accused.exit_status) == ((1, 1) if listed else (3, 1))
    assert len(accused.blocks[0].different) == int(listed)


def test_the_list_is_beside_the_folders_of_the_builds(tmp_path: Path) -> None:
    ada = keyed("ada", tmp_path)
    known(tmp_path, Ada=ada)
    (tmp_path / "ec").mkdir()
    recipe = copied(tmp_path / "ec")
    sign_file(write_audit(recipe, audit({0: "identical"})), ada)
    assert [each.parties for each in coverage(recipe, "mini").blocks] == [1, 0, 0, 0]


@pytest.mark.parametrize("way", ["stripped", "several", "replayed", "payload", "signature", "impostor", "another type"])
def test_a_bundle_that_does_not_hold_is_named_and_its_audit_is_not_counted(
    way: str, recipe: Recipe, tmp_path: Path, worded: Worded
) -> None:
    ada, eve = keyed("ada", tmp_path), keyed("eve", tmp_path)
    builders = known(tmp_path, Ada=ada)
    path = write_audit(recipe, audit({0: "identical"}, auditor="Ada"))
    other = statement(audit({0: "identical"}, auditor="Ada", files={**FILES, "model.safetensors": "ab" * 32}))
    value = json.loads(sign(path.read_bytes(), eve if way == "impostor" else ada))
    envelope = value["dsseEnvelope"]
    if way == "stripped":
        envelope["signatures"] = []
    elif way == "several":
        envelope["signatures"] *= 2
    elif way == "replayed":
        value = json.loads(sign(other, ada))
    elif way == "payload":
        envelope["payload"] = base64.b64encode(other).decode()
    elif way == "signature":
        envelope["signatures"] = json.loads(sign(other, ada))["dsseEnvelope"]["signatures"]
    elif way == "impostor":
        value["verificationMaterial"] = json.loads(sign(other, ada))["verificationMaterial"]
    else:
        envelope["payloadType"] = "text/plain"
    bundle_path(path).write_bytes(canonical_json(value) + b"\n")
    found = coverage(recipe, "mini", builders)
    assert (claims(found), found.counted, found.exit_status) == ([0, 0, 0, 0], {}, 3)
    (reason,) = found.stale.values()
    worded(reason)


def test_a_signed_audit_of_another_checkpoint_is_not_counted(recipe: Recipe, tmp_path: Path) -> None:
    """A statement that is true, of other files, proves nothing about these."""
    ada = keyed("ada", tmp_path)
    path = write_audit(recipe, audit({0: "identical"}, files={**FILES, "config.json": "ab" * 32}))
    sign_file(path, ada)
    found = coverage(recipe, "mini", known(tmp_path, Ada=ada))
    assert ([each.parties for each in found.blocks], found.counted) == ([0, 0, 0, 0], {})
    assert [*found.stale.values()] == ["of other files than the recorded ones: 'config.json'"]


def test_a_signature_without_its_audit_is_an_error(recipe: Recipe, tmp_path: Path, refuses: Refuses) -> None:
    path = write_audit(recipe, audit({0: "identical"}))
    sign_file(path, keyed("ada", tmp_path))
    path.unlink()
    with refuses(CheckpointError, vary=r"\w{64}"):
        coverage(recipe, "mini")


def test_a_signature_that_is_a_link_is_an_error(recipe: Recipe, tmp_path: Path, refuses: Refuses) -> None:
    bundle = sign_file(write_audit(recipe, audit({0: "identical"})), keyed("ada", tmp_path))
    bundle.symlink_to(bundle.rename(tmp_path / "elsewhere.sigstore.json"))
    with refuses(CheckpointError, vary=r"\w{64}"):
        coverage(recipe, "mini")


PEM, OTHER = (
    f"-----BEGIN PUBLIC KEY-----\\nMCowBQYDK2VwAyEA{each}\\n-----END PUBLIC KEY-----"
    for each in ("VYspA93HAfzKCm0/4rYolqbzo+ZHTYjWMCW7WS6m7NE=", "Thf8njmkOHUQpOQYJjD64w0ks7KZhiILw4oXfWjiBF4=")
)


@pytest.mark.parametrize(
    "text",
    [
        "builder = 1",
        "builders = []",
        "builder = [1]",
        "[[builder]]\nname = 'Ada'",
        f"[[builder]]\nname = 'Ada'\nkey = \"{PEM}\"\nmore = ''",
        "[[builder]]\nname = 'Ada'\nkey = 'x'",
        f"[[builder]]\nname = 'Ada'\nkey = \"{PEM}\"\nuntil = '2027-12-31'",
        f"[[builder]]\nname = 'Ada'\nkey = \"{PEM}\"\nuntil = 2027-12-31T00:00:00Z",
        f"[[builder]]\nname = ' Ada'\nkey = \"{PEM}\"",
        f"[[builder]]\nname = ''\nkey = \"{PEM}\"",
        f'[[builder]]\nname = "A\\u001bda"\nkey = "{PEM}"',
        f"[[builder]]\nname = 'Ada'\nkey = \"{PEM}\"\n[[builder]]\nname = 'ADA'\nkey = \"{OTHER}\"",
        f"[[builder]]\nname = 'Ada'\nkey = \"{PEM}\"\n[[builder]]\nname = 'Bob'\nkey = \"{PEM}\"",
        "[[builder]",
        "\xff",
        f'[[builder]]\nname = "\\u0410da Lovelace"\nkey = "{PEM}"',
    ],
    ids=range(16),
)
def test_a_list_of_builders_is_strict(text: str, tmp_path: Path, refuses: Refuses) -> None:
    path = tmp_path / "builders.toml"
    path.write_bytes(text.encode("latin-1"))
    with refuses(CheckpointError):
        read_builders(path)


def test_a_list_of_builders(tmp_path: Path, refuses: Refuses) -> None:
    path = tmp_path / "builders.toml"
    with refuses(CheckpointError):
        read_builders(path)
    path.write_text("# none yet\n")
    assert read_builders(path) == {}
    path.write_text(
        f"# two\n[[builder]]\nname = 'Ada'\nkey = \"{PEM}\"\n[[builder]]\nname = 'ΑΒΓ Лаб 2'\nkey = \"{OTHER}\""
    )
    assert [each.name for each in read_builders(path).values()] == ["Ada", "ΑΒΓ Лаб 2"]
    assert all(key == each.key.id for key, each in read_builders(path).items())
    with pytest.raises(CheckpointError):
        read_builders(tmp_path)
