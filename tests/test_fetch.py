import fcntl
import hashlib
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from tests.conftest import Refuses
from tests.hub import Hub, only_loopback, running

from requant.errors import CheckpointError, NotAvailableError, RecipeError
from requant.hub.fetch import PARTS, Fetched, fetch, missing, verify_folder
from requant.hub.pinned import PinnedFile, Pins

COMMIT = "0123456789" * 4
BIG = "model-00001-of-00002.safetensors"
ODD = "a folder/ü #1?.txt"
CONTENT = {
    BIG: bytes(range(256)) * 1200,  # 307,200 bytes
    "model-00002-of-00002.safetensors": b"\x01\x02" * 5000,
    "config.json": b"{}\n",
    ODD: b"odd",
    "empty": b"",
}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def pinned(kind: str = "model", more: dict[str, PinnedFile] | None = None, *, sizes: bool = True) -> Pins:
    files = {path: PinnedFile(len(data) if sizes else None, sha256(data)) for path, data in CONTENT.items()}
    return Pins(kind, "owner/name", COMMIT, "Written for this test.", files | (more or {}))


@pytest.fixture(autouse=True)
def _only_loopback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No test asks for an address elsewhere, sends a developer's token, or waits long before it tries again."""
    with only_loopback(monkeypatch, tmp_path):
        yield


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    for path, content in CONTENT.items():
        (tmp_path / "served" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "served" / path).write_bytes(content)
    with running() as hub:
        hub.serve("model", "owner/name", COMMIT, tmp_path / "served")
        hub.serve("dataset", "owner/name", COMMIT, tmp_path / "served")
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "fetched"


