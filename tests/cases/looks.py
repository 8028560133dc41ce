"""One healthy tiny build and five broken ones, made without the worker: what a person has to tell apart by its page.

The codes were drawn from what tuning could have chosen, the records were written by hand around them.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from tests.cases.tiny_models import AFTER_TUNING
from tests.conftest import ROOT
from tests.test_coverage import GPU, HARDWARE, JOURNAL, audit, keyed, known
from tests.tiny import EC, tiny, write_tiny

from requant import passes
from requant.audit.audits import write_audit
from requant.audit.distance import Distance
from requant.audit.retuned import Judgement, Retuned
from requant.build import RECORDED, beside
from requant.card.facts import facts_of
from requant.card.records import read_records
from requant.card.render import render
from requant.checkpoint.checkpoint import Checkpoint, Held, Tensor, open_checkpoint, write_checkpoint
from requant.checkpoint.manifest import make_manifest
from requant.digest import sha256_file
from requant.evidence.journal import Loss, Writer
from requant.evidence.signatures import sign_file
from requant.evidence.statements import Provenance, statement
from requant.formats.gptq import pack
from requant.model.target import target_of
from requant.passes.context import MAIN
from requant.recipe import Recipe, read_recipe

SIZE = "mini"
NAMES = tuple(each.block for each in JOURNAL.blocks)


@dataclass(frozen=True)
class Look:
    """A build as somebody has it: the recipe with its records, the checkpoint, and the base."""

    name: str
    recipe: Recipe
    checkpoint: Path
    base: Path


def _drawn(weight: bytes, shape: tuple[int, int], seed: int, other: int = 0) -> tuple[bytes, bytes]:
    """Codes and scales of a layer, [out, in] in BF16, as some tuning within the reach of six iterations leaves them.

    With the same scales, `other` gives other codes.
    """
    draw, drift = np.random.default_rng(seed), np.random.default_rng([seed, other])
    values = (np.frombuffer(weight, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    values = values.reshape(shape[0], -1, 128)
    low, high = np.minimum(values.min(-1), 0), np.maximum(values.max(-1), 0)
    factor = np.float32(1) - draw.random(low.shape, np.float32) * np.float32(0.04)
    wide = np.where(-low >= high, factor * -low / 8, -(factor * high / 8)).astype(np.float16)
    with np.errstate(all="ignore"):
        steps = np.where(wide[..., None] == 0, 0, values / wide[..., None].astype(np.float32))
    moved = (drift.random(steps.shape, np.float32) - np.float32(0.5)) * np.float32(0.5)
    codes = np.clip(np.rint(steps + moved), -8, 7) + 8
    words = pack(codes.reshape(shape).astype(np.uint8)).astype("<i4")
    return words.tobytes(), np.ascontiguousarray(wide.T).tobytes()


CONTEXT = passes.Context(tiny(SIZE), target_of(EC, SIZE), EC, EC.effort(tiny=True), "0.12.2")


def layer_of(key: str, other: int = 0) -> tuple[bytes, bytes]:
    """Codes and scales of a layer by its name."""
    packed = CONTEXT.target.plan.packed
    weight = b"".join(CONTEXT.weight(packed[key]).content.chunks())
    return _drawn(weight, packed[key].shape, [*packed].index(key), other)


@cache
def tuned() -> Checkpoint:
    """A tiny model mini of ec whose layers were tuned by nobody, and could have been."""
    target, context = CONTEXT.target, CONTEXT
    packed: dict[str, Tensor] = {}
    for key, layer in target.plan.packed.items():
        specs = target.form.specs(layer.shape)
        words, scales = layer_of(key)
        held = {"qweight": words, "qzeros": target.form.zeros(specs["qzeros"]), "scales": scales}
        packed |= {f"{key}.{suffix}": Tensor(spec, Held(held[suffix])) for suffix, spec in specs.items()}
    main = {key: packed[key] if key in packed else context.base.tensors[key] for key in target.main}
    return passes.apply(Checkpoint({MAIN: main}, {}), context, AFTER_TUNING)


def record(place: Path, folder: Path, hardware: Mapping[str, Any] = HARDWARE) -> None:
    """Write manifest, journal and statement of a folder beside a place."""
    manifest = make_manifest(folder)
    beside(place, "manifest.json").write_bytes(manifest.to_json())
    journal = beside(place, "journal.jsonl")
    journal.unlink(missing_ok=True)
    with Writer(journal, JOURNAL.header) as writer:
        for number, block in enumerate(JOURNAL.blocks):
            loss = Loss((0.004 * 3.0**number).hex(), (0.0035 * 2.6**number).hex(), min(5, 2 * number))
            writer.append(replace(block, loss=loss))
    stated = json.loads((ROOT / "builds" / "ec" / f"{SIZE}.intoto.jsonl").read_text())["predicate"]
    definition, run = stated["buildDefinition"], stated["runDetails"]
    needed = {each["name"]: each["digest"]["sha256"] for each in definition["resolvedDependencies"]}
    made = {each["name"]: each["digest"]["sha256"] for each in run["byproducts"]}
    inside = definition["internalParameters"]
    provenance = Provenance(
        recipe=definition["externalParameters"]["recipe"],
        tiny=SIZE,
        environment=inside["environment"],
        lock=needed.pop("lock"),
        hardware=hardware,
        versions=inside["versions"],
        taints=tuple(inside["taints"]),
        dependencies=needed,
        journal=sha256_file(journal),
        log=made["log"],
        started="2026-11-20T08:00:00Z",
        finished="2026-11-20T08:00:31Z",
        worker=run["byproducts"][2]["annotations"],
        sandbox=inside["sandbox"],
        requant="0.1.0",
    )
    files = {name: each.sha256 for name, each in manifest.files.items()}
    beside(place, "intoto.jsonl").write_bytes(statement(files, provenance))


def healthy(folder: Path) -> Look:
    """A build that two builders of the list have audited whole, on two classes of hardware, with its own card.

    It is made once, in the folder `healthy` beside, and copied.
    """
    whole = folder.parent / "healthy"
    if not whole.exists():
        _make(whole)
    if folder != whole:
        shutil.copytree(whole, folder)
    recipe = read_recipe(folder / "builds" / "ec")
    return Look("healthy", recipe, folder / "out" / "ec-mini", folder / "base")


def _make(folder: Path) -> None:
    for name in ("builds", "lockfiles"):
        shutil.copytree(ROOT / name, folder / name)
    for path in ROOT.glob("Dockerfile.*"):
        shutil.copyfile(path, folder / path.name)
    recipe = read_recipe(folder / "builds" / "ec")
    checkpoint, base = folder / "out" / "ec-mini", folder / "base"
    write_checkpoint(tuned(), checkpoint)
    write_tiny(SIZE, base)
    record(recipe.beside(SIZE), checkpoint)
    for name in RECORDED:
        shutil.copyfile(beside(recipe.beside(SIZE), name), beside(checkpoint, name))
    known(folder / "builds", Ada=keyed("ada", folder), Grace=keyed("grace", folder))
    audited(recipe, "Ada", folder, dict.fromkeys(range(4), "identical"))
    audited(recipe, "Grace", folder, dict.fromkeys(range(4), "identical"), hardware=GPU)
    records = read_records(recipe, SIZE)
    (checkpoint / "README.md").write_text(render(records, facts_of(records), "somebody/ec-mini"))


def audited(recipe: Recipe, who: str, keys: Path, judgements: Mapping[int, str], **changes: Any) -> None:
    """Record an audit of the build beside a recipe, signed by its author."""
    manifest = json.loads(recipe.beside(f"{SIZE}.manifest.json").read_text())["files"]
    made = audit(
        judgements,
        auditor=who,
        files={name: each["sha256"] for name, each in manifest.items()},
        journal=sha256_file(recipe.beside(f"{SIZE}.journal.jsonl")),
        **changes,
    )
    made = replace(made, blocks=tuple(_told(each) for each in made.blocks))
    sign_file(write_audit(recipe, made), keyed(who.lower(), keys))


def _told(block: Retuned) -> Retuned:
    if block.judgement is not Judgement.DIFFERENT:
        return block
    first = f"{block.block}.mlp.experts.1.up_proj.qweight"
    return replace(block, distance=Distance(first, 2, 31, {-1: 14, 1: 17}, 3, 2))


def flipped(folder: Path) -> Look:
    """One code of one expert is another: three steps from what it was."""
    look = healthy(folder)
    change(
        look.checkpoint, f"{NAMES[2]}.mlp.experts.1.up_proj.qweight", lambda data: bytes([data[0] ^ 0x08, *data[1:]])
    )
    return replace(look, name="a flipped code")


def failed(folder: Path) -> Look:
    """One of the builders found a block different, on hardware and in an environment as the build's."""
    look = healthy(folder)
    audited(look.recipe, "Grace", folder, {2: "different", 3: "unjudged"}, finished="2026-11-23T09:00:00Z")
    return replace(look, name="a failed audit")


