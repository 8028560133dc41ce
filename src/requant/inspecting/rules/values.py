"""Rules about values, which need bytes: zero points and scales (D10, D11, D12). Everything else is in the headers."""

from collections.abc import Iterator

import numpy as np

from requant.checkpoint import open_checkpoint
from requant.inspecting.findings import Finding
from requant.inspecting.rules.seen import Seen
from requant.packing import ZERO_WORD, bfloat16_to_float32

SECOND_VERSION = 0x88888888
SMALLEST = 2.0**-24
"""The smallest number that float16 tells from zero."""


def zero_word(packing_format: str) -> int:
    """Return the word of eight zero points that a packing format means; version 2 of GPTQ stores them as they are."""
    return SECOND_VERSION if "v2" in packing_format or "gptqmodel" in packing_format else ZERO_WORD


def check(seen: Seen) -> Iterator[Finding]:
    """Yield packed layers with another zero point, and scales that are negative, zero or no numbers."""
    if seen.headers.folder is None or seen.declared is None:
        return
    wanted = zero_word(seen.declared.packing_format)
    other: dict[int, list[str]] = {}
    broken, dead, negative, count = [], [], 0, 0
    for name, tensor in open_checkpoint(seen.headers.folder).tensors.items():
        if name.endswith(".qzeros") and tensor.spec.dtype == "I32" and seen.declared.sym:
            words = np.frombuffer(tensor.read(), "<u4")
            if (wrong := words[words != wanted]).size:
                other.setdefault(int(wrong[0]), []).append(name)
        elif name.endswith(".scales") and tensor.spec.dtype in ("F16", "BF16"):
            data = tensor.read()
            scales = np.frombuffer(data, "<f2") if tensor.spec.dtype == "F16" else bfloat16_to_float32(data)
            if not np.isfinite(scales).all():
                broken.append(name)
            elif (np.abs(scales) < SMALLEST).any():
                dead.append(name)
            negative += int((scales < 0).sum())
            count += scales.size
    for word, names in other.items():
        text = (
            f"Kernels that read zero points, found {word:#010x} for {wanted:#010x}, shift every weight of these layers."
        )
        yield seen.error("D10", names, text)
    if broken:
        yield seen.error("D12", broken, "Scales that are no finite numbers make every output NaN.")
    if dead:
        yield seen.error("D12", dead, "Groups with a scale of zero are lost.")
    if negative:
        share = f"{negative / count:.0%}"
        yield seen.note(
            "D11", ["*.scales"], f"{share} of the scales are negative: only int8 activations in Marlin mind."
        )
