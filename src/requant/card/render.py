"""A card's text: `card.md.template` filled with facts and tables, under a metadata block of huggingface_hub's.

In the template `@{key}` is a fact. A line that names a fact which no record has is left out, and `@{if key}` and
`@{unless key}` at the beginning of a line say when else it stands there. So no figure stands in a card but a fact's.
"""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from typing import TYPE_CHECKING

from requant.build import words
from requant.build.inputs import LOCAL
from requant.card.facts import Fact, Facts, packages, text
from requant.card.records import Records
from requant.card.serving import flags
from requant.errors import UsageError
from requant.hub.repository import NAME
from requant.inspect import Inspection
from requant.inspect.findings import Severity, Target
from requant.model.templates import fold
from requant.verdict import visible

if TYPE_CHECKING:  # it takes a fifth of a second to import
    from huggingface_hub import ModelCardData

TEMPLATE = "card.md.template"
UNNAMED = "OWNER/NAME"
"""Stands for the repository where nobody has named it."""
_PLACE = re.compile(r"@\{([a-z0-9_.-]+)\}")
_CONDITION = re.compile(r"@\{(if|unless) ([a-z0-9_.-]+)\}")


def render(records: Records, facts: Facts, repository: str = "") -> str:
    """Return the card of a build; `repository` is where the checkpoint is to be found, as `owner/name`.

    Raises UsageError for another name.
    """
    from huggingface_hub import ModelCard

    if repository and not ((match := NAME.fullmatch(repository)) and not match[2]):
        raise UsageError(f"--repository {repository}: expected owner/name")
    template = resources.files(__name__.rpartition(".")[0]).joinpath(TEMPLATE).read_text(encoding="utf-8")
    values = {key: plain(text(fact)) for key, fact in facts.items()}
    values |= {key: value for key, value in _parts(records, facts, repository or UNNAMED) if value}
    return str(ModelCard(f"---\n{_metadata(records, facts).to_yaml()}\n---\n\n{_filled(template, values)}"))


def _filled(template: str, values: Mapping[str, str]) -> str:
    lines: list[str] = []
    for line in template.splitlines():
        condition = _CONDITION.match(line)
        if condition and (condition[1] == "if") != (condition[2] in values):
            continue
        rest = line[condition.end() :] if condition else line
        if all(key in values for key in _PLACE.findall(rest)):
            lines.append(_PLACE.sub(lambda match: values[match[1]], rest))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(_whole(lines))) + "\n"


def _whole(lines: list[str]) -> Iterator[str]:
    """Leave out tables without rows."""
    for number, line in enumerate(lines):
        last = number + 2 >= len(lines)
        if line.startswith("| ") and _is_rule(lines, number + 1) and (last or not lines[number + 2].startswith("|")):
            continue
        if _is_rule(lines, number) and (number + 1 >= len(lines) or not lines[number + 1].startswith("|")):
            continue
        yield line


def _is_rule(lines: list[str], number: int) -> bool:
    return number < len(lines) and bool(re.fullmatch(r"\|(---\|)+", lines[number]))


def plain(said: str) -> str:
    """Return a text of others on one line, in which nothing is Markdown or HTML; what cannot be seen is spelled out."""
    return visible(said).translate(_ESCAPED)


_ESCAPED = str.maketrans({"|": "\\|", "`": "'", **{each: f"&#{ord(each)};" for each in "<>[]*"}})


def _metadata(records: Records, facts: Facts) -> "ModelCardData":
    """Return the metadata block: what the Hub knows of a model by name. A tiny model has no base model and no data."""
    from huggingface_hub import ModelCardData

    tags = [f"{facts['scheme.bits'].value}-bit", "auto-round", "requant"]
    if records.tiny:
        return ModelCardData(tags=[*tags, "tiny-model"])
    named = facts.get("license.name")
    return ModelCardData(
        base_model=None if _is_local(records) else str(facts["base.repository"].value),
        base_model_relation=None if _is_local(records) else "quantized",
        datasets=None if records.recipe.calibration.dataset.startswith(LOCAL) else [records.recipe.calibration.dataset],
        license=str(named.value) if named else None,
        tags=tags,
    )


def _is_local(records: Records) -> bool:
    """Whether the base is a folder of somebody's, which the Hub knows by no name."""
    return records.recipe.base.repository.startswith(LOCAL)


