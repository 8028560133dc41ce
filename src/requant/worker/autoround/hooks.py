"""Listens to AutoRound's tuning and keeps what it finds: three of its functions are wrapped, none is changed.

What tunes a block sees everything that the block depends on and returns what the next one does; what measures the loss
is called once per step; what writes gets the block when its tensors have their final form. `series` says where they
are.
"""

import math
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import wraps
from itertools import pairwise
from statistics import median
from typing import Any, Protocol

from requant.digest import sha256
from requant.errors import BuildError
from requant.evidence.journal import Block, Loss
from requant.protocol import Tuning
from requant.recipe import Scheme
from requant.worker import mtp
from requant.worker.autoround import head, hints, mtp_block, steps
from requant.worker.autoround.series import installed
from requant.worker.determinism import random_state
from requant.worker.resume import FRESH, BlockInputs, Hashed, ResumeState, digest, digest_of_nest

PACKED = ("qweight", "qzeros", "scales", "g_idx")
"""What a tuned layer becomes, in AutoRound's order; the last one in `auto_gptq` alone."""


class Keeper(Protocol):
    """Who is told of a tuned block."""

    def keep(self, block: Block, packed: dict[str, Any], after: BlockInputs, hints: bytes | None) -> None:
        """Take a block's record, what it was packed to, what the next one is given, and its hints."""


@dataclass
class Listener:
    """What was heard of the block that is being tuned."""

    keeper: Keeper
    steps_per_iteration: int = 1
    losses: list[float] = field(default_factory=list)
    counted: list[int | None] = field(default_factory=list)
    """Of how many tokens each loss is; None where it is of all."""
    pending: dict[str, Any] = field(default_factory=dict)
    after: BlockInputs | None = None
    """What the next block is given."""
    hints: bytes | None = None
    again: list[Any] | None = None
    drift: float = 0.0
    """As of `BlockInputs`: of what the block that comes next is given."""
    divisor: int = 1
    """Of the losses of an iteration's steps, for AutoRound's own unit."""
    hashed: Hashed = field(default_factory=Hashed)
    tuning: list[float] = field(default_factory=list)
    """Seconds that AutoRound took for each block."""
    steps: list[float] = field(default_factory=list)
    """When each loss of the block was known, in seconds: asking for its value waits for the device."""
    iterations: list[float] = field(default_factory=list)
    """Seconds from one iteration to the next, the median of each block that had two."""
    listening: float = 0.0
    """Seconds that hashing and writing took, for all blocks."""

    def forget(self) -> None:
        """Listen to the next block."""
        self.pending, self.after, self.hints = {}, None, None

    def totals(self) -> list[float]:
        """Return the losses of the block's iterations as AutoRound adds up their steps.

        Each is divided by `divisor`, or where tokens are left out by how many count in the iteration.
        """
        steps, totals = self.steps_per_iteration, []
        for i in range(0, len(self.losses), steps):
            tokens = [each for each in self.counted[i : i + steps] if each is not None]
            by = max(sum(tokens), 1) if tokens else self.divisor
            totals.append(sum((loss / by for loss in self.losses[i : i + steps]), start=0.0))
        return totals

    def loss(self) -> Loss:
        """Return the losses of the block's iterations; the first best one counts."""
        totals = self.totals()
        if not all(map(math.isfinite, totals)):
            raise BuildError(f"{self.pending['block']}: a loss that is not finite", "AutoRound would have gone on.")
        best = min(range(len(totals)), key=totals.__getitem__)
        return Loss(totals[0].hex(), totals[best].hex(), best)


