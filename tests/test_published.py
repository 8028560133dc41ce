"""A build is published, found by name, judged and fetched, by a real server that speaks the Hub's protocol."""

import base64
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from huggingface_hub import constants, snapshot_download
from tests import shell, sigstores
from tests.cases.published import Project, project
from tests.conftest import ROOT, Refuses, Worded
from tests.hub import Hub, only_loopback, running
from tests.processes import LIMIT, started
from tests.test_coverage import audit, keyed, known
from tests.test_schemas import held
from tests.verifiers import cosign
from typer.testing import CliRunner, Result

from requant.audit.audits import read_audits, submit, write_audit
from requant.audit.builders import read_builders
from requant.audit.coverage import coverage
from requant.audit.untuned import Untuned
from requant.build import RECORDED, beside
from requant.check.reader import open_reader
from requant.checkpoint.checkpoint import write_checkpoint
from requant.checkpoint.manifest import FileRecord, make_manifest, read_manifest
from requant.cli.options import app
from requant.digest import canonical_json, sha256_file
from requant.errors import CheckpointError, NotAvailableError, RecipeError, UsageError
from requant.evidence.keys import PrivateKey, read_private
from requant.evidence.outcomes import Judged, identity
from requant.evidence.signatures import SUFFIX as BUNDLE
from requant.evidence.signatures import Fault, sign, sign_file
from requant.evidence.statements import in_toto
from requant.hub.pinned import read_pins
from requant.hub.repository import Listing
from requant.hub.snapshots import folder_of, snapshot
from requant.hub.web import Patience
from requant.inspect.remote import open_headers
from requant.model.target import tiny_model
from requant.published.counted import doubts
from requant.published.download import download as downloaded
from requant.published.examined import examine
from requant.published.found import Found, find
from requant.published.proofs import OUTCOMES, PAGE, Proofs, base_files, proofs_of
from requant.published.publication import Publication, prepare, push
from requant.published.sealed import PUBLISHED, SEAL, edited, sealed
from requant.published.standing import _weights
from requant.recipe import read_recipe

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # how the library uploads

NAME = "ada/ec"
SHARD, EXTRAS = "model-00001-of-00003.safetensors", "model_extra_tensors.safetensors"
ALL = dict.fromkeys(range(4), "identical")
CACHE = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
CARD = "---\nlicense: apache-2.0\n---\n\n# A card\n"


@pytest.fixture(autouse=True)
def _only_loopback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No test asks for an address elsewhere, sends a developer's token, waits before it tries again, or uses Xet."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    waiting = SimpleNamespace(**{**vars(time), "sleep": lambda _: None})
    monkeypatch.setattr("huggingface_hub.utils._http.time", waiting)
    monkeypatch.chdir(tmp_path)
    with only_loopback(monkeypatch, tmp_path):
        monkeypatch.setenv("HF_TOKEN", "hf_write")
        yield


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def ours(tmp_path: Path, shared: Path) -> Project:
    return project(tmp_path / "project", shared)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with running() as served:
        served.store = tmp_path / "store"
        yield served


def ran(hub: Hub, *words: object) -> Result:
    return CliRunner().invoke(app, [*map(str, words), "--endpoint", hub.url], catch_exceptions=False)


def published(hub: Hub, ours: Project, *words: object) -> Result:
    command = ("publish", ours.checkpoint, NAME, "--recipe", ours.recipe.path.parent, "--tiny", "--size", "mini")
    return ran(hub, *command, *words)


def prepared(hub: Hub, ours: Project, **options: Any) -> Publication:
    return prepare(NAME, ours.checkpoint, ours.recipe, "mini", CARD, endpoint=hub.url, **options)


def sent(hub: Hub, ours: Project, **options: Any) -> str:
    """Publish without asking anything of the checkpoint first."""
    return push(prepared(hub, ours, **options), message="a test", endpoint=hub.url)


def files(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in folder.rglob("*") if path.is_file()}


def audited(ours: Project, by: PrivateKey | None, judgements: dict[int, str] = ALL, **changes: Any) -> None:
    path = write_audit(ours.recipe, audit(judgements, files=ours.files, **changes))
    if by:
        sign_file(path, by)


def instead(words: list[str], ours: Project) -> None:
    """Leave what a command would that starts the worker; its options are read as it reads them."""
    with typer.main.get_group(app).commands[words[0]].make_context(words[0], words[1:]) as context:
        asked = context.params
    if words[0] == "audit":
        made = audit(ALL, files=ours.files, auditor=asked["auditor"])
        sign_file(write_audit(read_recipe(asked["recipe"]), made), read_private(Path(asked["sign"])))
        return
    out = asked["out_folder"]
    shutil.copytree(ours.checkpoint, out)
    for name in RECORDED:
        shutil.copyfile(beside(ours.checkpoint, name), beside(out, name))


