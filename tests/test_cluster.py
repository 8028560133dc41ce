"""A worker pool on a real Ray cluster of two nodes, one core each: what is lost is tuned elsewhere, and no verdict
changes."""

import gc
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT
from tests.processes import awaited

from requant.audit import audit, cluster, local, same_hardware
from requant.audit.cluster import ATTEMPTS, Cluster, make_pool
from requant.audit.pool import Setting, prepare
from requant.audit.ray_worker import Order, Worker, order
from requant.audit.references import reference
from requant.audit.retuned import Audit, Judgement
from requant.build import Built, beside
from requant.build.inputs import tiny_inputs
from requant.environment.install import cache
from requant.errors import BuildError, NotAvailableError, RecipeError, UsageError
from requant.progress import Progress, silent
from requant.protocol import REPORT, Report, write
from requant.recipe import read_recipe

Nodes = Any


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Two nodes on this machine, as far apart as Ray's own tests have them; nothing is told to anybody outside."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray's; 15 otherwise, and other tests would starve the workers)
    started = _started(3)
    yield started
    started.shutdown()


def _started(tries: int) -> Nodes:
    """Ray gives a node 30 seconds to start and no way to say more, which is too few where others use the machine."""
    from ray.cluster_utils import Cluster as Local

    small = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}
    try:
        started = Local(initialize_head=True, head_node_args=small)
        started.add_node(num_cpus=1, object_store_memory=100_000_000)
    except Exception as error:
        if tries > 1 and "timed out during startup" in str(error):
            return _started(tries - 1)
        raise
    return started


