"""Tools of others accept our bundles and keys, and refuse what was changed.

They are securesystemslib, sigstore-python, npm's sigstore, cosign, sigstore-go, and OpenSSF's model_signing; of keyless
ones npm's, cosign and sigstore-go here, and sigstore-python in tests/test_keyless.py.

What each demands: docs/adr/0025-a-key-is-the-party-and-a-name-its-label.md.
"""

import base64
import hashlib
import json
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import model_signing
import pytest
import sigstore.dsse
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey
from sigstore.errors import VerificationError as NotVerifiedError
from sigstore.models import Bundle, InvalidBundle
from sigstore_models.bundle.v1 import Bundle as Model
from tests.checkpoints import shard, write
from tests.conftest import ROOT
from tests.sigstores import GITHUB, WORKFLOW, Sigstore, as_a_job, running
from tests.verifiers import cosign, refusal

from requant.checkpoint.manifest import make_manifest
from requant.digest import canonical_json
from requant.evidence.keyless import log_in
from requant.evidence.keys import KINDS, Kind, read_private, write_key
from requant.evidence.outcomes import Judged
from requant.evidence.signatures import sign
from requant.evidence.statements import in_toto
from requant.verdict import Outcome
from requant.verify import verify

BUILD = (ROOT / "builds" / "ec" / "mini.intoto.jsonl").read_bytes()
FAILED = Judged("verify", "different", {"config.json": "0a" * 32}, {"manifest": "0b" * 32}).statement()
NPM = ROOT / "tests" / "fixtures" / "sigstore"
PROGRAMS = Path(sysconfig.get_path("scripts"))
"""Where node and npm are: a wheel brings them, for a fresh Debian has none."""
CONTENT = {"config.json": b"{}", "model.safetensors": b"weights"}
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(params=[BUILD, FAILED], ids=["build", "failure"])
def statement(request: pytest.FixtureRequest) -> bytes:
    """Where one came from, and a negative outcome."""
    data: bytes = request.param
    return data


@pytest.fixture
def signed(kind: Kind, statement: bytes, tmp_path: Path) -> bytes:
    """A bundle; its key is in the test's folder, and so is somebody else's."""
    write_key(tmp_path / "ours", kind)
    write_key(tmp_path / "another", kind)
    return sign(statement, read_private(tmp_path / "ours.key"))


def enveloped(data: bytes, **changes: Any) -> bytes:
    value = json.loads(data)
    value["dsseEnvelope"] |= changes
    return canonical_json(value) + b"\n"


def forged(data: bytes) -> list[bytes]:
    """The same bundle with another payload, another type of payload, another signature."""
    envelope = json.loads(data)["dsseEnvelope"]
    payload = base64.b64decode(envelope["payload"])
    signature = bytearray(base64.b64decode(envelope["signatures"][0]["sig"]))
    signature[-1] ^= 1
    return [
        enveloped(data, payload=base64.b64encode(payload.replace(b"config.json", b"c0nfig.json")).decode()),
        enveloped(data, payloadType="application/json"),
        enveloped(data, signatures=[{"keyid": "", "sig": base64.b64encode(signature).decode()}]),
    ]


@kinds
def test_securesystemslib(signed: bytes, statement: bytes, tmp_path: Path) -> None:
    def verify(data: bytes, name: str) -> bytes:
        known = SSlibKey.from_crypto(load_pem_public_key((tmp_path / f"{name}.pub").read_bytes()))
        envelope = Envelope.from_dict(json.loads(data)["dsseEnvelope"])
        envelope.verify([SSlibKey("", known.keytype, known.scheme, known.keyval)], 1)
        return envelope.payload

    assert verify(signed, "ours") == statement
    for data, name in [(signed, "another"), *((each, "ours") for each in forged(signed))]:
        with pytest.raises(VerificationError):
            verify(data, name)


@kinds
def test_sigstore_python(kind: Kind, signed: bytes, statement: bytes, tmp_path: Path) -> None:
    """It verifies no bundle with a key. Its models read ours, and what it makes of the envelope holds.

    Its own DSSE takes ECDSA only, and its `Bundle` a certificate only: where that changes, this fails, and ADR 25 too.
    """

    def verify(data: bytes, name: str) -> bytes:
        key = load_pem_public_key((tmp_path / f"{name}.pub").read_bytes())
        inner = Model.from_json(data).dsse_envelope
        assert inner is not None
        envelope = sigstore.dsse.Envelope(inner)
        if isinstance(key, EllipticCurvePublicKey):
            return sigstore.dsse._verify(key, envelope)
        assert isinstance(key, Ed25519PublicKey)
        key.verify(envelope.signature, envelope.pae())
        return inner.payload

    assert verify(signed, "ours") == statement
    for data, name in [(signed, "another"), *((each, "ours") for each in forged(signed))]:
        with pytest.raises(NotVerifiedError if kind == "ecdsa-p256" else InvalidSignature):
            verify(data, name)
    with pytest.raises(InvalidBundle, match="expected certificate"):
        Bundle.from_json(signed)


