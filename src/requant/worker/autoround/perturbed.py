"""What bfloat16's rounding does to a step, by trying: another machine's roundings, drawn at random.

Monte Carlo arithmetic (Parker, "Monte Carlo Arithmetic", 1997; Vignes, "Discrete Stochastic Arithmetic", 2004): a
computation is done once more, each result of an operation in bfloat16 moved to a neighbour at random, and how far the
results are apart tells how exact they are. Two machines that round the same number, each from sums of its own, are
apart by the difference of two roundings: in places, each has a variance of 1/12, both of 1/6. So a result moves up with
a probability of 1/12, and down with one of 1/12. Nothing is tuned. A cancellation, which counting of roundings does
not see, shows itself: that of the softmax's gradient, or of the loss.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map

CHANCE = 1 / 12
EXACT = {
    *("abs", "amax", "amin", "arange", "cat", "clamp", "clone", "constant_pad_nd", "copy", "detach", "embedding"),
    *("empty", "empty_like", "empty_strided", "expand", "fill", "flip", "full", "full_like", "gather", "index"),
    *("index_copy", "index_put", "index_select", "masked_fill", "masked_select", "max", "maximum", "min", "minimum"),
    *("neg", "new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros", "ones", "ones_like", "relu"),
    *("repeat", "roll", "scatter", "select_backward", "select_scatter", "slice_backward", "slice_scatter", "sort"),
    *("stack", "threshold_backward", "topk", "tril", "triu", "unfold_backward", "where", "zero", "zeros"),
    "zeros_like",
}
"""Operations that take numbers as they are: their results are rounded nowhere."""


unperturbed = _disable_current_modes
"""Within it, results are what they are: of weights, which are alike on all machines."""


class RoundedAtRandom(TorchDispatchMode):
    """While it is entered, each result in bfloat16 is its neighbour at random, in backward passes too."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generator: dict[Any, Any] = {}
        self._seed = seed

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        name = function._schema.name.partition("::")[2].rstrip("_")
        if function.is_view or name in EXACT or (name == "_to_copy" and args[0].dtype != torch.float32):
            return found
        for _ in range(_added(*args) if name == "index_add" else 1):
            found = tree_map(self._moved, found)
        return found

    def _moved(self, result: Any) -> Any:
        if not isinstance(result, torch.Tensor) or result.dtype != torch.bfloat16 or not result.numel():
            return result
        if result.device not in self._generator:
            self._generator[result.device] = torch.Generator(result.device).manual_seed(self._seed)
        drawn = torch.rand(result.shape, device=result.device, generator=self._generator[result.device])
        # The words of neighbours of one sign are neighbours; zero and what is not finite stays.
        words = result.contiguous().view(torch.int16)
        moving = (result != 0) & result.isfinite()
        moved = words + (drawn < CHANCE).to(torch.int16) - (drawn > 1 - CHANCE).to(torch.int16)
        return result.copy_(torch.where(moving, moved, words).view(torch.bfloat16))


def _added(to: Any, dim: int, _: Any, rows: Any) -> int:
    """Return how many of `rows` are added to each one of a tensor, which is rounded each time: `index_add`'s arguments.

    So a token's gradient is that of what it is given by all experts that it is sent to, where these run together.
    """
    return -(-int(rows.shape[dim]) // int(to.shape[dim]))
