"""What differs is counted and placed; what is only arranged otherwise is equivalent, and named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.checkpoints import SMALL, Tensors, checkpoints, on_disk, shard, write

from requant.checkpoint.safetensors import ITEM_BITS
from requant.diff import diff
from requant.diff.difference import Numbers, Steps
from requant.errors import CheckpointError
from requant.formats import gptq
from requant.verdict import Outcome

WORDS = np.arange(24, dtype="<u4").reshape(3, 8)
SCALES = np.array([[0.5, -0.25, 0.0, 1.0]], "<f2")
PACKED: Tensors = {
    "p.qweight": ("I32", [3, 8], WORDS.tobytes()),
    "p.scales": ("F16", [1, 4], SCALES.tobytes()),
    "n": ("BF16", [2, 2], np.array([0x3F80, 0x4000, 0xBF80, 0], "<u2").tobytes()),
}


def two(tmp_path: Path, **changed: tuple[str, list[int], bytes]) -> tuple[Path, Path]:
    names = {name.replace("_", "."): value for name, value in changed.items()}
    write(tmp_path / "a", {"model.safetensors": shard(PACKED, {"format": "pt"}), "config.json": b'{"a": 1}'})
    changes = {**PACKED, **names}
    write(tmp_path / "b", {"model.safetensors": shard(changes, {"format": "pt"}), "config.json": b'{"a": 1}'})
    return tmp_path / "a", tmp_path / "b"


@given(files=checkpoints())
def test_a_checkpoint_is_identical_to_itself(files: dict[str, bytes]) -> None:
    with on_disk(files) as folder:
        result = diff(folder, folder)
        assert (result.outcome, result.tensors, result.files, result.arrangement) == (Outcome.IDENTICAL, {}, {}, ())


@given(files=checkpoints().filter(lambda files: any(files.values())), data=st.data())
def test_any_flipped_bit_makes_a_difference(files: dict[str, bytes], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(name for name in files if files[name])))
    spoilt = bytearray(files[name])
    spoilt[data.draw(st.integers(0, len(spoilt) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with on_disk(files) as one, on_disk({**files, name: bytes(spoilt)}) as other:
        try:
            result = diff(one, other)
        except CheckpointError as error:
            assert name in str(error)
        else:
            assert result.outcome is not Outcome.IDENTICAL


# Bits of two neighbouring numbers, and the values that the formats' own papers give them.
NEIGHBOURS = {
    "F4": (2, 3, 0.5),  # 1.0 and 1.5
    "F6_E2M3": (8, 9, 0.125),  # 1.0 and 1.125
    "F6_E3M2": (12, 13, 0.25),  # 1.0 and 1.25
    "F8_E4M3": (0x38, 0x39, 0.125),
    "F8_E4M3FNUZ": (0x40, 0x41, 0.125),
    "F8_E5M2": (0x3C, 0x3D, 0.25),
    "F8_E5M2FNUZ": (0x40, 0x41, 0.25),
    "F8_E8M0": (127, 128, 1.0),
    "BF16": (0x3F80, 0x3F81, 2**-7),
    "U8": (7, 8, 1.0),
}


@pytest.mark.parametrize("dtype", NEIGHBOURS)
@pytest.mark.parametrize("at", range(8))
def test_an_element_of_any_width_is_counted_placed_and_valued(tmp_path: Path, dtype: str, at: int) -> None:
    ours, theirs, gap = NEIGHBOURS[dtype]
    bits = ITEM_BITS[dtype]
    numbers = [ours] * 8
    first = sum(number << bits * place for place, number in enumerate(numbers)).to_bytes(bits, "little")
    numbers[at] = theirs
    second = sum(number << bits * place for place, number in enumerate(numbers)).to_bytes(bits, "little")
    write(tmp_path / "a", {"model.safetensors": shard({"t": (dtype, [2, 4], first)})})
    write(tmp_path / "b", {"model.safetensors": shard({"t": (dtype, [2, 4], second)})})
    result = diff(tmp_path / "a", tmp_path / "b")
    assert result.tensors == {"t": Numbers(1, 8, gap, 1, (at // 4, at % 4))}


def test_complex_numbers_are_counted_without_an_order(tmp_path: Path) -> None:
    for folder, values in (("a", [1, 1j]), ("b", [1, 4 + 5j])):
        data = np.array(values, "<c8").tobytes()
        write(tmp_path / folder, {"model.safetensors": shard({"t": ("C64", [2], data)})})
    assert diff(tmp_path / "a", tmp_path / "b").tensors == {"t": Numbers(1, 2, abs(4 + 4j), 0, (1,))}


def test_steps_of_codes_are_counted_and_placed(tmp_path: Path) -> None:
    words = WORDS.copy()
    words[1, 2] += 1 << 4  # 10 = 0xa: its second code 0 becomes 1
    words[2, 0] -= 3 << 0  # 16 = 0x10: its first code is 0, so the second falls and the first becomes 13
    result = diff(*two(tmp_path, p_qweight=("I32", [3, 8], words.tobytes())))
    assert result.outcome is Outcome.DIFFERENT
    assert result.tensors == {"p.qweight": Steps(3, 192, {-1: 1, 1: 1, 13: 1}, (1, 2))}
    assert any("concentrated or large" in line for line in result.text(9))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_steps_of_codes_of_any_width_are_counted(bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows are so small here that codes of 3 bits would lie in two of them."""
    monkeypatch.setattr("requant.diff.BYTES", 64)
    random = np.random.default_rng(bits)
    first, second = (random.integers(0, 1 << bits, (64, 96), dtype=np.uint8) for _ in range(2))
    second[:, :32] = first[:, :32]
    specs = gptq.specs((64, 96), 32, bits)
    for folder, codes in (("a", first), ("b", second)):
        held = {f"p.{name}": (spec.dtype, list(spec.shape), bytes(spec.nbytes)) for name, spec in specs.items()}
        held["p.qweight"] = ("I32", list(specs["qweight"].shape), gptq.pack(codes, bits).tobytes())
        write(tmp_path / folder, {"model.safetensors": shard(held)})
    apart = second.astype(int) - first
    steps = {int(step): int((apart == step).sum()) for step in np.unique(apart) if step}
    words = gptq.pack(first, bits) != gptq.pack(second, bits)
    at = tuple(int(each) for each in np.argwhere(words)[0])
    found = diff(tmp_path / "a", tmp_path / "b").tensors
    assert found == {"p.qweight": Steps(sum(steps.values()), first.size, steps, at)}


