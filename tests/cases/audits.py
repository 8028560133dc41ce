"""Audits that nobody made: one to change by hand, and any that could be written."""

from dataclasses import replace
from itertools import count
from typing import Any

from hypothesis import strategies as st

from requant.audit.audits import party
from requant.audit.challenge import Challenge, draw_steps
from requant.audit.distance import Distance
from requant.audit.retuned import Audit, Judgement, Retuned
from requant.audit.untuned import KINDS, NAMED, Deviation, Untuned
from requant.protocol import Hinted

HARDWARE = {"accelerator": "cpu", "caps": {"MKL_CBWR": "COMPATIBLE"}, "model": "Xeon (6/207)", "mig": False, "cores": 2}
AUDIT = Audit(
    recipe="01" * 32,
    tiny="mini",
    environment="02" * 32,
    base="03" * 32,
    journal="04" * 32,
    files={"model.safetensors": "06" * 32, "config.json": "07" * 32},
    companions=("README.md",),
    hardware=HARDWARE,
    challenge=None,
    count=4,
    blocks=(
        Retuned("layers.0", 0, Judgement.IDENTICAL),
        Retuned("layers.2", 2, Judgement.DIFFERENT, "", Distance("layers.2.q.qweight", 2, 3, {-1: 1, 2: 2}, 1, 7)),
    ),
    untuned=Untuned((Deviation("changed tensor", "lm_head.weight", "other bytes"),), 1),
    auditor="Ada",
    finished="2026-11-21T22:00:00Z",
    requant="0.1.0",
)
HINTED = Hinted(decided=6_289_920, signs=4, routes=1, free_per_million=36, furthest_percent=8)
DRAWN = next(
    drawn
    for drawn in (draw_steps(f"drand {number}", "04" * 32, ("layers.0", "layers.1"), 20, 2) for number in count())
    if drawn.by_block.keys() == {0}
)
FOLLOWED = replace(AUDIT, portable=True, blocks=(replace(AUDIT.blocks[0], hinted=HINTED),))

STEPPED = replace(FOLLOWED, steps=DRAWN)

text = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=6)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
whole = st.integers(0, 2**53 - 1)
leaves = st.none() | st.booleans() | whole | text | st.just("")
hardware = st.dictionaries(text, leaves | st.lists(leaves, max_size=2) | st.dictionaries(text, leaves), min_size=1)
hinted = st.builds(Hinted, whole, whole, whole, whole, whole)
lost = st.builds(Hinted, whole, whole, whole, whole, whole, st.just("") | text, st.just("") | text)
steps = st.dictionaries(st.integers(-15, 15).filter(bool), st.integers(1, 9))


@st.composite
def distances(draw: st.DrawFn) -> Distance:
    counted = draw(steps)
    return Distance(draw(text), draw(whole), sum(counted.values()), counted, draw(whole), draw(whole))


@st.composite
def untuneds(draw: st.DrawFn) -> Untuned:
    each = st.builds(Deviation, st.sampled_from(KINDS), text, st.just("") | text)
    named = draw(st.lists(each, max_size=3))
    many = draw(st.booleans()) and bool(named)
    some = (named * NAMED)[:NAMED] if many else named
    return Untuned(tuple(some), len(some) + (draw(st.integers(0, 9)) if many else 0), draw(st.just("") | text))


@st.composite
def audits(draw: st.DrawFn) -> Audit:
    """Any audit that could be written."""
    indices = sorted(draw(st.sets(st.integers(0, 50), min_size=1, max_size=5)))
    count = indices[-1] + 1 + draw(st.integers(0, 3))
    portable = draw(st.booleans())
    blocks = []
    for index in indices:
        judgement = draw(st.sampled_from(Judgement))
        distance = None if judgement is Judgement.IDENTICAL else draw(st.none() | distances())
        ended = draw(hinted if judgement is Judgement.IDENTICAL else st.none() | hinted | lost)
        reason = draw(st.just("") | text)
        name = f"{draw(text)}.{index}"
        blocks.append(Retuned(name, index, judgement, reason, distance, ended if portable else None))
    values: dict[str, Any] = {key: draw(digests) for key in ("recipe", "environment", "base")}
    return replace(
        AUDIT,
        **values,
        tiny=draw(st.none() | text),
        journal=draw(st.none() | digests),
        files={**draw(st.dictionaries(text, digests)), f"{draw(text)}.safetensors": draw(digests)},
        companions=tuple(draw(st.lists(text, max_size=3))),
        hardware=draw(hardware),
        challenge=draw(st.none() | st.builds(Challenge, text, st.integers(1, count))),
        count=count,
        blocks=tuple(blocks),
        untuned=draw(untuneds()),
        auditor=party(draw(text)),
        requant=draw(text),
        portable=portable,
    )
