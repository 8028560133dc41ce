"""`requant verify`: compare a checkpoint with a manifest, or say how a published one stands."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType
from rich.filesize import decimal
from rich.markup import escape

import requant.verify
from requant.checkpoint.manifest import read_manifest
from requant.cli.folding import Sheet
from requant.cli.options import (
    VERIFY,
    AsJson,
    Builders,
    BundleFile,
    Endpoint,
    Registry,
    Require,
    SignKey,
    Trust,
    app,
)
from requant.cli.sign import outcome_signer
from requant.cli.terminal import SHOWN, out, print_json, progress, show
from requant.counts import several
from requant.errors import UsageError
from requant.progress import counted
from requant.verdict import EXIT_STATUS, Outcome

if TYPE_CHECKING:  # what others say of a checkpoint is imported where it is asked for
    from requant.audit.confirmed import Confirmed
    from requant.published.standing import Standing

COLOURS = {"holds": "green", "fails": "red", "open": "yellow"}


@app.command(rich_help_panel=VERIFY, epilog="Example: requant verify out/ec-tiny builds/ec/demo.manifest.json")
def verify(
    checkpoint: Annotated[str, typer.Argument(help="A folder, or a repository on the Hub: owner/name[@revision].")],
    manifest: Annotated[
        Path | None,
        typer.Argument(
            help="A manifest, as `requant build` or `requant manifest` writes it. Without it, that of the proofs in "
            "requant/, of the folder or the repository."
        ),
    ] = None,
    tensors: Annotated[
        bool,
        typer.Option("--tensors", help="Accept equal tensors, even if they are distributed differently over files."),
    ] = False,
    require: Require = None,
    trust: Trust = None,
    builders: Builders = None,
    registry: Registry = None,
    sign: SignKey = None,
    bundle: BundleFile = None,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a checkpoint has the recorded bytes, and name every file and tensor that differs.

    With --require or --trust also whether others have confirmed it: docs/audit.md. Of a repository, who built it and
    how far it was confirmed, by what its proofs and the Hub say, and without its weights: docs/publish.md.
    """
    folder = Path(checkpoint)
    if manifest is None and not folder.exists():
        if sign or tensors:
            told = "--sign and --tensors read all of a checkpoint, so it must be here"
            raise UsageError(told, f"requant fetch {checkpoint} downloads it.")
        _by_name(checkpoint, builders, registry, require, trust or [], endpoint, as_json)
    brought = manifest is None
    manifest = manifest or _beside(folder)
    found = _confirmed(manifest, require, trust or [], builders, registry, brought) if require or trust else None
    if builders and not found:
        raise typer.BadParameter("--builders needs --require or --trust")
    signed = outcome_signer(sign, bundle, folder, "summary" if found else "verify")
    recorded = read_manifest(manifest)
    with progress() as tell:
        total = sum(record.bytes for record in recorded.files.values())
        verdict = requant.verify.verify(folder, recorded, counted(tell, "verify", total))
    if found:
        found = replace(found, identical=verdict.outcome is Outcome.IDENTICAL)
    if as_json:
        print_json("requant.verify/1", {**verdict.as_json(), "confirmed": found and found.as_json()})
    else:
        counted_files = (
            f"{several(len(recorded.files), 'file')}, {several(len(recorded.tensors), 'tensor')}, {decimal(total)}"
        )
        show(verdict, f"compared with {manifest}: {counted_files}")
        if found:
            _show(found)
    if signed:
        from requant.evidence.outcomes import verified

        judged = verified(folder, recorded, verdict)
        signed(found.summary(judged.files) if found else judged)
    equal = (Outcome.IDENTICAL, Outcome.EQUIVALENT) if tensors else (Outcome.IDENTICAL,)
    status = 0 if verdict.outcome in equal else EXIT_STATUS[verdict.outcome]
    raise typer.Exit(status or (found.exit_status if found else 0))


def _confirmed(
    manifest: Path, required: int | None, trust: list[str], listed: Path | None, registry: Path | None, brought: bool
) -> "Confirmed":
    """Return who has confirmed what a manifest records; one that a checkpoint `brought` brings no builders with it."""
    from requant.audit import confirmed as confirming
    from requant.audit.coverage import coverage

    recipe, tiny = confirming.build_of(manifest)
    if brought:
        from requant.published.found import builders_for, registry_for

        known, trusted = builders_for(registry_for(registry), listed, trust)
    else:
        known, trusted = confirming.builders(recipe, listed, trust)
    return confirming.confirmed(coverage(recipe, tiny, known), known, required, trusted)


def _show(found: "Confirmed") -> None:
    from requant.cli.coverage import show_confirmed

    show_confirmed(found)


def _beside(folder: Path) -> Path:
    """Return the manifest among the proofs in a checkpoint's folder; raise UsageError where there is none."""
    from requant.published.proofs import FOLDER

    if len(found := [*(folder / FOLDER).glob("builds/*/*.manifest.json")]) == 1:
        return found[0]
    advice = "Name a manifest, as `requant build` or `requant manifest` writes it."
    raise UsageError(f"{folder}: has no proofs in {FOLDER}/ that name one manifest", advice)


def _by_name(
    name: str,
    listed: Path | None,
    registry: Path | None,
    required: int | None,
    trust: list[str],
    endpoint: str | None,
    as_json: bool,
) -> None:
    """Say how a published checkpoint stands, and exit."""
    from requant.build.workplace import scratch
    from requant.environment.install import cache
    from requant.hub.repository import named
    from requant.published.found import builders_for, find, registry_for
    from requant.published.standing import standing

    repository, revision = named(name, "main")
    chosen = registry_for(registry)
    known, trusted = builders_for(chosen, listed, trust)
    with scratch(cache() / "published") as work, progress() as tell:
        found = find(repository, revision, chosen, work, endpoint=endpoint, tell=tell)
        stands = standing(found, known, required=required, trusted=trusted, tell=tell)
    if as_json:
        print_json("requant.standing/1", stands.as_json())
    else:
        out.lines(standing_table(stands))
        if stands.confirmed:
            _show(stands.confirmed)
    raise typer.Exit(stands.exit_status)


def standing_table(stands: "Standing") -> Iterator[RenderableType]:
    """Yield how a published checkpoint stands, on one screen."""
    tiny = f", tiny model {stands.tiny}" if stands.tiny else ""
    build = f"{stands.build}{tiny}, as {stands.recorded} records it" if stands.build else "no proofs are known of it"
    yield escape(f"{stands.checkpoint}: {build}; {stands.fetched:,} bytes fetched")
    sheet = Sheet("rung", "", "what was found")
    for each in stands.rungs:
        more = [f"and {len(each.against) - SHOWN} more; --json lists them"] if len(each.against) > SHOWN else []
        lines = map(escape, [each.said, *each.against[:SHOWN], *more])
        sheet.add(each.name, f"[{COLOURS[each.word]}]{each.word}[/]", lines)
    yield sheet
    yield from (escape(f"not counted: {name}: {why}") for name, why in stands.refused.items())
    if stands.unseen:
        yield escape(f"nobody has looked at: {', '.join(stands.unseen)}")
    if stands.fails:
        yield f"[bold red]fails[/]: {', '.join(each.name for each in stands.rungs if each.word == 'fails')}"
    elif not stands.known:
        yield "[bold yellow]nobody whom you know speaks for it[/]: --builders or --registry names whom you know"
    else:
        yield "[bold green]nothing speaks against it[/], and somebody whom you know speaks for it"
    if not stands.confirmed:
        yield escape(f"next: {stands.next}")
