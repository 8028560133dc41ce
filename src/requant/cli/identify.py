"""`requant identify`: say which tools could have written a checkpoint."""

from collections.abc import Iterable, Iterator

from rich.console import RenderableType
from rich.markup import escape

import requant.identify
from requant.cli.folding import Sheet
from requant.cli.options import VERIFY, AsJson, CheckpointSource, app
from requant.cli.terminal import out, print_json
from requant.identify import Fingerprint
from requant.inspect.remote import open_headers


@app.command(rich_help_panel=VERIFY, epilog="Example: requant identify out/ec-tiny")
def identify(
    checkpoint: CheckpointSource,
    as_json: AsJson = False,
) -> None:
    """Say which tools and policies could have written a checkpoint."""
    found = requant.identify.identify(open_headers(checkpoint))
    if as_json:
        print_json("requant.identify/2", found.as_json())
    else:
        out.lines(fingerprint_table(found))


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
