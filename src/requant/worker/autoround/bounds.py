"""What rounding explains: how far two machines that round alike, but add up in other orders, can be from each other.

The gradient of a weight is a sum over tokens: of what the layer is given times the gradient of what it puts out. `Q` is
the root of the sum of the squares of these products. Of `n` roundings that follow each other, independent and with mean
zero, all are together less than `SIGMAS * u * sqrt(n)` of their result, but with a probability of 2 exp(-SIGMAS**2 / 2)
(Higham and Mary, "A new approach to probabilistic rounding error analysis", 2019, theorem 2.4; `u` is the unit
roundoff). `n` counts the longest way from the embedding to the gradient: the terms of its sums, which are the tokens of
a step, both dimensions of each kind of layer and twice the sequence; and twice the operations of the longest path
through the block. What the blocks before it have made of their roundings is not counted but measured (`drift.py`).

All gradients come from the difference between what the quantized block puts out and what the other did, which is far
smaller than both: relative to it their roundings are greater by the ratio of their sizes. With it as a factor each
product is so far off, and the sum as much of `Q`. What that is of each parameter, `gradients.py` says.
"""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from inspect import unwrap
from typing import Any

from requant.worker.autoround.counts import sent, turned
from requant.worker.autoround.gradients import SIGMAS, UNITS, Layer
from requant.worker.autoround.head import alone
from requant.worker.autoround.series import Place, installed


class NoHintError(Exception):
    """A block cannot be followed any further: nothing is known of it."""


class BeyondError(Exception):
    """A decision of the build is none that rounding explains."""


Again = Callable[[], AbstractContextManager[Callable[[], Any]]]
"""Gives a function that does a forward pass again, as long as the context lasts."""


