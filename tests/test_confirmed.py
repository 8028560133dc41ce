"""A checkpoint is confirmed by enough builders, or by whom the reader trusts, or it is not: then it fails closed."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tests.checkpoints import shard, write
from tests.conftest import Refuses, Worded
from tests.test_coverage import GPU, HARDWARE, JOURNAL, audit, copied, keyed, known
from typer.testing import CliRunner, Result

from requant.audit.audits import write_audit
from requant.audit.parties import write_rebuild
from requant.audit.retuned import Audit
from requant.audit.untuned import Deviation, Untuned
from requant.checkpoint.manifest import make_manifest
from requant.cli.options import app
from requant.digest import canonical_json, sha256, sha256_file, strict_json
from requant.errors import UsageError
from requant.evidence import private
from requant.evidence.keys import PrivateKey
from requant.evidence.outcomes import Judged
from requant.evidence.signatures import Fault, Signed, bundle_path, sign, sign_file, verify_file
from requant.evidence.statements import in_toto
from requant.evidence.summaries import SUMMARY
from requant.recipe import Recipe

TWO = {"model.safetensors": shard({"a": ("F32", [1], b"abcd")}), "config.json": b"{}"}
ALL = dict.fromkeys(range(4), "identical")
BAD = Untuned((Deviation("changed tensor", "lm_head.weight", "other bytes"),), 1)


@dataclass(frozen=True)
class Registry:
    """A folder of builds, a checkpoint that is recorded there, and Ada, Bob and Eve, of whom the list names two."""

    place: Path
    recipe: Recipe
    files: Mapping[str, str]
    ada: PrivateKey
    bob: PrivateKey
    eve: PrivateKey

    @property
    def checkpoint(self) -> Path:
        return self.place / "x"

    @property
    def manifest(self) -> Path:
        return self.recipe.beside("mini.manifest.json")

    def audited(self, judgements: Mapping[int, str], by: PrivateKey | None, **changes: Any) -> Path:
        """Submit an audit, signed or not, under a name that is nobody's."""
        auditor = by.public.id[:8] if by else "Ada"
        path = write_audit(self.recipe, self.audit(judgements, **{"auditor": auditor, **changes}))
        if by:
            sign_file(path, by)
        return path

    def audit(self, judgements: Mapping[int, str], **changes: Any) -> Audit:
        return audit(judgements, **{"files": self.files, **changes})

    def rebuilt(self, outcome: str, by: PrivateKey, **changes: Any) -> Path:
        """Submit a rebuild."""
        judged = Judged(
            verb="rebuild",
            outcome=outcome,
            files=self.files,
            against={"recipe": self.recipe.digest, "environment": JOURNAL.header.environment},
            details={"tiny": "mini", "hardware": HARDWARE},
        )
        return write_rebuild(self.recipe, sign(replace(judged, **changes).statement(), by))

    def verify(self, *words: str | Path) -> Result:
        command = ("verify", self.checkpoint, self.manifest, *words)
        return CliRunner().invoke(app, [*map(str, command)])


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    checkpoint = write(tmp_path / "x", TWO)
    (tmp_path / "builds" / "ec").mkdir(parents=True)
    recipe = copied(tmp_path / "builds" / "ec")
    manifest = make_manifest(checkpoint)
    recipe.beside("mini.manifest.json").write_bytes(manifest.to_json())
    files = {path: record.sha256 for path, record in manifest.files.items()}
    statement = recipe.beside("mini.intoto.jsonl")
    value = strict_json(statement.read_bytes())
    statement.write_bytes(in_toto(files, value["predicateType"], value["predicate"]))
    ada, bob, eve = (keyed(name, tmp_path) for name in ("ada", "bob", "eve"))
    (tmp_path / "eve.pub").write_text(eve.public.pem)
    known(tmp_path / "builds", Ada=ada, Bob=bob)
    return Registry(tmp_path, recipe, files, ada, bob, eve)