def another_class(folder: Path) -> Look:
    """It was built on other hardware than what is recorded, and some of its codes are others, within reach."""
    look = healthy(folder)
    for layer in (f"{NAMES[1]}.mlp.experts.0.up_proj", f"{NAMES[3]}.mlp.experts.2.gate_proj"):
        change(look.checkpoint, f"{layer}.qweight", partial(_other, layer))
    (look.checkpoint / "README.md").unlink()
    record(look.checkpoint, look.checkpoint, GPU)
    return replace(look, name="a build of another class")


def _other(layer: str, _: bytes) -> bytes:
    return layer_of(layer, other=1)[0]


def without_journal(folder: Path) -> Look:
    """Nobody can say what each block was given: the journal is gone, there and beside the checkpoint."""
    look = healthy(folder)
    for place in (look.recipe.beside(SIZE), look.checkpoint):
        beside(place, "journal.jsonl").unlink()
    (look.checkpoint / "README.md").unlink()
    return replace(look, name="a missing journal")


def lying(folder: Path) -> Look:
    """Its card says more iterations than there were, other samples, and another base."""
    look = healthy(folder)
    card = look.checkpoint / "README.md"
    text = card.read_text()
    for before, after in (("| Iterations | 6", "| Iterations | 1000"), ("| Samples | 16", "| Samples | 512")):
        assert before in text, before
        text = text.replace(before, after)
    card.write_text(text)
    return replace(look, name="a card that lies")


def change(folder: Path, name: str, edit: Callable[[bytes], bytes]) -> None:
    """Change the bytes of a tensor where they stand."""
    checkpoint = open_checkpoint(folder)
    file = next(file for file, held in checkpoint.shards.items() if name in held)
    before, data = checkpoint.shards[file][name].read(), (folder / file).read_bytes()
    assert data.count(before) == 1
    (folder / file).write_bytes(data.replace(before, edit(before)))


LOOKS: Mapping[str, Callable[[Path], Look]] = {
    "healthy": healthy,
    "a flipped code": flipped,
    "a failed audit": failed,
    "a build of another class": another_class,
    "a missing journal": without_journal,
    "a card that lies": lying,
}