@contextmanager
def listening(
    autoround: Any, keeper: Keeper, *, save: bool = True, written: hints.Written | None = None
) -> Iterator[Listener]:
    """Tell `keeper` of each block as soon as it has its final form; let AutoRound write it only with `save`.

    Where its hints are to be `written`, they go there.
    """
    from requant.worker.autoround import drift  # imports torch

    series = installed()
    numbers = series.numbers(autoround)
    tuning, loss_of_step, writing = series.tuning(autoround), series.loss(autoround), series.writing()
    backward = series.backward(autoround)
    tune, measure, write = tuning.function, loss_of_step.function, writing.function
    heard = Listener(keeper)

    def quantize_block(self: Any, block: Any, input_ids: Any, input_others: Any, /, **rest: Any) -> Any:
        if heard.pending:
            raise BuildError(f"{heard.pending['block']}: AutoRound never wrote it", "Report this with the log.")
        found = len(input_ids) if isinstance(input_ids, list) else type(input_ids).__name__
        if found != numbers["nsamples"]:  # 0.16 warns of a forward pass that failed, and goes on without its samples
            raise BuildError(
                f"{block.global_name}: AutoRound gives it {found}, expected {numbers['nsamples']} samples",
                "Report this with the log.",
            )
        q_input = rest.get(series.quantized)
        heard.losses.clear()
        heard.counted.clear()
        heard.steps.clear()
        begun = time.monotonic()
        streams = BlockInputs.of(input_ids, q_input, random.getstate(), heard.hashed).digests
        heard.hashed.forget()
        others, alone = series.others(input_others, rest), head.alone(block)
        inputs = {**streams, "others": digest_of_nest(others)}
        heard.pending = {"block": block.global_name, "random_state": random_state(), "inputs": inputs}
        quantized = input_ids if q_input is None else q_input
        count, heard.divisor = numbers["gradient_accumulate_steps"], 1
        if alone:
            count, heard.divisor = series.steps(autoround, quantized, others)
        elif count > 1:
            step = mtp_block.seen(autoround, block, quantized[: numbers["batch_size"] * count])
            heard.divisor = sum(each.numel() for each in step)
        heard.steps_per_iteration = count
        if written and not written.committed:
            written.drift = heard.drift
            if not alone and block.global_name != mtp.layer_name(autoround.model):  # behind these comes no other one
                bare(block, autoround.amp_dtype, autoround.device)
                block.to(autoround.device)
                own = input_ids[: numbers["batch_size"]]
                heard.again, heard.drift = drift.behind(
                    lambda stream: series.run(autoround, block, stream, input_others), own, heard.again or own
                )
        tuned = time.monotonic()
        with ExitStack() as stack:
            if alone:
                stack.enter_context(backward.replaced(hearing(backward.function)))
            if written:
                stack.enter_context(hints.deciding(autoround, written))
            if written and written.committed:
                stack.enter_context(steps.committing(autoround, written))
            q_output, output = tune(self, block, input_ids, input_others, **rest)
        done = time.monotonic()
        loss = heard.pending["loss"] = heard.loss() if heard.losses else None
        if written and loss:
            heard.hints = written.end(loss.best_iteration, heard.totals())
            heard.pending["hints"] = sha256(heard.hints)
        after = BlockInputs.of(output, q_output, random.getstate(), heard.hashed)
        heard.after = replace(after, again=heard.again, drift=heard.drift)
        heard.pending["outputs"] = heard.after.digests
        heard.tuning.append(done - tuned)
        begins = heard.steps[:: heard.steps_per_iteration]
        if len(begins) > 1:
            heard.iterations.append(median(after - before for before, after in pairwise(begins)))
        heard.listening += tuned - begun + time.monotonic() - done
        return q_output, output

    @wraps(measure)
    def get_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = measure(self, *args, **kwargs)
        heard.losses.append(loss.item())
        heard.counted.append(series.counted(*args, **kwargs))
        heard.steps.append(time.monotonic())
        return loss

    def hearing(go_back: Any) -> Any:
        def scale_and_backward(self: Any, scaler: Any, loss: Any) -> Any:
            heard.losses.append(loss.item())  # of a layer alone, which has no function of its own for it
            heard.counted.append(None)
            heard.steps.append(time.monotonic())
            return go_back(self, scaler, loss)

        return scale_and_backward

    def shard_writer(rounder: Any, m: Any = None, *args: Any, **kwargs: Any) -> Any:
        if m is not None and heard.after and m.global_name == heard.pending["block"]:
            begun = time.monotonic()
            block = m.global_name
            m = rounder.model.get_submodule(block)  # of a layer alone, what it was packed to
            m.global_name = block
            tensors = {f"{block}.{name}": value for name, value in m.state_dict().items()}
            line = Block(tensors={name: digest([value]) for name, value in tensors.items()}, **heard.pending)
            packed = {name: value for name, value in tensors.items() if name.endswith(PACKED)}
            keeper.keep(line, packed, heard.after, heard.hints)
            heard.forget()
            heard.listening += time.monotonic() - begun
        return write(rounder, m, *args, **kwargs) if save else None

    with tuning.replaced(quantize_block), loss_of_step.replaced(get_loss), writing.replaced(shard_writer):
        yield heard


