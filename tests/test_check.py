"""Clean builds are clean; whatever is edited is found, and named to tensor and index."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.checkpoints import shard, write
from tests.conftest import ROOT, Refuses
from tests.hub import running
from tests.tiny import write_tiny

from requant import check as checking
from requant.build import Built
from requant.check import check
from requant.check.checked import Checked
from requant.check.findings import COPIED, TUNED, Finding, Measured
from requant.check.finished import Finished
from requant.check.place import Place
from requant.check.reader import open_reader
from requant.checkpoint.checkpoint import INDEX, Checkpoint, Held, Tensor, open_checkpoint, write_checkpoint
from requant.checkpoint.safetensors import ITEM_BITS
from requant.errors import NotAvailableError, UsageError
from requant.formats.gptq import bfloat16_to_float32, pack, unpack
from requant.progress import Progress
from requant.recipe import read_recipe
from requant.rounding import ways as rounding
from requant.rounding.reach import Array, codes_within, loosest, reach_of, scale_possible

NAMES = ("ec", "gb10", "intel")
WAYS = (rounding.ABSMAX, rounding.FULL, rounding.SEARCHED, rounding.FARTHER_WIDE)
Edit = Callable[[dict[str, Tensor]], None]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model mini, which the mini builds were made from."""
    folder = tmp_path_factory.mktemp("tiny") / "mini"
    write_tiny("mini", folder)
    return folder


def checked(folder: Path | str, base: Path | str, recipe: str | None = None, **options: Any) -> Checked:
    with open_reader(str(folder)) as theirs, open_reader(str(base)) as ours:
        read = read_recipe(ROOT / "builds" / recipe) if recipe else None
        return check(theirs, ours, recipe=read, tiny=True, **options)


def found(result: Checked) -> set[tuple[str, str, tuple[int, ...]]]:
    return {(each.kind, each.tensor, each.index) for each in result.findings}


@pytest.mark.worker
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("told", [True, False], ids=["with its recipe", "without"])
def test_tiny_models_are_clean(name: str, told: bool, built: Callable[[str], Built], base: Path) -> None:
    recipe = read_recipe(ROOT / "builds" / name)
    result = checked(built(name).folder, base, name if told else None)
    assert result.findings == ()
    assert (result.read, result.unread, result.resumed) == (result.total, (), 0)
    assert ("rounded, absmax" in result.ways) == (recipe.mtp.policy == "rtn")
    assert set(result.ways) <= {COPIED, TUNED, rounding.ABSMAX, rounding.FULL}
    tuned = result.tuned()
    assert 0.05 < tuned.moved / tuned.codes < 0.5
    fits = result.as_json()["bound"]["fits"]["most_iterations_at_default_rate"]
    assert fits is not None
    assert fits >= recipe.tiny.iterations


class Spoilable:
    """A copy of a build, edited in place and mended again."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder, self.base = folder, base
        with open_reader(str(folder)) as source:
            self.places = dict(source.tensors)
            result = check(source, open_reader(str(base)), recipe=read_recipe(ROOT / "builds" / "ec"), tiny=True)
            self.layers = result.layers
        self.weights = open_checkpoint(base).tensors

    def tuned(self) -> list[str]:
        return sorted(name for name, way in self.layers.items() if way == TUNED)

    def copied(self) -> list[str]:
        return sorted(name for name, way in self.layers.items() if way == COPIED)

    def read(self, tensor: str, dtype: str) -> Array:
        place = self.places[tensor]
        with (self.folder / place.file).open("rb") as file:
            file.seek(place.start)
            return np.frombuffer(file.read(place.stop - place.start), dtype).reshape(place.spec.shape).copy()

    def write(self, tensor: str, values: Array) -> None:
        place = self.places[tensor]
        with (self.folder / place.file).open("r+b") as file:
            file.seek(place.start)
            file.write(values.tobytes())

    def spoilt(self, tensor: str, dtype: str, edit: Callable[[Array], None]) -> Checked:
        """Check with a tensor edited; put it back."""
        before = self.read(tensor, dtype)
        values = before.copy()
        edit(values)
        self.write(tensor, values)
        try:
            return checked(self.folder, self.base, "ec", threads=1)
        finally:
            self.write(tensor, before)

    def weight(self, layer: str) -> Array:
        """The base's weight [out, in] of a layer, float32."""
        from requant.check.rows import source_rows

        where = source_rows(layer, {name: tensor.spec for name, tensor in self.weights.items()})
        assert where
        rows = bfloat16_to_float32(self.weights[where.tensor].read()).reshape(-1, where.columns)
        return rows[where.first : where.last]


