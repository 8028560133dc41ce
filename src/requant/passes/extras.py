"""What AutoRound does not tune: the visual tower and the MTP block, in `model_extra_tensors.safetensors`."""

from collections.abc import Mapping
from functools import lru_cache, partial

from requant.checkpoint.checkpoint import Checkpoint, Content, Made, Tensor
from requant.checkpoint.safetensors import Spec
from requant.formats.gptq import bfloat16_to_float32, pack, round_to_nearest, zeros
from requant.model.inventory import MTP, VISUAL, Fused, Linear, mtp_quantized, origin, packed_specs
from requant.passes.context import EXTRAS, Aim


def visual(checkpoint: Checkpoint, context: Aim) -> Checkpoint:
    """Add the visual tower as the base has it: all of it, biases too (defect D03)."""
    base = context.tensors
    return _with_extras(checkpoint, {name: base[name] for name in context.extras if name.startswith(VISUAL)})


def mtp(checkpoint: Checkpoint, context: Aim) -> Checkpoint:
    """Add the MTP block by the recipe's policy (defects D07, D08).

    `bf16` copies it, experts fused. `rtn` rounds its linear layers to nearest, experts split one by one, and
    copies the rest. AutoRound at the pinned versions leaves the experts fused in a block declared packed.
    """
    base = context.tensors
    packed: dict[str, Tensor] = {}
    if context.policy == "rtn":
        group_size = context.group_size
        for layer in mtp_quantized(context.config, context.ignore).values():
            packed |= rounded(layer, weight_of(layer, base, context), group_size)
    names = [name for name in context.extras if name.startswith(MTP)]
    return _with_extras(checkpoint, {name: packed[name] if name in packed else base[name] for name in names})


def weight_of(layer: Linear, base: Mapping[str, Tensor], context: Aim) -> Content:
    """Return the BF16 weight [out, in] of a linear layer, which may be part of a fused tensor [experts, rows, in]."""
    where = origin(layer.name, context.config)
    if not isinstance(where, Fused):
        return base[where].content
    fused = base[where.tensor]
    _, rows, columns = fused.spec.shape
    first = where.expert * rows + (where.rows.start or 0)
    start = Spec("BF16", (first, columns)).nbytes
    return fused.part(start, start + Spec("BF16", (layer.out_features, layer.in_features)).nbytes)


def rounded(layer: Linear, weight: Content, group_size: int) -> dict[str, Tensor]:
    """Return the three tensors of a layer rounded to nearest, computed when they are read."""
    specs = packed_specs(layer, group_size)
    return {
        f"{layer.name}.{suffix}": Tensor(spec, Made(partial(_round, layer, weight, group_size, number)))
        for number, (suffix, spec) in enumerate(specs.items())
    }


def _round(layer: Linear, weight: Content, group_size: int, number: int) -> bytes:
    return _rounded_bytes(layer, weight, group_size)[number]


@lru_cache(maxsize=1)  # the three tensors of a layer are written one after the other
def _rounded_bytes(layer: Linear, weight: Content, group_size: int) -> tuple[bytes, bytes, bytes]:
    values = bfloat16_to_float32(b"".join(weight.chunks())).reshape(layer.out_features, layer.in_features)
    codes, scales = round_to_nearest(values, group_size)
    words = (pack(codes).astype("<i4"), zeros(*scales.shape).astype("<i4"), scales.astype("<f2"))
    return words[0].tobytes(), words[1].tobytes(), words[2].tobytes()


def _with_extras(checkpoint: Checkpoint, added: Mapping[str, Tensor]) -> Checkpoint:
    return Checkpoint({**checkpoint.shards, EXTRAS: {**checkpoint.shards.get(EXTRAS, {}), **added}}, checkpoint.files)
