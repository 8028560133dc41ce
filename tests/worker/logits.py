"""`CHECKPOINT LOADED… FOLDER`: what transformers makes of packed weights, beside what the files of CHECKPOINT say.

Each of LOADED is opened as its users open it, and compared with the same class under the weights multiplied out by
numpy, which stand unpacked in FOLDER: the weights that its layers decode to, what they compute, and the logits.
"""

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors.torch import save_file
from tests.worker.blocks import multiplied_out, tensors
from tests.worker.prepared import answer

TOKENS = (4, 64)
"""Sequences, and tokens in each: as many as the tiny model is tuned on at a time."""
STACKED = {"qwen3_5_moe": False, "mixtral": False, "gpt_oss": True}
"""Classes whose experts are stacked in files, or go by other names there, and whether each is transposed."""
EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj\.(weight|bias)")
PARTS = ("qweight", "qzeros", "scales")
FLOAT32, FLOAT16 = 2.0**-24, 2.0**-11
"""Unit roundoff: the greatest relative error of one rounding."""
SUBNORMAL16 = 2.0**-25
"""The greatest error of rounding to a float16 that is not normal."""


def logits(checkpoint: str, *words: str) -> dict[str, Any]:
    stored = tensors(Path(checkpoint))
    layers = [name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")]
    weights = {name: multiplied_out(stored, name) for name in layers}
    *loaded, folder = map(Path, words)
    # Before anything packed is: AutoRound's loader takes the fusing of experts away from all that is loaded later.
    reference = unpacked(Path(checkpoint), stored, weights, folder)
    return {"unpacked": reference.report, "loaded": [load(each, stored, weights, reference) for each in loaded]}


class Run(NamedTuple):
    """What a model was loaded with, its logits [sequences, tokens, vocabulary], and each router's choices."""

    report: dict[str, list[str]]
    logits: Any
    experts: list[Any]


def unpacked(checkpoint: Path, stored: dict[str, Any], weights: dict[str, Any], folder: Path) -> Run:
    """Run the class that config.json names, in float32, with the weights multiplied out."""
    config = json.loads((checkpoint / "config.json").read_text())
    del config["quantization_config"]
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    plain = {name: value for name, value in stored.items() if name.rpartition(".")[2] not in PARTS}
    plain |= {f"{name}.weight": value.contiguous() for name, value in weights.items()}
    kind = config["model_type"]
    plain = stacked(plain, transposed=STACKED[kind]) if kind in STACKED else plain
    save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})
    model, report = opened(folder, torch.float32)
    return run(model, report)


