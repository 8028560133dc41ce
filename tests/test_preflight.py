"""What a full build lacks is named disk by disk."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.conftest import ROOT, Refuses

from requant.build.inputs import inputs_for
from requant.cli.audit import INSTEAD
from requant.errors import NotAvailableError
from requant.hub.pinned import read_pins
from requant.programs import Accelerator, accelerators
from requant.progress import silent
from requant.recipe import Hardware, read_recipe
from requant.sandbox import preflight

GIB = preflight.GIB
BASE, RESUME = 67, 33
"""GiB, rounded: the base, and what a build goes on with after it was stopped."""


@pytest.mark.parametrize(
    ("one_disk", "free", "lacking"),
    [
        (True, 2 * BASE + RESUME, []),
        (True, 2 * BASE + RESUME - 2, [f"disk: {2 * BASE + RESUME - 1} GiB under "]),
        (False, BASE + 1, [f"disk: {BASE + RESUME - 1} GiB under "]),
        (False, BASE - 1, [f"disk: {BASE} GiB under ", f"disk: {BASE + RESUME - 1} GiB under "]),
    ],
)
def test_cache_and_output_may_lie_on_two_disks(
    one_disk: bool, free: int, lacking: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free * GIB))
    recipe = read_recipe(ROOT / "builds" / "ec")
    pins = read_pins(recipe.beside(recipe.base.files))
    cache = tmp_path if one_disk else Path("/dev/shm")  # noqa: S108 (another file system than the test's own)
    assert cache.stat().st_dev == tmp_path.stat().st_dev or not one_disk
    found = preflight.cost(recipe, [(pins, cache / "none" / "base", list(pins.files))], tmp_path / "none" / "out")
    disks = [each for each in found.lacking if each.startswith("disk")]
    assert len(disks) == len(lacking)
    assert all(said.startswith(expected) for said, expected in zip(disks, lacking, strict=True))
    assert found.download_bytes == preflight.stored([pins])
    assert found.disk_bytes == 2 * found.download_bytes + preflight.resume_bytes(recipe)


NAMED = "NVIDIA H200"
UUIDS = ("GPU-11111111-aaaa", "GPU-22222222-bbbb", "GPU-33333333-cccc")


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a stand-in for nvidia-smi on the path, which prints these lines where it is asked for the right columns."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def say(*lines: str, status: int = 0) -> None:
        asked = "--query-gpu=name,uuid,memory.total,memory.free --format=csv,noheader,nounits"
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        text = "".join(f"{line}\n" for line in lines)
        program.write_text(f'#!/bin/sh\n[ "$*" = "{asked}" ] || exit 9\ncat <<"END"\n{text}END\nexit {status}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")

    return say


def available(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gib: int) -> None:
    (tmp_path / "meminfo").write_text(f"MemTotal: {119 << 20} kB\nMemFree: 0 kB\nMemAvailable: {gib << 20} kB\n")
    monkeypatch.setattr(preflight, "MEMORY", tmp_path / "meminfo")


def hardware(name: str) -> Hardware:
    return read_recipe(ROOT / "builds" / name).hardware


def test_a_gb10_has_memory_though_its_driver_does_not_say(
    smi: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    """It shares the host's, so what both take must be available there."""
    smi(f"NVIDIA GB10, {UUIDS[0]}, [N/A], [N/A]")
    gb10 = hardware("gb10")
    assert accelerators() == [Accelerator("NVIDIA GB10", UUIDS[0], None, None)]
    available(monkeypatch, tmp_path, gb10.memory_gib + gb10.host_memory_gib)
    assert preflight.accelerator(gb10).uuid == UUIDS[0]
    available(monkeypatch, tmp_path, gb10.memory_gib + gb10.host_memory_gib - 1)
    with refuses(NotAvailableError):
        preflight.accelerator(gb10)


def test_memory_that_is_taken_does_not_count(smi: Callable[..., None], refuses: Refuses) -> None:
    """AutoRound lays out the model by what is free."""
    smi(f"{NAMED}, {UUIDS[0]}, 143771, 81919")
    with refuses(NotAvailableError):
        preflight.accelerator(hardware("ec"))
    smi(f"{NAMED}, {UUIDS[0]}, 143771, 81920")
    assert preflight.accelerator(hardware("ec")).uuid == UUIDS[0]


def test_of_several_the_freest_of_the_right_name_is_taken(smi: Callable[..., None]) -> None:
    smi(
        f"NVIDIA H100 80GB HBM3, {UUIDS[0]}, 999999, 999999",
        f"{NAMED}, {UUIDS[1]}, 143771, 90000",
        f"{NAMED}, {UUIDS[2]}, 143771, 143000",
    )
    assert preflight.accelerator(hardware("ec")).uuid == UUIDS[2]


@pytest.mark.parametrize(
    ("visible", "seen"),
    [("1", (1,)), ("0,2", (0, 2)), ("GPU-2222", (1,)), (UUIDS[2], (2,)), ("", ()), ("-1", ()), ("MIG-1", ())],
)
def test_only_gpus_that_this_process_may_use_are_looked_at(
    smi: Callable[..., None], monkeypatch: pytest.MonkeyPatch, visible: str, seen: tuple[int, ...]
) -> None:
    """Slurm gives a job some of a node's GPUs by this variable, and the driver's tool shows all."""
    smi(*(f"{NAMED}, {uuid}, 143771, 143000" for uuid in UUIDS))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [each.uuid for each in accelerators()] == [UUIDS[number] for number in seen]


def test_the_advice_is_about_gpus_where_there_are_some(smi: Callable[..., None], refuses: Refuses) -> None:
    smi(f"{NAMED}, {UUIDS[0]}, 143771, 1")
    with refuses(NotAvailableError):
        preflight.accelerator(hardware("ec"))
    smi()
    with refuses(NotAvailableError):
        preflight.accelerator(hardware("ec"))


@pytest.mark.parametrize("given", [True, False])
def test_an_audit_of_the_full_model_is_sent_to_no_tiny_model(
    smi: Callable[..., None], given: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    """The tiny model is another checkpoint, and would say nothing of this one. It is refused before anything is
    fetched."""
    smi()
    monkeypatch.setattr("requant.build.inputs.fetch", lambda *_, **__: pytest.fail("fetches"))
    recipe = read_recipe(ROOT / "builds" / "ec")
    with refuses(NotAvailableError):
        inputs_for(recipe, None, tmp_path if given else None, tmp_path, silent, INSTEAD)


def test_a_tool_that_fails_or_raves_shows_no_gpu(smi: Callable[..., None], refuses: Refuses) -> None:
    for lines, status in (((), 0), (("NVIDIA-SMI has failed",), 0), ((f"{NAMED}, {UUIDS[0]}, 1, 1",), 9)):
        smi(*lines, status=status)
        with refuses(NotAvailableError):
            preflight.accelerator(hardware("ec"))


def test_a_name_may_hold_commas(smi: Callable[..., None]) -> None:
    smi(f"{NAMED}, the second, {UUIDS[0]}, 143771, 143000")
    assert preflight.accelerator(hardware("ec")).name == f"{NAMED}, the second"