def everything(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("kind", ["model", "dataset"])
@pytest.mark.parametrize("sizes", [True, False])
def test_fetches_every_file_once(hub: Hub, folder: Path, kind: str, sizes: bool) -> None:
    pins = pinned(kind, sizes=sizes)
    first = fetch(pins, folder, endpoint=hub.url)
    assert first == Fetched(tuple(folder / path for path in CONTENT), tuple(CONTENT), ())
    assert everything(folder) == CONTENT
    assert not (folder / PARTS).exists()
    asked = len(hub.requests)
    assert fetch(pins, folder, endpoint=hub.url) == Fetched(first.files, (), ())
    assert len(hub.requests) == asked


def test_fetches_what_is_wanted_only(hub: Hub, folder: Path, refuses: Refuses) -> None:
    assert fetch(pinned(), folder, wanted=["config.json"], endpoint=hub.url).downloaded == ("config.json",)
    assert everything(folder) == {"config.json": CONTENT["config.json"]}
    with refuses(RecipeError):
        fetch(pinned(), folder, wanted=["other.json"], endpoint=hub.url)


def test_never_fetches_what_no_digest_covers(hub: Hub, folder: Path, refuses: Refuses) -> None:
    pins = pinned(more={"config.json": PinnedFile(3, None)})
    assert fetch(pins, folder, endpoint=hub.url).unpinned == ("config.json",)
    assert missing(pins, folder).unpinned == verify_folder(pins, folder).unpinned == ("config.json",)
    assert "config.json" not in everything(folder)
    assert not any("config.json" in request.path for request in hub.requests)
    with refuses(RecipeError):
        fetch(pins, folder, wanted=["config.json"], endpoint=hub.url)


def test_goes_on_where_an_earlier_call_was_interrupted(hub: Hub, folder: Path, refuses: Refuses) -> None:
    hub.drop_at = 100_000
    with refuses(NotAvailableError, vary="RemoteProtocolError: .*"):
        fetch(pinned(), folder, wanted=[BIG], endpoint=hub.url)
    assert everything(folder) == {f"{PARTS}/{sha256(CONTENT[BIG])}": CONTENT[BIG][:100_000]}
    assert missing(pinned(), folder, wanted=[BIG]).bytes == len(CONTENT[BIG]) - 100_000

    hub.drop_at = None
    hub.requests.clear()
    fetch(pinned(), folder, wanted=[BIG], endpoint=hub.url)
    assert everything(folder) == {BIG: CONTENT[BIG]}
    assert [(r.headers["range"], r.status, r.sent) for r in hub.requests] == [("bytes=100000-", 206, 207_200)]


def test_goes_on_within_one_call(hub: Hub, folder: Path) -> None:
    hub.drop_at, hub.drops = 100_000, 1
    fetch(pinned(), folder, wanted=[BIG], endpoint=hub.url)
    assert [request.sent for request in hub.downloads()] == [100_000, 207_200]


def test_goes_on_after_the_process_was_killed(hub: Hub, folder: Path) -> None:
    program = f"""if True:
        import os
        from pathlib import Path
        from requant.hub.fetch import fetch
        from requant.hub.pinned import PinnedFile, Pins
        file = PinnedFile({len(CONTENT[BIG])}, {sha256(CONTENT[BIG])!r})
        pins = Pins("model", "owner/name", {COMMIT!r}, "-", {{{BIG!r}: file}})
        fetch(pins, Path({str(folder)!r}), progress=lambda path, done, total: done < 150_000 or os._exit(9))
    """
    environment = {**os.environ, **hub.environment}
    assert subprocess.run([sys.executable, "-c", program], env=environment).returncode == 9
    had = len(everything(folder)[f"{PARTS}/{sha256(CONTENT[BIG])}"])
    assert had >= 100_000
    fetch(pinned(), folder, wanted=[BIG], endpoint=hub.url)
    assert hub.requests[-1].headers["range"] == f"bytes={had}-"
    assert everything(folder) == {BIG: CONTENT[BIG]}


@pytest.mark.parametrize("sizes", [True, False])
@pytest.mark.parametrize("had", [CONTENT[BIG], CONTENT[BIG] + b"more"])
def test_a_part_that_needs_no_more_bytes(hub: Hub, folder: Path, sizes: bool, had: bytes) -> None:
    part = folder / PARTS / sha256(CONTENT[BIG])
    part.parent.mkdir(parents=True)
    part.write_bytes(had)
    fetch(pinned(sizes=sizes), folder, wanted=[BIG], endpoint=hub.url)
    assert everything(folder) == {BIG: CONTENT[BIG]}
    assert len(hub.downloads()) == (had != CONTENT[BIG])


def test_a_server_without_ranges_sends_the_whole_again(hub: Hub, folder: Path) -> None:
    hub.drop_at, hub.drops, hub.ranges = 100_000, 1, False
    fetch(pinned(), folder, wanted=[BIG], endpoint=hub.url)
    assert [request.sent for request in hub.downloads()] == [100_000, 307_200]


def test_a_server_that_goes_on_from_elsewhere_is_asked_for_the_whole(hub: Hub, folder: Path) -> None:
    hub.drop_at, hub.drops, hub.start = 100_000, 1, 50_000
    fetch(pinned(), folder, wanted=[BIG], endpoint=hub.url)
    assert everything(folder) == {BIG: CONTENT[BIG]}
    assert [request.status for request in hub.requests] == [200, 206, 200]


def test_refuses_wrong_bytes_and_names_both_digests(hub: Hub, folder: Path) -> None:
    wrong = CONTENT[BIG][:-1] + b"!"
    hub.content[BIG] = wrong
    with pytest.raises(CheckpointError) as caught:
        fetch(pinned(), folder, wanted=[BIG], endpoint=hub.url)
    assert all(word in str(caught.value) for word in (BIG, sha256(wrong), sha256(CONTENT[BIG])))
    assert everything(folder) == {}
    hub.content.clear()
    fetch(pinned(), folder, wanted=[BIG], endpoint=hub.url)
    assert everything(folder) == {BIG: CONTENT[BIG]}


def test_a_spoilt_part_is_removed(hub: Hub, folder: Path, refuses: Refuses) -> None:
    part = folder / PARTS / sha256(CONTENT[BIG])
    part.parent.mkdir(parents=True)
    part.write_bytes(b"?" * 1000)
    with refuses(CheckpointError):
        fetch(pinned(), folder, wanted=[BIG], endpoint=hub.url)
    fetch(pinned(), folder, wanted=[BIG], endpoint=hub.url)
    assert everything(folder) == {BIG: CONTENT[BIG]}


@pytest.mark.parametrize("wrong", [b"short", CONTENT[BIG] + b"!"])
def test_refuses_another_size_before_it_is_sent(hub: Hub, folder: Path, wrong: bytes, refuses: Refuses) -> None:
    hub.content[BIG] = wrong
    with refuses(CheckpointError):
        fetch(pinned(), folder, wanted=[BIG], endpoint=hub.url)
    assert BIG not in everything(folder)


def test_stops_where_more_comes_than_can_be_right(hub: Hub, folder: Path, refuses: Refuses) -> None:
    hub.content[BIG], hub.lengths = CONTENT[BIG] * 200, False
    most = 0

    def watch(path: str, done: int, total: int) -> None:
        nonlocal most
        most = max(most, done)

    with refuses(CheckpointError, vary=r"found \d+ bytes, sha256 \w+"):
        fetch(pinned(), folder, wanted=[BIG], endpoint=hub.url, progress=watch)
    assert most < 2 * len(CONTENT[BIG])
    assert everything(folder) == {}


@pytest.mark.parametrize(
    "status",
    [401, 403, 404, 451, 429, 503],
)
def test_says_what_the_hub_refused(hub: Hub, folder: Path, status: int, refuses: Refuses) -> None:
    hub.drop_at = 100_000
    with pytest.raises(NotAvailableError):
        fetch(pinned(), folder, wanted=[BIG], endpoint=hub.url)
    hub.drop_at, hub.status[BIG] = None, status
    with refuses(NotAvailableError):
        fetch(pinned(), folder, wanted=[BIG], endpoint=hub.url)
    assert len(everything(folder)[f"{PARTS}/{sha256(CONTENT[BIG])}"]) == 100_000


def test_says_that_the_repository_is_not_there(hub: Hub, folder: Path, refuses: Refuses) -> None:
    hub.repositories.clear()
    with refuses(NotAvailableError):
        fetch(pinned(), folder, endpoint=hub.url)


def test_says_that_nobody_answers(folder: Path, refuses: Refuses) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with refuses(NotAvailableError):
            fetch(pinned(), folder, endpoint=f"http://127.0.0.1:{port}")


def test_obeys_the_offline_switch(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, refuses: Refuses) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with refuses(NotAvailableError):
        fetch(pinned(), folder, endpoint=hub.url)
    assert hub.requests == []


def test_says_what_worker_is_needed_before_it_asks(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    usage = namedtuple("usage", "total used free")  # noqa: PYI024
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 90, 10))
    with refuses(NotAvailableError):
        fetch(pinned(), folder, endpoint=hub.url)
    assert hub.requests == []


