"""Rules about what is declared: resolved precision against form on disk (D05, D06, D08, D15 to D17, D27, D28)."""

from collections.abc import Collection, Iterator, Mapping

from requant.inspect.anatomy import VISUAL
from requant.inspect.findings import Finding, Severity, Target
from requant.inspect.loaders import Loader
from requant.inspect.loaders.declared import Declared
from requant.inspect.loaders.modules import Module, modules
from requant.inspect.loaders.resolver import (
    Conflict,
    Dialect,
    Precision,
    is_expression,
    is_harmless,
    matches,
    rename,
    renamed,
    resolve,
)
from requant.inspect.rules.readings import UNDECLARED, kernel, unfit
from requant.inspect.rules.seen import Seen

REGEX_PREFIX = ("model\\.language_model", "model.language_model", "model\\.visual", "model.visual")


def check(seen: Seen) -> Iterator[Finding]:
    """Yield where a loader's modules get another precision than their tensors have."""
    forms = disk_forms(seen)
    yield from _groups(seen, forms)
    if seen.declared is None:
        packed = [name for name, form in forms.items() if form == "packed"]
        if packed and seen.config.get("quantization_config") is None:
            yield seen.error("D15", packed, UNDECLARED)
        return
    yield from _keys(seen, seen.declared)
    for loader in seen.loaders:
        if loader.dialect and seen.readings[loader.name].outcome == "reads":
            yield from _resolved(seen, loader, loader.dialect, seen.declared, forms)


def disk_forms(seen: Seen) -> dict[str, str]:
    """Return the form on disk of every layer of the blocks, experts as one; the visual tower and others are float."""
    return {f"{block}.{name}": form for block, build in seen.builds.items() for name, form in build.forms.items()}


def _groups(seen: Seen, forms: Mapping[str, str]) -> Iterator[Finding]:
    for module in modules(seen.model, seen.loaders[0].names):
        found = {forms.get(part, "float") for part in module.parts} - {"missing"}
        if len(found) > 1 or "mixed" in found:
            rule = "D05" if module.name.endswith("in_proj_ba") else "D06"
            yield seen.error(
                rule, module.parts, "Loaders merge these into one module, which cannot be both packed and float."
            )


def _keys(seen: Seen, declared: Declared) -> Iterator[Finding]:
    names = {part for module in modules(seen.model, seen.loaders[0].names) for part in module.parts}
    fused = {module.name for loader in seen.loaders for module in modules(seen.model, loader.names)}
    fused |= {
        f"{module.parts[0].rpartition('.')[0]}.{module.name.rpartition('.')[2]}"
        for module in modules(seen.model, seen.loaders[0].names)
    }
    floats = {name.removesuffix(".weight") for name in seen.expected}
    known = names | fused | floats
    expressions = 0
    for key in declared.overrides:
        if key.removesuffix(".weight") == "lm_head" or key.endswith(".lm_head"):
            yield seen.error("D27", [key], "vLLM ignores it up to 0.25.1 and follows it from 0.33.0 on.")
        elif ".mlp.experts." in key and not is_expression(key):
            yield seen.error("D17", [key], "Some releases apply it to all experts of the layer, others ignore it.")
        elif is_expression(key):
            expressions += 1
            yield from _expression(seen, key, known if expressions <= EXPRESSIONS else {key})
        elif key not in known and not any(name.endswith(f".{key}") for name in known):
            yield seen.error("D16", [key], "It names no module, so it has no effect.")


EXPRESSIONS = 200
"""Expressions that are tried on every module; more are taken as they are."""


def _expression(seen: Seen, key: str, known: set[str]) -> Iterator[Finding]:
    if not is_harmless(key):
        yield seen.error("D16", [key], "Matching this expression may never finish, and loaders try it on every module.")
    elif any(prefix in key for prefix in REGEX_PREFIX):
        yield seen.error("D16", [key], "It contains the checkpoint's prefix, which vLLM's modules do not have.")
    elif "experts" in key and _matches_one_expert(seen, key):
        yield seen.error("D17", [key], "Some releases apply it to all experts of the layer, others ignore it.")
    elif not any(matches(key, name) for name in known):
        yield seen.error("D16", [key], "It matches no module, so it has no effect.")


def _matches_one_expert(seen: Seen, key: str) -> bool:
    experts = [f"{block}.mlp.experts" for block in seen.builds]
    one = any(matches(key, f"{name}.0.{half}_proj") for name in experts for half in ("gate", "up", "down"))
    return one and not any(matches(key, name) for name in experts)


def _resolved(
    seen: Seen, loader: Loader, dialect: Dialect, declared: Declared, forms: Mapping[str, str]
) -> Iterator[Finding]:
    ours = renamed(declared, dialect)
    targets = tuple(Target(loader.name, degree) for degree in seen.degrees)
    wrong: dict[str, tuple[Module, bool]] = {}
    for module in modules(seen.model, loader.names):
        if (module.kind == "head" and not loader.head_has_precision) or _excused(module, declared, dialect):
            continue
        found = resolve(ours, module, dialect)
        on_disk = {forms.get(part, "float") for part in module.parts}
        if isinstance(found, Conflict):
            rule = "D05" if module.name.endswith("in_proj_ba") else "D06"
            text = "The loader refuses: the parts of one module are declared with different precisions."
            yield Finding(rule, Severity.ERROR, module.parts, text, targets)
        elif on_disk in _WHOLE and found.packed != (on_disk == {"packed"}):
            wrong[module.name] = module, found.packed
        elif on_disk == {"packed"}:
            yield from _precision(seen, loader, declared, module, found, targets)
    for module, packed in wrong.values():
        yield Finding(_rule(loader, module, wrong), Severity.ERROR, module.parts, _mismatch(loader, packed), targets)


def _precision(
    seen: Seen,
    loader: Loader,
    declared: Declared,
    module: Module,
    found: Precision,
    targets: tuple[Target, ...],
) -> Iterator[Finding]:
    raw = seen.config["quantization_config"]
    for part in module.parts:
        for each in seen.packings(part):
            yield from unfit(loader, found, declared, raw, {part: each}, targets)
    if module.kind == "linear":
        yield from kernel(loader, found, declared, raw, list(module.parts), targets)


_WHOLE = ({"packed"}, {"float"}, {"fused"})


def _rule(loader: Loader, module: Module, wrong: Collection[str]) -> str:
    if loader.program == "sglang":
        return "D28"
    if module.name.startswith("mtp."):
        return "D08"
    beside = module.name.removesuffix("ba") + "qkvz"
    return "D05" if module.name.endswith("in_proj_ba") and beside not in wrong else "D15"


def _mismatch(loader: Loader, packed: bool) -> str:
    form = "float, but the loader expects it packed" if packed else "packed, but the loader expects it as a float"
    end = {"skips": "it skips what does not fit and uses uninitialised memory", "refuses": "it refuses to load"}
    return f"It is {form}: {end.get(loader.unknown, 'it goes on without the tensor')}."


def _excused(module: Module, declared: Declared, dialect: Dialect) -> bool:
    """Say whether a key that has a finding of its own explains what a module resolves to."""
    if module.kind == "head":
        return any("lm_head" in key for key in declared.overrides)
    if module.kind == "experts":
        return any(rename(key, dialect.renames).startswith(f"{module.name}.") for key in declared.overrides)
    spelt = any(is_expression(key) and any(prefix in key for prefix in REGEX_PREFIX) for key in declared.overrides)
    return spelt and not module.name.startswith(("mtp.", "visual.", VISUAL))