def test_two_builders_confirm_and_one_byte_undoes_it(registry: Registry, worded: Worded) -> None:
    assert registry.verify().exit_code == 0
    for by, required, status in (
        (None, 1, 3),
        (registry.ada, 1, 0),
        (registry.ada, 2, 3),
        (registry.bob, 2, 0),
        (registry.bob, 3, 3),
    ):
        if by:
            registry.audited(ALL, by)
        done = registry.verify("--require", str(required))
        assert done.exit_code == status, done.output
        worded(done.stdout, r"compared with \S+")
    (registry.checkpoint / "model.safetensors").write_bytes(TWO["model.safetensors"][:-1] + b"?")
    done = registry.verify("--require", "2")
    assert done.exit_code == 1 and "changed tensor" in done.stdout
    worded(done.stdout, r"compared with \S+")


def test_what_is_confirmed_is_the_recorded_files_and_no_others_with_the_same_tensors(registry: Registry) -> None:
    registry.audited(ALL, registry.ada)
    (registry.checkpoint / "config.json").write_bytes(b'{"architectures": []}')
    assert registry.verify("--tensors").exit_code == 0
    for words in (("--require", "1"), ("--trust", "Ada")):
        assert registry.verify("--tensors", *words).exit_code == 3
        document = json.loads(registry.verify("--tensors", *words, "--json").stdout)
        assert (document["outcome"], document["confirmed"]["holds"]) == ("equivalent", False)


def test_a_builder_confirms_what_they_reproduced_and_many_do_all_of_it_together(registry: Registry) -> None:
    registry.audited({0: "identical", 1: "identical"}, registry.ada)
    assert registry.verify("--require", "1").exit_code == 3
    registry.audited({2: "identical", 3: "identical"}, registry.bob)
    assert registry.verify("--require", "1").exit_code == 0
    assert registry.verify("--require", "2").exit_code == 3
    registry.audited({2: "identical", 3: "identical"}, registry.ada)
    registry.rebuilt("identical", registry.bob)
    assert registry.verify("--require", "2").exit_code == 0


def test_a_rebuild_to_the_same_bytes_confirms_whatever_its_journal_is(registry: Registry) -> None:
    """An edit of the worker makes another environment, and so another header: equal bits stay evidence."""
    registry.rebuilt("equivalent", registry.ada, passed=(), warned=("bytes", "journal"))
    assert registry.verify("--require", "1").exit_code == 3
    registry.rebuilt("equivalent", registry.ada, passed=("bytes",), warned=("journal",))
    assert registry.verify("--require", "1").exit_code == 0


def test_a_builder_counts_once(registry: Registry) -> None:
    registry.audited(ALL, registry.ada, auditor="Ada")
    registry.audited(ALL, registry.ada, auditor="Somebody else", hardware=GPU)
    registry.rebuilt("identical", registry.ada)
    assert registry.verify("--require", "1").exit_code == 0
    assert registry.verify("--require", "2").exit_code == 3


def test_whoever_built_it_does_not_confirm_it(registry: Registry) -> None:
    registry.audited(ALL, registry.ada)
    assert registry.verify("--require", "1").exit_code == 0
    sign_file(registry.recipe.beside("mini.intoto.jsonl"), registry.ada)
    done = registry.verify("--require", "1")
    assert done.exit_code == 3 and "Ada built it, and does not count" in done.stdout
    registry.audited(ALL, registry.bob)
    assert registry.verify("--require", "1").exit_code == 0


@pytest.mark.parametrize("what", ["block", "rest", "rebuild"])
def test_a_builder_who_found_it_different_is_a_no_whoever_agrees(what: str, registry: Registry) -> None:
    for by in (registry.ada, registry.bob):
        registry.audited(ALL, by)
    assert registry.verify("--require", "2").exit_code == 0
    if what == "rebuild":
        registry.rebuilt("different", registry.bob)
    else:
        registry.audited({0: "different" if what == "block" else "identical"}, registry.bob, untuned=BAD)
    done = registry.verify("--require", "2", "--trust", "Ada")
    assert done.exit_code == 1 and "negative results of builders: " in done.stdout


def test_who_is_not_listed_cannot_turn_it_down(registry: Registry) -> None:
    registry.audited(ALL, registry.ada)
    registry.audited({0: "different"}, registry.eve, untuned=BAD)
    registry.rebuilt("different", registry.eve)
    assert registry.verify("--require", "1").exit_code == 0


