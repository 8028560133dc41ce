"""What is published over Xet, by hf_xet itself to a content store of the tests', and fetched, is the same bytes."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants, snapshot_download
from huggingface_hub.utils._xet import abort_xet_session
from tests import xets
from tests.cases.published import Project, project
from tests.conftest import Refuses
from tests.hub import Hub, only_loopback, running
from tests.processes import LIMIT, started
from tests.test_published import NAME, PUSHING, SHARD, files, prepared, ran, sent

from requant.errors import CheckpointError, NotAvailableError
from requant.published.publication import push

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # how the library uploads


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def ours(tmp_path: Path, shared: Path) -> Project:
    return project(tmp_path / "project", shared)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that offers Xet to a client that has it, and whose cache is nobody else's."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    monkeypatch.setenv("HF_XET_CACHE", str(tmp_path / "xet"))
    monkeypatch.setenv("HF_XET_CLIENT_RETRY_BASE_DELAY", "10ms")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    begin_anew: Callable[[], None] = abort_xet_session  # a session reads the environment when it begins
    begin_anew()
    with only_loopback(monkeypatch, tmp_path), running() as hub:
        monkeypatch.setenv("HF_TOKEN", "hf_write")
        hub.store = tmp_path / "store"
        with xets.running(lambda digest, content: hub.object(digest).write_bytes(content)) as hub.xet:
            yield hub
    begin_anew()


def store(hub: Hub) -> xets.Store:
    assert hub.xet
    return hub.xet


def xorbs(hub: Hub) -> list[str]:
    """Xorbs that came whole, in order."""
    return [
        path for method, path, status, _ in store(hub).asked if (method, status) == ("POST", 200) and "xorb" in path
    ]


def test_what_breaks_off_is_the_same_bytes_in_the_end(hub: Hub, ours: Project, tmp_path: Path) -> None:
    """Sent over Xet, fetched without it, and by the library over it; each is cut in its middle, or refused at first."""
    xet = store(hub)
    xet.cuts, xet.drops = 1, 2
    xet.troubles = {"/shards": [503], "/reconstructions/": [500], "/signed/": [503]}
    sent(hub, ours)
    there = files(hub.head(NAME)[1])
    assert ours.files.items() <= there.items() and len(xorbs(hub)) == 1 and not hub.uploads()  # none by git-lfs
    hub.drop_at, hub.drops = 500_000, 2
    assert ran(hub, "fetch", NAME, "--out", "got").exit_code == 0 and files(Path("got")) == there and not hub.drops
    hub.requests.clear()
    place = snapshot_download(NAME, cache_dir=tmp_path / "hub", endpoint=hub.url, max_workers=2)
    assert files(Path(place)) == there and not xet.cuts + xet.drops and not any(xet.troubles.values())
    assert {each.path.rpartition("/")[2] for each in hub.downloads()}.isdisjoint(
        path for path in there if "model" in path
    )
    sent(hub, ours)
    assert len(xorbs(hub)) == 1  # and where all is there, nothing is sent


def test_without_hf_xet_it_goes_by_lfs(hub: Hub, ours: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    sent(hub, ours)
    assert ours.files.items() <= files(hub.head(NAME)[1]).items() and hub.uploads() and not store(hub).asked


@pytest.mark.parametrize("status", [None, 403, 500])
def test_who_gets_no_leave_to_send(status: int | None, hub: Hub, ours: Project, refuses: Refuses) -> None:
    if status:
        hub.troubles = {"/xet-write-token/": [status] * 20}
    else:
        hub.xet = None
    with refuses(NotAvailableError):
        sent(hub, ours)
    assert not files(hub.head(NAME)[1])


def test_what_came_whole_is_not_sent_again(hub: Hub, ours: Project) -> None:
    store(hub).cuts = 100
    with pytest.raises(NotAvailableError, match="error sending request"):
        sent(hub, ours)
    assert not xorbs(hub) and not files(hub.head(NAME)[1])
    store(hub).cuts, hub.troubles = 0, {"/commit/": [503] * 20}
    with pytest.raises(NotAvailableError, match="503"):
        sent(hub, ours)
    assert len(xorbs(hub)) == 1 and not files(hub.head(NAME)[1])
    hub.troubles = {}
    sent(hub, ours)
    assert len(xorbs(hub)) == 1 and ours.files.items() <= files(hub.head(NAME)[1]).items()


@pytest.mark.full
def test_a_file_that_changes_after_it_was_verified_is_not_committed(hub: Hub, ours: Project, refuses: Refuses) -> None:
    publication = prepared(hub, ours)
    shard = bytearray((ours.checkpoint / SHARD).read_bytes())
    shard[-1] ^= 1
    (ours.checkpoint / SHARD).write_bytes(shard)
    with refuses(CheckpointError):
        push(publication, message="no", endpoint=hub.url)
    assert not files(hub.head(NAME)[1])


@pytest.mark.full
def test_killed_at_any_moment_it_goes_on(hub: Hub, ours: Project) -> None:
    environment = {**os.environ, **hub.environment, "HF_HUB_DISABLE_XET": "0"}
    command = (sys.executable, "-c", PUSHING, ours.checkpoint, ours.recipe.path.parent)
    for moment in ("/xorb-grants/", "/xorbs/", "/shards"):
        before = len(store(hub).asked)
        with started(command, env=environment) as process:
            while process.poll() is None and not any(moment in path for _, path, _, _ in store(hub).asked[before:]):
                time.sleep(0.001)
            os.kill(process.pid, signal.SIGKILL)
    with started(command, env=environment) as process:
        assert process.wait(LIMIT) == 0
    assert ours.files.items() <= files(hub.head(NAME)[1]).items()