def test_the_script_of_the_docs_with_nothing_tuned(
    hub: Hub, ours: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that it says is done but `build`, `audit` and `rebuild`: from a build to a threshold of two, and its end."""
    done: list[tuple[list[str], int, str, int, int]] = []

    def answer(words: list[str]) -> tuple[int, str]:
        before = len(hub.uploads()), sum(each.sent for each in hub.downloads())
        if words[0] in ("build", "audit", "rebuild"):
            instead(words, ours)
            status, said = 0, ""
        else:
            pushed = words[0] == "publish" and "--push" in words
            there = ("--endpoint", hub.url) if words[0] in ("publish", "verify", "fetch") else ()
            result = CliRunner().invoke(app, [*words, *there, *(["--json"] if pushed else [])], catch_exceptions=False)
            status, said = result.exit_code, result.stdout
            assert pushed or words[0] != "publish" or not hub.repositories  # a dry run
        after = len(hub.uploads()), sum(each.sent for each in hub.downloads())
        done.append((words, status, said, after[0] - before[0], after[1] - before[1]))
        return status, said

    script = ("bash", ROOT / "examples" / "publish_and_verify.sh", ours.place, NAME, "ec")
    (tmp_path / "here").mkdir()
    programs = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment = {**os.environ, **hub.environment, **programs}
    assert shell.run(script, answer, tmp_path / "bin", environment, monkeypatch, tmp_path / "here") == 0
    first, second = (json.loads(said) for words, _, said, _, _ in done if words[-1] == "--push")
    for document in (first, second):
        held("requant.publish/1", document)
        assert not document["refusals"] and document["commit"]
    again = next(sent for words, _, _, sent, _ in done[::-1] if words[-1] == "--push")
    assert again == 6  # two audits and their signatures, a page, the seal of it all, and no weight
    demanded = [(status, said) for words, status, said, _, _ in done if "--require" in words and words[0] != "fetch"]
    assert "all of it is confirmed by at least 2: bob, carol" in demanded[0][1]
    assert [status for status, _ in demanded] == [0, 3, 1, 1] and f"changed file: {SHARD}" in demanded[3][1]
    screen = " ".join(demanded[3][1].split())
    assert "fails: bytes " in screen and "blocks open of the recorded files: 4 of 4 tuned again" in screen
    assert sum(got for words, _, _, _, got in done[-4:-2]) < 1_000_000  # no weight comes where something fails
    listed = ("--builders", known(tmp_path, Ada=read_private(tmp_path / "here/ada/ada.key")))
    stands = ran(hub, "verify", f"{NAME}@{second['commit']}", *listed)
    assert stands.exit_code == 0 and "checked against the base by Ada (clean)" in stands.stdout


@pytest.mark.full
def test_published_without_a_key(hub: Hub, ours: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the workflow in examples/github does: a dry run that signs, and then it is sent."""
    with sigstores.running() as sigstore:
        sigstores.as_a_job(sigstore, monkeypatch)
        trust = tmp_path / "sigstore.json"
        trust.write_text(json.dumps(sigstore.trust_config()))
        keyless = ("--sign", f"keyless:{trust}")
        assert published(hub, ours, *keyless).exit_code == 0
        sigstore.asked.clear()
        done = published(hub, ours, *keyless, "--push")
        assert done.exit_code == 0 and not [path for path in sigstore.asked if "log" in path]  # signed once
    table = f'[[builder]]\nname = "Ada"\nidentity = "{sigstores.WORKFLOW}"\nissuer = "{sigstores.GITHUB}"\n'
    listed = tmp_path / "builders.toml"
    listed.write_text(f'trust_config = "sigstore.json"\n{table}')
    done = ran(hub, "verify", NAME, "--builders", listed)
    assert (
        done.exit_code == 0 and "by Ada [" in done.stdout and "checked against the base by Ada (clean)" in done.stdout
    )
    listed.write_text(f'trust_config = "sigstore.json"\n{table}'.replace(sigstores.GITHUB, "https://example.com"))
    assert ran(hub, "verify", NAME, "--builders", listed).exit_code == 3


@pytest.mark.full
@pytest.mark.worker
def test_the_script_of_the_docs(worker: Path, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    with running() as hub:
        hub.store = tmp_path / "store"
        programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, **hub.environment, "PATH": programs, "HF_HOME": str(tmp_path / "hf")}
        environment["XDG_CACHE_HOME"] = CACHE
        script = ("bash", ROOT / "examples" / "publish_and_verify.sh", ROOT, NAME)
        with started(script, cwd=tmp_path / "here", env=environment) as process:
            assert process.wait(3 * LIMIT) == 0  # two builds and two audits


def test_what_does_not_hold_is_not_published(hub: Hub, ours: Project) -> None:
    shard = bytearray((ours.checkpoint / SHARD).read_bytes())
    shard[-1] ^= 0x40
    (ours.checkpoint / SHARD).write_bytes(shard)
    beside(ours.checkpoint, "manifest.json").write_bytes(make_manifest(ours.checkpoint).to_json())
    done = published(hub, ours, "--push")
    assert done.exit_code == 1 and "not published" in done.stdout and not hub.requests


def test_a_build_is_held_against_the_base_of_which_it_was_made(ours: Project, tmp_path: Path) -> None:
    write_checkpoint(tiny_model(ours.recipe, "mini"), tmp_path / "base")
    (tmp_path / "base" / "notes.txt").write_text("mine")
    refusals = examine(ours.checkpoint, ours.recipe, "mini", str(tmp_path / "base"), sample=0.01).refusals
    assert refusals == ("check: notes.txt: not the base of which this was built",)


SECRET = "hf_" + "aB3" * 12


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("README.md", f"token {SECRET}"),
        ("README.md", "built in /home/ada/models"),
        ("tokenizer_config.json", '{"name_or_path": "/home/ada/models/base"}'),
        ("../ec.intoto.jsonl", None),
        ("../../builds/ec/plan.json", f'{{"a": "{SECRET}"}}'),
    ],
)
def test_secrets_and_paths_stay_here(hub: Hub, ours: Project, name: str, text: str | None, refuses: Refuses) -> None:
    path = ours.checkpoint / name
    path.write_text(path.read_text().replace('"taints":[', '"taints":["/home/ada/x",') if text is None else text)
    if name == "tokenizer_config.json":
        beside(ours.checkpoint, "manifest.json").write_bytes(make_manifest(ours.checkpoint).to_json())
    publication = prepared(hub, ours)
    assert publication.refusals and SECRET not in str(publication.refusals)
    with refuses(UsageError):
        push(publication, message="no", endpoint=hub.url)
    assert {each.method for each in hub.requests} == {"GET"}


