"""What a small model says of a large one: numbers in names, order, likeness, and no row to two layers."""

from collections.abc import Mapping
from typing import Any

import pytest
from tests.conftest import Refuses

from requant.errors import BuildError
from requant.names import named, numbered
from requant.protocol import Source, Tensors
from requant.worker.autoround.scaling import _unloaded, arranged
from requant.worker.autoround.sources import confirm, general
from requant.worker.autoround.tensors import Base


@pytest.mark.parametrize("name", ["a.0.b1.12.c", "norm1.weight", "x", "layers.3"])
def test_numbers_of_a_name_are_put_back(name: str) -> None:
    assert named(*numbered(name)) == name


def test_only_whole_parts_are_numbers() -> None:
    assert numbered("layers.10.norm1.experts.2.w") == ("layers.*.norm1.experts.*.w", (10, 2))


def test_blocks_are_ordered_as_those_of_their_kind() -> None:
    like = ["head", "l.0.x", "l.0.z", "l.0.y", "l.1.a", "l.1.y", "l.1.z", "norm", "m.0.b", "m.0.a"]
    names = ["m.0.a", "m.0.b", "l.3.z", "l.3.a", "l.3.y", "l.0.y", "l.0.z", "l.0.x", "norm", "head"]
    assert arranged(names, like) == [
        "head",
        *("l.0.x", "l.0.z", "l.0.y", "l.3.a", "l.3.y", "l.3.z"),
        *("norm", "m.0.b", "m.0.a"),
    ]


def test_what_others_do_not_have_comes_last_and_numbers_ascend() -> None:
    assert arranged(["new", "l.10.w", "l.2.w", "l.2"], ["l.0.w", "l.0"]) == ["l.2.w", "l.2", "l.10.w", "new"]


def whole(tensor: str) -> Source:
    return Source(tensor, (), 0, 1, interleaved=False, transposed=False)


def half(expert: int, part: int, *, transposed: bool = False) -> Source:
    return Source("l.0.up", (expert,), part, 2, interleaved=False, transposed=transposed)


def test_experts_that_are_files_of_their_own_are_found_by_their_numbers() -> None:
    small = {f"l.{i}.e.{j}.up": whole(f"l.{i}.m.{j}.w3") for i in range(2) for j in range(3)}
    found = general({"l.7.e.40.up": (1, 1)}, small)
    assert found == {"l.7.e.40.up": whole("l.7.m.40.w3")}


def test_an_index_is_the_number_that_it_always_equals() -> None:
    small = {f"l.{i}.e.{j}.up": Source(f"l.{i}.up", (j,), 1, 2, False, False) for i in range(2) for j in range(2)}
    assert general({"l.9.e.5.up": (1, 1)}, small) == {"l.9.e.5.up": Source("l.9.up", (5,), 1, 2, False, False)}


def test_a_number_that_is_in_no_name_stays() -> None:
    small = {f"l.{i}.up": Source(f"stages.7.{i}", (), 0, 1, False, False) for i in range(2)}
    assert general({"l.5.up": (1, 1)}, small) == {"l.5.up": whole("stages.7.5")}
    assert general({"l.5.up": (1, 1)}, dict.fromkeys(small)) == {"l.5.up": None}


@pytest.mark.parametrize(
    "small",
    [
        {"l.0.e.0.up": whole("l.0.m.0.w")},
        {"l.0.e.0.up": whole("a.5"), "l.0.e.1.up": whole("a.6"), "l.1.e.0.up": whole("a.7")},
        {"l.0.e.0.up": whole("a.w"), "l.0.e.1.up": whole("b.w")},
        {"l.0.e.0.up": half(0, 0), "l.0.e.1.up": half(1, 1)},
        {"l.0.e.0.up": whole("a.w"), "l.0.e.1.up": None},
        {},
    ],
)
def test_where_a_small_model_leaves_it_open_there_is_no_source(
    small: dict[str, Source | None], refuses: Refuses
) -> None:
    with refuses(BuildError):
        general({"l.3.e.3.up": (1, 1)}, small)


