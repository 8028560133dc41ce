"""A rule about `tokenizer.json`: truncation and padding that a tool left in it (D35).

Whether tokenizer and template are the base's, `check` says: it compares side files with the base's.
"""

from collections.abc import Iterator

from requant.digest import read_whole, side_limit, strict_json
from requant.inspect.findings import Finding
from requant.inspect.rules.seen import Seen

FILE = "tokenizer.json"


def check(seen: Seen) -> Iterator[Finding]:
    """Yield what cuts or fills prompts, of a file on this disk; one that is no JSON is for whoever loads it to say."""
    if seen.headers.folder is None or FILE not in seen.headers.paths:
        return
    try:
        value = strict_json(read_whole(seen.headers.folder / FILE, side_limit(FILE)))
    except (OSError, ValueError) as error:
        yield seen.unmodelled("N01", [FILE], f"Not read: {error}.")
        return
    stated = value if isinstance(value, dict) else {}
    if (cut := stated.get("truncation")) is not None:
        longest = cut.get("max_length") if isinstance(cut, dict) else cut
        text = f"Who reads it through `tokenizers` alone cuts every prompt to {longest!r:.20} tokens, and is not told."
        yield seen.warning("D35", [f"{FILE}: truncation"], text)
    if (filled := stated.get("padding")) is not None:
        how = filled.get("strategy") if isinstance(filled, dict) else filled
        text = f"Who reads it through `tokenizers` alone fills prompts up: {how!r:.60}."
        yield seen.warning("D35", [f"{FILE}: padding"], text)
