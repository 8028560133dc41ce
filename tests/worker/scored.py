"""`BASE MODEL TOKENS PRECISION`: what two models make of sequences, in numpy, from logits of transformers' own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from tests.worker.prepared import answer

from requant.checkpoint.safetensors import read_header
from requant.worker import determinism, mtp


def scored(base: str, model: str, tokens: str, precision: str) -> dict[str, Any]:
    determinism.prepare("cpu")  # before torch is imported
    determinism.enforce()
    import torch

    sequences = json.loads(Path(tokens).read_text())["tokens"]
    both = [logits(Path(folder), sequences, getattr(torch, precision)) for folder in (base, model)]
    return {"sequences": [values(ids, *each) for ids, *each in zip(sequences, *both, strict=True)]}


def logits(folder: Path, sequences: list[list[int]], dtype: Any) -> list[tuple[Any, Any]]:
    """Logits float64 [tokens, vocabulary] of each sequence, and those of drafts, None where there is no MTP block."""
    import torch
    import transformers

    kind = getattr(transformers, json.loads((folder / "config.json").read_text())["architectures"][0])
    model = kind.from_pretrained(folder, dtype=dtype, local_files_only=True).eval()
    headers = [read_header(path)[0] for path in folder.glob("*.safetensors")]
    drafting = any(name.startswith("mtp.") for each in headers for name in each)
    if drafting:
        mtp.attach(model, folder)
    found = []
    for ids in sequences:
        rows = torch.tensor([ids])
        with torch.no_grad():
            states: list[Any] = []
            norm = model.get_decoder().norm
            hook = norm.register_forward_pre_hook(lambda _, inputs, states=states: states.append(inputs[0]))
            own = model(input_ids=rows).logits[0].double().numpy()
            hook.remove()
            drafts = mtp.logits(model, states[0], rows)[0].double().numpy() if drafting else None
        found.append((own, drafts))
    return found


def softmax(rows: Any) -> Any:
    raised = np.exp(rows - rows.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def values(ids: list[int], base: tuple[Any, Any], model: tuple[Any, Any]) -> dict[str, float]:
    p, q = (softmax(own[:-1]) for own, _ in (base, model))
    rows, after = np.arange(len(ids) - 1), np.array(ids[1:])
    found = {
        "divergence": float((p * np.log(p / q)).sum(axis=-1).mean()),
        "agreement": float((p.argmax(-1) == q.argmax(-1)).mean()),
        "base_surprise": float(-np.log(p[rows, after]).mean()),
        "surprise": float(-np.log(q[rows, after]).mean()),
    }
    for prefix, (own, drafts) in (("base_", base), ("", model)):
        if drafts is not None:
            found[f"{prefix}drafted"] = float((drafts.argmax(-1) == own[1:].argmax(-1)).mean())
            found[f"{prefix}overlap"] = float(np.minimum(softmax(drafts), softmax(own[1:])).sum(axis=-1).mean())
    return found


if __name__ == "__main__":
    answer(scored)
