"""Which worker is taken, and that the bytes are the same in each."""

import json
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.conftest import ROOT, Refuses

from requant.build import Built, beside, build
from requant.environment import Environment
from requant.environment.identity import worker_sources
from requant.environment.image.engine import CHOSEN, Engine
from requant.environment.image.evidence import Image
from requant.environment.image.refusals import explained
from requant.errors import LockError, NotAvailableError, UsageError
from requant.programs import Accelerator
from requant.progress import Progress, silent
from requant.recipe import read_recipe
from requant.sandbox import choice as workers
from requant.sandbox import in_place, preflight
from requant.sandbox.choice import Chosen, choose
from requant.sandbox.in_place import this_image
from requant.sandbox.running import VirtualEnvironment
from requant.verdict import Outcome

EC = read_recipe(ROOT / "builds" / "ec")
CPU, GPU = (Environment.load(EC.lockfiles, name) for name in ("cpu", "cu124"))
LOCK = CPU.lock
PYTHON = Path("environment", "bin", "python")


@pytest.fixture
def no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without container engines, whose virtual environments are made already."""
    monkeypatch.delenv(CHOSEN, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(workers, "virtual_environment", lambda *_: PYTHON)
    monkeypatch.setattr(workers, "isolation", lambda: ("unshare",))


@pytest.mark.usefixtures("no_engine")
def test_without_an_engine_it_is_a_virtual_environment() -> None:
    told: list[Progress] = []
    chosen = choose(EC, "mini", CPU, "auto", told.append)
    assert chosen == choose(EC, "mini", CPU, "venv", told.append)
    worker = VirtualEnvironment(PYTHON, ("unshare",), bytecode=PYTHON.parents[1] / "bytecode")
    assert chosen == Chosen(worker, {"kind": "venv"})
    assert [each.stage for each in told] == [
        "sandbox: a virtual environment, because no container is available: docker: no such program, so there "
        "is no container engine to run the worker",
        "sandbox: a virtual environment",
    ]


@pytest.mark.usefixtures("no_engine")
def test_the_worker_is_given_the_gpu_that_was_looked_at(monkeypatch: pytest.MonkeyPatch, refuses: Refuses) -> None:
    """A tiny model needs none, and nobody looks for one."""
    monkeypatch.setattr(preflight, "accelerators", lambda: [Accelerator("NVIDIA H200", "GPU-7f", 143771, 143000)])
    worker = choose(EC, None, GPU, "venv", silent).sandbox
    assert worker == VirtualEnvironment(PYTHON, ("unshare",), "GPU-7f", PYTHON.parents[1] / "bytecode")
    monkeypatch.setattr(preflight, "accelerators", list)
    with refuses(NotAvailableError):
        choose(EC, None, GPU, "venv", silent)
    assert choose(EC, "mini", CPU, "venv", silent).sandbox.accelerator == ""


@pytest.mark.usefixtures("no_engine")
def test_what_is_asked_for_and_not_there_is_refused(refuses: Refuses) -> None:
    with refuses(UsageError):
        choose(EC, "mini", CPU, "cloud", silent)
    with refuses(NotAvailableError):
        choose(EC, "mini", CPU, "podman", silent)
    if not (in_place.PLACE / "environment").exists():
        with pytest.raises(NotAvailableError):
            choose(EC, "mini", CPU, "in-place", silent)


@pytest.mark.parametrize("sandbox", ["auto", "docker", "venv", "in-place"])
def test_another_machines_lock_is_refused_before_anything_is_made(
    sandbox: str, monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    monkeypatch.setattr("requant.environment.install.platform", SimpleNamespace(machine=lambda: "riscv64"))
    with refuses(NotAvailableError):
        choose(EC, "mini", CPU, sandbox, silent)


def test_an_engine_does_not_excuse_a_stale_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` falls back where a container cannot be had, not where something is wrong."""
    monkeypatch.setattr(workers, "find", lambda: Engine(("docker",), "docker", "99", rootless=False))

    said = "#9 ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n#9     six==1.17.0 from"
    for error in (LockError("six: not the wheel that the lock states"), explained("docker", said)):

        def altered(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(workers, "ensure_image", altered)
        with pytest.raises(LockError, match="six"):
            choose(EC, "mini", CPU, "auto", silent)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """What an image has below /opt, without the packages' contents."""
    (tmp_path / "environment" / "bin").mkdir(parents=True)
    (tmp_path / "environment" / "bin" / "python").touch()
    packages = tmp_path / "environment" / "lib" / "python3.11" / "site-packages"
    for pin in LOCK.pins:
        (packages / f"{pin.name.replace('-', '_')}-{pin.version}.dist-info").mkdir(parents=True)
    for name, data in worker_sources().items():
        path = tmp_path / "requant" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path


def test_in_place_the_worker_is_what_it_must_be(place: Path) -> None:
    assert this_image(LOCK, place).python == place / "environment" / "bin" / "python"


def test_in_place_an_altered_source_is_refused(place: Path, refuses: Refuses) -> None:
    (place / "requant" / "requant" / "worker" / "stray.py").touch()
    with refuses(LockError):
        this_image(LOCK, place)
    (place / "requant" / "requant" / "worker" / "stray.py").unlink()
    with (place / "requant" / "requant" / "worker" / "autoround" / "tuning.py").open("a") as file:
        file.write("# A comment makes no other worker.\n")
    this_image(LOCK, place)
    with (place / "requant" / "requant" / "worker" / "autoround" / "tuning.py").open("a") as file:
        file.write("EXTRA = 1\n")
    with refuses(LockError):
        this_image(LOCK, place)


def test_in_place_other_packages_are_refused(place: Path, refuses: Refuses) -> None:
    packages = place / "environment" / "lib" / "python3.11" / "site-packages"
    (six,) = packages.glob("six-*")
    six.rename(packages / "six-1.0.dist-info")
    with refuses(LockError):
        this_image(LOCK, place)
    (packages / "six-1.0.dist-info").rename(six)
    (packages / "stray-1.dist-info").mkdir()
    with refuses(LockError):
        this_image(LOCK, place)
    (packages / "stray-1.dist-info").rmdir()
    six.rmdir()
    with refuses(LockError):
        this_image(LOCK, place)


@pytest.mark.parametrize(
    ("prefix", "links", "flags", "taints"),
    [
        ((), ["lo"], os.ST_RDONLY, []),
        ((), ["lo", "eth0"], os.ST_RDONLY, ["network: eth0"]),
        (("unshare", "--net"), ["lo", "eth0"], os.ST_RDONLY, []),
        ((), ["lo"], 0, ["root file system: writable"]),
    ],
)
def test_in_place_what_is_not_shut_in_is_a_taint(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    prefix: Sequence[str],
    links: list[str],
    flags: int,
    taints: list[str],
) -> None:
    monkeypatch.setattr(in_place, "isolation", lambda: prefix)
    monkeypatch.setattr(socket, "if_nameindex", lambda: list(enumerate(links)))
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=flags))
    assert list(this_image(LOCK, place).taints) == ["image: nothing outside the worker says which one it is", *taints]