def test_a_disk_that_fills_up_is_an_error_and_keeps_what_came(hub: Hub, folder: Path, refuses: Refuses) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with refuses(NotAvailableError):
            fetch(pinned(), folder, wanted=[BIG], endpoint=hub.url)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    fetch(pinned(), folder, wanted=[BIG], endpoint=hub.url)
    assert everything(folder) == {BIG: CONTENT[BIG]}
    assert hub.requests[-1].status == 206


@pytest.mark.parametrize("there", [b"", b"other", CONTENT[BIG][:-1], CONTENT[BIG][:-1] + b"!"])
def test_moves_aside_what_is_there_with_other_bytes(hub: Hub, folder: Path, there: bytes) -> None:
    folder.mkdir()
    (folder / BIG).write_bytes(there)
    with pytest.raises(CheckpointError) as caught:
        fetch(pinned(), folder, endpoint=hub.url)
    assert all(word in str(caught.value) for word in (BIG, sha256(there), sha256(CONTENT[BIG])))
    assert everything(folder) == {f"{BIG}.rejected": there}
    fetch(pinned(), folder, endpoint=hub.url)
    assert everything(folder) == {f"{BIG}.rejected": there, **CONTENT}


@pytest.mark.parametrize("where", [BIG, "a folder", PARTS, f"{PARTS}/{sha256(CONTENT[BIG])}"])
def test_refuses_symbolic_links(hub: Hub, folder: Path, tmp_path: Path, where: str, refuses: Refuses) -> None:
    (tmp_path / "elsewhere").mkdir()
    (folder / where).parent.mkdir(parents=True, exist_ok=True)
    (folder / where).symlink_to(tmp_path / "elsewhere")
    with refuses(CheckpointError, vary=re.escape(where), shared=True):
        fetch(pinned(), folder, endpoint=hub.url)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_refuses_what_is_no_plain_file(hub: Hub, folder: Path, refuses: Refuses) -> None:
    (folder / BIG).mkdir(parents=True)
    with refuses(CheckpointError):
        fetch(pinned(), folder, endpoint=hub.url)


def test_a_file_where_a_folder_must_be(hub: Hub, folder: Path, refuses: Refuses) -> None:
    folder.mkdir()
    (folder / "a folder").write_bytes(b"")
    with refuses(NotAvailableError):
        fetch(pinned(), folder, endpoint=hub.url)


@pytest.mark.parametrize("path", ["../escaped", "/escaped", "a/../../escaped", ""])
def test_refuses_a_path_that_leaves_the_folder(hub: Hub, folder: Path, path: str, refuses: Refuses) -> None:
    pins = pinned(more={path: PinnedFile(3, sha256(b"odd"))})
    for ask in (lambda: fetch(pins, folder, endpoint=hub.url), lambda: missing(pins, folder)):
        with refuses(RecipeError):
            ask()


