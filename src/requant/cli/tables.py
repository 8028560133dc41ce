"""Results as tables that fit a terminal; `cli` prints them."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from rich.console import RenderableType
from rich.markup import escape

from requant.audit.coverage import Coverage
from requant.build.survey import Asked
from requant.build.trial import Trial
from requant.cli.folding import Sheet, name
from requant.errors import UsageError
from requant.hub.pins import Pinned
from requant.identify import Fingerprint
from requant.inspect import Inspection
from requant.inspect.defects import DEFECTS
from requant.inspect.findings import Finding, Severity, alike, fold
from requant.model.summary import Summary
from requant.repair import Repair

WIDTH = 80
"""Characters of a pin's source that a person is shown; `--json` has all of them."""
SUBJECTS = 4
"""Kinds of names that a finding shows; `--json` has every name."""
COLOURS = {Severity.ERROR: "red", Severity.UNMODELLED: "magenta", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}


def several(count: int, noun: str) -> str:
    """Return a count with its noun: `1 file`, `1,049 tensors`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def plan_table(plan: Summary) -> Sheet:
    """Return what each part of base and checkpoint weighs."""
    title = f"{plan.recipe}: {plan.quantized:,} of {plan.linears:,} linear layers of {plan.base} become INT4"
    sheet = Sheet("", "tensors", "parameters", "bytes", title=escape(title), numbers=True)
    for part, size in plan.sizes.items():
        # Packed words are no parameters: counted before, they would only mislead after.
        parameters = f"{size.parameters:,}" if part.startswith("base") else ""
        indented = f"  {part.partition(', ')[2]}" if ", " in part else part
        sheet.add(indented, f"{size.tensors:,}", parameters, f"{size.bytes:,}")
    return sheet


def asked_text(asked: Asked) -> Iterator[str]:
    """Yield whether the quantizer itself means what is planned, and each difference."""
    who = f"AutoRound {escape(asked.versions['auto-round'])}"
    if not asked.differences:
        yield f"[green]{who} itself packs these {asked.layers:,} layers, from these places in the base[/]"
        return
    yield f"[red]{who} itself packs {asked.layers:,} layers of {asked.blocks:,} blocks, and not as planned:[/]"
    yield from map(escape, asked.differences)


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
    """Yield an inspection for a person: equal experts, layers and sentences folded, then a summary."""
    sheet = Sheet("", "rule", "what", "hits")
    for finding, count in alike(inspected.findings):
        colour = "dim" if finding.known else COLOURS[finding.severity]
        label = "known" if finding.known else str(finding.severity)
        more = [f"and {count - 1:,} more like this, with other values: --json has each"] if count > 1 else []
        advice = [] if finding.known else [f"advice: {finding.repair}"]
        lines = [finding.consequence, *more, *_subjects(finding.subjects), *advice]
        sheet.add(f"[{colour}]{label}[/]", finding.rule, map(escape, lines), map(escape, _hits(finding, inspected)))
    if inspected.findings:
        yield sheet
    looked = "" if inspected.values_read else "; zero points and scales were not read (D10, D11, part of D12)"
    network = f", {inspected.fetched:,} bytes fetched" if inspected.fetched else ""
    against = f"{', '.join(inspected.loaders)} at TP {', '.join(map(str, inspected.degrees))}"
    tensors = several(inspected.tensors, "tensor")
    yield escape(f"{inspected.checkpoint}: {tensors} in {several(inspected.files, 'file')}{network}")
    verdict = f"[bold red]{several(len(inspected.errors), 'error')}[/]"
    if not inspected.errors:
        verdict = "[bold yellow]not modelled[/]" if inspected.unmodelled else "[bold green]no errors[/]"
    yield f"{verdict}{escape(f' for {against}{looked}')}"


def _subjects(names: Iterable[str]) -> list[str]:
    folded = fold(names)
    shown = [f"{name(each)} ({count:,})" if count > 1 else name(each) for each, count in folded[:SUBJECTS]]
    left = sum(count for _, count in folded[SUBJECTS:])
    return [*shown, f"and {left:,} more"] if left else shown


def _hits(finding: Finding, inspected: Inspection) -> list[str]:
    if len(finding.targets) == len(inspected.loaders) * len(inspected.degrees):
        return ["all"] if len(finding.targets) > 1 else []
    hit: dict[str, list[str]] = {}
    for target in finding.targets:
        hit.setdefault(target.loader, []).append(str(target.tensor_parallel))
    return [f"{loader} TP {','.join(degrees)}" for loader, degrees in hit.items()]


def defect_text(name: str) -> Iterator[str]:
    """Yield a defect's entry, line by line; raises UsageError where there is none of that name."""
    if name not in DEFECTS:
        raise UsageError(f"--explain {name}: no such defect; they are D01 to D30 and N01 to N03")
    entry = DEFECTS[name]
    yield f"[bold]{entry.id}[/] {escape(entry.title)}"
    yield escape(entry.cause)
    if not entry.in_files:
        yield "[yellow]It does not show in the files, so inspect has no rule for it.[/]"
    yield f"Advice: {escape(entry.repair)}"


