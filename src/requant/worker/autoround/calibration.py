"""The calibration tokens: chosen by AutoRound's own code from a pinned file, then fixed and hashed.

Left to itself AutoRound downloads the dataset's newest revision, and takes images instead of text when the GPU
is full. Here its function is called with the file that the recipe pins, and the tuning gets the result.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from requant.digest import sha256_chunks
from requant.errors import BuildError

PILE = "NeelNanda/pile-10k"
"""The name by which AutoRound finds the function that shuffles and tokenizes; the text is the recipe's."""


@dataclass(frozen=True)
class Tokens:
    """Token ids, int64 [samples, sequence length]."""

    rows: Any

    @property
    def digest(self) -> str:
        """SHA-256 of the ids as little-endian int64, row by row."""
        return sha256_chunks(row.numpy().astype("<i8").tobytes() for row in self.rows)

    def batches(self, size: int) -> Any:
        """Return the DataLoader that AutoRound would have made: no padding, every token attended to."""
        import torch
        from torch.utils.data import DataLoader

        def collate(rows: list[Any]) -> dict[str, Any]:
            ids = torch.stack(rows)
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

        return DataLoader(self.rows, batch_size=size, shuffle=False, collate_fn=collate)


def choose(tokenizer: Any, text: Path, *, samples: int, length: int, seed: int) -> Tokens:
    """Return the sequences that AutoRound takes from `text` (Parquet, or JSON lines) with a column `text`.

    It shuffles by the seed, truncates to `length`, and drops what is shorter or mostly one token. Raises
    BuildError where fewer than `samples` are left: AutoRound only warns.
    """
    from auto_round.calib_dataset import get_dataset

    with _served_from(text):
        chosen = get_dataset(tokenizer, length, PILE, seed, samples)
    rows = [row["input_ids"][:length] for row in chosen]
    if len(rows) < samples:
        raise BuildError(
            f"{text.name}: {len(rows)} sequences of {length} tokens, the recipe asks for {samples}",
            "Ask for fewer or shorter ones; AutoRound would have gone on with fewer.",
        )
    return Tokens(rows)


@contextmanager
def _served_from(text: Path) -> Iterator[None]:
    import datasets

    original = datasets.load_dataset
    kind = "parquet" if text.suffix == ".parquet" else "json"

    def pinned(*_: Any, **__: Any) -> Any:
        return original(kind, data_files=str(text), split="train")

    datasets.load_dataset = pinned
    try:
        yield
    finally:
        datasets.load_dataset = original
