"""Listens to AutoRound's tuning and writes the journal: three of its functions are wrapped, none is changed.

`_quantize_block` sees everything that a block depends on and returns what the next one does; `_get_loss` is
called once per step; `shard_writer` gets the block when its tensors have their final form. All three are the
same in 0.12.2 and at 2dda035.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from requant.digest import sha256_chunks
from requant.errors import BuildError
from requant.journal import Block, Loss
from requant.quantizer.determinism import random_state


@dataclass
class Listener:
    """What was heard of the block that is being tuned."""

    record: Callable[[Block], None]
    steps_per_iteration: int
    losses: list[float] = field(default_factory=list)
    pending: dict[str, Any] = field(default_factory=dict)
    recorded: int = 0
    tuning: list[float] = field(default_factory=list)
    """Seconds that AutoRound took for each block."""
    listening: float = 0.0
    """Seconds that hashing and writing took, for all blocks."""

    def loss(self, divisor: int) -> Loss:
        """Return the losses of the block's iterations as AutoRound adds up its steps; the first best one counts."""
        steps = self.steps_per_iteration
        totals = [
            sum((loss / divisor for loss in self.losses[i : i + steps]), start=0.0)
            for i in range(0, len(self.losses), steps)
        ]
        if not all(map(math.isfinite, totals)):
            raise BuildError(f"{self.pending['block']}: a loss of {totals}", "AutoRound would have gone on.")
        best = min(range(len(totals)), key=totals.__getitem__)
        return Loss(totals[0].hex(), totals[best].hex(), best)


@contextmanager
def listening(autoround: Any, record: Callable[[Block], None]) -> Iterator[Listener]:
    """Call `record` with each block as soon as AutoRound has written it."""
    from auto_round.compressors import base

    compressor = type(autoround)
    tune, measure, write = compressor._quantize_block, compressor._get_loss, base.shard_writer
    heard = Listener(record, autoround.gradient_accumulate_steps)

    def quantize_block(
        self: Any, block: Any, input_ids: Any, input_others: Any, q_input: Any = None, **rest: Any
    ) -> Any:
        if heard.pending:
            raise BuildError(f"{heard.pending['block']}: AutoRound never wrote it", "Report this with the log.")
        heard.losses.clear()
        begun = time.monotonic()
        quantized = input_ids if q_input is None else q_input
        heard.pending = {
            "block": block.global_name,
            "random_state": random_state(),
            "inputs": {"full": digest(input_ids), "quantized": digest(quantized)},
        }
        divisor = 1
        if heard.steps_per_iteration > 1:
            divisor = sum(each.numel() for each in quantized[: self.batch_size * heard.steps_per_iteration])
        tuned = time.monotonic()
        q_output, output = tune(self, block, input_ids, input_others, q_input=q_input, **rest)
        done = time.monotonic()
        heard.pending["loss"] = heard.loss(divisor)
        heard.pending["outputs"] = {"full": digest(output), "quantized": digest(q_output)}
        heard.tuning.append(done - tuned)
        heard.listening += tuned - begun + time.monotonic() - done
        return q_output, output

    def get_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = measure(self, *args, **kwargs)
        heard.losses.append(loss.item())
        return loss

    def shard_writer(rounder: Any, m: Any = None, *args: Any, **kwargs: Any) -> Any:
        if m is not None and heard.pending and m.global_name == heard.pending["block"]:
            begun = time.monotonic()
            tensors = {f"{m.global_name}.{name}": digest([value]) for name, value in m.state_dict().items()}
            heard.record(Block(tensors=tensors, **heard.pending))
            heard.pending = {}
            heard.recorded += 1
            heard.listening += time.monotonic() - begun
        return write(rounder, m, *args, **kwargs)

    compressor._quantize_block, compressor._get_loss, base.shard_writer = quantize_block, get_loss, shard_writer
    try:
        yield heard
    finally:
        compressor._quantize_block, compressor._get_loss, base.shard_writer = tune, measure, write


def digest(tensors: Any) -> str:
    """Return the SHA-256 of the bytes of tensors, one after the other, row-major, as they lie in a file."""
    import torch

    def data(tensor: Any) -> bytes:
        return bytes(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())

    return sha256_chunks(data(tensor) for tensor in tensors)