def repair_table(done: Repair, out: Path | None) -> Iterator[RenderableType]:
    """Yield what a repair does, folded, the digest that proves the tuned bytes, and the folder `out` it wrote."""
    sheet = Sheet("", "what", "how many")
    for label in ("added", "replaced", "dropped", "moved", "files"):
        for each, count in fold(getattr(done, label)):
            sheet.add(label, escape(name(each)), f"{count:,}")
    if done.needed:
        yield sheet
    yield f"{done.kept:,} tuned tensors keep their bytes: sha256 {done.before}"
    if done.after is not None:
        yield f"read back from what was written: sha256 {done.after}"
    if not done.needed:
        yield (
            f"nothing need{'ed' if out else 's'} repair: configuration, side files, index, layout, zero points, "
            "and what is the base's"
        )
        yield "whether tuned weights are right is for `requant check` to say"
    if out:
        yield escape(f"{'the repaired checkpoint' if done.needed else 'a copy with the same tensors and files'}: {out}")
    elif done.needed:
        yield "nothing was written: --out DIR writes it"


def fingerprint_table(found: Fingerprint) -> Iterator[RenderableType]:
    """Yield a fingerprint, line by line; where nothing is quantized, that first, and no writer."""
    if not found.quantized:
        though = ", although config.json has a quantization_config" if found.declared else ""
        yield f"[bold yellow]nothing is quantized[/]: no tensor is packed{though}"
    sheet = Sheet("what", "found")
    words = {
        file: ", ".join(f"{word} ({count:,})" for word, count in each.items())
        for file, each in (found.zero_words or {}).items()
    }
    effort = ", ".join(f"{key} {value}" for key, value in found.declared_effort.items())
    unmodelled = f"{found.unmodelled} are not modelled, only symmetric INT4 is" if found.unmodelled else ""
    rows: dict[str, str | Iterable[str]] = {
        "MTP": found.mtp,
        "bytes": f"{found.main_bytes:,} in main files, {found.extra_bytes:,} in the extra file",
        "tensors": ", ".join(f"{count:,} {what}" for what, count in found.tensors.items()),
        "packed": f"{found.quantized_layers:,} of {found.linear_layers:,} linear layers",
        "tokenizer": found.tokenizer,
    }
    if found.quantized:
        rows |= {
            "zero points": [f"{file}: {each}" for file, each in words.items()] or "not read",
            "negative scales, tuned": _share(found.negative_tuned),
            "negative scales, MTP": _share(found.negative_rounded),
            "fits": unmodelled or found.policies or "no known policy",
        }
    if found.quantized or found.declared:
        rows["declared"] = f"auto-round {found.declared_version or '?'}; {effort}"
    if found.quantized:
        rows["possible writers"] = unmodelled or found.writers or "none of those known"
    for label, value in rows.items():
        sheet.add(label, map(escape, [value] if isinstance(value, str) else value))
    yield sheet