def test_a_name_that_the_disk_cannot_hold(folder: Path, refuses: Refuses) -> None:
    folder.mkdir()
    with refuses(CheckpointError, vary="x{300}"):
        missing(pinned(more={"x" * 300: PinnedFile(3, sha256(b"odd"))}), folder)


def test_only_one_fetch_writes_a_part(hub: Hub, folder: Path, refuses: Refuses) -> None:
    part = folder / PARTS / sha256(CONTENT[BIG])
    part.parent.mkdir(parents=True)
    with part.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with refuses(NotAvailableError):
            fetch(pinned(), folder, endpoint=hub.url)


def test_the_token_goes_to_the_hub_and_nowhere_else(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    hub.token, hub.cdn = "hf_secret", True
    with refuses(NotAvailableError):
        fetch(pinned(), folder, wanted=[BIG], endpoint=hub.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.drop_at, hub.drops = 100_000, 1
    fetch(pinned(), folder, wanted=[BIG], endpoint=hub.url)
    elsewhere = [request for request in hub.requests if request.path.startswith("/cdn/")]
    assert [request.sent for request in elsewhere] == [100_000, 207_200]
    assert not any("authorization" in request.headers for request in elsewhere)
    assert {request.headers["user-agent"] for request in hub.requests} == {"requant"}


def test_reports_how_far_it_is(hub: Hub, folder: Path) -> None:
    told: list[tuple[str, int, int]] = []
    for _ in range(2):
        fetch(pinned(), folder, wanted=[BIG], endpoint=hub.url, progress=lambda *words: told.append(words))
        assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
        assert told[-1] == (BIG, 307_200, 307_200)
        told.clear()


def test_a_mistake_in_the_callers_own_code_is_not_tried_again(hub: Hub, folder: Path) -> None:
    def broken(path: str, done: int, total: int) -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        fetch(pinned(), folder, wanted=[BIG], endpoint=hub.url, progress=broken)
    assert len(hub.requests) == 1


def test_says_what_is_missing_by_size_alone(hub: Hub, folder: Path) -> None:
    assert missing(pinned(), folder).bytes == 317_206
    assert missing(pinned(), folder).files == tuple(CONTENT)
    folder.mkdir()
    (folder / BIG).write_bytes(b"?" * len(CONTENT[BIG]))
    (folder / "config.json").write_bytes(b"?")
    assert missing(pinned(), folder).files == ("model-00002-of-00002.safetensors", "config.json", ODD, "empty")
    left = missing(pinned(sizes=False), folder, wanted=[BIG, ODD])
    assert (left.files, left.bytes, left.unsized) == ((ODD,), 0, (ODD,))


def test_confirms_a_folder_without_the_network_or_its_library(hub: Hub, folder: Path) -> None:
    fetch(pinned(), folder, endpoint=hub.url)
    (folder / "config.json").write_bytes(b"[]\n")
    (folder / ODD).unlink()
    program = f"""if True:
        import sys
        sys.modules["huggingface_hub"] = None
        from pathlib import Path
        from requant.hub.fetch import verify_folder
        from requant.hub.pinned import PinnedFile, Pins
        files = {{p: PinnedFile(*f) for p, f in {[(p, (len(c), sha256(c))) for p, c in CONTENT.items()]!r}}}
        survey = verify_folder(Pins("model", "owner/name", {COMMIT!r}, "-", files), Path({str(folder)!r}))
        assert len(survey.right) == 3 and survey.absent == ({ODD!r},), survey
        assert list(survey.wrong) == ["config.json"]
        assert {sha256(CONTENT["config.json"])!r} in survey.wrong["config.json"]
    """
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_hub_is_what_the_library_expects(hub: Hub, folder: Path) -> None:
    api = HfApi(endpoint=hub.url)
    assert api.model_info("owner/name", revision=COMMIT).sha == COMMIT
    assert api.dataset_info("owner/name").sha == COMMIT
    tree = {entry.path: entry for entry in api.list_repo_tree("owner/name", recursive=True, revision=COMMIT)}
    assert set(tree) == set(CONTENT)
    assert [entry.path for entry in api.get_paths_info("owner/name", [BIG])] == [BIG]
    got = hf_hub_download("owner/name", BIG, revision=COMMIT, local_dir=folder, endpoint=hub.url)
    assert Path(got).read_bytes() == CONTENT[BIG]
    whole = Path(snapshot_download("owner/name", revision=COMMIT, local_dir=folder, endpoint=hub.url))
    assert {path: (whole / path).read_bytes() for path in CONTENT} == CONTENT
