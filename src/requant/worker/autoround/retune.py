"""Re-tunes chosen blocks of a published checkpoint: one worker goes through the blocks before them, others tune.

What a block is given follows from the base and the published codes of the blocks before it, by two forward passes
and no tuning (`replay`); a block is then tuned alone, in any order and in any worker (`tune`). Both run AutoRound's
own functions inside its own `quantize_and_save`, up to the point where it would begin with the first block.
"""

import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from requant.errors import BuildError
from requant.evidence.journal import Block
from requant.protocol import (
    ANSWERS,
    BLOCK,
    HINTED,
    HINTS,
    INPUTS,
    JOBS,
    RAW,
    REVEALED,
    STEPS,
    Connect,
    Passed,
    Replay,
    Steps,
    Tune,
    label,
    read,
    say_passed,
    write,
)
from requant.recipe import Effort, Format, Recipe
from requant.worker import determinism
from requant.worker.autoround import hints, hooks, rounding, steps
from requant.worker.autoround.bounds import BeyondError, Bounds, NoHintError
from requant.worker.autoround.series import installed
from requant.worker.resume import BlockInputs, digest_of_nest

GLANCE = 0.02
"""Seconds between two looks at a folder."""

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where each of eight outputs lies in a word, as in `requant.formats.awq`, which is not in the environment."""

Loop = Callable[..., None]


class _DoneError(Exception):
    """All blocks asked for are through: AutoRound need not go on."""


def replay(autoround: Any, recipe: Recipe, effort: Effort, task: Replay, folder: Path) -> None:
    """Go through the blocks up to the last one chosen, with published codes; say of each what it is given."""
    from requant.worker.autoround.drift import apart, once_more  # imports torch

    chosen = sorted(task.blocks)
    published = _Published([Path(path) for path in task.checkpoint])
    block_inputs, revealed = folder / INPUTS, folder / REVEALED
    block_inputs.mkdir()
    revealed.mkdir()
    revealing = steps.Revealing(revealed) if task.reveal else None

    def blocks(self: Any, model: Any, inputs: Any, names: list[str], **rest: Any) -> None:
        series = installed()
        full, others = self._preprocess_block_inputs(inputs)
        seen = digest_of_nest(series.others(others, rest))
        quantized = None
        drifts, again, drift = (
            bool(task.hints) and effort.precision == "float32",
            full[: installed().numbers(autoround)["batch_size"]],
            0.0,
        )
        for number, name in enumerate(names[: chosen[-1] + 1]):
            given = BlockInputs.of(full, quantized, random.getstate())
            inputs = {**given.digests, "others": seen}
            say_passed(folder, Passed(inputs, determinism.random_state()))
            if number in chosen:
                _wait(block_inputs, task.waiting)
                replace(given, drift=drift).write(block_inputs / label(number))
            if number == chosen[-1]:
                break
            block = model.get_submodule(name)
            hooks.bare(block, self.amp_dtype, self.device)
            block.to(self.device)

            bounds = Bounds(effort.sequence_length, effort.precision, drift)
            bounds.look_at(block)

            def forward(stream: Any, block: Any = block) -> Any:
                return series.run(self, block, stream, others)

            def run(
                stream: Any, followed: hints.Followed | None = None, bounds: Bounds = bounds, forward: Any = forward
            ) -> Any:
                decisions = followed or revealing
                with hints.routing(decisions, bounds if followed else None) if decisions else nullcontext():
                    return forward(stream)

            if recipe.rounds:  # no block hears of the codes of another
                if rounding.runs(block, search=bool(recipe.tuning.search_scales)):
                    full = series.heard(self, block, full, others)
                block.to("meta")
                continue
            try:
                followed = None
                if task.hints:
                    followed = hints.Followed(_hints(task.hints, number), hints.losses_of(effort), drift=drift)
                after = run(full, followed=followed)
                if followed:
                    if drifts:
                        again = once_more(followed, forward, again)
                        drift = apart(after[: len(again)], again)
                    followed.skip_to_last_routes()
                published.load(block, name, recipe.scheme.format)
                full, quantized = after, run(full if quantized is None else quantized, followed=followed)
                if revealing:
                    revealing.end(f"{label(number)}.before.safetensors")
            except (BeyondError, NoHintError) as error:
                say_passed(folder, Passed({}, "", lost=f"{name}: {error}"))
                break
            if not all(bool(each.isfinite().all()) for each in quantized):
                raise BuildError(
                    f"{name}: its published codes give numbers that are not finite", "requant check says where."
                )
            block.to("meta")
            _draw(self)

    through(autoround, recipe, blocks, folder)


def _hints(folder: str, number: int) -> bytes:
    return (Path(folder) / label(number)).read_bytes()


def connect(autoround: Any, recipe: Recipe, effort: Effort, task: Connect, folder: Path) -> None:
    """Pass on what chosen blocks are said to be given, where it follows from what the block before each is given."""
    from safetensors.torch import load_file

    published = _Published([Path(path) for path in task.checkpoint])
    block_inputs = folder / INPUTS
    block_inputs.mkdir()

    def blocks(self: Any, model: Any, inputs: Any, names: list[str], **_: Any) -> None:
        first, others = self._preprocess_block_inputs(inputs)

        def confirm(number: int, theirs: BlockInputs, revealed: Path, bounds: Bounds) -> None:
            if not number:
                if theirs.digests != BlockInputs.of(first, None, None).digests:
                    raise NoHintError("what the first block is given is not what the base gives it here")
                return
            name, before = names[number - 1], label(number - 1)
            block = model.get_submodule(name)
            hooks.bare(block, self.amp_dtype, self.device)
            block.to(self.device)
            bounds.look_at(block)
            routes = load_file(revealed / REVEALED / f"{before}.before.safetensors")
            steps.connect(
                lambda stream: installed().run(self, block, stream, others),
                lambda: published.load(block, name, recipe.scheme.format),
                BlockInputs.read(revealed / INPUTS / before),
                theirs,
                hints.Followed(_hints(task.hints, number - 1), hints.losses_of(effort), routes),
                bounds,
            )
            block.to("meta")

        for number in range(max(task.blocks) + 1):
            say_passed(folder, Passed({}, ""))
            if number in task.blocks:
                revealed = Path(task.response, label(number))
                theirs = BlockInputs.read(revealed / INPUTS / label(number))
                bounds = Bounds(effort.sequence_length, effort.precision)
                found = hints.explained(lambda: confirm(number, theirs, revealed, bounds), bounds)  # noqa: B023
                _wait(block_inputs, task.waiting)
                if found.beyond or found.inconclusive:
                    part = block_inputs / f".{label(number)}.part"
                    part.mkdir()
                    write(part / HINTED, found)
                    part.rename(block_inputs / label(number))
                else:
                    replace(theirs, random_state=random.getstate()).write(block_inputs / label(number))
            _draw(self)

    through(autoround, recipe, blocks, folder)


def _wait(block_inputs: Path, waiting: int) -> None:
    """Wait until fewer than so many block inputs wait themselves."""
    while sum(1 for _ in block_inputs.iterdir()) >= waiting:
        time.sleep(GLANCE)


def tune(autoround: Any, recipe: Recipe, effort: Effort, task: Tune, confirm: Callable[[], None], folder: Path) -> None:
    """Tune each block whose inputs appear in `jobs/`, for as long as the host lets it; answer in `answers/`.

    `confirm` raises BuildError where the worker is no longer deterministic; without it there is no answer.
    An answer is the block's record as a journal has it, and what it was packed to; it appears when it is whole.
    A portable task's says what came of the hints, too, and where a block could not be tuned to its end, that alone.
    Where a job has `STEPS`, these are opened: revealed, or of a portable task judged.
    """
    jobs, answers = folder / JOBS, folder / ANSWERS
    jobs.mkdir(exist_ok=True)
    answers.mkdir()

    class Answers:
        number = 0

        def part(self) -> Path:
            confirm()
            part = answers / f".{label(self.number)}"
            part.mkdir(exist_ok=True)
            return part

        def keep(self, block: Block, packed: dict[str, Any], *_: Any) -> None:
            from safetensors.torch import save_file

            save_file(packed, self.part() / "packed.safetensors")
            write(self.part() / BLOCK, block)
            if not task.portable:
                self.give()

        def give(self) -> None:
            self.part().rename(answers / label(self.number))

    keeper = Answers()
    with hooks.listening(autoround, keeper, save=False) as heard:
        loop = type(autoround)._quantize_blocks

        def blocks(self: Any, model: Any, inputs: Any, names: list[str], **rest: Any) -> None:
            rest.pop("q_input", None)
            for job in _arriving(jobs):
                keeper.number = int(job.name)
                given = BlockInputs.read(job)
                random.setstate(given.random_state)
                name = names[keeper.number]

                def run(name: str = name, given: BlockInputs = given) -> None:
                    loop(self, model, {**inputs, "input_ids": given.full}, [name], q_input=given.quantized, **rest)

                opened = read(job / STEPS, Steps) if (job / STEPS).exists() else None
                if task.portable:
                    block, data = model.get_submodule(name), (job / HINTS).read_bytes()
                    if opened:
                        revealed, total = job / REVEALED, lambda: heard.totals()[-1]
                        hinted = steps.judge(self, effort, block, data, revealed, opened, total, run)
                    else:
                        hinted = hints.follow(self, effort, given.drift, block, data, run)
                    write(keeper.part() / HINTED, hinted)
                    heard.forget()
                    keeper.give()
                elif opened:
                    steps.reveal(self, effort, opened.opened, keeper.part(), run)
                    heard.forget()
                    keeper.give()
                else:
                    run()
                model.get_submodule(name).to("meta")

        through(autoround, recipe, blocks, folder)


def through(autoround: Any, recipe: Recipe, blocks: Loop, folder: Path) -> None:
    """Run AutoRound with `blocks` in the place of its loop over blocks, and no further."""
    with _in_place_of_the_loop(autoround, blocks):
        try:
            autoround.quantize_and_save(str(folder / RAW), format=recipe.scheme.format)
        except _DoneError:
            return
    raise BuildError("AutoRound tuned no block", "Report this with the log.")


@contextmanager
def _in_place_of_the_loop(autoround: Any, blocks: Loop) -> Iterator[None]:
    compressor = type(autoround)
    loop = compressor._quantize_blocks

    def once(self: Any, model: Any, *args: Any, **kwargs: Any) -> None:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        blocks(self, model, *args, **kwargs)
        raise _DoneError

    compressor._quantize_blocks = once
    try:
        yield
    finally:
        compressor._quantize_blocks = loop


def _arriving(jobs: Path) -> Iterator[Path]:
    seen: set[str] = set()
    while True:
        for path in sorted(path for path in jobs.iterdir() if path.name.isdigit() and path.name not in seen):
            seen.add(path.name)
            yield path
        time.sleep(GLANCE)


def _draw(autoround: Any) -> None:
    """Draw from Python's generator what the tuning of a block draws, by the class that it draws with."""
    from auto_round.compressors.utils import IndexSampler

    numbers = installed().numbers(autoround)
    samples = numbers["nsamples"]
    sampler = IndexSampler(samples, min(samples, numbers["batch_size"] * numbers["gradient_accumulate_steps"]))
    for _ in range(numbers["iters"]):
        sampler.next_batch()


