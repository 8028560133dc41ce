"""What is beside the language model: the visual tower and the MTP block, in `model_extra_tensors.safetensors`."""

from collections.abc import Mapping
from functools import lru_cache, partial

from requant.checkpoint.checkpoint import Checkpoint, Content, Made, Tensor
from requant.formats.form import Form
from requant.formats.gptq import bfloat16_to_float32, pack, round_to_nearest
from requant.passes.context import EXTRAS, MAIN, Aim
from requant.protocol import Layer


def visual(checkpoint: Checkpoint, context: Aim) -> Checkpoint:
    """Add the visual tower as the base has it: all of it, biases too (defect D03)."""
    prefix = context.target.table.extras.get("visual")
    names = [name for name in context.target.extras if prefix and name.startswith(prefix)]
    return _with_extras(checkpoint, {name: context.tensors[name] for name in names})


def mtp(checkpoint: Checkpoint, context: Aim) -> Checkpoint:
    """Add the MTP block by the recipe's policy (defects D07, D08).

    `bf16` copies it, experts fused. `rtn` rounds its linear layers to nearest, experts split one by one, and
    copies the rest. AutoRound at the pinned versions leaves the experts fused in a block declared packed. `calibrated`
    moves it here as it was tuned, so that the main files are those of the same recipe with another policy.
    """
    if context.target.policy == "calibrated":
        main = checkpoint.shards[MAIN]
        tuned = {name: tensor for name, tensor in main.items() if not context.target.is_main(name)}
        rest = {name: tensor for name, tensor in main.items() if name not in tuned}
        return _with_extras(Checkpoint({**checkpoint.shards, MAIN: rest}, checkpoint.files), tuned)
    packed: dict[str, Tensor] = {}
    for name, layer in context.target.rounded.items():
        packed |= rounded(name, layer, context.weight(layer).content, context.target.form)
    prefix = context.target.table.extras.get("mtp")
    names = [name for name in context.target.extras if prefix and name.startswith(prefix)]
    return _with_extras(checkpoint, {name: packed.get(name) or context.untuned(name) for name in names})


def rounded(name: str, layer: Layer, weight: Content, form: Form) -> dict[str, Tensor]:
    """Return the three tensors of a layer rounded to nearest, computed when they are read, in a symmetric GPTQ form."""
    specs = form.specs(layer.shape)
    return {
        f"{name}.{suffix}": Tensor(spec, Made(partial(_round, layer, weight, form, number)))
        for number, (suffix, spec) in enumerate(specs.items())
    }


def _round(layer: Layer, weight: Content, form: Form, number: int) -> bytes:
    return _rounded_bytes(layer, weight, form)[number]


@lru_cache(maxsize=1)  # the three tensors of a layer are written one after the other
def _rounded_bytes(layer: Layer, weight: Content, form: Form) -> tuple[bytes, bytes, bytes]:
    values = bfloat16_to_float32(b"".join(weight.chunks())).reshape(layer.shape)
    codes, scales = round_to_nearest(values, form.group_size, form.bits)
    words = pack(codes, form.bits).astype("<i4").tobytes()
    return words, form.zeros(form.specs(layer.shape)["qzeros"]), scales.astype("<f2").tobytes()


def _with_extras(checkpoint: Checkpoint, added: Mapping[str, Tensor]) -> Checkpoint:
    return Checkpoint({**checkpoint.shards, EXTRAS: {**checkpoint.shards.get(EXTRAS, {}), **added}}, checkpoint.files)
