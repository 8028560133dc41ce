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
    """Return what a layer is given, of a stream's shapes and on the CPU, where the blocks put out the stream."""
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
            with suppress(_GivenError):
                model(**batch, use_cache=False)
        return found[0] if found else None

    def given_by(batch: Any, output: Any) -> Any:
        fault = "does not run it"
        for form in (output, (output,)):  # blocks return a tensor, or a tuple that begins with it, by their architecture
            try:
                found = run(batch, form)
            except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
                fault = f"fails: {error}"
                continue
            if found is not None:
                if found.shape == output.shape:
                    return found
                fault = f"gives it {[*found.shape]}, expected {[*output.shape]}"
        raise BuildError(f"{layer.global_name}: from what its blocks put out, the model {fault}", "Leave it float.")

    with torch.no_grad():
        for batch in batches:
            if len(given) == len(stream):
                break
            output = torch.cat(stream[len(given) : len(given) + len(batch["input_ids"])]).cpu()
            given += given_by(batch, output).split(1)
    return given