class _Published:
    """The packed tensors of a checkpoint's files: those that the host names, so that both mean the same checkpoint."""

    def __init__(self, files: list[Path]) -> None:
        from safetensors import safe_open

        self._files = {}
        for path in files:
            with safe_open(path, "pt") as file:
                self._files.update(dict.fromkeys(file.keys(), path))

    def load(self, block: Any, name: str, packing_format: Format) -> None:
        """Give a block's layers the weights that their codes mean: a product in float32, as it was tuned."""
        for child, module in block.named_modules():
            layer = f"{name}.{child}"
            if f"{layer}.qweight" in self._files:
                awq, columns = packing_format.endswith("awq"), module.weight.shape[1]
                size = columns if module.group_size == -1 else module.group_size

                def each(groups: Any, size: int = size, columns: int = columns) -> Any:
                    return groups.T.repeat_interleave(size, dim=1)[:, :columns]

                words, scales = self._tensor(f"{layer}.qweight"), each(self._tensor(f"{layer}.scales").float())
                codes = _codes_awq(words) if awq else _codes(words, module.bits)
                zeros: Any = float(1 << module.bits - 1)
                if not module.sym:  # none of the formats of asymmetric codes stores its zero points less one
                    stored = self._tensor(f"{layer}.qzeros")
                    zeros = each((_codes_awq(stored).T if awq else _codes(stored.T, module.bits)).float())
                module.weight.data.copy_((scales * (codes.float() - zeros)).to(module.weight.dtype))

    def _tensor(self, name: str) -> Any:
        from safetensors import safe_open

        with safe_open(self._files[name], "pt") as file:
            return file.get_tensor(name)


def _codes(words: Any, bits: int) -> Any:
    """Return the codes [out, in] of words [in * bits / 32, out]: one stream of bits per output, the lowest first."""
    import torch

    count = math.lcm(bits, 32) // bits
    grouped = (words.T.to(torch.int64) & 0xFFFFFFFF).reshape(words.shape[1], -1, count * bits // 32)
    codes = torch.empty((*grouped.shape[:2], count), dtype=torch.uint8)
    for k in range(count):
        word, shift = divmod(k * bits, 32)
        found = grouped[..., word] >> shift
        if shift + bits > 32:
            found |= grouped[..., word + 1] << (32 - shift)
        codes[..., k] = found & ((1 << bits) - 1)
    return codes.reshape(words.shape[1], -1)


def _codes_awq(words: Any) -> Any:
    """Return the codes [out, in] of words [in, out / 8], where output k of eight has the bits from 4 * ORDER[k] on."""
    import torch

    shifts = 4 * torch.tensor(AWQ_ORDER, dtype=torch.int32)
    return ((words[:, :, None] >> shifts) & 15).reshape(len(words), -1).T.to(torch.uint8)
