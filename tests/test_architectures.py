"""Bases of other architectures, from `new` to `audit`: what works for those of tests/test_new.py works for these."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT
from tests.owned import base, computes, hold

from requant.build import build, record
from requant.checkpoint.checkpoint import write_checkpoint
from requant.checkpoint.safetensors import Spec
from requant.inspect.headers import read_headers
from requant.model.tiny import stand_in
from requant.new import new
from requant.recipe import Recipe

pytestmark = [pytest.mark.full, pytest.mark.worker]

CORPUS = ("mixtral", "phi3", "gemma3", "gptoss")
FILE = ROOT / "tests" / "architectures.json"
OTHERS = {name: value for name, value in json.loads(FILE.read_text()).items() if name != "generator"}


def made(name: str, folder: Path, ask: Callable[..., Any]) -> Path:
    """Write a base of a class: its tensors as transformers saves them, and what its real files hold beside."""
    ask("saved", FILE, name, folder / "saved")
    saved, value = read_headers(folder / "saved"), OTHERS[name]
    specs = {tensor: spec for inside in saved.shards.values() for tensor, spec in inside.items()}
    for wrong, right in value.get("renamed", {}).items():  # as transformers 5.5.1 saves them, and no real file has them
        specs = {tensor.replace(wrong, right): spec for tensor, spec in specs.items()}
    for block, other in value.get("like", {}).items():
        specs |= {each.replace(block, other): spec for each, spec in specs.items() if each.startswith(block)}
    specs |= {each: Spec("BF16", tuple(shape)) for each, shape in value.get("beside", {}).items()}
    config = saved.object("config.json")
    assert config
    stored = stand_in("mini", config, specs, zero_centred=False, tied=value.get("tied", {}))
    write_checkpoint(stored, folder / "model")
    return folder / "model"


@pytest.fixture(scope="module", params=[*CORPUS, *OTHERS])
def own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, ask: Callable[..., Any]) -> Recipe:
    """A recipe of one's own, for a base of this architecture."""
    folder = tmp_path_factory.mktemp(request.param)
    model = base(request.param, folder / "model") if request.param in CORPUS else made(request.param, folder, ask)
    return new(str(model), "mine", folder / "project", environment="cpu", sandbox="venv").recipe


@pytest.fixture(scope="module")
def first(own: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of its tiny model mini, recorded."""
    folder = build(own, tiny="mini", out=tmp_path_factory.mktemp("first") / "built").folder
    record(own, "mini", folder)
    return folder


def test_it_is_built_twice_resumed_checked_and_audited(own: Recipe, first: Path, tmp_path: Path) -> None:
    hold(own, first, tmp_path)


def test_transformers_computes_with_the_weights_that_the_files_decode_to(
    own: Recipe, first: Path, ask: Callable[..., Any], tmp_path: Path
) -> None:
    computes(own, first, ask, tmp_path)
