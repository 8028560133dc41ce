"""The formulas by which layers of a codec can have been made."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from requant.formats.codec import Codec
from requant.formats.ggml import Ggml
from requant.rounding import ggml
from requant.rounding.formula import Formula

FORMULAS: Mapping[type[Codec], Callable[[Any], Sequence[Formula]]] = {Ggml: ggml.formulas}
"""By the class of the codec: what returns the formulas of one, the likeliest first."""


def formulas(codec: Codec) -> Sequence[Formula]:
    """Return the formulas that are known to have made such layers; none where none can be recomputed."""
    known = FORMULAS.get(type(codec))
    return known(codec) if known else ()
