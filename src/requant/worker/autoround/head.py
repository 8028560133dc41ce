"""Tunes a layer behind the blocks, such as `lm_head`, by AutoRound's own function, as one more block: the last.

Left to itself AutoRound runs the whole model for it, unquantized and with all blocks quantized, and writes nothing
before that. What the layer is given follows as well from what the last block puts out, which the journal and the
resume state have: the model is run with that in the place of its blocks. tests/worker/alone.py holds what comes of it
against AutoRound left to itself, bit for bit.
"""

from contextlib import ExitStack
from typing import Any

from requant.errors import BuildError
from requant.worker.autoround.series import installed, instead


class _GivenError(Exception):
    """The layer was given its inputs: the model need not go on."""


def alone(block: Any) -> bool:
    """Say whether a block is a layer by itself: AutoRound tunes it otherwise than those that have layers in them."""
    return not any(True for _ in block.children())


def install(autoround: Any, batches: Any) -> None:
    """Let AutoRound tune a layer alone by what the model gives it, which it is to put out as it was given it."""
    series = installed()
    tuning = series.tuning(autoround)
    tune = tuning.function

    def quantize_block(self: Any, block: Any, input_ids: Any, input_others: Any, /, **rest: Any) -> Any:
        if not alone(block):
            return tune(self, block, input_ids, input_others, **rest)
        quantized = rest[series.quantized]
        full, tuned = (_given(autoround, block, each, batches) for each in (input_ids, quantized))
        series.layer(autoround, block, full, tuned, series.others(input_others, rest))
        return [*quantized], [*input_ids]  # lists of their own: AutoRound empties those that it gave

    setattr(tuning.owner, tuning.name, quantize_block)


def _given(autoround: Any, layer: Any, stream: list[Any], batches: Any) -> list[Any]:
    """Return what a layer is given, of a stream's shapes and on the CPU, where the blocks put out the stream.

    Blocks return a tensor, or a tuple that begins with it, by their architecture. Taken for the other kind, a model
    would go on with the first sample alone.
    """
    import torch

    model, given = autoround.model, list[Any]()
    blocks = [model.get_submodule(name) for name in installed().blocks(autoround) if name != layer.global_name]

    def run(batch: Any, output: Any) -> Any:
        found = []

        def take(_: Any, inputs: Any) -> None:
            found.append(inputs[0])
            raise _GivenError

        with ExitStack() as stack:
            stack.callback(layer.register_forward_pre_hook(take).remove)
            for block in blocks:
                stack.enter_context(instead(block, forward=lambda *_, **__: output))
            try:
                model(**batch, use_cache=False)
            except _GivenError:
                return found[0]
        raise BuildError(f"{layer.global_name}: the model does not run it", "Report this with the log.")

    with torch.no_grad():
        for batch in batches:
            if len(given) == len(stream):
                break
            size = len(batch["input_ids"])
            output = torch.cat(stream[len(given) : len(given) + size]).cpu()
            found = run(batch, output)
            if found.shape != output.shape:
                found = run(batch, (output,))
            if found.shape != output.shape:
                shapes = f"{[*found.shape]}, expected {[*output.shape]}"
                raise BuildError(f"{layer.global_name}: the model gives it {shapes}", "Leave it float.")
            given += found.split(1)
    return given
