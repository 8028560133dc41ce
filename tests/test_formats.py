"""Every format that lies row by row, in `check`: what each formula makes is exact, and any damage to it is named.

What the formulas themselves are worth, the tests of each format say, against the tools that have them.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from tests.checkpoints import Tensors, shard
from tests.formats import COLUMNS, CONFIGS, DOCS, LAYERS, ROWS, TRIED, WHERE, made_by, written
from tests.hub import running

from requant.check import check
from requant.check.checked import UNKNOWN, Checked, Outcome
from requant.check.findings import NEAR
from requant.check.reader import open_reader
from requant.check.searches import TIES
from requant.check.stored import NUMPY
from requant.checkpoint.safetensors import Spec
from requant.formats.bitsandbytes import BLOCK, MAP, NAMES, NESTED, FourBit, dynamic_map
from requant.formats.codec import Array, Codec, narrow, widen
from requant.formats.compressed_tensors import PACKED
from requant.formats.declarations import READERS
from requant.formats.ggml import Ggml
from requant.formats.mxfp4 import GptOssMXFP4
from requant.rounding.formula import Formula
from requant.rounding.formulas import FORMULAS
from requant.rounding.mse_floats import ChosenFloats

CASES = [
    (name, number, dtype)
    for name, config in CONFIGS.items()
    for number in range(len(made_by(config)[1]))
    for dtype in ("BF16", "F16")
]


def weights(layer: str, dtype: str) -> Array:
    """Numbers of a dtype, as float32, with a few of the awkward kinds."""
    some = np.random.default_rng(LAYERS.index(layer)).normal(0, 0.02, (ROWS, COLUMNS)).astype(np.float32)
    some[0, :128], some[1, :] = 0, 0.01
    return widen(narrow(some, dtype), dtype)


def beside(codec: Codec, dtype: str, shape: tuple[int, int] = (ROWS, COLUMNS)) -> dict[str, Array]:
    """What no formula makes of the weights."""
    inputs = {name: part for name, part in codec.parts(*shape, dtype).items() if name.startswith("input")}
    if not isinstance(codec, FourBit):
        return {name: np.full(part.spec.shape, 0.5, NUMPY[part.spec.dtype]) for name, part in inputs.items()}
    state = {"quant_type": codec.kind, "blocksize": BLOCK, "dtype": NAMES[dtype], "shape": [*shape]}
    nested = {"nested_blocksize": NESTED, "nested_dtype": "float32", "nested_offset": 0.03125} if codec.nested else {}
    table = {MAP: dynamic_map()} if codec.nested else {}
    return {codec.state: np.frombuffer(json.dumps({**state, **nested}).encode(), np.uint8), **table}


def tensors(codec: Codec, formula: Formula, dtype: str) -> dict[str, tuple[str, list[int], bytes]]:
    made: dict[str, tuple[str, list[int], bytes]] = {}
    for layer in LAYERS:
        values, parts = weights(layer, dtype), codec.parts(ROWS, COLUMNS, dtype)
        most = float(np.abs(values).max())
        if isinstance(formula, ChosenFloats):  # the greatest range that was taken
            most = formula.greatest(values, dtype)
        whole = dict(formula.whole(most, dtype))
        whole |= {suffix: part.holds for suffix, part in parts.items() if part.holds is not None}
        whole |= beside(codec, dtype)
        for suffix, each in {**whole, **formula.encode(values, dtype, whole)}.items():
            spec = parts[suffix].spec if parts[suffix].sized else Spec(parts[suffix].spec.dtype, each.shape)
            data = np.ascontiguousarray(each, NUMPY[spec.dtype]).tobytes()
            assert len(data) == spec.nbytes, suffix
            made[f"{layer}.{suffix}" if suffix else layer] = (spec.dtype, list(spec.shape), data)
    return made


def base_of(dtype: str) -> dict[str, tuple[str, list[int], bytes]]:
    bits = {each: narrow(weights(each, dtype), dtype) for each in LAYERS}
    return {f"{layer}.weight": (dtype, [ROWS, COLUMNS], each.tobytes()) for layer, each in bits.items()}


def checked(
    folder: Path,
    config: Mapping[str, Any],
    theirs: Tensors,
    dtype: str,
    base: Tensors | None = None,
    files: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> Checked:
    """Check a checkpoint against its base; `files` are JSON files beside, or what `config.json` has more."""
    said: Mapping[str, Any] = {"quantization_config": config}
    for name, some, stated in (("base", base or base_of(dtype), {}), ("theirs", theirs, said)):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_bytes(shard(some))
        (folder / name / "config.json").write_text(json.dumps({"model_type": "toy", **stated}))
    for name, more in files.items():
        stated = {"model_type": "toy", **said} if name == "config.json" else {}
        (folder / "theirs" / name).write_text(json.dumps({**stated, **more}))
    with open_reader(str(folder / "theirs")) as one, open_reader(str(folder / "base")) as two:
        return check(one, two)


@pytest.mark.parametrize("name", ["FP8 of DeepSeek", "nf4, nested", "MLX 4 bits"])
def test_a_repository_is_read_by_ranges(name: str, tmp_path: Path) -> None:
    codec, known = made_by(CONFIGS[name])
    checked(tmp_path, CONFIGS[name], tensors(codec, known[0], "BF16"), "BF16")
    with running() as hub:
        hub.serve("model", "o/made", "a" * 40, tmp_path / "theirs")
        hub.serve("model", "o/base", "b" * 40, tmp_path / "base")
        with open_reader("o/made@main", hub.url) as theirs, open_reader("o/base@main", hub.url) as ours:
            assert check(theirs, ours).clean


def test_every_reader_and_every_codec_has_a_case() -> None:
    codecs = {type(made_by(config)[0]) for config in CONFIGS.values()}
    assert TRIED.keys() == FORMULAS.keys()
    elsewhere = {Ggml, GptOssMXFP4}  # files of their own say the first: tests/test_gguf_check.py
    assert codecs == FORMULAS.keys() - elsewhere
    assert {config.get("quant_method", "mlx") for config in CONFIGS.values()} == READERS.keys() - {"mxfp4"}


def test_the_table_of_the_docs_is_that_of_the_code() -> None:
    assert DOCS.read_text() == written(DOCS.read_text()), "nox -s formats"


@pytest.mark.parametrize(("name", "number", "dtype"), CASES)
def test_what_a_formula_makes_is_exact(name: str, number: int, dtype: str, tmp_path: Path) -> None:
    codec, known = made_by(CONFIGS[name])
    found = checked(tmp_path, CONFIGS[name], tensors(codec, known[number], dtype), dtype)
    assert found.outcome == Outcome.CLEAN
    assert {way.removesuffix(TIES) for way in found.ways} <= {each.name for each in known}


@pytest.mark.parametrize("name", ["int4, groups", "int8, channels", "FP8, channels"])
def test_what_no_formula_makes_is_said_where_it_is_farthest(name: str, tmp_path: Path) -> None:
    """Bytes of other weights, near the base's: none accuses, and where a code was turned they are farthest."""
    (codec, (formula, *_)), chance = made_by(CONFIGS[name]), np.random.default_rng(3)
    base, made = {}, tensors(codec, formula, "BF16")
    for layer in LAYERS:
        moved = weights(layer, "BF16")
        moved[2:] += chance.normal(0, 0.001, (ROWS - 2, COLUMNS)).astype(np.float32)
        base[f"{layer}.weight"] = ("BF16", [ROWS, COLUMNS], narrow(moved, "BF16").tobytes())
    tensor = f"{WHERE}.{PACKED if name == 'int4, groups' else 'weight'}"
    dtype, shape, data = made[tensor]
    codes = np.frombuffer(data, np.uint8).reshape(ROWS, -1).copy()
    half = codes.shape[1] // 2
    codes[100, half + (codes[100, half:] & 0x7F).argmax()] ^= 0x80
    turned = {**made, tensor: (dtype, shape, codes.tobytes())}
    (tmp_path / "turned").mkdir()
    one = checked(tmp_path, CONFIGS[name], made, "BF16", base)
    two = checked(tmp_path / "turned", CONFIGS[name], turned, "BF16", base)
    assert (one.outcome, two.outcome) == (Outcome.NOT_MODELLED,) * 2 and {*two.layers.values()} == {NEAR}
    (times, *healthy), (more, *place) = one.counts[WHERE].worst, two.counts[WHERE].worst
    assert healthy != [100, 128] == place and 1 < times < more
    assert f"farthest: {WHERE}, output 100, inputs from 128 on: {more:.2f} times" in two.text(9)


