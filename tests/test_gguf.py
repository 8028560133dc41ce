import io
import struct
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import gguf as package
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.checkpoints import on_a_disk

from requant.checkpoint.gguf import MAX_HEADER_BYTES, TYPES, Gguf, Tensor, Value, parse_gguf, read_gguf
from requant.checkpoint.safetensors import Spec, Stretch
from requant.errors import CheckpointError
from requant.model.gguf import LAYERS, Origin, origin

NOWHERE = Path("file.gguf")


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def info(name: str | bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, offset)


def whole(pairs: list[bytes], infos: list[bytes], data: bytes, *, version: int = 3, alignment: int = 32) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(infos), len(pairs)) + b"".join(pairs + infos)
    return head + bytes(-len(head) % alignment) + data


def parsed(data: bytes) -> Gguf:
    return parse_gguf(NOWHERE, io.BytesIO(data), len(data))


PAIRS = [
    pair("general.architecture", 8, text("llama")),
    pair("llama.attention.head_count", 4, struct.pack("<I", 2)),
    pair("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 2) + text("a") + text("b")),
    pair("tokenizer.ggml.scores", 9, struct.pack("<IQ2f", 6, 2, 0.5, 1)),
]
INFOS = [info("blk.0.attn_q.weight", (4, 32), 8, 0), info("output_norm.weight", (3,), 0, 160)]
HEALTHY = whole(PAIRS, INFOS, bytes(range(136)) + bytes(24) + bytes(12))


def test_a_file_is_read() -> None:
    found = parsed(HEALTHY)
    start = len(HEALTHY) - 172
    assert found.values == {
        "general.architecture": "llama",
        "llama.attention.head_count": 2,
        "tokenizer.ggml.scores": (0.5, 1.0),
    }
    assert found.tensors == {
        "blk.0.attn_q.weight": Tensor("Q8_0", (4, 32), Stretch(NOWHERE, start, start + 136)),
        "output_norm.weight": Tensor("F32", (3,), Stretch(NOWHERE, start + 160, start + 172)),
    }
    assert [each.spec for each in found.tensors.values()] == [Spec("U8", (4, 34)), Spec("F32", (3,))]


def test_the_types_are_those_of_the_package() -> None:
    sizes = {int(kind): (kind.name, *size) for kind, size in package.GGML_QUANT_SIZES.items()}
    del sizes[package.GGMLQuantizationType.Q8_1]
    assert {kind: (each.name, each.elements, each.nbytes) for kind, each in TYPES.items()} == sizes


scalars: Any = st.one_of(
    st.tuples(st.just("add_string"), st.text(min_size=1, max_size=8)),
    st.tuples(st.just("add_uint32"), st.integers(0, 2**32 - 1)),
    st.tuples(st.just("add_int64"), st.integers(-(2**63), 2**63 - 1)),
    st.tuples(st.just("add_float64"), st.floats(allow_nan=False)),
    st.tuples(st.just("add_bool"), st.booleans()),
    st.tuples(st.just("add_array"), st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=5)),
    st.tuples(st.just("add_array"), st.lists(st.text(max_size=3), min_size=1, max_size=5)),
)
kinds = st.sampled_from(["F32", "F16", "I8", "Q8_0", "Q4_K"])


@on_a_disk
@given(
    values=st.dictionaries(st.sampled_from("abcd"), scalars),
    tensors=st.dictionaries(st.sampled_from("wxyz"), st.tuples(kinds, st.integers(1, 3), st.integers(1, 3))),
    alignment=st.sampled_from([None, 8, 64]),
)
def test_what_the_package_writes_is_read(values: Any, tensors: Any, alignment: int | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.gguf"
        writer = package.GGUFWriter(path, "llama")
        if alignment:
            writer.add_custom_alignment(alignment)
        for key, (add, value) in values.items():
            getattr(writer, add)(key, value)
        for number, (name, (kind, rows, blocks)) in enumerate(tensors.items()):
            elements, nbytes = package.GGML_QUANT_SIZES[package.GGMLQuantizationType[kind]]
            data = np.full((rows, blocks * nbytes), number, np.uint8)
            if elements == 1:
                data = data.view({"F32": np.float32, "F16": np.float16, "I8": np.int8}[kind])
            writer.add_tensor(name, data, raw_dtype=package.GGMLQuantizationType[kind])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        found, other = read_gguf(path), package.GGUFReader(path)
        kept: dict[str, Value] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, (_, value) in values.items()
            if not (isinstance(value, list) and isinstance(value[0], str))
        }
        assert {key: found.values[key] for key in values if key in found.values} == kept
        assert list(found.tensors) == [each.name for each in other.tensors]
        for each in other.tensors:
            mine = found.tensors[each.name]
            assert mine.type == each.tensor_type.name
            assert mine.shape == tuple(int(size) for size in each.shape[::-1])
            assert mine.spec.shape == each.data.shape
            assert (mine.stretch.start, b"".join(mine.stretch.chunks())) == (each.data_offset, each.data.tobytes())


