"""Tunes a layer behind the blocks, such as `lm_head`, by AutoRound's own function, as one more block: the last.

Left to itself AutoRound runs the whole model for it, unquantized and with all blocks quantized, and writes nothing
before that. What the layer is given follows as well from what the last block puts out, which the journal and the
resume state have: the model is run with that in the place of its blocks. tests/worker/alone.py holds what comes of it
against AutoRound left to itself, bit for bit.
"""

from contextlib import ExitStack, suppress
from typing import Any

from requant.errors import BuildError
from requant.worker.autoround.series import installed, instead


class _GivenError(Exception):
    """The layer was given its inputs: the model need not go on."""


def alone(block: Any) -> bool:
    """Say whether a block is a layer by itself: AutoRound tunes it otherwise than those that have layers in them."""
    return not any(True for _ in block.children())


def install(autoround: Any, batches: Any) -> None:
    """Let AutoRound tune a layer alone by what the model gives it in `batches`, the calibration's; streams stay."""
    series = installed()
    tuning = series.tuning(autoround)
    tune = tuning.function

    def quantize_block(self: Any, block: Any, input_ids: Any, input_others: Any, /, **rest: Any) -> Any:
        if not alone(block):
            return tune(self, block, input_ids, input_others, **rest)
        quantized = rest[series.quantized]
        full, tuned = (given(autoround, block, each, batches) for each in (input_ids, quantized))
        series.layer(autoround, block, full, tuned, series.others(input_others, rest))
        return [*quantized], [*input_ids]  # lists of their own: AutoRound empties those that it gave

    setattr(tuning.owner, tuning.name, quantize_block)


def given(autoround: Any, layer: Any, stream: list[Any], batches: Any) -> list[Any]:
    """Return what a layer is given, of a stream's shapes and on the CPU, where the last block puts out the stream.

    Raises BuildError where the layer is not run behind the blocks, or is given something of another shape.
    """
    import torch

    blocks = [
        autoround.model.get_submodule(each) for each in installed().blocks(autoround) if each != layer.global_name
    ]
    found = list[Any]()
    with torch.no_grad():
        for batch in batches:
            if len(found) == len(stream):
                break
            output = torch.cat(stream[len(found) : len(found) + len(batch["input_ids"])]).cpu()
            found += _of_batch(autoround.model, blocks, layer, batch, output).split(1)
    return found


def _of_batch(model: Any, blocks: list[Any], layer: Any, batch: Any, output: Any) -> Any:
    faults = []
    for form in (output, (output,)):  # by its architecture a block returns a tensor, or a tuple that begins with it
        try:
            found = _run(model, blocks, layer, batch, form)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            faults.append(str(error))
            continue
        if found is not None and found.shape == output.shape:
            return found
        faults.append("is not run" if found is None else f"is given {[*found.shape]}, expected {[*output.shape]}")
    raise BuildError(
        f"{layer.global_name}: cannot be given what the blocks put out: {' | '.join(faults)}",
        "Leave it float, or round it: tuning.iterations = 0.",
    )


def _run(model: Any, blocks: list[Any], layer: Any, batch: Any, output: Any) -> Any:
    """Run the model with `output` in the place of what its blocks return; give what the layer is given, or None."""
    found = []

    def take(_: Any, inputs: Any) -> None:
        found.append(inputs[0])
        raise _GivenError

    with ExitStack() as stack:
        stack.callback(layer.register_forward_pre_hook(take).remove)
        for block in blocks:
            stack.enter_context(instead(block, forward=lambda *_, **__: output))
        with suppress(_GivenError):
            model(**batch, use_cache=False)
    return found[0] if found else None
