"""Signed statements: an in-toto Statement v1 in a DSSE envelope in a Sigstore bundle, signed with a key, or keyless.

Formats: https://github.com/secure-systems-lab/dsse (v1.0.0); sigstore/protobuf-specs, sigstore_bundle.proto (v0.3).
One statement and one signature per bundle. A bundle stands beside its statement and holds the very bytes of that file.
What is signed is public whole, so there is one form of it, canonical JSON, and a reader refuses any other: no bit of a
bundle signed with a key can change unseen. ADR 25 says what other tools make of it.
"""

import base64
import binascii
import os
import re
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.digest import MAX_STATEMENT, canonical_json, read_whole, strict_json
from requant.errors import CheckpointError, UsageError
from requant.evidence.keyless import Identity, LoggedIn, certified, confirm
from requant.evidence.keys import PrivateKey, PublicKey
from requant.evidence.statements import STATEMENT_TYPE
from requant.verdict import visible

if TYPE_CHECKING:  # imported where something is signed or verified: a build in a pod has no such library
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import Signature

SUFFIX = ".sigstore.json"
STATEMENT = ".intoto.jsonl"
MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
MAX_BUNDLE = MAX_STATEMENT * 4 // 3 + (1 << 15)
"""Bytes of a bundle: its statement in base64, and little else; of a keyless one, certificate, log entry and time."""
MAX_SUBJECTS = 1024
"""Of a statement: sigstore-go reads no more (pkg/verify/signature.go, maxAllowedSubjects), and with it cosign."""

_HEX = re.compile("[0-9a-f]{64}")


class Fault(StrEnum):
    """Why a bundle proves nothing."""

    UNREADABLE = "not a bundle as requant writes it"
    CERTIFICATE = "its certificate does not hold"
    UNSIGNED = "its signature was removed"
    SEVERAL = "more than one signature"
    PAYLOAD_TYPE = "not the payload of a statement"
    UNKNOWN_KEY = "signed with a key that is not among those given"
    UNKNOWN_IDENTITY = "signed by an identity that is not among those given"
    OTHER_ISSUER = "signed by an identity for which another issuer vouches"
    FORGED = "the signature is not this key's for these bytes"
    STATEMENT = "what is signed is not a statement"
    OTHER_STATEMENT = "signs another statement than the one beside it"
    OTHER_SUBJECTS = "a statement about other files"


NOBODY_KNOWN = (Fault.UNKNOWN_KEY, Fault.UNKNOWN_IDENTITY, Fault.OTHER_ISSUER)
"""Nobody who is known says so: a statement with such a bundle is as good as one with none."""
Known = PublicKey | Identity
"""By whom a statement can be signed."""
Signs = PrivateKey | LoggedIn


class SignatureError(CheckpointError):
    """A bundle proves nothing, and `fault` says why; `said` is the message without the bundle's name."""

    def __init__(self, fault: Fault, where: str, detail: str, advice: str = "") -> None:
        self.fault, self.said = fault, f"{fault}{f': {detail}' if detail else ''}"
        super().__init__(f"{where}: {self.said}", advice)


