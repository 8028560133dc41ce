"""`inspect CHECKPOINT` asks whether each loader would consume every tensor, exactly once, as what it is.

Headers and side files decide everything but four rules, which look at zero points and scales where these lie
on this disk, and one at the tokenizer. Blocks that are equal are examined once.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from requant.checkpoint.safetensors import Spec
from requant.errors import CheckpointError
from requant.inspect.anatomy import BLOCKS, Anatomy, Build, dissect, examine, template
from requant.inspect.findings import Expected, Finding, Severity, mark_known, merge
from requant.inspect.headers import Headers, without_collector
from requant.inspect.loaders import DEFAULT, Loader
from requant.inspect.loaders.declared import Declared, read_declared
from requant.inspect.loaders.reading import read
from requant.inspect.mending import refusal
from requant.inspect.rules import declarations, files, kernels, kv_cache, readings, stored, tensors, tokenizer, values
from requant.inspect.rules.seen import Seen
from requant.model.skeleton import Skeleton, is_modelled, skeleton


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

    @property
    def unmodelled(self) -> tuple[Finding, ...]:
        """What is not modelled, and about which nothing is said."""
        return tuple(each for each in self.findings if each.severity is Severity.UNMODELLED and not each.known)

    @property
    def outcome(self) -> Literal["errors", "not modelled", "no errors"]:
        """The sum of it: errors before what is not modelled, which is no error."""
        return "errors" if self.errors else "not modelled" if self.unmodelled else "no errors"

    def as_json(self) -> dict[str, Any]:
        """Return the inspection as `--json` prints it."""
        return {**vars(self), "outcome": self.outcome, "findings": [each.as_json() for each in self.findings]}


EXIT_STATUS = {"no errors": 0, "errors": 1, "not modelled": 3}


def inspect(
    headers: Headers,
    loaders: Iterable[Loader] = (DEFAULT,),
    degrees: Iterable[int] = (1,),
    *,
    look_at_values: bool = False,
    known: Expected = MappingProxyType({}),
) -> Inspection:
    """Hold a checkpoint against loaders; `known` is a recipe's baseline.

    With `look_at_values` zero points, scales and the tokenizer are read too, which needs the files. Raises
    CheckpointError where the checkpoint cannot be read as what it says it is.
    """
    loaders, degrees = tuple(dict.fromkeys(loaders)), tuple(sorted(set(degrees)))
    with without_collector():
        seen = look(headers, loaders, degrees)
        rules = [files, readings, stored, kv_cache]
        if seen.modelled and not seen.another:
            rules += [tensors, declarations, kernels]
        found = [finding for each in rules for finding in each.check(seen)]
    if look_at_values:
        found += [*kv_cache.check_values(seen), *tokenizer.check(seen)]
        found += [] if seen.another else values.check(seen)
    return Inspection(
        checkpoint=headers.name,
        tensors=sum(map(len, headers.shards.values())),
        files=len(headers.shards),
        fetched=headers.fetched,
        loaders=tuple(loader.name for loader in loaders),
        degrees=degrees,
        values_read=look_at_values,
        findings=mark_known(_advised(merge(found), seen), known),
    )


def _advised(found: Iterable[Finding], seen: Seen) -> Iterator[Finding]:
    """Yield findings; where `requant repair` refuses the checkpoint, none of them advises it."""
    stated = seen.config.get("quantization_config")
    declared = stated if isinstance(stated, dict) else seen.headers.object("quantization_config.json") or {}
    refused = refusal(declared) if seen.modelled else f"{seen.architecture} is not modelled"
    by_hand = f"mend it by hand, or make the checkpoint anew: `requant repair` refuses it ({refused})"
    for each in found:
        if refused and "requant repair" in each.repair:
            yield replace(each, advice="nothing is broken" if each.severity is Severity.NOTE else by_hand)
        else:
            yield each


def look(headers: Headers, loaders: tuple[Loader, ...], degrees: tuple[int, ...]) -> Seen:
    """Take a checkpoint apart for the rules."""
    if not headers.shards:
        raise CheckpointError(f"{headers.name}: has no safetensors file", "Name a checkpoint's folder or repository.")
    config = headers.object("config.json")
    if config is None:
        raise CheckpointError(f"{headers.name}/config.json: missing", "Without it no loader knows what this is.")
    raw = config.get("quantization_config")
    found = {loader.name: read(raw, loader.reader) for loader in loaders}
    declared, malformed = _declared(raw)
    architecture = _architecture(headers.name, config)
    model = skeleton(config) if is_modelled(config) else None
    anatomy, builds = _examined(dissect(headers), model) if model else (dissect(headers), {})
    return Seen(
        headers,
        config,
        declared,
        model or Skeleton(),
        anatomy,
        builds,
        loaders,
        degrees,
        architecture,
        model is not None,
        found,
        malformed,
    )


def _architecture(name: str, config: Mapping[str, Any]) -> str:
    """Return what a configuration says that the model is."""
    stated = config.get("model_type")
    classes = config.get("architectures")
    if not isinstance(stated, str) or not stated:
        advice = "Without it no loader knows what this is."
        raise CheckpointError(f"{name}/config.json: model_type: found {stated!r:.80}, expected a name", advice)
    return classes[0] if isinstance(classes, list) and classes and isinstance(classes[0], str) else stated


def _declared(raw: Any) -> tuple[Declared | None, str]:
    """Return what AutoRound declared, or why that cannot be read; other tools' declarations are not looked into."""
    method = raw.get("quant_method", "") if isinstance(raw, dict) else ""
    if not isinstance(raw, dict) or (isinstance(method, str) and method.lower() not in ("", "auto-round", "inc")):
        return None, ""
    try:
        return read_declared(raw), ""
    except CheckpointError as error:
        return None, f"{str(error)[:1].upper()}{str(error)[1:]}."


def _examined(anatomy: Anatomy, model: Skeleton) -> tuple[Anatomy, dict[str, Build]]:
    """Examine every block, equal ones once; the tensors of blocks that the model does not have go to the rest."""
    kinds = {block: kind for block, kind in model.blocks.items() if block.startswith(BLOCKS)}
    templates = {kind: template(model, kind) for kind in set(kinds.values())}
    examined: list[tuple[str, Mapping[str, Spec], Build]] = []
    builds: dict[str, Build] = {}
    for block, kind in kinds.items():
        inside = anatomy.blocks.get(block, {})
        same = next((build for other, seen, build in examined if other == kind and seen == inside), None)
        if same is None:
            same = examine(inside, templates[kind])
            examined.append((kind, inside, same))
        builds[block] = same
    stray = {
        f"{block}.{name}": spec
        for block in anatomy.blocks.keys() - kinds.keys()
        for name, spec in anatomy.blocks[block].items()
    }
    return Anatomy(anatomy.blocks, {**anatomy.rest, **stray}, anatomy.copies), builds
