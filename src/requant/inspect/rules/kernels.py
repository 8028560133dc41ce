"""Rules about kernels: which degrees of tensor parallelism a packed layer can be split into (D05, D24).

Sources: vLLM quantization/utils/marlin_utils.py (MIN_THREAD_N 64, MIN_THREAD_K 128, groups of 32, 64 or 128);
from 0.25.1 on a dense layer is padded to tiles, but a group must not straddle two ranks. For experts: 128 hidden,
and a rank's width a multiple of max(64, group), else the slower moe_wna16 with smaller groups.
"""

from collections.abc import Iterator
from typing import Literal

from requant.inspect.findings import Finding, Severity, Target
from requant.inspect.loaders import TENSOR_PARALLEL, Loader
from requant.inspect.loaders.modules import Module, modules
from requant.inspect.rules.declarations import disk_forms
from requant.inspect.rules.seen import Seen

MIN_OUTPUTS, MIN_INPUTS = 64, 128

Verdict = Literal["runs", "slower", "fails"]
SAID: dict[Verdict, str] = {"runs": "runs", "slower": "is slower", "fails": "fails"}


def verdict(module: Module, group_size: int, loader: Loader, degree: int) -> Verdict:
    """Say what becomes of a packed module on `degree` ranks."""
    if module.kind == "experts":
        width = module.inputs // degree
        return "runs" if width % max(64, group_size) == 0 and module.outputs % 128 == 0 else "slower"
    if loader.replicates_ba and module.name.endswith("in_proj_ba"):
        degree = 1
    inputs = module.inputs // degree if module.split == "inputs" else module.inputs
    outputs = module.outputs // degree if module.split == "outputs" else module.outputs
    if inputs % group_size:
        return "fails"
    return "runs" if loader.pads or (outputs % MIN_OUTPUTS == 0 and inputs % MIN_INPUTS == 0) else "fails"


def check(seen: Seen) -> Iterator[Finding]:
    """Yield the modules that the asked degrees cannot serve, and a note where a higher one cannot."""
    if seen.declared is None or seen.declared.group_size <= 0:
        return
    forms = disk_forms(seen)
    for loader in seen.loaders:
        if not loader.dialect:
            continue
        packed = [
            each for each in modules(seen.model, loader.names) if {forms.get(p) for p in each.parts} == {"packed"}
        ]
        for module in packed:
            sizes = [each.inputs // each.groups for part in module.parts for each in seen.packings(part)]
            yield from _judge(seen, loader, module, max(sizes, default=seen.declared.group_size))


def _judge(seen: Seen, loader: Loader, module: Module, group_size: int) -> Iterator[Finding]:
    rule = "D05" if module.name.endswith("in_proj_ba") else "D24"
    verdicts = {degree: verdict(module, group_size, loader, degree) for degree in {*TENSOR_PARALLEL, *seen.degrees}}
    for degree in seen.degrees:
        target = (Target(loader.name, degree),)
        if verdicts[degree] == "fails":
            text = "No kernel can run a rank's share of this packed layer: the loader stops."
            yield Finding(rule, Severity.ERROR, module.parts, text, target)
        elif verdicts[degree] == "slower":
            text = (
                "A rank's share of the experts is too narrow for Marlin: a slower kernel with smaller groups is used."
            )
            yield Finding(rule, Severity.WARNING, module.parts, text, target)
    worse = [degree for degree, each in sorted(verdicts.items()) if each != "runs" and degree not in seen.degrees]
    if rule == "D24" and worse:
        shown = ", ".join(f"TP {degree} {SAID[verdicts[degree]]}" for degree in worse)
        targets = tuple(Target(loader.name, degree) for degree in seen.degrees)
        yield Finding(rule, Severity.NOTE, module.parts, f"At other degrees of tensor parallelism: {shown}.", targets)