def test_scales_differ_in_ulp_across_zero(tmp_path: Path) -> None:
    scales = SCALES.copy()
    scales[0, 0] = np.nextafter(scales[0, 0], np.float16(1))
    scales[0, 2] = np.float16(-6e-8)  # the smallest below zero
    result = diff(*two(tmp_path, p_scales=("F16", [1, 4], scales.tobytes())))
    assert result.tensors == {"p.scales": Numbers(2, 4, 0.00048828125, 1, (0, 0))}


def test_numbers_differ_by_value(tmp_path: Path) -> None:
    changed = np.array([0x3F80, 0x4080, 0xBF80, 0], "<u2").tobytes()
    result = diff(*two(tmp_path, n=("BF16", [2, 2], changed)))
    assert result.tensors == {"n": Numbers(1, 4, 2.0, 128, (0, 1))}
    not_finite = np.array([0x7F80, 0x7FC0, 0xBF80, 0], "<u2").tobytes()
    write(tmp_path / "b", {"model.safetensors": shard({**PACKED, "n": ("BF16", [2, 2], not_finite)})})
    assert diff(tmp_path / "a", tmp_path / "b").tensors["n"] == Numbers(2, 4, 0.0, 0x4000, (0, 0))


def test_another_shape_is_told_in_words(tmp_path: Path) -> None:
    result = diff(*two(tmp_path, n=("F16", [4], PACKED["n"][2])))
    assert result.tensors == {"n": "BF16 [2, 2] in the first, F16 [4] in the second"}


SECOND = shard({"c": ("F16", [2], b"\x08\x09\x0a\x0b")})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model-00002-of-00002.safetensors": None, "other.safetensors": SECOND}, "other.safetensors: in the second"),
        (
            {
                "model-00001-of-00002.safetensors": shard(
                    {"b": ("U8", [3], b"\x05\x06\x07"), "a": ("F16", [2], b"\x01\x02\x03\x04")}, {"format": "pt"}
                )
            },
            "another order",
        ),
        (
            {"model-00002-of-00002.safetensors": shard({"c": ("F16", [2], b"\x08\x09\x0a\x0b")}, {"x": "y"})},
            "other metadata",
        ),
        (
            {"model-00002-of-00002.safetensors": SECOND.replace(b'{"c"', b' {"c"').replace(b": ", b":", 1)},
            "written otherwise",
        ),
    ],
)
def test_arrangement_makes_an_equivalent(changes: dict[str, bytes | None], said: str, tmp_path: Path) -> None:
    write(tmp_path / "a", SMALL)
    write(tmp_path / "b", {name: data for name, data in {**SMALL, **changes}.items() if data is not None})
    result = diff(tmp_path / "a", tmp_path / "b")
    assert result.outcome is Outcome.EQUIVALENT
    assert any(said in line for line in result.arrangement), result.arrangement


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'{"a":2}\n', "a: 1 -> 2"),
        (b'{"b":[1]}', "b: absent -> [1]"),
        (b'{"a" : 1}', "the same values, written otherwise"),
        (b'{"a": true}', "a: 1 -> true"),
        (b"{", "other bytes"),
        (b'{"a":1,"a":1}', "other bytes"),
    ],
)
def test_side_files_are_told_by_value(text: bytes, said: str, tmp_path: Path) -> None:
    write(tmp_path / "a", SMALL)
    write(tmp_path / "b", {**SMALL, "config.json": text})
    result = diff(tmp_path / "a", tmp_path / "b")
    assert result.outcome is Outcome.EQUIVALENT
    assert any(said in line for line in result.files["config.json"]), result.files


def test_what_one_side_lacks_is_named(tmp_path: Path) -> None:
    first, second = two(tmp_path, more=("U8", [0], b""))
    write(second, {"LICENSE": b"x"})
    result = diff(first, second)
    assert (result.only_first, result.only_second, result.files["LICENSE"]) == ((), ("more",), ("in the second only",))
    assert result.outcome is Outcome.DIFFERENT


def test_the_command_line_prints_json(tmp_path: Path) -> None:
    first, second = two(tmp_path, n=("BF16", [2, 2], bytes(8)))
    command = [sys.executable, "-m", "requant", "diff", str(first), str(second)]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False, env={**os.environ})
    assert json.loads(done.stdout)["tensors"]["n"]["differ"] == 3, done.stderr
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "different"