Attack = Callable[[Registry], object]


def forged(registry: Registry) -> None:
    """Eve signs, and writes that the key was Bob's."""
    path = registry.audited(ALL, None, auditor="Bob")
    value = json.loads(sign(path.read_bytes(), registry.eve))
    value["verificationMaterial"] = json.loads(sign(path.read_bytes(), registry.bob))["verificationMaterial"]
    bundle_path(path).write_bytes(canonical_json(value) + b"\n")


def replayed(registry: Registry) -> None:
    """What Bob signed is true, of another checkpoint."""
    registry.audited(ALL, registry.bob, files={**registry.files, "model.safetensors": "ab" * 32})


def replayed_beside(registry: Registry) -> None:
    """Bob's signature on an audit of another checkpoint, put beside one of this."""
    other = write_audit(registry.recipe, registry.audit(ALL, files={**registry.files, "config.json": "ab" * 32}))
    signature = sign_file(other, registry.bob)
    other.unlink()
    signature.rename(bundle_path(registry.audited(ALL, None, auditor="Bob")))


def replayed_rebuild(registry: Registry) -> None:
    registry.rebuilt("identical", registry.bob, files={**registry.files, "config.json": "ab" * 32})


def stripped(registry: Registry) -> None:
    """The signature is taken out of the bundle."""
    path = registry.audited(ALL, registry.bob, auditor="Bob")
    value = json.loads(bundle_path(path).read_bytes())
    value["dsseEnvelope"]["signatures"] = []
    bundle_path(path).write_bytes(canonical_json(value) + b"\n")


def stripped_rebuild(registry: Registry) -> None:
    path = registry.rebuilt("identical", registry.bob)
    value = json.loads(path.read_bytes())
    value["dsseEnvelope"]["signatures"] = []
    path.unlink()
    write_rebuild(registry.recipe, canonical_json(value) + b"\n")


def removed_bundle(registry: Registry) -> None:
    bundle_path(registry.audited(ALL, registry.bob, auditor="Bob")).unlink()


def forged_rebuild(registry: Registry) -> None:
    value = json.loads(registry.rebuilt("identical", registry.eve).read_bytes())
    bob = registry.rebuilt("identical", registry.bob)
    value["verificationMaterial"] = json.loads(bob.read_bytes())["verificationMaterial"]
    for path in registry.recipe.beside("rebuilds").iterdir():
        path.unlink()
    write_rebuild(registry.recipe, canonical_json(value) + b"\n")


def renamed_rebuild(registry: Registry) -> None:
    path = registry.rebuilt("identical", registry.bob)
    path.rename(path.with_name(f"{'ab' * 32}.sigstore.json"))


def no_rebuild(registry: Registry) -> None:
    """Bob signed what he verified: that says nothing of how it was made."""
    registry.rebuilt("identical", registry.bob, verb="verify")


def other_recipe(registry: Registry) -> None:
    registry.rebuilt("identical", registry.bob, against={"recipe": "ab" * 32})


def expired(registry: Registry) -> None:
    """Bob's key was good until yesterday, or long ago: nobody can tell when he signed."""
    registry.audited(ALL, registry.bob)
    path = registry.place / "builds" / "builders.toml"
    path.write_text(path.read_text().replace('"Bob"\n', '"Bob"\nuntil = 2020-12-31\n'))


