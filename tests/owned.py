"""What holds for every base of one's own: built twice, once stopped on the way, checked, audited, and not believed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT
from tests.test_worker import FLOAT16, FLOAT32, TERMS, bound

import requant.audit
from requant.audit.pool import prepare
from requant.audit.references import known
from requant.build import build, record
from requant.build.inputs import tiny_inputs
from requant.check import check
from requant.check.checked import Checked
from requant.check.findings import TUNED
from requant.check.reader import open_reader
from requant.checkpoint.checkpoint import open_checkpoint, write_checkpoint
from requant.checkpoint.safetensors import Spec
from requant.model.target import Target, target_of, tiny_model
from requant.model.tiny import stand_in
from requant.progress import Progress, silent
from requant.recipe import Recipe
from requant.verdict import Outcome

PROJECTIONS = 5
"""The longest path through a block has as many packed weights: three of DeepSeek's attention, up and down."""


def base(name: str, folder: Path) -> Path:
    """Write a base with configuration and tensors of one of the corpus; its weights are the stream's."""
    value = json.loads((ROOT / "tests" / "corpus" / f"base-{name}.json").read_text())
    specs: dict[str, Spec] = {}
    for inside in value["tensors"].values():
        for tensor, text in inside.items():
            dtype, *shape = text.split()
            specs[tensor] = Spec(dtype, tuple(map(int, shape)))
    write_checkpoint(stand_in("mini", value["sides"]["config.json"], specs, zero_centred=False), folder)
    return folder


def alter(folder: Path, name: str, edit: Callable[[bytes], bytes]) -> None:
    """Change the bytes of a tensor."""
    checkpoint = open_checkpoint(folder)
    file = next(file for file, held in checkpoint.shards.items() if name in held)
    before, data = checkpoint.shards[file][name].read(), (folder / file).read_bytes()
    assert data.count(before) == 1
    (folder / file).write_bytes(data.replace(before, edit(before)))


def built_and_recorded(own: Recipe, folder: Path) -> Path:
    """Build the tiny model mini of a recipe of one's own, record it beside the recipe, and return the checkpoint."""
    made = build(own, tiny="mini", out=folder / "built", keep_raw=True).folder
    record(own, "mini", made)
    return made


def found_within_reach(own: Recipe, first: Path, layer: str, block: str, folder: Path) -> None:
    """Change a code of a layer of the block that is tuned last, so that it stays within reach: an audit finds it."""
    setting = prepare(own, "mini", tiny_inputs(own, "mini", folder / "inputs", silent), silent, "venv")

    def checked(built: Path) -> Checked:
        with open_reader(str(built)) as theirs, open_reader(str(setting.inputs.base)) as ours:
            return check(theirs, ours, recipe=own, tiny=True)

    def one_off(at: int) -> Callable[[bytes], bytes]:
        return lambda data: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    assert checked(first).layers[layer] == TUNED
    copy = folder / "altered"
    for at in range(0, 400, 4):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(first, copy)
        alter(copy, f"{layer}.qweight", one_off(at))
        if checked(copy).clean:
            break
    else:
        pytest.fail("no code of the first hundred can be changed within reach")
    last = len(setting.names) - 1
    audited = requant.audit.audit(
        copy,
        setting,
        known(own, "mini", first),
        chosen=(last - 1, last),
        challenge=None,
        auditor="tests",
        make_pool=requant.audit.local(1),
        work=folder / "work",
    )
    assert {each.index: str(each.judgement) for each in audited.blocks} == {last - 1: "identical", last: "different"}
    assert audited.first_divergence == block


