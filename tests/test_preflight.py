"""What a full build lacks is named disk by disk."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.conftest import ROOT

from requant.building import preflight
from requant.network.pinned import read_pins
from requant.recipe import read_recipe

GIB = preflight.GIB
BASE, SPOOL = 67, 33
"""GiB, rounded: the base, and what a build goes on with after it was stopped."""


@pytest.mark.parametrize(
    ("one_disk", "free", "lacking"),
    [
        (True, 2 * BASE + SPOOL, []),
        (True, 2 * BASE + SPOOL - 2, [f"disk: {2 * BASE + SPOOL - 1} GiB under "]),
        (False, BASE + SPOOL, []),
        (False, BASE + 1, [f"disk: {BASE + SPOOL - 1} GiB under "]),
        (False, BASE - 1, [f"disk: {BASE} GiB under ", f"disk: {BASE + SPOOL - 1} GiB under "]),
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
    assert found.disk_bytes == 2 * found.download_bytes + preflight.spool_bytes(recipe)
