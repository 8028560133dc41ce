"""`verify owner/name`: who built what is published there, how far it has been confirmed, and what would be next.

The rungs are those of docs/levels.md: bytes, structure, weights against the base, blocks tuned again, all rebuilt. The
first two are looked at here: by what the Hub states of its files, and by the headers of its weights. The others are
what people have signed. Nobody's word counts whom the reader does not know, and whatever speaks against it is a no.
"""

import posixpath
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import requant.inspect
from requant.audit.audits import submitted
from requant.audit.builders import Builder
from requant.audit.confirmed import Confirmed, confirmed
from requant.audit.coverage import Coverage, coverage
from requant.build import RECORDED, recorded, stem, words
from requant.build.inputs import LOCAL
from requant.card.records import read_recorded
from requant.checkpoint.files import is_companion, is_index, weight_map
from requant.digest import sha256, side_limit
from requant.errors import CheckpointError, RecipeError
from requant.evidence.outcomes import Result, Told, identity, told
from requant.evidence.signatures import SUFFIX as BUNDLE
from requant.evidence.signatures import Fault, SignatureError, confirm_subjects, verify_file
from requant.evidence.statements import environment_of, hardware_of
from requant.hub import web
from requant.hub.pinned import read_pins
from requant.hub.stated import MAX_FETCHED, confirm_stated
from requant.inspect.baseline import expected, read_baseline
from requant.inspect.remote import headers_at
from requant.progress import Tell, silent
from requant.published.counted import base_of
from requant.published.found import Found
from requant.published.proofs import FOLDER, OUTCOMES, Proofs, other_lock
from requant.published.sealed import Edited, edited

Word = Literal["holds", "fails", "open"]
SHOWN = 6
"""Names that one line has; `--json` has them all."""


@dataclass(frozen=True)
class Rung:
    """One question about a checkpoint: whether it holds, who says so or what was seen, and what speaks against it."""

    name: str
    word: Word
    said: str
    against: tuple[str, ...] = ()


@dataclass(frozen=True)
class Standing:
    """How a published checkpoint stands, at one commit.

    `recorded` says whose record it was held against: a folder of the reader's registry, `the repository` itself, or
    nothing. `known` is whether anybody speaks for it whom the reader knows: the registry, who built it, or who found
    some of it identical.
    `unseen` is what nobody has looked at, `refused` what does not count, and why, and `next` what would raise it.
    """

    checkpoint: str
    build: str
    tiny: str | None
    recorded: str
    known: bool
    rungs: tuple[Rung, ...]
    unseen: tuple[str, ...]
    refused: Mapping[str, str]
    next: str
    fetched: int
    confirmed: Confirmed | None = None

    @property
    def fails(self) -> bool:
        """Whether anything speaks against it."""
        return any(each.word == "fails" for each in self.rungs)

    @property
    def exit_status(self) -> int:
        """1 where something speaks against it, 3 where nobody is known who speaks for it, or too few confirm it."""
        if self.fails:
            return 1
        if self.confirmed:
            return self.confirmed.exit_status
        return 0 if self.known else 3

    def as_json(self) -> dict[str, Any]:
        """Return it as `--json` prints it."""
        value = asdict(self)
        return value | {"confirmed": self.confirmed and self.confirmed.as_json()}


@dataclass
class _Seen:
    """What a repository has, path to SHA-256, and what came over the network to know it."""

    files: dict[str, str] = field(default_factory=dict)
    fetched: int = 0


def standing(
    found: Found,
    known: Mapping[str, Builder],
    *,
    required: int | None = None,
    trusted: frozenset[str] = frozenset(),
    tell: Tell = silent,
) -> Standing:
    """Say how a checkpoint stands, given the builders that the reader knows, by the ids of their keys.

    Raises NotAvailableError for the network, and CheckpointError for what cannot be read.
    """
    seen = _Seen()
    proofs = found.proofs
    structure, header_bytes = _structure(found, proofs, tell)
    if proofs is None:
        rungs: tuple[Rung, ...] = (structure,)
        advice = f"requant identify {found.name}; then requant check {found.name} --base BASE"
        unseen = ("bytes (nothing is recorded)", "weights against the base", "blocks")
        return Standing(found.name, "", None, "nothing", False, rungs, unseen, {}, advice, found.fetched + header_bytes)
    covered = coverage(proofs.recipe, proofs.tiny, known)
    bytes_rung = _bytes(found, proofs, seen)
    weights, refused = _weights(proofs, known)
    if weights.word != "open" and not found.registry:
        weights = replace(weights, said=f"{weights.said}; which files are the base's is the repository's word")
    others: tuple[Rung, ...] = (weights, _blocks(covered), _rebuilt(covered))
    if bytes_rung.word == "fails":
        others = tuple(map(_of_recorded, others))
    seal = edited(found, known, seen.files)
    rungs = (_built(found, proofs, covered, seal), bytes_rung, structure, *others)
    asked = confirmed(covered, known, required, trusted) if required or trusted else None
    if asked and bytes_rung.word != "holds":
        asked = Confirmed(**{**vars(asked), "identical": False})
    return Standing(
        checkpoint=found.name,
        build=proofs.recipe.name,
        tiny=proofs.tiny,
        recorded=str(found.registry) if found.registry else "the repository",
        known=bool(found.registry or covered.maker or any(row.parties for row in covered.rows)),
        rungs=rungs,
        unseen=tuple(_unseen(rungs, covered, refused)),
        refused={**covered.stale, **refused, **found.astray, **seal.told, **_unlike(found)},
        next=_next(found, proofs, rungs, covered),
        fetched=found.fetched + header_bytes + seen.fetched,
        confirmed=asked,
    )


