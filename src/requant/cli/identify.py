"""`requant identify`: say which tools could have written a checkpoint."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType
from rich.markup import escape

from requant.cli.folding import Sheet
from requant.cli.options import VERIFY, AsJson, app
from requant.cli.terminal import out, print_json
from requant.counts import several

if TYPE_CHECKING:
    from requant.check.makers import Made
    from requant.identify import Fingerprint

NOT_MODELLED = 3


@app.command(rich_help_panel=VERIFY, epilog="Example: requant identify out/ec-tiny --base out/base")
def identify(
    checkpoint: Annotated[str, typer.Argument(help="A folder, a GGUF file, or owner/name@revision on the Hub.")],
    base: Annotated[
        str,
        typer.Option(
            help="The base, a folder or owner/name@revision: a few layers are made again, to see by which formulas."
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Say which tools and policies could have written a checkpoint."""
    import requant.identify  # numba takes half a second to import
    from requant.check.gguf import is_gguf
    from requant.check.reader import open_reader
    from requant.hub.repository import named
    from requant.identify.gguf import identify_gguf
    from requant.inspect.remote import open_headers

    for each in filter(None, (checkpoint, base)):
        if not Path(each).exists():
            named(each)  # both, before the first one's headers are fetched
    if is_gguf(Path(checkpoint)):
        with open_reader(checkpoint) as theirs:
            found = identify_gguf(theirs)
    else:
        found = requant.identify.identify(open_headers(checkpoint))
    if base:
        with open_reader(checkpoint) as theirs, open_reader(base) as ours:
            found = requant.identify.with_base(found, theirs, ours)
    if as_json:
        print_json("requant.identify/3", found.as_json())
    else:
        out.lines(fingerprint_table(found))
    raise typer.Exit(NOT_MODELLED if found.silent else 0)


def fingerprint_table(found: "Fingerprint") -> Iterator[RenderableType]:
    """Yield a fingerprint, line by line; where nothing is quantized, that first, and no writer."""
    if not found.quantized:
        though = ", although config.json has a quantization_config" if found.declared else ""
        yield f"[bold yellow]nothing is quantized[/]: no tensor is packed{though}"
    sheet = Sheet("what", "found")
    unknown = f"not modelled for {found.architecture}"
    words = {
        file: ", ".join(f"{word} ({count:,})" for word, count in each.items())
        for file, each in (found.zero_words or {}).items()
    }
    effort = ", ".join(f"{key} {value}" for key, value in found.declared_effort.items())
    unmodelled = f"{found.unmodelled} are not modelled, only symmetric INT4 is" if found.unmodelled else ""
    linear = f"{found.linear_layers:,} linear layers" if found.linear_layers is not None else ""
    rows: dict[str, str | Iterable[str]] = {
        "MTP": found.mtp or unknown,
        "bytes": f"{found.main_bytes:,} in main files, {found.extra_bytes:,} in the extra file",
        "tensors": ", ".join(f"{count:,} {what}" for what, count in found.tensors.items()),
        "packed": f"{found.quantized_layers:,} of {linear}" if linear else several(found.quantized_layers, "layer"),
        "tokenizer": found.tokenizer,
    }
    if found.quantized:
        formats = [f"{count:,} {name}" for name, count in found.formats.items()]
        formats += [f"{count:,} not modelled: {why}" for why, count in found.unknown.items()]
        rows["formats"] = formats
        if found.mtp or words:
            rows |= {
                "zero points": [f"{file}: {each}" for file, each in words.items()] or "not read",
                "negative scales, tuned": _share(found.negative_tuned),
                "negative scales, MTP": _share(found.negative_rounded),
            }
        rows["fits"] = unknown if found.policies is None else unmodelled or found.policies or "no known policy"
    if found.quantized or found.declared:
        method = found.method or ("no quant_method" if found.declared else "nothing")
        rows["declared"] = [
            f"{method}: auto-round {found.declared_version or '?'}; {effort}" if effort else method,
            *(f"as of {tool}" for tool in found.tools),
        ]
    if found.made == ():
        rows["made again"] = "nothing: the base has none of the layers, or no formula is known"
    for each in found.made or ():
        rows[f"made again, {each.format}"] = [*_made(each)]
    if found.quantized:
        none = unknown if found.writers is None else "none of those known"
        rows["possible writers"] = unmodelled or found.writers or none
    for label, value in rows.items():
        sheet.add(label, map(escape, [value] if isinstance(value, str) else value))
    yield sheet


def _made(made: "Made") -> Iterator[str]:
    """Yield which formulas give the layers that were made again, and which are excluded."""
    yield f"{made.tried:,} of {several(made.layers, 'layer')}"
    for name, count in made.gave.items():
        if count:
            yield f"{name}: gives every byte of {'all' if count == made.tried else f'{count:,}'}"
    if excluded := [name for name, count in made.gave.items() if not count]:
        yield f"excluded: {'; '.join(excluded)}"
    ways = {way: count for way, count in made.ways.items() if way not in made.gave}
    yield from (f"{count:,} {way}" for way, count in ways.items())


def _share(value: float | None) -> str:
    return "not read, or there are none" if value is None else f"{value:.1%}"
