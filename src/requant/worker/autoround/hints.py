"""Hints: what a machine of another class needs to repeat a tuning bit for bit. docs/portable.md says why it does.

AutoRound moves its parameters by the sign of a gradient and keeps those of the best iteration; a router sends each
token to a few experts. All else follows from these decisions by operations on single numbers, which IEEE 754 rounds
alike everywhere. A build writes down what it decides: of every step the signs, of every router the experts, as
sketches. Whoever tunes again, on whatever machine, holds its own decisions against them and takes the build's, but
only where its own gradient is so close to zero that rounding explains the difference.

A file of hints, one for each block, holds a record for each decision, in order, and the `best_iteration` at its end.
Of a tuning in bfloat16 the records are commitments, to some states too, and all losses stand before the end: `steps`.
"""

import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from typing import Any, Protocol

from requant.protocol import Hinted
from requant.recipe import Effort
from requant.worker import sketch
from requant.worker.autoround.bounds import BeyondError, Bounds, NoHintError
from requant.worker.autoround.series import Place, installed

MAGIC = b"requant hints 3\n"
RECORD = struct.Struct("<cQI32s")
"""Of a record: its kind, the length of the decisions in bytes, the capacity of their sketch, their SHA-256."""
PLAIN, COMMITTED = 0, 2**32 - 1
"""Capacities of what is no sketch: the decisions stand there as they are, or their digest alone does."""
SIGNS, ROUTES, STATE = b"s", b"r", b"p"
PER_MILLION = {SIGNS: 16.0, ROUTES: 1000.0}
"""Decisions that may differ, for each million, before a sketch is too small; docs/portable.md measures how many do."""
AT_LEAST = {SIGNS: 64, ROUTES: 16}
PER_DRIFT = 2.0
"""Of what is decided on inputs that drift apart so many times as much may differ besides: 0.6 to 1.1 do."""
DRIFTS = 4.0
"""How many times greater than here the drift may be that a build has measured."""


def capacity(kind: bytes, count: int, drift: float) -> int:
    """Return in how many bytes `count` decisions may differ on inputs that drift apart so far, of themselves."""
    return AT_LEAST[kind] + math.ceil(count * (PER_MILLION[kind] / 1e6 + PER_DRIFT * drift))


def form(room: int, length: int) -> int:
    """Return the capacity of a sketch of so many bytes, or `PLAIN` where they are fewer themselves."""
    return room if sketch.size(room) < length else PLAIN


class Decisions(Protocol):
    """Who is told what is decided here, and says what is to be done."""

    def decide(self, kind: bytes, own: Any, count: int, /) -> Any:
        """Return the decisions to go on with, as bytes in a tensor; `own` itself where they are those."""


class Written:
    """Writes down what is decided.

    Of a tuning in bfloat16, where one sign in a hundred differs from class to class, only digests: sketches of so many
    would be as large as the signs.
    """

    def __init__(self, precision: str) -> None:
        self.committed = precision != "float32"
        self.drift = 0.0
        """How far what the block is given drifts apart elsewhere, of itself."""
        self._parts: list[bytes] = [MAGIC]

    def decide(self, kind: bytes, own: Any, count: int) -> Any:
        """Add a record; return `own`."""
        plain = own.cpu().numpy().tobytes()
        room = COMMITTED if self.committed else form(capacity(kind, count, self.drift), len(plain))
        payload = b"" if room == COMMITTED else plain if room == PLAIN else sketch.sketch(own, room)
        self._parts += [RECORD.pack(kind, len(plain), room, sha256(plain).digest()), payload]
        return own

    def commit(self, digest: str) -> None:
        """Add a record of a state."""
        self._parts.append(RECORD.pack(STATE, 0, COMMITTED, bytes.fromhex(digest)))

    def end(self, best_iteration: int, losses: Sequence[float]) -> bytes:
        """Return the file of a block, and begin the next one."""
        told = losses if self.committed else ()
        data = b"".join([*self._parts, struct.pack(f"<{len(told)}dq", *told, best_iteration)])
        self._parts = [MAGIC]
        return data


class Repeating:
    """Decides what is decided here, and knows the routes of a forward pass, which can be done again with them."""

    def __init__(self) -> None:
        self._routes: list[Any] = []
        self._repeated: Iterator[Any] | None = None

    def decide(self, kind: bytes, own: Any, count: int) -> Any:
        """Return the decisions to go on with; raise NoHintError where these cannot be told."""
        if self._repeated:
            return next(self._repeated)
        found = self._decided(kind, own, count)
        if kind == ROUTES:
            self._routes.append(found)
        return found

    def _decided(self, kind: bytes, own: Any, count: int) -> Any:
        del kind, count
        return own

    def begin_pass(self) -> None:
        """Forget the routes so far: those of the forward pass that comes next can be `repeated`."""
        self._routes.clear()

    @contextmanager
    def repeated(self, again: Callable[[], Any]) -> Iterator[Callable[[], Any]]:
        """Give what does a forward pass again, with the same routes."""

        def repeat() -> Any:
            self._repeated = iter(self._routes)
            return again()

        try:
            yield repeat
        finally:
            self._repeated = None


