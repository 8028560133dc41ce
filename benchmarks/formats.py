"""`check` of formats that are made again against hashing the same bytes: base and checkpoint, read once.

    python benchmarks/formats.py [FOLDER]

Layers of 2,048 inputs and outputs, made by the first formula of each format, as the tests have them; then by none,
which is what a checkpoint costs that nothing can make again.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import peers
from tests.checkpoints import Tensors, shard
from tests.formats import CONFIGS, made_by
from tests.test_formats import beside

from requant.check import check
from requant.check.reader import open_reader
from requant.check.stored import NUMPY
from requant.checkpoint.safetensors import Spec
from requant.formats.codec import Array, narrow, widen

SIDE, COUNT, SHARDS = 2048, 36, 6
NAMES = ("int4, groups", "int8, channels", "FP8, channels", "FP8 of DeepSeek", "NVFP4", "MXFP4", "nf4", "int8 by rows")
NAMES += ("MLX 4 bits", "MLX mxfp4", "int3, groups")


def write(folder: Path, name: str, config: Mapping[str, Any], *, exact: bool) -> tuple[Path, Path]:
    """Write a base, if it is not there, and a checkpoint of it; return both."""
    base, made = folder / "base", folder / f"{name} {exact}".replace(" ", "-")
    codec, known = made_by(config)
    drawn, stored, tensors = np.random.default_rng(0), {}, {}
    for number in range(COUNT):
        layer = f"model.layers.{number}.mlp.up_proj"
        weights: Array = widen(narrow(drawn.normal(0, 0.02, (SIDE, SIDE)).astype(np.float32), "BF16"), "BF16")
        stored[f"{layer}.weight"] = ("BF16", [SIDE, SIDE], narrow(weights, "BF16").tobytes())
        parts = codec.parts(SIDE, SIDE, "BF16")
        whole = dict(known[0].whole(float(np.abs(weights).max()), "BF16")) | beside(codec, "BF16", (SIDE, SIDE))
        whole |= {suffix: part.holds for suffix, part in parts.items() if part.holds is not None}
        near = weights if exact else weights + np.float32(0.004) * drawn.standard_normal(weights.shape, np.float32)
        for suffix, each in {**whole, **known[0].encode(near, "BF16", whole)}.items():
            spec = parts[suffix].spec if parts[suffix].sized else Spec(parts[suffix].spec.dtype, each.shape)
            data = np.ascontiguousarray(each, NUMPY[spec.dtype]).tobytes()
            tensors[f"{layer}.{suffix}"] = (spec.dtype, list(spec.shape), data)
    for path, some, said in ((base, stored, {}), (made, tensors, {"quantization_config": config})):
        if not path.exists():
            path.mkdir(parents=True)
            save(path, some)
            (path / "config.json").write_text(json.dumps({"model_type": "toy", **said}))
    return base, made


def save(folder: Path, tensors: Tensors) -> None:
    """Write tensors in `SHARDS` files of about the same size, so that all processors can hash."""
    names = {f"model-{number}.safetensors": list(tensors)[number::SHARDS] for number in range(SHARDS)}
    for file, some in names.items():
        (folder / file).write_bytes(shard({name: tensors[name] for name in some}))
    index = {name: file for file, some in names.items() for name in some}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def checked(base: Path, made: Path, *, exact: bool) -> None:
    """Check a pair, and confirm what is said of it."""
    with open_reader(str(made)) as theirs, open_reader(str(base)) as ours:
        found = check(theirs, ours, threads=peers.THREADS)
    assert found.clean is exact, (found.findings[:3], found.unmodelled[:3])


def main() -> None:
    """Measure and print."""
    ratios = {}
    for name in NAMES:
        for exact in (True, False):
            pair = write(peers.folder() / "formats", name, CONFIGS[name], exact=exact)
            checked(*pair, exact=exact)
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
    print(f"peak memory of this process: {peers.peak_mib()} MiB")
    peers.told(ratios)


if __name__ == "__main__":
    main()