def _of_recorded(rung: Rung) -> Rung:
    """Return what was said of recorded files, where the published ones are others."""
    return replace(rung, word="open" if rung.word == "holds" else rung.word, said=f"of the recorded files: {rung.said}")


def _built(found: Found, proofs: Proofs, covered: Coverage, seal: Edited) -> Rung:
    recipe, statement = proofs.recipe, recorded(proofs.recipe, proofs.tiny, RECORDED[2])
    hardware = hardware_of(statement)
    on = hardware.get("model") or hardware.get("accelerator") or "unknown hardware"
    base = f"{recipe.base.repository}@{recipe.base.revision[:8]}"
    made = f"{recipe.scheme.name} of {f'a tiny model of {base}' if proofs.tiny else base}"
    how = f"{made}, in environment {environment_of(statement)[:12]}, on {on}"
    if seal.against:
        return Rung("built", "fails", f"edited since {seal.by} published it; {how}", seal.against)
    if not found.registry and (fault := _contradiction(proofs)):
        return Rung("built", "fails", f"its records contradict each other; {how}", (fault,))
    if covered.maker:
        return Rung("built", "holds", f"by {covered.maker.label}: {how}")
    return Rung("built", "open", f"by nobody whom you know; its statement says: {how}")


def _contradiction(proofs: Proofs) -> str:
    """Say where recipe, manifest, journal and statement of a repository are not of one build; nothing where they are.

    Each can be true, and signed, and stand beside another's: a recipe that a reader would run, say.
    """
    recipe = proofs.recipe
    try:
        base, text = (read_pins(recipe.beside(each.files)) for each in (recipe.base, recipe.calibration))
        read_recorded(recipe, proofs.tiny, recipe.beside(stem(proofs.tiny)), base, text)
        return other_lock(recipe, proofs.tiny, recorded(recipe, proofs.tiny, RECORDED[2]))
    except (CheckpointError, RecipeError) as error:
        return str(error).replace(f"{recipe.path.parent.parent}/", "")


def _bytes(found: Found, proofs: Proofs, seen: _Seen) -> Rung:
    """Hold what the Hub states of its files against the manifest; small files, which it names by SHA-1, are read."""
    stated, manifest = found.listing.stated, proofs.manifest.files
    against = [f"missing file: {path}" for path in manifest if path not in stated]
    small = [path for path in manifest if path in stated and stated[path].sha256 is None]
    if sum(stated[path].bytes for path in small) > MAX_FETCHED:
        raise CheckpointError(f"{found.name}: more than {MAX_FETCHED:,} bytes of files that are not stored as LFS")
    texts = {path: _small(found, path, seen) for path in small}
    for path, each in stated.items():
        if path in manifest:
            digest = seen.files[path] = each.sha256 or sha256(texts[path])
            if (each.bytes, digest) != (manifest[path].bytes, manifest[path].sha256):
                against.append(f"changed file: {path}")
    named = {name for path, data in texts.items() if is_index(path) for name in _indexed(path, data)}
    against += [
        f"extra file: {path}" for path in stated if path not in manifest and (path in named or not is_companion(path))
    ]
    if against:
        return Rung("bytes", "fails", f"not the {len(manifest):,} recorded files", tuple(against))
    read = (
        f"; {len(small)} read, {len(manifest) - len(small)} as the Hub states them"
        if len(small) < len(manifest)
        else ""
    )
    return Rung("bytes", "holds", f"the {len(manifest):,} recorded files by SHA-256{read}")


def _small(found: Found, path: str, seen: _Seen) -> bytes:
    said, url = found.listing.stated[path], found.listing.address(path)
    data = web.whole(url, "", found.patience, side_limit(path))[1] if said.bytes else b""
    confirm_stated(url, said, data)
    seen.fetched += len(data)
    return data


