"""`check` of formats that are made again against hashing the same bytes: base and checkpoint, read once.

    python benchmarks/formats.py [FOLDER]

Layers of 2,048 inputs and outputs, made by the first formula of each format, as the tests have them; then by none,
which is what a checkpoint costs that nothing can make again. What memory they take, `memory.py` measures.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import gguf
import numpy as np
import peers

sys.path.append(str(Path(__file__).parent.parent))

from tests.checkpoints import Tensors, shard
from tests.formats import CONFIGS, made_by
from tests.test_formats import beside

from requant.check import check
from requant.check.reader import open_reader
from requant.check.stored import NUMPY
from requant.checkpoint.safetensors import Spec
from requant.formats.codec import Array, Codec, narrow, widen
from requant.formats.ggml import Ggml
from requant.rounding.formula import Formula
from requant.rounding.formulas import formulas

SHAPE, COUNT, SHARDS = (2048, 2048), 36, 6
NAMES = ("int4, groups", "int8, channels", "FP8, channels", "FP8 of DeepSeek", "NVFP4", "MXFP4", "nf4", "int8 by rows")
NAMES += ("MLX 4 bits", "MLX mxfp4", "int3, groups")
KINDS = {f"GGUF {kind}": kind for kind in ("Q8_0", "Q4_0", "Q4_K", "Q6_K")}
MODEL = "qwen3"
"""An architecture whose layers have names in GGUF."""


def form(name: str) -> tuple[Codec, Sequence[Formula]]:
    """Return a format, and its formulas."""
    return (Ggml(KINDS[name]), formulas(Ggml(KINDS[name]))) if name in KINDS else made_by(CONFIGS[name])


def write(
    folder: Path, name: str, *, exact: bool, count: int = COUNT, shape: tuple[int, int] = SHAPE, times: int = 1
) -> tuple[Path, Path]:
    """Write a base of `count` layers, and a checkpoint of it, unless they are there; return both.

    All outputs are there several `times`, so that no large weight is ever in memory.
    """
    base, made = folder / "base", folder / f"{name} {exact}".replace(" ", "-")
    said = {} if name in KINDS else {"quantization_config": CONFIGS[name]}
    for path, more in ((base, {}), (made, said)):
        if (path / "config.json").exists():
            continue
        path.mkdir(parents=True, exist_ok=True)
        places: dict[str, str] = {}
        files = min(SHARDS, count)  # of about the same size, so that all processors can hash
        for number in range(files):
            numbers = range(number, count, files)
            is_base, some = path == base, (numbers, shape, times)
            tensors = of_base(*some) if is_base else of(name, *some, exact=exact)
            if not is_base and name in KINDS:
                save(path / f"model-{number + 1:05}-of-{files:05}.gguf", KINDS[name], tensors)
            else:
                (path / f"model-{number}.safetensors").write_bytes(shard(tensors))
                places |= dict.fromkeys(tensors, f"model-{number}.safetensors")
        if places:
            (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
        (path / "config.json").write_text(json.dumps({"model_type": MODEL, **more}))
    return base, made


def weights(number: int, shape: tuple[int, int]) -> Array:
    """Return the weights of a layer, which are BF16, as float32."""
    drawn = np.random.default_rng(number).standard_normal(shape, np.float32)
    return widen(narrow(drawn * np.float32(0.02), "BF16"), "BF16")


def of_base(numbers: Iterable[int], shape: tuple[int, int], times: int) -> Tensors:
    """Return layers of the base by their numbers."""
    whole = [shape[0] * times, shape[1]]
    return {
        f"{layer(number)}.weight": ("BF16", whole, narrow(weights(number, shape), "BF16").tobytes() * times)
        for number in numbers
    }


def of(name: str, numbers: Iterable[int], shape: tuple[int, int], times: int, *, exact: bool) -> Tensors:
    """Return the same layers in a format, or what others near them are in it."""
    (codec, (first, *_)), made = form(name), {}
    full = shape[0] * times, shape[1]
    parts = codec.parts(*full, "BF16")
    for number in numbers:
        own = weights(number, shape)
        whole = dict(first.whole(float(np.abs(own).max()), "BF16")) | beside(codec, "BF16", full)
        whole |= {suffix: part.holds for suffix, part in parts.items() if part.holds is not None}
        if not exact:
            own += np.float32(0.004) * np.random.default_rng(number + COUNT).standard_normal(shape, np.float32)
        for suffix, each in {**whole, **first.encode(own, "BF16", whole)}.items():
            spec = parts[suffix].spec if parts[suffix].sized else Spec(parts[suffix].spec.dtype, each.shape)
            repeated = times if parts[suffix].every else 1
            data = np.ascontiguousarray(each, NUMPY[spec.dtype]).tobytes() * repeated
            made[f"{layer(number)}.{suffix}"] = (spec.dtype, [*spec.shape], data)
    return made


def layer(number: int) -> str:
    """Return the name of a layer."""
    return f"model.layers.{number}.mlp.up_proj"


def save(path: Path, kind: str, tensors: Tensors) -> None:
    """Write blocks of ggml, [rows, bytes of a row], as a GGUF file."""
    writer = gguf.GGUFWriter(path, MODEL)
    for name, (_, shape, data) in tensors.items():
        theirs = name.replace("model.layers", "blk").replace("mlp.up_proj", "ffn_up")
        octets = np.frombuffer(data, np.uint8).reshape(shape)
        writer.add_tensor(theirs, octets, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def checked(base: Path, made: Path, *, exact: bool) -> None:
    """Check a pair, and confirm what is said of it."""
    with open_reader(str(made)) as theirs, open_reader(str(base)) as ours:
        found = check(theirs, ours, threads=peers.THREADS)
    assert found.clean is exact, (found.findings[:3], found.unmodelled[:3])


def main() -> None:
    """Measure and print."""
    ratios = {}
    for name in (*NAMES, *KINDS):
        for exact in (True, False):
            pair = write(peers.folder() / "formats", name, exact=exact)
            title = f"{name}{'' if exact else ', by no formula'}"
            medians = peers.compare(
                title,
                peers.size(*pair),
                {
                    "openssl dgst -sha256": peers.each_file(pair, "openssl", "dgst", "-sha256"),
                    "requant check": lambda pair=pair, exact=exact: checked(*pair, exact=exact),
                },
            )
            ratios[f"{title}: check/openssl"] = medians["requant check"] / medians["openssl dgst -sha256"]
    peers.told(ratios)


if __name__ == "__main__":
    main()