@pytest.mark.engine
@pytest.mark.parametrize(
    ("options", "taints"),
    [
        (("--network", "none", "--read-only"), set()),
        (("--network", "none"), {"root file system: writable"}),
        (("--network", "host", "--read-only"), {"network"}),
    ],
)
def test_in_place_in_the_real_image(image: Image, builder: Engine, options: Sequence[str], taints: set[str]) -> None:
    program = (
        "import sys; from pathlib import Path; from requant.environment.lock import read_lock\n"
        "from requant.sandbox.in_place import this_image; "
        "print(*this_image(read_lock(Path('/lockfiles'), 'cpu')).taints, sep='\\n')"
    )
    words = ["run", "--rm", "--pull", "never", *options, "--env", "PYTHONPATH=/host", "--cap-drop", "ALL"]
    for source, target in ((ROOT / "src", "/host"), (ROOT / "lockfiles", "/lockfiles")):
        words += ["--mount", f"type=bind,source={source},target={target},readonly"]
    words += ["--entrypoint", "/opt/environment/bin/python", image.reference, "-s", "-P", "-c", program]
    first, *others = builder.ask(*words).splitlines()
    assert first.startswith("image: ")
    assert {each if each.startswith("root") else each.partition(":")[0] for each in others} == taints


@pytest.mark.engine
@pytest.mark.worker
def test_the_tiny_model_in_its_image_is_the_recorded_one(
    image: Image, builder: Engine, built: Callable[[str], Built], tmp_path: Path
) -> None:
    """Without network, on a read-only root, from another installation of the lock: the same bytes."""
    inside, outside = build(EC, tiny="mini", out=tmp_path / "ec", sandbox=builder.kind), built("ec")
    assert inside.verdict.outcome is Outcome.IDENTICAL
    for name in ("manifest.json", "journal.jsonl"):
        assert beside(inside.folder, name).read_bytes() == beside(outside.folder, name).read_bytes()
    assert inside.taints == (*outside.taints, *image.taints)
    statement = json.loads(beside(inside.folder, "intoto.jsonl").read_text())
    said = statement["predicate"]["buildDefinition"]["internalParameters"]["sandbox"]
    evidence = image.evidence
    assert (said["kind"], said["version"]) == (builder.kind, builder.version)
    assert (said["image"]["config"], said["image"]["rootfs"]) == (evidence.config, evidence.rootfs)
