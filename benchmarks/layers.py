"""Checkpoints of the base's real width for the benchmarks: blocks of 256 experts at hidden 2048, without MTP.

The base is the wide tiny model's. Its quantized half is synthesised instead of tuned, with offsets and factors drawn
from the whole reach of 400 iterations. Blocks after the first repeat its bytes, and shards are about as large as two
threads can share out. `python benchmarks/layers.py FOLDER 1 2 4` writes FOLDER/base-1, FOLDER/tuned-1 and so on.
"""

import json
import os
import sys
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from requant.checkpoint.checkpoint import (
    INDEX,
    Checkpoint,
    Content,
    Held,
    Tensor,
    index,
    json_file,
    open_checkpoint,
    write_checkpoint,
)
from requant.formats.gptq import bfloat16_to_float32, constant, pack
from requant.formats.gptq import specs as packed_specs
from requant.model.plan import Layer, Plan
from requant.model.skeleton import plan
from requant.model.target import config_of
from requant.model.tiny import stream
from requant.recipe import read_recipe
from requant.rounding.reach import reach

RECIPE = read_recipe(Path(__file__).parent.parent / "builds" / "ec")
GROUP = 128
REACH = reach(400, 1 / 400, 1 / 400)
DECLARED = {
    "quant_method": "auto-round",
    "packing_format": "auto_round:auto_gptq",
    "bits": 4,
    "group_size": GROUP,
    "sym": True,
    "data_type": "int",
    "iters": 400,
    "block_name_to_quantize": ["model.language_model.layers"],
}


def configuration(layers: int) -> dict[str, Any]:
    """Return the configuration of so many blocks of linear attention."""
    made = config_of(RECIPE, "wide")
    made["text_config"] |= {"num_hidden_layers": layers, "mtp_num_hidden_layers": 0}
    made["text_config"]["layer_types"] = ["linear_attention"] * layers
    return made


def planned(layers: int) -> Plan:
    """Return the plan of so many blocks."""
    return plan(configuration(layers), RECIPE.layers.ignore)


def sides(layers: int, shards: Mapping[str, Mapping[str, Tensor]], is_quantized: bool) -> dict[str, Content]:
    """Return configuration and index, as `check` wants them."""
    made = configuration(layers)
    if is_quantized:
        floats = [name.removesuffix(".weight") for shard in shards.values() for name in shard if "gate.weight" in name]
        made["quantization_config"] = DECLARED | {"extra_config": {name: {"bits": 16} for name in floats}}
    return {"config.json": json_file(made), INDEX: index(shards)}


def write_pair(folder: Path, layers: int) -> tuple[Path, Path]:
    """Write base and checkpoint of so many blocks, unless they are there; return their folders."""
    base, tuned = folder / f"base-{layers}", folder / f"tuned-{layers}"
    if layers > 1:
        for one, path in zip(write_pair(folder, 1), (base, tuned), strict=True):
            if not (path / "config.json").exists():
                _repeat(one, path, layers, path == tuned)
        return base, tuned
    if not (base / "config.json").exists():
        shards: dict[str, dict[str, Tensor]] = {}
        for name, spec in planned(layers).tensors.items():
            file = _file(name).replace("model", "experts" if name.endswith("gate_up_proj") else "model")
            shards.setdefault(file, {})[name] = Tensor(spec, stream("wide", _first(name), spec))
        write_checkpoint(Checkpoint(shards, sides(layers, shards, False)), base)
    if not (tuned / "config.json").exists():
        opened = open_checkpoint(base).tensors
        packed = planned(layers).packed
        split = {layer.source.tensor for layer in packed.values() if layer.source}
        shards = {}
        for name, tensor in opened.items():
            if name not in split:
                shards.setdefault(_file(name), {})[name] = tensor
        first = [layer for layer in packed if layer == _first(layer)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            made = dict(zip(first, pool.map(lambda each: _tuned(each, packed[each], opened), first), strict=True))
        for layer in packed:
            for suffix, spec in packed_specs(packed[layer].shape, GROUP).items():
                tensor = Tensor(spec, Held(made[_first(layer)][suffix]))
                shards.setdefault(_file(layer), {})[f"{layer}.{suffix}"] = tensor
        write_checkpoint(Checkpoint(shards, sides(layers, shards, True)), tuned)
    return base, tuned


def _repeat(one: Path, folder: Path, layers: int, is_quantized: bool) -> None:
    shards: dict[str, dict[str, Tensor]] = {}
    for file, tensors in open_checkpoint(one).shards.items():
        for number in range(layers if "rest" not in file else 1):
            renamed = {name.replace(".layers.0.", f".layers.{number}."): tensor for name, tensor in tensors.items()}
            shards[file.replace("-0.", f"-{number}.")] = renamed
    write_checkpoint(Checkpoint(shards, sides(layers, shards, is_quantized)), folder)


def _file(name: str) -> str:
    return f"model-{name.split('.layers.')[1].split('.')[0] if '.layers.' in name else 'rest'}.safetensors"


def _first(name: str) -> str:
    head, found, rest = name.partition(".layers.")
    return f"{head}.layers.0.{rest.split('.', 1)[1]}" if found and "visual" not in name else name


def _tuned(name: str, layer: Layer, opened: dict[str, Tensor]) -> dict[str, bytes]:
    assert layer.source
    tensor, columns = opened[layer.source.tensor], layer.shape[1]
    first, last = layer.source.flat_rows(tensor.spec.shape, layer.shape[0])
    part = tensor.part(2 * first * columns, 2 * last * columns)
    weights = bfloat16_to_float32(b"".join(part.chunks())).reshape(last - first, -1, GROUP)
    random = np.random.default_rng(zlib.crc32(name.encode()))
    low, high = weights.min(axis=2), weights.max(axis=2)
    wide = np.where(-low > high, -low, -high) * random.uniform(REACH.factor, 1, low.shape).astype(np.float32)
    scales = (wide / np.float32(8)).astype(np.float16)
    offsets = random.uniform(-REACH.offset, REACH.offset, weights.shape).astype(np.float32)
    codes = np.clip(np.rint(weights / scales.astype(np.float32)[..., None] + offsets), -8, 7) + 8
    words = pack(codes.astype(np.uint8).reshape(last - first, columns))
    points = np.full((scales.shape[1], len(scales) // 8), constant(7)[0], np.int32)
    data = (words, points, np.ascontiguousarray(scales.T))
    return dict(zip(packed_specs(layer.shape, GROUP), (each.tobytes() for each in data), strict=True))


if __name__ == "__main__":
    for each in sys.argv[2:]:
        print(json.dumps([str(path) for path in write_pair(Path(sys.argv[1]), int(each))]))
