"""`RECIPE BASE BLOCK LIE…`: tune a block with decisions that are no gradient's, and then by the hints of these.

What comes back is what an auditor learns of each lie, and how far it has moved the codes.
"""

import random
import resource
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from tests.worker.prepared import answer, prepare

from requant.evidence.journal import Block
from requant.protocol import Hinted
from requant.recipe import read_recipe
from requant.worker import sketch
from requant.worker.autoround import hints, hooks, retune
from requant.worker.autoround.bounds import Bounds
from requant.worker.autoround.series import installed

ROOT = Path(__file__).parent.parent.parent


class Liar(Bounds):
    """A builder that knows the bounds: it lets a gradient have the sign that it wants, and writes that down."""

    def __init__(self, sequence_length: int, chosen: Callable[[Any, str, Any, Any], Any]) -> None:
        super().__init__(sequence_length, "float32")
        self.chosen, self.written, self.altered = chosen, hints.Written("float32"), 0

    def turn(self, iteration: int, parameters: list[Any]) -> None:
        """Turn the signs of the gradients that are chosen."""
        self.decided += sum(each.numel() for each in parameters)
        for each in parameters:
            if each.grad is None:
                continue
            layer, key = self._owner(each)
            grad = each.grad.view(-1)
            bound = layer.bound(key, self._gradient(layer)).view(-1).double()
            want = self.chosen(layer, key, grad, bound)
            if want is None:
                continue
            where = want.abs() <= 1
            self.altered += int((torch.sign(grad)[where] != want[where]).sum())
            grad[where] = want[where]
        self._forget()

    @property
    def losses(self) -> list[float]:
        """The losses of the iterations."""
        return self._losses