class Bounds:
    """The bounds of one block, and what was taken within them."""

    def __init__(self, sequence_length: int, precision: str, drift: float = 0.0) -> None:
        """Begin with a block on sequences of so many tokens, which may be off by `drift`, of themselves."""
        self._precision = precision
        self.decided = self.signs_taken = self.routes_taken = 0
        self.free = self.furthest = 0.0
        self._counted = False
        self._again: Again | None = None
        self._trying, self._tries = False, 0
        self._what = ""
        self._routed: list[tuple[Any, Any, Any]] = []
        self._scores: list[Any] = []
        self._off = 0.0
        self._sequence_length, self._drift = sequence_length, drift
        self._operations = self._depth = 0
        self._alone = False
        self._widths: dict[str, int] = {}
        self._layers: dict[int, Layer] = {}
        self._owners: dict[int, tuple[Layer, str]] = {}
        self._losses: list[float] = []
        self._pending = self._pending_outputs = 0.0
        self._outputs = 0.0
        self._cancelled = 1.0

    def try_again(self, what: str, again: Again) -> None:
        """Hear what forward pass comes next, and how it is done again: in bfloat16 that tells how exact it is."""
        self._what, self._again = what, again
        self._routed, self._scores = [], []

    @property
    def routed(self) -> bool:
        """Whether that pass has sent tokens to experts."""
        return bool(self._routed)

    def tried(self) -> Any:
        """Do that pass again, as another machine might, and return what comes of it; routes are held against it."""
        with self._otherwise() as again:
            return again()

    @contextmanager
    def _otherwise(self) -> Iterator[Callable[[], Any]]:
        from requant.worker.autoround.perturbed import RoundedAtRandom

        assert self._again  # noqa: S101 (asked for)
        self._trying = True
        with self._again() as again, RoundedAtRandom(self._tries):
            yield again
        self._trying, self._again = False, None
        self._tries += 1
        for (scores, own, theirs), other in zip(self._routed, self._scores, strict=False):
            if theirs is not own:
                self._explain_routes(scores, own, theirs, _ranked(scores, other - scores))

    def look_at(self, block: Any) -> None:
        """Take the widths of a block's layers; and its modules for operations, until a gradient tells how many.

        Without it no width is known.
        """
        kinds = {re.sub(r"\d+", "*", name): module for name, module in block.named_modules()}
        weights = {name: getattr(module, "weight", None) for name, module in kinds.items()}
        self._widths = {name: sum(each.shape) for name, each in weights.items() if each is not None and each.dim() == 2}
        self._operations, self._alone = len(kinds), alone(block)

    def relative(self, tokens: int) -> float:
        """Return how far a result can be off, of itself, where a sum goes over so many tokens.

        Of `drift` there are four, independent of each other: of two machines, and on each of both streams, what the
        quantized block is given and what is expected of it.
        """
        sums = tokens + sum(self._widths.values()) + 2 * self._sequence_length
        square = UNITS["float32"] ** 2 * sums + UNITS[self._precision] ** 2 * 2 * (self._depth or self._operations)
        return SIGMAS * math.sqrt(square + 4 * self._drift**2)

    def _gradient(self, layer: Layer) -> float:
        return self.relative(layer.tokens) * math.sqrt(1 + self._cancelled)

    def signs(self, iteration: int, parameters: list[Any], signs: Any) -> None:
        """Let gradients have these `signs`, -1, 0 or 1, one after the other; None where they have them.

        Raises BeyondError where a gradient that has another sign is further from zero than rounding explains.
        """
        import torch

        self.decided += sum(each.numel() for each in parameters)
        if not self._counted:
            self._count_free(parameters)
        start = 0
        for each in parameters if signs is not None else ():
            want = signs[start : start + each.numel()]
            start += each.numel()
            if each.grad is None:
                each.grad = torch.zeros_like(each)
            grad = each.grad.view(-1)
            where = (torch.sign(grad) != want).nonzero().view(-1)
            if not len(where):
                continue
            layer, key = self._owner(each)
            sizes, bounds = layer.sizes(key, grad, self._gradient(layer))
            found, bound = sizes[where], bounds[where]
            if not (found.isfinite() & bound.isfinite()).all():
                raise NoHintError(f"iteration {iteration}: {layer.name}: what its gradients are made of is not finite")
            if bool(((bound == 0) & (found > 0)).any()):
                raise NoHintError(f"iteration {iteration}: {layer.name}: what its gradients are made of is not known")
            for place in ((found > bound) | (bound == 0)).nonzero().view(-1).tolist():
                what = "is zero on every machine"
                if not grad[where[place]].isfinite():
                    what = "is beyond what float16 holds, on every machine"
                elif found[place]:
                    what = f"is {float(found[place] / bound[place]):.3g} times as far from zero as rounding explains"
                raise BeyondError(
                    f"iteration {iteration}: {layer.name}: its hints change the sign of {key} {int(where[place])}, "
                    f"whose gradient {what}"
                )
            if layer.tried and len(where) > (most := turned(sizes.view(layer.outputs, -1), bounds)):
                raise BeyondError(
                    f"iteration {iteration}: {layer.name}: its hints change the signs of {len(where):,} of "
                    f"{len(grad):,} gradients of {key}, and rounding explains {most:,} at most"
                )
            self.furthest = max(self.furthest, float((found / bound).max()))
            self.signs_taken += len(where)
            grad[where] = want[where].to(grad.dtype)
        self._forget()

    def _forget(self) -> None:
        """Forget what the gradients of an iteration were made of."""
        self._layers.clear()
        self._owners.clear()
        self._cancelled = 1.0

    def _count_free(self, parameters: list[Any]) -> None:
        within = 0
        for each in parameters:
            if each.grad is not None:
                layer, key = self._owner(each)
                sizes, bounds = layer.sizes(key, each.grad, self._gradient(layer))
                free = int(((bounds > 0) & (sizes <= bounds)).sum())
                within += min(free, turned(sizes.view(layer.outputs, -1), bounds)) if layer.tried else free
        self.free = within / self.decided
        self._counted = True

    def _owner(self, parameter: Any) -> tuple[Layer, str]:
        if found := self._owners.get(id(parameter)):
            return found
        raise NoHintError("it tunes a parameter of no linear layer, whose gradient has no bound here")

    def routes(self, scores: Any, own: Any, theirs: Any) -> None:
        """Confirm that a router can have chosen the experts `theirs` [..., chosen], where here it chose `own`.

        Both have the best first; what is held against each other are the scores [..., experts] of those in one place.
        Scores are probabilities or what these are made of: their error is that of a logarithm, times the largest; where
        the pass is tried again, what comes of that, of both together.
        Raises BeyondError where one is further away than rounding explains.
        """
        if self._trying:
            self._scores.append(scores.detach())
        elif self._again:
            self._routed.append((scores.detach(), own, theirs))
        elif theirs is not own:
            rows = _rows(scores).double().abs()
            rows = rows.masked_fill(rows.isinf(), 0)  # of experts that are left out
            largest, least = rows.amax(-1, keepdim=True), rows.clamp(min=1e-30).amin(-1, keepdim=True)
            bound = self.relative(0) * largest * (1 + (largest / least).log().clamp(max=64))
            self._explain_routes(scores, own, theirs, ((bound / SIGMAS).square() / 2).expand_as(rows))

    def _explain_routes(self, scores: Any, own: Any, theirs: Any, square: Any) -> None:
        import torch

        scores, own, theirs = (_rows(each) for each in (scores, own, theirs))
        gaps = (scores.gather(-1, own) - scores.gather(-1, theirs)).double().abs()
        bound = SIGMAS * (square.gather(-1, own) + square.gather(-1, theirs)).sqrt()
        far = torch.where(gaps > 0, gaps / bound, 0).amax(-1)
        for place in (~(far <= 1)).nonzero().view(-1).tolist():
            raise BeyondError(
                f"{self._what}its hints send token {place} of a batch to other experts, whose scores are "
                f"{float(far[place]):.3g} times as far from the best as rounding explains"
            )
        other = int((own.sort(-1).values != theirs.sort(-1).values).any(-1).sum())
        if other > (most := sent(scores, own, square, self._sequence_length)):
            raise BeyondError(
                f"{self._what}its hints send {other:,} of {len(own):,} tokens of a batch to other experts, and "
                f"rounding explains {most:,} at most"
            )
        self.routes_taken += int((far > 0).sum())

    def best(self, iteration: int) -> None:
        """Raise BeyondError unless an iteration can have been the best one.

        By the Cauchy-Schwarz inequality outputs that are off by `d`, in the mean of squares, change a loss `L` by no
        more than 2 sqrt(L) d + d**2.
        """
        off = self.relative(0) * math.sqrt(self._outputs)
        loss, least = self._losses[iteration], min(self._losses)
        allowed = sum(2 * math.sqrt(each) * off + off**2 for each in (loss, least))
        if loss - least > allowed:
            raise BeyondError(
                f"its hints say that iteration {iteration} was the best, whose loss is {loss:.6g} here; the best has "
                f"{least:.6g}, and rounding explains {allowed:.2g}"
            )

    def loss(self, iteration: int, theirs: float, own: float) -> None:
        """Raise BeyondError unless a loss can be `theirs` where it is `own` here, in units of AutoRound's own.

        By the triangle inequality the root of a mean of squares is off by no more than the root of the mean square of
        what each number is off by; and of these there are so many that a try tells that.
        """
        mean, off = self._pending, math.sqrt(self._off)
        self.stepped()
        told = theirs / own * mean if own else theirs
        if not (told >= 0 and abs(math.sqrt(told) - math.sqrt(mean)) <= off):
            raise BeyondError(
                f"iteration {iteration}: its loss is said to be {theirs:.6g}, which is {own:.6g} here, and rounding "
                f"explains {((math.sqrt(mean) + off) ** 2 / mean - 1) * own if mean else off**2:.2g} at most"
            )

    def inputs(self, what: str, own: list[Any], tried: list[Any], theirs: list[Any]) -> None:
        """Raise BeyondError unless block inputs [1, tokens, hidden] are as near to own ones as rounding explains."""
        from torch.linalg import vector_norm

        for number, (mine, other, given) in enumerate(zip(own, tried, theirs, strict=True)):
            if given.shape != mine.shape:
                raise BeyondError(f"its revealed inputs are not of the form that the block before it puts out: {what}")
            mine = mine.double()
            size = vector_norm(mine, dim=-1).view(-1)
            off, far = (vector_norm(each.double() - mine, dim=-1).view(-1) / size for each in (other, given))
            bound = _spread(off)
            for place in (~(far <= bound)).nonzero().view(-1).tolist():
                raise BeyondError(
                    f"its revealed inputs are not those that the block before it puts out: {what}, sample {number}, "
                    f"token {place} is {float(far[place] / bound[place]):.3g} times as far off as rounding explains"
                )

    @contextmanager
    def measuring(self, autoround: Any) -> Iterator[None]:
        """Look at what gradients and losses are made of."""
        from auto_round.wrapper import WrapperLinear

        from requant.worker.autoround.perturbed import unperturbed

        forward, quantize = Place(WrapperLinear, "linear_forward"), Place(WrapperLinear, "_qdq_weight")
        losing, backward = installed().loss(autoround), installed().backward(autoround)
        linear, rounded, measure, go_back = (each.function for each in (forward, quantize, losing, backward))

        def alike(function: Callable[..., Any]) -> Callable[..., Any]:
            """Return what gives weights: those that are quantized by the same parameters are the same everywhere."""

            def give(*args: Any) -> Any:
                with unperturbed() if self._trying else nullcontext():
                    return function(*args)

            return give

        def linear_forward(wrapper: Any, given: Any, weight: Any, bias: Any) -> Any:
            out = linear(wrapper, given, weight, bias)
            self._listen([wrapper], given, out, [len(given)])
            return out

        def get_loss(quantizer: Any, put_out: Any, expected: Any, *args: Any, **kwargs: Any) -> Any:
            if self._again:
                bare = unwrap(measure)
                self._try(put_out, expected, lambda out, other: bare(quantizer, out, other, *args, **kwargs))
            loss = measure(quantizer, put_out, expected, *args, **kwargs)
            function = args[1] if len(args) > 1 else kwargs["loss_func"]
            measured(loss, put_out, expected, function.reduction == "sum")
            return loss

        def scale_and_backward(quantizer: Any, scaler: Any, loss: Any) -> Any:
            if self._alone:  # no function of AutoRound measures it; torch has kept what its mean or sum (2) is of
                node = loss.grad_fn
                measured(loss, node._saved_self, node._saved_target, node._saved_reduction == 2)
            return go_back(quantizer, scaler, loss)

        def measured(loss: Any, put_out: Any, expected: Any, is_sum: bool) -> None:
            mean = loss.item() / (put_out.numel() if is_sum else 1)
            self._depth = self._depth or _depth(loss.grad_fn)
            outputs = float(expected.detach().double().square().mean())
            self._pending_outputs += outputs
            self._cancelled = max(self._cancelled, outputs / mean if mean else 1.0)
            self._pending += mean

        with ExitStack() as stack:
            stack.enter_context(forward.replaced(linear_forward))
            stack.enter_context(quantize.replaced(alike(rounded)))
            stack.enter_context(losing.replaced(get_loss))
            stack.enter_context(backward.replaced(scale_and_backward))
            if together := installed().together():
                weighing, running = together
                weigh, run = weighing.function, running.function

                def slot_weights(wrappers: list[Any], *args: Any) -> Any:
                    slot = alike(weigh)(wrappers, *args)
                    slot.wrappers = wrappers
                    return slot

                def grouped_linear(given: Any, slot: Any, counts: list[int], offsets: Any) -> Any:
                    out = run(given, slot, counts, offsets)
                    self._listen(slot.wrappers, given.to(slot.weights[0].dtype), out, counts)
                    return out

                stack.enter_context(weighing.replaced(slot_weights))
                stack.enter_context(running.replaced(grouped_linear))
            yield

    def _listen(self, wrappers: list[Any], given: Any, put_out: Any, rows: list[int]) -> None:
        """Let layers that are tuned hear of the gradients of what they put out, each of so many rows of it."""
        if not put_out.requires_grad or not all(getattr(each, "params", None) for each in wrappers):
            return
        heard = [
            self._layer(wrapper).heard(some, trying=self._trying)
            for wrapper, some in zip(wrappers, given.detach().split(rows), strict=True)
        ]

        def hear(gradient: Any) -> None:
            for each, some in zip(heard, gradient.split(rows), strict=True):
                each(some)

        put_out.register_hook(hear)

    def _layer(self, wrapper: Any) -> Layer:
        if id(wrapper) not in self._layers:
            layer = self._layers[id(wrapper)] = Layer(wrapper)
            self._owners.update({id(each): (layer, key) for key, each in wrapper.params.items()})
        return self._layers[id(wrapper)]

    def _try(self, put_out: Any, expected: Any, measure: Callable[[Any, Any], Any]) -> None:
        """Do a forward pass and its backward pass again, as another machine might; layers hear of both."""
        import torch

        moved = [each for layer in self._layers.values() for each in layer.parameters]
        gradients = [each.grad for each in moved]
        for each in moved:
            each.grad = None  # torch would add to what the steps before it left there
        with self._otherwise() as again:
            with torch.no_grad():
                # What is expected was rounded as well, as independently, and about as often.
                other = expected + (again() - put_out.detach()).to(expected)
            out = again()
            (measure(out, other) * 1000).backward()  # as AutoRound does, `_scale_loss_and_backward`
        off = (out - other).detach().double() - (put_out - expected).detach().double()
        self._off += float(off.square().mean())
        for each, gradient in zip(moved, gradients, strict=True):
            each.grad = gradient

    def stepped(self) -> None:
        """Hear that the last step of an iteration has ended."""
        self._losses.append(self._pending)
        self._outputs = max(self._outputs, self._pending_outputs)
        self._pending = self._pending_outputs = self._off = 0.0


