"""Audits on disk: in-toto Statements v1 with a predicate of our own, one file per audit, its signature beside it.

They stand in `builds/<name>/audits/`, each under the SHA-256 of its own bytes, so that files of different people
never collide and none can be edited in place. What comes from a stranger's pull request is read here: strictly, and
anything that `statement` would not have written is refused. The form of the predicate: docs/audit.md.
"""

import os
import re
import reprlib
import stat
import unicodedata
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from requant.audit.challenge import MAX_TEXT, Challenge, Step, StepChallenge, is_text
from requant.audit.distance import Distance
from requant.audit.retuned import Audit, Judgement, Retuned
from requant.audit.untuned import KINDS, NAMED, Deviation, Untuned
from requant.checkpoint.files import SUFFIX as WEIGHTS
from requant.digest import MAX_STATEMENT, read_whole, sha256, strict_json
from requant.errors import CheckpointError, UsageError
from requant.evidence import signatures
from requant.evidence.statements import in_toto
from requant.protocol import Hinted
from requant.recipe import Recipe
from requant.records import record

FOLDER = "audits"
SUFFIX = signatures.STATEMENT
PREDICATE_TYPE = "urn:requant:audit:4"
PORTABLE = "urn:requant:portable-audit:1"
"""Of an audit by hints: it says as much of the codes, but not of losses and outputs, and hints leave some freedom."""
STEPS = "urn:requant:step-audit:1"
"""Of an audit of single steps, drawn and revealed: its codes follow from a state, and of how that came about it knows
these."""
MOST = 2**53
"""The first whole number that JSON readers take for another one."""

