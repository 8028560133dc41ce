"""`show journal PATH`: a journal as a person reads it, with losses as cards quote them."""

from dataclasses import asdict
from typing import Any

from requant.evidence.journal import Journal, Loss


def journal_lines(journal: Journal) -> list[str]:
    """Return the header, and a line per block: `layer 0 loss 0.000011→0.000001, best of iteration 3`.

    A block whose name ends in no number goes by its name.
    """
    header = [f"{key} {value}" for key, value in asdict(journal.header).items() if value is not None]
    return header + [f"{_layer(each.block)} {_loss(each.loss)}" for each in journal.blocks]


def journal_json(journal: Journal) -> dict[str, Any]:
    """Return the journal as `--json` prints it: losses as numbers, exactly those that the journal has in hex."""
    value = asdict(journal)
    for block in value["blocks"]:
        if block["loss"]:
            block["loss"] |= {key: float.fromhex(block["loss"][key]) for key in ("initial", "best")}
    return value


def _loss(loss: Loss | None) -> str:
    if loss is None:
        return "rounded, not tuned"
    initial, best = float.fromhex(loss.initial), float.fromhex(loss.best)
    return f"loss {initial:.6f}→{best:.6f}, best of iteration {loss.best_iteration}"


def _layer(block: str) -> str:
    number = block.rpartition(".")[2]
    return f"layer {number}" if number.isdecimal() else block