def hold(own: Recipe, first: Path, folder: Path) -> None:
    """Build the tiny model mini again, stopped and resumed; check it, audit it, and find one code that is another."""
    with pytest.raises(KeyboardInterrupt):
        build(own, tiny="mini", out=folder / "second", tell=_stopping)
    told = list[Progress]()
    assert build(own, tiny="mini", out=folder / "second", tell=told.append).verdict.outcome is Outcome.IDENTICAL
    assert any(each.stage.startswith("resuming after block") for each in told)

    write_checkpoint(tiny_model(own, "mini"), folder / "base")
    with open_reader(str(first)) as theirs, open_reader(str(folder / "base")) as ours:
        assert check(theirs, ours, recipe=own, tiny=True).outcome == "clean"

    setting = prepare(own, "mini", tiny_inputs(own, "mini", folder / "inputs", silent), silent, "venv")
    audited = requant.audit.audit(
        first,
        setting,
        known(own, "mini", first),
        chosen=tuple(range(len(setting.names))),
        challenge=None,
        auditor="tests",
        make_pool=requant.audit.local(1),
        work=folder / "work",
    )
    assert audited.outcome is Outcome.IDENTICAL

    target = target_of(own, "mini")
    flipped, name = folder / "flipped", next(iter(target.plan.packed))
    highest = 1 << target.form_at(f"{name}.qweight").bits - 1
    shutil.copytree(first, flipped)
    alter(flipped, f"{name}.qweight", lambda data: bytes([data[0] ^ highest, *data[1:]]))
    with open_reader(str(flipped)) as theirs, open_reader(str(folder / "base")) as ours:
        checked = check(theirs, ours, recipe=own, tiny=True)
    assert {each.tensor for each in checked.findings if each.kind != "rewritten by a tool"} == {f"{name}.qweight"}


def _is_unloaded(target: Target, name: str) -> bool:
    """Say whether the class loads nothing of that name; experts that transformers has stacked count as one by one."""
    stacked = {each for each in target.plan.tensors if each.startswith(f"{name.rpartition('.')[0]}.")}
    return (
        name in target.plan.unloaded
        or (bool(stacked) and stacked <= target.plan.unloaded)
        or name.rpartition(".")[0] in target.rounded
    )


def computes(own: Recipe, first: Path, ask: Callable[..., Any], folder: Path) -> None:
    """Hold logits in transformers against the decoded weights', and find one code, and the sign of one scale."""
    target = target_of(own, "mini")
    packed, aside = sorted(target.plan.packed), {*target.plan.unloaded, *target.mtp}
    one, other = packed[0], packed[-1]
    altered = folder / "altered"
    shutil.copytree(first, altered)
    alter(altered, f"{one}.qweight", lambda data: bytes([data[0] ^ 0x0F, *data[1:]]))
    alter(altered, f"{other}.scales", lambda data: bytes([data[0], data[1] ^ 0x80, *data[2:]]))
    found = ask("logits", first, first, altered, folder / "unpacked")
    for report in (found["unpacked"], *(each["report"] for each in found["loaded"])):
        assert all(_is_unloaded(target, name) for names in report.values() for name in names)
    for each in found["loaded"]:
        assert each["kinds"] == ["QuantLinear"]
        for name in (*each["not packed"], *each["unread"]):
            assert {name, name.rpartition(".")[0]} & aside
        assert set(each["unstored"]) <= set(target.plan.tied)
    honest, changed = found["loaded"]
    assert honest["altered"] == []
    assert changed["altered"] == sorted([f"{one}.qweight", f"{other}.scales"])
    # Both sides are rounded in float32. In float16 a token may take another expert, as in tests/test_worker.py.
    blocks = len(target.plan.blocks)
    exact = bound(blocks, FLOAT32, TERMS)
    rounded = bound(blocks, FLOAT16, 1) + blocks * PROJECTIONS * FLOAT16
    for precision, limit in (("float16", exact + rounded), ("float32", 2 * exact)):
        computed = honest[precision]
        assert computed["decoded otherwise"] == []
        assert computed["products"].keys() == set(packed)
        assert max(computed["products"].values()) <= 1
        assert computed["median"] <= limit
        assert computed["logits"] <= limit
        assert changed[precision]["decoded otherwise"] == sorted([one, other])
    assert honest["float16"]["settled"] > 0.5
    assert honest["float32"]["settled"] == 1
    off = {name for name, share in changed["float32"]["products"].items() if share > 1}
    assert off == {one, other}


def _stopping(now: Progress) -> None:
    """Stop a build that has tuned a block."""
    if now.stage == "tuning" and now.done:
        raise KeyboardInterrupt