def expired_rebuild(registry: Registry) -> None:
    registry.rebuilt("identical", registry.bob)
    path = registry.place / "builds" / "builders.toml"
    path.write_text(path.read_text().replace('"Bob"\n', '"Bob"\nuntil = 2020-12-31\n'))


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        (forged, Fault.FORGED),
        (forged_rebuild, Fault.FORGED),
        (replayed, "another checkpoint than the recorded one"),
        (replayed_beside, Fault.OTHER_STATEMENT),
        (replayed_rebuild, Fault.OTHER_SUBJECTS),
        (lambda registry: registry.audited(ALL, registry.eve, auditor="Bob"), Fault.UNKNOWN_KEY),
        (lambda registry: registry.rebuilt("identical", registry.eve), Fault.UNKNOWN_KEY),
        (expired, "the key of Bob expired on 2020-12-31"),
        (expired_rebuild, "the key of Bob expired on 2020-12-31"),
        (stripped, Fault.UNSIGNED),
        (stripped_rebuild, Fault.UNSIGNED),
        (removed_bundle, "not signed"),
        (renamed_rebuild, "its name is not the SHA-256 of its bytes"),
        (no_rebuild, "not the outcome of a rebuild"),
        (other_recipe, "another recipe than the recorded one"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_each_attack_is_named_and_refused(attack: Attack, said: str, registry: Registry) -> None:
    """Ada has confirmed it; whoever wants a second confirmation does not get one."""
    registry.audited(ALL, registry.ada)
    assert registry.verify("--require", "1").exit_code == 0
    attack(registry)
    done = registry.verify("--require", "2")
    assert done.exit_code == 3, done.output
    assert any(line.startswith("refused: ") and said in line for line in done.stdout.splitlines()), done.stdout
    assert "confirmed by 1 of 2, parts of it by Ada" in done.stdout
    document = json.loads(registry.verify("--require", "2", "--json").stdout)["confirmed"]
    assert (document["holds"], len(document["refused"])) == (False, 1)
    assert registry.verify("--trust", "Bob").exit_code == 3
    known(registry.place / "builds", until="9999-12-31", Ada=registry.ada, Bob=registry.bob)
    registry.rebuilt("identical", registry.bob)
    assert registry.verify("--require", "2").exit_code == 0


def test_a_signed_record_of_another_checkpoint_names_no_maker(registry: Registry) -> None:
    statement = registry.recipe.beside("mini.intoto.jsonl")
    value = strict_json(statement.read_bytes())
    statement.write_bytes(in_toto({"model.safetensors": "ab" * 32}, value["predicateType"], value["predicate"]))
    sign_file(statement, registry.ada)
    done = registry.verify("--trust", "Ada")
    assert done.exit_code == 3 and f"refused: mini.sigstore.json: {Fault.OTHER_SUBJECTS}" in done.stdout


def test_whom_a_reader_trusts_is_enough(registry: Registry, worded: Worded) -> None:
    eve = ("--trust", registry.place / "eve.pub")
    wanted: tuple[tuple[str | Path, ...], ...] = (
        ("--trust", "Ada"),
        ("--trust", "ADA", *eve),
        (*eve, "--require", "1"),
    )
    for words in wanted:
        assert registry.verify(*words).exit_code == 3
    registry.audited({0: "identical"}, registry.ada)
    for word, status in (("--trust=ada", 0), ("--trust=Bob", 3), (f"--trust={eve[1]}", 3), ("--require=1", 3)):
        assert registry.verify(word).exit_code == status
    registry.rebuilt("inconclusive", registry.bob)
    assert registry.verify("--trust", "Bob").exit_code == 3
    sign_file(registry.recipe.beside("mini.intoto.jsonl"), registry.eve)
    done = registry.verify(*eve)
    assert done.exit_code == 0
    worded(done.stdout, r"compared with \S+|audits/\w+|\w{64}")
    assert registry.verify("--require", "1").exit_code == 3


def test_with_no_list_nobody_confirms(registry: Registry) -> None:
    registry.audited(ALL, registry.ada)
    (registry.place / "builds" / "builders.toml").unlink()
    assert registry.verify("--require", "1").exit_code == 3
    listed = known(registry.place, Ada=registry.ada)
    assert registry.verify("--require", "1", "--builders", listed).exit_code == 0


def test_where_nothing_is_recorded_nothing_is_confirmed(registry: Registry) -> None:
    registry.rebuilt("identical", registry.ada)
    registry.recipe.beside("mini.journal.jsonl").unlink()
    for words in (("--require", "1"), ("--trust", "Ada")):
        assert registry.verify(*words).exit_code == 3


def test_what_cannot_be_asked(registry: Registry, refuses: Refuses) -> None:
    elsewhere = registry.place / "mine.manifest.json"
    elsewhere.write_bytes(registry.manifest.read_bytes())
    runner = CliRunner()
    for words in (
        ("verify", registry.checkpoint, elsewhere, "--require", "1"),
        ("verify", registry.checkpoint, registry.manifest, "--trust", "Mallory"),
    ):
        with refuses(UsageError):
            raise runner.invoke(app, [*map(str, words)]).exception or AssertionError
    assert registry.verify("--require", "0").exit_code == 2
    assert "--builders needs" in registry.verify("--builders", "x").stderr
    assert registry.verify("--require", "1", "--builders", "none.toml").exit_code != 0


def test_coverage_requires_as_well_and_shows_rebuilds(registry: Registry, worded: Worded) -> None:
    command = ["coverage", str(registry.recipe.path.parent), "--tiny", "--size", "mini"]
    registry.audited({0: "identical"}, registry.ada)
    registry.rebuilt("identical", registry.bob)
    registry.rebuilt("different", registry.ada, details={"tiny": "mini", "hardware": GPU})
    registry.rebuilt("identical", registry.ada, details={"tiny": "demo", "hardware": HARDWARE})
    sign_file(registry.recipe.beside("mini.intoto.jsonl"), registry.ada)
    for required, status in ((1, 0), (2, 3)):
        done = CliRunner().invoke(app, [*command, "--require", str(required)])
        assert done.exit_code == status
        worded(done.stdout, rf"\b[0-9a-f]{{8,}}\b|{re.escape(HARDWARE['model'])}")
    document = json.loads(CliRunner().invoke(app, [*command, "--trust", "Bob", "--json"]).stdout)
    assert (document["confirmed"]["holds"], document["confirmed"]["trusted"]) == (True, ["Bob"])
    assert (document["rebuilt"]["parties"], document["maker"]["name"]) == (1, "Ada")


def test_what_was_decided_is_signed_as_a_summary(registry: Registry) -> None:
    """Whoever trusts the verifier need not look at audits and rebuilds; a no is signed like a yes."""
    audit_path = registry.audited(ALL, registry.ada)
    rebuild = registry.rebuilt("identical", registry.bob)
    registry.audited(ALL, registry.eve)
    key = registry.place / "eve.key"

    def decided(name: str, *words: str) -> Signed:
        path = registry.place / f"{name}.sigstore.json"
        done = registry.verify(*words, "--sign", key, "--bundle", path)
        found = verify_file(path, [registry.eve.public])
        assert private.in_record(found.statement) == [] and found.predicate_type == SUMMARY
        assert found.predicate["verificationResult"] == ("FAILED" if done.exit_code else "PASSED")
        shown = CliRunner().invoke(app, ["show", "bundle", str(path), "--key", str(key)])
        assert found.predicate["verificationResult"] in shown.stdout
        return found

    yes = decided("yes", "--require", "2")
    assert (yes.subjects, yes.predicate["verifiedLevels"]) == (registry.files, ["REQUANT_CONFIRMED_BY_2"])
    assert {each["digest"]["sha256"] for each in yes.predicate["inputAttestations"]} == {
        sha256_file(audit_path),
        sha256_file(rebuild),
    }
    policy = yes.predicate["policy"]
    assert policy["annotations"] == {
        "require": 2,
        "trusted": [],
        "builders": sorted([registry.ada.public.id, registry.bob.public.id]),
    }
    assert policy["digest"] == {"sha256": sha256(canonical_json(policy["annotations"]))}
    assert yes.predicate["verifier"] == {"id": f"urn:requant:verifier:{registry.eve.public.id}"}
    assert decided("no", "--require", "3").predicate["verifiedLevels"] == ["FAILED"]
    sign_file(registry.recipe.beside("mini.intoto.jsonl"), registry.ada)
    trusted = decided("trusted", "--trust", "Ada")
    assert trusted.predicate["verifiedLevels"] == ["REQUANT_CONFIRMED_BY_TRUSTED"]
    build = {"name": "build", "digest": {"sha256": sha256_file(registry.recipe.beside("mini.intoto.jsonl"))}}
    assert build in trusted.predicate["inputAttestations"]
    (registry.checkpoint / "config.json").write_bytes(b"[]")
    changed = decided("changed", "--trust", "Ada", "--tensors")
    assert changed.subjects["config.json"] == sha256(b"[]") and changed.predicate["verifiedLevels"] == ["FAILED"]
