"""Layers of which a search over ranges made the scales: what is said of one depends on the others of the file.

A search is recomputed as far as machines agree, in the forms that are known. So a group accuses only in a file of which
that form makes nearly all else.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from requant.check.findings import NEAR, Finding, Measured
from requant.formats.codec import Codec
from requant.formats.compressed_tensors import SCALE, Observed
from requant.formats.observers import USUAL
from requant.rounding.mse import CHOSEN, SEARCHED

MOST = 3 / 4
"""Of the layers of a format, what the search has to make again, to the last choice, before it accuses the others."""
ENOUGH = 1024
"""Groups that these have to have: a form of the search that is not known, such as a GPU's, chooses otherwise in some of
them."""
TIES = ", but for ties that rounding decides"
"""What the way of a layer ends with where the search could have taken other ranges too."""
Settled = tuple[str, tuple[Finding, ...]]


@dataclass(frozen=True)
class Sought:
    """A layer of so many inputs that a search makes: its format, how it was made so far, and what was measured."""

    codec: Codec
    columns: int
    settled: Settled
    measured: Measured

    @property
    def stated(self) -> bool:
        """Whether the configuration says that there was a search."""
        search = self.codec.search if isinstance(self.codec, Observed) else USUAL
        return search is None or search.stated

    @property
    def kind(self) -> tuple[Codec, int]:
        """Its format, and how many weights share a scale: by that a GPU has other kernels, which round otherwise.

        0 where all of them do.
        """
        if not isinstance(self.codec, Observed):
            return self.codec, 1
        height, width = self.codec.grid.steps(1, self.columns)
        return self.codec, height * width if self.codec.grid.height else 0

    @property
    def exact(self) -> bool:
        """Whether every choice was made again."""
        way, found = self.settled
        return way.startswith(CHOSEN) and not found

    @property
    def coarse(self) -> bool:
        """Whether its codes err by more than any that a search takes.

        Where the sum of a group's n errors to the power p is no greater than in the whole range, that of their squares
        is greater by no more than n^|1 - 2/p| (Hoelder's inequality).
        """
        search = self.codec.search if isinstance(self.codec, Observed) else None
        counts = self.measured.counts
        most = float(self.kind[1] or counts.codes) ** abs(1 - 2 / (search or USUAL).norm)
        return bool(counts.missed > most * counts.best)

    @property
    def within_reach(self) -> bool:
        """Whether only the ranges that its scales tell make it, whichever they are."""
        return self.settled[0].startswith(SEARCHED)

    def is_other(self, known: bool) -> bool:
        """Say whether no search made it: its codes err too much, or the form is `known` and made hardly any of it."""
        return self.coarse or (known and not self.measured.counts.groups)

    def of_scales(self, found: Iterable[Finding]) -> list[Finding]:
        """Return the findings that are of scales."""
        return [each for each in found if each.tensor.endswith(f".{SCALE}")]

    def named(self) -> list[Finding]:
        """Return how many groups do not have the range that the search takes, as a note."""
        chosen = [found for way, found in self.measured.findings.items() if way.startswith(CHOSEN)]
        some = [each for found in chosen for each in self.of_scales(found)]
        return [replace(min(some, key=lambda each: each.count), kind="a range errs less")] if some else []

    def without(self, *ways: str) -> Measured:
        """Return what was measured, but for some ways."""
        some = {way: found for way, found in self.measured.findings.items() if not way.startswith(ways)}
        return replace(self.measured, findings=some)


def needs_search(way: str) -> bool:
    """Say whether a way is one of a search."""
    return way.startswith((CHOSEN, SEARCHED))


def weighed(
    sought: Mapping[str, Sought], codecs: Mapping[str, Codec], judged: Callable[[str, Measured], Settled]
) -> dict[str, Settled]:
    """Return what is said otherwise of layers that only a search makes, by the other layers of the file.

    Where none is stated, and most of a format's layers need none, what needs one is damaged. Where it makes most of
    those that do again, a group accuses that clearly does not have the range by which it errs least; where it may have
    made most of them, a scale that no range gives. All else is named, or was made in another way. `codecs` are those of
    all layers; `judged` says how a layer was made by what was measured.
    """
    made: dict[str, Settled] = {}
    every, needing = Counter(codecs.values()), Counter(each.codec for each in sought.values())
    counted = Counter(each.kind for each in sought.values())
    exact = Counter(each.kind for each in sought.values() if each.exact)
    fitting = Counter(each.kind for each in sought.values() if not each.settled[1])
    groups: Counter[tuple[Codec, int]] = Counter()
    for each in sought.values():
        groups[each.kind] += each.measured.counts.groups if each.exact else 0
    for name, each in sought.items():
        kind, most = each.kind, MOST * counted[each.kind]
        known = exact[kind] >= most and groups[kind] >= ENOUGH
        if not each.stated and not each.exact and 2 * needing[each.codec] < every[each.codec]:
            made[name] = judged(name, each.without(CHOSEN, SEARCHED))
        elif (each.of_scales(each.settled[1]) and fitting[kind] < most) or (each.within_reach and each.is_other(known)):
            made[name] = NEAR, each.measured.findings.get(NEAR, ())
        elif each.within_reach:
            way, found = judged(name, each.without(SEARCHED))
            accused = known and each.measured.counts.worse and way.startswith(CHOSEN)
            made[name] = (way, found) if accused else (each.settled[0], (*each.settled[1], *each.named()))
    return made
