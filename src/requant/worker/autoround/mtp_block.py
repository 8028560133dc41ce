"""Tunes the MTP block by AutoRound's own function, as one more block: the last.

The model of transformers never runs it, so what it is given follows from what the last block puts out, which the
journal and the resume state have: the quantized stream, which is what serves, and the full one. A journal names these
as its inputs. Its layer sees one token less than the model's blocks: the last of a sequence has no next one.
"""

from collections.abc import Mapping
from typing import Any

from requant.errors import BuildError
from requant.worker import mtp
from requant.worker.autoround.series import installed


def install(autoround: Any, batches: Any) -> None:
    """Let AutoRound tune the MTP block that its model has behind all others; `batches` are the calibration's."""
    series = installed()
    compressor, tuning = type(autoround), series.tuning(autoround)
    decide, tune, last = compressor.configure_layer_config, tuning.function, mtp.layer_name(autoround.model)

    def configure(self: Any, *args: Any, **kwargs: Any) -> None:
        decide(self, *args, **kwargs)
        # A group of its own would be given what the model, which does not run it, gives it.
        names = [name for name in series.blocks(self) if name != last]
        self.quant_block_list = [[*names, last]]

    def quantize_block(self: Any, block: Any, input_ids: Any, input_others: Any, /, **rest: Any) -> Any:
        if block.global_name != last:
            return tune(self, block, input_ids, input_others, **rest)
        count = input_ids[0].shape[1]
        full, quantized = (given(autoround, each, batches) for each in (input_ids, rest[series.quantized]))
        with series.shortened(autoround, rest) as less:
            others = shortened(input_others, count, last)
            return tune(self, block, full, others, **{**less, series.quantized: quantized})

    compressor.configure_layer_config = configure
    setattr(tuning.owner, tuning.name, quantize_block)


def given(autoround: Any, stream: list[Any], batches: Any) -> list[Any]:
    """Return what the layer is given, [1, tokens - 1, hidden] of each sample, where the last block puts out a stream.

    It is computed where the blocks are tuned, in the stream's dtype, and lies where the stream does.
    """
    import torch

    model, device = autoround.model, autoround.device
    parts = mtp.beside_layer(model)
    norm = model.get_decoder().norm.to(device)
    for each in parts:
        each.to(device, stream[0].dtype)
    rows = (row for batch in batches for row in batch["input_ids"].split(1))
    with torch.no_grad():
        found = [
            mtp.given(model, each.to(device), row).to(each.device) for each, row in zip(stream, rows, strict=False)
        ]
    for each in (norm, *parts):
        each.to("cpu")
    if len(found) < len(stream):
        name = mtp.layer_name(model)
        raise BuildError(f"{name}: {len(found)} sequences of tokens for {len(stream)} samples", "Report this.")
    return found


def seen(autoround: Any, block: Any, stream: list[Any]) -> list[Any]:
    """Return those tokens of a stream that a block sees: the MTP block not the last one."""
    return [each[:, :-1] for each in stream] if block.global_name == mtp.layer_name(autoround.model) else stream


def shortened(value: Any, tokens: int, name: str) -> Any:
    """Return what the block depends on beside its streams, such as positions, without each sequence's last token.

    Raises BuildError for a tensor that is not [samples, tokens, …]: what of it belongs to a token is not known.
    """
    import torch

    if isinstance(value, torch.Tensor):
        if value.ndim < 2 or value.shape[1] != tokens:
            raise BuildError(
                f"{name}: AutoRound gives its blocks a tensor of {[*value.shape]}, expected samples, then "
                f"{tokens:,} tokens",
                'Copy the block, or round it: mtp.policy = "bf16", or "rtn".',
            )
        return value[:, :-1]
    if isinstance(value, Mapping):
        return {key: shortened(each, tokens, name) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(shortened(each, tokens, name) for each in value)
    return value