def _parts(records: Records, facts: Facts, name: str) -> Iterator[tuple[str, str]]:
    """Yield what a template has beside facts: tables, commands, and what says that there are any."""
    recipe, plan = records.recipe, records.target.plan
    folder = f"{recipe.path.resolve().parent.parent.name}/{recipe.name}"
    path, size = shlex.quote(folder), words(records.tiny)
    yield "title", plain(f"{recipe.name}, tiny model {records.tiny}" if records.tiny else recipe.name)
    yield "name", name
    yield "path.recipe", path
    yield "serving.releases", ", ".join(flags())
    yield "table.packed", _table(("layers", "bits", "group size", "symmetric", "count"), _packed(records))
    reasons = {layer: each.reason for layer, each in plan.layers.items() if each.reason}
    rows = ((f"`{each}`", plain(each.value), f"{each.count:,}") for each in fold(reasons))
    yield "table.float", _table(("layers", "why", "count"), rows)
    versions = ((each, plain(text(facts[f"package.{each}"]))) for each in packages(facts))
    yield "rows.packages", "\n".join(f"| {each} | {version} |" for each, version in versions)
    commits = (key for key in facts if key.startswith("commit."))
    yield "rows.commits", "\n".join(f"| {each[7:]}, commit | `{facts[each].value}` |" for each in commits)
    yield "command.build", f"requant build {path}{size}"
    yield from _recorded(records, path, size)
    published = not (records.tiny or _is_local(records))
    base = f"{recipe.base.repository}@{recipe.base.revision}" if published else "BASE"
    if records.tiny:
        chosen = f" --size {records.tiny}" if records.tiny != "demo" else ""
        yield "command.tiny", f"requant tiny {path}{chosen} --out BASE"
    yield "command.check", f"requant check CHECKPOINT --base {shlex.quote(base)} --recipe {path}"
    if records.baseline:
        yield "known", "yes"
        known = (
            (each.rule, ", ".join(each.loaders), ", ".join(map(str, each.tensor_parallel)), str(each.at_most), each.why)
            for each in records.baseline
        )
        yield "table.known", _table(("rule", "releases", "TP", "at most", "why"), (map(plain, row) for row in known))
    if records.inspection:
        yield "inspection", "yes"
        yield "table.loaders", _table(("release", "TP", "outcome"), _loaders(records.inspection))
    yield "list.limits", "\n".join(f"- {plain(each)}" for each in _limits(records))


def _packed(records: Records) -> Iterator[tuple[str, ...]]:
    form, plan = records.target.form, records.target.plan
    named = {name: form.of(layer) for name, layer in plan.packed.items()}
    ways = fold({name: (each.bits, each.group_size, each.symmetric) for name, each in named.items()})
    for each in ways:
        bits, size, symmetric = each.value
        yield f"`{each}`", str(bits), str(size), "yes" if symmetric else "no", f"{each.count:,}"


def _recorded(records: Records, path: str, size: str) -> Iterator[tuple[str, str]]:
    recorded = records.recorded
    if recorded is None:
        return
    losses = (
        (f"`{plain(each.block)}`", *_loss(each.loss.initial, each.loss.best), f"{each.loss.best_iteration}")
        for each in recorded.journal.blocks
        if each.loss
    )
    yield "table.losses", _table(("block", "before", "after", "best of iteration"), losses)
    found = recorded.manifest.files.items()
    files = ((f"`{plain(name)}`", f"{each.bytes:,}", f"`{each.sha256}`") for name, each in found)
    yield "table.files", _table(("file", "bytes", "SHA-256"), files)
    yield "table.hardware", _table(("", ""), _flat(recorded.stated.hardware))
    manifest = shlex.quote(f"{recorded.name}.manifest.json")
    yield "command.verify", f"requant verify CHECKPOINT {manifest}"
    yield "command.audit", f"requant audit CHECKPOINT --recipe {path} --blocks 0{size}"
    yield "command.rebuild", f"requant rebuild {path}{size} --against RECORDS"


def _loss(*losses: str) -> Iterator[str]:
    return (text(Fact(float.fromhex(each), "", "loss")) for each in losses)


def _flat(value: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, each in sorted(value.items()):
        if isinstance(each, Mapping):
            yield from _flat(each, f"{prefix}{key}.")
        else:
            yield plain(f"{prefix}{key}"), plain(str(each))


def _loaders(found: Inspection) -> Iterator[tuple[str, str, str]]:
    for loader in found.loaders:
        for degree in found.degrees:
            hits = [each for each in found.findings if Target(loader, degree) in each.targets]
            errors = sorted({each.rule for each in hits if each.severity is Severity.ERROR})
            unknown = any(each.severity is Severity.UNMODELLED for each in hits)
            fine = "not modelled" if unknown else "no errors"
            yield loader, str(degree), f"errors: {', '.join(errors)}" if errors else fine


def _limits(records: Records) -> Iterator[str]:
    """Yield what keeps the build from proving more, as its records say."""
    recorded = records.recorded
    if recorded is None:
        yield "No build of this recipe is recorded: no byte of a checkpoint was looked at for this card."
        return
    for taint in recorded.stated.taints:
        yield f"Taint, as the statement has it: {taint}"
    if recorded.stated.lock != records.lock.digest:
        yield "The lock beside the recipe is another one by now: of packages only those of the statement are known."
    yield "Journal and statement are the builder's own words: audits and rebuilds show that others get the same bits."
    yield "Nothing here says how well the model answers."


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table of Markdown, "" where it has no rows."""
    cells = [*header]
    found = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join((f"| {' | '.join(cells)} |", f"|{'---|' * len(cells)}", *found)) if found else ""
