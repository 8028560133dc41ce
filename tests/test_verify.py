import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.checkpoints import SMALL, checkpoints, frame, nobody, on_a_disk, on_disk, shard, write
from tests.conftest import Refuses, Worded
from tests.hub import running

import requant
from requant.check.reader import open_reader
from requant.checkpoint.checkpoint import open_checkpoint
from requant.checkpoint.files import listing
from requant.checkpoint.manifest import FileRecord, Manifest, TensorRecord, make_manifest
from requant.digest import MAX_INDEX, MAX_SIDE
from requant.errors import CheckpointError
from requant.inspect.headers import read_headers
from requant.verdict import Difference, Outcome, Verdict
from requant.verify import verify

COMMIT = "0123456789abcdef0123456789abcdef01234567"

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SOURCES = Path(requant.__file__).parents[1]
ROOT = Path(__file__).parents[1]
CHECKPOINT = ("manifest", "files", "safetensors")
MODULES = ("verify", *(f"checkpoint/{name}" for name in CHECKPOINT), "digest", "verdict", "crash", "errors")
LINES = 810


def named(verdict: Verdict) -> set[tuple[str, str, str]]:
    return {(each.kind, each.name, each.file) for each in verdict.differences}


def owners(data: bytes) -> list[str | None]:
    """Whose each byte of a file is: the name of its tensor, None in headers and side files."""
    if data not in (SMALL[FIRST], SMALL[SECOND]):
        return [None] * len(data)
    start = 8 + int.from_bytes(data[:8], "little")
    found: list[str | None] = [None] * len(data)
    for name, each in json.loads(data[8:start]).items():
        if name != "__metadata__":
            begin, end = each["data_offsets"]
            found[start + begin : start + end] = [name] * (end - begin)
    return found


@on_a_disk
@given(files=checkpoints())
def test_a_checkpoint_is_what_its_manifest_says(files: dict[str, bytes]) -> None:
    with on_disk(files) as folder:
        heard: list[int] = []
        assert verify(folder, make_manifest(folder), heard.append) == Verdict(Outcome.IDENTICAL)
        assert sum(heard) == sum(len(data) for data in files.values())


@pytest.mark.parametrize("name", SMALL)
def test_every_single_flipped_bit_is_found_and_named(tmp_path: Path, name: str) -> None:
    manifest = make_manifest(write(tmp_path, SMALL))
    for at, owner in enumerate(owners(SMALL[name])):
        for bit in range(8):
            spoilt = bytearray(SMALL[name])
            spoilt[at] ^= 1 << bit
            (tmp_path / name).write_bytes(spoilt)
            verdict = verify(tmp_path, manifest)
            if owner:
                assert named(verdict) == {("changed file", name, name), ("changed tensor", owner, name)}, (at, bit)
                assert verdict.outcome is Outcome.DIFFERENT
            else:
                assert named(verdict) & {("changed file", name, name), ("unreadable file", name, name)}, (at, bit)
                assert {file for _, _, file in named(verdict)} == {name}
                assert verdict.outcome in (Outcome.DIFFERENT, Outcome.EQUIVALENT)


