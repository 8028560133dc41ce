"""Where a tensor lies: in which file, from which byte to which."""

from dataclasses import dataclass

from requant.checkpoint.safetensors import Spec


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor: what it is, and which bytes of which file it occupies."""

    spec: Spec
    file: str
    start: int
    stop: int