@pytest.mark.full
def test_what_is_to_be_private_goes_to_no_public_repository(hub: Hub, ours: Project, refuses: Refuses) -> None:
    hub.commit(NAME, {"figure.png": b"y"})
    with refuses(UsageError):
        push(prepared(hub, ours), message="no", private_one=True, endpoint=hub.url)
    assert not hub.uploads()


def test_another_card_and_other_files_are_replaced_on_demand_only(hub: Hub, ours: Project) -> None:
    stale = "requant/builds/ec/demo.manifest.json"
    hub.commit(NAME, {"README.md": b"# Mine\n", "old.safetensors": b"x", "figure.png": b"y", stale: b"{}"})
    publication = prepared(hub, ours)
    assert publication.removed == ("old.safetensors", stale)
    assert "-# Mine" in publication.card_diff and "+# A card" in publication.card_diff
    assert len(publication.refusals) == 2
    sent(hub, ours, replace=True)
    there = files(hub.head(NAME)[1])
    assert "figure.png" in there and not {"old.safetensors", stale} & there.keys()
    assert not prepared(hub, ours).refusals


def test_what_the_publisher_wrote_is_the_card(hub: Hub, ours: Project) -> None:
    (ours.checkpoint / "README.md").write_text(f"{CARD}By hand.\n")
    sent(hub, ours)
    assert (hub.head(NAME)[1] / "README.md").read_text().endswith("By hand.\n")


def test_the_page_beside_it_is_one_that_anybody_can_make_again(hub: Hub, ours: Project, tmp_path: Path) -> None:
    audited(ours, keyed("bob", tmp_path), auditor="Bob")
    hub.commit(NAME, {PAGE: b"an old page"})
    sent(hub, ours)
    there = hub.head(NAME)[1]
    text = (there / PAGE).read_text()
    command = ("report", str(there / "requant/builds/ec"), "--tiny", "--size", "mini", "--out", "again.html")
    assert CliRunner().invoke(app, command).exit_code == 0 and Path("again.html").read_text() == text
    assert "Bob (unverified)" in text and str(tmp_path) not in text
    hub.requests.clear()
    find(NAME, "main", None, tmp_path / "work", endpoint=hub.url)
    assert not [each for each in hub.requests if each.path.endswith(PAGE)]  # whoever asks by name has no need of it


def test_a_bundle_of_no_statement_stays_here(hub: Hub, ours: Project, tmp_path: Path) -> None:
    """Somebody's signature, of what nobody looked at before: the statement beside it is as it should be."""
    audited(ours, keyed("bob", tmp_path), auditor="Bob")
    (bundle,) = ours.recipe.beside("audits").glob(f"*{BUNDLE}")
    value = json.loads(bundle.read_bytes())
    value["dsseEnvelope"]["payload"] = base64.b64encode(b"[" * 100_000 + b"]" * 100_000).decode()
    bundle.write_bytes(canonical_json(value) + b"\n")
    (refusal,) = prepared(hub, ours).refusals
    assert refusal.endswith(f"{bundle.name}: not a statement: nested too deeply")


def test_records_that_contradict_each_other_stay_here(hub: Hub, ours: Project) -> None:
    journal = beside(ours.checkpoint, "journal.jsonl")
    journal.write_bytes((ROOT / "builds" / "ec" / "demo.journal.jsonl").read_bytes())
    lock = ours.recipe.lockfiles / "cpu.txt"
    lock.write_bytes(lock.read_bytes() + b"# \n")
    publication = prepared(hub, ours)
    assert "mini.journal.jsonl: is of another recipe" in publication.refusals[0] and PAGE not in publication.files
    assert publication.refusals[1].startswith("lockfiles/cpu.txt: not the lock")


def test_what_came_whole_is_not_sent_again(hub: Hub, ours: Project, refuses: Refuses) -> None:
    hub.troubles = {"/lfs/": [429, 503], "/commit/": [503]}  # of which the library tries the first again
    with refuses(NotAvailableError):
        sent(hub, ours)
    uploads = hub.uploads()
    assert len(uploads) == len({*uploads}) > 10 and not files(hub.head(NAME)[1])
    sent(hub, ours)
    assert hub.uploads() == uploads
    commits = [each for each in hub.requests if "/commit/" in each.path]
    sent(hub, ours)  # and nothing is committed where nothing is new
    assert [each for each in hub.requests if "/commit/" in each.path] == commits


