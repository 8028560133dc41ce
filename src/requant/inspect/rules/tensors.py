"""Rules about tensors: each one there, once, with its shape and type (D01, D03, D07, D09, D12 to D14, D18 to D20)."""

from collections.abc import Iterator

from requant.checkpoint.safetensors import Spec
from requant.formats import PACKED
from requant.inspect.anatomy import EXPERTS, GATES, MTP, VISUAL, Fault, outside
from requant.inspect.findings import Finding
from requant.inspect.rules.files import second_names
from requant.inspect.rules.seen import Seen

UNINITIALISED = "No loader notices that it is missing, and uninitialised memory is used in its place."
UNKNOWN = "No parameter has this name: vLLM up to 0.22.1 skips it, from 0.25.1 on it refuses to load."
SHAPE = "It does not fit: vLLM stops, or copies an expert that is too small into a corner of its place."

DTYPE = "Its type is not the base's"
ROUTER = {
    "missing": "this tensor is missing",
    "shape": "this tensor has another shape",
    "both": "this tensor is stored twice",
    "unknown": "it has no place for this tensor",
}
"""What is wrong with a tensor of a router; another dtype is a rule of its own."""


def check(seen: Seen) -> Iterator[Finding]:
    """Yield what is wrong with tensors, block by block and beside the blocks."""
    mtp = [block for block in seen.model.blocks if block.startswith(MTP)]
    absent = mtp and not any(name.startswith(MTP) for name in (*seen.anatomy.blocks, *seen.anatomy.rest))
    if absent:
        yield seen.error("D07", mtp, "The drafter runs on uninitialised memory, and no draft is accepted.")
    for block, build in seen.builds.items():
        if not (absent and block.startswith(MTP)):
            for fault in build.faults:
                yield _in_block(seen, block, fault)
    twice = second_names(seen)
    for fault in outside(seen.anatomy.rest, _beside_blocks(seen)):
        if not (absent and fault.name.startswith(MTP)) and fault.name not in twice:
            yield _beside(seen, fault)
    yield from _notes(seen)


def _beside_blocks(seen: Seen) -> dict[str, Spec]:
    blocks = tuple(f"{block}." for block in seen.builds)
    return {name: spec for name, spec in seen.expected.items() if not name.startswith(blocks)}


def _in_block(seen: Seen, block: str, fault: Fault) -> Finding:
    name = f"{block}.{fault.name}"
    if fault.name.removesuffix(".weight").rpartition(".q")[0] in GATES or fault.name.startswith(
        tuple(f"{gate}." for gate in GATES)
    ):
        if fault.flaw == "dtype":
            return seen.error("D13", [name], f"{DTYPE}: {fault.detail}.")
        said = ", ".join(filter(None, (ROUTER[fault.flaw], fault.detail)))
        return seen.error("D14", [name], f"Loaders build a router only as a float: {said}.")
    if fault.flaw == "both":
        return seen.error("D01", [name], f"The same weight is stored twice: {fault.detail}.")
    if fault.flaw == "unknown":
        return seen.error("D20", [name], UNKNOWN)
    if fault.flaw == "missing":
        whole = block.startswith(MTP) and not fault.name.startswith(EXPERTS) and not fault.name.endswith(PACKED)
        return seen.error("D07" if whole else "D18", [name], UNINITIALISED)
    if fault.flaw == "dtype" and fault.name.endswith("scales"):
        return seen.error("D12", [name], f"Scales must be float16 or bfloat16: {fault.detail}.")
    if fault.flaw == "dtype" and not fault.name.endswith(PACKED):
        return seen.error("D13", [name], f"{DTYPE}: {fault.detail}.")
    return seen.error("D19", [name], f"{SHAPE[:-1]}: {fault.detail}.")


def _beside(seen: Seen, fault: Fault) -> Finding:
    visual = fault.name.startswith((VISUAL, "visual."))
    if fault.flaw == "dtype":
        rule = "D13" if fault.detail.startswith(("found F16", "found F32", "found F64")) or not visual else "D03"
        return seen.error(rule, [fault.name], f"{DTYPE}: {fault.detail}.")
    if visual:
        consequence = UNKNOWN if fault.flaw == "unknown" else UNINITIALISED if fault.flaw == "missing" else SHAPE
        return seen.error("D03", [fault.name], consequence)
    if fault.flaw == "missing":
        return seen.error("D07" if fault.name.startswith(MTP) else "D18", [fault.name], UNINITIALISED)
    if fault.flaw == "unknown" and fault.name.startswith("mtp.fc."):
        return seen.error("D08", [fault.name], "Loaders read the drafter's fc only as a float.")
    return (
        seen.error("D20", [fault.name], UNKNOWN) if fault.flaw == "unknown" else seen.error("D19", [fault.name], SHAPE)
    )


def _notes(seen: Seen) -> Iterator[Finding]:
    if packed := [
        block for block, build in seen.builds.items() if block.startswith(MTP) and "packed" in build.forms.values()
    ]:
        yield seen.note("D09", packed, "The drafter's weights are codes, as a rule rounded: fewer drafts are accepted.")
    dtypes = {dtype for build in seen.builds.values() for dtype in build.scales}
    if len(dtypes & {"F16", "BF16"}) == 2:
        yield seen.error("D12", ["*.scales"], "Scales have two different types, and loaders cast one of them.")
    elif "F16" in dtypes:
        yield seen.note("D12", ["*.scales"], "vLLM casts float16 scales to the model's bfloat16 without saying so.")
