"""What AutoRound does at 0 iterations, in its loop over blocks: a block is rounded, by its own functions, not tuned.

Told 0 iterations AutoRound takes other ways through the model, on which nobody sees a block whole, or what it is given.
It is therefore told one, and what would tune a block rounds it. tests/worker/alone.py holds the codes against those
of its own ways.
"""

from typing import Any

from requant.worker.autoround import head, hooks
from requant.worker.autoround.series import installed


def install(autoround: Any, *, search: bool) -> None:
    """Let AutoRound round each block; with `search` to scales that it seeks by what the block's layers are given.

    A block is given the base's stream alone. Without `search` it gives that on as it is: nothing is computed of it.
    """
    from auto_round.utils import mv_module_from_gpu

    series = installed()
    tuning = series.tuning(autoround)

    def quantize_block(_: Any, block: Any, input_ids: Any, input_others: Any, /, *__: Any, **___: Any) -> Any:
        layers = _layers(autoround, block)
        if runs(block, search=search):
            return None, series.searched(autoround, block, layers, input_ids, input_others)
        hooks.bare(block, autoround.amp_dtype, autoround.device)
        block.to(autoround.device)
        for name in layers:
            series.rounded(autoround, name, search=search)
        mv_module_from_gpu(block)
        return None, input_ids

    setattr(tuning.owner, tuning.name, quantize_block)


def runs(block: Any, *, search: bool) -> bool:
    """Say whether a block is run on its inputs; of a layer alone, such as `lm_head`, AutoRound calibrates nothing."""
    return search and not head.alone(block)


def _layers(autoround: Any, block: Any) -> list[str]:
    """Return the names of the layers of a block that are to be packed, in its order."""
    from auto_round.utils import check_to_quantized

    kinds = autoround.supported_types
    return [each.global_name for each in block.modules() if type(each) in kinds and check_to_quantized(each)]
