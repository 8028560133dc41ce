"""Signatures without a key of one's own: Sigstore vouches for who somebody is, and a log for when they signed.

A key is made for one signature and thrown away. Fulcio, a certificate authority, binds it for ten minutes to a
subject, such as an address or a workflow, that an OpenID issuer has just confirmed; Rekor, a log that anybody can read,
says that it signed within them. All of it is sigstore-python's own flow, and sigstore is an extra
(https://github.com/sigstore/sigstore-python). Extensions: sigstore/fulcio, docs/oid-info.md. ADR 30: what was decided.
"""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from requant.digest import MAX_SIDE, canonical_json, read_whole, sha256, strict_json
from requant.errors import NotAvailableError, UsageError
from requant.verdict import visible

if TYPE_CHECKING:
    from cryptography.x509 import Certificate
    from sigstore.models import ClientTrustConfig
    from sigstore.sign import Signer
    from sigstore.verify import Verifier

ISSUER = "1.3.6.1.4.1.57264.1.1"
EXTRA = "pip install 'requant[keyless]'"


@dataclass(frozen=True)
class Identity:
    """Who somebody is, and who says so: a subject exactly as in the certificate, and the URL of an OpenID issuer.

    `trust` is the configuration of the Sigstore that is believed, None for the public one. It is no part of `id`.
    """

    issuer: str
    subject: str
    trust: Path | None = field(default=None, compare=False)
    kind: ClassVar = "identity"

    @property
    def id(self) -> str:
        """What the identity is named by, as a key is by its digest: the SHA-256 of canonical JSON of both."""
        return sha256(canonical_json({"issuer": self.issuer, "subject": self.subject}))


@dataclass(frozen=True)
class LoggedIn:
    """Somebody for whom Sigstore has just vouched, for ten minutes; `signer` is never shown."""

    public: Identity
    signer: "Signer" = field(repr=False)

    def sign(self, statement: bytes) -> tuple[bytes, dict[str, Any]]:
        """Sign a statement, for good and in public; return the signature, and what a bundle needs to verify it.

        Raises NotAvailableError where the log does not take it.
        """
        from sigstore.dsse import Statement

        try:
            bundle = self.signer.sign_dsse(Statement(statement))
        except Exception as error:  # each part of the library's flow has errors of its own, without a name in common
            raise _unavailable(error) from None
        material: dict[str, Any] = strict_json(bundle.to_json().encode())["verificationMaterial"]
        return bundle.signature, material


def log_in(trust: Path | None) -> LoggedIn:
    """Have Sigstore vouch for who is at work: by the token that CI gives to a job, else in the browser.

    Raises UsageError where the extra is not installed, and NotAvailableError where nobody is vouched for.
    """
    config = _config(trust)
    from sigstore.oidc import IdentityToken, Issuer, detect_credential
    from sigstore.sign import SigningContext

    try:
        raw = detect_credential()
        token = IdentityToken(raw) if raw else Issuer(config.signing_config.get_oidc_url()).identity_token()
        with SigningContext.from_trust_config(config).signer(token) as signer:
            # Not the token's subject: of a workflow the certificate names the file, and the token only the repository.
            return LoggedIn(identity_of(signer._signing_cert(), trust), signer)
    except Exception as error:  # as in `sign`
        raise _unavailable(error) from None


def confirm(bundle: bytes, identity: Identity) -> None:
    """Raise ValueError unless this very identity signed what is in a bundle, while its certificate was valid.

    Whether that was so then says the log, not the clock of today. Raises UsageError where the extra is not installed,
    and NotAvailableError where the public Sigstore's keys can be neither fetched nor found.
    """
    verifier = _verifier(identity.trust)
    from sigstore.models import Bundle
    from sigstore.verify.policy import Identity as Policy

    try:
        read = Bundle.from_json(bundle)
        again, given = (strict_json(each)["verificationMaterial"] for each in (read.to_json().encode(), bundle))
        verifier.verify_dsse(read, Policy(identity=identity.subject, issuer=identity.issuer))
    except Exception as error:  # a bundle at which the library stumbles proves nothing either
        raise ValueError(_said(error)) from None
    if again != given:
        raise ValueError("unknown keys, or another way of writing the same")


def certified(der: bytes) -> Identity:
    """Return whom a certificate names, which proves nothing; raise ValueError for one that names nobody."""
    from cryptography.x509 import InvalidVersion, load_der_x509_certificate

    try:
        return identity_of(load_der_x509_certificate(der))
    except InvalidVersion as error:
        raise ValueError(str(error)) from None


def identity_of(certificate: "Certificate", trust: Path | None = None) -> Identity:
    """Return whom a certificate names, which proves nothing; raise ValueError for none, or several."""
    from cryptography.x509 import (
        DuplicateExtension,
        ExtensionNotFound,
        ObjectIdentifier,
        RFC822Name,
        SubjectAlternativeName,
        UniformResourceIdentifier,
        UnrecognizedExtension,
        UnsupportedGeneralNameType,
    )

    try:
        names = certificate.extensions.get_extension_for_class(SubjectAlternativeName).value
        issuer = certificate.extensions.get_extension_for_oid(ObjectIdentifier(ISSUER)).value
    except (DuplicateExtension, ExtensionNotFound, UnsupportedGeneralNameType) as error:
        raise ValueError(f"its certificate names no identity: {error}") from None
    subjects = [*names.get_values_for_type(RFC822Name), *names.get_values_for_type(UniformResourceIdentifier)]
    if len(subjects) != 1 or not isinstance(issuer, UnrecognizedExtension):
        raise ValueError(f"its certificate names {len(subjects)} identities, expected one")
    return Identity(issuer.value.decode(), subjects[0], trust)


def read_trust(path: Path) -> "ClientTrustConfig":
    """Return a Sigstore's configuration, as sigstore-python's `--trust-config` takes it; raise UsageError otherwise."""
    confirm_installed()
    from sigstore.models import ClientTrustConfig

    try:
        return ClientTrustConfig.from_json(read_whole(path, MAX_SIDE).decode())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", "Name the trust configuration of a Sigstore.") from None
    except ValueError as error:
        raise UsageError(f"{path}: not the trust configuration of a Sigstore: {_said(error)}") from None


def _config(trust: Path | None) -> "ClientTrustConfig":
    """Return a Sigstore's configuration; that of the public one is fetched, signed by its root (TUF)."""
    if trust is not None:
        return read_trust(trust)
    confirm_installed()
    from sigstore.models import ClientTrustConfig

    try:
        return ClientTrustConfig.production()
    except Exception as error:  # as in `sign`, and those of TUF's client
        raise _unavailable(error) from None


@cache
def _verifier(trust: Path | None) -> "Verifier":
    config = _config(trust)
    from sigstore.verify import Verifier

    try:
        return Verifier(trusted_root=config.trusted_root)
    except Exception as error:
        raise UsageError(f"{trust or 'the public Sigstore'}: no root that can be trusted: {_said(error)}") from None


def confirm_installed() -> None:
    """Raise UsageError where the extra is not installed."""
    try:
        import sigstore  # noqa: F401
    except ImportError:
        raise UsageError("keyless signatures need sigstore, which is not installed", EXTRA) from None


def _unavailable(error: Exception) -> NotAvailableError:
    advice = "It needs the network, and to sign somebody to log in. A key needs neither: requant keys new NAME."
    return NotAvailableError(f"Sigstore: {_said(error)}", advice)


def _said(error: Exception) -> str:
    """Return what a library says, as one short line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return visible(text)[:200]
