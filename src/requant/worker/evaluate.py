"""Runs a model of floats on held-out sequences: what it says of each token, and how far that is from a reference.

No quantizer has a part in it. The reference's logits lie in files, so that one model at a time is in memory; each
sequence is written when it is whole, and a worker that is started again goes on behind it.
"""

import heapq
import json
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from requant import protocol
from requant.digest import sha256
from requant.errors import BuildError
from requant.protocol import LOGITS, SCORED, TOKENS, Evaluate, Report, Scored, Sequences, label
from requant.worker import determinism, mtp
from requant.worker.autoround.tuning import load_model
from requant.worker.resume import digest

ROWS = 64
"""Rows of logits that are widened to float64 at a time: for the largest vocabularies, some 0.1 GB each."""
TENSOR = "logits"


def score(folder: Path, task: Evaluate) -> None:
    """Write a `Scored` of each sequence, and of a reference the sequences and their logits before."""
    determinism.prepare(task.device)
    determinism.confirm_accelerator(task.device, task.accelerator)
    determinism.enforce()
    import torch

    for name in (LOGITS, SCORED):
        (folder / name).mkdir(exist_ok=True)
    place = Path(task.reference or folder)
    if task.reference is None and not (folder / TOKENS).exists():
        import transformers

        tokenizer = transformers.AutoTokenizer.from_pretrained(task.model, local_files_only=True)
        protocol.write(folder / TOKENS, choose(tokenizer, Path(task.text), task.samples, task.length))
    sequences = protocol.read(place / TOKENS, Sequences)
    model = load_model(Path(task.model), getattr(torch, task.precision))
    if task.mtp:
        mtp.attach(model, Path(task.model))
    model = model.eval().to(task.device)
    hardware = determinism.hardware_class(task.device, task.precision)
    protocol.write(folder / protocol.REPORT, Report(hardware, versions(), determinism.AUTOTUNED, ""))
    for number, tokens in enumerate(sequences.tokens):
        file = folder / SCORED / f"{label(number)}.json"
        if not file.exists():
            with torch.inference_mode():
                protocol.write(file, _score(model, torch.tensor([tokens]), task, folder, number))


def versions() -> dict[str, str]:
    """Return the versions of the packages that have a part in it."""
    return {name: metadata.version(name) for name in ("tokenizers", "torch", "transformers")}


def choose(tokenizer: Any, text: Path, samples: int, length: int) -> Sequences:
    """Return the first `length` tokens of some texts: of those that have so many, the ones of least SHA-256.

    Each text counts once, and gives one sequence, so that no two are parts of one document; the digest of its UTF-8
    decides, so neither the order of the file nor a random generator does. Raises BuildError where there are too few.
    """
    chosen: list[tuple[int, tuple[int, ...]]] = []  # a heap whose first has the greatest digest
    known: set[int] = set()
    for each in texts(text):
        key = int(sha256(each.encode()), 16)
        if key in known or (len(chosen) == samples and key > -chosen[0][0]):
            continue
        tokens = tokenizer(each, truncation=True, max_length=length)["input_ids"]
        if len(tokens) < length:
            continue
        known.add(key)
        heapq.heappush(chosen, (-key, tuple(tokens[:length])))
        if len(chosen) > samples:
            known.discard(-heapq.heappop(chosen)[0])
    if len(chosen) < samples:
        raise BuildError(
            f"{text.name}: {len(chosen)} texts of {length} tokens or more, {samples} are asked for",
            "Ask for fewer or shorter ones, or join texts that belong together.",
        )
    chosen.sort(reverse=True)
    return Sequences(tuple(tokens for _, tokens in chosen), tuple(f"{-key:064x}" for key, _ in chosen))


def texts(file: Path) -> Iterator[str]:
    """Yield the column `text` of a file, Parquet or else JSON lines. Raises BuildError for what is neither."""
    try:
        if file.suffix == ".parquet":
            from pyarrow.parquet import ParquetFile

            for batch in ParquetFile(file).iter_batches(columns=["text"]):
                yield from map(str, filter(None, batch["text"].to_pylist()))
            return
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                value = json.loads(line) if line.strip() else {"text": ""}
                if not isinstance(value, dict) or not isinstance(value.get("text"), str):
                    raise BuildError(f"{file.name}, line {number}: no object with a text", "See docs/evaluate.md.")
                value["text"].encode()  # half a surrogate is no text
                yield value["text"]
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise BuildError(f"{file.name}: no JSON lines, or Parquet, with a column text: {error}") from None


def _score(model: Any, tokens: Any, task: Evaluate, folder: Path, number: int) -> Scored:
    """Run a model on one sequence [1, length], and compare it with what there is to compare it with."""
    import torch

    tokens = tokens.to(task.device)
    kept: list[Any] = []
    if task.mtp:
        last = model.get_decoder().layers[-1]
        hook = last.register_forward_hook(lambda _m, _i, out: kept.append(out[0] if isinstance(out, tuple) else out))
    logits = model(input_ids=tokens, use_cache=False).logits[0].float()
    drafts = None
    if task.mtp:
        hook.remove()
        drafts = mtp.logits(model, kept[0], tokens)[0].float()
    rows = logits[:-1].cpu().contiguous()
    told = digest([rows])
    bad = sum(int((~torch.isfinite(each)).sum()) for each in (logits, drafts) if each is not None)
    if bad:
        return Scored(told, bad)
    name = f"{label(number)}.safetensors"
    if task.reference is None:
        _keep(folder / LOGITS / name, rows)
        reference = None
    else:
        reference = _kept(Path(task.reference), number, rows.shape).to(task.device)
    targets, surprises = tokens[0, 1:], []
    divergences, agreed, drafted, overlaps = [], [], [], []
    for first in range(0, len(rows), ROWS):
        part = slice(first, first + ROWS)
        own = logits[:-1][part].double().log_softmax(-1)
        surprises += (-own.gather(-1, targets[part, None])[:, 0]).tolist()
        if reference is not None:
            ours = reference[part].double().log_softmax(-1)
            # A divergence is never negative; what a sum of rounded terms is below 0 is their rounding.
            divergences += (ours.exp() * (ours - own)).sum(-1).clamp_min(0).tolist()
            agreed += (reference[part].argmax(-1) == logits[:-1][part].argmax(-1)).tolist()
        if drafts is not None:
            after = logits[1:][part]
            drafted += (drafts[part].argmax(-1) == after.argmax(-1)).tolist()
            both = (each.double().softmax(-1) for each in (drafts[part], after))
            overlaps += torch.minimum(*both).sum(-1).clamp_max(1).tolist()
    return Scored(told, 0, *map(tuple, (surprises, divergences, agreed, drafted, overlaps)))


def _keep(path: Path, rows: Any) -> None:
    from safetensors.torch import save_file

    part = path.with_name(f".{path.name}.part")
    save_file({TENSOR: rows}, part)
    part.rename(path)


def _kept(reference: Path, number: int, shape: Any) -> Any:
    """Return the reference's logits of a sequence; raise BuildError where they are not those that were written."""
    from safetensors.torch import load_file

    path = reference / LOGITS / f"{label(number)}.safetensors"
    try:
        rows = load_file(path)[TENSOR]
    except Exception as error:
        raise BuildError(f"{path}: cannot be read: {error}", f"Remove {reference}, and they are made anew.") from None
    told = protocol.read(reference / SCORED / f"{label(number)}.json", Scored).logits
    if rows.shape != shape or digest([rows]) != told:
        raise BuildError(f"{path}: not the logits that were written", f"Remove {reference}, and they are made anew.")
    return rows