TABLE: Tensors = {"l.0.up": ("BF16", (2, 8, 6)), "w": ("BF16", (4, 6)), "norm": ("BF16", (6,))}
EXPERTS = {f"e.{i}.{part}": half(i, part) for i in range(2) for part in range(2)}
SHAPES = dict.fromkeys([*EXPERTS, "w", "v"], (4, 6))


def every(sources: Mapping[str, Source | None]) -> dict[str, Source | None]:
    """Sources of all layers: what is not named has none."""
    return {**dict.fromkeys(SHAPES), **sources}


def test_a_tensor_is_layers_whole_and_once_or_none() -> None:
    confirm(SHAPES, every(EXPERTS), TABLE)
    confirm(SHAPES, every({"w": whole("w")}), TABLE)
    confirm({"a": (2, 6), "b": (2, 6)}, {n: Source("w", (), i, 2, True, False) for i, n in enumerate("ab")}, TABLE)
    confirm({"t": (6, 4)}, {"t": Source("w", (), 0, 1, False, True)}, TABLE)


@pytest.mark.parametrize(
    "changes",
    [
        {"w": whole("absent")},
        {"w": whole("norm")},
        {"w": whole("l.0.up")},
        {"e.1.1": half(2, 1)},
        {"e.1.1": half(1, 2)},
        {"e.1.1": half(1, 1, transposed=True)},
        {"v": whole("w"), "w": whole("w")},
        {"e.1.1": None},
        {"e.1.1": None, "e.1.0": None},
    ],
)
def test_a_source_that_does_not_fit_is_refused(changes: dict[str, Source | None], refuses: Refuses) -> None:
    with refuses(BuildError):
        confirm(SHAPES, every({**EXPERTS, **changes}), TABLE)


def unloaded(tensors: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, Any]:
    """Scale what begins with `mtp` or is in block 9 from hidden size 64 to 16."""
    table: Tensors = {name: ("BF16", shape) for name, shape in tensors.items()}
    apart = tuple(name for name in tensors if name.startswith(("mtp", "l.9.")))
    return _unloaded(shapes, Base("", table, apart, {}, (), 64), 16)


BLOCKS = {f"l.{i}.{name}": (96, 64) for i in range(2) for name in ("q", "e.0.w", "e.1.w", "e.2.w")}
SMALL = {f"l.{i}.{name}": (24, 16) for i in range(2) for name in ("q", "e.0.w", "e.1.w")}


def test_what_nothing_loads_is_scaled_by_its_likeness() -> None:
    tensors = BLOCKS | {"mtp.l.0.q": (96, 64), "mtp.l.0.e.1.w": (96, 64), "mtp.fc": (64, 128), "mtp.norm": (64,)}
    assert unloaded(tensors, SMALL) == {
        "mtp.l.0.q": (24, 16),
        "mtp.l.0.e.1.w": (24, 16),
        "mtp.fc": (16, 32),
        "mtp.norm": (16,),
    }


def test_numbers_beyond_a_small_model_are_dropped() -> None:
    assert unloaded(BLOCKS | {"mtp.l.0.e.2.w": (96, 64)}, SMALL) == {}


def test_a_block_that_is_numbered_on_from_the_others_follows_those_of_the_small_model() -> None:
    """As the MTP blocks of DeepSeek-V3 and GLM-4.5 do."""
    longer = BLOCKS | {f"l.{i}.q": (96, 64) for i in range(2, 9)}
    assert unloaded(longer | {"l.9.q": (96, 64)}, SMALL) == {"l.2.q": (24, 16)}


@pytest.mark.parametrize("name", ["mtp.fc", "mtp.l.0.other", "mtp.l.0.q"])
def test_a_size_of_which_nothing_is_known_names_the_tensor(name: str, refuses: Refuses) -> None:
    with refuses(BuildError):
        unloaded(BLOCKS | {name: (96, 60)}, SMALL)


def test_likeness_to_two_sizes_at_once_or_to_none_here_is_refused(refuses: Refuses) -> None:
    with refuses(BuildError):
        unloaded(BLOCKS | {"mtp.l.0.q": (96, 64)}, SMALL | {"l.1.q": (8, 8)})
    with refuses(BuildError):
        unloaded(BLOCKS | {"mtp.l.0.q": (96, 64)}, {"l.0.e.0.w": (24, 16)})