def _indexed(path: str, data: bytes) -> set[str]:
    try:
        files = set(weight_map(data).values())
    except ValueError:
        return set()
    return {posixpath.normpath(posixpath.join(posixpath.dirname(path), file)) for file in files}


def _structure(found: Found, proofs: Proofs | None, tell: Tell) -> tuple[Rung, int]:
    """Ask the default loader, and hold the headers against the manifest; return how many bytes that took, too."""
    known = expected(read_baseline(proofs.recipe)) if proofs and found.registry else {}  # no excuses of a stranger's
    try:
        headers = headers_at(found.listing, found.patience, tell)
        inspected = requant.inspect.inspect(headers, known=known)
    except CheckpointError as error:
        return Rung("structure", "fails", "cannot be read", (str(error),)), 0
    against = [f"{each.rule}: {each.consequence}" for each in inspected.errors]
    if proofs:
        there = {
            name: (file, spec.dtype, spec.shape)
            for file, inside in headers.shards.items()
            for name, spec in inside.items()
        }
        told = {name: (each.file, each.dtype, each.shape) for name, each in proofs.manifest.tensors.items()}
        astray = sorted({name for name, _ in there.items() ^ told.items()})
        against += [f"tensor: {name}" for name in astray]
    count = f"{inspected.tensors:,} tensors, headers read"
    word: Word = "fails" if against else "open" if inspected.unmodelled else "holds"
    said = f"{inspected.outcome} for {', '.join(inspected.loaders)}, {count}"
    return Rung("structure", word, said, tuple(against)), headers.fetched


def _weights(proofs: Proofs, known: Mapping[str, Builder]) -> tuple[Rung, dict[str, str]]:
    """Return what signed outcomes of `check` say of these files, and which of them do not count, and why."""
    refused: dict[str, str] = {}
    said: dict[str, list[str]] = {}
    against: list[str] = []
    folder = proofs.recipe.beside(OUTCOMES)
    names = submitted(folder)
    base = base_of(proofs) if names else None
    for name in names:
        where = f"{OUTCOMES}/{name}"
        try:
            signed = verify_file(folder / name, [each.key for each in known.values()])
            outcome = told(signed)
            if outcome is None or outcome.verb not in ("verify", "check"):
                raise ValueError("not the outcome of verify or check")
            if known[signed.key.id].expired:
                raise ValueError(f"the key of {known[signed.key.id].name} has expired")
            if name != f"{sha256((folder / name).read_bytes())}{BUNDLE}":
                raise ValueError("its name is not the SHA-256 of its bytes")
            confirm_subjects(signed, proofs.files, where)
            if outcome.verb == "check" and (fault := _unlike_build(outcome, proofs, base)):
                raise ValueError(fault)
        except SignatureError as error:
            refused[where] = (
                "signed with a key that you do not know" if error.fault is Fault.UNKNOWN_KEY else error.said
            )
            continue
        except ValueError as error:
            refused[where] = str(error)
            continue
        if outcome.verb == "check":
            name, part = known[signed.key.id].name, _part(outcome)
            kind = Result.WARNED if part and outcome.result is Result.PASSED else outcome.result
            said.setdefault(kind, []).append(f"{name} ({outcome.outcome}{part})")
            if kind is Result.FAILED:
                against.append(f"{name}: {_findings(outcome)}")
    failed, passed, others = (said.get(each, []) for each in (Result.FAILED, Result.PASSED, Result.WARNED))
    if failed or passed:
        word: Word = "fails" if failed else "holds"
        return Rung(
            "weights", word, f"checked against the base by {', '.join([*failed, *passed])}", tuple(against)
        ), refused
    aside = f"; in part by {', '.join(others)}" if others else ""
    return Rung("weights", "open", f"checked against the base by nobody whom you know{aside}"), refused


def _part(outcome: Told) -> str:
    """Say how much a check has read, where that was not all; nothing where it was."""
    read, total = outcome.details.get("read"), outcome.details.get("total")
    if read == total:
        return ""
    if isinstance(read, int) and isinstance(total, int):
        return f", {read:,} of {total:,} bytes"
    return ", of a part"


def _findings(outcome: Told) -> str:
    """Return what a check has found wrong, in kinds."""
    found = outcome.details.get("findings")
    kinds = [f"{count} x {kind}" for kind, count in found.items()] if isinstance(found, dict) else []
    return ", ".join(kinds) or outcome.outcome