@given(data=st.data())
def test_damage_is_told(data: st.DataObject) -> None:
    damaged = bytearray(HEALTHY)
    header = len(HEALTHY) - 172
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, header - 1))
        damaged[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=9))
    try:
        found = parsed(bytes(damaged))
    except CheckpointError as error:
        assert str(error).startswith("file.gguf: not a readable GGUF file: ")
        assert str(error).isprintable()
    else:
        assert all(each.stretch.stop <= len(damaged) for each in found.tensors.values())


@pytest.mark.parametrize("length", [0, 3, 4, 8, 23, 24, 30, 100, len(HEALTHY) - 173, len(HEALTHY) - 1])
def test_a_shorter_file_is_told(length: int) -> None:
    with pytest.raises(CheckpointError, match="not a readable GGUF file"):
        parsed(HEALTHY[:length])


HUGE = (1 << 64) - 1
ONE = [info("a", (1,), 0, 0)]
DAMAGED = {
    "its version is 50331648, big-endian": whole([], [], b"", version=3 << 24),
    "its version is 1, expected 2 or 3": whole([], [], b"", version=1),
    f"it states {HUGE:,} tensors": b"GGUF" + struct.pack("<IQQ", 3, HUGE, 0),
    f"it states {HUGE:,} key-values": b"GGUF" + struct.pack("<IQQ", 3, 0, HUGE),
    f"a list of {HUGE:,} strings": whole([pair("a", 9, struct.pack("<IQ", 8, HUGE))], [], b""),
    f"asks for {8 * HUGE:,} bytes": whole([pair("a", 9, struct.pack("<IQ", 10, HUGE))], [], b""),
    f"asks for {HUGE:,} bytes": whole([struct.pack("<Q", HUGE)], [], b""),
    "unknown type 9": whole([pair("a", 9, struct.pack("<IQ", 9, 1))], [], b""),
    "unknown type 13": whole([pair("a", 13, b"")], [], b""),
    "'a' is there twice": whole([pair("a", 0, b"0")] * 2, [], b""),
    r"'\\n' is no key": whole([pair("\n", 0, b"0")], [], b""),
    "its alignment is 3": whole([pair("general.alignment", 4, struct.pack("<I", 3))], ONE, bytes(4)),
    "its alignment is 0": whole([pair("general.alignment", 4, bytes(4))], ONE, bytes(4)),
    "its alignment is 'x'": whole([pair("general.alignment", 8, text("x"))], ONE, bytes(4)),
    "tensor 'a' is there twice": whole([], ONE + ONE, bytes(36)),
    "tensor 'a' has the unknown type 4": whole([], [info("a", (1,), 4, 0)], bytes(4)),
    "rows of 33, no multiple of 32": whole([], [info("a", (33,), 8, 0)], bytes(34)),
    "rows of 1, no multiple of 32": whole([], [info("a", (), 8, 0)], bytes(34)),
    "has 5 dimensions": whole([], [info("a", (1,) * 5, 0, 0)], bytes(4)),
    "the shape [0, 1]": whole([], [info("a", (0, 1), 0, 0)], b""),
    f"the shape [{HUGE}, {HUGE}]": whole([], [info("a", (HUGE, HUGE), 0, 0)], bytes(4)),
    "starts at byte 32 of the data, expected 0": whole([], [info("a", (1,), 0, 32)], bytes(36)),
    "its tensors end at byte 68, the file at byte 67": whole([], ONE, bytes(3)),
    "its tensors end at byte 68, the file at byte 97": whole([], ONE, bytes(33)),
    "'' is no name": whole([], [info("", (1,), 0, 0)], bytes(4)),
    r"\\x1b": whole([], [info("\x1b", (1,), 0, 0)], bytes(4)),
    "is no name for a tensor": whole([], [info("a" * 64, (1,), 0, 0)], bytes(4)),
    "can't decode byte 0xff": whole([], [info(b"\xff", (1,), 0, 0)], bytes(4)),
}


