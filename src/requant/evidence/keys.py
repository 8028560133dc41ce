"""Keys that sign statements: Ed25519 and ECDSA P-256, as PEM files, and what they are named by.

Files: PKCS #8 (RFC 5208) without a passphrase, and SubjectPublicKeyInfo (RFC 5280, 4.1.2.7). A key is named by the
SHA-256 of the latter in DER, 64 hexadecimal digits: `openssl pkey -pubin -in NAME.pub -outform der | sha256sum`.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from requant.digest import read_whole, sha256
from requant.errors import UsageError

if TYPE_CHECKING:  # imported where a key is used: a build in a pod has neither
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes
    from securesystemslib.signer import CryptoSigner, SSlibKey

Kind = Literal["ed25519", "ecdsa-p256"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PRIVATE, PUBLIC = ".key", ".pub"
"""How the names of the two files of a key end."""
MAX_KEY = 1 << 12
"""Bytes of a key's file: one of P-256 has 241."""
ADVICE = "Name a key as `requant keys new` writes it: Ed25519 or ECDSA P-256 in PEM, without a passphrase."


@dataclass(frozen=True)
class PublicKey:
    """What anybody can verify with; `pem` is the file's text, and `id` what the key is named by."""

    kind: Kind
    pem: str
    id: str

    def library_key(self) -> "SSlibKey":
        """Return the key as securesystemslib has it, under its id."""
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
        from securesystemslib.signer import SSlibKey

        return SSlibKey.from_crypto(load_pem_public_key(self.pem.encode()), self.id)


@dataclass(frozen=True)
class PrivateKey:
    """What its owner signs with; `signer` is never shown."""

    public: PublicKey
    signer: "CryptoSigner" = field(repr=False)


def write_key(name: Path, kind: Kind) -> PublicKey:
    """Make a key: write `<name>.key`, which its owner alone can read, and `<name>.pub`.

    Raises UsageError where one of them exists, or cannot be written.
    """
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    made = _private(Ed25519PrivateKey.generate() if kind == "ed25519" else generate_private_key(SECP256R1()))
    texts = {PUBLIC: (made.public.pem.encode(), 0o644), PRIVATE: (made.signer.private_bytes, 0o600)}
    for suffix in texts:
        if os.path.lexists(f"{name}{suffix}"):
            raise UsageError(f"{name}{suffix}: exists", "A key is never replaced: choose another name.")
    for suffix, (text, mode) in texts.items():
        try:
            with os.fdopen(os.open(f"{name}{suffix}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(text)
        except OSError as error:
            raise UsageError(f"{name}{suffix}: {error.strerror}", "Name a folder that can be written.") from None
    return made.public


def read_private(path: Path) -> PrivateKey:
    """Read a key that signs. Raises UsageError for any other file, and never says what stands in it."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        return _private(load_pem_private_key(_read(path), None))
    except (ValueError, TypeError, UnsupportedAlgorithm):  # whose messages may quote the file
        raise UsageError(f"{path}: not a private key that can sign", ADVICE) from None


def read_public(path: Path) -> PublicKey:
    """Read a public key, or the public half of one that signs. Raises UsageError for any other file."""
    data = _read(path)
    if b"PRIVATE KEY" in data:
        return read_private(path).public
    try:
        return parse_public(data)
    except ValueError as error:
        raise UsageError(f"{path}: {error}", ADVICE) from None


def parse_public(pem: bytes) -> PublicKey:
    """Return a public key from its PEM; raise ValueError for anything else."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        return _public(load_pem_public_key(pem))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError("not a public key of Ed25519 or ECDSA P-256 in PEM") from None


def _public(key: "PublicKeyTypes") -> PublicKey:
    """Return our value of a key; raise ValueError for one of another kind."""
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    if not isinstance(key, Ed25519PublicKey) and not (
        isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)
    ):
        raise ValueError("another kind of key")
    return PublicKey(
        kind="ed25519" if isinstance(key, Ed25519PublicKey) else "ecdsa-p256",
        pem=key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
        id=sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)),
    )


def _private(key: "PrivateKeyTypes") -> PrivateKey:
    """Return our value of a key; raise ValueError for one of another kind."""
    from securesystemslib.signer import CryptoSigner

    public = _public(key.public_key())
    return PrivateKey(public, CryptoSigner(key, public.library_key()))


def _read(path: Path) -> bytes:
    try:
        return read_whole(path, MAX_KEY)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", ADVICE) from None
    except ValueError as error:
        raise UsageError(f"{path}: {error}", ADVICE) from None