def _share(value: float | None) -> str:
    return "not read, or there are none" if value is None else f"{value:.1%}"


def coverage_table(covered: Coverage) -> Iterator[RenderableType]:
    """Yield how far a build was reproduced: block by block, what went against it, what was not counted, the sum."""
    classes = [f"class {number}" for number, _ in enumerate(covered.hardware, 1)]
    sheet = Sheet("identical, by parties", "all", *classes, "different", "open", numbers=True)
    for each in covered.rows:
        counts = [each.parties, *(len(each.identical.get(hardware, ())) for hardware in covered.hardware)]
        different = f"[red]{len(each.different)}[/]" if each.different else ""
        numbers = (str(count or "") for count in counts)
        sheet.add(escape(name(each.block)), *numbers, different, str(len(each.open) or ""))
    if covered.counted:
        yield sheet
    for number, hardware in enumerate(covered.hardware, 1):
        names = sorted({name for each in covered.rows for name in each.identical.get(hardware, ())})
        own = ", the build's own" if hardware == covered.own else ""
        yield escape(f"class {number}{own}: {hardware}: {', '.join(names) or 'nothing identical'}")
    for file, label in covered.counted.items():
        environment = "the build's environment" if label.own_environment else f"environment {label.environment[:12]}"
        yield escape(
            f"audit {file[:12]}: {label.auditor}, {label.finished}, {label.hardware}, {environment}, "
            f"journal: {label.journal}"
        )
    for each in covered.rows:
        for colour, results in (("red", each.different), ("yellow", each.open)):
            for result in results:
                said = f"{result.auditor}, {result.hardware}: {result.what} ({result.audit})"
                yield f"[{colour}]{escape(said)}[/]"
    for file, reason in covered.stale.items():
        yield escape(f"not counted: {file}: {reason}")
    if not covered.own:
        yield escape(f"{covered.build}: nothing is recorded{'' if covered.tiny else ' for the full build'}")
        return
    parties = [each.parties for each in covered.blocks]
    some, more, negatives = sum(n > 0 for n in parties), sum(n > 1 for n in parties), covered.negatives
    yield escape(
        f"{covered.build}: {some} of {len(parties)} blocks identical, {more} by two parties or more; "
        f"not tuned: {covered.untuned.parties or 'no'} {'party' if covered.untuned.parties == 1 else 'parties'}; "
        f"audits: {len(covered.counted)}, hardware classes: {len(covered.hardware)}"
    )
    if not covered.counted:
        yield "[bold yellow]nothing is covered[/]: CONTRIBUTING.md says how to submit an audit"
    else:
        yield f"[bold red]negative results: {negatives}[/]" if negatives else "[bold green]no negative result[/]"


def trial_lines(tried: Trial) -> Iterator[str]:
    """Yield what a trial took, and what it makes one expect of the full build."""
    effort, gib = tried.effort, 1 << 30
    yield escape(
        f"tiny model {tried.size}, {effort.precision} on {effort.device}: {effort.iterations} iterations, "
        f"{effort.samples} samples of {effort.sequence_length:,} tokens"
    )
    yield f"seconds: {tried.iteration:.2f} an iteration, {tried.block:.1f} a block; peak memory: " + (
        f"{tried.peak_memory_bytes / gib:.1f} GiB"
        + (f", of the GPU {tried.peak_device_memory_bytes / gib:.1f} GiB" if tried.peak_device_memory_bytes else "")
    )
    if tried.projection:
        price = "" if tried.projection.price is None else f", {tried.projection.price:,.2f} at the price given"
        yield f"the full build: at most {tried.projection.hours:.1f} hours of tuning{price}"
    else:
        yield "no projection: this was not the recipe's own width and precision"