@pytest.mark.parametrize("told", DAMAGED)
def test_each_fault_is_told(told: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        parsed(DAMAGED[told])
    assert told.replace("\\\\", "\\") in str(caught.value)


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        read_gguf(tmp_path / "absent.gguf")


def test_a_large_header_costs_little_memory() -> None:
    tokens = 50_000
    data = whole([pair("a", 9, struct.pack("<IQ", 8, tokens) + text("token") * tokens)], ONE, bytes(4))
    file = io.BytesIO(data)
    tracemalloc.start()
    assert parse_gguf(NOWHERE, file, len(data)).values == {}
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 18


def test_the_largest_header_is_bounded() -> None:
    data = whole([pair("a", 8, text(bytes(MAX_HEADER_BYTES)))], ONE, bytes(4))
    with pytest.raises(CheckpointError, match="beyond byte 67,108,864"):
        parsed(data)


@pytest.mark.parametrize("architecture", LAYERS)
def test_names_are_those_of_the_package(architecture: str) -> None:
    kind = {name: each for each, name in package.MODEL_ARCH_NAMES.items()}[architecture]
    names = package.get_tensor_name_map(kind, 3)
    tensors = {package.TENSOR_NAMES[each].format(bid=2) for each in package.MODEL_TENSORS[kind]}
    values: dict[str, Value] = {
        "general.architecture": architecture,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
    }
    left = set()
    for name in sorted(tensors):
        try:
            place = origin(f"{name}.weight", (2, 4, 4) if name.endswith("_exps") else (4, 4), values)
        except ValueError:
            left.add(name)
            continue
        assert len(place.tensors) == (2 if name.endswith("_exps") else 1)
        for tensor in place.tensors:
            merged = tensor.replace(".experts.0.", ".experts.").replace(".experts.1.", ".experts.")
            # Of Mixtral's, the converter makes names of its own before it asks.
            merged = merged.replace("model.layers.2.block_sparse_moe.experts.", "layers.2.feed_forward.experts.")
            assert names.get_name(merged, try_suffixes=(".weight",)) == f"{name}.weight"
    assert left <= {"rope_freqs", "blk.2.attn_rot_embd"}


LLAMA: dict[str, Value] = {"general.architecture": "llama", "llama.attention.head_count": 2}


def test_rows_of_a_head_are_in_another_order() -> None:
    found = origin("blk.1.attn_q.weight", (8, 4), LLAMA)
    assert found == Origin(("model.layers.1.self_attn.q_proj.weight",), 2)
    assert found.rows(8).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    one = LLAMA | {"llama.attention.head_count_kv": 1}
    assert origin("blk.1.attn_k.bias", (4,), one).rows(4).tolist() == [0, 2, 1, 3]
    assert origin("blk.1.attn_v.weight", (8, 4), LLAMA).rows(3).tolist() == [0, 1, 2]
    assert origin("blk.1.attn_q.weight", (8, 4), {"general.architecture": "qwen2"}).heads == 0


@pytest.mark.parametrize(
    ("name", "shape", "values", "told"),
    [
        ("rope_freqs.weight", (4,), LLAMA, "no tensor of a base"),
        ("blk.0.other.weight", (4, 4), LLAMA, "no tensor of a base"),
        ("output.scale", (4, 4), LLAMA, "no tensor of a base"),
        ("output.weight", (4, 4), {"general.architecture": "gemma"}, "'gemma' are not known"),
        ("output.weight", (4, 4), {}, "None are not known"),
        ("blk.0.ffn_up_exps.weight", (4, 4), LLAMA, "stacks at most"),
        ("blk.0.ffn_up_exps.weight", (1 << 40, 4, 4), LLAMA, "stacks at most"),
        ("blk.0.attn_q.weight", (4, 4), {"general.architecture": "llama"}, "head_count is missing"),
        ("blk.0.attn_k.weight", (4, 4), LLAMA | {"llama.attention.head_count_kv": (1, 2)}, "one number for all layers"),
    ],
)
def test_what_is_not_known_is_told(name: str, shape: tuple[int, ...], values: dict[str, Value], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        origin(name, shape, values)


def test_rows_that_are_no_heads_are_told() -> None:
    with pytest.raises(ValueError, match="6 rows are no 2 heads"):
        Origin(("a",), 2).rows(6)
