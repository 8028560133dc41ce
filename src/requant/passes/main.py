"""The language model: tuned tensors as AutoRound wrote them, all others as the base has them."""

import numpy as np

from requant.checkpoint.checkpoint import Checkpoint, Held, Tensor
from requant.errors import BuildError
from requant.formats import PACKED
from requant.formats.gptq import bfloat16_to_float32
from requant.passes.context import EXTRAS, MAIN, Aim


def tuned(raw: Checkpoint, context: Aim) -> Checkpoint:
    """Keep the main tensors of AutoRound's main files, byte for byte, and nothing else.

    Its `model_extra_tensors.safetensors` goes: the visual tower and the MTP block are made anew, and copies of
    main tensors in it (defects D01, D02) must not win. Its side files go too (D04, D21, D22). Raises BuildError
    for a tensor that is missing, in two main files, of another shape, unknown, or that cannot be loaded.
    """
    found: dict[str, Tensor] = {}
    for file, tensors in raw.shards.items():
        for name, tensor in tensors.items():
            if file == EXTRAS or not context.target.is_main(name):
                continue
            if name in found:
                context.refuse(f"{name}: stands in two of AutoRound's files, the second is {file}")
            elif name in context.target.main:
                found[name] = tensor
            elif name not in context.target.plan.tied:
                context.refuse(f"{name}: AutoRound wrote it, the recipe leaves no place for it")
    for name, spec in context.target.main.items():
        if name not in found:
            if name.endswith(PACKED):
                raise BuildError(f"{name}: AutoRound did not write it")
            if name not in context.target.plan.unloaded:
                context.refuse(f"{name}: AutoRound did not write it")
            found[name] = context.untuned(name)
        if name.endswith(PACKED):
            if found[name].spec != spec:
                raise BuildError(f"{name}: AutoRound wrote {found[name].spec}, expected {spec}")
            found[name] = _examined(name, found[name], context)
    return Checkpoint({MAIN: {name: found[name] for name in context.target.main}}, {})


def untouched(checkpoint: Checkpoint, context: Aim) -> Checkpoint:
    """Replace every main tensor that is not packed by the base's bytes, after confirming that it has its values.

    AutoRound writes them in the precision of the tuning (defect D13).
    """

    def from_base(name: str, tensor: Tensor) -> Tensor:
        if name.endswith(PACKED):
            return tensor
        base = context.untuned(name)
        if not _equal(tensor, base):
            context.refuse(f"{name}: the tuning has changed it, the recipe leaves it alone")
        return base

    main = {name: from_base(name, tensor) for name, tensor in checkpoint.shards[MAIN].items()}
    return Checkpoint({**checkpoint.shards, MAIN: main}, checkpoint.files)


def _examined(name: str, tensor: Tensor, context: Aim) -> Tensor:
    if name.endswith(".qzeros"):
        form = context.target.form
        if form.symmetric and tensor.read() != (zeros := form.zeros(tensor.spec)):
            word = f"{int.from_bytes(zeros[:4], 'little'):#010x}"
            context.refuse(f"{name}: not {word} throughout, which the packing format means (defect D10)")
            return Tensor(tensor.spec, Held(zeros))
    elif name.endswith(".scales"):
        scales = np.frombuffer(tensor.read(), "<f2")
        if not np.isfinite(scales).all() or (scales == 0).any():
            raise BuildError(f"{name}: has scales that are zero or not finite (defect D12)")
    return tensor


def _equal(tensor: Tensor, base: Tensor) -> bool:
    """Say whether a tensor in BF16 or F32 has the bits of the base's BF16 one."""
    if tensor.spec.shape != base.spec.shape or base.spec.dtype != "BF16":
        return tensor.spec == base.spec and tensor.read() == base.read()
    if tensor.spec.dtype == "F32":
        return tensor.read() == bfloat16_to_float32(base.read()).astype("<f4").tobytes()
    return tensor.spec.dtype == "BF16" and tensor.read() == base.read()
