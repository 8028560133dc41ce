"""Results as tables that fit a terminal; `cli` prints them."""

from collections.abc import Iterable, Iterator
from itertools import groupby

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from requant.card import Claim
from requant.coverage import Coverage
from requant.errors import UsageError
from requant.identify import Fingerprint
from requant.inspect import Inspection
from requant.inspecting.defects import DEFECTS
from requant.inspecting.findings import Finding, Severity, fold
from requant.pins import Pinned
from requant.plan import Plan
from requant.repair import Repair

WIDTH = 80
"""Characters of a pin's source that a person is shown; `--json` has all of them."""
SUBJECTS = 4
"""Kinds of names that a finding shows; `--json` has every name."""
COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}


def plan_table(plan: Plan) -> Table:
    """Return what each part of base and checkpoint weighs."""
    title = f"{plan.recipe}: {plan.quantized:,} of {plan.linears:,} linear layers of {plan.base} become INT4"
    table = Table(
        "", "tensors", "parameters", "bytes", box=None, pad_edge=False, title=escape(title), title_justify="left"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for name, size in plan.sizes.items():
        # Packed words are no parameters: counted before, they would only mislead after.
        parameters = f"{size.parameters:,}" if name.startswith("base") else ""
        indented = f"  {name.partition(', ')[2]}" if ", " in name else name
        table.add_row(indented, f"{size.tensors:,}", parameters, f"{size.bytes:,}")
    return table


def pins_text(pins: Iterable[Pinned]) -> Iterator[str]:
    """Yield a line for each pin, and one for all complete ones of one kind in one file."""
    for (kind, file, _, fault, known), group in groupby(pins, _together):
        several = list(group)
        first, last = several[0], several[-1]
        where = (f"{file}:{first.line}" if first.line else file) + (f"-{last.line}" if first.line < last.line else "")
        names = first.name if len(several) == 1 else f"{len(several)}"
        sources = {pin.source for pin in several}
        said = f"; {_short(sources.pop())}" if len(sources) == 1 and first.source else ""
        held = f", {_short(first.by)}" if len(several) == 1 else ""
        missing = f" [red]incomplete: {escape(fault)}[/]" if fault else ""
        if known:
            missing = f" [yellow]known to be incomplete: {escape(f'{fault}; {known}')}[/]"
        yield f"[bold]{escape(where)}[/] {escape(f'{kind}: {names}{held}')}[dim]{escape(said)}[/]{missing}"


def _together(pin: Pinned) -> tuple[str, str, str, str, str]:
    """Return what pins of one line share; each that stands in no file has its own."""
    return pin.kind, pin.file, "" if pin.line else pin.name, pin.fault, pin.known


def _short(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[:WIDTH]}…"


def findings_table(inspected: Inspection) -> Iterator[RenderableType]:
    """Yield an inspection for a person: equal experts and layers folded into one line each, then a summary."""
    table = Table("", "rule", "what", "hits", box=None, pad_edge=False)
    for finding in inspected.findings:
        folded = fold(finding.subjects)
        subjects = [f"{name} ({count:,})" if count > 1 else name for name, count in folded[:SUBJECTS]]
        if len(folded) > SUBJECTS:
            subjects.append(f"and {len(folded) - SUBJECTS:,} more kinds")
        colour = "dim" if finding.known else COLOURS[finding.severity]
        label = "known" if finding.known else str(finding.severity)
        lines = [finding.consequence, *subjects, *([] if finding.known else [f"repair: {finding.repair}"])]
        table.add_row(
            f"[{colour}]{label}[/]", finding.rule, escape("\n".join(lines)), escape(_hits(finding, inspected))
        )
    if inspected.findings:
        yield table
    looked = "" if inspected.values_read else "; zero points and scales were not looked at (D10, D11, part of D12)"
    network = f", {inspected.fetched:,} bytes fetched" if inspected.fetched else ""
    against = f"{', '.join(inspected.loaders)} at TP {', '.join(map(str, inspected.degrees))}"
    yield escape(f"{inspected.checkpoint}: {inspected.tensors:,} tensors in {inspected.files} files{network}")
    verdict = f"[bold red]{len(inspected.errors)} errors[/]" if inspected.errors else "[bold green]no errors[/]"
    yield f"{verdict}{escape(f' for {against}{looked}')}"


def _hits(finding: Finding, inspected: Inspection) -> str:
    if len(finding.targets) == len(inspected.loaders) * len(inspected.degrees):
        return "all" if len(finding.targets) > 1 else ""
    hit: dict[str, list[str]] = {}
    for target in finding.targets:
        hit.setdefault(target.loader, []).append(str(target.tensor_parallel))
    return "\n".join(f"{loader} TP {','.join(degrees)}" for loader, degrees in hit.items())


def defect_text(name: str) -> str:
    """Return a defect's entry; raises UsageError where there is none of that name."""
    if name not in DEFECTS:
        raise UsageError(f"--explain {name}: no such defect; there are D01 to D28")
    entry = DEFECTS[name]
    seen = "" if entry.in_files else "\n[yellow]No file shows it: inspect has no rule for it.[/]"
    return f"[bold]{entry.id}[/] {escape(entry.title)}\n{escape(entry.cause)}{seen}\nRepair: {escape(entry.repair)}"


def repair_table(done: Repair) -> Iterator[RenderableType]:
    """Yield what a repair does, folded, and the digest that proves the tuned bytes."""
    table = Table("", "what", "how many", box=None, pad_edge=False)
    for label in ("added", "replaced", "dropped", "moved", "files"):
        for name, count in fold(getattr(done, label)):
            table.add_row(label, escape(name), f"{count:,}")
    if done.needed:
        yield table
    yield f"{done.kept:,} tuned tensors keep their bytes: sha256 {done.before}"
    if done.after is not None:
        yield f"read back from what was written: sha256 {done.after}"
    elif done.needed:
        yield "nothing was written: --out DIR writes it"
    else:
        yield "nothing is to be repaired"


def fingerprint_table(found: Fingerprint) -> Table:
    """Return a fingerprint, line by line."""
    table = Table("what", "found", box=None, pad_edge=False)
    words = {
        file: ", ".join(f"{word} ({count:,})" for word, count in each.items())
        for file, each in (found.zero_words or {}).items()
    }
    rows = {
        "MTP": found.mtp,
        "zero points": "\n".join(f"{file}: {each}" for file, each in words.items()) or "not read",
        "negative scales, tuned": _share(found.negative_tuned),
        "negative scales, MTP": _share(found.negative_rounded),
        "bytes": f"{found.main_bytes:,} in main files, {found.extra_bytes:,} in the extra file",
        "fits": "\n".join(found.policies) or "no known policy",
        "tensors": ", ".join(f"{count:,} {what}" for what, count in found.tensors.items()),
        "packed": f"{found.quantized_layers:,} of {found.linear_layers:,} linear layers",
        "tokenizer": found.tokenizer,
        "declared": f"auto-round {found.declared_version or '?'}; {dict(found.declared_effort)}",
        "possible writers": "\n".join(found.writers) or "none that is known",
    }
    for name, value in rows.items():
        table.add_row(name, escape(value))
    return table


def _share(value: float | None) -> str:
    return "not read, or none there" if value is None else f"{value:.1%}"


def claims_table(claims: tuple[Claim, ...]) -> Table:
    """Return a card's claims with their verdicts."""
    table = Table("line", "claim", "verdict", "evidence", box=None, pad_edge=False)
    colours = {"confirmed": "green", "refuted": "red", "undecidable": "yellow"}
    for each in claims:
        verdict = f"[{colours[each.verdict]}]{each.verdict}[/]"
        table.add_row(str(each.line), escape(each.text), verdict, escape(each.evidence))
    return table


def coverage_table(covered: Coverage) -> Iterator[RenderableType]:
    """Yield how far a build was reproduced: block by block, what went against it, what was not counted, the sum."""
    classes = [f"class {number}" for number, _ in enumerate(covered.hardware, 1)]
    table = Table("identical, by parties", "all", *classes, "different", "open", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for each in covered.blocks:
        counts = [each.parties, *(len(each.identical.get(hardware, ())) for hardware in covered.hardware)]
        different = f"[red]{len(each.different)}[/]" if each.different else ""
        table.add_row(escape(each.block), *(str(count or "") for count in counts), different, str(each.open or ""))
    if covered.counted:
        yield table
    for number, hardware in enumerate(covered.hardware, 1):
        names = sorted({name for each in covered.blocks for name in each.identical.get(hardware, ())})
        own = ", the build's own" if hardware == covered.own else ""
        yield escape(f"class {number}{own}: {hardware}: {', '.join(names) or 'nothing identical'}")
    for each in covered.blocks:
        for negative in each.different:
            yield f"[red]{escape(f'{negative.auditor}, {negative.hardware}: {negative.what} ({negative.audit})')}[/]"
    for file, reason in covered.stale.items():
        yield escape(f"not counted: {file}: {reason}")
    if not covered.own:
        yield escape(f"{covered.build}: nothing is recorded{'' if covered.twin else ' for the full build'}")
        return
    parties = [each.parties for each in covered.blocks]
    some, more, negatives = sum(n > 0 for n in parties), sum(n > 1 for n in parties), covered.negatives
    yield escape(
        f"{covered.build}: {some} of {len(parties)} blocks identical, {more} by two parties or more; "
        f"audits: {len(covered.counted)}, hardware classes: {len(covered.hardware)}"
    )
    if not covered.counted:
        yield "[bold yellow]nothing is covered[/]: CONTRIBUTING.md says how to submit an audit"
    else:
        yield f"[bold red]negative results: {negatives}[/]" if negatives else "[bold green]no negative result[/]"