def _rows(tensor: Any) -> Any:
    return tensor.reshape(-1, tensor.shape[-1])


def _ranked(scores: Any, off: Any) -> Any:
    """Return the squares of what scores are off by, [tokens, experts], where a try moved them by `off`.

    One try says little of a single score, and large ones are off by more than small ones: to the square of its own is
    added the mean of the squares, over all tokens, of the scores of its rank. Neither counts what an expert that one of
    both leaves out is off by, as where groups of experts are chosen first: its score may be -inf.
    """
    import torch

    square = _rows(off).double().square()
    known = square.isfinite()
    square = torch.where(known, square, 0)
    order = _rows(scores).argsort(-1, descending=True)
    mean = square.gather(-1, order).sum(0) / known.gather(-1, order).sum(0).clamp(min=1)
    return square + torch.empty_like(square).scatter_(-1, order, mean.expand_as(square))


def _spread(off: Any) -> Any:
    """Return how far numbers [tokens] can be off that were `off` in a try, or as far as all in the mean."""
    return SIGMAS * (off.square() + off.square().mean()).sqrt()


def _depth(node: Any) -> int:
    """Return the operations of the longest path from a result back to what it was made of."""
    depths: dict[Any, int] = {}
    waiting = [node]
    while waiting:
        each = waiting[-1]
        before = [found for found, _ in each.next_functions if found is not None]
        if left := [found for found in before if found not in depths]:
            waiting.extend(left)
            continue
        depths[waiting.pop()] = 1 + max((depths[found] for found in before), default=0)
    return depths[node]
