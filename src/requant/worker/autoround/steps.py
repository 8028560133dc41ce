"""Steps of a tuning in bfloat16: a build commits to them, reveals those that are asked for, and anybody judges these.

There one sign in a hundred differs from class to class, and no hint would be small. So a build writes digests alone: of
each decision, and at the begin of each segment of `SEGMENT` iterations of its parameters. Between these the parameters
follow from the signs by operations on single numbers, so a segment is opened by its first state and its signs, and of
no other one anything need be known. Of an iteration that is looked at, the experts that routers chose are opened too.

What is revealed of a block lies in a folder: `decisions.safetensors`, by their digests, and the states that segments
begin with, `00008.safetensors`; the first state of all is AutoRound's own.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from requant.protocol import DECISIONS, SEGMENT, Hinted, Steps, label
from requant.recipe import Effort
from requant.worker.autoround import hints
from requant.worker.autoround.bounds import BeyondError, Bounds, NoHintError
from requant.worker.autoround.hints import SIGNS, STATE, Followed
from requant.worker.autoround.series import installed
from requant.worker.resume import BlockInputs, digest


class EnoughError(Exception):
    """All that is to be revealed of a block is."""


def parameters(block: Any) -> dict[str, Any]:
    """Return the parameters that are tuned, by name."""
    layers = {name: each for name, each in block.named_modules() if hasattr(each, "orig_layer")}
    return {f"{name}.{key}": each for name, layer in layers.items() for key, each in layer.params.items()}


def state(block: Any) -> dict[str, Any]:
    """Return copies of the parameters, as a forward pass makes them before it begins: ranges between 0 and 1.

    It does so with the layers that it comes to, and an expert to which no token is sent is none of these; so they are
    no function of what was before, but these are.
    """
    return {
        name: each.detach().clone() if name.endswith(".value") else each.detach().clamp(0, 1)
        for name, each in parameters(block).items()
    }


def digest_of(found: dict[str, Any]) -> str:
    """Return the SHA-256 of a state: of all its numbers, in the order of their names."""
    return digest(found[name] for name in sorted(found))


@contextmanager
def passing(
    autoround: Any,
    begins: Callable[[int, Any], None],
    left_out: Callable[[int], bool] = lambda _: False,
    passed: Callable[[int, Callable[[], Any]], None] = lambda *_: None,
    whole: Callable[[Callable[[], Any]], Any] = lambda run: run(),
) -> Iterator[None]:
    """Tell of each iteration, by its number and with the block, before it begins; leave its forward passes out or not.

    Of an iteration that is left out the loss is zero, and so are all gradients. `passed` is given an iteration and what
    does its forward pass again, before it is done. `whole` is given what does one of a whole stream, and returns what
    comes of it.
    """
    import torch

    series = installed()
    steps = series.numbers(autoround)["gradient_accumulate_steps"]
    forward, losing = series.forward(autoround), series.loss(autoround)
    put_out, measure = forward.function, losing.function
    count, iteration = 0, 0

    def passes(self: Any, block: Any, inputs: Any, others: Any, indices: Any = None, *rest: Any, **named: Any) -> Any:
        nonlocal count, iteration
        if indices is None:
            return whole(lambda: put_out(self, block, inputs, others, indices, *rest, **named))
        iteration, step = divmod(count, steps)
        count += 1
        if not step:
            begins(iteration, block)
        if left_out(iteration):
            return torch.zeros((), requires_grad=True)
        passed(iteration, lambda: put_out(self, block, inputs, others, indices, *rest, **named))
        return put_out(self, block, inputs, others, indices, *rest, **named)

    def get_loss(self: Any, found: Any, *args: Any, **named: Any) -> Any:
        return found if left_out(iteration) else measure(self, found, *args, **named)

    def run_whole(*given: Any, **named: Any) -> Any:
        return whole(lambda: run(*given, **named))

    with ExitStack() as stack:
        stack.enter_context(forward.replaced(passes))
        stack.enter_context(losing.replaced(get_loss))
        if place := series.whole(autoround):
            run = place.function
            stack.enter_context(place.replaced(run_whole))
        yield


@contextmanager
def committing(autoround: Any, written: hints.Written) -> Iterator[None]:
    """Commit to the state that each segment begins with."""

    def begins(iteration: int, block: Any) -> None:
        if iteration % SEGMENT == 0:
            written.commit(digest_of(state(block)))

    with passing(autoround, begins):
        yield


def connect(
    run: Callable[[Any], Any],
    load: Callable[[], None],
    before: BlockInputs,
    theirs: BlockInputs,
    followed: Followed,
    bounds: Bounds,
) -> None:
    """Raise BeyondError unless block inputs are those that the block before puts out, but for rounding, which is tried.

    `run` lets that block put out a stream; `load` gives it its published codes; `followed` are its hints.
    """

    def confirm(what: str, given: Any, found: Any) -> None:
        followed.begin_pass()
        bounds.try_again(f"the block before, {what}: ", lambda: followed.repeated(lambda: run(given)))
        own = run(given)
        bounds.inputs(what, own, bounds.tried(), found)

    with hints.routing(followed, bounds):
        confirm("full", before.full, theirs.full)
        followed.skip_to_last_routes()
        load()
        confirm("quantized", before.quantized or before.full, theirs.quantized)


class Revealing:
    """Writes what is to be revealed of a block to a folder; without `opened` iterations the routes outside all."""

    def __init__(self, folder: Path, opened: Sequence[int] = (), iterations: int = 0) -> None:
        """Begin with a block of so many iterations."""
        self._folder, self._opened = folder, opened
        self._segments = {each // SEGMENT for each in opened}
        self._last = min((max(self._segments, default=-1) + 1) * SEGMENT, iterations) - 1
        self._decisions: dict[str, Any] = {}
        self._iteration = -1

    def begins(self, iteration: int, block: Any) -> None:
        """Hear of an iteration."""
        from safetensors.torch import save_file

        self._iteration = iteration
        segment, within = divmod(iteration, SEGMENT)
        if iteration and not within and segment in self._segments:
            found = {name: each.cpu().contiguous() for name, each in state(block).items()}
            save_file(found, self._folder / f"{label(iteration)}.safetensors")

    def decide(self, kind: bytes, own: Any, _: int) -> Any:
        """Keep a decision that is to be revealed, and return it; raise EnoughError where it was the last one."""
        inside = self._iteration // SEGMENT in self._segments
        if inside if kind == SIGNS else self._iteration in (-1, *self._opened):
            kept = own.cpu().contiguous()
            self._decisions[sha256(kept.numpy().tobytes()).hexdigest()] = kept
        if kind == SIGNS and self._iteration == self._last:
            raise EnoughError
        return own

    def end(self, name: str = DECISIONS) -> None:
        """Write the decisions, and forget them."""
        from safetensors.torch import save_file

        save_file(self._decisions, self._folder / name)
        self._decisions = {}


def reveal(autoround: Any, effort: Effort, opened: Sequence[int], folder: Path, run: Callable[[], None]) -> None:
    """Tune a block, which `run` lets AutoRound do, as far as need be; write what is to be revealed."""
    revealing = Revealing(folder, opened, effort.iterations)
    try:
        with hints.deciding(autoround, revealing), passing(autoround, revealing.begins):
            run()
    except EnoughError:
        pass
    revealing.end()


class Committed(Followed):
    """What a build has committed to of a block."""

    def __init__(self, data: bytes, iterations: int, revealed: dict[str, Any]) -> None:
        """Take its file; raise NoHintError where that is not one of so many iterations."""
        super().__init__(data, iterations, revealed)
        self.states: dict[int, str] = {}
        self.signs: list[str] = []
        self.followed = True
        self._begins: dict[int, int] = {}
        first = self._at
        for kind, found, end in self._records():
            if kind == STATE:
                self.states[len(self.signs)] = found.hex()
                self._begins[len(self.signs)] = end
            elif kind == SIGNS:
                self.signs.append(found.hex())
                self._begins[len(self.signs)] = end
        self._at = first
        if len(self.signs) != iterations or sorted(self.states) != [*range(0, iterations, SEGMENT)]:
            raise NoHintError(f"its hints are not those of {iterations} iterations in bfloat16")

    def go_to(self, iteration: int) -> None:
        """Read on where an iteration begins."""
        self._at = self._begins[iteration]

    def decide(self, kind: bytes, own: Any, count: int) -> Any:
        """Return what the build decided; where nobody follows it any more, `own`."""
        return super().decide(kind, own, count) if self.followed else own

    def signs_of(self, iteration: int) -> Any:
        """Return the revealed signs of an iteration."""
        if (found := self._revealed.get(self.signs[iteration])) is None:
            raise NoHintError(f"iteration {iteration}: its signs were not revealed")
        return found


def judge(
    autoround: Any,
    effort: Effort,
    block: Any,
    data: bytes,
    folder: Path,
    steps: Steps,
    total: Callable[[], float],
    run: Callable[[], None],
) -> Hinted:
    """Tune a block in its opened iterations only, from the states in a folder; `run` lets AutoRound do it.

    `data` is what the build committed to; `total` returns the loss of the iteration that was computed last.
    """
    from safetensors.torch import load_file

    bounds = Bounds(effort.sequence_length, effort.precision)
    bounds.look_at(block)

    def open_all() -> None:
        committed = Committed(data, effort.iterations, load_file(folder / DECISIONS))
        losses, best = committed.losses, committed.best_iteration
        if not all(map(math.isfinite, losses)) or losses.index(min(losses)) != best:
            raise BeyondError(f"its hints say that iteration {best} was the best, and its own losses do not")
        if best not in steps.opened or (losses[0].hex(), losses[best].hex()) != (steps.initial, steps.best):
            raise BeyondError("its hints state other losses than its journal, or another best iteration")
        with _opening(autoround, committed, bounds, folder, steps.opened, total):
            run()

    return hints.explained(open_all, bounds)


@contextmanager
def _opening(
    autoround: Any,
    committed: Committed,
    bounds: Bounds,
    folder: Path,
    opened: Sequence[int],
    total: Callable[[], float],
) -> Iterator[None]:
    from safetensors.torch import load_file

    series = installed()
    place, collecting = series.step(), series.collecting()
    taken, original = place.function, collecting.function
    segments = {each // SEGMENT for each in opened}
    kept: dict[str, Any] = {}
    collected: list[Any] = []
    current: list[Any] = [0, None]

    def confirm(iteration: int, found: dict[str, Any], what: str, error: type[Exception] = BeyondError) -> None:
        if digest_of(found) != committed.states[iteration]:
            raise error(f"iteration {iteration}: {what} is not the state that the build committed to")

    def begins(iteration: int, block: Any) -> None:
        current[:] = iteration, block
        if not iteration:
            confirm(0, state(block), "what AutoRound begins with")
        elif iteration % SEGMENT == 0 and iteration // SEGMENT in segments:
            own, theirs = parameters(block), load_file(folder / f"{label(iteration)}.safetensors")
            if {name: (each.shape, each.dtype) for name, each in own.items()} != {
                name: (each.shape, each.dtype) for name, each in theirs.items()
            }:
                raise NoHintError(f"iteration {iteration}: the revealed state is of other parameters than are tuned")
            confirm(iteration, theirs, "what was revealed", NoHintError)
            for name, each in own.items():
                each.data.copy_(theirs[name])
        for name, each in parameters(block).items():
            if not name.endswith(".value"):
                each.data.clamp_(0, 1)  # as a forward pass would that is left out
        if iteration in opened:
            committed.go_to(iteration)

    def will_pass(what: str, again: Callable[[], Any]) -> None:
        committed.begin_pass()
        bounds.try_again(what, lambda: committed.repeated(again))

    def passed(iteration: int, again: Callable[[], Any]) -> None:
        will_pass(f"iteration {iteration}: ", again)

    def whole(run: Callable[[], Any]) -> Any:
        if not committed.followed:  # behind the last iteration
            return run()
        will_pass("before its iterations: ", run)
        found = run()
        if bounds.routed:
            bounds.tried()
        return found

    def step(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        iteration, block = current
        moved = [each for group in optimizer.param_groups for each in group["params"]]
        count = sum(each.numel() for each in moved)
        if iteration in opened:
            own = hints.signs(moved)
            theirs = committed.decide(SIGNS, own, count)
            bounds.loss(iteration, committed.losses[iteration], total())
            bounds.signs(iteration, moved, None if theirs is own else hints.unpacked(theirs, count))
        elif iteration // SEGMENT in segments:
            packed = committed.signs_of(iteration)
            if len(packed) != 2 * -(-count // 8):
                raise BeyondError(f"iteration {iteration}: the revealed signs are of other parameters than are tuned")
            parts = hints.unpacked(packed.to(moved[0].device), count).split([each.numel() for each in moved])
            for each, part in zip(moved, parts, strict=True):
                each.grad = part.view(each.shape).to(each.dtype)
        if iteration == committed.best_iteration:
            kept.update(original(*collected))
        result = taken(optimizer, *args, **kwargs)
        if iteration // SEGMENT in segments and iteration + 1 in committed.states:
            confirm(iteration + 1, state(block), "what its signs lead to")
        if iteration + 1 == len(committed.signs):
            committed.followed = False
        return result

    def collect(*given: Any) -> dict[str, Any]:
        collected[:] = given
        return kept

    with ExitStack() as stack:
        stack.enter_context(hints.routing(committed, bounds))
        stack.enter_context(place.replaced(step))
        stack.enter_context(collecting.replaced(collect))
        stack.enter_context(bounds.measuring(autoround))
        stack.enter_context(passing(autoround, begins, lambda iteration: iteration not in opened, passed, whole))
        yield