@pytest.fixture(scope="module")
def setting(worker: Path, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """What a worker of the tiny model mini of EC is given."""
    recipe = read_recipe(ROOT / "builds" / "ec")
    return prepare(recipe, "mini", tiny_inputs(recipe, "mini", tmp_path_factory.mktemp("given"), silent), silent)


@pytest.fixture
def block_inputs(tmp_path: Path) -> Path:
    """Something to give, of more chunks than one."""
    folder = tmp_path / "00002"
    folder.mkdir()
    (folder / "full.safetensors").write_bytes(bytes(range(250)))
    (folder / "inputs.json").write_bytes(b"{}")
    return folder


def taken(pool: Cluster) -> dict[int, Path]:
    """What the worker pool has tuned, as soon as there is something."""
    found: dict[int, Path] = {}
    assert awaited(lambda: found.update(pool.take()) or found), "nothing was tuned"
    return found


def given(pool: Cluster, number: int, block_inputs: Path) -> None:
    """Give a block as soon as a worker is free."""
    assert awaited(lambda: pool.free() or list(pool.take())), "no worker became free"
    assert pool.free(), "something was tuned instead"
    pool.give(number, block_inputs)


def working(with_name: str) -> list[str]:
    """The command lines of all processes that speak of a path."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(process.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue  # it ended meanwhile
    return [line for line in found if with_name in line]


def stand_in(monkeypatch: pytest.MonkeyPatch, tune: Callable[[int, dict[str, bytes]], dict[str, bytes]]) -> None:
    """Put a worker without a worker in the place of the real one: `tune` gets a block's files, and returns its
    answer."""

    class Quick:
        def __init__(self, _: Order, get: Callable[[Any], Any]) -> None:
            self.get = get

        def prepare(self) -> None: ...

        def leave(self) -> None: ...

        def tune(self, number: int, files: dict[str, list[Any]]) -> dict[str, Any]:
            import numpy as np

            answer = tune(number, {name: b"".join(map(bytes, map(self.get, each))) for name, each in files.items()})
            return {name: np.frombuffer(data, np.uint8) for name, data in answer.items()}

    monkeypatch.setattr(cluster, "Worker", Quick)


def test_files_arrive_whole_through_the_object_store_and_nothing_stays_in_it(
    nodes: Nodes, setting: Setting, block_inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def held() -> int:
        from ray._private.worker import global_worker  # what ray memory prints has no other door

        return len(global_worker.core_worker.get_all_reference_counts())

    monkeypatch.setattr(cluster, "CHUNK", 100)
    stand_in(monkeypatch, lambda _, files: {**files, "said": b"".join(files.values())})
    with make_pool(nodes.address, None, None)(setting, tmp_path / "pool") as pool:
        sent = {path.name: path.read_bytes() for path in block_inputs.iterdir()}
        while not pool.free():
            assert not list(pool.take())
        before = held()
        given(pool, 2, block_inputs)
        assert not block_inputs.exists()
        assert held() >= before + 4  # three chunks of one file, one of the other
        (number, answer), *others = taken(pool).items()
        assert number == 2 and not others
        assert {path.name: path.read_bytes() for path in answer.iterdir()} == {
            **sent,
            "said": bytes(range(250)) + b"{}",
        }
        assert not pool.at_work
        gc.collect()
        assert held() <= before


def died(_number: int, _files: dict[str, bytes]) -> dict[str, bytes]:
    os._exit(1)


def failed(_number: int, _files: dict[str, bytes]) -> dict[str, bytes]:
    raise BuildError("the worker ended with status 9", "Its own advice.")


@pytest.mark.parametrize(
    ("tune", "reason"),
    [(died, "The actor died"), pytest.param(failed, "the worker ended with status 9", marks=pytest.mark.full)],
)
def test_a_block_that_nobody_can_tune_is_given_up_with_every_reason(
    nodes: Nodes,
    setting: Setting,
    block_inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tune: Any,
    reason: str,
) -> None:
    stand_in(monkeypatch, lambda number, files: tune(number, files))
    with (
        make_pool(nodes.address, None, None)(setting, tmp_path / "pool") as pool,
        pytest.raises(BuildError, match="block 2 was given to 3 workers") as error,
    ):
        given(pool, 2, block_inputs)
        taken(pool)
    assert str(error.value).count(reason) == ATTEMPTS
    if tune is failed:
        assert error.value.advice == "Its own advice."


def test_a_block_that_failed_is_given_to_another_node(
    nodes: Nodes, setting: Setting, block_inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed_on = tmp_path / "failed"

    def tune(_number: int, _files: dict[str, bytes]) -> dict[str, bytes]:
        import ray

        here = ray.get_runtime_context().get_node_id()
        if not failed_on.exists():
            failed_on.write_text(here)
            raise BuildError("once")
        return {"node": here.encode()}

    stand_in(monkeypatch, tune)
    with make_pool(nodes.address, None, None)(setting, tmp_path / "pool") as pool:
        given(pool, 2, block_inputs)
        ((_, answer),) = taken(pool).items()
        tuned_on = (answer / "node").read_text()
    assert {tuned_on, failed_on.read_text()} == {each.node_id for each in nodes.list_all_nodes()}


def test_a_node_with_another_requant_is_refused_and_nothing_of_it_stays(setting: Setting) -> None:
    asked = order(setting, None)
    worker = Worker(replace(asked, environment="0" * 64), lambda ticket: ticket)
    with pytest.raises(NotAvailableError, match="makes another environment here") as error:
        worker.prepare()
    assert "Every node needs the requant" in error.value.advice
    place = cache() / "workers"
    assert len(list(place.glob("*/"))) == 1
    worker.leave()
    assert not list(place.glob("*/"))


def test_what_a_killed_worker_left_is_removed_by_the_next_one(setting: Setting) -> None:
    left = cache() / "workers" / "worker-killed"
    left.mkdir(parents=True)
    (left / "lock").touch()
    worker = Worker(replace(order(setting, None), base_digest="0" * 64), lambda ticket: ticket)
    with pytest.raises(NotAvailableError, match="makes another base here"):
        worker.prepare()
    worker.leave()
    assert not left.exists()


@pytest.mark.full
def test_an_error_of_a_node_that_prepares_itself_is_raised_at_once(
    nodes: Nodes, setting: Setting, tmp_path: Path
) -> None:
    other = replace(setting, environment=replace(setting.environment, digest="0" * 64))
    with (
        make_pool(nodes.address, 1, None)(other, tmp_path / "pool") as pool,
        pytest.raises(NotAvailableError, match="makes another environment here"),
    ):
        taken(pool)


def test_files_of_a_recipe_lie_below_one_folder(setting: Setting, tmp_path: Path) -> None:
    outside = replace(setting.recipe.base, files=str(tmp_path / "base.json"))
    with pytest.raises(RecipeError, match=r"names .*base\.json"):
        order(replace(setting, tiny=None, recipe=replace(setting.recipe, base=outside)), None)


@pytest.mark.parametrize(
    ("address", "error", "words"),
    [
        ("127.0.0.1:9", NotAvailableError, "Connection refused"),
        ("ray://127.0.0.1:10001", UsageError, "expected HOST:PORT"),
        ("somewhere", UsageError, "expected HOST:PORT"),
    ],
)
def test_an_address_that_does_not_answer_is_said_soon(
    address: str, error: type[Exception], words: str, setting: Setting, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        make_pool(address, None, None)(setting, tmp_path / "pool")


def test_without_an_address_and_a_cluster_here_it_is_said_how_to_have_one(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(*_: object, **__: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr("ray.init", nowhere)  # it would find this module's own
    with pytest.raises(NotAvailableError, match="no Ray cluster here: Could not find any") as error:
        make_pool(None, None, None)(setting, tmp_path / "pool")
    assert "ray start --address" in error.value.advice


def test_without_ray_it_is_said_how_to_have_it(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(NotAvailableError, match="Ray is not installed here"):
        make_pool(None, None, None)(setting, tmp_path / "pool")


def test_a_worker_takes_a_gpu_where_the_recipe_does(nodes: Nodes, setting: Setting, tmp_path: Path) -> None:
    with pytest.raises(NotAvailableError, match="each takes 1 of CPU, 1 of GPU"):
        make_pool(nodes.address, None, None)(replace(setting, tiny=None), tmp_path / "pool")


def test_an_audit_speaks_of_one_hardware_class(tmp_path: Path) -> None:
    for name, model in (("chain", "one"), ("answer", "other")):
        (tmp_path / name).mkdir()
        write(tmp_path / name / REPORT, Report({"model": model}, {}, (), ""))
    assert same_hardware(tmp_path / "chain", tmp_path / "chain") == {"model": "one"}
    with pytest.raises(BuildError, match=r"another hardware class .* model is 'other', here 'one'"):
        same_hardware(tmp_path / "chain", tmp_path / "answer")


def test_ended_early_it_leaves_nothing(nodes: Nodes, setting: Setting, block_inputs: Path, tmp_path: Path) -> None:
    place = str(cache() / "workers")
    with pytest.raises(KeyboardInterrupt), make_pool(nodes.address, 1, None)(setting, tmp_path / "pool") as pool:
        given(pool, 2, block_inputs)
        assert awaited(lambda: working(place))
        raise KeyboardInterrupt
    assert not working(place)
    assert not list(Path(place).glob("*/"))


@pytest.mark.full
@pytest.mark.worker
def test_a_node_is_lost_midway_and_the_verdicts_are_those_of_this_machine(
    nodes: Nodes, setting: Setting, built: Callable[[str], Built], tmp_path: Path
) -> None:
    checkpoint = built("ec").folder
    lost: dict[int, str] = {}
    pools: list[Cluster] = []

    def run(hired: Any, tell: Callable[[Progress], None]) -> Audit:
        return audit(
            checkpoint,
            setting,
            reference(beside(checkpoint, "journal.jsonl")),
            chosen=(0, 1, 2, 3),
            challenge=None,
            auditor="somebody",
            make_pool=hired,
            work=tmp_path / "work",
            tell=tell,
        )

    def hired(setting: Setting, folder: Path) -> Cluster:
        pools.append(make_pool(nodes.address, None, None)(setting, folder))
        assert pools[0].size == 2
        return pools[0]

    def kill(told: Progress) -> None:
        """Kill the second node while it tunes, once something was tuned anywhere."""
        if told.stage == "audit" and told.done and not lost:
            (second,) = nodes.worker_nodes
            lost.update(
                {number: each.name for number, each in pools[0].at_work.items() if each.identifier == second.node_id}
            )
            if lost:
                second.kill_raylet(check_alive=False)

    there = run(hired, kill)
    assert lost, "the second node never had a block"
    assert all(each.judgement is Judgement.IDENTICAL for each in there.blocks)
    assert not working(str(cache() / "workers"))
    here = run(local(2), silent)
    assert replace(there, finished=here.finished) == here
