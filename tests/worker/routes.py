"""Hold routers' choices against a try: another machine's, and those of a builder who turns one token."""

from contextlib import nullcontext
from typing import Any

import torch
from tests.worker.prepared import answer

from requant.worker.autoround.bounds import BeyondError, Bounds

TOKENS, EXPERTS, CHOSEN = 512, 256, 8
NOISE = 0.01
"""Of logits, of which two machines and a try have each their own."""
TURNED = range(0, TOKENS, 16)
PLACES = {"next": CHOSEN, "tenth": CHOSEN + 9, "last": EXPERTS - 1}
"""Which expert a token is sent to instead of the last one of its choice, by their order."""


def held(scores: Any, tried: Any, own: Any, theirs: Any) -> Bounds:
    """Hold `theirs` against scores and those of a try. Raises BeyondError where that does not explain them."""
    bounds = Bounds(64, 0, "bfloat16")

    def again() -> None:
        bounds.routes(tried, own, theirs)

    bounds.try_again("", lambda: nullcontext(again))
    bounds.routes(scores, own, theirs)
    bounds.tried()
    return bounds


def routes() -> dict[str, Any]:
    """Say how many routes of another machine were taken, and how many of `TURNED` a builder can turn, by place.

    Scores are probabilities of all experts, or logits of which half are left out.
    """
    torch.manual_seed(7)
    logits = torch.randn(TOKENS, EXPERTS)

    def machine(left_out: Any) -> Any:
        return (logits + NOISE * torch.randn_like(logits)).masked_fill(left_out, -torch.inf)

    found: dict[str, Any] = {}
    for name, left_out in {
        "all": torch.zeros(EXPERTS, dtype=torch.bool),
        "half": torch.arange(EXPERTS) % 2 > 0,
    }.items():
        own, theirs, tried = (machine(left_out) for _ in range(3))
        best, other = (each.topk(CHOSEN).indices for each in (own, theirs))
        scores, again = (own, tried) if name == "half" else (own.softmax(-1), tried.softmax(-1))
        found[name] = held(scores, again, best, other).routes_taken
        order = scores.argsort(-1, descending=True)
        turned = dict.fromkeys(PLACES, 0)
        for place, rank in PLACES.items():
            for token in TURNED:
                forged = best.clone()
                forged[token, -1] = order[token, rank]
                try:
                    held(scores, again, best, forged)
                except BeyondError as error:
                    assert str(error).startswith(f"its hints send token {token} of a batch to other experts")
                else:
                    turned[place] += 1
        found[f"{name}, turned"] = turned
    return found


if __name__ == "__main__":
    answer(routes)