@dataclass(frozen=True)
class Signed:
    """A statement whose signature holds: whose it is, the statement's bytes, and what they say of which files."""

    key: Known
    statement: bytes
    predicate_type: str
    subjects: Mapping[str, str]
    predicate: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return it as `--json` prints it."""
        who = {"issuer": self.key.issuer, "subject": self.key.subject} if isinstance(self.key, Identity) else None
        return {
            "key": self.key.id,
            "kind": self.key.kind,
            "identity": who,
            "predicateType": self.predicate_type,
            "subjects": dict(self.subjects),
            "predicate": dict(self.predicate),
        }

    def text(self) -> list[str]:
        """Return what a person reads."""
        files = [f"{digest} {path}" for path, digest in sorted(self.subjects.items())]
        signed = by(self.key) if isinstance(self.key, Identity) else f"with {self.key.kind} {self.key.id}"
        return [f"signed {signed}", self.predicate_type, *files]


@dataclass(frozen=True)
class Bundle:
    """A bundle that is well formed, and not verified: `key` is the id of the key that it says it was signed with.

    Of a keyless one it is the id of the `identity` that its certificate names, and `material` is what verifies it.
    """

    key: str
    statement: bytes
    signature: bytes
    identity: Identity | None = None
    material: Mapping[str, Any] | None = None

    def as_bytes(self) -> bytes:
        """Return the one form of the bundle: canonical JSON, one line."""
        envelope = {
            "payload": base64.b64encode(self.statement).decode(),
            "payloadType": PAYLOAD_TYPE,
            # Not the id: go-securesystemslib, and so cosign, passes over a signature under an id that is not its own.
            "signatures": [{"keyid": "", "sig": base64.b64encode(self.signature).decode()}],
        }
        hint = base64.b64encode(bytes.fromhex(self.key)).decode()  # as sigstore-go has it
        material = self.material or {"publicKey": {"hint": hint}, "tlogEntries": []}
        value = {"mediaType": MEDIA_TYPE, "verificationMaterial": material, "dsseEnvelope": envelope}
        return canonical_json(value) + b"\n"


def by(key: Known) -> str:
    """Return by whom something is signed, for a person."""
    if isinstance(key, Identity):
        return f"by {visible(key.subject)}, for whom {visible(key.issuer)} vouches"
    return f"with {key.id}"


def bundle_path(statement: Path) -> Path:
    """Return where the bundle of a statement stands: `mini.sigstore.json` for `mini.intoto.jsonl`."""
    return statement.with_name(f"{statement.name.removesuffix(STATEMENT)}{SUFFIX}")


def sign(statement: bytes, key: Signs) -> bytes:
    """Return the bundle of a statement; raise ValueError for bytes that are none, and are not signed as one."""
    if len(statement) > MAX_STATEMENT:
        raise ValueError(f"{len(statement):,} bytes, expected at most {MAX_STATEMENT:,}")
    parse_statement(statement)
    if isinstance(key, LoggedIn):
        signature, material = key.sign(statement)
        return Bundle(key.public.id, statement, signature, key.public, material).as_bytes()
    made = _envelope(statement).sign(key.signer)
    return Bundle(key.public.id, statement, bytes.fromhex(made.signature)).as_bytes()


def sign_file(statement: Path, key: Signs) -> Path:
    """Sign a statement's file, and return the bundle's path: it stays as it is where this key has signed it already.

    Raises CheckpointError for a file that is no statement, and UsageError where another bundle stands there.
    """
    path = bundle_path(statement)
    there = os.path.lexists(path)
    try:
        data = read_whole(statement, MAX_STATEMENT)
        made = b""
        if there:  # a log keeps for good what is signed keyless: nothing is signed twice
            parse_statement(data)
        else:
            made = sign(data, key)
    except OSError as error:
        raise CheckpointError(f"{statement}: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{statement}: not a statement that can be signed: {error}") from None
    if there:
        _confirm_signed(path, data, key.public)
    else:
        _write(path, made)
    return path


def write_signed(path: Path, statement: bytes, key: Signs) -> None:
    """Sign a statement that has no file of its own, and write its bundle. Raises UsageError where that cannot be."""
    try:
        made = sign(statement, key)
    except ValueError as error:
        raise UsageError(f"{path}: cannot be signed: {error}") from None
    _write(path, made)


def confirm_free(path: Path) -> None:
    """Raise UsageError where a bundle cannot be written to."""
    if os.path.lexists(path):
        raise UsageError(f"{path}: exists", "A bundle is never replaced. Name another, or move it away.")


def _write(path: Path, bundle: bytes) -> None:
    try:
        with path.open("xb") as file:
            file.write(bundle)
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror}", "Name a bundle that can be written, and does not exist."
        ) from None


def _confirm_signed(path: Path, statement: bytes, key: Known) -> None:
    try:
        verify_file(path, [key], statement=statement)
    except SignatureError as error:
        advice = "A bundle is never replaced. Move it away if you mean to sign instead."
        raise UsageError(f"{path}: exists, and is not this statement signed with this key: {error}", advice) from None


def verify_file(path: Path, keys: Iterable[Known], *, statement: bytes | None = None) -> Signed:
    """Read and verify a bundle; see `verify`. Raises SignatureError, and CheckpointError for a file that is not there.

    A bundle that signs anything but `statement`, where that is given, proves nothing about it.
    """
    bundle = read_file(path)
    if statement is not None and bundle.statement != statement:
        raise SignatureError(Fault.OTHER_STATEMENT, str(path), "")
    return verify(bundle, keys, str(path))


def read_file(path: Path) -> Bundle:
    """Read a bundle, and verify nothing. Raises SignatureError for any other file, CheckpointError where none is."""
    try:
        data = read_whole(path, MAX_BUNDLE)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise SignatureError(Fault.UNREADABLE, str(path), str(error)) from None
    return read_bundle(data, str(path))


def verify(bundle: Bundle, keys: Iterable[Known], where: str) -> Signed:
    """Return what is signed, and by which of these. Raises SignatureError for what does not hold."""
    known = {each.id: each for each in keys}
    key = known.get(bundle.key)
    if key is None:
        raise _unknown(bundle, known.values(), where)
    if isinstance(key, Identity):
        try:
            confirm(bundle.as_bytes(), key)
        except ValueError as error:
            raise SignatureError(Fault.CERTIFICATE, where, str(error)) from None
    elif bundle.identity or not _signed_with(key, bundle):
        raise SignatureError(Fault.FORGED, where, f"key {key.id}")
    try:
        predicate_type, subjects, predicate = parse_statement(bundle.statement)
    except ValueError as error:
        raise SignatureError(Fault.STATEMENT, where, str(error)) from None
    return Signed(key, bundle.statement, predicate_type, subjects, predicate)


def _unknown(bundle: Bundle, known: Iterable[Known], where: str) -> SignatureError:
    advice = "Ask its owner, by another way than this file came, whether that is their key."
    if bundle.identity is None:
        return SignatureError(Fault.UNKNOWN_KEY, where, bundle.key, advice)
    same = any(isinstance(each, Identity) and each.subject == bundle.identity.subject for each in known)
    fault = Fault.OTHER_ISSUER if same else Fault.UNKNOWN_IDENTITY
    return SignatureError(fault, where, by(bundle.identity), advice.replace("key", "identity"))


def _signed_with(key: PublicKey, bundle: Bundle) -> bool:
    from securesystemslib.exceptions import VerificationError
    from securesystemslib.signer import Signature

    signature = Signature(key.id, bundle.signature.hex())
    try:
        _envelope(bundle.statement, {key.id: signature}).verify([key.library_key()], 1)
    except VerificationError:
        return False
    return True


def confirm_subjects(signed: Signed, files: Mapping[str, str], where: str) -> None:
    """Raise SignatureError where a statement is not about exactly these files, path to SHA-256."""
    if other := sorted({path for path, _ in signed.subjects.items() ^ files.items()}):
        raise SignatureError(Fault.OTHER_SUBJECTS, where, reprlib.repr(other)[1:-1])


def read_bundle(data: bytes, where: str) -> Bundle:
    """Return a bundle that stands in exactly the form of `as_bytes`. Raises SignatureError for any other."""

    def refused(fault: Fault, detail: str = "") -> SignatureError:
        return SignatureError(fault, where, detail)

    try:
        value = strict_json(data)
        material, envelope = value["verificationMaterial"], value["dsseEnvelope"]
        if envelope["payloadType"] != PAYLOAD_TYPE:
            raise refused(Fault.PAYLOAD_TYPE, reprlib.repr(envelope["payloadType"]))
        signatures = envelope["signatures"]
        if signatures == [] or (len(signatures) == 1 and not signatures[0].get("sig")):
            raise refused(Fault.UNSIGNED)
        if len(signatures) > 1:
            raise refused(Fault.SEVERAL, str(len(signatures)))
        statement, signature = _decoded(envelope["payload"]), _decoded(signatures[0]["sig"])
        if "certificate" in material:
            identity = certified(_decoded(material["certificate"]["rawBytes"]))
            bundle = Bundle(identity.id, statement, signature, identity, material)
        else:
            key = _decoded(material["publicKey"]["hint"]).hex()
            if not _HEX.fullmatch(key):
                raise ValueError("its hint is not a SHA-256")
            bundle = Bundle(key, statement, signature)
        if bundle.as_bytes() != data:
            raise ValueError("unknown keys, or another way of writing the same")
    except KeyError as error:
        raise refused(Fault.UNREADABLE, f"no {error}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise refused(Fault.UNREADABLE, str(error)[:200]) from None
    return bundle


def parse_statement(data: bytes) -> tuple[str, dict[str, str], dict[str, Any]]:
    """Return predicate type, subjects and predicate of a statement in requant's form: canonical JSON, SHA-256 only.

    Raises ValueError for anything else.
    """
    value = strict_json(data)
    if not isinstance(value, dict) or value.keys() != {"_type", "subject", "predicateType", "predicate"}:
        raise ValueError("not an object with _type, subject, predicateType and predicate")
    if value["_type"] != STATEMENT_TYPE:
        raise ValueError(f"_type: found {reprlib.repr(value['_type'])}, expected {STATEMENT_TYPE}")
    if not isinstance(value["predicateType"], str) or not isinstance(value["predicate"], dict):
        raise ValueError("predicateType is not text, or predicate is not an object")
    subjects = value["subject"]
    if not isinstance(subjects, list) or not 1 <= len(subjects) <= MAX_SUBJECTS:
        raise ValueError(f"subject: expected 1 to {MAX_SUBJECTS:,} files")
    named = dict(map(_subject, subjects))
    if len(named) < len(subjects):
        raise ValueError("subject: a name stands twice")
    if canonical_json(value) + b"\n" != data:
        raise ValueError("not one line of canonical JSON")
    return value["predicateType"], named, value["predicate"]


def _subject(value: Any) -> tuple[str, str]:
    match value:
        case {"name": str(name), "digest": {"sha256": str(digest), **others}, **more} if not others and not more:
            if _HEX.fullmatch(digest):
                return name, digest
    raise ValueError(f"subject: found {reprlib.repr(value)}, expected a name and a SHA-256, and nothing else")


def _envelope(statement: bytes, signatures: "dict[str, Signature] | None" = None) -> "Envelope":
    from securesystemslib.dsse import Envelope

    return Envelope(statement, PAYLOAD_TYPE, signatures or {})


def _decoded(value: Any) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, TypeError):
        raise ValueError(f"found {reprlib.repr(value)}, expected base64") from None
