"""Counts as people read them."""


def several(count: int, noun: str, nouns: str = "") -> str:
    """Return a count with its noun: `1 file`, `1,049 tensors`, `2 parties`."""
    return f"{count:,} {noun if count == 1 else nouns or f'{noun}s'}"
