"""What AutoRound does at 0 iterations, in its loop over blocks: a block is rounded, by its own functions, not tuned.

Told 0 iterations AutoRound takes other loops, which write layer by layer, so that nobody sees a block whole. It is
therefore told one, and what would tune a block rounds it. tests/worker/rounded.py holds the codes against those of its
own loops.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from requant.worker.autoround import hooks


def install(autoround: Any, *, search: bool) -> None:
    """Let AutoRound round each block; with `search` to scales that it seeks by what the block's layers are given.

    A block is given the base's stream alone. Without `search` it gives that on as it is: nothing is computed of it.
    """
    from auto_round.utils import mv_module_from_gpu

    autoround.disable_opt_rtn = autoround.orig_disable_opt_rtn = not search

    def quantize_block(
        self: Any, block: Any, input_ids: Any, input_others: Any, *_: Any, device: Any = "cpu", **__: Any
    ) -> Any:
        layers = _layers(self, block)
        with _instead(self, is_immediate_packing=False, is_immediate_saving=False, low_cpu_mem_usage=False):
            if runs(block, search=search):
                # It takes experts apart there, after it has begun to listen to what layers are given.
                return None, _searched(self, block.global_name, layers, input_ids, input_others)
            hooks.bare(block, self.amp_dtype, device)
            block.to(device)
            for name in layers:
                self._quantize_layer_via_rtn(name, to_cpu=self.low_gpu_mem_usage)
            mv_module_from_gpu(block)
            return None, input_ids

    type(autoround)._quantize_block = quantize_block


def runs(block: Any, *, search: bool) -> bool:
    """Say whether a block is run on its inputs; of a layer alone, such as `lm_head`, AutoRound calibrates nothing."""
    return search and any(True for _ in block.children())


def _layers(autoround: Any, block: Any) -> list[str]:
    """Return the names of the layers of a block that are to be packed, in its order."""
    from auto_round.utils import check_to_quantized

    kinds = autoround.supported_types
    return [each.global_name for each in block.modules() if type(each) in kinds and check_to_quantized(each)]


def _searched(autoround: Any, block: str, layers: list[str], full: list[Any], others: dict[str, Any]) -> list[Any]:
    """Round the layers of one block by AutoRound's loop for all of them; return what the block, unrounded, puts out."""
    from auto_round.compressors import base

    put_out: list[Any] = []
    forward = autoround._get_block_outputs

    def cached(*_: Any, **__: Any) -> dict[str, Any]:
        return {block: {**others, "hidden_states": full}}

    def outputs(*args: Any, **kwargs: Any) -> list[Any]:
        found: list[Any] = forward(*args, **kwargs)
        put_out.extend(found)  # AutoRound empties the list itself behind the last block
        return found

    alone = {"quant_block_list": [[block]], "cache_inter_data": cached, "_get_block_outputs": outputs}
    # It would move all of the model, whose finished blocks are nowhere.
    with _instead(base, safe_to_cpu_=lambda _: None), _instead(autoround, **alone):
        autoround._quant_rtn_with_imatrix(layers)
    return put_out


@contextmanager
def _instead(autoround: Any, **attributes: Any) -> Iterator[None]:
    """Give an object attributes of its own for a while."""
    before = {name: vars(autoround)[name] for name in attributes if name in vars(autoround)}
    vars(autoround).update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            del vars(autoround)[name]
        vars(autoround).update(before)
