"""A build of full size as nobody has one here: 40 blocks and 31,030 layers by the names of `ec`, and drawn numbers."""

from collections.abc import Iterator
from functools import cache

import numpy as np
from tests.test_coverage import GPU, HARDWARE

from requant.audit.confirmed import Confirmed
from requant.audit.coverage import REBUILT, UNTUNED, Coverage, Covered, Label
from requant.audit.parties import Party
from requant.check.checked import UNKNOWN, Checked
from requant.check.findings import BINS, TUNED, Counts, Finding
from requant.checkpoint.manifest import FileRecord, Manifest
from requant.digest import sha256
from requant.evidence.journal import Block, Header, Journal, Loss
from requant.report.evidence import Evidence, Kept
from requant.rounding.reach import loosest
from requant.verdict import Outcome, Verdict

BLOCKS = [f"model.language_model.layers.{number}" for number in range(40)]
EXPERTS = 256
ATTENTION = {True: ("q", "k", "v", "o"), False: ("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj")}
OWN, OTHER = "NVIDIA H200 [0a1b2c3d]", "AMD EPYC (25/1) [f5728cb7], by hints"


def layers() -> Iterator[str]:
    """The names of all packed layers of ec, in the order of the blocks."""
    for number, block in enumerate(BLOCKS):
        full = number % 4 == 3
        yield from (
            f"{block}.self_attn.{each}_proj" if full else f"{block}.linear_attn.{each}" for each in ATTENTION[full]
        )
        for each in ("gate", "up", "down"):
            yield f"{block}.mlp.shared_expert.{each}_proj"
            yield from (f"{block}.mlp.experts.{expert}.{each}_proj" for expert in range(EXPERTS))


@cache
def checked() -> Checked:
    """A check that found one code out of reach, in an expert."""
    draw = np.random.default_rng(7)
    names = [*layers()]
    moved, least = 2e5 + 3e4 * draw.standard_normal(len(names)), draw.integers(54, 63, len(names))
    bins = [tuple(4096 * (each in (place, 63)) for each in range(BINS + 1)) for place in range(BINS)]
    counts = {
        layer: Counts(1 << 20, int(many), 0.4, 0.7, bins[place])
        for layer, many, place in zip(names, moved, least, strict=True)
    }
    bad = f"{BLOCKS[17]}.mlp.experts.101.up_proj"
    found = Finding("code out of reach", f"{bad}.qweight", 1, (12, 700), "found 3, least 6, greatest 7")
    ways = dict.fromkeys(counts, TUNED) | {bad: UNKNOWN}
    return Checked.of([found], loosest(), len(counts), ways, {}, counts, 1 << 36, 1 << 36, 0, ())


def evidence() -> Evidence:
    """All that a page can have of it."""
    draw = np.random.default_rng(8)
    blocks = []
    for number, name in enumerate(BLOCKS):
        before = 1e-5 * 1.25**number * draw.uniform(0.7, 1.4)
        loss = Loss(float(before).hex(), float(before * draw.uniform(0.4, 0.9)).hex(), int(draw.integers(20, 400)))
        blocks.append(Block(name, {}, "", loss, {}, {}))
    header = Header("01" * 32, None, "02" * 32, "03" * 32, "04" * 32, len(BLOCKS))
    files = {
        f"model-{number:05d}-of-00010.safetensors": FileRecord(2 << 30, sha256(b"%d" % number)) for number in range(10)
    }
    kept = Kept("checkpoint", Manifest(files, {}), Journal(header, tuple(blocks)), GPU)
    rows = [*BLOCKS, UNTUNED]
    by = {
        row: tuple(name for name, every in (("Ada", 1), ("Grace", 2), ("Edsger", 5)) if number % every == 0)
        for number, row in enumerate(rows)
    }
    parties = {name: Party(sha256(name.encode()), name) for name in ("Ada", "Grace", "Edsger")}
    covered = [
        Covered(row, {OWN: names[:2], **({OTHER: names[2:]} if names[2:] else {})}, {}, (), (), ())
        for row, names in by.items()
    ]
    label = Label(
        "audit",
        Outcome.IDENTICAL,
        "Ada",
        parties["Ada"],
        OWN,
        "02" * 32,
        True,
        "recorded",
        "2026-11-21T22:00:00Z",
        False,
    )
    whole = Coverage(
        build="full",
        tiny=None,
        own=OWN,
        blocks=tuple(covered[:-1]),
        untuned=covered[-1],
        rebuilt=Covered(REBUILT, {}, {}, (), (), ()),
        counted={name: Label(**{**vars(label), "party": party}) for name, party in parties.items()},
        stale={},
        hardware={OWN: GPU, OTHER: HARDWARE},
        named=3,
        maker=None,
        statement="",
    )
    confirmed = Confirmed(1, by, "", (), 0, {}, {}, {}, tiny=None)
    return Evidence(
        "full",
        folder="full",
        recorded=kept,
        own=kept,
        covered=whole,
        confirmed=confirmed,
        verified=Verdict(Outcome.IDENTICAL),
        checked=checked(),
    )