_HEX = re.compile("[0-9a-f]{64}")
_TIME = re.compile(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
Value = TypeVar("Value")


def party(auditor: str) -> str:
    """Return the one form of what an auditor calls themselves: single spaces, none around it.

    Raises UsageError for what cannot stand in a statement: so ask before tuning, not after.
    """
    name = " ".join(auditor.split())
    if not name or not is_text(name):
        raise UsageError(f"--auditor {reprlib.repr(auditor)}: not a name of at most {MAX_TEXT} printable characters")
    return name


def same_party(auditor: str) -> str:
    """Return what parties are counted by: names that look alike to their readers have one, however they are encoded.

    NFKC and case folding (Unicode 15, 3.13: a caseless match of compatibility equivalents), without what shows nothing.
    Letters of two alphabets that look alike stay two: only a signature can tell who somebody is.
    """
    seen = "".join(each for each in auditor if not _shows_nothing(each))
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", seen).casefold())
    return " ".join("".join(each for each in folded if not _shows_nothing(each)).split())


_INVISIBLE = {0x034F, 0x2800, 0x3164, 0xFFA0, *range(0x115F, 0x1161), *range(0x17B4, 0x17B6), *range(0x180B, 0x1810)}
_INVISIBLE |= {*range(0xFE00, 0xFE10), *range(0xE0000, 0xE1000)}
"""Code points that are drawn as nothing, though no category says so: Unicode's Default_Ignorable_Code_Point, and the
empty Braille pattern."""


def _shows_nothing(character: str) -> bool:
    return ord(character) in _INVISIBLE or unicodedata.category(character) in ("Cc", "Cf")


def statement(audit: Audit) -> bytes:
    """Return an audit's statement as one line of canonical JSON; `read_audit` inverts it.

    Raises CheckpointError for an audit that nobody could read back, such as one without an auditor.
    """
    data = _bytes(audit)
    _parse(Path("this audit"), data)
    return data


def _bytes(audit: Audit) -> bytes:
    kind = STEPS if audit.steps else PORTABLE if audit.portable else PREDICATE_TYPE
    return in_toto(audit.files, kind, audit.as_json())


def write_audit(recipe: Recipe, audit: Audit) -> Path:
    """Write an audit's statement into the recipe's folder, and return its path: that of the same audit, always."""
    return submit(recipe.beside(FOLDER), statement(audit), SUFFIX)


def submit(folder: Path, data: bytes, suffix: str) -> Path:
    """Write a file into a folder of what people submit, under the SHA-256 of its bytes, and return its path."""
    path = folder / f"{sha256(data)}{suffix}"
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(data)
    partial.rename(path)
    return path


def read_audits(recipe: Recipe) -> dict[str, Audit]:
    """Return the audits in the recipe's folder by file name, sorted; none where there is no such folder.

    Their bundles are beside them, at `bundle_path`. Raises CheckpointError for a file that is no audit, or has been
    edited, and for a bundle that is a link or without its audit.
    """
    audits, errors = sorted_out(recipe.beside(FOLDER))
    for error in errors.values():
        raise error
    return audits


def sorted_out(folder: Path) -> tuple[dict[str, Audit], dict[str, CheckpointError]]:
    """Return the audits in a folder by file name, sorted, and of everything else there what `read_audits` raises."""
    audits: dict[str, Audit] = {}
    errors: dict[str, CheckpointError] = {}
    bundles = []
    for name in submitted(folder):
        try:
            if name.endswith(signatures.SUFFIX):
                confirm_regular(folder / name)
                bundles.append(name)
            else:
                audits[name] = read_audit(folder / name)
        except CheckpointError as error:
            errors[name] = error
    signed = {signatures.bundle_path(folder / name).name for name in audits}
    for name in bundles:
        if name not in signed:
            advice = f"Submit both: the audit ends in {SUFFIX}."
            errors[name] = CheckpointError(f"{folder / name}: a signature, and its audit is not there", advice)
    return audits, errors


def submitted(folder: Path) -> list[str]:
    """Return the names of what people have submitted to a folder, sorted; none where there is no such folder.

    Raises CheckpointError for one that cannot be read.
    """
    try:
        return sorted(each.name for each in folder.iterdir() if not each.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"{folder}: {error.strerror}") from None


def confirm_regular(path: Path) -> None:
    """Raise CheckpointError where a stranger has put a link, or anything else that is no file of its own."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise CheckpointError(f"{path}: not a regular file")
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None


def read_audit(path: Path) -> Audit:
    """Read one audit; raise CheckpointError for anything that `write_audit` would not have written there."""
    confirm_regular(path)
    try:
        data = read_whole(path, MAX_STATEMENT)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not an audit: {error}") from None
    if path.name != f"{sha256(data)}{SUFFIX}":
        advice = f"Submit the file that the audit wrote, under the name that it had: <SHA-256>{SUFFIX}."
        raise CheckpointError(f"{path}: its name is not the SHA-256 of its bytes, {sha256(data)}", advice)
    return _parse(path, data)


def _parse(path: Path, data: bytes) -> Audit:
    try:
        _small(len(data))
        value = strict_json(data)
        subjects, predicate = value["subject"], value["predicate"]
        audit = Audit(
            recipe=_hex(predicate["recipe"]),
            tiny=_maybe(_text, predicate["tiny"]),
            environment=_hex(predicate["environment"]),
            base=_hex(predicate["base"]),
            journal=_maybe(_hex, predicate["journal"]),
            files={_text(each["name"]): _hex(each["digest"]["sha256"]) for each in _list(subjects)},
            companions=tuple(map(_text, _list(predicate["companions"]))),
            hardware=_hardware(predicate["hardware"]),
            challenge=_maybe(_challenge, predicate["challenge"]),
            count=_count(predicate["count"]),
            blocks=tuple(_block(each) for each in _list(predicate["blocks"])),
            untuned=_untuned(predicate["untuned"]),
            auditor=_text(predicate["auditor"]),
            finished=_text(predicate["finished"]),
            requant=_text(predicate["requant"]),
            portable=value["predicateType"] in (PORTABLE, STEPS),
            steps=_steps(predicate["steps"]) if value["predicateType"] == STEPS else None,
        )
        if _hex(predicate["checkpoint"]) != audit.checkpoint:
            raise ValueError(f"checkpoint: found {predicate['checkpoint']}, its subjects give {audit.checkpoint}")
        _confirm(audit)
        if _bytes(audit) != data:
            raise ValueError("not in the one form of an audit: unknown keys, another order, or an outcome of its own")
    except KeyError as error:
        raise CheckpointError(f"{path}: not an audit: no {error}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not an audit: {str(error)[:MAX_TEXT]}") from None
    return audit


def _small(size: int) -> None:
    if size > MAX_STATEMENT:
        raise ValueError(f"{size:,} bytes, expected at most {MAX_STATEMENT:,}")


def _confirm(audit: Audit) -> None:
    """Raise ValueError for what no audit can have found."""
    indices = [each.index for each in audit.blocks]
    if not audit.blocks or indices != sorted(set(indices)) or indices[-1] >= audit.count:
        raise ValueError(f"blocks {reprlib.repr(indices)} of {audit.count}, expected some, in order, each once")
    if len({each.block for each in audit.blocks}) < len(audit.blocks):
        raise ValueError("a block stands twice")
    for each in audit.blocks:
        if each.judgement is Judgement.IDENTICAL and each.distance:
            raise ValueError(f"{each.block}: identical, and different from what was published")
        if each.hinted and not audit.portable:
            raise ValueError(f"{each.block}: tuned by hints in an audit that is not portable")
        if (identical := each.judgement is Judgement.IDENTICAL) and audit.portable and not each.hinted:
            raise ValueError(f"{each.block}: identical in a portable audit, and not tuned by hints")
        if identical and each.hinted and (each.hinted.beyond or each.hinted.inconclusive):
            raise ValueError(f"{each.block}: identical, and not followed to its end")
    if audit.steps:
        _confirm_steps(audit, audit.steps)
    if not any(path.endswith(WEIGHTS) for path in audit.files):
        raise ValueError(f"no subject is a file of weights, *{WEIGHTS}")
    if not len(audit.untuned.deviations) == min(audit.untuned.count, NAMED):
        raise ValueError(f"untuned: {len(audit.untuned.deviations)} deviations are named of {audit.untuned.count}")
    if " ".join(audit.auditor.split()) != audit.auditor:
        raise ValueError(f"auditor: found {reprlib.repr(audit.auditor)}, expected single spaces, and none around it")
    if audit.challenge and not 1 <= audit.challenge.drawn <= audit.count:
        raise ValueError(f"{audit.challenge.drawn} drawn of {audit.count} blocks")
    if not _TIME.fullmatch(audit.finished):
        raise ValueError(f"finished: found {audit.finished!r}, expected a time as 2026-04-24T00:00:09Z")


def _confirm_steps(audit: Audit, asked: StepChallenge) -> None:
    places = [(each.index, each.iteration) for each in asked.steps]
    if not places or places != sorted({*places}) or any(each.iteration >= asked.iterations for each in asked.steps):
        raise ValueError(f"steps {reprlib.repr(places)}, expected some, in order, each once")
    if {(each.index, each.block) for each in asked.steps} != {(each.index, each.block) for each in audit.blocks}:
        raise ValueError("steps of other blocks than were judged")
    if asked.journal != audit.journal or audit.challenge:
        raise ValueError("steps of another journal, or beside a challenge of blocks")


def _steps(value: Any) -> StepChallenge:
    steps = tuple(
        Step(_text(each["block"]), _count(each["index"]), _count(each["iteration"])) for each in _list(value["steps"])
    )
    return StepChallenge(_text(value["text"]), _hex(value["journal"]), _count(value["iterations"]), steps)


def _challenge(value: Any) -> Challenge:
    return Challenge(_text(value["text"]), _count(value["drawn"]))


def _block(value: Any) -> Retuned:
    return Retuned(
        _text(value["block"]),
        _count(value["index"]),
        Judgement(_text(value["judgement"])),
        _text(value["reason"], empty=True),
        _maybe(_distance, value["distance"]),
        _maybe(_hinted, value["hinted"]),
    )


def _hinted(value: Any) -> Hinted:
    hinted = record(Hinted, value)
    for each in fields(Hinted):
        found = getattr(hinted, each.name)
        _text(found, empty=True) if isinstance(found, str) else _count(found)
    return hinted


def _untuned(value: Any) -> Untuned:
    deviations = tuple(_deviation(each) for each in _list(value["deviations"]))
    return Untuned(deviations, _count(value["count"]), _text(value["open"], empty=True))


def _deviation(value: Any) -> Deviation:
    if value["kind"] not in KINDS:
        raise ValueError(f"kind: found {reprlib.repr(value['kind'])}, expected one of {', '.join(KINDS)}")
    return Deviation(value["kind"], _text(value["name"]), _text(value["detail"], empty=True))


def _distance(value: Any) -> Distance:
    steps = {int(_text(step)): _count(count) for step, count in _object(value["steps"]).items()}
    if any(not (0 < abs(step) < 16 and count) for step, count in steps.items()):
        raise ValueError(f"steps: found {reprlib.repr(steps)}, expected counts of -15 to 15")
    codes, scales = _count(value["codes"]), _count(value["scales"])
    if codes != sum(steps.values()):
        raise ValueError(f"{codes} codes, and steps of {sum(steps.values())}")
    return Distance(_text(value["first"]), _count(value["tensors"]), codes, steps, scales, _count(value["ulp"]))


def _hardware(value: Any, depth: int = 0) -> Any:
    """Return a hardware class: names to texts, whole numbers, truth values or nothing, in lists and objects."""
    if isinstance(value, dict) and depth < 4 and (value or depth):
        return {_text(key): _hardware(each, depth + 1) for key, each in value.items()}
    if not depth:
        raise ValueError(f"hardware: found {reprlib.repr(value)}, expected an object that says something")
    if isinstance(value, list) and depth < 4:
        return [_hardware(each, depth + 1) for each in value]
    if value is None or type(value) is bool:
        return value
    return _count(value) if type(value) is int else _text(value, empty=True)


def _maybe(read: Callable[[Any], Value], value: Any) -> Value | None:
    return None if value is None else read(value)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"found {reprlib.repr(value)}, expected an object")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"found {reprlib.repr(value)}, expected a list")
    return value


def _text(value: Any, *, empty: bool = False) -> str:
    if not isinstance(value, str) or not is_text(value) or not (value or empty):
        raise ValueError(f"found {reprlib.repr(value)}, expected printable text of at most {MAX_TEXT} characters")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < MOST:
        raise ValueError(f"found {reprlib.repr(value)}, expected a whole number, 0 or more")
    return value


def _hex(value: Any) -> str:
    if not isinstance(value, str) or not _HEX.fullmatch(value):
        raise ValueError(f"found {reprlib.repr(value)}, expected 64 hexadecimal digits")
    return value
