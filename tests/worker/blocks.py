"""`RECIPE BASE BUILT LOADED…`: the outputs of a build's blocks, computed twice, on the calibration tokens.

Once from the packed codes in the files of BUILT, multiplied out by numpy as the tuning does it, run by AutoRound's
own function block after block: `digests`, to be held against the journal. And once by transformers, from each of
the checkpoints LOADED: how it loaded, and by how much its outputs deviate from the former ones.
"""

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from tests.worker.prepared import Prepared, answer, prepare

from requant.formats.gptq import unpack
from requant.worker import mtp
from requant.worker.resume import digest, digest_of_nest

GROUP = 128


def blocks(recipe: str, base: str, built: str, *loaded: str) -> dict[str, Any]:
    prepared = prepare(recipe, Path(base))
    digests, outputs = dequantized(prepared, tensors(Path(built)))
    # AutoRound's class for text models would make masks for a loader's sequences; the one for this class does not.
    return {
        "digests": digests,
        "masks": len(prepared.autoround.attention_mask),
        "loaded": [load(Path(each), prepared, outputs) for each in loaded],
    }


def tensors(checkpoint: Path) -> dict[str, Any]:
    """Return every tensor of a checkpoint by its name."""
    found = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (no mapping)
    return found


def dequantized(prepared: Prepared, packed: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """Run each block with its own weights, then with the multiplied out codes; return digests and outputs."""
    from auto_round.modeling.fused_moe.replace_modules import materialize_model_
    from auto_round.utils import convert_module_to_hp_if_necessary

    digests: dict[str, Any] = {}
    outputs = []

    def run_block(
        self: Any, block: Any, input_ids: Any, input_others: Any, q_input: Any = None, device: Any = "cpu", **_: Any
    ) -> Any:
        def run(inputs: Any) -> Any:
            size = self.batch_size * self.infer_bs_coeff
            return self._get_block_outputs(block, inputs, input_others, size, device, self.cache_device)

        quantized = input_ids if q_input is None else q_input
        inputs = {"full": digest(input_ids), "quantized": digest(quantized), "others": digest_of_nest(input_others)}
        if block.global_name == mtp.layer_name(self.model):
            input_ids, quantized = (drafts(prepared, each) for each in (input_ids, quantized))
            cos, sin = input_others["position_embeddings"]
            input_others = {**input_others, "position_embeddings": (cos[:, :-1], sin[:, :-1])}
            input_others["position_ids"] = input_others["position_ids"][:, :-1]
        materialize_model_(block)
        convert_module_to_hp_if_necessary(block, self.amp_dtype, device)
        full_output = run(input_ids)
        for name, module in block.named_modules():
            if f"{block.global_name}.{name}.qweight" in packed:
                module.weight.data.copy_(multiplied_out(packed, f"{block.global_name}.{name}"))
        output = run(quantized)
        digests[block.global_name] = {
            "inputs": inputs,
            "outputs": {"full": digest(full_output), "quantized": digest(output)},
        }
        outputs.append(torch.cat(list(output)))
        return output, full_output

    compressor = type(prepared.autoround)
    tune, compressor._quantize_block = compressor._quantize_block, run_block
    prepared.autoround.quantize()
    compressor._quantize_block = tune
    return digests, outputs


def drafts(prepared: Prepared, put_out: list[Any]) -> list[Any]:
    """Return what the MTP block is given where the last block puts out a stream of float32."""
    for each in mtp.beside_layer(prepared.model):
        each.float()
    with torch.no_grad():
        samples = zip(put_out, prepared.tokens.rows, strict=True)
        return [mtp.given(prepared.model, each, row[None]) for each, row in samples]


def multiplied_out(packed: dict[str, Any], layer: str) -> Any:
    """Return the weight [out, in]: a product in float32 and nothing else, because that is what was tuned."""
    codes = unpack(packed[f"{layer}.qweight"].numpy()).astype(np.float32)
    scales = packed[f"{layer}.scales"].numpy().astype(np.float32).T.repeat(GROUP, axis=1)
    return torch.from_numpy(scales[:, : codes.shape[1]] * (codes - 8))


def load(checkpoint: Path, prepared: Prepared, expected: list[Any]) -> dict[str, Any]:
    """Load a checkpoint as its users do; run it on the same tokens as it is, and once more in float32."""
    from transformers import Qwen3_5MoeForConditionalGeneration

    model, info = Qwen3_5MoeForConditionalGeneration.from_pretrained(
        checkpoint, dtype=torch.float16, output_loading_info=True, local_files_only=True
    )
    model.eval()
    stored, held = tensors(checkpoint), model.state_dict()
    packed = [name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")]
    modules = dict(model.named_modules())
    answer = {
        "info": {key: sorted(map(str, value)) for key, value in info.items()},
        "unread": sorted(stored.keys() - held.keys()),
        "unstored": sorted(held.keys() - stored.keys()),
        "altered": sorted(name for name in stored.keys() & held.keys() if not same(stored[name], held[name])),
        "kinds": Counter(type(modules[name]).__name__ for name in packed if name in modules),
        "packed": len(packed),
    }
    half = run(model, prepared)
    wide = run(torch.nn.Module.float(model), prepared)  # Module's own: transformers refuses to widen this model
    return answer | {"float16": deviations(half, wide, expected), "float32": deviations(wide, wide, expected)}


def same(stored: Any, held: Any) -> bool:
    return bool(stored.shape == held.shape and torch.equal(stored.to(held.dtype), held))


class Run(NamedTuple):
    """Per block: outputs [samples, tokens, hidden], and which experts were chosen [samples, tokens, experts]."""

    outputs: list[Any]
    experts: list[Any]


def run(model: Any, prepared: Prepared) -> Run:
    """Run the model on the calibration tokens."""
    rows = torch.stack(list(prepared.tokens.rows))
    layers = model.model.language_model.layers
    outputs: list[list[Any]] = [[] for _ in layers]
    experts: list[list[Any]] = [[] for _ in layers]
    hooks = []
    for layer, out, chosen in zip(layers, outputs, experts, strict=True):
        hooks += [
            layer.register_forward_hook(lambda _module, _inputs, output, to=out: to.append(output.double())),
            layer.mlp.gate.register_forward_hook(lambda _module, _inputs, output, to=chosen: to.append(output[2])),
        ]
    with torch.no_grad():
        for batch in rows.split(prepared.autoround.batch_size):
            model(input_ids=batch, use_cache=False)
    for hook in hooks:
        hook.remove()
    return Run(
        [torch.cat(each) for each in outputs],
        [torch.cat(each).sort(-1).values.reshape(*rows.shape, -1) for each in experts],
    )


def deviations(found: Run, reference: Run, expected: list[Any]) -> list[dict[str, float]]:
    """Return per block |found - expected| / |expected| over the tokens: median, and the greatest of the settled.

    A token is settled where neither it nor one before it has taken other experts than in `reference`, so far.
    """
    settled = torch.ones(found.experts[0].shape[:2], dtype=torch.bool)
    result = []
    for output, wanted, chosen, others in zip(found.outputs, expected, found.experts, reference.experts, strict=True):
        settled &= (chosen == others).all(-1).int().cumprod(1).bool()
        each = (output - wanted.double()).norm(dim=-1) / wanted.double().norm(dim=-1)
        result.append(
            {
                "settled": settled.float().mean().item(),
                "greatest": each[settled].max().item(),
                "median": each.median().item(),
            }
        )
    return result


if __name__ == "__main__":
    answer(blocks)