@pytest.fixture(scope="module")
def npm(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """npm's packages, installed as they are locked; none of their scripts is run."""
    folder = tmp_path_factory.mktemp("npm")
    for name in ("package.json", "package-lock.json", "verify.js", "keyless.js"):
        shutil.copyfile(NPM / name, folder / name)
    quiet = ("--silent", "--ignore-scripts", "--no-audit", "--no-fund")
    done = subprocess.run([PROGRAMS / "npm", "ci", *quiet], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"npm ci: {done.stdout}{done.stderr}"

    def verify(*words: Path | str, script: str = "verify.js") -> subprocess.CompletedProcess[str]:
        command = [PROGRAMS / "node", folder / script, *words]
        return subprocess.run(command, capture_output=True, text=True)

    return verify


@kinds
def test_npm_sigstore(signed: bytes, tmp_path: Path, npm: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    bundle, ours, another = (tmp_path / name for name in ("b.sigstore.json", "ours.pub", "another.pub"))
    bundle.write_bytes(signed)
    done = npm(bundle, another, ours)
    assert (done.returncode, done.stderr) == (0, "")
    done = npm(bundle, another)
    assert done.returncode == 1 and "key not found" in done.stderr
    for data in forged(signed):
        bundle.write_bytes(data)
        done = npm(bundle, ours)
        assert done.returncode == 1 and "signature verification failed" in done.stderr
    bundle.write_bytes(enveloped(signed, signatures=[]))
    done = npm(bundle, ours)
    assert done.returncode == 1 and "invalid bundle" in done.stderr


@pytest.mark.full
def test_npm_sigstore_keyless(
    tmp_path: Path,
    npm: Callable[..., subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a Sigstore of our own; sigstore-python verifies the same in tests/test_keyless.py."""
    bundle, trust, other = (tmp_path / name for name in ("b.sigstore.json", "trust.json", "other.json"))
    with running() as sigstore:
        as_a_job(sigstore, monkeypatch)
        trust.write_text(json.dumps(sigstore.trust_config()))
        made = sign(FAILED, log_in(trust))
        sigstore.late = timedelta(minutes=11)
        late = sign(FAILED, log_in(trust))
    other.write_text(json.dumps(Sigstore(url="http://localhost:1").trust_config()))

    def verify(data: bytes, root: Path = trust, issuer: str = GITHUB, subject: str = WORKFLOW) -> tuple[int, str]:
        bundle.write_bytes(data)
        done = npm(bundle, root, issuer, subject, script="keyless.js")
        return done.returncode, done.stderr

    assert verify(made) == (0, "")
    for refused, said in (
        (verify(made, subject=f"{WORKFLOW}s"), "certificate identity"),
        (verify(made, issuer="https://example.com"), "extension"),
        (verify(made, root=other), "Error"),
        (verify(late), "Error"),
        (verify(forged(made)[0]), "Error"),
    ):
        assert refused[0] == 1 and said in refused[1], refused


@pytest.fixture
def content(tmp_path: Path) -> Path:
    """Files, one of which verifiers in Go take at a time, and one that nobody speaks of."""
    for name, data in {**CONTENT, "other.json": b"[]"}.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def of_content(statement: bytes) -> bytes:
    """What a statement says, of files that are at hand: these verifiers take one of them."""
    value, files = json.loads(statement), {name: hashlib.sha256(data).hexdigest() for name, data in CONTENT.items()}
    return in_toto(files, value["predicateType"], value["predicate"])


@kinds
@pytest.mark.parametrize("statement", [BUILD, FAILED], ids=["build", "failure"])
def test_cosign(kind: Kind, statement: bytes, content: Path) -> None:
    for name in ("ours", "another"):
        write_key(content / name, kind)
    (content / "root.json").write_text(json.dumps(Sigstore(url="http://localhost:1").trust_config()["trustedRoot"]))
    signed = sign(of_content(statement), read_private(content / "ours.key"))

    def verify(data: bytes, file: str, key: str = "ours") -> str:
        (content / "b.json").write_bytes(data)
        return cosign("b.json", file, f"{key}.pub", json.loads(statement)["predicateType"], "root.json", cwd=content)

    for name in CONTENT:
        assert verify(signed, name) == ""
    assert "does not match any digest" in verify(signed, "other.json")
    assert "could not verify envelope" in verify(signed, "config.json", "another")
    for each in (*forged(signed), enveloped(signed, signatures=[])):
        assert verify(each, "config.json")
    (content / "config.json").write_bytes(b"{ }")
    assert "does not match any digest" in verify(signed, "config.json")


def test_cosign_and_sigstore_go_keyless(content: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a Sigstore of our own. What `gh attestation verify` verifies with is sigstore-go."""
    trust = content / "trust.json"
    with running() as sigstore:
        as_a_job(sigstore, monkeypatch)
        trust.write_text(json.dumps(sigstore.trust_config()))
        made = sign(of_content(BUILD), log_in(trust))
        sigstore.late = timedelta(minutes=11)
        late = sign(of_content(BUILD), log_in(trust))
    other = Sigstore(url="http://localhost:1").trust_config()
    for name, value in (("root.json", json.loads(trust.read_text())), ("foreign.json", other)):
        (content / name).write_text(json.dumps(value["trustedRoot"]))

    def by_cosign(root: str, issuer: str, subject: str, file: str) -> str:
        who = ("--certificate-identity", subject, "--certificate-oidc-issuer", issuer, "--bundle", "b.json")
        words = ("--trusted-root", root, "--type", "https://slsa.dev/provenance/v1", *who, file)
        return refusal("cosign", "verify-blob-attestation", *words, cwd=content)

    def by_sigstore_go(root: str, issuer: str, subject: str, file: str) -> str:
        who = ("-expectedIssuer", issuer, "-expectedSAN", subject)
        words = ("-artifact", file, "-trustedrootJSONpath", root, *who, "b.json")
        return refusal("sigstore-go-verification", *words, cwd=content)

    for verifier in (by_cosign, by_sigstore_go):

        def verify(
            data: bytes,
            root: str = "root.json",
            issuer: str = GITHUB,
            subject: str = WORKFLOW,
            file: str = "model.safetensors",
            ask: Callable[[str, str, str, str], str] = verifier,
        ) -> str:
            (content / "b.json").write_bytes(data)
            return ask(root, issuer, subject, file)

        assert verify(made) == ""
        assert "in statement" in verify(made, file="other.json")
        assert "expected SAN value" in verify(made, subject=f"{WORKFLOW}s")
        assert "expected issuer value" in verify(made, issuer="https://example.com")
        assert "not enough verified log entries" in verify(made, root="foreign.json")
        assert "integrated time outside certificate validity" in verify(late)
        for each in (*forged(made), enveloped(made, signatures=[])):
            assert verify(each)


MODEL = {"model.safetensors": shard({"a": ("F32", [1], b"abcd")}), "config.json": b"{}", "sub/tokenizer.json": b"{}"}


def test_openssf_model_signing(tmp_path: Path) -> None:
    """`model.sig` is its own tool's, made with our key: of the same files by the same digests, and none of ours."""
    folder, manifest = write(tmp_path / "x", MODEL), make_manifest(tmp_path / "x")
    for name in ("ours", "another"):
        write_key(tmp_path / name, "ecdsa-p256")
    path = folder / "model.sig"
    counted = model_signing.hashing.Config().set_ignored_paths(paths=[path], ignore_git_paths=True)
    signing = model_signing.signing.Config().use_elliptic_key_signer(private_key=tmp_path / "ours.key")
    signing.set_hashing_config(counted).sign(folder, path)

    def verified(name: str = "ours") -> None:
        config = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=tmp_path / f"{name}.pub")
        config.set_hashing_config(counted).verify(folder, path)

    verified()
    verdict = verify(folder, manifest)
    assert (verdict.outcome, verdict.companions) == (Outcome.IDENTICAL, ("model.sig",))
    said = json.loads(base64.b64decode(json.loads(path.read_bytes())["dsseEnvelope"]["payload"]))["predicate"]
    assert {each["name"]: each["digest"] for each in said["resources"]} == {
        name: each.sha256 for name, each in manifest.files.items()
    }
    with pytest.raises(ValueError, match="Key mismatch"):
        verified("another")
    for change in (
        {"config.json": b"{ }"},
        {"extra.bin": b"1"},
        {"model.safetensors": MODEL["model.safetensors"] + b"1"},
    ):
        write(folder, change)
        with pytest.raises(ValueError, match="Signature mismatch"):
            verified()
        for name in change:
            (folder / name).unlink()
        write(folder, MODEL)
        verified()
    write_key(tmp_path / "ed", "ed25519")
    with pytest.raises(AttributeError):
        model_signing.signing.Config().use_elliptic_key_signer(private_key=tmp_path / "ed.key")