def stacked(tensors: dict[str, Any], *, transposed: bool) -> dict[str, Any]:
    """Stack the experts' weights [out, in] and biases [out] as a base has them: gate above up."""
    found, parts = {}, defaultdict[tuple[str, str], dict[tuple[int, str], Any]](dict)
    for name, value in tensors.items():
        if match := EXPERT.fullmatch(name):
            parts[match[1], match[4]][int(match[2]), match[3]] = value
        else:
            found[name] = value
    for (experts, what), of in parts.items():
        each = range(len(of) // 3)
        gate_up = torch.stack([torch.cat([of[i, "gate"], of[i, "up"]]) for i in each])
        down = torch.stack([of[i, "down"] for i in each])
        for name, value in ((f"{experts}.gate_up_proj", gate_up), (f"{experts}.down_proj", down)):
            if what == "bias":
                found[f"{name}_bias"] = value
            else:
                found[name] = value.transpose(1, 2).contiguous() if transposed else value
    return found


def opened(folder: Path, dtype: Any) -> tuple[Any, dict[str, list[str]]]:
    """Load a folder with the class that its config.json names."""
    kind = getattr(transformers, json.loads((folder / "config.json").read_text())["architectures"][0])
    model, report = kind.from_pretrained(folder, dtype=dtype, output_loading_info=True, local_files_only=True)
    return model.eval(), {key: sorted(map(str, value)) for key, value in report.items()}


def run(model: Any, report: dict[str, list[str]]) -> Run:
    """Run a model on tokens that are drawn alike every time."""
    size = model.config.get_text_config().vocab_size
    tokens = torch.randint(0, size, TOKENS, generator=torch.Generator().manual_seed(0))
    experts: list[Any] = []
    top = getattr(model.config.get_text_config(), "num_experts_per_tok", 0)

    def note(_module: Any, _inputs: Any, output: Any) -> None:
        scores = output[0] if isinstance(output, tuple) else output
        experts.append(scores.topk(top).indices.sort(-1).values.reshape(*TOKENS, top))

    hooks = [each.register_forward_hook(note) for name, each in model.named_modules() if name.endswith(".mlp.gate")]
    with torch.no_grad():
        found = model(input_ids=tokens, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return Run(report, found.double(), experts)


def load(checkpoint: Path, stored: dict[str, Any], weights: dict[str, Any], reference: Run) -> dict[str, Any]:
    """Say what a packed checkpoint is loaded as, in half precision and then, with the same tensors, in float32."""
    model, report = opened(checkpoint, torch.float16)
    held, modules = model.state_dict(), dict(model.named_modules())
    packed = {name: modules[name] for name in weights if name in modules}
    return {
        "report": report,
        "kinds": sorted({type(each).__name__ for each in packed.values()}),
        "not packed": sorted(weights.keys() - packed.keys()),
        "unread": sorted(stored.keys() - held.keys()),
        "unstored": sorted(held.keys() - stored.keys()),
        "altered": sorted(name for name in stored.keys() & held.keys() if not same(stored[name], held[name])),
        "float16": computed(model, report, packed, weights, reference),
        "float32": computed(torch.nn.Module.float(model), report, packed, weights, reference),
    }


def same(stored: Any, held: Any) -> bool:
    return bool(stored.shape == held.shape and torch.equal(stored.to(held.dtype), held))


def computed(
    model: Any, report: dict[str, list[str]], packed: dict[str, Any], weights: dict[str, Any], reference: Run
) -> dict[str, Any]:
    """Return which layers decode to something else, and how far products and logits are from what they should be."""
    dtype = next(iter(packed.values())).scales.dtype
    decoded = {name: decoding(layer, dtype) for name, layer in packed.items()}
    products: dict[str, float] = {}

    def hold(name: str) -> Any:
        def hook(_module: Any, inputs: Any, output: Any) -> None:
            bias = packed[name].bias
            products[name] = max(products.get(name, 0), in_bounds(inputs[0], weights[name], bias, output))

        return hook

    hooks = [layer.register_forward_hook(hold(name)) for name, layer in packed.items()]
    found = run(model, report)
    for hook in hooks:
        hook.remove()
    settled = torch.ones(TOKENS, dtype=torch.bool)
    for ours, theirs in zip(found.experts, reference.experts, strict=True):
        settled &= (ours == theirs).all(-1).int().cumprod(1).bool()
    distance = (found.logits - reference.logits).norm(dim=-1) / reference.logits.norm(dim=-1)
    return {
        "decoded otherwise": sorted(name for name in packed if not torch.equal(decoded[name], weights[name].to(dtype))),
        "products": products,
        "settled": settled.float().mean().item(),
        "logits": distance[settled].max().item(),
        "median": distance.median().item(),
    }


def decoding(layer: Any, dtype: Any) -> Any:
    """Return what a layer makes of the identity, but for its bias: each sum has one product that is not zero."""
    bias, layer.bias = layer.bias, None
    found = layer(torch.eye(layer.infeatures, dtype=dtype)).t()
    layer.bias = bias
    return found


def in_bounds(inputs: Any, weight: Any, bias: Any, output: Any) -> float:
    """Return the greatest error of a product [tokens, out], as a share of what rounding allows each of its elements.

    A sum of n products in float32, in any order, is off by at most gamma_n |x| |W|, gamma_n = n u / (1 - n u) (Higham,
    "Accuracy and Stability of Numerical Algorithms", 2002, equation 3.5). In half precision the products are exact in
    float32, and each weight and each sum is rounded once more; where there is a bias, so is what it is added to. In
    float32 the weights are exact: 11 bits times 4.
    """
    n = weight.shape[1] + (bias is not None)
    gamma = n * FLOAT32 / (1 - n * FLOAT32)
    half, lost = (FLOAT16, SUBNORMAL16) if output.dtype == torch.float16 else (0.0, 0.0)
    wide, exact = inputs.double(), weight.double().t()
    added = torch.zeros(()) if bias is None else bias.double()
    size = wide.abs() @ exact.abs() + added.abs()
    sums = (1 + half) if bias is None else (1 + half) ** 2
    # What a weight that is not normal loses counts once for each input, what a sum loses once.
    small = lost * (sums + (1 + gamma) * (1 + half) * wide.abs().sum(-1, keepdim=True))
    bound = ((1 + half) * (1 + gamma) * sums - 1) * size + small
    share = (output.double() - (wide @ exact + added)).abs() / bound.clamp_min(torch.finfo(torch.float32).tiny)
    return float(share.max())


if __name__ == "__main__":
    answer(logits)