@pytest.mark.parametrize("cuts", [2, pytest.param(None, marks=pytest.mark.full)])
def test_a_cut_upload_goes_on_with_what_is_missing(hub: Hub, ours: Project, cuts: int | None) -> None:
    hub.cut_at, hub.cuts = 100_000, cuts
    if cuts is None:
        with pytest.raises(NotAvailableError, match=NAME):
            sent(hub, ours)
        hub.cut_at = None
    sent(hub, ours)
    assert len(hub.uploads()) == len({*hub.uploads()})
    assert ours.files.items() <= files(hub.head(NAME)[1]).items()


def test_who_changed_it_meanwhile_is_not_overwritten(hub: Hub, ours: Project, refuses: Refuses) -> None:
    sent(hub, ours)
    audited(ours, None, auditor="Bob")
    publication = prepared(hub, ours)
    commit = hub.commit(NAME, {"figure.png": b"z"})
    with refuses(NotAvailableError):
        push(publication, message="late", endpoint=hub.url)
    assert hub.head(NAME)[0] == commit


def test_a_file_that_changes_after_it_was_verified_is_not_committed(hub: Hub, ours: Project, refuses: Refuses) -> None:
    publication = prepared(hub, ours)
    shard = bytearray((ours.checkpoint / SHARD).read_bytes())
    shard[-1] ^= 1
    (ours.checkpoint / SHARD).write_bytes(shard)
    with refuses(CheckpointError):
        push(publication, message="no", endpoint=hub.url)
    assert not files(hub.head(NAME)[1])


