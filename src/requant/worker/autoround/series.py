"""Where each series of AutoRound keeps what the worker listens to and steps into: all in which they differ.

In 0.12 one class does everything; the commit 2dda035, which calls itself 0.13.0, is alike. In 0.16 that class keeps
the loop over blocks. A composer takes a block through its steps, a quantizer tunes it, a calibrator makes what the
first block is given, and a writer writes. What both call alike, such as `_quantize_blocks` and `quantize_and_save`, is
used where it is needed.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Protocol

from requant.errors import BuildError


@dataclass(frozen=True)
class Place:
    """A function of AutoRound: of a class, or of a module."""

    owner: Any
    name: str

    @property
    def function(self) -> Any:
        """The function that stands there now."""
        return getattr(self.owner, self.name)

    @contextmanager
    def replaced(self, by: Callable[..., Any]) -> Iterator[None]:
        """Let another function stand in its place."""
        found = self.function
        setattr(self.owner, self.name, by)
        try:
            yield
        finally:
            setattr(self.owner, self.name, found)


class Series(Protocol):
    """What the worker asks of a series; `autoround` is what `auto_round.AutoRound` returned."""

    @property
    def quantized(self) -> str:
        """The word with which the function that tunes a block is given the quantized stream."""

    def tuning(self, autoround: Any) -> Place:
        """Return what tunes a block: given it, the full stream and `others`, it returns quantized and full outputs."""

    def loss(self, autoround: Any) -> Place:
        """Return what measures the loss of one step; `counted` reads what it is given."""

    def backward(self, autoround: Any) -> Place:
        """Return what is given the loss of each step, of a block or of a layer alone, as its third argument."""

    def forward(self, autoround: Any) -> Place:
        """Return what a step lets the block put out: it is given the block, its inputs, `others`, and which samples.

        What else calls it gives no samples: for a whole stream, where that has no function of its own.
        """

    def whole(self, autoround: Any) -> Place | None:
        """Return what lets a block put out a whole stream, where that is another function than `forward`."""

    def together(self) -> tuple[Place, Place] | None:
        """Return what quantizes one projection of some experts, and what runs it for them all, where that is one call.

        The first is given their layers; the second what they are given, row by row, what the first returned, which has
        their `weights`, and how many rows each of them has.
        """

    def step(self) -> Place:
        """Return what moves the parameters by the signs of their gradients."""

    def collecting(self) -> Place:
        """Return what copies a block's parameters when an iteration was the best so far."""

    def writing(self) -> Place:
        """Return what is given each block, as its second argument, when its tensors have their final form."""

    def caching(self, autoround: Any) -> tuple[Place, Place]:
        """Return what makes the first block's inputs, and what that calls only where memory has ended, for the CPU."""

    def blocks(self, autoround: Any) -> list[str]:
        """Return the names of the blocks in the order of tuning; known when AutoRound has decided about layers."""

    def others(self, others: Mapping[str, Any], rest: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return all that a block depends on beside its streams, from what its function, or the loop, is given."""

    def counted(self, *given: Any, **rest: Any) -> int | None:
        """Return how many tokens of a step count, from what `loss` is given; None where all do."""

    def shortened(self, autoround: Any, rest: Mapping[str, Any]) -> AbstractContextManager[Mapping[str, Any]]:
        """Give what a function is given beside streams and `others`, for a block of one token less, while it tunes."""

    def run(self, autoround: Any, block: Any, stream: Any, others: Any) -> Any:
        """Return a block's outputs for a whole stream, as AutoRound computes them."""

    def beside(self, autoround: Any) -> list[str]:
        """Return the packed layers beside the blocks; `quant_block_list` is there then. Known as `blocks` is."""

    def rounded(self, autoround: Any, name: str, *, search: bool) -> None:
        """Round one layer to nearest, or with `search` to the best of some scales, as AutoRound does uncalibrated."""

    def searched(self, autoround: Any, block: Any, layers: list[str], full: Any, others: Any) -> Any:
        """Round a block's layers to scales sought by what they are given; return what it, unrounded, puts out."""

    def heard(self, autoround: Any, block: Any, full: Any, others: Any) -> Any:
        """Return what a block puts out where `searched` listens to its layers, to the same bits."""

    def layer(
        self, autoround: Any, layer: Any, full: list[Any], quantized: list[Any], others: Mapping[str, Any]
    ) -> None:
        """Tune a layer alone by what both streams give it: tensors [1, tokens, inputs]."""

    def steps(self, autoround: Any, quantized: list[Any], others: Mapping[str, Any]) -> tuple[int, int]:
        """Return the steps of an iteration on a layer alone, and what the sum of their losses is divided by."""

    def numbers(self, autoround: Any) -> Mapping[str, Any]:
        """Return what AutoRound tunes with, by the names of its arguments."""

    def prepare(self, autoround: Any) -> None:
        """Undo what AutoRound decides by itself and gives no argument for."""

    def is_text(self, autoround: Any) -> bool:
        """Whether AutoRound takes its class for text models."""


NUMBERS = ("iters", "gradient_accumulate_steps", "seed")
SIZES = ("nsamples", "seqlen", "batch_size")


class _OneClass:
    """0.12: `auto_round.compressors.base`."""

    quantized = "q_input"

    def tuning(self, autoround: Any) -> Place:
        return Place(type(autoround), "_quantize_block")

    def loss(self, autoround: Any) -> Place:
        return Place(type(autoround), "_get_loss")

    def backward(self, autoround: Any) -> Place:
        return Place(type(autoround), "_scale_loss_and_backward")

    def forward(self, autoround: Any) -> Place:
        return Place(type(autoround), "_get_current_q_output")

    def whole(self, autoround: Any) -> Place | None:
        return Place(type(autoround), "_get_block_outputs")

    def together(self) -> tuple[Place, Place] | None:
        return None

    def step(self) -> Place:
        from auto_round.sign_sgd import SignSGD

        return Place(SignSGD, "step")

    def collecting(self) -> Place:
        from auto_round.compressors import base

        return Place(base, "collect_best_params")

    def writing(self) -> Place:
        from auto_round.compressors import base

        return Place(base, "shard_writer")

    def caching(self, autoround: Any) -> tuple[Place, Place]:
        from auto_round.compressors import base

        return Place(type(autoround), "try_cache_inter_data_gpucpu"), Place(base, "mv_module_from_gpu")

    def blocks(self, autoround: Any) -> list[str]:
        return [name for names in autoround.quant_block_list for name in names]

    def others(self, others: Mapping[str, Any], _: Mapping[str, Any]) -> Mapping[str, Any]:
        return others

    def counted(self, *_: Any, **__: Any) -> int | None:
        return None

    def shortened(self, _: Any, rest: Mapping[str, Any]) -> AbstractContextManager[Mapping[str, Any]]:
        return nullcontext(rest)

    def run(self, autoround: Any, block: Any, stream: Any, others: Any) -> Any:
        size = autoround.batch_size * autoround.infer_bs_coeff
        return autoround._get_block_outputs(block, stream, others, size, autoround.device, autoround.cache_device)

    def beside(self, autoround: Any) -> list[str]:
        return list(autoround._get_quantized_layer_names_outside_blocks())

    def rounded(self, autoround: Any, name: str, *, search: bool) -> None:
        with self._whole(autoround, search=search):
            autoround._quantize_layer_via_rtn(name, to_cpu=autoround.low_gpu_mem_usage)

    def searched(self, autoround: Any, block: Any, layers: list[str], full: Any, others: Any) -> Any:
        # By its loop for all blocks, which takes experts apart after it has begun to listen to what layers are given.
        from auto_round.compressors import base

        put_out: list[Any] = []
        forward = autoround._get_block_outputs

        def cached(*_: Any, **__: Any) -> dict[str, Any]:
            return {block.global_name: {**others, "hidden_states": full}}

        def outputs(*args: Any, **kwargs: Any) -> list[Any]:
            found: list[Any] = forward(*args, **kwargs)
            put_out.extend(found)  # AutoRound empties the list itself behind the last block
            return found

        alone = {
            "quant_block_list": [[block.global_name]],
            "cache_inter_data": cached,
            "_get_block_outputs": outputs,
        }
        # It would move all of the model, whose finished blocks are nowhere.
        still = Place(base, "safe_to_cpu_").replaced(lambda _: None)
        with self._whole(autoround, search=True), still, instead(autoround, **alone):
            autoround._quant_rtn_with_imatrix(layers)
        return put_out

    def heard(self, autoround: Any, block: Any, full: Any, others: Any) -> Any:
        return self.run(autoround, block, full, others)

    def _whole(self, autoround: Any, *, search: bool) -> AbstractContextManager[None]:
        """Let it round and not write: a block is written whole."""
        keeps = {"is_immediate_packing": False, "is_immediate_saving": False, "low_cpu_mem_usage": False}
        return instead(autoround, disable_opt_rtn=not search, orig_disable_opt_rtn=not search, **keeps)

    def layer(self, autoround: Any, layer: Any, full: list[Any], quantized: list[Any], _: Mapping[str, Any]) -> None:
        autoround._quantize_layer(layer.global_name, full, quantized, device=autoround.device)

    def steps(self, autoround: Any, quantized: list[Any], _: Mapping[str, Any]) -> tuple[int, int]:
        steps = autoround.batch_size  # of one sample each, out of batch_size times as many
        return steps, 1 if steps == 1 else sum(each.numel() for each in quantized[: steps * steps])

    def numbers(self, autoround: Any) -> Mapping[str, Any]:
        return {name: getattr(autoround, name) for name in (*NUMBERS, *SIZES)}

    def prepare(self, autoround: Any) -> None:
        pass

    def is_text(self, autoround: Any) -> bool:
        from auto_round.compressors.base import LLMCompressor

        return isinstance(autoround, LLMCompressor)


class _Composed:
    """0.16: `auto_round.compressors.orchestrator` and `auto_round.algorithms.composer`.

    For text models it leaves each sequence's last token out of the loss, and tokens for padding, which its calibrator
    marks in `input_ids`; so a block depends on these too. The loss of an iteration is divided by how many are left.
    """

    quantized = "q_inputs"

    def tuning(self, _: Any) -> Place:
        from auto_round.algorithms.composer import AlgorithmComposer

        return Place(AlgorithmComposer, "compress_block")

    def loss(self, _: Any) -> Place:
        from auto_round.algorithms.quantization.sign_round.quantizer import SignRoundQuantizer

        return Place(SignRoundQuantizer, "_get_loss")

    def backward(self, _: Any) -> Place:
        from auto_round.algorithms.quantization.sign_round.quantizer import SignRoundQuantizer

        return Place(SignRoundQuantizer, "_scale_loss_and_backward")

    def forward(self, _: Any) -> Place:
        from auto_round.algorithms.block_runner import BlockForwardRunner

        return Place(BlockForwardRunner, "forward")

    def whole(self, _: Any) -> Place | None:
        return None

    def together(self) -> tuple[Place, Place] | None:
        from auto_round.modeling.fused_moe import grouped_experts

        return Place(grouped_experts, "_slot_weights"), Place(grouped_experts, "_grouped_linear")

    def step(self) -> Place:
        from auto_round.algorithms.quantization.sign_round.sign_sgd import SignSGD

        return Place(SignSGD, "step")

    def collecting(self) -> Place:
        from auto_round.algorithms.quantization.sign_round import quantizer

        return Place(quantizer, "collect_best_params")

    def writing(self) -> Place:
        from auto_round.compressors.shard_writer import ShardWriter

        return Place(ShardWriter, "write")

    def caching(self, _: Any) -> tuple[Place, Place]:
        from auto_round.calibration import llm

        return Place(llm.LLMCalibrator, "calibration"), Place(llm, "mv_module_from_gpu")

    def blocks(self, autoround: Any) -> list[str]:
        from auto_round.utils import get_block_names

        # As `_quantize_data_driven`: the list is lost where the plan is made, unless a format has set it.
        groups = autoround.quant_block_list or get_block_names(autoround.model)
        return [name for names in groups for name in names]

    def others(self, others: Mapping[str, Any], rest: Mapping[str, Any]) -> Mapping[str, Any]:
        tokens = rest.get("token_ids", rest.get("input_ids"))  # as the loop calls them, and the composer
        return others if tokens is None else {**others, "token_ids": tokens}

    def counted(self, *given: Any, **rest: Any) -> int | None:
        _, _, indices, *others = given
        masks = rest["valid_token_mask"] if "valid_token_mask" in rest else others[2]
        return sum(int(masks[index].count_nonzero()) for index in indices) if masks else None

    @contextmanager
    def shortened(self, autoround: Any, rest: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        if not (tokens := rest.get("input_ids")):
            yield rest
            return
        less, quantizer = [each[:, :-1] for each in tokens], autoround.alg_composer.block_quantizer
        # What counts in the loss it makes of the first block's tokens, for all blocks.
        with instead(quantizer, _cached_valid_token_mask=quantizer._compute_valid_token_mask(less)):
            yield {**rest, "input_ids": less}

    def run(self, autoround: Any, block: Any, stream: Any, others: Any) -> Any:
        return autoround.alg_composer.block_forward(block, stream, others)

    def beside(self, autoround: Any) -> list[str]:
        from auto_round.compressors.utils import _get_quantized_layer_names_outside_blocks as outside
        from auto_round.utils import get_block_names

        autoround.quant_block_list = autoround.quant_block_list or get_block_names(autoround.model)
        kinds, groups = tuple(autoround.supported_types), autoround.quant_block_list
        return list(outside(autoround.model, autoround.layer_config, kinds, groups))

    def rounded(self, autoround: Any, name: str, *, search: bool) -> None:
        layer = autoround.model.get_submodule(name)
        autoround.alg_composer.block_quantizer._quantize_layer_via_rtn(layer, disable_opt_rtn=not search)

    def searched(self, autoround: Any, block: Any, layers: list[str], full: Any, others: Any) -> Any:
        del layers
        quantizer, put_out = self._heard(autoround, block, full, others)
        quantizer.quantize_block(block, full, others, put_out, None, None)
        return put_out

    def heard(self, autoround: Any, block: Any, full: Any, others: Any) -> Any:
        return self._heard(autoround, block, full, others)[1]

    def _heard(self, autoround: Any, block: Any, full: Any, others: Any) -> tuple[Any, Any]:
        from auto_round.algorithms.quantization.rtn.config import OptimizedRTNConfig
        from auto_round.algorithms.quantization.rtn.quantizer import OptimizedRTNQuantizer

        quantizer = OptimizedRTNQuantizer(OptimizedRTNConfig(enable_opt_rtn=True))
        quantizer.bind(autoround)
        # Experts that are listened to run one by one, else together, and then their sums have other last bits.
        hooks = quantizer.register_fp_input_forward_hooks(block)
        put_out = self.run(autoround, block, full, others)
        for each in hooks:
            each.remove()
        return quantizer, put_out

    def layer(
        self, autoround: Any, layer: Any, full: list[Any], quantized: list[Any], others: Mapping[str, Any]
    ) -> None:
        tokens = others.get("token_ids")
        autoround.alg_composer.compress_layer_outside_block(layer, full, quantized, input_ids=tokens)

    def steps(self, autoround: Any, quantized: list[Any], others: Mapping[str, Any]) -> tuple[int, int]:
        numbers = self.numbers(autoround)
        steps = numbers["batch_size"] * numbers["gradient_accumulate_steps"]  # of one sample each
        masks = autoround.alg_composer.block_quantizer._compute_valid_token_mask(others.get("token_ids"))
        if steps == 1:
            return 1, 1
        counted = sum(int(each.count_nonzero() if masks else each.numel()) for each in (masks or quantized)[:steps])
        return min(steps, numbers["nsamples"]), max(1, counted)

    def numbers(self, autoround: Any) -> Mapping[str, Any]:
        sizes = {name: getattr(autoround.calibration_context, name) for name in SIZES}
        return sizes | {name: getattr(autoround, name) for name in NUMBERS}

    def prepare(self, autoround: Any) -> None:
        # It would write into a folder below the one it is given, named by model and scheme.
        autoround._get_export_dir = lambda folder, _: folder
        if not self.is_text(autoround):
            # Every template that it would choose for a model that sees asks for image processors, and then makes no use
            # of them: it is given tokens.
            from auto_round.compressors.mllm import processor, template

            template._register_template("tokens", processor=processor.PROCESSORS["basic"])
            autoround.template = "tokens"

    def is_text(self, autoround: Any) -> bool:
        return bool(autoround._get_calibrator_kind() == "llm")


@contextmanager
def instead(owner: Any, **attributes: Any) -> Iterator[None]:
    """Give an object attributes of its own for a while."""
    before = {name: vars(owner)[name] for name in attributes if name in vars(owner)}
    vars(owner).update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            del vars(owner)[name]
        vars(owner).update(before)


SERIES: Mapping[str, Series] = {"0.12": _OneClass(), "0.13.0+g2dda035b275a": _OneClass(), "0.16": _Composed()}
"""By how a version begins."""


def installed() -> Series:
    """Return the series of the AutoRound that is installed. Raises BuildError for another one than these."""
    version = metadata.version("auto-round")
    for begin, series in SERIES.items():
        if version == begin or version.startswith(f"{begin}."):
            return series
    raise BuildError(
        f"AutoRound {version}: this worker knows {', '.join(SERIES)}",
        "Lock one of these, or add what its series keeps where: docs/adr/0022.",
    )
