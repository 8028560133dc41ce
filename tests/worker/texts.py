"""`BASE FOLDER`: the calibration tokens, beside what AutoRound's own loader yields from the same file."""

import json
from pathlib import Path
from typing import Any

import datasets
import torch
from tests.worker.prepared import TEXT, answer
from transformers import AutoTokenizer

from requant.errors import BuildError
from requant.worker.autoround import calibration

SIZE = 8


def chosen(tokenizer: Any, text: Path, samples: int = 16, length: int = 64) -> Any:
    return calibration.choose(tokenizer, text, samples=samples, length=length, seed=42)


def equal(ours: Any, theirs: Any) -> bool:
    """Say whether two loaders yield the same batches: keys, ids and masks."""
    ours, theirs = list(ours), list(theirs)
    return len(ours) == len(theirs) and all(
        list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)
        for one, other in zip(ours, theirs, strict=True)
    )


def dtypes(loader: Any) -> dict[str, str]:
    return {key: str(value.dtype) for key, value in next(iter(loader)).items()}


def texts(base: str, folder: str) -> dict[str, Any]:
    from auto_round.calib_dataset import get_dataloader

    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    rows = [json.loads(line) for line in TEXT.read_text().splitlines()]
    parquet = Path(folder) / "text.parquet"
    datasets.Dataset.from_list(rows).to_parquet(str(parquet))

    compared = {}
    original = datasets.load_dataset
    for length in (32, 64, 100):
        ours = chosen(tokenizer, TEXT, length=length).batches(SIZE)
        # What AutoRound would do by itself, but for where the dataset's file lies.
        datasets.load_dataset = lambda *_, **__: original("json", data_files=str(TEXT), split="train")
        theirs = get_dataloader(tokenizer, length, calibration.PILE, 42, SIZE, 16)
        datasets.load_dataset = original
        compared[length] = {"equal": equal(ours, theirs), "ours": dtypes(ours), "theirs": dtypes(theirs)}

    tokens = chosen(tokenizer, TEXT)
    changed = [row.clone() for row in tokens.rows]
    digests = {tokens.digest}
    for row, column in ((0, 0), (7, 31), (15, 63)):
        changed[row][column] += 1
        digests.add(calibration.Tokens(changed).digest)
    digests.add(calibration.Tokens(tokens.rows[::-1]).digest)
    try:
        chosen(tokenizer, TEXT, samples=1000)
        refused = ""
    except BuildError as error:
        refused = f"{error}\n{error.advice}"
    return {
        "compared": compared,
        "parquet": chosen(tokenizer, parquet).digest == tokens.digest,
        "digests": len(digests),
        "refused": refused,
        "restored": datasets.load_dataset is original,
    }


if __name__ == "__main__":
    answer(texts)