@pytest.mark.parametrize("name", ["int4, groups", "FP8, channels"])
def test_a_file_of_which_no_layer_is_the_base_s_is_told_like_any_other(name: str, tmp_path: Path) -> None:
    (codec, (formula, *_)), chance = made_by(CONFIGS[name]), np.random.default_rng(3)
    made = tensors(codec, formula, "BF16")
    for layer in LAYERS:
        tensor = f"{layer}.{PACKED if name == 'int4, groups' else 'weight'}"
        dtype, shape, data = made[tensor]
        made[tensor] = (dtype, shape, chance.permutation(np.frombuffer(data, np.uint8)).tobytes())
    found = checked(tmp_path, CONFIGS[name], made, "BF16")
    assert found.outcome == Outcome.VIOLATIONS and {*found.layers.values()} == {UNKNOWN}
    assert sum(line.startswith("farthest: model.layers.") for line in found.text(9)) == 1


def damaged(codec: Codec, formula: Formula) -> Iterator[tuple[str, Tensors, set[str]]]:
    """Yield what was done to a healthy checkpoint, the checkpoint, and the layers that must be named, alone."""
    healthy = tensors(codec, formula, "BF16")
    for suffix in codec.parts(ROWS, COLUMNS, "BF16"):
        tensor = f"{WHERE}.{suffix}" if suffix else WHERE
        dtype, shape, data = healthy[tensor]
        if suffix.startswith("input"):
            yield f"{suffix} of 0", {**healthy, tensor: (dtype, shape, bytes(len(data)))}, {WHERE}
        else:
            yield f"a bit of {suffix}", {**healthy, tensor: (dtype, shape, data[:-1] + bytes([data[-1] ^ 1]))}, {WHERE}
        yield f"no {suffix}", {key: each for key, each in healthy.items() if key != tensor}, {WHERE}
    swapped = {LAYERS[2]: LAYERS[5], LAYERS[5]: LAYERS[2]}
    moved = {}
    for key, each in healthy.items():
        layer = next(one for one in LAYERS if key.startswith(one))
        moved[key.replace(layer, swapped.get(layer, layer))] = each
    yield "two layers swapped", moved, set(swapped)