def _unlike_build(outcome: Told, proofs: Proofs, base: Mapping[str, str] | None) -> str:
    """Say why a check was not of this build: of other files than its `base` has, say; nothing where it was."""
    tiny = outcome.details.get("tiny")
    if outcome.against.get("recipe") != proofs.recipe.digest or tiny != (proofs.tiny is not None):
        return "held against another recipe, or against none"
    if not base:
        return "nothing records which files the base has"
    return "" if outcome.against.get("base") == identity(base) else "held against other files than those of the base"


def _blocks(covered: Coverage) -> Rung:
    rows = (*covered.blocks, covered.untuned)
    negatives = tuple(f"{result.party.label}: {result.what}" for row in rows for result in covered.against(row))
    verified = sum(row.parties > 0 for row in covered.blocks)
    claimed = sum(row.parties == 0 and row.claims > 0 for row in covered.blocks)
    names = {name for row in rows for by in row.identical.values() for name in by}
    said = f"{verified} of {len(covered.blocks)} tuned again to the same bits"
    said += f", by {_some(sorted(names))}" if names else " by anybody whom you know"
    if verified == len(covered.blocks) and not covered.untuned.parties:
        said += "; what is not tuned was compared by nobody whom you know"
    said += f"; {claimed} more by names that nobody has signed for" if claimed else ""
    whole = verified == len(covered.blocks) and covered.untuned.parties > 0
    return Rung("blocks", "fails" if negatives else "holds" if whole else "open", said, negatives)


def _rebuilt(covered: Coverage) -> Rung:
    negatives = tuple(f"{result.party.label}: {result.what}" for result in covered.against(covered.rebuilt))
    names = sorted({name for by in covered.rebuilt.identical.values() for name in by})
    said = f"all of it made again to the same bytes by {_some(names) or 'nobody whom you know'}"
    return Rung("rebuilt", "fails" if negatives else "holds" if names else "open", said, negatives)


def _some(names: Iterable[str]) -> str:
    found = list(names)
    return ", ".join(found[:SHOWN]) + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")


def _unseen(rungs: Iterable[Rung], covered: Coverage, refused: Iterable[str]) -> Iterator[str]:
    """Yield what nobody has looked at: not even somebody whom the reader does not know, or whose word is `refused`."""
    claimed = any(each.startswith(f"{OUTCOMES}/") for each in refused)
    if not claimed and any(each.name == "weights" and each.word == "open" for each in rungs):
        yield "weights against the base"
    if bare := [str(number) for number, row in enumerate(covered.blocks) if not (row.parties or row.claims)]:
        some = f"block{'s' * (len(bare) > 1)} {','.join(bare)}"
        yield some if len(bare) < len(covered.blocks) else "all blocks"
    if not (covered.untuned.parties or covered.untuned.claims):
        yield "what is not tuned"


def _unlike(found: Found) -> dict[str, str]:
    return dict.fromkeys(found.others, "records other bytes of this very recipe: of other hardware, or another build")


def _next(found: Found, proofs: Proofs, rungs: tuple[Rung, ...], covered: Coverage) -> str:
    """Return the command that would raise the lowest rung that does not hold yet, or look again at one that fails."""
    word = {each.name: each.word for each in rungs}
    recipe = shlex.quote(str(found.registry or f"NAME/{FOLDER}/builds/{proofs.recipe.name}"))
    tiny, fetched = words(proofs.tiny), f"requant fetch {found.name} --out NAME; "
    if "fails" in (word["built"], word["bytes"], word["structure"]):
        return f"requant verify {found.listing.repository}@COMMIT, of an earlier commit; or ask whoever published it"
    lowest = next((each for each in ("weights", "blocks", "rebuilt") if word[each] == "fails"), "")
    lowest = lowest or next((each for each in ("weights", "blocks", "rebuilt") if word[each] == "open"), "")
    if lowest == "weights" and proofs.tiny:
        base = f"requant tiny {recipe} --size {proofs.tiny} --out BASE; "
        return f"{fetched}{base}requant check NAME --base BASE --recipe {recipe} --tiny --sign KEY"
    if lowest == "weights":
        base = f"{proofs.recipe.base.repository}@{proofs.recipe.base.revision}"
        return f"requant check {found.name} --base {'BASE' if base.startswith(LOCAL) else shlex.quote(base)}"
    if lowest == "blocks":
        open_ones = [number for number, row in enumerate(covered.blocks) if not row.parties or covered.against(row)]
        blocks = ",".join(map(str, open_ones)) or "0"
        return (
            f"{fetched}requant audit NAME --recipe {recipe} --blocks {blocks}{tiny} --auditor YOU --record --sign KEY"
        )
    if lowest == "rebuilt":
        return f"{'' if found.registry else fetched}requant rebuild {recipe}{tiny} --sign KEY --record"
    return f"{fetched.removesuffix('; ')}, which reads every byte"