@pytest.fixture(scope="session")
def spoilable(
    built: Callable[[str], Built], base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], Spoilable]:
    @cache
    def once() -> Spoilable:
        folder = tmp_path_factory.mktemp("spoilt") / "ec"
        shutil.copytree(built("ec").folder, folder)
        return Spoilable(folder, base)

    return once


property_test = settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.mark.worker
@property_test
@given(data=st.data())
def test_every_flipped_bit_of_a_copied_tensor_is_found(data: st.DataObject, spoilable: Callable[[], Spoilable]) -> None:
    build = spoilable()
    name = data.draw(st.sampled_from(build.copied()))
    shape = build.places[name].spec.shape
    at = data.draw(st.integers(0, int(np.prod(shape)) - 1))
    bit = data.draw(st.integers(0, 15))

    def flip(values: Array) -> None:
        values.reshape(-1)[at] ^= 1 << bit

    index = tuple(int(each) for each in np.unravel_index(at, shape))
    assert found(build.spoilt(name, "<u2", flip)) == {("not the base's bytes", name, index)}


@pytest.mark.worker
@property_test
@given(data=st.data())
def test_codes_moved_by_three_steps_are_found_and_by_two_where_that_leaves_reach(
    data: st.DataObject, spoilable: Callable[[], Spoilable]
) -> None:
    build = spoilable()
    layer = data.draw(st.sampled_from(build.tuned()))
    out_features, in_features = build.weight(layer).shape
    row, column = data.draw(st.integers(0, out_features - 1)), data.draw(st.integers(0, in_features - 1))
    bound = reach_of(read_recipe(ROOT / "builds" / "ec"), True)
    codes = unpack(build.read(f"{layer}.qweight", "<i4")).copy()
    scale = build.read(f"{layer}.scales", "<f2")[column // 128, row].astype(np.float32)
    least, greatest = codes_within(build.weight(layer)[row, column], scale, bound)
    now = int(codes[row, column])
    move = data.draw(st.sampled_from([each for each in (-3, -2, 2, 3) if 0 <= now + each <= 15]))
    code = now + move

    def edit(words: Array) -> None:
        codes[row, column] = code
        words[:] = pack(codes)

    leaves = not least <= code - 8 <= greatest
    assert leaves or abs(move) == 2
    expected = {("code out of reach", f"{layer}.qweight", (row, column))} if leaves else set()
    assert found(build.spoilt(f"{layer}.qweight", "<i4", edit)) == expected


@pytest.mark.worker
def test_of_all_codes_every_move_by_three_steps_leaves_reach_and_most_by_two(
    spoilable: Callable[[], Spoilable],
) -> None:
    """The share that docs/levels.md states, over every tuned code of the tiny model."""
    build, bound = spoilable(), reach_of(read_recipe(ROOT / "builds" / "ec"), True)
    moved = {step: [0, 0] for step in (1, 2, 3)}
    for layer in build.tuned():
        codes = unpack(build.read(f"{layer}.qweight", "<i4")).astype(int) - 8
        scales = build.read(f"{layer}.scales", "<f2").astype(np.float32).T.repeat(128, 1)[:, : codes.shape[1]]
        least, greatest = codes_within(build.weight(layer), scales, bound)
        for step, counts in moved.items():
            for side in (-step, step):
                possible = (codes + side >= -8) & (codes + side <= 7)
                leaves = (codes + side < least) | (codes + side > greatest)
                counts[0] += int((leaves & possible).sum())
                counts[1] += int(possible.sum())
    page = (ROOT / "docs" / "levels.md").read_text()
    for step, (leaving, able) in moved.items():
        assert f"| {step} step{'s' if step > 1 else ''} | {leaving / able:.1%} |" in page, (step, leaving / able)
    assert moved[3][0] == moved[3][1]


@pytest.mark.worker
@property_test
@given(data=st.data())
def test_a_scale_beyond_the_largest_reachable_is_found(data: st.DataObject, spoilable: Callable[[], Spoilable]) -> None:
    build = spoilable()
    layer = data.draw(st.sampled_from(build.tuned()))
    groups, rows = build.places[f"{layer}.scales"].spec.shape
    group, row = data.draw(st.integers(0, groups - 1)), data.draw(st.integers(0, rows - 1))
    weights = build.weight(layer)[row, group * 128 : (group + 1) * 128]
    own = build.read(f"{layer}.scales", "<f2")[group, row]
    widest = max(0, weights.max() if own < 0 else -weights.min()) / 8

    def edit(scales: Array) -> None:
        scales[group, row] = np.copysign(np.float16(1.02 * widest), own)

    result = found(build.spoilt(f"{layer}.scales", "<f2", edit))
    assert ("scale out of reach", f"{layer}.scales", (group, row)) in result
    assert {tensor for _, tensor, _ in result} <= {f"{layer}.scales", f"{layer}.qweight"}


@pytest.mark.worker
def test_every_scale_beyond_is_out_of_reach(spoilable: Callable[[], Spoilable]) -> None:
    build, bound = spoilable(), reach_of(read_recipe(ROOT / "builds" / "ec"), True)
    for layer in build.tuned():
        weights = build.weight(layer)
        grouped = weights.reshape(len(weights), -1, 128)
        low, high = np.minimum(grouped.min(-1), 0), np.maximum(grouped.max(-1), 0)
        for end, sign in ((-low, 1), (high, -1)):
            beyond = (sign * np.float32(1.02) * end / np.float32(8)).astype(np.float16).view(np.uint16)
            assert not scale_possible(beyond, low, high, bound).any()


@pytest.mark.worker
def test_every_word_of_zero_points_is_looked_at(spoilable: Callable[[], Spoilable]) -> None:
    build = spoilable()
    for layer in (build.tuned()[0], build.tuned()[-1], "mtp.layers.0.mlp.experts.3.up_proj"):
        shape = build.places[f"{layer}.qzeros"].spec.shape

        def edit(words: Array) -> None:
            words[-1, -1] = 0x88888888

        index = (shape[0] - 1, 8 * (shape[1] - 1))
        result = build.spoilt(f"{layer}.qzeros", "<u4", edit)
        assert found(result) == {("wrong zero point", f"{layer}.qzeros", index)}


def exchange(one: str, two: str) -> Edit:
    """Exchange all tensors of two layers."""

    def edit(tensors: dict[str, Tensor]) -> None:
        for suffix in ("qweight", "scales"):
            a, b = f"{one}.{suffix}", f"{two}.{suffix}"
            tensors[a], tensors[b] = tensors[b], tensors[a]

    return edit


def transposed(layer: str) -> Edit:
    """Exchange the two groups of the first output."""

    def edit(tensors: dict[str, Tensor]) -> None:
        scales = tensors[f"{layer}.scales"]
        values = np.frombuffer(scales.read(), "<f2").reshape(scales.spec.shape)[::-1]
        tensors[f"{layer}.scales"] = Tensor(scales.spec, Held(values.tobytes()))
        words = tensors[f"{layer}.qweight"]
        codes = np.frombuffer(words.read(), "<i4").reshape(2, -1, words.spec.shape[1])[::-1]
        tensors[f"{layer}.qweight"] = Tensor(words.spec, Held(codes.tobytes()))

    return edit


def dropped(*names: str) -> Edit:
    return lambda tensors: void([tensors.pop(name) for name in names])


def void(_: object) -> None:
    """Return nothing."""


def remade(layer: str) -> Edit:
    """Round other weights to nearest: a block that somebody else trained."""

    def edit(tensors: dict[str, Tensor]) -> None:
        words = tensors[f"{layer}.qweight"]
        codes = np.random.default_rng(0).integers(0, 2**32, words.spec.shape, dtype=np.uint32)
        tensors[f"{layer}.qweight"] = Tensor(words.spec, Held(codes.tobytes()))

    return edit


EXPERTS = "model.language_model.layers.1.mlp.experts"
REBUILT: dict[str, tuple[Edit, set[tuple[str, str]]]] = {
    "swapped experts": (
        exchange(f"{EXPERTS}.0.up_proj", f"{EXPERTS}.3.up_proj"),
        {("code out of reach", f"{EXPERTS}.{expert}.up_proj.qweight") for expert in (0, 3)},
    ),
    "gate and up swapped": (
        exchange(f"{EXPERTS}.1.gate_proj", f"{EXPERTS}.1.up_proj"),
        {("code out of reach", f"{EXPERTS}.1.{half}_proj.qweight") for half in ("gate", "up")},
    ),
    "transposed groups": (
        transposed(f"{EXPERTS}.2.gate_proj"),
        {("code out of reach", f"{EXPERTS}.2.gate_proj.qweight")},
    ),
    "a dropped bias": (
        dropped("model.visual.blocks.0.attn.qkv.bias"),
        {("not in the checkpoint", "model.visual.blocks.0.attn.qkv.bias")},
    ),
    "a dropped expert": (
        dropped(*(f"{EXPERTS}.2.down_proj.{suffix}" for suffix in ("qweight", "qzeros", "scales"))),
        {
            ("not in the checkpoint", f"{EXPERTS}.down_proj"),
            ("not as the recipe says", f"{EXPERTS}.2.down_proj.qweight"),
        },
    ),
    "zero points of a layer dropped": (
        dropped(f"{EXPERTS}.2.down_proj.qzeros"),
        {
            ("missing tensor", f"{EXPERTS}.2.down_proj.qzeros"),
            ("not in the checkpoint", f"{EXPERTS}.down_proj"),
            ("not as the recipe says", f"{EXPERTS}.2.down_proj.qweight"),
        },
    ),
    "a replaced MTP": (
        remade("mtp.layers.0.mlp.experts.1.gate_proj"),
        {("not rounded to nearest", "mtp.layers.0.mlp.experts.1.gate_proj.qweight")},
    ),
    "an expert too many": (
        lambda tensors: void(tensors.update({f"{EXPERTS}.4.up_proj.bias": tensors["mtp.norm.weight"]})),
        {("no origin", f"{EXPERTS}.4.up_proj.bias")},
    ),
    "a norm of another shape": (
        lambda tensors: void(tensors.update({"mtp.norm.weight": tensors["lm_head.weight"]})),
        {("wrong shape", "mtp.norm.weight")},
    ),
}


@pytest.mark.worker
@pytest.mark.parametrize(("edit", "expected"), REBUILT.values(), ids=REBUILT)
def test_what_was_rebuilt_otherwise_is_named(
    edit: Edit, expected: set[tuple[str, str]], built: Callable[[str], Built], base: Path, tmp_path: Path
) -> None:
    whole = open_checkpoint(built("ec").folder)
    tensors = whole.tensors
    edit(tensors)
    sides = {name: content for name, content in whole.files.items() if name != INDEX}  # of other files
    write_checkpoint(Checkpoint({"model.safetensors": tensors}, sides), tmp_path / "edited")
    result = checked(tmp_path / "edited", base, "ec")
    named = {(each.kind, each.tensor) for each in result.findings}
    assert expected <= named
    others = {tensor.rpartition(".")[0] for _, tensor in named} - {tensor.rpartition(".")[0] for _, tensor in expected}
    assert not others, "nothing else is accused"
    assert all(each.index for each in result.findings if each.count), "each is named to its index"
    assert not checked(tmp_path / "edited", base).clean, "without the recipe too"


@pytest.mark.parametrize("reason", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_where_nothing_can_be_written_a_check_is_not_resumed_and_no_error(
    reason: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(reason, os.strerror(reason))

    windows = [Measured({}), Measured({})]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refused)
        with Finished(tmp_path / "check" / "a.jsonl") as finished:
            for number, each in enumerate(windows):
                finished.note(number, each)
            finished.finish()
    assert not (tmp_path / "check").exists()
    with Finished(tmp_path / "check" / "a.jsonl") as finished:
        finished.note(0, windows[0])
        assert set(finished.read()) == {0}


@pytest.mark.worker
def test_a_tensor_in_two_files_is_named(built: Callable[[str], Built], base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ec"
    shutil.copytree(built("ec").folder, folder)
    norm = open_checkpoint(folder).tensors["mtp.norm.weight"]
    write(folder, {"z.safetensors": shard({"mtp.norm.weight": ("BF16", list(norm.spec.shape), norm.read())})})
    assert found(checked(folder, base, "ec")) == {("could be loaded", "z.safetensors", ())}
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["mtp.norm.weight"] = "z.safetensors"
    write(folder, {INDEX: json.dumps(index).encode()})
    assert found(checked(folder, base, "ec")) == {("tensor twice", "mtp.norm.weight", ())}


# A pair that takes no build: one layer rounded in each way, one copied.


def rounded(values: Array, way: str) -> tuple[Array, Array]:
    """Scales float16 [groups, out] and words, made in numpy from the formulas' own sources."""
    grouped = values.reshape(len(values), -1, 128)
    low, high = np.minimum(grouped.min(-1), 0), np.maximum(grouped.max(-1), 0)
    widest = np.where(-low > high, low, high)
    if way == rounding.ABSMAX:
        exact = np.abs(widest) / np.float32(7)
    elif way == rounding.FULL:
        exact = (-widest / np.float32(8)).astype(np.float16).astype(np.float32)
    else:  # `search_scales` of 0.13.0, or of 0.16.1, errors summed in double precision
        count, size = (100, 0.06) if way == rounding.FARTHER_WIDE else (90, 0.01)
        best = np.full(widest.shape, np.inf)
        exact = np.zeros_like(widest)
        for step in (0, *range(-count, 0), *range(1, count + 1)):
            factor = np.float32(-(8 - size * step)) * (np.float32(1) / widest)
            scale = np.float32(1) / factor
            codes = np.clip(np.rint(factor[..., None] * grouped), -8, 7)
            error = ((scale[..., None] * codes - grouped).astype(np.float64) ** 2).sum(-1)
            exact, best = np.where(error < best, scale, exact), np.minimum(error, best)
    codes = np.clip(np.rint(grouped / exact[..., None]), -8, 7) + 8
    return np.ascontiguousarray(exact.astype(np.float16).T), pack(codes.astype(np.uint8).reshape(values.shape))


def pair(tmp_path: Path, way: str) -> tuple[Path, Path]:
    random = np.random.default_rng(3)
    bits = (random.normal(0, 0.02, (64, 256)).astype("<f4").view("<u4") >> 16).astype("<u2")
    values = bfloat16_to_float32(bits.tobytes()).reshape(64, 256)
    scales, words = rounded(values, way)
    zeros = np.full((2, 8), 0x77777777, "<i4")
    norm = ("BF16", [8], bits[0, :8].tobytes())
    write(
        tmp_path / "base",
        {"model.safetensors": shard({"x.0.p.weight": ("BF16", [64, 256], bits.tobytes()), "n": norm})},
    )
    packed = {
        "x.0.p.qweight": ("I32", [32, 64], words.tobytes()),
        "x.0.p.qzeros": ("I32", [2, 8], zeros.tobytes()),
        "x.0.p.scales": ("F16", [2, 64], scales.tobytes()),
    }
    write(tmp_path / "made", {"model.safetensors": shard({**packed, "n": norm})})
    return tmp_path / "made", tmp_path / "base"


@pytest.mark.parametrize("way", WAYS)
def test_each_formula_of_rounding_is_recognised(way: str, tmp_path: Path) -> None:
    made, base = pair(tmp_path, way)
    result = checked(made, base)
    assert result.clean
    assert result.layers == {"n": COPIED, "x.0.p": way}


@pytest.mark.parametrize("way", WAYS)
def test_a_rounded_code_moved_by_three_steps_is_found(way: str, tmp_path: Path) -> None:
    made, base = pair(tmp_path, way)
    place = opened(made)["x.0.p.qweight"]
    with (made / "model.safetensors").open("r+b") as file:
        file.seek(place.start + 4 * (64 * 5 + 9))
        word = int.from_bytes(file.read(4), "little")
        code = (word >> 8) & 15
        word += (3 if code < 8 else -3) << 8
        file.seek(-4, os.SEEK_CUR)
        file.write(word.to_bytes(4, "little"))
    (finding,) = checked(made, base).findings
    assert (finding.tensor, finding.count, finding.index) == ("x.0.p.qweight", 1, (9, 42))


def opened(folder: Path) -> dict[str, Place]:
    with open_reader(str(folder)) as source:
        return dict(source.tensors)


def test_every_single_bit_of_a_copied_tensor(tmp_path: Path) -> None:
    made, base = pair(tmp_path, rounding.ABSMAX)
    place = opened(made)["n"]
    text = bytearray((made / "model.safetensors").read_bytes())
    for at in range(place.start, place.stop):
        for bit in range(8):
            text[at] ^= 1 << bit
            (made / "model.safetensors").write_bytes(text)
            text[at] ^= 1 << bit
            assert found(checked(made, base)) == {("not the base's bytes", "n", ((at - place.start) // 2,))}


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F8_E8M0", "C64"])
def test_a_copied_tensor_of_any_width_is_compared_element_by_element(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "BYTES", 24)
    bits = ITEM_BITS[dtype]
    data = bytes(number % 251 for number in range(8 * bits))
    for name in ("base", "made"):
        write(tmp_path / name, {"model.safetensors": shard({"t": (dtype, [8, 8], data)})})
    assert not checked(tmp_path / "made", tmp_path / "base").findings
    for element in (0, 1, 31, 62, 63):
        number = int.from_bytes(data, "little") ^ (1 << bits * element)
        altered = shard({"t": (dtype, [8, 8], number.to_bytes(8 * bits, "little"))})
        write(tmp_path / "made", {"model.safetensors": altered})
        assert found(checked(tmp_path / "made", tmp_path / "base")) == {
            ("not the base's bytes", "t", (element // 8, element % 8))
        }


def test_an_interrupted_check_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "WEIGHTS", 2048)
    made, base = pair(tmp_path, rounding.FULL)
    whole = checked(made, base)

    def stop(progress: Progress) -> None:
        if progress.done > progress.total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checked(made, base, resume=tmp_path / "notes", tell=stop, threads=1)
    (notes,) = (tmp_path / "notes").iterdir()
    with notes.open("ab") as file:
        file.write(b'{"window": 3, "measu')  # cut off
    again = checked(made, base, resume=tmp_path / "notes")
    assert again.total / 2 < again.resumed < again.total
    assert (again.layers, again.findings, again.statistics) == (whole.layers, whole.findings, whole.statistics)
    assert not list((tmp_path / "notes").iterdir())
    assert checked(made, base, resume=tmp_path / "notes").resumed == 0


def test_a_changed_file_is_another_question(tmp_path: Path) -> None:
    made, base = pair(tmp_path, rounding.FULL)
    with pytest.raises(KeyboardInterrupt):
        checked(made, base, resume=tmp_path / "notes", tell=interrupt)
    os.utime(made / "model.safetensors", (1, 1))
    assert checked(made, base, resume=tmp_path / "notes").resumed == 0


def test_a_file_that_was_changed_and_dated_back_is_another_question(tmp_path: Path) -> None:
    """`touch` can set back the time of modification, but not that of change; a copy of equal times is another inode."""
    made, base = pair(tmp_path, rounding.FULL)
    shards = made / "model.safetensors"
    with pytest.raises(KeyboardInterrupt):
        checked(made, base, resume=tmp_path / "notes", tell=interrupt)
    before = shards.stat()
    data = bytearray(shards.read_bytes())
    data[-1] ^= 1
    shards.write_bytes(data)
    os.utime(shards, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (shards.stat().st_size, shards.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert checked(made, base, resume=tmp_path / "notes").resumed == 0


def test_a_copy_of_equal_size_and_times_is_another_question(tmp_path: Path) -> None:
    made, _ = pair(tmp_path, rounding.FULL)
    with open_reader(str(made)) as source:
        before = source.files.identity
    shutil.copy2(made / "model.safetensors", made / "copy")
    (made / "copy").replace(made / "model.safetensors")
    with open_reader(str(made)) as source:
        assert source.files.identity != before


def interrupt(_: Progress) -> None:
    raise KeyboardInterrupt


def test_a_sample_says_what_it_did_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: Refuses) -> None:
    monkeypatch.setattr(checking, "WEIGHTS", 2048)
    made, base = pair(tmp_path, rounding.FULL)
    one, same, other = (checked(made, base, sample=0.25, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert 0 < one.read < one.total / 2
    assert any("were not read" in line for line in one.text(9))
    assert one.as_json()["read"] == one.read
    assert 0 < other.read < one.total / 2
    for wrong in (0, -1, 1.5, float("nan")):
        with refuses(UsageError):
            checked(made, base, sample=wrong)


def test_measurements_survive_json() -> None:
    measured = Measured({TUNED: ()})
    assert Measured.from_json(json.loads(json.dumps(measured.as_json()))) == measured


def test_a_base_that_is_no_float_is_not_modelled(tmp_path: Path) -> None:
    made, base = pair(tmp_path, rounding.FULL)
    write(base, {"model.safetensors": shard({"x.0.p.weight": ("I32", [64, 256], bytes(64 * 256 * 4))})})
    (made_of,) = checked(made, base).unmodelled
    assert (made_of.tensor, made_of.detail) == ("x.0.p", "a base in I32")


@pytest.mark.parametrize("way", [rounding.FULL])
def test_a_repository_is_read_by_ranges(way: str, tmp_path: Path, refuses: Refuses) -> None:
    made, base = pair(tmp_path, way)
    with running() as hub:
        hub.serve("model", "o/made", "a" * 40, made)
        hub.serve("model", "o/base", "b" * 40, base)
        with open_reader("o/made@main", hub.url) as theirs, open_reader("o/base@main", hub.url) as ours:
            result = check(theirs, ours)
            assert result.clean
            assert result.layers == {"n": COPIED, "x.0.p": way}
            assert theirs.files.identity == f"o/made@{'a' * 40}"
        for name in ("o/none@main", "o/made@gone"):
            with refuses(NotAvailableError):
                open_reader(name, hub.url)


@pytest.mark.parametrize("name", ["/no/such/folder", "out/nope", "nope", "nope@main"])
def test_what_is_neither_is_named_and_no_network_is_asked(name: str, refuses: Refuses) -> None:
    with refuses(UsageError, vary=name, shared=True):
        open_reader(name, "http://127.0.0.1:1")


def test_tensors_of_no_size_are_no_traceback(tmp_path: Path) -> None:
    nothing = {"q.weight": ("BF16", [0, 16], b""), "s": ("BF16", [], b"\1\2"), "e": ("BF16", [0], b"")}
    write(tmp_path / "base", {"model.safetensors": shard(nothing)})
    empty = {"q.qweight": ("I32", [2, 0], b""), "q.qzeros": ("I32", [1, 0], b""), "q.scales": ("F16", [1, 0], b"")}
    rest = {name: nothing[name] for name in ("s", "e")}
    write(tmp_path / "made", {"model.safetensors": shard({**empty, **rest})})
    assert {each.kind for each in checked(tmp_path / "made", tmp_path / "base").findings} == {"wrong shape"}


CLI = (sys.executable, "-m", "requant")


def run(tmp_path: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "COLUMNS": "300"}
    return subprocess.run([*CLI, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False)


def test_the_command_line(tmp_path: Path) -> None:
    made, base = pair(tmp_path, rounding.FULL)
    done = run(tmp_path, "check", made, "--base", base)
    assert (done.returncode, done.stdout.split()[-1]) == (0, "clean"), done.stderr
    done = run(tmp_path, "check", base, "--base", base)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (3, "nothing to check")
    (base / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:-1] + b"\x7f")
    done = run(tmp_path, "check", made, "--base", base, "--json")
    value = json.loads(done.stdout)
    assert (done.returncode, value["outcome"]) == (1, "violations")
    assert value["findings"][0]["tensor"] == "n"
    assert run(tmp_path, "check", made, "--base", tmp_path / "none").returncode == 2
    (base / "model.safetensors").write_bytes(b"\xff" * 20)
    done = run(tmp_path, "check", made, "--base", base)
    assert (done.returncode, done.stdout) == (6, "")
    assert "Traceback" not in done.stderr


def test_the_loosest_bound_is_told(tmp_path: Path) -> None:
    made, base = pair(tmp_path, rounding.FULL)
    assert checked(made, base).bound == loosest()


def test_findings_that_say_the_same_are_one_line() -> None:
    """Those with a count of their own are lines of their own; the document has all of them."""
    equal = [Finding("missing tensor", f"layers.{number}.weight") for number in range(98)]
    counted = [Finding(kind, "a.weight", 3, (0,)) for kind in ("not the base's bytes", "scale out of reach")]
    result = Checked.of([*equal, *counted], loosest(), 0, {}, {}, {}, 1, 1, 0, ())
    lines = result.text(12)
    assert lines[:2] == [
        "not the base's bytes: a.weight: 3, first at [0]",
        "scale out of reach: a.weight: 3, first at [0]",
    ]
    assert lines[2].startswith("missing tensor: layers.0.weight, ") and lines[2].endswith(" and 92 more")
    assert result.text(2)[2] == "and 98 more: --json names them all"
    assert len(result.as_json()["findings"]) == 100