@on_a_disk
@given(files=checkpoints().filter(lambda files: any(files.values())), data=st.data())
def test_a_flipped_bit_of_any_checkpoint_is_found_and_named(files: dict[str, bytes], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(name for name in files if files[name])))
    spoilt = bytearray(files[name])
    spoilt[data.draw(st.integers(0, len(spoilt) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with on_disk(files) as folder:
        manifest = make_manifest(folder)
        write(folder, {name: bytes(spoilt)})
        verdict = verify(folder, manifest)
        assert verdict.outcome in (Outcome.DIFFERENT, Outcome.EQUIVALENT)
        assert named(verdict) & {("changed file", name, name), ("unreadable file", name, name)}


A, B, C = ("F16", [2], b"\x01\x02\x03\x04"), ("U8", [3], b"\x05\x06\x07"), ("F16", [2], b"\x08\x09\x0a\x0b")
PT = {"format": "pt"}

CHANGED: dict[str, tuple[dict[str, bytes | None], Outcome, set[tuple[str, str, str]]]] = {
    "two tensors exchanged": (
        {FIRST: shard({"a": C, "b": B}, PT), SECOND: shard({"c": A})},
        Outcome.DIFFERENT,
        {
            ("changed file", FIRST, FIRST),
            ("changed file", SECOND, SECOND),
            ("changed tensor", "a", FIRST),
            ("changed tensor", "c", SECOND),
        },
    ),
    "two names exchanged": (
        {FIRST: shard({"b": A, "a": B}, PT)},
        Outcome.DIFFERENT,
        {("changed file", FIRST, FIRST), ("changed tensor", "a", FIRST), ("changed tensor", "b", FIRST)},
    ),
    "another dtype of the same bytes": (
        {FIRST: shard({"a": ("BF16", [2], A[2]), "b": B}, PT)},
        Outcome.DIFFERENT,
        {("changed file", FIRST, FIRST), ("changed tensor", "a", FIRST)},
    ),
    "another shape of the same bytes": (
        {FIRST: shard({"a": ("F16", [1, 2], A[2]), "b": B}, PT)},
        Outcome.DIFFERENT,
        {("changed file", FIRST, FIRST), ("changed tensor", "a", FIRST)},
    ),
    "a tensor missing": (
        {FIRST: shard({"a": A}, PT)},
        Outcome.DIFFERENT,
        {("changed file", FIRST, FIRST), ("missing tensor", "b", FIRST)},
    ),
    "a tensor renamed": (
        {SECOND: shard({"d": C})},
        Outcome.DIFFERENT,
        {("changed file", SECOND, SECOND), ("missing tensor", "c", SECOND), ("extra tensor", "d", SECOND)},
    ),
    "a tensor added": (
        {SECOND: shard({"c": C, "d": B})},
        Outcome.DIFFERENT,
        {("changed file", SECOND, SECOND), ("extra tensor", "d", SECOND)},
    ),
    "a truncated shard": (
        {FIRST: SMALL[FIRST][:-1]},
        Outcome.DIFFERENT,
        {("unreadable file", FIRST, FIRST), ("missing tensor", "a", FIRST), ("missing tensor", "b", FIRST)},
    ),
    "an empty shard": (
        {SECOND: b""},
        Outcome.DIFFERENT,
        {("unreadable file", SECOND, SECOND), ("missing tensor", "c", SECOND)},
    ),
    "a missing shard": (
        {SECOND: None},
        Outcome.DIFFERENT,
        {("missing file", SECOND, SECOND), ("missing tensor", "c", SECOND)},
    ),
    "a missing side file": (
        {"config.json": None},
        Outcome.EQUIVALENT,
        {("missing file", "config.json", "config.json")},
    ),
    "a changed side file": (
        {"config.json": b"{}"},
        Outcome.EQUIVALENT,
        {("changed file", "config.json", "config.json")},
    ),
    "an extra side file": (
        {"sub/LICENSE": b""},
        Outcome.EQUIVALENT,
        {("extra file", "sub/LICENSE", "sub/LICENSE")},
    ),
    "an extra shard": (
        {"z.safetensors": shard({"d": B})},
        Outcome.DIFFERENT,
        {("extra file", "z.safetensors", "z.safetensors"), ("extra tensor", "d", "z.safetensors")},
    ),
    "an extra shard without tensors": (
        {"z.safetensors": shard({})},
        Outcome.EQUIVALENT,
        {("extra file", "z.safetensors", "z.safetensors")},
    ),
    "an extra shard that cannot be read": (
        {"z.safetensors": frame(b"[]")},
        Outcome.DIFFERENT,
        {("unreadable file", "z.safetensors", "z.safetensors")},
    ),
    "a tensor twice, the copy in a file that comes first": (
        {"0.safetensors": shard({"c": C})},
        Outcome.DIFFERENT,
        {("extra file", "0.safetensors", "0.safetensors"), ("extra tensor", "c", "0.safetensors")},
    ),
    "a tensor moved to another shard": (
        {FIRST: shard({"a": A}, PT), SECOND: shard({"b": B, "c": C})},
        Outcome.EQUIVALENT,
        {("changed file", FIRST, FIRST), ("changed file", SECOND, SECOND)},
    ),
    "tensors in another order": (
        {FIRST: shard({"b": B, "a": A}, PT)},
        Outcome.EQUIVALENT,
        {("changed file", FIRST, FIRST)},
    ),
    "other metadata": (
        {FIRST: shard({"a": A, "b": B}, {"format": "np"})},
        Outcome.EQUIVALENT,
        {("changed file", FIRST, FIRST)},
    ),
    "everything in one file": (
        {FIRST: None, SECOND: None, "model.safetensors": shard({"a": A, "b": B, "c": C})},
        Outcome.EQUIVALENT,
        {
            ("missing file", FIRST, FIRST),
            ("missing file", SECOND, SECOND),
            ("extra file", "model.safetensors", "model.safetensors"),
        },
    ),
}  # fmt: skip


BESIDE: dict[str, bytes] = {
    "README.md": b"# EC",
    "README_zh.MD": b"# EC",
    "NOTICE": b"",
    "USE_POLICY.md": b"",
    "paper.PDF": b"",
    ".eval_results/mmlu.yaml": b"",
    ".gitattributes": b"*.safetensors filter=lfs",
    ".gitignore": b"",
    ".git/HEAD": b"ref: refs/heads/main",
    ".git/lfs/objects/aa/bb/aabb": b"",
    ".cache/huggingface/.gitignore": b"*",
    f".cache/huggingface/download/{FIRST}.metadata": b"",
    "ec.manifest.json": b"{}",
    "ec.journal.jsonl": b"",
    "ec.intoto.jsonl": b"",
    "ec.sigstore.json": b"{}",
    "model.sig": b"{}",
    "assets/figure.png": b"",
}
"""What the Hub, git, publishers and signers leave beside a checkpoint."""


def test_a_healthy_download_is_identical_and_what_lies_beside_it_is_named(tmp_path: Path) -> None:
    manifest = make_manifest(write(tmp_path / "checkpoint", SMALL))
    verdict = verify(write(tmp_path / "checkpoint", BESIDE), manifest)
    assert (verdict.outcome, verdict.differences) == (Outcome.IDENTICAL, ())
    folders = {".git/", ".cache/huggingface/", ".eval_results/"}
    assert set(verdict.companions) == {name for name in BESIDE if not name.startswith(tuple(folders))} | folders
    assert make_manifest(tmp_path / "checkpoint") == manifest


@pytest.mark.parametrize("name", BESIDE)
def test_a_companion_that_is_recorded_counts(tmp_path: Path, name: str) -> None:
    data = BESIDE[name]
    manifest = make_manifest(write(tmp_path / "checkpoint", SMALL))
    manifest = Manifest(
        {**manifest.files, name: FileRecord(len(data), hashlib.sha256(data).hexdigest())}, manifest.tensors
    )
    assert named(verify(tmp_path / "checkpoint", manifest)) == {("missing file", name, name)}
    assert verify(write(tmp_path / "checkpoint", {name: data}), manifest) == Verdict(Outcome.IDENTICAL)
    write(tmp_path / "checkpoint", {name: data + b"."})
    assert named(verify(tmp_path / "checkpoint", manifest)) == {("changed file", name, name)}


READ_OR_RUN = {
    "pytorch_model.bin": Outcome.DIFFERENT,
    "modeling.py": Outcome.DIFFERENT,
    ".hidden.pt": Outcome.DIFFERENT,
    "checkpoint.pth.tar": Outcome.DIFFERENT,
    "README.\u017fafetensors": Outcome.DIFFERENT,
    "additional_chat_templates/readme.jinja": Outcome.EQUIVALENT,
    "additional_chat_templates/notice.jinja": Outcome.EQUIVALENT,
    "Model.SafeTensors": Outcome.DIFFERENT,
    ".git/hooks/pre-commit.py": Outcome.DIFFERENT,
    ".cache/huggingface/model.gguf": Outcome.DIFFERENT,
    "chat_template.jinja": Outcome.EQUIVALENT,
    "adapter_config.json": Outcome.EQUIVALENT,
    ".w/config.json": Outcome.EQUIVALENT,
    ".cache/model.safetensors.index.json": Outcome.EQUIVALENT,
    ".git/model.safetensors.index.json": Outcome.EQUIVALENT,
    ".git/Model.safetensors.Index.fp16.JSON": Outcome.EQUIVALENT,
}


@pytest.mark.parametrize(("name", "outcome"), READ_OR_RUN.items())
def test_whatever_a_loader_reads_or_runs_counts_wherever_it_stands(tmp_path: Path, name: str, outcome: Outcome) -> None:
    manifest = make_manifest(write(tmp_path, SMALL))
    verdict = verify(write(tmp_path, {name: b'{"weight_map": {}}', **BESIDE}), manifest)
    assert (named(verdict), verdict.outcome) == ({("extra file", name, name)}, outcome)


@pytest.mark.parametrize("name", [".w/model.safetensors", ".hidden.safetensors", ".git/x.safetensors"])
def test_hidden_weights_count(tmp_path: Path, name: str) -> None:
    manifest = make_manifest(write(tmp_path, SMALL))
    verdict = verify(write(tmp_path, {name: shard({"a": C})}), manifest)
    assert named(verdict) == {("extra file", name, name), ("extra tensor", "a", name)}
    assert verdict.outcome is Outcome.DIFFERENT


@pytest.mark.parametrize("written", ["README.md", "./README.md", "sub/../README.md", "\\u0052EADME.md"])
def test_a_companion_that_an_index_names_counts(tmp_path: Path, written: str) -> None:
    """A loader opens what the index says, whatever its name."""
    index = f'{{"metadata":{{}},"weight_map":{{"a":"{written}","b":"absent"}}}}'
    write(tmp_path, {**SMALL, "model.safetensors.index.json": index.encode(), "README.md": b"weights"})
    manifest = make_manifest(tmp_path)
    assert "README.md" in manifest.files
    write(tmp_path, {"README.md": b"other weights"})
    assert named(verify(tmp_path, manifest)) == {("changed file", "README.md", "README.md")}


def test_the_index_of_a_hundred_thousand_tensors_leaves_companions_what_they_are(tmp_path: Path) -> None:
    names = {f"model.layers.{number}.{'x' * 80}": "model-00001-of-00002.safetensors" for number in range(100_000)}
    index = json.dumps({"metadata": {}, "weight_map": names}).encode()
    assert len(index) > MAX_SIDE
    manifest = make_manifest(write(tmp_path, {**SMALL, "model.safetensors.index.json": index}))
    assert verify(write(tmp_path, {"README.md": b"a card"}), manifest) == Verdict(
        Outcome.IDENTICAL, companions=("README.md",)
    )


def test_an_index_too_large_to_parse_leaves_no_companion(tmp_path: Path) -> None:
    folder = write(tmp_path, {**SMALL, "README.md": b""})
    (folder / "a.index.json").touch()
    os.truncate(folder / "a.index.json", MAX_INDEX + 1)
    assert listing(folder).companions == {}


def test_a_manifest_that_contradicts_itself_is_identical_to_its_files_alone(tmp_path: Path) -> None:
    """Files of a ruined build, tensors of the honest one, and the other way round."""
    honest, ruined = write(tmp_path / "honest", SMALL), write(tmp_path / "ruined", {**SMALL, SECOND: shard({"c": A})})
    ours, theirs = make_manifest(honest), make_manifest(ruined)
    for files, tensors, same, other in ((theirs, ours, ruined, honest), (ours, theirs, honest, ruined)):
        crossed = Manifest(files.files, tensors.tensors)
        assert verify(same, crossed).outcome is Outcome.IDENTICAL
        verdict = verify(other, crossed)
        assert verdict.outcome is not Outcome.IDENTICAL and ("changed file", SECOND, SECOND) in named(verdict)
        assert crossed.identity == files.identity != tensors.identity


def test_the_identity_of_a_checkpoint_is_that_of_its_weight_files(tmp_path: Path) -> None:
    manifest = make_manifest(write(tmp_path, SMALL))
    digests = {name: hashlib.sha256(SMALL[name]).hexdigest() for name in (FIRST, SECOND)}
    assert manifest.weights == digests
    text = json.dumps(digests, sort_keys=True, separators=(",", ":")).encode()
    assert manifest.identity == hashlib.sha256(text).hexdigest()
    assert make_manifest(write(tmp_path, {"config.json": b"{}"})).identity == manifest.identity
    assert make_manifest(write(tmp_path, {".x.safetensors": shard({})})).identity != manifest.identity


def change(folder: Path, changes: dict[str, bytes | None]) -> None:
    write(folder, {name: data for name, data in changes.items() if data is not None})
    for name in changes.keys() - {name for name, data in changes.items() if data is not None}:
        (folder / name).unlink()


@pytest.mark.parametrize(("changes", "outcome", "differences"), CHANGED.values(), ids=CHANGED)
def test_what_changed_is_named_and_nothing_else(
    tmp_path: Path, changes: dict[str, bytes | None], outcome: Outcome, differences: set[tuple[str, str, str]]
) -> None:
    manifest = make_manifest(write(tmp_path, SMALL))
    change(tmp_path, changes)
    verdict = verify(tmp_path, manifest)
    assert named(verdict) == differences
    assert len(verdict.differences) == len(differences)
    assert verdict.outcome is outcome


def test_a_difference_says_what_was_expected_and_what_was_found(tmp_path: Path) -> None:
    manifest = make_manifest(write(tmp_path, SMALL))
    write(tmp_path, {SECOND: shard({"c": ("BF16", [2], C[2])})})
    now = make_manifest(tmp_path)
    digest = manifest.tensors["c"].sha256
    assert verify(tmp_path, manifest).differences == (
        Difference("changed tensor", "c", SECOND, f"F16 [2] {digest}", f"BF16 [2] {digest}"),
        Difference("changed file", SECOND, SECOND, manifest.files[SECOND].sha256, now.files[SECOND].sha256),
    )


def test_a_folder_in_place_of_a_file_is_a_missing_file(tmp_path: Path) -> None:
    manifest = make_manifest(write(tmp_path, SMALL))
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    assert named(verify(tmp_path, manifest)) == {("missing file", "config.json", "config.json")}


def test_a_folder_named_like_a_shard_is_refused(tmp_path: Path, refuses: Refuses) -> None:
    """Whatever looks for `*.safetensors` meets it."""
    manifest = make_manifest(write(tmp_path, SMALL))
    (tmp_path / "extra.safetensors").mkdir()
    with refuses(CheckpointError):
        verify(tmp_path, manifest)


@pytest.mark.parametrize("name", ["config.json", SECOND])
def test_a_file_that_cannot_be_read_is_named(name: str) -> None:
    with on_disk(SMALL) as folder:
        manifest = make_manifest(folder)
        (folder / name).chmod(0)
        with nobody():
            verdict = verify(folder, manifest)
    assert verdict.outcome is Outcome.DIFFERENT
    (difference,) = (each for each in verdict.differences if each.kind == "unreadable file")
    assert difference.file == name
    assert "Permission denied" in difference.found


@pytest.mark.parametrize("plant", [lambda path: path.symlink_to("config.json"), os.mkfifo])
def test_a_link_or_a_pipe_is_an_error_even_where_it_leads_to_the_recorded_bytes(
    tmp_path: Path, plant: Callable[[Path], None], refuses: Refuses
) -> None:
    manifest = make_manifest(write(tmp_path, {**SMALL, "copy.json": SMALL["config.json"]}))
    (tmp_path / "copy.json").unlink()
    plant(tmp_path / "copy.json")
    with refuses(CheckpointError):
        verify(tmp_path, manifest)


@pytest.fixture
def downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A checkpoint in the Hub's cache, brought there by the Hub's own library."""
    library = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with running() as hub:
        hub.serve("model", "o/n", COMMIT, write(tmp_path / "served", {**SMALL, **BESIDE, "sub/x": b"."}))
        yield Path(library.snapshot_download("o/n", cache_dir=tmp_path / "cache", endpoint=hub.url))


def test_a_snapshot_of_the_hubs_cache_is_read_as_it_stands(downloaded: Path, tmp_path: Path) -> None:
    assert (downloaded / SECOND).is_symlink() and (downloaded / "sub" / "x").is_symlink()
    manifest = make_manifest(write(tmp_path / "plain", {**SMALL, "sub/x": b"."}))
    assert make_manifest(downloaded) == manifest
    assert verify(downloaded, manifest).outcome is Outcome.IDENTICAL
    assert open_checkpoint(downloaded).tensors.keys() == {"a", "b", "c"}
    assert read_headers(downloaded).shards.keys() == {FIRST, SECOND}
    with open_reader(str(downloaded)) as source:
        into = bytearray(4)
        source.read(source.tensors["c"], 0, memoryview(into))
    assert into == C[2]
    blob = (downloaded / SECOND).resolve()
    blob.write_bytes(shard({"c": A}))
    assert ("changed tensor", "c", SECOND) in named(verify(downloaded, manifest))


LINKS: dict[str, Callable[[Path], object]] = {
    "out of the repository": lambda path: path.symlink_to("/etc/hostname"),
    "another repository": lambda path: path.symlink_to("../../../models--o--m/blobs/1"),
    "another file of the snapshot": lambda path: path.symlink_to("config.json.real"),
    "a folder among the blobs": lambda path: path.symlink_to("../../blobs/folder"),
    "through a link among the blobs": lambda path: path.symlink_to("../../blobs/aside/1"),
    "nothing": lambda path: path.symlink_to("../../blobs/2"),
    "itself": lambda path: path.symlink_to(path.name),
}


@pytest.mark.parametrize("plant", LINKS.values(), ids=LINKS)
def test_a_link_of_the_hubs_cache_that_leads_elsewhere_is_refused(
    tmp_path: Path, plant: Callable[[Path], object], refuses: Refuses
) -> None:
    repository = tmp_path / "models--o--n"
    write(tmp_path, {"models--o--m/blobs/1": b"x"})
    write(repository, {"blobs/1": b"x", "blobs/folder/x": b"", "snapshots/r/config.json.real": b"x"})
    snapshot = repository / "snapshots" / "r"
    (repository / "blobs" / "aside").symlink_to(tmp_path / "models--o--m" / "blobs")
    plant(snapshot / "model.safetensors")
    with refuses(CheckpointError):
        listing(snapshot)


def test_links_to_blobs_outside_of_a_cache_are_refused(tmp_path: Path, refuses: Refuses) -> None:
    write(tmp_path, {"r/blobs/1": b"x", "r/other/v/config.json": b""})
    (tmp_path / "r" / "other" / "v" / "x").symlink_to("../../blobs/1")
    with refuses(CheckpointError):
        listing(tmp_path / "r" / "other" / "v")


def test_many_files_and_many_tensors_take_seconds(tmp_path: Path) -> None:
    """Neither is multiplied by the other."""
    count = 2000
    empty = shard({})
    write(tmp_path, {f"{i}.safetensors": empty for i in range(count)})
    blank = FileRecord(len(empty), make_manifest(tmp_path).files["0.safetensors"].sha256)
    tensors = {f"t{i}": TensorRecord(f"{i % count}.safetensors", "U8", (0,), "") for i in range(100_000)}
    started = time.process_time()
    verdict = verify(tmp_path, Manifest({f"{i}.safetensors": blank for i in range(count)}, tensors))
    assert verdict.outcome is Outcome.IDENTICAL
    assert time.process_time() - started < 5


# From here on through the command lines: `requant verify`, and the one that needs the standard library alone.

BARE = (sys.executable, "-S", "-s", "-m", "requant.verify")
CLI = (sys.executable, "-m", "requant", "verify")


def run(command: tuple[str, ...], *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command without this process's environment, its site packages hidden from `-S`."""
    return subprocess.run(
        [*command, *map(str, arguments)],
        env={"PYTHONPATH": str(SOURCES), "PYTHONUTF8": "1", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint, and its manifest beside it."""
    (tmp_path / "manifest.json").write_bytes(make_manifest(write(tmp_path / "checkpoint", SMALL)).to_json())
    return tmp_path


@pytest.mark.parametrize("command", [BARE, CLI], ids=["standard library", "requant"])
def test_the_exit_status_is_the_outcome(folder: Path, command: tuple[str, ...]) -> None:
    checkpoint, manifest = folder / "checkpoint", folder / "manifest.json"
    done = run(command, checkpoint, manifest)
    assert (done.returncode, done.stdout.partition(",")[0].strip()) == (0, "identical")
    write(checkpoint, {"config.json": b""})
    done = run(command, checkpoint, manifest)
    assert done.returncode == 1
    assert done.stdout.startswith("changed file: config.json\nequivalent")
    write(checkpoint, {SECOND: shard({"c": A})})
    done = run(command, checkpoint, manifest)
    assert done.returncode == 1
    assert f"changed tensor: c ({SECOND})\n" in done.stdout
    assert "\ndifferent" in done.stdout


@pytest.mark.parametrize("command", [BARE, CLI], ids=["standard library", "requant"])
def test_what_lies_beside_a_checkpoint_is_told_in_a_line(folder: Path, command: tuple[str, ...]) -> None:
    write(folder / "checkpoint", BESIDE)
    done = run(command, folder / "checkpoint", folder / "manifest.json")
    assert done.returncode == 0
    told = ".cache/huggingface/, .eval_results/, .git/, .gitattributes, .gitignore, NOTICE and 10 more"
    assert done.stdout.startswith(f"beside the checkpoint, and not judged: {told}\nidentical")


def test_equal_tensors_are_enough_where_that_is_asked_for(folder: Path) -> None:
    write(folder / "checkpoint", {"config.json": b""})
    assert run(CLI, folder / "checkpoint", folder / "manifest.json", "--tensors").returncode == 0
    write(folder / "checkpoint", {SECOND: shard({"c": A})})
    assert run(CLI, folder / "checkpoint", folder / "manifest.json", "--tensors").returncode == 1


def test_json_is_one_document_on_standard_output(folder: Path) -> None:
    write(folder / "checkpoint", {SECOND: b"broken"})
    done = run(CLI, folder / "checkpoint", folder / "manifest.json", "--json")
    value = json.loads(done.stdout)
    assert (done.returncode, value["outcome"], value["reasons"]) == (1, "different", [])
    assert [(each["kind"], each["name"]) for each in value["differences"]] == [
        ("missing tensor", "c"),
        ("unreadable file", SECOND),
    ]
    assert SECOND in value["differences"][1]["found"]


def unknown_key(folder: Path) -> None:
    value = json.loads((folder / "manifest.json").read_bytes())
    (folder / "manifest.json").write_text(json.dumps({**value, "host": "here"}))


def surrogate(folder: Path) -> None:
    text = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(text.replace(b'"a":', b'"\\ud800":'))


def traversal(folder: Path) -> None:
    text = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(text.replace(b'"config.json"', b'"../../etc/passwd"'))


def bytes_of_no_letter(folder: Path) -> None:
    Path(os.fsdecode(bytes(folder / "checkpoint") + b"/\xff")).touch()


BROKEN: dict[str, Callable[[Path], object]] = {
    "no checkpoint": lambda folder: (folder / "checkpoint").rename(folder / "other"),
    "a link": lambda folder: (folder / "checkpoint" / "x").symlink_to("/"),
    "a pipe": lambda folder: os.mkfifo(folder / "checkpoint" / "x"),
    "a name that is no text": bytes_of_no_letter,
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "an empty manifest": lambda folder: (folder / "manifest.json").write_bytes(b""),
    "an unknown key": unknown_key,
    "half a surrogate pair": surrogate,
    "a path that leads out": traversal,
}


@pytest.mark.parametrize("command", [BARE, (*CLI, "--json")], ids=["standard library", "requant"])
@pytest.mark.parametrize("spoil", BROKEN.values(), ids=BROKEN)
def test_broken_input_is_an_error_of_status_6_and_not_a_traceback(
    folder: Path, command: tuple[str, ...], spoil: Callable[[Path], object], worded: Worded
) -> None:
    spoil(folder)
    done = run(command, folder / "checkpoint", folder / "manifest.json")
    assert done.returncode == 6
    assert done.stdout == "" if command == BARE else json.loads(done.stdout)["exit_status"] == 6
    worded(done.stderr)


@pytest.mark.parametrize("command", [BARE, CLI], ids=["standard library", "requant"])
def test_a_name_is_printed_whole_whatever_its_letters_and_the_terminal(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    name = "[red]世:bomb:" + "." * 200
    (tmp_path / "manifest.json").write_bytes(
        make_manifest(write(tmp_path / "checkpoint", {"a.safetensors": shard({name: A})})).to_json()
    )
    write(tmp_path / "checkpoint", {"a.safetensors": shard({name: C})})
    for encoding, printed in (("utf-8", name), ("ascii", name.replace("世", r"\u4e16"))):
        done = run(command, tmp_path / "checkpoint", tmp_path / "manifest.json", PYTHONIOENCODING=encoding)
        assert done.returncode == 1
        assert f"changed tensor: {printed} (a.safetensors)\n" in done.stdout


@pytest.mark.parametrize("command", [BARE, CLI], ids=["standard library", "requant"])
@pytest.mark.parametrize("arguments", [[], ["one"], ["one", "two", "three"]])
def test_wrong_usage_has_status_2(command: tuple[str, ...], arguments: list[str]) -> None:
    done = run(command, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


def test_verifying_needs_the_standard_library_alone() -> None:
    done = run((sys.executable, "-S", "-s"), "-c", "import requant.verify, sys; print(*sys.modules)")
    imported = set(done.stdout.split()) - {"__main__"}
    imported = {name for name in imported if name.partition(".")[0] not in sys.stdlib_module_names}
    assert imported == {"requant", "requant.checkpoint", *(f"requant.{name.replace('/', '.')}" for name in MODULES)}


def test_what_must_be_read_to_trust_it_is_short_and_as_long_as_readme_says() -> None:
    """Every line but blank ones: code, comments and docstrings alike."""
    texts = [(SOURCES / "requant" / f"{name}.py").read_text() for name in MODULES]
    lines = sum(bool(line.strip()) for text in texts for line in text.splitlines())
    assert lines <= LINES
    first = sum(bool(line.strip()) for line in (SOURCES / "requant" / "__init__.py").read_text().splitlines())
    readme = (ROOT / "README.md").read_text()
    assert f"{len(MODULES)} modules, {lines} lines" in readme
    assert f"`__init__.py` before them, which is {first} lines" in readme
