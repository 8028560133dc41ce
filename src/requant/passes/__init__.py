"""What the host does to AutoRound's raw output: named, pure passes, checkpoint in, checkpoint out.

Nothing that AutoRound writes after its tuning is kept unexamined. The tuned tensors keep their bytes; all else
comes from the base, or follows from the recipe. Each pass can be used alone.
"""

from collections.abc import Callable, Iterable
from functools import reduce

from requant.checkpoint.checkpoint import Checkpoint
from requant.passes.context import Aim, Context, Mending
from requant.passes.extras import mtp, visual
from requant.passes.layout import index, shards, side_files
from requant.passes.main import tuned, untouched
from requant.passes.overrides import quantization_config

__all__ = ["PASSES", "Aim", "Context", "Mending", "apply"]

PASSES: dict[str, Callable[[Checkpoint, Aim], Checkpoint]] = {
    each.__name__: each for each in (tuned, untouched, visual, mtp, shards, quantization_config, side_files, index)
}
"""The passes by name, in the only order in which each finds what it needs."""


def apply(raw: Checkpoint, context: Aim, names: Iterable[str] = PASSES) -> Checkpoint:
    """Apply the passes, or those of them in `names`, in order; each gets the last one's result."""
    return reduce(lambda checkpoint, name: PASSES[name](checkpoint, context), names, raw)
