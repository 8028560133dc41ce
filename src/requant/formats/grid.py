"""Which weights of a layer share a scale: those of a rectangle of outputs and inputs."""

from dataclasses import dataclass

from requant.checkpoint.safetensors import Spec
from requant.formats.codec import Array, Part


@dataclass(frozen=True)
class Grid:
    """`height` outputs and `width` inputs share a scale; None: all of them."""

    height: int | None
    width: int | None
    exact: bool = True
    """Whether a layer must consist of whole groups of inputs."""

    def __str__(self) -> str:
        if self.height is None:
            return "one scale"
        if self.width is None:
            return "per channel"
        return f"groups of {self.width}" if self.height == 1 else f"blocks of {self.height} by {self.width}"

    @property
    def align(self) -> int:
        """A window of rows starts at a multiple of so many."""
        return self.height or 1

    def shape(self, rows: int, columns: int) -> tuple[int, ...]:
        """Return the shape of the scales of a weight; ValueError where it has no whole groups."""
        if self.height is None:
            return (1,)
        if self.width and self.exact and columns % self.width:
            raise ValueError(f"{columns:,} inputs are no multiple of the group size {self.width:,}")
        return (-(-rows // self.height), -(-columns // self.width) if self.width else 1)

    def part(self, dtype: str, rows: int, columns: int) -> Part:
        """Return the tensor that has a number for each group."""
        return Part(Spec(dtype, self.shape(rows, columns)), self.height or 0)

    def spread(self, values: Array, rows: int, columns: int) -> Array:
        """Return a number per group as what broadcasts against some rows of weights."""
        if self.height is None:
            return values.reshape(1, 1)
        wide = values if self.width is None else values.repeat(min(self.width, columns), axis=1)[:, :columns]
        return wide if self.height == 1 else wide.repeat(min(self.height, rows), axis=0)[:rows]

    def steps(self, rows: int, columns: int) -> tuple[int, int]:
        """Return how many rows and columns of some rows of a weight share a scale, both at least 1."""
        return self.height or max(rows, 1), self.width or max(columns, 1)


def grid_of(strategy: str, group: int | None, block: tuple[int, int] | None) -> Grid:
    """Return the grid of a strategy of compressed-tensors; ValueError for one that weights do not have."""
    if strategy == "tensor":
        return Grid(None, None)
    if strategy == "channel":
        return Grid(1, None)
    if strategy in ("group", "tensor_group") and group and 0 < group < 1 << 20:
        return Grid(1, group)
    if strategy == "block" and block and all(0 < each < 1 << 20 for each in block):
        return Grid(*block, exact=False)
    raise ValueError(f"the strategy {strategy!r:.40} for weights, with group size {group} and block {block}")
