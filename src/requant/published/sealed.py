"""What was published, file by file, signed by who published it: whatever is edited afterwards is known by its name.

`requant/published.sigstore.json` is a statement about all files of a commit but itself and what people say of the
build, which they sign themselves, and add to. So cosign and the like hold a card, a lock or a plan against it as well
as a weight. Nothing follows from a repository's having none.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from requant.audit.builders import Builder
from requant.build import beside
from requant.digest import sha256, side_limit
from requant.evidence.signatures import SUFFIX as BUNDLE
from requant.evidence.signatures import Fault, SignatureError, Signs, read_bundle, read_file, verify, write_signed
from requant.evidence.statements import in_toto
from requant.hub import web
from requant.hub.stated import confirm_stated
from requant.published.found import SAID, Found
from requant.published.proofs import FOLDER, PAGE
from requant.published.publication import CARD, Publication, held

LOCAL = f"published{BUNDLE}"
"""End of the seal's name beside a checkpoint."""
SEAL = f"{FOLDER}/{LOCAL}"
PUBLISHED = "urn:requant:published:1"
VIEWS = (CARD, PAGE)
"""What people read and no verb does: another one is told, and makes nothing of the build untrue."""


@dataclass(frozen=True)
class Edited:
    """What is not as `by` published it: proofs and files of the checkpoint, in words, and other files, path to why."""

    by: str = ""
    against: tuple[str, ...] = ()
    told: Mapping[str, str] = field(default_factory=dict)


def sealed(publication: Publication, checkpoint: Path, key: Signs | None) -> Publication:
    """Return a publication with its seal, signed with `key` where it is not signed yet, and kept beside the checkpoint.

    Without a key, one that is there already goes along if it is of these files; a repository's that is not, is removed.
    """
    path = beside(checkpoint.resolve(), LOCAL)
    files = {name: each.sha256 for name, each in publication.files.items() if not _is_said(name)}
    statement = in_toto(files, PUBLISHED, {})
    if key and not _signs(path, statement, key):
        path.unlink(missing_ok=True)
        write_signed(path, statement, key)
    if _signs(path, statement, key):
        return replace(publication, files=dict(sorted({**publication.files, SEAL: held(path.read_bytes())}.items())))
    stale = publication.there is not None and SEAL in publication.there.stated
    return replace(publication, removed=(*publication.removed, SEAL)) if stale else publication


def edited(found: Found, known: Mapping[str, Builder], digests: Mapping[str, str]) -> Edited:
    """Hold what a repository has against its seal, if somebody known signed it.

    `digests` are those of files that were looked at before. Raises NotAvailableError for the network, and
    CheckpointError where bytes are not what the hub states.
    """
    if SEAL not in found.held:
        return Edited()
    try:
        signed = verify(read_bundle(found.held[SEAL], SEAL), [each.key for each in known.values()], SEAL)
        by = known[signed.key.id]
        if signed.predicate_type != PUBLISHED:
            raise ValueError("signs something else than what was published")
        if by.expired:
            raise ValueError(f"the key of {by.name} has expired")
    except SignatureError as error:
        unknown = error.fault in (Fault.UNKNOWN_KEY, Fault.UNKNOWN_IDENTITY)
        return Edited(told={SEAL: "signed by somebody whom you do not know" if unknown else error.said})
    except ValueError as error:
        return Edited(told={SEAL: str(error)})
    why = f"not as {by.name} published it"
    wrong = [path for path, digest in signed.subjects.items() if _digest(found, path, digests) != digest]
    decides = not found.registry
    against = tuple(f"{path}: {why}" for path in wrong if decides and path not in VIEWS)
    return Edited(by.name, against, {path: why for path in wrong if not decides or path in VIEWS})


def _digest(found: Found, path: str, digests: Mapping[str, str]) -> str | None:
    """Return the SHA-256 of a file of a repository; None where there is none. What is small is fetched."""
    stated = found.listing.stated.get(path)
    if stated is None or path in digests:
        return digests.get(path)
    if stated.sha256:
        return stated.sha256
    if path in found.held:
        return sha256(found.held[path])
    url = found.listing.address(path)
    data = web.whole(url, "", found.patience, side_limit(path))[1] if stated.bytes else b""
    confirm_stated(url, stated, data)
    return sha256(data)


def _signs(path: Path, statement: bytes, key: Signs | None) -> bool:
    """Say whether a bundle is there that signs a statement, with this key if one is given."""
    if not path.is_file():
        return False
    try:
        bundle = read_file(path)
        if key:
            verify(bundle, [key.public], str(path))
    except SignatureError:
        return False
    return bundle.statement == statement


def _is_said(path: str) -> bool:
    """Say whether a file is what somebody said of the build."""
    parts = path.split("/")
    return parts[:2] == [FOLDER, "builds"] and len(parts) > 4 and parts[3] in SAID