@contextmanager
def lying(autoround: Any, liar: Liar) -> Iterator[None]:
    """Let the liar decide, and write what it decides."""
    place = installed().step()
    taken = place.function
    iteration = 0

    def step(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal iteration
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        liar.stepped()
        liar.turn(iteration, parameters)
        liar.written.decide(hints.SIGNS, hints.signs(parameters), sum(each.numel() for each in parameters))
        iteration += 1
        return taken(optimizer, *args, **kwargs)

    with ExitStack() as stack:
        stack.enter_context(hints.routing(liar.written, None))
        stack.enter_context(place.replaced(step))
        stack.enter_context(liar.measuring(autoround))
        yield


KEEP = 2
"""No sign: of what a liar leaves as it is."""
CHOSEN = "down_proj", "lm_head"
"""Layers that are lied about."""


def within(layer: Any, key: str, grad: Any, bound: Any) -> Any:
    """Turn every sign of a weight's gradient that rounding could turn: those of ranges are more than a sketch tells."""
    if key != "value":
        return None
    return torch.where((grad != 0) & (grad.abs().double() <= bound), -torch.sign(grad), KEEP).to(grad.dtype)


def all_of(where: str, key: str = "value") -> Callable[..., Any]:
    """Turn every sign of the layers whose names hold a text."""

    def chosen(layer: Any, found: str, grad: Any, bound: Any) -> Any:
        return torch.full_like(grad, -1) if where in layer.name and found == key else None

    return chosen


def one(layer: Any, key: str, grad: Any, bound: Any) -> Any:
    """Turn the sign of the greatest gradient of some layers, which no sketch is too small for."""
    if not layer.name.endswith(CHOSEN) or key != "value":
        return None
    return torch.where(grad.abs() == grad.abs().max(), -torch.sign(grad), KEEP).to(grad.dtype)


def clamped(layer: Any, key: str, grad: Any, bound: Any) -> Any:
    """Move one weight whose gradient is zero, for its code is at the end of the range."""
    if not layer.name.endswith(CHOSEN) or key != "value":
        return None
    want = torch.full_like(grad, KEEP)
    want[(grad == 0).nonzero()[0]] = -1
    return want


def no_number(layer: Any, key: str, grad: Any, bound: Any) -> Any:
    """Move one range whose gradient is no number: two of its parts are beyond float16, with both signs."""
    if not layer.name.endswith(CHOSEN) or key == "value":
        return None
    want = torch.full_like(grad, KEEP)
    want[grad.isnan().nonzero()[0]] = -1
    return want


def turned(share: float) -> Callable[..., Any]:
    """Turn the signs that are furthest within some times the bound."""

    def chosen(layer: Any, key: str, grad: Any, bound: Any) -> Any:
        near = (grad.abs().double() > bound) & (grad.abs().double() <= share * bound)
        return torch.where(near, -torch.sign(grad), torch.full_like(grad, KEEP))

    return chosen


def honest(layer: Any, key: str, grad: Any, bound: Any) -> Any:
    return None


LIES: dict[str, Callable[..., Any]] = {
    "honest": honest,
    "one": one,
    "an expert": all_of("experts.1."),
    "a layer": all_of("down_proj"),
    "scales": all_of("down_proj", "max_scale"),
    "within": within,
    "clamped": clamped,
    "no number": no_number,
    "twice as far": turned(2.0),
}


def worst(data: bytes, losses: list[float]) -> bytes:
    """Say that another iteration was the best."""
    return data[:-8] + struct.pack("<q", max(range(len(losses)), key=losses.__getitem__))


def garbled(data: bytes, losses: list[float]) -> bytes:
    """Fill the first record with other bytes, and state another digest."""
    kind, length, room, _ = hints.RECORD.unpack_from(data, at := len(hints.MAGIC))
    size = sketch.size(room) if room else length
    forged = hints.RECORD.pack(kind, length, room, bytes(32)) + b"\xff" * size
    return data[:at] + forged + data[at + len(forged) :]


def sized(length: int, room: int) -> Callable[..., bytes]:
    """State another length, or a greater capacity, in the first record."""

    def forge(data: bytes, losses: list[float]) -> bytes:
        kind, _, _, digest = hints.RECORD.unpack_from(data, len(hints.MAGIC))
        head = hints.RECORD.pack(kind, length, room, digest)
        return data[: len(hints.MAGIC)] + head + data[len(hints.MAGIC) + hints.RECORD.size :]

    return forge


FORGED: dict[str, Callable[[bytes, list[float]], bytes]] = {
    "the worst iteration": worst,
    "an iteration that is none": lambda data, _: data[:-8] + struct.pack("<q", 2**62),
    "an iteration before the first": lambda data, _: data[:-8] + struct.pack("<q", -1),
    "cut short": lambda data, _: data[: len(data) // 2] + data[-8:],
    "cut to nothing": lambda data, _: hints.MAGIC + bytes(8),
    "extended": lambda data, _: data + bytes(100),
    "doubled": lambda data, _: data + data,
    "a length": sized(2**63, 0),
    "a capacity": sized(1 << 16, 2**31),
    "of zeros": lambda data, _: hints.MAGIC + bytes(len(data)),
    "of ones": lambda data, _: hints.MAGIC + b"\xff" * len(data),
    "garbled": garbled,
}
"""What is done to the hints of an honest build."""


def lies(recipe: str, base: str, number: str, *names: str) -> dict[str, Any]:
    """Tell each lie about the block of this number, and say what came of it."""
    found: dict[str, Any] = {}
    given = recipe, base, int(number)
    told = told_by("honest", *given)
    for name in names:
        if name in FORGED:
            hinted, _ = followed(*given, FORGED[name](told.hints, told.liar.losses))
            found[name] = {"hinted": asdict(hinted)}
            continue
        lie = told if name == "honest" else told_by(name, *given)
        hinted, again = followed(*given, lie.hints)
        steps = Counter[int]()
        for each, codes in told.codes.items():
            values, counts = (lie.codes[each].int() - codes.int()).unique(return_counts=True)
            steps.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        found[name] = {
            "hinted": asdict(hinted),
            "altered": lie.liar.altered / lie.liar.decided,
            "steps": dict(steps),
            "same": all(torch.equal(again[each], codes) for each, codes in lie.codes.items()) if again else None,
            "best": lie.best,
        }
    found["MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return found


class Told(NamedTuple):
    """What a builder has made: hints, codes [out, in] by layer, and the best iteration."""

    liar: Liar
    hints: bytes
    codes: dict[str, Any]
    best: int


class Kept:
    """Keeps what a block was packed to."""

    def keep(self, block: Block, packed: dict[str, Any], *_: Any) -> None:
        self.block, self.packed = block, packed


def told_by(name: str, recipe: str, base: str, number: int) -> Told:
    """Tune with a lie."""
    liar = Liar(read_recipe(ROOT / "builds" / recipe).effort(tiny=True).sequence_length, LIES[name])

    def tune(autoround: Any, block: Any, run: Callable[[], None]) -> None:
        liar.look_at(block)
        with lying(autoround, liar):
            run()

    kept, _ = one_block(recipe, base, number, tune)
    assert kept.block.loss
    best = kept.block.loss.best_iteration
    return Told(liar, liar.written.end(best, ()), codes_of(recipe, kept.packed), best)


def followed(recipe: str, base: str, number: int, data: bytes) -> tuple[Hinted, dict[str, Any]]:
    """Tune by hints; return what came of it and the codes, none where it did not come to its end."""
    effort = read_recipe(ROOT / "builds" / recipe).effort(tiny=True)

    def follow(autoround: Any, block: Any, run: Callable[[], None]) -> Hinted:
        return hints.follow(autoround, effort, 0.0, block, data, run)

    kept, hinted = one_block(recipe, base, number, follow)
    return hinted, codes_of(recipe, kept.packed) if hasattr(kept, "packed") else {}


def codes_of(recipe: str, packed: dict[str, Any]) -> dict[str, Any]:
    bits = read_recipe(ROOT / "builds" / recipe).scheme.bits
    return {name: retune._codes(each, bits) for name, each in packed.items() if name.endswith("qweight")}


def one_block(
    recipe: str, base: str, number: int, tune: Callable[[Any, Any, Callable[[], None]], Any]
) -> tuple[Kept, Any]:
    """Let AutoRound come to a block, with what the first one is given; `tune` is given it, and what tunes it."""
    prepared, kept = prepare(recipe, Path(base)), Kept()
    autoround, came = prepared.autoround, []
    loop = type(autoround)._quantize_blocks

    def blocks(self: Any, model: Any, inputs: Any, names: list[str], **rest: Any) -> None:
        rest.pop("q_input", None)
        random.seed(7)
        name = names[number]
        quantized = [each.clone() for each in inputs["input_ids"]] if number else None

        def run() -> None:
            loop(self, model, inputs, [name], q_input=quantized, **rest)

        came.append(tune(self, model.get_submodule(name), run))

    with TemporaryDirectory() as folder, hooks.listening(autoround, kept, save=False):
        retune.through(autoround, read_recipe(ROOT / "builds" / recipe), blocks, Path(folder))
    return kept, came[0]


if __name__ == "__main__":
    answer(lies)