class Followed(Repeating):
    """Reads what was decided, and says it; what there are digests of only is looked up among what was `revealed`."""

    def __init__(
        self, data: bytes, losses: int = 0, revealed: Mapping[str, Any] | None = None, *, drift: float = 0.0
    ) -> None:
        """Take the file of a block, in which so many losses stand; raise NoHintError where it is none.

        `drift` is how far what the block is given may be off, of itself, as it is measured here.
        """
        super().__init__()
        tail = struct.Struct(f"<{losses}dq")
        if not data.startswith(MAGIC) or len(data) < len(MAGIC) + tail.size:
            raise NoHintError("its hints are not of a form that this requant reads")
        self._data, self._at, self._end = data, len(MAGIC), len(data) - tail.size
        *self.losses, self.best_iteration = tail.unpack_from(data, self._end)
        self._revealed = revealed or {}
        self._drift = drift

    def _decided(self, kind: bytes, own: Any, count: int) -> Any:
        import torch

        there, length, room, digest, payload = self._record()
        if (there, length) != (kind, len(own)):
            raise NoHintError("its hints are of other decisions than are made here")
        most = capacity(kind, count, DRIFTS * self._drift)
        if room != COMMITTED and (room > most or (room == PLAIN and form(most, length) != PLAIN)):
            raise NoHintError(f"its hints tell more differences than the {most:,} that rounding explains here")
        if sha256(own.cpu().numpy().tobytes()).digest() == digest:
            return own
        if room == COMMITTED:
            if (theirs := self._revealed.get(digest.hex())) is None or len(theirs) != length:
                raise NoHintError(
                    "some of its decisions differ here, and of a tuning in bfloat16 there are digests only"
                )
            theirs = theirs.to(own.device)
        elif room == PLAIN:
            theirs = torch.frombuffer(bytearray(payload), dtype=torch.uint8).to(own.device)
        else:
            changes = sketch.changes(payload, own.cpu(), room)
            if changes is None:
                raise NoHintError(f"its hints are for {room:,} differences, and there are more")
            theirs = own.clone()
            places = torch.tensor([*changes], dtype=torch.int64, device=own.device)
            theirs[places] = torch.tensor([*changes.values()], dtype=torch.uint8, device=own.device)
        if sha256(theirs.cpu().numpy().tobytes()).digest() != digest:
            raise NoHintError("its hints do not give the decisions that they are of")
        return theirs

    def skip_to_last_routes(self) -> None:
        """Go to the routes behind the last step: those of the forward pass with the quantized weights."""
        self._at = max([self._at, *(end for kind, _, end in self._records() if kind == SIGNS)])

    def _records(self) -> Iterator[tuple[bytes, bytes, int]]:
        """Yield kind and digest of each record from here on, and where it ends; go to the end."""
        while self._at < self._end:
            kind, _, _, digest, _ = self._record()
            yield kind, digest, self._at

    def finish(self) -> None:
        """Raise NoHintError where something is left."""
        if self._at != self._end:
            raise NoHintError("its hints are of more decisions than are made here")

    def _record(self) -> tuple[bytes, int, int, bytes, bytes]:
        kind, length, room, digest = RECORD.unpack(self._take(RECORD.size))
        sizes = {PLAIN: length, COMMITTED: 0}
        return kind, length, room, digest, self._take(sizes[room] if room in sizes else sketch.size(room))

    def _take(self, size: int) -> bytes:
        if self._at + size > self._end:
            raise NoHintError("its hints end before its tuning does")
        self._at += size
        return self._data[self._at - size : self._at]


def follow(autoround: Any, effort: Effort, drift: float, block: Any, data: bytes, run: Callable[[], None]) -> Hinted:
    """Tune a block by its hints: `run` lets AutoRound do it. Return what came of them.

    What the block is given may be off by `drift`, of itself.
    """
    bounds = Bounds(effort.sequence_length, effort.precision, drift)
    bounds.look_at(block)

    def follow_all() -> None:
        followed = Followed(data, losses_of(effort), drift=drift)
        if not 0 <= followed.best_iteration < effort.iterations:
            raise NoHintError(f"its hints say that iteration {followed.best_iteration} was the best")
        with deciding(autoround, followed, bounds):
            run()
        bounds.best(followed.best_iteration)
        followed.finish()

    return explained(follow_all, bounds)