@pytest.mark.parametrize("name", CONFIGS)
def test_damage_is_found_and_named(name: str, tmp_path: Path) -> None:
    codec, known = made_by(CONFIGS[name])
    for number, (what, theirs, layers) in enumerate(damaged(codec, known[0])):
        (tmp_path / str(number)).mkdir()
        found = checked(tmp_path / str(number), CONFIGS[name], theirs, "BF16")
        assert found.outcome == Outcome.VIOLATIONS, what
        assert {next(one for one in LAYERS if each.tensor.startswith(one)) for each in found.findings} == layers, what


EXPERTS, INNER = 3, 96
FUSED = [f"model.layers.{block}.mlp.experts.{name}_proj" for block in range(3) for name in ("gate_up", "down")]


def gpt_oss(folder: Path, change: Callable[[dict[str, Array]], object] = lambda _: None) -> Checked:
    """Fused experts, [experts, in, out] in the base, and in the checkpoint [experts, out, in / 32, 16]."""
    drawn, codec = np.random.default_rng(5), GptOssMXFP4()
    stored: dict[str, Array] = {}
    base: dict[str, tuple[str, list[int], bytes]] = {}
    for layer in FUSED:
        blocks = drawn.integers(0, 256, (EXPERTS, INNER, COLUMNS // 32, 16)).astype(np.uint8)
        scales = drawn.integers(118, 124, (EXPERTS, INNER, COLUMNS // 32)).astype(np.uint8)
        stored |= {f"{layer}_blocks": blocks, f"{layer}_scales": scales}
        weights = codec.decode({"_blocks": blocks, "_scales": scales}, COLUMNS).reshape(EXPERTS, INNER, COLUMNS)
        lies = np.ascontiguousarray(narrow(weights, "BF16").swapaxes(1, 2))
        base[layer] = ("BF16", [EXPERTS, COLUMNS, INNER], lies.tobytes())
    change(stored)
    theirs = {name: ("U8", list(each.shape), each.tobytes()) for name, each in stored.items()}
    for name, some, said in (("base", base, {}), ("made", theirs, {"quantization_config": {"quant_method": "mxfp4"}})):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_bytes(shard(some))
        (folder / name / "config.json").write_text(json.dumps({"model_type": "gpt_oss", **said}))
    with open_reader(str(folder / "made")) as one, open_reader(str(folder / "base")) as two:
        return check(one, two)


def test_fused_experts_of_gpt_oss_are_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("requant.check.CODED", 40 * COLUMNS)  # windows that do not divide an expert
    found = gpt_oss(tmp_path)
    assert found.outcome == Outcome.CLEAN and found.layers.keys() == {*FUSED}


def _flip_one(stored: dict[str, Array]) -> None:
    stored[f"{FUSED[1]}_blocks"][2, 90, 3, 7] ^= 4


def _swap_experts(stored: dict[str, Array]) -> None:
    for suffix in ("_blocks", "_scales"):
        stored[FUSED[1] + suffix] = stored[FUSED[1] + suffix][[1, 0, 2]]


@pytest.mark.parametrize(
    ("change", "named"), [(_flip_one, f"{FUSED[1]}_blocks"), (_swap_experts, f"{FUSED[1]}_blocks")]
)
def test_damage_to_fused_experts_is_named(change: Any, named: str, tmp_path: Path) -> None:
    found = gpt_oss(tmp_path, change)
    assert found.outcome == Outcome.VIOLATIONS and named in {each.tensor for each in found.findings}


def nested(change: Callable[[dict[str, Any]], object]) -> Tensors:
    """A healthy checkpoint in nested nf4, the JSON of one layer changed."""
    codec, known = made_by(CONFIGS["nf4, nested"])
    made = dict(tensors(codec, known[0], "BF16"))
    name = f"{WHERE}.weight.quant_state.bitsandbytes__nf4"
    state = json.loads(made[name][2])
    change(state)
    text = json.dumps(state).encode()
    return {**made, name: ("U8", [len(text)], text)}


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.clear(),
        lambda state: state.update(shape=[ROWS + 1, COLUMNS]),
        lambda state: state.update(nested_offset=float("inf")),
        lambda state: state.update(nested_offset=-1.0),
        lambda state: state.update(nested_offset=True),
        lambda state: state.update(blocksize=128),
    ],
)
def test_a_text_that_lies_is_named(change: Callable[[dict[str, Any]], object], tmp_path: Path) -> None:
    found = checked(tmp_path, CONFIGS["nf4, nested"], nested(change), "BF16")
    assert found.outcome == Outcome.VIOLATIONS
    assert {each.tensor.partition(".weight")[0] for each in found.findings} == {WHERE}


def test_a_text_that_makes_weights_of_its_own_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its offset is a mean, taken as stored: every code can fit one that is far from it."""
    config, (codec, known) = CONFIGS["nf4, nested"], made_by(CONFIGS["nf4, nested"])
    healthy = tensors(codec, known[0], "BF16")
    lies = beside(codec, "BF16")
    lies["weight.quant_state.bitsandbytes__nf4"] = np.frombuffer(
        bytes(lies["weight.quant_state.bitsandbytes__nf4"]).replace(b"0.03125", b"1000.25"), np.uint8
    )
    monkeypatch.setattr(f"{__name__}.beside", lambda *_: lies)
    theirs = {name: each for name, each in tensors(codec, known[0], "BF16").items() if name.startswith(f"{WHERE}.")}
    found = checked(tmp_path, config, {**healthy, **theirs}, "BF16")
    assert {each.tensor.partition(".weight")[0] for each in found.findings} == {WHERE}
    assert {each.kind for each in found.findings} == {"not the base's weights"}


def in_tiles(order: int, layers: Collection[str], *, moved: bool = True) -> Tensors:
    """int8 by rows, of some layers in an order of tiles, or, where nothing is `moved`, said to be so."""
    codec, known = made_by(CONFIGS["int8 by rows"])
    made = dict(tensors(codec, known[0], "BF16"))
    for layer in layers:
        dtype, shape, data = made[f"{layer}.weight"]
        codes = np.frombuffer(data, np.int8).reshape(ROWS // 8, 8, COLUMNS // 32, 32)
        if moved:
            made[f"{layer}.weight"] = dtype, shape, codes.transpose(2, 0, 1, 3).tobytes()
        made[f"{layer}.weight_format"] = "U8", [], bytes([order])
    return made


@pytest.mark.parametrize("layers", [LAYERS, LAYERS[:1], LAYERS[1:]])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_int8_in_tiles_is_not_modelled_and_accuses_nobody(order: int, layers: list[str], tmp_path: Path) -> None:
    found = checked(tmp_path, CONFIGS["int8 by rows"], in_tiles(order, layers), "BF16")
    assert found.outcome == Outcome.NOT_MODELLED and not found.findings
    assert {each.tensor for each in found.unmodelled} == {*layers}


@pytest.mark.parametrize("layers", [LAYERS, [WHERE]])
@pytest.mark.parametrize(("order", "moved"), [(1, False), (4, False), (255, True)])
def test_a_format_that_int8_does_not_have_is_named(order: int, moved: bool, layers: list[str], tmp_path: Path) -> None:
    found = checked(tmp_path, CONFIGS["int8 by rows"], in_tiles(order, layers, moved=moved), "BF16")
    assert found.outcome == Outcome.VIOLATIONS
    assert {each.tensor for each in found.findings} >= {f"{layer}.weight_format" for layer in layers}
    assert {each.tensor.rpartition(".")[0] for each in found.findings} == {*layers}


def test_a_layer_may_not_have_the_scale_of_one_that_it_is_never_fused_with(tmp_path: Path) -> None:
    codec, known = made_by(CONFIGS["FP8, one scale"])
    made = dict(tensors(codec, known[0], "BF16"))
    made = {name.replace(".up_proj.", ".down_proj."): each for name, each in made.items()}
    name = "model.layers.1.mlp.gate_proj.weight_scale"
    made[name] = (*made[name][:2], bytes([made[name][2][0], made[name][2][1] + 1]))
    base = {name.replace("up_proj", "down_proj"): each for name, each in base_of("BF16").items()}
    assert checked(tmp_path, CONFIGS["FP8, one scale"], made, "BF16", base).outcome == Outcome.VIOLATIONS


def test_what_only_a_side_file_says_is_not_modelled(tmp_path: Path) -> None:
    codec, known = made_by(CONFIGS["FP8 of DeepSeek"])
    healthy = tensors(codec, known[0], "BF16")
    side = {"quantization_config.json": {**CONFIGS["FP8 of DeepSeek"], "modules_to_not_convert": [WHERE]}}
    assert checked(tmp_path, CONFIGS["FP8 of DeepSeek"], healthy, "BF16", files=side).outcome == Outcome.NOT_MODELLED


def test_two_declarations_in_one_file_must_be_the_same(tmp_path: Path) -> None:
    codec, known = made_by(CONFIGS["MLX 4 bits"])
    healthy = tensors(codec, known[0], "BF16")
    both = {"config.json": {"quantization_config": CONFIGS["MLX 4 bits"], "quantization": CONFIGS["MLX 3 bits"]}}
    assert checked(tmp_path, CONFIGS["MLX 4 bits"], healthy, "BF16", files=both).outcome == Outcome.VIOLATIONS


EMPTY = [("F64", [ROWS, COLUMNS]), ("I8", [ROWS, COLUMNS]), ("BF16", [0, COLUMNS]), ("BF16", [ROWS, 0])]


@pytest.mark.parametrize("spec", EMPTY)
@pytest.mark.parametrize("name", ["FP8 of DeepSeek", "FP8, one scale", "NVFP4", "nf4", "MLX 4 bits"])
def test_a_base_that_nothing_can_be_made_of_is_not_modelled_or_misshapen(name: str, spec: Any, tmp_path: Path) -> None:
    codec, known = made_by(CONFIGS[name])
    dtype, shape = spec
    size = {"F64": 8, "I8": 1, "BF16": 2}[dtype] * shape[0] * shape[1]
    base = {f"{layer}.weight": (dtype, shape, bytes(size)) for layer in LAYERS}
    found = checked(tmp_path, CONFIGS[name], tensors(codec, known[0], "BF16"), "BF16", base)
    assert found.outcome in (Outcome.VIOLATIONS, Outcome.NOT_MODELLED)


def test_a_head_that_is_float_and_not_ignored_is_named(tmp_path: Path) -> None:
    codec, known = made_by(CONFIGS["int4, groups"])
    head = ("BF16", [8, COLUMNS], bytes(16 * COLUMNS))
    theirs, base = (
        {**tensors(codec, known[0], "BF16"), "lm_head.weight": head},
        {**base_of("BF16"), "lm_head.weight": head},
    )
    found = checked(tmp_path, CONFIGS["int4, groups"], theirs, "BF16", base)
    assert [(each.kind, each.tensor) for each in found.findings] == [("declared otherwise", "lm_head.weight")]
    (tmp_path / "ignored").mkdir()
    ignored = {**CONFIGS["int4, groups"], "ignore": ["lm_head"]}
    assert checked(tmp_path / "ignored", ignored, theirs, "BF16", base).outcome == Outcome.CLEAN


@pytest.mark.parametrize(
    ("name", "more", "outcome"),
    [
        ("MLX 4 bits", {}, Outcome.CLEAN),
        ("MLX 4 bits", {WHERE: False}, Outcome.CLEAN),
        ("MLX 4 bits", {WHERE: {"bits": 4, "group_size": 64}}, Outcome.VIOLATIONS),
        ("int4, groups", {}, Outcome.VIOLATIONS),
        ("nf4", {}, Outcome.VIOLATIONS),
    ],
)
def test_a_layer_that_is_float_accuses_where_its_loader_looks_for_codes(
    name: str, more: dict[str, Any], outcome: Outcome, tmp_path: Path
) -> None:
    codec, known = made_by(CONFIGS[name])
    coded = {key: each for key, each in tensors(codec, known[0], "BF16").items() if not key.startswith(f"{WHERE}.")}
    theirs = {**coded, f"{WHERE}.weight": base_of("BF16")[f"{WHERE}.weight"]}
    found = checked(tmp_path, {**CONFIGS[name], **more}, theirs, "BF16")
    assert found.outcome == outcome
    assert {each.tensor for each in found.findings} <= {f"{WHERE}.weight"}
