"""Configurations of every format that lies row by row, and the table of them in docs/formats.md.

`nox -s formats`, or `python -m tests.formats`, writes the table.
"""

from collections.abc import Mapping
from typing import Any

from tests.conftest import ROOT

from requant.formats.bitsandbytes import FourBit, Int8
from requant.formats.codec import Codec
from requant.formats.compressed_tensors import MX, NVFP4, Packed, Plain
from requant.formats.declarations import declared
from requant.formats.fp8 import Blocks, PerTensor
from requant.formats.ggml import LAYOUTS, Ggml
from requant.formats.mlx import Affine, Float
from requant.formats.modelopt import ModelOptFP8, ModelOptNVFP4
from requant.formats.mxfp4 import GptOssMXFP4
from requant.rounding.formula import Formula
from requant.rounding.formulas import formulas
from requant.rounding.mse import CHOSEN, SEARCHED
from requant.rounding.mse_single import one_scale

DOCS = ROOT / "docs" / "formats.md"
START, END = "<!-- `nox -s formats` writes what follows -->\n", "<!-- until here -->\n"
ROWS, COLUMNS = 192, 256
LAYERS = [f"model.layers.{block}.mlp.{name}_proj" for block in range(4) for name in ("gate", "up")]
WHERE = LAYERS[3]


def integers(form: str, bits: int, **weights: Any) -> dict[str, Any]:
    """A configuration of compressed-tensors."""
    scheme = {"targets": ["Linear"], "weights": {"num_bits": bits, "type": "int", "symmetric": True, **weights}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": scheme}, "ignore": []}


def bits_and_bytes(**said: Any) -> dict[str, Any]:
    """A configuration of bitsandbytes."""
    return {"quant_method": "bitsandbytes", **said}


CONFIGS: dict[str, dict[str, Any]] = {
    "int4, groups": integers("pack-quantized", 4, strategy="group", group_size=128),
    "int4, groups, zero points": integers("pack-quantized", 4, strategy="group", group_size=64, symmetric=False),
    "int3, groups": integers("pack-quantized", 3, strategy="group", group_size=128),
    "int6, groups, zero points": integers("pack-quantized", 6, strategy="group", group_size=32, symmetric=False),
    "int8, channels": integers("int-quantized", 8, strategy="channel"),
    "FP8, channels": integers("float-quantized", 8, strategy="channel", type="float"),
    "FP8, one scale": integers("float-quantized", 8, strategy="tensor", type="float"),
    "FP8, blocks": integers("float-quantized", 8, strategy="block", block_structure=[128, 128], type="float"),
    "NVFP4": integers("nvfp4-pack-quantized", 4, strategy="tensor_group", group_size=16, type="float"),
    "MXFP4": integers("mxfp4-pack-quantized", 4, strategy="group", group_size=32, type="float"),
    "MXFP6": integers("mxfp6-pack-quantized", 6, strategy="group", group_size=32, type="float"),
    "MXFP8": integers("mxfp8-quantized", 8, strategy="group", group_size=32, type="float"),
    "FP8 of DeepSeek": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "FP8 of AutoFP8": {"quant_method": "fp8", "activation_scheme": "static"},
    "FP8 of ModelOpt": {"quant_method": "modelopt", "quant_algo": "FP8"},
    "NVFP4 of ModelOpt": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    "nf4": bits_and_bytes(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "fp4": bits_and_bytes(load_in_4bit=True, bnb_4bit_quant_type="fp4"),
    "nf4, nested": bits_and_bytes(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "int8 by rows": bits_and_bytes(load_in_8bit=True),
    "MLX 4 bits": {"group_size": 64, "bits": 4},
    "MLX 3 bits": {"group_size": 32, "bits": 3},
    "MLX mxfp4": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
    "MLX mxfp8": {"group_size": 32, "bits": 8, "mode": "mxfp8"},
    "MLX nvfp4": {"group_size": 16, "bits": 4, "mode": "nvfp4"},
    "MLX 8 bits": {"group_size": 128, "bits": 8},
}


def made_by(config: Mapping[str, Any]) -> tuple[Codec, tuple[Formula, ...]]:
    declaration = declared(config)
    assert declaration
    codec = declaration.codec(WHERE)
    assert codec
    return codec, tuple(formulas(codec))


TRIED: Mapping[type[Codec], str] = {
    Affine: "MLX 0.32.4 and 0.25.2 on a CPU, and 0.21.1 in the weights' dtype; no GPU",
    Blocks: "transformers 5.24.0; DeepGEMM 54e2261; no tool for `divided`",
    Float: "MLX 0.32.4 on a CPU; no GPU, none before",
    FourBit: "bitsandbytes 0.50.2 on a CPU; CUDA's from its source",
    Ggml: "ggml 0.15.3 in three builds on x86-64; gguf 0.19.0",
    GptOssMXFP4: "triton_kernels and nvidia-modelopt 0.47.0 on a CPU, transformers 5.24.0; no published file",
    Int8: "bitsandbytes 0.50.2 on a CPU; CUDA's from its source",
    ModelOptFP8: "nvidia-modelopt 0.47.0 on a CPU; the GPU's form is derived",
    ModelOptNVFP4: "nvidia-modelopt 0.47.0 on a CPU, `NVFP4QTensor.quantize`",
    MX: "compressed-tensors 0.20.1, 0.19.0; llm-compressor 0.14.0.1",
    NVFP4: "compressed-tensors 0.20.1, 0.19.0; llm-compressor 0.14.0.1",
    Packed: "compressed-tensors 0.20.1, 0.17.1, 0.12.2, 0.9.4; llm-compressor 0.14.0.1; the Triton forms on no GPU",
    PerTensor: "AutoFP8 505a7ed",
    Plain: "compressed-tensors 0.20.1, 0.12.2, 0.9.4; llm-compressor 0.14.0.1; the Triton forms on no GPU",
}
"""The tools, and their versions, whose output the formulas of a codec were held against: tests/fixtures."""


def table() -> str:
    """Return a line for each layout: what declares it, its formulas, and what they were tried with."""
    codecs: dict[str, tuple[str, Codec]] = {}
    for config in CONFIGS.values():
        codec, _ = made_by(config)
        codecs.setdefault(codec.name, (f"`{config.get('quant_method', 'quantization')}`", codec))
    codecs.setdefault(GptOssMXFP4().name, ("`mxfp4`", GptOssMXFP4()))
    lines = [(declares, name, _families(codec), TRIED[type(codec)]) for name, (declares, codec) in codecs.items()]
    lines += [("a GGUF file", Ggml(kind).name, _families(Ggml(kind)), TRIED[Ggml]) for kind in sorted(LAYOUTS)]
    alike: dict[tuple[str, str, str], list[str]] = {}
    for declares, name, families, tried in lines:
        alike.setdefault((declares, families, tried), []).append(name)
    merged = [(declares, "; ".join(names), by, tried) for (declares, by, tried), names in alike.items()]
    rows = [("declared by", "layout", "exact by", "tried with"), ("---",) * 4, *merged]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _families(codec: Codec) -> str:
    searched = [CHOSEN, SEARCHED] if one_scale(codec) else []  # whose sums are over all windows of a layer
    return "; ".join([*(each.name for each in formulas(codec)), *searched])


def written(text: str) -> str:
    """Return the page with its table made anew."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    DOCS.write_text(written(DOCS.read_text()))
