"""`inspect CHECKPOINT` asks whether each loader would consume every tensor, exactly once, as what it is.

Headers and side files decide everything but three rules, which look at zero points and scales where these lie
on this disk. Blocks that are equal are examined once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from requant.errors import CheckpointError
from requant.inspecting.anatomy import Build, dissect, examine, template
from requant.inspecting.findings import Expected, Finding, Severity, mark_known, merge
from requant.inspecting.headers import Headers, without_collector
from requant.inspecting.rules import declarations, files, kernels, tensors, values
from requant.inspecting.rules.seen import Seen
from requant.inventory import LM, MTP, base_tensors, layer_types
from requant.loaders import DEFAULT, Loader
from requant.loaders.declared import read_declared
from requant.safetensors import Spec


@dataclass(frozen=True)
class Inspection:
    """What was looked at, against what, and what was found."""

    checkpoint: str
    tensors: int
    files: int
    fetched: int
    loaders: tuple[str, ...]
    degrees: tuple[int, ...]
    values_read: bool
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The errors that no baseline knows: what the exit status is made of."""
        return tuple(each for each in self.findings if each.severity is Severity.ERROR and not each.known)

    def as_json(self) -> dict[str, Any]:
        """Return the inspection as `--json` prints it."""
        return {**vars(self), "findings": [each.as_json() for each in self.findings]}


def inspect(
    headers: Headers,
    loaders: Iterable[Loader] = (DEFAULT,),
    degrees: Iterable[int] = (1,),
    *,
    look_at_values: bool = False,
    known: Expected = MappingProxyType({}),
) -> Inspection:
    """Hold a checkpoint against loaders; `known` is a recipe's baseline.

    With `look_at_values` zero points and scales are read too, which needs the files. Raises CheckpointError
    where the checkpoint cannot be read as what it says it is.
    """
    loaders, degrees = tuple(loaders), tuple(degrees)
    with without_collector():
        seen = look(headers, loaders, degrees)
        found = [finding for rules in (files, tensors, declarations, kernels) for finding in rules.check(seen)]
    if look_at_values:
        found += values.check(seen)
    return Inspection(
        checkpoint=headers.name,
        tensors=sum(map(len, headers.shards.values())),
        files=len(headers.shards),
        fetched=headers.fetched,
        loaders=tuple(loader.name for loader in loaders),
        degrees=degrees,
        values_read=look_at_values,
        findings=mark_known(merge(found), known),
    )


def look(headers: Headers, loaders: tuple[Loader, ...], degrees: tuple[int, ...]) -> Seen:
    """Take a checkpoint apart for the rules."""
    if not headers.shards:
        raise CheckpointError(f"{headers.name}: has no safetensors file", "Name a checkpoint's folder or repository.")
    config = headers.object("config.json")
    if config is None:
        raise CheckpointError(f"{headers.name}/config.json: missing", "Without it no loader knows what this is.")
    expected = base_tensors(config)
    declared = read_declared(config.get("quantization_config"))
    if declared is not None and declared.bits != 4:
        raise CheckpointError(
            f"{headers.name}/config.json: quantization_config.bits: found {declared.bits}, expected 4",
            "This version models INT4 with float layers beside it.",
        )
    anatomy = dissect(headers)
    kinds = block_kinds(config)
    templates = {kind: template(config, kind) for kind in set(kinds.values())}
    examined: list[tuple[str, Mapping[str, Spec], Build]] = []
    builds: dict[str, Build] = {}
    for block, kind in kinds.items():
        inside = anatomy.blocks.get(block, {})
        same = next((build for other, seen, build in examined if other == kind and seen == inside), None)
        if same is None:
            same = examine(inside, templates[kind], declared)
            examined.append((kind, inside, same))
        builds[block] = same
    stray = {
        f"{block}.{name}": spec
        for block in anatomy.blocks.keys() - kinds.keys()
        for name, spec in anatomy.blocks[block].items()
    }
    anatomy = type(anatomy)(anatomy.blocks, {**anatomy.rest, **stray}, anatomy.copies)
    return Seen(headers, config, declared, expected, anatomy, builds, loaders, degrees)


def block_kinds(config: Mapping[str, Any]) -> dict[str, str]:
    """Return every block of a configuration by name: `linear_attention`, `full_attention` or `mtp`."""
    text = config["text_config"]
    kinds = {f"{LM}layers.{number}": kind for number, kind in enumerate(layer_types(text))}
    return kinds | {f"{MTP}layers.{number}": "mtp" for number in range(text.get("mtp_num_hidden_layers", 0))}