def explained(holding: Callable[[], None], bounds: Bounds) -> Hinted:
    """Return what comes of holding a block against bounds."""
    inconclusive = beyond = ""
    try:
        holding()
    except NoHintError as error:
        inconclusive = str(error)
    except BeyondError as error:
        beyond = str(error)
    return Hinted(
        decided=bounds.decided,
        signs=bounds.signs_taken,
        routes=bounds.routes_taken,
        free_per_million=math.ceil(bounds.free * 1e6),
        furthest_percent=math.ceil(bounds.furthest * 100),
        inconclusive=inconclusive,
        beyond=beyond,
    )


def losses_of(effort: Effort) -> int:
    """Return how many losses stand in hints."""
    return effort.iterations if effort.precision != "float32" else 0


@contextmanager
def deciding(autoround: Any, decisions: Decisions, bounds: "Bounds | None" = None) -> Iterator[None]:
    """Tell `decisions` of what a block's tuning decides; with `bounds` what comes back is held against them."""
    series = installed()
    place = series.step()
    taken = place.function
    best = decisions.best_iteration if isinstance(decisions, Followed) else None
    kept: dict[str, Any] = {}
    iteration = 0

    def step(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal iteration
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        own = signs(parameters)
        count = sum(each.numel() for each in parameters)
        theirs = decisions.decide(SIGNS, own, count)
        if bounds:
            bounds.stepped()
            bounds.signs(iteration, parameters, None if theirs is own else unpacked(theirs, count))
        if iteration == best:
            kept.update(original(*collected))
        iteration += 1
        return taken(optimizer, *args, **kwargs)

    collecting = series.collecting()
    original = collecting.function
    collected: list[Any] = []

    def collect(*given: Any) -> dict[str, Any]:
        """Return what will be filled in the best iteration: AutoRound keeps what it was given last."""
        collected[:] = given
        return kept

    with ExitStack() as stack:
        stack.enter_context(routing(decisions, bounds))
        stack.enter_context(place.replaced(step))
        if bounds:
            stack.enter_context(collecting.replaced(collect))
            stack.enter_context(bounds.measuring(autoround))
        yield


def signs(parameters: list[Any]) -> Any:
    """Return which gradients are positive, and then which are zero, eight to a byte, the first in the highest bit.

    A parameter without a gradient counts as zeros, and so does a gradient that is no number: neither moves anything.
    """
    import torch

    weights = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=parameters[0].device)
    planes = []
    for sign in (1, 0):
        bits = torch.cat(
            [
                torch.full((each.numel(),), sign == 0, device=each.device)
                if each.grad is None
                else (torch.sign(each.grad) == sign).view(-1)
                for each in parameters
            ]
        )
        bits = torch.nn.functional.pad(bits, (0, -len(bits) % 8))
        planes.append((bits.view(-1, 8).to(torch.uint8) * weights).sum(1, dtype=torch.uint8))
    return torch.cat(planes)


@contextmanager
def routing(decisions: Decisions, bounds: "Bounds | None") -> Iterator[None]:
    """Tell `decisions` of the experts to which routers send tokens: whatever `topk` chooses."""
    import torch

    function = torch.topk

    def topk(scores: Any, *args: Any, **kwargs: Any) -> Any:
        values, chosen = function(scores, *args, **kwargs)
        own = chosen.to(torch.int32).contiguous().view(-1).view(torch.uint8)
        theirs = decisions.decide(ROUTES, own, chosen.numel())
        best = chosen
        if theirs is not own:
            chosen = theirs.view(torch.int32).view(chosen.shape).to(chosen.dtype)
            dim = args[1] if len(args) > 1 else kwargs.get("dim", -1)
            if dim not in (-1, scores.dim() - 1) or not ((chosen >= 0) & (chosen < scores.shape[-1])).all():
                raise NoHintError("its hints are of other experts than there are")
            if not chosen.sort(-1).values.diff(dim=-1).all():
                raise BeyondError("its hints send a token to one expert twice")
            values = scores.gather(-1, chosen)
        if bounds:
            bounds.routes(scores, best, chosen)
        return torch.return_types.topk((values, chosen))

    with Place(torch, "topk").replaced(topk), Place(torch.Tensor, "topk").replaced(topk):
        yield


def unpacked(signs: Any, count: int) -> Any:
    """Return the signs, -1, 0 or 1, of so many gradients: `signs` packed them."""
    import torch

    shifts, half = torch.arange(7, -1, -1, device=signs.device), len(signs) // 2
    positive, zero = (
        (plane[:, None] >> shifts & 1).view(-1)[:count].to(torch.int8) for plane in (signs[:half], signs[half:])
    )
    return positive * 2 + zero - 1
