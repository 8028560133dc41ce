"""A Sigstore of one's own: a certificate authority, logs of certificates and of signatures, and who logs people in.

Its answers have the form of the real ones (sigstore/fulcio: /api/v2/signingCert, sigstore/rekor: /api/v1/log/entries,
OpenID Connect, and GitHub's endpoint for tokens of jobs), so that sigstore-python's own flow runs whole, offline.
"""

import base64
import hashlib
import json
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from requant.evidence.keyless import ISSUER

GITHUB = "https://token.actions.githubusercontent.com"
WORKFLOW = "https://github.com/ada/models/.github/workflows/publish.yml@refs/heads/main"
SINCE = "2020-01-01T00:00:00Z"
SCT = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
HOST = "localhost"


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def der(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def signed(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    return key.sign(data, ec.ECDSA(SHA256()))


@dataclass
class Sigstore:
    """`issuer` and `subject` are what the next certificate says; `late` is how long after it the log says it signed."""

    issuer: str = GITHUB
    subject: str = WORKFLOW
    late: timedelta = timedelta()
    url: str = ""
    ca: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    certificates: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    log: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority")])
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        now = datetime.now(UTC)
        self.root = (
            x509.CertificateBuilder(name, name, self.ca.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(True, 0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.ca.public_key()), critical=False)
            .sign(self.ca, SHA256())
        )

    def trust_config(self) -> dict[str, Any]:
        """What a client is told of all of it."""

        def log(key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
            public = {
                "rawBytes": text(der(key)),
                "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                "validFor": {"start": SINCE},
            }
            identity = {"keyId": text(hashlib.sha256(der(key)).digest())}
            return {"baseUrl": self.url, "hashAlgorithm": "SHA2_256", "publicKey": public, "logId": identity}

        authority = {
            "subject": {"organization": "nobody", "commonName": "an authority"},
            "uri": self.url,
            "certChain": {"certificates": [{"rawBytes": text(self.root.public_bytes(Encoding.DER))}]},
            "validFor": {"start": SINCE},
        }
        service = {"url": self.url, "majorApiVersion": 1, "validFor": {"start": SINCE}, "operator": "nobody"}
        return {
            "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
            "trustedRoot": {
                "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
                "tlogs": [log(self.log)],
                "certificateAuthorities": [authority],
                "ctlogs": [log(self.certificates)],
                "timestampAuthorities": [],
            },
            "signingConfig": {
                "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
                "caUrls": [service],
                "oidcUrls": [service],
                "rekorTlogUrls": [service],
                "rekorTlogConfig": {"selector": "ANY"},
                "tsaUrls": [],
                "tsaConfig": {"selector": "ANY"},
            },
        }

    def token(self) -> str:
        """A token that says who is at work."""
        now = int(datetime.now(UTC).timestamp())
        claims = {"iss": self.issuer, "sub": self.subject, "email": self.subject, "aud": "sigstore"}
        return jwt.encode({**claims, "iat": now, "exp": now + 600}, "no authority looks at this one's secret", "HS256")

    def certificate(self, request: x509.CertificateSigningRequest) -> list[str]:
        """Certify a key for ten minutes, and note it in the log of certificates (RFC 6962, 3.2 and 3.3)."""
        now = datetime.now(UTC).replace(microsecond=0)
        name = (x509.UniformResourceIdentifier if "://" in self.subject else x509.RFC822Name)(self.subject)
        usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.ca.public_key())
        builder = (
            x509.CertificateBuilder(self.root.subject, x509.Name([]), request.public_key(), 7)
            .not_valid_before(now)
            .not_valid_after(now + timedelta(minutes=10))
            .add_extension(usage, critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(identifier, critical=False)
            .add_extension(x509.SubjectAlternativeName([name]), critical=True)
            .add_extension(
                x509.UnrecognizedExtension(x509.ObjectIdentifier(ISSUER), self.issuer.encode()), critical=False
            )
        )
        inner = builder.sign(self.ca, SHA256()).tbs_certificate_bytes
        stamp = int(now.timestamp() * 1000)
        entry = hashlib.sha256(der(self.ca)).digest() + struct.pack("!I", len(inner))[1:] + inner
        signature = signed(self.certificates, struct.pack("!BBQH", 0, 0, stamp, 1) + entry + struct.pack("!H", 0))
        sct = struct.pack("!B32sQH", 0, hashlib.sha256(der(self.certificates)).digest(), stamp, 0)
        sct += struct.pack("!BBH", 4, 3, len(signature)) + signature  # SHA-256, ECDSA
        listed = struct.pack("!H", len(sct)) + sct
        listed = struct.pack("!H", len(listed)) + listed
        wrapped = b"\x04" + (bytes([len(listed)]) if len(listed) < 128 else bytes([0x81, len(listed)])) + listed
        made = builder.add_extension(x509.UnrecognizedExtension(SCT, wrapped), critical=False).sign(self.ca, SHA256())
        return [each.public_bytes(Encoding.PEM).decode() for each in (made, self.root)]

    def entry(self, proposed: dict[str, Any]) -> dict[str, Any]:
        """Note a signature in the log, as its only entry (sigstore/rekor: pkg/types/dsse/v0.0.1)."""
        content = proposed["spec"]["proposedContent"]
        envelope = json.loads(content["envelope"])
        verifier = content["verifiers"][0]
        spec = {
            "envelopeHash": {"algorithm": "sha256", "value": hashlib.sha256(content["envelope"].encode()).hexdigest()},
            "payloadHash": {
                "algorithm": "sha256",
                "value": hashlib.sha256(base64.b64decode(envelope["payload"])).hexdigest(),
            },
            "signatures": [{"signature": envelope["signatures"][0]["sig"], "verifier": verifier}],
        }
        body = json.dumps({"apiVersion": "0.0.1", "kind": "dsse", "spec": spec}, sort_keys=True).encode()
        identity = hashlib.sha256(der(self.log)).digest()
        when = int((datetime.now(UTC) + self.late).timestamp())
        # Verifiers in Go refuse a log's very first entry: this is the first of a later tree of it, and the only one.
        promised = {"body": text(body), "integratedTime": when, "logID": identity.hex(), "logIndex": 7}
        promise = signed(self.log, json.dumps(promised, sort_keys=True, separators=(",", ":")).encode())
        root = hashlib.sha256(b"\0" + body).digest()
        note = f"{HOST} - 1\n1\n{text(root)}\n"
        checkpoint = f"{note}\n— {HOST} {text(identity[:4] + signed(self.log, note.encode()))}\n"
        proof = {"checkpoint": checkpoint, "hashes": [], "logIndex": 0, "rootHash": root.hex(), "treeSize": 1}
        verification = {"inclusionProof": proof, "signedEntryTimestamp": text(promise)}
        return {"0" * 80: {**promised, "verification": verification}}

    def answer(self, path: str, body: bytes) -> Any:
        """Answer a request; raise KeyError for one that a Sigstore does not know."""
        self.asked.append(path.partition("?")[0])
        if path.startswith("/api/v2/signingCert"):
            request = base64.b64decode(json.loads(body)["certificateSigningRequest"])
            chain = {"certificates": self.certificate(x509.load_pem_x509_csr(request))}
            return {"signedCertificateEmbeddedSct": {"chain": chain}}
        if path.startswith("/api/v1/log/entries"):
            return self.entry(json.loads(body))
        if path.startswith("/.well-known/"):
            return {"authorization_endpoint": f"{self.url}/auth", "token_endpoint": f"{self.url}/token"}
        return {"/token": {"access_token": self.token()}, "/job": {"value": self.token()}}[path.partition("?")[0]]


def as_a_job(sigstore: Sigstore, patch: pytest.MonkeyPatch) -> None:
    """Be a job of GitHub Actions, which is what the library asks first."""
    patch.setenv("GITHUB_ACTIONS", "true")
    patch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "of the job")
    patch.setenv("ACTIONS_ID_TOKEN_REQUEST_URL", f"{sigstore.url}/job")


@contextmanager
def running() -> Iterator[Sigstore]:
    """Start a Sigstore on a free port."""
    made = Sigstore()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                status, value = 200, made.answer(self.path, self.rfile.read(int(self.headers["Content-Length"] or 0)))
            except KeyError:
                status, value = 404, {"message": "not found"}
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer((HOST, 0), Handler) as server:
        made.url = f"http://{HOST}:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield made
        server.shutdown()
        thread.join()
