"""Rules about values, which need bytes: zero points and scales (D10, D11, D12). Everything else is in the headers."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from requant.checkpoint.checkpoint import open_checkpoint
from requant.formats import AWQ, FORMATS, GPTQ, GPTQ_V2
from requant.formats.gptq import bfloat16_to_float32
from requant.inspect.findings import Finding
from requant.inspect.rules.readings import packed_layers
from requant.inspect.rules.seen import Seen

SMALLEST = 2.0**-24
"""The smallest number that float16 tells from zero."""


def zero_word(packing_format: str, bits: int, order: str = "gptq") -> int:
    """Return the word of zero points that a packing format means for symmetric codes of 2, 4 or 8 bits.

    The zero is half of the codes; version 1 of GPTQ stores it less one, version 2 as it is, and so do tensors that have
    AWQ's order of codes. A name that AutoRound does not write is one of GPTQModel's.
    """
    known = FORMATS.get(packing_format, GPTQ_V2 if "v2" in packing_format else GPTQ)
    if known.layout != order:
        known = AWQ if order == "awq" else GPTQ
    zero = (1 << bits - 1) - known.less
    return zero * (0xFFFFFFFF // ((1 << bits) - 1))


CONSTANTS = frozenset(zero_word(name, bits) for name in ("auto_round:auto_gptq", "gptq_v2") for bits in (2, 4, 8))
ASYMMETRIC = "set sym to false if the weights are asymmetric; otherwise download or build again"


def check(seen: Seen) -> Iterator[Finding]:
    """Yield packed layers with another zero point, and scales that are negative, zero or no numbers."""
    if seen.headers.folder is None or seen.declared is None:
        return
    layers = packed_layers(seen)
    other: dict[tuple[int, int], list[str]] = {}
    broken, dead, negative, count = [], [], 0, 0
    for name, tensor in open_checkpoint(seen.headers.folder).tensors.items():
        if name.endswith(".qzeros") and tensor.spec.dtype == "I32" and seen.declared.sym:
            said = layers.get(name.removesuffix(".qzeros"))
            if said is None or 32 % said.bits:  # no layer, which has a finding of its own; or codes that straddle words
                continue
            wanted = zero_word(seen.declared.packing_format, said.bits, said.layout)
            words = np.frombuffer(tensor.read(), "<u4")
            if (wrong := words[words != wanted]).size:
                other.setdefault((int(wrong[0]), wanted), []).append(name)
        elif name.endswith(".scales") and tensor.spec.dtype in ("F16", "BF16"):
            data = tensor.read()
            scales = np.frombuffer(data, "<f2") if tensor.spec.dtype == "F16" else bfloat16_to_float32(data)
            if not np.isfinite(scales).all():
                broken.append(name)
            elif (np.abs(scales) < SMALLEST).any():
                dead.append(name)
            negative += int((scales < 0).sum())
            count += scales.size
    for (word, wanted), names in other.items():
        found = f"Found zero points {word:#010x}, expected {wanted:#010x}"
        text = f"{found}: kernels that read them shift every weight of these layers."
        # Those of no packing format may be right, and then it is the declaration that is wrong.
        yield replace(seen.error("D10", names, text), advice="" if word in CONSTANTS else ASYMMETRIC)
    if broken:
        yield seen.error("D12", broken, "Scales that are not finite numbers make every output NaN.")
    if dead:
        yield seen.error("D12", dead, "A scale of zero makes its whole group zero.")
    if negative:
        share = f"{negative / count:.0%}"
        yield seen.note(
            "D11", ["*.scales"], f"{share} of the scales are negative: this matters only to Marlin's int8 activations."
        )
