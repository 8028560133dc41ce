"""What AutoRound tunes: tuned tensors as it wrote them, all others as the base has them."""

from collections.abc import Mapping

import numpy as np

from requant.checkpoint.checkpoint import Checkpoint, Held, Tensor
from requant.checkpoint.safetensors import Spec
from requant.errors import BuildError
from requant.formats import ORDER, TENSORS
from requant.formats.gptq import bfloat16_to_float32
from requant.model.plan import Plan, is_packed_bias
from requant.passes.context import EXTRAS, MAIN, Aim

_FLOAT = {"F16": "<f2", "F32": "<f4"}


def tuned(raw: Checkpoint, context: Aim) -> Checkpoint:
    """Keep the main tensors of AutoRound's main files, and those of a tuned MTP block, byte for byte, and nothing else.

    Its `model_extra_tensors.safetensors` goes: what else belongs there is made anew, and copies of main tensors in it
    (defects D01, D02) must not win. Its side files go too (D04, D21, D22). Raises BuildError
    for a tensor that is missing, in two main files, of another shape, unknown, or that cannot be loaded.
    """
    found: dict[str, Tensor] = {}
    modules = _modules(context.target.plan)
    for file, tensors in raw.shards.items():
        for written, tensor in tensors.items():
            name = written if written in context.target.kept else _as_planned(written, modules)
            if file == EXTRAS or not context.target.is_kept(name):
                continue
            if name in found:
                context.refuse(f"{name}: stands in two of AutoRound's files, the second is {file}")
            elif name in context.target.kept:
                found[name] = tensor
            elif name not in context.target.plan.tied:
                context.refuse(f"{name}: AutoRound wrote it, the recipe leaves no place for it")
    for name, spec in context.target.kept.items():
        if name not in found:
            if name.endswith(TENSORS):
                raise BuildError(f"{name}: AutoRound did not write it")
            if name not in context.target.plan.unloaded and name not in context.target.plan.tied:
                context.refuse(f"{name}: AutoRound did not write it")
            found[name] = context.untuned(name)
        if name.endswith(TENSORS):
            if found[name].spec != spec:
                raise BuildError(f"{name}: AutoRound wrote {found[name].spec}, expected {spec}")
            found[name] = _examined(name, found[name], context)
    return Checkpoint({MAIN: {name: found[name] for name in context.target.kept}}, {})


def _modules(plan: Plan) -> dict[str, str]:
    """Return what the plan calls modules that the base's files call otherwise, by the latter.

    AutoRound 0.16 writes all that lies in them under the names of the base's files, packed or not.
    """
    found: dict[str, str] = {}
    for name, source in plan.elsewhere.items():
        ours, theirs = name.split("."), source.tensor.split(".")
        while ours and theirs and ours[-1] == theirs[-1]:
            ours.pop()
            theirs.pop()
        if source.whole and ours and theirs:
            found[".".join(theirs)] = ".".join(ours)
    return found


def _as_planned(name: str, modules: Mapping[str, str]) -> str:
    within = next((each for each in modules if name.startswith(f"{each}.")), "")
    return f"{modules[within]}{name.removeprefix(within)}" if within else name


def untouched(checkpoint: Checkpoint, context: Aim) -> Checkpoint:
    """Replace every main tensor that is not packed by the base's bytes, after confirming that it has its values.

    AutoRound writes them in the precision of the tuning (defect D13), and the bias of a packed layer in F16. Its loader
    has a bias in F16 too and converts what it reads to that, vLLM to the precision of the computation: the base's bytes
    are what both take, and lose nothing.
    """

    def from_base(name: str, tensor: Tensor) -> Tensor:
        if name.endswith(TENSORS):
            return tensor
        base = context.untuned(name)
        if not _equal(tensor, base, half=is_packed_bias(name, context.target.plan.layers)):
            context.refuse(f"{name}: the tuning has changed it, the recipe leaves it alone")
        return base

    main = {name: from_base(name, tensor) for name, tensor in checkpoint.shards[MAIN].items()}
    return Checkpoint({**checkpoint.shards, MAIN: main}, checkpoint.files)


def _examined(name: str, tensor: Tensor, context: Aim) -> Tensor:
    suffix = name.rpartition(".")[2]
    fixed = context.target.form_at(name).fixed(suffix, tensor.spec)
    if fixed is not None and tensor.read() != fixed:
        zero = f"{int.from_bytes(fixed[:4], 'little'):#010x} throughout, which the packing format means (defect D10)"
        context.refuse(f"{name}: not {'the groups of inputs in their order' if suffix == ORDER else zero}")
        return Tensor(tensor.spec, Held(fixed))
    if suffix == "scales":
        scales = np.frombuffer(tensor.read(), "<f2")
        if not np.isfinite(scales).all() or (scales == 0).any():
            raise BuildError(f"{name}: has scales that are zero or not finite (defect D12)")
    return tensor


def _equal(tensor: Tensor, base: Tensor, *, half: bool) -> bool:
    """Say whether a tensor has the base's bits, or its numbers in F32, or `half`, rounded to F16."""
    if tensor.spec == base.spec:
        return tensor.read() == base.read()
    dtype = "F16" if half else "F32"
    if tensor.spec != Spec(dtype, base.spec.shape) or base.spec.dtype not in ("BF16", *_FLOAT):
        return False
    data = base.read()
    values = bfloat16_to_float32(data) if base.spec.dtype == "BF16" else np.frombuffer(data, _FLOAT[base.spec.dtype])
    with np.errstate(over="ignore"):  # it is compared with, and not written
        return tensor.read() == values.astype(_FLOAT[dtype]).tobytes()