def stored(config: Mapping[str, Any]) -> tuple[int, int, bool]:
    """Return bits, group size and symmetry of an entry of AutoRound's `layer_config`."""
    return int(config["bits"]), int(config["group_size"]), bool(config["sym"])


@contextmanager
def planned(autoround: Any, given: Tuning, scheme: Scheme) -> Iterator[None]:
    """Stop AutoRound before its first block where it would tune other blocks, or pack other layers, than planned."""
    alike: tuple[int, int, bool] = (scheme.bits, scheme.group_size, scheme.symmetric)
    own = {name: (each.bits, each.group_size, each.symmetric) for name, each in given.own.items()}
    expected = dict.fromkeys(given.packed, alike) | own
    compressor = type(autoround)
    loop = compressor._quantize_blocks

    def quantize_blocks(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        tuned = installed().blocks(self)
        layers = {name: stored(each) for name, each in self.layer_config.items() if int(each.get("bits") or 16) <= 8}
        wrong = sorted(name for name in layers.keys() | expected if layers.get(name) != expected.get(name))
        wrong = wrong or ["the order of blocks"] * (tuned != list(given.blocks))
        if wrong:
            how = "otherwise packed" if wrong[0] in expected else "packed"
            what = f"{wrong[0]}: is {how if wrong[0] in layers else 'not packed'}, against the plan"
            raise BuildError(
                f"{what}; {len(wrong):,} in all", "Ask again and look at the difference: requant plan RECIPE --ask."
            )
        return loop(self, model, *args, **kwargs)

    compressor._quantize_blocks = quantize_blocks
    try:
        yield
    finally:
        compressor._quantize_blocks = loop


@contextmanager
def resuming(autoround: Any, resume_state: ResumeState, heard: Listener) -> Iterator[None]:
    """Let AutoRound find each block that the resume state has, tuned and packed, to be written as it is."""
    import torch

    series = installed()
    tuning = series.tuning(autoround)
    tune = tuning.function
    done = resume_state.done
    passed: list[str] = []

    def quantize_block(self: Any, block: Any, input_ids: Any, input_others: Any, /, **rest: Any) -> Any:
        number = len(passed)
        if number >= len(done):
            return tune(self, block, input_ids, input_others, **rest)
        if block.global_name != done[number].block:
            raise BuildError(f"{done[number].block}: is kept, AutoRound tunes {block.global_name}", FRESH)
        if digest_of_nest(series.others(input_others, rest)) != done[number].inputs.get("others"):
            raise BuildError(f"{block.global_name}: was given other position embeddings or masks than now", FRESH)
        bare(block, autoround.amp_dtype, autoround.device)
        for name, tensors in _layers(resume_state.packed(number)).items():
            parent, _, child = name.rpartition(".")
            holder, layer = autoround.model.get_submodule(parent), torch.nn.Module()
            for part in filter(tensors.__contains__, PACKED):
                layer.register_buffer(part, tensors[part])
            if (bias := getattr(holder, child).bias) is not None:
                layer.register_buffer("bias", bias.detach().half())  # as AutoRound packs it
            setattr(holder, child, layer)
            if name == block.global_name:  # a layer beside the blocks: AutoRound writes this module
                block._parameters, block._buffers = {}, dict(layer._buffers)
        block = autoround.model.get_submodule(place := done[number].block)
        found = {f"{place}.{name}": digest([value]) for name, value in block.state_dict().items()}
        if found != done[number].tensors:
            raise BuildError(f"{place}: its kept tensors are not the journal's", FRESH)
        passed.append(done[number].block)
        if number + 1 < len(done):
            return None, None
        after = resume_state.block_inputs()
        random.setstate(after.random_state)
        heard.again, heard.drift = after.again, after.drift
        return after.quantized, after.full

    with tuning.replaced(quantize_block):
        yield


def bare(block: Any, dtype: Any, device: Any) -> None:
    """Bring a block into the form in which AutoRound tunes it: experts apart, in the tuning's precision."""
    from auto_round.modeling.fused_moe.replace_modules import materialize_model_
    from auto_round.utils import convert_module_to_hp_if_necessary

    materialize_model_(block)
    convert_module_to_hp_if_necessary(block, dtype, device)


def _layers(packed: dict[str, Any]) -> dict[str, dict[str, Any]]:
    layers: dict[str, dict[str, Any]] = {}
    for name, tensor in packed.items():
        layer, _, part = name.rpartition(".")
        layers.setdefault(layer, {})[part] = tensor
    return layers
