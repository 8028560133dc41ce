"""Layers of which a search over ranges made the scales: what is said of one depends on the others of the file.

A search is recomputed as far as machines agree, in the forms that are known. A group accuses where the form is, which
groups tell and not layers: whoever moves ranges moves few of them, and a form that is not known, such as a GPU's,
chooses otherwise in many groups of every layer.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from requant.check.findings import CLEARLY, LESS, NEAR, Finding, Measured, accuses
from requant.formats.codec import Codec
from requant.formats.compressed_tensors import SCALE, Observed
from requant.formats.observers import USUAL, Search
from requant.rounding.mse import CHOSEN, SEARCHED

MOST = 3 / 4
"""Of the layers of a format, what has to agree with a form before it accuses the others; or else nearly all groups."""
ENOUGH = 1024
"""Groups that agreeing layers have to have."""
FEW = 1 / 64
"""Of the groups of a layer that agrees with a form, those that may be otherwise.

Forms that are in a release and not modelled, as simulated by their sources, choose otherwise in 5% of the groups of a
layer at least, if they err more than rounding explains in any of them: of 1,024, no more than 16 would be so once in
10^9 layers."""
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
    def search(self) -> Search:
        """What the configuration says of the search."""
        return self.codec.search if isinstance(self.codec, Observed) else USUAL

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
    def groups(self) -> int:
        """How many groups were read."""
        return -(-self.measured.counts.codes // (self.kind[1] or self.measured.counts.codes or 1))

    @property
    def exact(self) -> bool:
        """Whether every choice was made again."""
        way, found = self.settled
        return way.startswith(CHOSEN) and not found

    @property
    def within_reach(self) -> bool:
        """Whether only the ranges that its scales tell make it, whichever they are."""
        return self.settled[0].startswith(SEARCHED)

    @property
    def form(self) -> tuple[Finding, ...] | None:
        """What is found by that form of the search which takes most of the ranges; None if none was tried."""
        some = [found for way, found in self.measured.findings.items() if way.startswith(CHOSEN)]
        return min(some, key=lambda found: self._scales(filter(accuses, found)), default=None)

    @property
    def moved(self) -> int:
        """How many groups have another range than that form takes."""
        return self.groups if self.form is None else self._scales(filter(accuses, self.form))

    @property
    def strange(self) -> int:
        """How many scales no range gives."""
        return self._scales(self.settled[1])

    @property
    def worse(self) -> list[Finding]:
        """How many groups err more than by the range that the form takes, by more than rounding explains, as a note."""
        return [each for each in self.form or () if each.kind == CLEARLY]

    def named(self) -> list[Finding]:
        """Return these, or else how many groups have another range at all, as a note."""
        apart = (each for each in self.form or () if accuses(each) and each.tensor.endswith(f".{SCALE}"))
        return self.worse or [replace(each, kind=LESS) for each in apart]

    def _scales(self, found: Iterable[Finding]) -> int:
        return sum(each.count for each in found if each.tensor.endswith(f".{SCALE}"))

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

    Where none is stated, and most of a format's layers need none, what needs one is damaged. Where a form is known, a
    group accuses that clearly does not have the range by which it errs least, and a scale that no range gives; the
    latter also where ranges alone give most layers. Else such a layer was made in another way. What errs hardly more is
    named. `codecs` are those of all layers; `judged` says how a layer was made by what was measured.
    """
    made: dict[str, Settled] = {}
    every, needing = Counter(codecs.values()), Counter(each.codec for each in sought.values())
    counted = Counter(each.kind for each in sought.values())
    told = Counter(each.kind for each in sought.values() if not each.settled[1])
    known = _known(sought)
    for name, each in sought.items():
        near = NEAR, (*each.measured.findings.get(NEAR, ()), *each.named())
        if not each.search.stated and not each.exact and 2 * needing[each.codec] < every[each.codec]:
            made[name] = judged(name, each.without(CHOSEN, SEARCHED))
        elif each.strange and name not in known and told[each.kind] < MOST * counted[each.kind]:
            made[name] = near
        elif each.within_reach and each.worse:
            way, found = judged(name, each.without(SEARCHED))
            made[name] = (way, found) if name in known and way.startswith(CHOSEN) else near
        elif each.within_reach:
            made[name] = each.settled[0], (*each.settled[1], *each.named())
    return made


def _known(sought: Mapping[str, Sought]) -> set[str]:
    """Return the layers of which a form is known: by their own groups, or by those of others that are like them."""
    known: set[str] = set()
    kinds = {each.kind for each in sought.values()}
    for kind in kinds:
        some = {name: each for name, each in sought.items() if each.kind == kind}
        counts = {name: each.moved for name, each in some.items()}
        agree = {name: each.groups for name, each in some.items() if counts[name] <= FEW * each.groups}
        most = len(agree) >= MOST * len(some)
        most |= sum(counts.values()) <= FEW * sum(each.groups for each in some.values())
        if most and sum(agree.values()) >= ENOUGH:
            known |= some.keys()
        known |= {name for name, groups in agree.items() if groups >= ENOUGH}
    return known