def test_a_hub_that_keeps_other_bytes_is_found_out(hub: Hub, ours: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.commit
    monkeypatch.setattr(hub, "commit", lambda name, files, gone=(): commit(name, {**files, SHARD: b"other"}, gone))
    with pytest.raises(CheckpointError, match="Hub states"):
        sent(hub, ours)


PUSHING = """
import sys
from pathlib import Path
from requant.published.publication import prepare, push
from requant.recipe import read_recipe
prepared = prepare("ada/ec", Path(sys.argv[1]), read_recipe(Path(sys.argv[2])), "mini", "# A card\\n")
print(push(prepared, message="a test"))
"""


@pytest.mark.full
def test_killed_at_any_moment_it_goes_on(hub: Hub, ours: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {**os.environ, **hub.environment}
    command = (sys.executable, "-c", PUSHING, ours.checkpoint, ours.recipe.path.parent)
    for number in (1, 4, 12):  # of uploads that came whole by then
        with started(command, env=environment) as process:
            while len(hub.uploads()) < number and process.poll() is None:
                time.sleep(0.001)
            os.kill(process.pid, signal.SIGKILL)
    with started(command, env=environment) as process:
        assert process.wait(LIMIT) == 0
    assert ours.files.items() <= files(hub.head(NAME)[1]).items()
    assert len(hub.uploads()) == len({*hub.uploads()})


def test_a_download_goes_on_and_every_byte_is_held_against_the_manifest(
    hub: Hub, ours: Project, refuses: Refuses
) -> None:
    sent(hub, ours)
    there = files(hub.head(NAME)[1])
    hub.content[EXTRAS] = (ours.checkpoint / EXTRAS).read_bytes()[:-1] + b"?"
    with refuses(CheckpointError):
        ran(hub, "fetch", NAME, "--out", "got")
    hub.content.clear()
    hub.requests.clear()
    hub.drop_at, hub.drops = 500_000, 2
    hub.troubles = {EXTRAS: [429, 503], "recipe.toml": [503]}
    assert ran(hub, "fetch", NAME, "--out", "got").exit_code == 0
    assert files(Path("got")) == there
    whole = [each for each in hub.downloads() if each.path.endswith(EXTRAS) and "range" not in each.headers]
    assert len(whole) == 1 and whole[0].sent == 500_000
    got = len(hub.downloads())
    document = json.loads(ran(hub, "fetch", NAME, "--out", "got", "--json").stdout)
    held("requant.fetch/1", document)
    assert document["fetched"]["downloaded"] == []
    assert not [each for each in hub.downloads()[got:] if each.path.endswith(SHARD) and "range" not in each.headers]


@pytest.mark.parametrize(
    "path", ["requant/builds/builders.toml", "requant/builds/Builders.TOML", ".git/config", "a/.git"]
)
def test_nothing_that_speaks_for_its_reader_is_a_file_of_a_checkpoint(
    path: str, ours: Project, tmp_path: Path, refuses: Refuses
) -> None:
    manifest = read_manifest(beside(ours.checkpoint, "manifest.json"))
    lies = replace(manifest, files={**manifest.files, path: FileRecord(1, "0a" * 32)})
    nowhere = Listing("http://localhost:1", NAME, "0a" * 20, (), 0)
    with refuses(CheckpointError):
        downloaded(
            Found(nowhere, Proofs(ours.recipe, "mini", lies), None, (), {}, {}, Patience()),
            tmp_path / "got",
            endpoint=nowhere.endpoint,
        )


@pytest.mark.full
def test_what_a_folder_has_already_is_no_part_of_what_is_fetched(hub: Hub, ours: Project, refuses: Refuses) -> None:
    sent(hub, ours)
    hub.commit(NAME, {".git/config": b"[core]", "requant/builds/Builders.toml": b""})  # which no git would take
    assert ran(hub, "fetch", NAME, "--out", "got").exit_code == 0
    assert not Path("got/.git").exists() and not Path("got/requant/builds/Builders.toml").exists()
    Path("got/more.safetensors").write_bytes(b"x")
    with refuses(UsageError, vary="[0-9a-f]{40}"):
        ran(hub, "fetch", NAME, "--out", "got")


@pytest.mark.full
def test_a_commit_stays_that_commit(hub: Hub, ours: Project, tmp_path: Path) -> None:
    first = sent(hub, ours)
    found = find(NAME, "main", None, tmp_path / "work", endpoint=hub.url)
    hub.commit(NAME, {SHARD: b"another"})
    downloaded(found, tmp_path / "got", endpoint=hub.url)
    assert found.listing.commit == first and ours.files.items() <= files(tmp_path / "got").items()


Edit = Callable[[Hub, Project], object]


def replayed(hub: Hub, ours: Project) -> None:
    """Proofs of another checkpoint, true ones."""
    hub.commit(NAME, {SHARD: b"other"})


def pickled(hub: Hub, ours: Project) -> None:
    hub.commit(NAME, {"requant/pytorch_model.bin": b"other"})


def missing(hub: Hub, ours: Project) -> None:
    hub.commit(NAME, {}, ["tokenizer.json"])


def rewritten(hub: Hub, ours: Project) -> None:
    hub.commit(NAME, {"config.json": (ours.checkpoint / "config.json").read_bytes() + b"\n"})


@pytest.mark.parametrize(
    "edit", [replayed, *(pytest.param(each, marks=pytest.mark.full) for each in (pickled, missing, rewritten))]
)
def test_other_files_than_the_recorded_ones_fail(hub: Hub, ours: Project, edit: Edit) -> None:
    sent(hub, ours)
    edit(hub, ours)
    done = ran(hub, "verify", NAME, "--json")
    held("requant.standing/1", json.loads(done.stdout))
    rungs = {each["name"]: each["word"] for each in json.loads(done.stdout)["rungs"]}
    assert done.exit_code == 1 and rungs["bytes"] == "fails"


def test_nobody_is_known_by_what_a_repository_says(hub: Hub, ours: Project, tmp_path: Path) -> None:
    eve = keyed("eve", tmp_path)
    audited(ours, eve, auditor="Eve")
    sent(hub, ours)
    hub.commit(NAME, {"requant/builds/builders.toml": known(tmp_path, Eve=eve).read_bytes()})
    assert ran(hub, "verify", NAME, "--require", 1).exit_code == 3
    assert ran(hub, "fetch", NAME, "--out", "got").exit_code == 0
    assert not Path("got/requant/builds/builders.toml").exists()
    known(Path("got/requant/builds"), Eve=eve)  # as any other download would leave it
    assert CliRunner().invoke(app, ["verify", "got", "--require", "1"]).exit_code == 3
    listed = ("--builders", known(tmp_path, Eve=eve))
    assert ran(hub, "verify", NAME, "--require", 1, *listed).exit_code == 0


def test_what_a_registry_records_decides(hub: Hub, ours: Project, tmp_path: Path) -> None:
    sent(hub, ours)
    ours.record()
    bob = keyed("bob", tmp_path)
    audited(ours, bob, auditor="Bob")
    known(ours.registry, Bob=bob)
    done = ran(hub, "verify", NAME, "--registry", ours.registry, "--require", 1)
    assert done.exit_code == 0 and "all of it is confirmed by at least 1: Bob" in done.stdout
    hub.commit(NAME, {}, [path for path in files(hub.head(NAME)[1]) if path.startswith("requant/")])
    assert ran(hub, "verify", NAME, "--registry", ours.registry).exit_code == 0
    negative = audit({0: "different"}, files=ours.files, auditor="Bob")
    sign_file(write_audit(ours.recipe, negative), bob)
    assert ran(hub, "verify", NAME, "--registry", ours.registry).exit_code == 1


def test_a_check_of_another_base_says_nothing_of_this_one(ours: Project, tmp_path: Path) -> None:
    ours.record()
    bob, folder = keyed("bob", tmp_path), ours.recipe.beside(OUTCOMES)
    proofs = Proofs(ours.recipe, "mini", read_manifest(beside(ours.checkpoint, "manifest.json")))
    base = base_files(ours.recipe, "mini", ours.recipe.beside("mini.intoto.jsonl"))

    def said(outcome: str, **changes: str) -> tuple[str, list[str]]:
        against = {"base": identity({**base, **changes}), "recipe": ours.recipe.digest}
        judged = Judged("check", outcome, ours.files, against, details={"tiny": True, "read": 1, "total": 1})
        path = submit(folder, sign(judged.statement(), bob), BUNDLE)
        rung, refused = _weights(proofs, read_builders(known(tmp_path, Bob=bob)))
        path.unlink()
        return rung.word, [*refused.values()]

    assert (said("clean"), said("violations")) == (("holds", []), ("fails", []))
    for path in ("config.json", "another.safetensors"):
        for outcome in ("clean", "violations"):
            assert said(outcome, **{path: "0a" * 32}) == ("open", ["held against other files than those of the base"])
    pinned = read_pins(ours.recipe.beside(ours.recipe.base.files)).files
    weighed = {path for path in pinned if path.endswith(".safetensors")}
    of_the_base = base_files(ours.recipe, None, tmp_path / "no statement is asked")
    assert weighed < {*of_the_base} < {*pinned} and "README.md" not in of_the_base
    statement = ours.recipe.beside("mini.intoto.jsonl")
    statement.write_bytes(statement.read_bytes().replace(b'"base/', b'"other/'))
    assert said("clean") == ("open", ["nothing records which files the base has"])


def test_who_signs_a_check_of_another_base_is_told_before(ours: Project, tmp_path: Path, worded: Worded) -> None:
    """And is told nothing where it is the base, or where nobody has recorded which it is."""
    keyed("ada", tmp_path)
    base, fetched, recipe = Path("base"), Path("fetched"), ours.recipe
    write_checkpoint(tiny_model(recipe, "mini"), base)
    shutil.copytree(ours.checkpoint, fetched)
    files = base_files(recipe, "mini", beside(ours.checkpoint, RECORDED[2]))
    others = {**files, "config.json": "0a" * 32, "notes.txt": "0b" * 32}
    told = partial(doubts, recipe=recipe, tiny=True, registry=None)
    assert told(ours.checkpoint, files) == told(fetched, others) == told(fetched, others, recipe=None) == []
    for path, place in proofs_of(recipe, "mini", ours.checkpoint).items():
        (fetched / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(place, fetched / path)
    assert told(fetched, files) == told(fetched.absolute(), files) == []
    said = [*told(fetched, others), *told(fetched, files, recipe=None), *told(fetched, files, tiny=False)]
    ours.record()
    said += told(fetched, others, recipe=None, registry=ours.registry) + told(ours.checkpoint, others)
    (fetched / "requant/builds/ec/recipe.toml").write_bytes(b"x")
    assert told(fetched, files, recipe=None) == told(fetched, files) == []
    pinned = base_files(recipe, None, recipe.path)
    assert told(fetched, pinned, tiny=False) != told(Path("no folder"), pinned, tiny=False) == []
    worded("\n".join([*said, *told(Path("no folder"), others, tiny=False)]).replace(f"{tmp_path}/", ""))
    command = ("check", ours.checkpoint, "--base", base, "--recipe", recipe.path.parent, "--tiny", "--sample", 0.01)
    for changed in (False, True):
        signing = ("--sign", tmp_path / "ada.key", "--bundle", tmp_path / f"{changed}{BUNDLE}")
        done = CliRunner().invoke(app, [*map(str, command + signing)], catch_exceptions=False)
        before, signed, _ = done.stderr.partition("signed with")
        assert signed and ("will pass over what you sign" in before) == ("config.json is another" in before) == changed
        (base / "config.json").write_bytes((base / "config.json").read_bytes() + b"\n")


def test_whatever_is_edited_after_it_was_published_is_named(hub: Hub, ours: Project, tmp_path: Path) -> None:
    """By `verify`, and by cosign, which knows nothing of requant."""
    ada, eve = keyed("ada", tmp_path), keyed("eve", tmp_path)
    audited(ours, eve, auditor="Eve")
    listed = read_builders(known(tmp_path, Ada=ada))

    def asked(registry: Path | None = None) -> tuple[str, tuple[str, ...], dict[str, str]]:
        found = find(NAME, "main", registry, Path(tempfile.mkdtemp(dir=tmp_path)), endpoint=hub.url)
        seal = edited(found, listed, {})
        return seal.by, seal.against, dict(seal.told)

    def sealing(key: PrivateKey | None) -> Publication:
        made = sealed(prepared(hub, ours, replace=True), ours.checkpoint, key)
        push(made, message="a test", endpoint=hub.url)
        return made

    sealing(ada)
    uploads = hub.uploads()
    assert asked() == ("Ada", (), {})
    assert SEAL in sealing(None).files and SEAL in sealing(ada).files and hub.uploads() == uploads  # signed once
    lock, plan, gone = "requant/lockfiles/cpu.txt", "requant/builds/ec/plan.json", "requant/Dockerfile.cpu"
    folder, why = hub.head(NAME)[1], "not as Ada published it"
    (tmp_path / "root.json").write_text(
        json.dumps(sigstores.Sigstore(url="http://localhost:1").trust_config()["trustedRoot"])
    )
    (tmp_path / "seal.json").write_bytes((folder / SEAL).read_bytes())
    (tmp_path / "ada.pub").write_text(ada.public.pem)

    def refused(path: str) -> str:
        return cosign("seal.json", hub.head(NAME)[1] / path, "ada.pub", PUBLISHED, "root.json", cwd=tmp_path)

    edits = {path: (folder / path).read_bytes() + b" " for path in (lock, plan, "README.md", PAGE, EXTRAS)}
    assert [refused(path) for path in edits] == [""] * len(edits)
    true = {path: (folder / path).read_bytes() for path in (*edits, gone)}
    hub.commit(NAME, {**edits, "requant/builds/ec/audits/notes.txt": b"x", "figure.png": b"y"}, [gone])
    assert asked()[1] == tuple(f"{path}: {why}" for path in sorted((lock, plan, gone, EXTRAS)))
    assert {*asked()[2]} == {"README.md", PAGE} and all("match" in refused(path) for path in edits)
    screen = ran(hub, "verify", NAME, "--builders", known(tmp_path, Ada=ada))
    assert screen.exit_code == 1 and "edited since Ada published it" in screen.stdout
    hub.commit(NAME, true)
    ours.record()
    hub.commit(NAME, {lock: edits[lock]})
    assert asked(ours.registry) == ("Ada", (), {lock: why})  # a registry's own records decide
    hub.commit(NAME, {SEAL: sign(in_toto(ours.files, PUBLISHED, {}), eve)})
    assert asked() == ("", (), {SEAL: "signed by somebody whom you do not know"})
    hub.commit(NAME, {SEAL: (tmp_path / "seal.json").read_bytes().replace(b'"sig":"', b'"sig":"AAAA')})
    assert asked()[:2] == ("", ()) and asked()[2][SEAL].startswith(Fault.FORGED)
    audited(ours, None, auditor="Bob")
    assert SEAL in sealing(None).removed and SEAL not in files(hub.head(NAME)[1])


@pytest.mark.full
def test_each_file_that_is_edited_is_named(hub: Hub, ours: Project, tmp_path: Path) -> None:
    ada = keyed("ada", tmp_path)
    sign_file(beside(ours.checkpoint, "intoto.jsonl"), ada)
    audited(ours, ada, auditor="Ada")
    push(sealed(prepared(hub, ours), ours.checkpoint, ada), message="a test", endpoint=hub.url)
    commit, folder = hub.head(NAME)
    listed = ("--builders", known(tmp_path, Ada=ada), "--json")
    assert ran(hub, "verify", NAME, *listed).exit_code == 0
    for path in files(folder):
        hub.commit(NAME, {path: (folder / path).read_bytes() + b" "})
        try:
            done = ran(hub, "verify", NAME, *listed)
            assert path.rpartition("/")[2].removesuffix(BUNDLE) in done.stdout, path
            assert done.exit_code == (0 if path in ("README.md", PAGE, SEAL) or "/audits/" in path else 1), path
        except (CheckpointError, RecipeError) as error:
            assert path.rpartition("/")[2] in str(error)
        hub.repositories[NAME] = (commit, folder)


def test_whose_files_the_base_has_is_the_repositorys_word(hub: Hub, ours: Project, tmp_path: Path) -> None:
    """Until a registry says so: pins are a stranger's, under whatever name of a base."""
    bob = keyed("bob", tmp_path)
    base = base_files(ours.recipe, "mini", beside(ours.checkpoint, RECORDED[2]))
    against = {"base": identity(base), "recipe": ours.recipe.digest}
    judged = Judged("check", "clean", ours.files, against, details={"tiny": True, "read": 1, "total": 1})
    submit(ours.recipe.beside(OUTCOMES), sign(judged.statement(), bob), BUNDLE)
    sent(hub, ours)
    ours.record()
    listed = ("--builders", known(tmp_path, Bob=bob), "--json")
    for words, says in (((), True), (("--registry", ours.registry), False)):
        (weights,) = (
            each
            for each in json.loads(ran(hub, "verify", NAME, *listed, *words).stdout)["rungs"]
            if each["name"] == "weights"
        )
        assert weights["word"] == "holds" and weights["said"].startswith("checked against the base by Bob (clean)")
        assert weights["said"].endswith("which files are the base's is the repository's word") == says


JUNK = {"audits/notes.txt": b"x", "audits/a/b": b"x", f"audits/{'0a' * 32}{BUNDLE}": b"{}"}
JUNK |= {"rebuilds/a/b": b"x", "outcomes": b""}


def test_what_is_no_audit_is_named_and_stops_nobody(hub: Hub, ours: Project, tmp_path: Path, worded: Worded) -> None:
    audited(ours, None, auditor="Bob")
    build = "requant/builds/ec"
    proofs = proofs_of(ours.recipe, "mini", ours.checkpoint)
    there = {path: place.read_bytes() for path, place in proofs.items() if path.startswith(build)}
    hub.commit(NAME, there | {path: (ours.checkpoint / path).read_bytes() for path in ours.files})
    hub.commit(NAME, {f"{build}/{path}": data for path, data in JUNK.items()})
    ours.record()

    def asked(registry: Path | None) -> Found:
        return find(NAME, "main", registry, Path(tempfile.mkdtemp(dir=tmp_path)), endpoint=hub.url)

    for registry in (None, ours.registry):
        found = asked(registry)
        assert {*found.astray} == {f"{build}/{path.removesuffix('/b')}" for path in JUNK}
        assert found.proofs and coverage(found.proofs.recipe, "mini", {}).blocks[0].claims == 1
        assert _weights(found.proofs, {})[0].word == "open"
    worded("\n".join(f"{path}: {why}" for path, why in found.astray.items()))
    downloaded(found, Path("got"), endpoint=hub.url)
    assert not Path("got", build, "audits/a").exists() and len(read_audits(read_recipe(Path("got", build)))) == 1
    hub.commit(NAME, {f"{build}/recipe.toml": b"x"})
    assert [*asked(ours.registry).astray] == ["requant"]
    with pytest.raises(RecipeError):
        asked(None)


def test_without_proofs_there_is_little_to_say(hub: Hub, ours: Project) -> None:
    hub.commit(NAME, {path: (ours.checkpoint / path).read_bytes() for path in ours.files})
    done = ran(hub, "verify", NAME)
    assert done.exit_code == 3 and "no proofs are known of it" in done.stdout and "requant identify" in done.stdout
    assert ran(hub, "fetch", NAME, "--out", "no").exit_code == 3 and not Path("no").exists()


@pytest.mark.full
def test_proofs_that_contradict_themselves_are_refused(hub: Hub, ours: Project, tmp_path: Path) -> None:
    sign_file(beside(ours.checkpoint, "intoto.jsonl"), keyed("ada", tmp_path))
    sent(hub, ours)
    there = hub.head(NAME)[1]
    statement = "requant/builds/ec/mini.intoto.jsonl"
    text = (there / statement).read_bytes()
    hub.commit(NAME, {statement: text.replace(b'"taints":[', b'"taints":["none",')})
    done = ran(hub, "verify", NAME, "--trust", tmp_path / "ada.key")
    assert done.exit_code == 3 and Fault.OTHER_STATEMENT in done.stdout
    hub.commit(NAME, {"requant/builds/two/recipe.toml": (there / "requant/builds/ec/recipe.toml").read_bytes()})
    hub.commit(NAME, {"requant/builds/two/mini.manifest.json": beside(ours.checkpoint, "manifest.json").read_bytes()})
    with pytest.raises(CheckpointError, match="proofs of 2 builds"):
        ran(hub, "verify", NAME)


@pytest.mark.full
def test_a_folder_of_proofs_that_lies(hub: Hub, ours: Project, tmp_path: Path, refuses: Refuses) -> None:
    bob = keyed("bob", tmp_path)
    listed = ("--builders", known(tmp_path, Bob=bob))
    audited(ours, bob, dict.fromkeys(range(4), "inconclusive"), untuned=Untuned((), 0, "not looked at"))
    sent(hub, ours)
    assert ran(hub, "verify", NAME, *listed).exit_code == 3  # whoever found nothing says nothing for it
    build = "requant/builds/ec"
    true = {path.name: path.read_bytes() for path in (hub.head(NAME)[1] / build).iterdir() if path.is_file()}

    def told(name: str, data: bytes) -> Result:
        hub.commit(NAME, {f"{build}/{name}": data})
        done = ran(hub, "verify", NAME)
        hub.commit(NAME, {f"{build}/{name}": true[name]})
        return done

    recipe = true["recipe.toml"].replace(b"iterations = ", b"iterations = 1", 1)
    assert recipe != true["recipe.toml"]
    done = told("recipe.toml", recipe)
    assert done.exit_code == 1 and "contradict each other" in done.stdout and str(tmp_path) not in done.stdout
    lock = "requant/lockfiles/cpu.txt"
    locked = (hub.head(NAME)[1] / lock).read_bytes()
    hub.commit(NAME, {lock: locked.replace(b"numpy", b"nunpy")})
    done = ran(hub, "verify", NAME)
    assert done.exit_code == 1 and "not the lock that the build's statement names" in " ".join(done.stdout.split())
    hub.commit(NAME, {lock: locked})
    assert told("baseline.toml", b"known = [{ rule = 'D29', loaders = [[]] }]").exit_code == 3  # is not even read
    statement = json.loads(true["mini.intoto.jsonl"])
    statement["predicate"]["buildDefinition"]["internalParameters"]["hardware"] = {"model": "x", "n": 7}
    text = canonical_json(statement) + b"\n"
    with refuses(CheckpointError, vary=r"published/\w+"):
        told("mini.intoto.jsonl", text.replace(b'"n":7', b'"n":1e999'))
    hub.commit(NAME, {f"{build}/outcomes/a/b": b"x"})
    ours.record()
    assert ran(hub, "verify", NAME, "--registry", ours.registry).exit_code == 0


def test_what_the_hubs_cache_has_whole_is_read_there(
    hub: Hub, ours: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    commit = sent(hub, ours)
    assert snapshot(NAME, "main") is None and folder_of("ada") == Path("ada")
    with pytest.raises(UsageError, match="not here"):
        folder_of(f"{NAME}@{commit}")
    place = Path(snapshot_download(NAME, cache_dir=tmp_path / "hub", endpoint=hub.url, token=False))
    public = constants.ENDPOINT
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    hub.requests.clear()
    assert snapshot(NAME, "main") == snapshot(NAME, commit) == folder_of(f"{NAME}@main") == place
    with open_reader(f"{NAME}@{commit}") as reader:
        assert not reader.remote
    assert open_headers(f"{NAME}@{commit}").folder == place
    assert all("/api/" in each.path for each in hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert snapshot(NAME, "main") == place and snapshot(NAME, "other") is None
    (place / EXTRAS).unlink()
    assert snapshot(NAME, commit) is None
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert snapshot(NAME, commit) is None
    monkeypatch.setattr(constants, "ENDPOINT", public)
    for read in (open_headers, open_reader):
        hub.requests.clear()
        read(f"{NAME}@{commit}", hub.url)
        assert len([each for each in hub.requests if "/api/" in each.path]) == 1  # of what is here in part, one list
