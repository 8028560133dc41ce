"""A statement is signed with a key, by its owner alone; whatever changes afterwards is found, and named."""

import base64
import getpass
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from hypothesis import given
from hypothesis import strategies as st
from tests.cases.audits import AUDIT
from tests.conftest import ROOT, Refuses, Worded
from tests.processes import requant
from typer.testing import CliRunner

from requant.audit.audits import statement as audit_statement
from requant.checkpoint.manifest import read_manifest
from requant.cli.options import app
from requant.digest import MAX_STATEMENT, canonical_json, sha256
from requant.errors import CheckpointError, UsageError
from requant.evidence import private
from requant.evidence.keys import KINDS, Kind, PrivateKey, parse_public, read_private, read_public, write_key
from requant.evidence.signatures import (
    MAX_BUNDLE,
    MAX_SUBJECTS,
    PAYLOAD_TYPE,
    Bundle,
    Fault,
    SignatureError,
    bundle_path,
    confirm_subjects,
    parse_statement,
    read_bundle,
    sign,
    sign_file,
    verify,
    verify_file,
)
from requant.evidence.statements import in_toto

RECORD = ROOT / "builds" / "ec" / "mini.intoto.jsonl"
STATEMENT = in_toto({"model.safetensors": "0a" * 32, "config.json": "0b" * 32}, "urn:x", {"says": "nothing"})


def key(kind: Kind, number: int) -> PrivateKey:
    """One of a few keys that are always the same, so that messages can name them."""
    return read_private(KEYS / f"{kind}-{number}.key")


@pytest.fixture(scope="module", autouse=True)
def keys(tmp_path_factory: pytest.TempPathFactory) -> None:
    global KEYS
    KEYS = tmp_path_factory.mktemp("keys")
    for number in range(2):
        edwards = Ed25519PrivateKey.from_private_bytes(bytes([number + 1]) * 32)
        nist = ec.derive_private_key(number + 1, ec.SECP256R1())
        made: Ed25519PrivateKey | ec.EllipticCurvePrivateKey
        for kind, made in (("ed25519", edwards), ("ecdsa-p256", nist)):
            (KEYS / f"{kind}-{number}.key").write_bytes(made.private_bytes(*PEM, NoEncryption()))
            public = made.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            (KEYS / f"{kind}-{number}.pub").write_bytes(public)


KEYS: Path
PEM = Encoding.PEM, PrivateFormat.PKCS8
kinds = pytest.mark.parametrize("kind", KINDS)


def fault(data: bytes, *trusted: PrivateKey) -> Fault:
    """What keeps a bundle from proving anything."""
    with pytest.raises(SignatureError) as caught:
        verify(read_bundle(data, "b"), [each.public for each in trusted], "b")
    return caught.value.fault


def changed(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    value = json.loads(data)
    change(value)
    return canonical_json(value) + b"\n"


@kinds
@pytest.mark.parametrize(
    "data", [STATEMENT, RECORD.read_bytes(), audit_statement(AUDIT)], ids=["any", "build", "audit"]
)
def test_what_is_signed_is_verified(kind: Kind, data: bytes) -> None:
    ours, another = key(kind, 0), key(kind, 1)
    signed = verify(read_bundle(sign(data, ours), "b"), [another.public, ours.public], "b")
    assert (signed.key, signed.statement) == (ours.public, data)
    assert signed.subjects == {each["name"]: each["digest"]["sha256"] for each in json.loads(data)["subject"]}


def test_ed25519_signs_the_same_twice() -> None:
    assert sign(STATEMENT, key("ed25519", 0)) == sign(STATEMENT, key("ed25519", 0))


@kinds
def test_every_flipped_bit_is_found(kind: Kind) -> None:
    ours = key(kind, 0)
    data = sign(STATEMENT, ours)
    for position in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        assert fault(bytes(flipped), ours) in Fault


@kinds
def test_each_failure_has_its_name(kind: Kind, refuses: Refuses) -> None:
    ours, another = key(kind, 0), key(kind, 1)
    data = sign(STATEMENT, ours)
    signature = json.loads(data)["dsseEnvelope"]["signatures"][0]
    theirs = json.loads(sign(STATEMENT, another))["verificationMaterial"]
    other = base64.b64encode(in_toto({"model.safetensors": "0c" * 32}, "urn:x", {})).decode()

    def enveloped(**changes: Any) -> bytes:
        return changed(data, lambda value: value["dsseEnvelope"].update(changes))

    def around(**changes: Any) -> bytes:
        return changed(data, lambda value: value.update(changes))

    for expected, made in (
        (Fault.UNSIGNED, enveloped(signatures=[])),
        (Fault.UNSIGNED, enveloped(signatures=[{"keyid": "", "sig": ""}])),
        (Fault.UNSIGNED, enveloped(signatures=[{"keyid": ""}])),
        (Fault.SEVERAL, enveloped(signatures=[signature, signature])),
        (Fault.PAYLOAD_TYPE, enveloped(payloadType="text/plain")),
        (Fault.FORGED, enveloped(payload=other)),
        (Fault.FORGED, around(verificationMaterial=theirs)),
        (Fault.UNREADABLE, around(verificationMaterial={"certificate": {"rawBytes": "AA=="}})),
        (Fault.UNREADABLE, around(more=1)),
        (Fault.UNREADABLE, changed(data, lambda value: value.pop("dsseEnvelope"))),
        (Fault.UNREADABLE, data[:-1]),
    ):
        with refuses(SignatureError) as caught:
            verify(read_bundle(made, "b"), [ours.public, another.public], "b")
        assert caught.value.fault is expected
    for some in ((), (another.public,)):
        with refuses(SignatureError) as caught:
            verify(read_bundle(data, "b"), some, "b")
        assert caught.value.fault is Fault.UNKNOWN_KEY


@kinds
def test_another_type_of_payload_is_not_signed_with_it(kind: Kind) -> None:
    """The signature is over the type too: the same bytes, signed as something else, are no statement."""
    ours = key(kind, 0)
    plain = b"DSSEv1 10 text/plain %d %b" % (len(STATEMENT), STATEMENT)
    signature = bytes.fromhex(ours.signer.sign(plain).signature)
    assert fault(Bundle(ours.public.id, STATEMENT, signature).as_bytes(), ours) is Fault.FORGED


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}\n",
        b"\xff\n",
        STATEMENT.rstrip(),
        STATEMENT.replace(b":", b": ", 1),
        STATEMENT.replace(b"Statement/v1", b"Statement/v2"),
        STATEMENT.replace(b'"sha256"', b'"sha512"'),
        STATEMENT.replace(b'"name"', b'"uri"'),
        STATEMENT.replace(b"config.json", b"model.safetensors"),
        in_toto({}, "urn:x", {}),
        in_toto({"a": "0A" * 32}, "urn:x", {}),
        in_toto({f"{number:04}": "0a" * 32 for number in range(MAX_SUBJECTS + 1)}, "urn:x", {}),
        canonical_json({**json.loads(STATEMENT), "more": 1}) + b"\n",
        canonical_json({**json.loads(STATEMENT), "predicate": []}) + b"\n",
    ],
    ids=lambda data: sha256(data)[:8],
)
def test_what_is_not_a_statement_is_neither_signed_nor_believed(data: bytes, worded: Worded) -> None:
    ours = key("ed25519", 0)
    with pytest.raises(ValueError) as caught:
        sign(data, ours)
    worded(str(caught.value))
    signature = ours.signer.sign(b"DSSEv1 %d %b %d %b" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(data), data))
    forged = Bundle(ours.public.id, data, bytes.fromhex(signature.signature)).as_bytes()
    assert fault(forged, ours) is Fault.STATEMENT


def test_as_many_subjects_as_other_tools_read() -> None:
    many = in_toto({f"{number:04}": "0a" * 32 for number in range(MAX_SUBJECTS)}, "urn:x", {})
    assert len(parse_statement(many)[1]) == MAX_SUBJECTS


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=9,
)
PLACES = (
    (),
    ("mediaType",),
    ("verificationMaterial",),
    ("verificationMaterial", "publicKey"),
    ("verificationMaterial", "publicKey", "hint"),
    ("verificationMaterial", "tlogEntries"),
    ("dsseEnvelope",),
    ("dsseEnvelope", "payload"),
    ("dsseEnvelope", "payloadType"),
    ("dsseEnvelope", "signatures"),
    ("dsseEnvelope", "signatures", 0),
    ("dsseEnvelope", "signatures", 0, "keyid"),
    ("dsseEnvelope", "signatures", 0, "sig"),
)


@given(st.sampled_from(PLACES), json_values)
def test_whatever_stands_somewhere_in_a_bundle_is_named(place: tuple[Any, ...], found: Any) -> None:
    ours = key("ed25519", 0)
    data = sign(STATEMENT, ours)
    value: Any = {"": json.loads(data)}
    *inside, last = ("", *place)
    at = value
    for each in inside:
        at = at[each]
    at[last] = found
    made = canonical_json(value[""]) + b"\n"
    if made != data:
        assert fault(made, ours) in Fault


@given(st.binary(max_size=200))
def test_any_bytes_are_named(data: bytes) -> None:
    assert fault(data, key("ed25519", 0)) is Fault.UNREADABLE


@given(st.binary(min_size=32, max_size=32).map(bytes.hex), st.binary(max_size=99), st.binary(min_size=1, max_size=99))
def test_a_bundle_is_read_as_it_was_written(key_id: str, payload: bytes, signature: bytes) -> None:
    bundle = Bundle(key_id, payload, signature)
    assert read_bundle(bundle.as_bytes(), "b") == bundle


def test_a_bundle_stands_beside_its_statement(tmp_path: Path, refuses: Refuses) -> None:
    path, ours, another = tmp_path / "mini.intoto.jsonl", key("ecdsa-p256", 0), key("ecdsa-p256", 1)
    path.write_bytes(STATEMENT)
    bundle = sign_file(path, ours)
    assert bundle == bundle_path(path) == tmp_path / "mini.sigstore.json"
    first = bundle.read_bytes()
    assert (sign_file(path, ours), bundle.read_bytes()) == (bundle, first)
    assert verify_file(bundle, [ours.public], statement=STATEMENT).statement == STATEMENT
    for statement, signer in ((STATEMENT, another), (RECORD.read_bytes(), ours)):
        path.write_bytes(statement)
        with pytest.raises(UsageError, match="exists, and is not this statement signed with this key"):
            sign_file(path, signer)
        assert bundle.read_bytes() == first
    with pytest.raises(SignatureError) as caught:
        verify_file(bundle, [ours.public], statement=RECORD.read_bytes())
    assert caught.value.fault is Fault.OTHER_STATEMENT


def test_a_statement_about_other_files_is_named() -> None:
    signed = verify(read_bundle(sign(RECORD.read_bytes(), key("ed25519", 0)), "b"), [key("ed25519", 0).public], "b")
    files = {name: each.sha256 for name, each in read_manifest(RECORD.with_name("mini.manifest.json")).files.items()}
    confirm_subjects(signed, files, "b")
    first = min(files)
    for other in ({**files, first: "00" * 32}, {**files, "more": "00" * 32}, {**files, first: ""}, {}):
        with pytest.raises(SignatureError) as caught:
            confirm_subjects(signed, other, "b")
        assert caught.value.fault is Fault.OTHER_SUBJECTS


def test_what_cannot_be_read_is_named(tmp_path: Path, refuses: Refuses) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        verify_file(tmp_path / "b", [])
    for path, limit, read in (
        (tmp_path / "large.sigstore.json", MAX_BUNDLE, lambda path: verify_file(path, [])),
        (tmp_path / "large.intoto.jsonl", MAX_STATEMENT, lambda path: sign_file(path, key("ed25519", 0))),
    ):
        with path.open("wb") as holes:
            holes.truncate(1 << 40)
        with pytest.raises(CheckpointError, match=f"larger than {limit:,} bytes"):
            read(path)


@kinds
def test_a_key_is_named_as_openssl_would(kind: Kind) -> None:
    path = KEYS / f"{kind}-0.pub"
    pem = "".join(line for line in path.read_text().splitlines() if not line.startswith("-"))
    assert read_public(path).id == sha256(base64.b64decode(pem))
    assert read_public(path) == read_public(path.with_suffix(".key")) == read_private(path.with_suffix(".key")).public
    assert (read_public(path).kind, read_public(path).pem) == (kind, path.read_text())


def test_a_key_is_for_its_owner_and_never_replaced(tmp_path: Path) -> None:
    write_key(tmp_path / "a", "ed25519")
    assert (tmp_path / "a.key").stat().st_mode & 0o777 == 0o600
    for left in (".key", ".pub"):
        kept = (tmp_path / f"a{left}").read_bytes()
        (tmp_path / f"a{'.pub' if left == '.key' else '.key'}").unlink(missing_ok=True)
        with pytest.raises(UsageError, match="exists"):
            write_key(tmp_path / "a", "ed25519")
        assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == {f"a{left}": kept}
        (tmp_path / f"a{left}").unlink()
        write_key(tmp_path / "a", "ed25519")
    with pytest.raises(UsageError):
        write_key(tmp_path / "none" / "a", "ed25519")


def foreign() -> dict[str, bytes]:
    """Keys that are none of ours, and other files."""
    p384, large = ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)
    ours = load_pem_private_key((KEYS / "ed25519-0.key").read_bytes(), None)
    return {
        "p384.key": p384.private_bytes(*PEM, NoEncryption()),
        "p384.pub": p384.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "rsa.key": large.private_bytes(*PEM, NoEncryption()),
        "rsa.pub": large.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "passphrase.key": ours.private_bytes(*PEM, BestAvailableEncryption(b"secret")),
        "empty": b"",
        "text": b"my secret is 1234",
        "broken.key": (KEYS / "ed25519-0.key").read_bytes()[:60],
        "large": b"-----BEGIN PUBLIC KEY-----\n" * 999,
    }


def test_other_keys_are_refused_and_not_quoted(tmp_path: Path) -> None:
    for name, data in foreign().items():
        (tmp_path / name).write_bytes(data)
        for read in (read_public, read_private):
            with pytest.raises(UsageError) as caught:
                read(tmp_path / name)
            assert name in str(caught.value) and "1234" not in str(caught.value) and "BEGIN" not in str(caught.value)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_key_or_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a public key"):
        parse_public(data)


def test_a_private_key_does_not_show() -> None:
    ours = key("ed25519", 0)
    assert ours.signer.private_bytes.decode().splitlines()[1] not in repr(ours)


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ran(*words: str) -> str:
        done = CliRunner().invoke(app, words)
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.stdout

    monkeypatch.chdir(tmp_path)
    Path("mini.intoto.jsonl").write_bytes(RECORD.read_bytes())
    name = ran("keys", "new", "ada").split()[1]
    assert ran("keys", "show", "ada.key").splitlines()[0] == f"ed25519 {name}"
    assert ran("sign", "mini.intoto.jsonl", "--key", "ada.key") == f"mini.sigstore.json: signed with {name}\n"
    shown = ("show", "bundle", "mini.sigstore.json", "--key", "ada.pub", "--manifest")
    assert ran(*shown, str(RECORD.with_name("mini.manifest.json"))).startswith(f"signed with ed25519 {name}\n")
    with pytest.raises(SignatureError, match=Fault.OTHER_SUBJECTS):
        ran(*shown, str(RECORD.with_name("demo.manifest.json")))
    ran("keys", "new", "eve", "--kind", "ecdsa-p256")
    with pytest.raises(UsageError, match=Fault.UNKNOWN_KEY):
        ran("sign", "mini.intoto.jsonl", "--key", "eve.key")
    with pytest.raises(SignatureError, match=Fault.UNKNOWN_KEY):
        ran("show", "bundle", "mini.sigstore.json", "--key", "eve.pub")
    with pytest.raises(UsageError):
        ran("sign", "mini.intoto.jsonl", "--key", "ada.pub")
    done = requant("show", "bundle", "mini.sigstore.json", "--key", "eve.pub", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (6, "") and Fault.UNKNOWN_KEY in done.stderr


@pytest.mark.parametrize(
    "planted",
    [
        "/home/ada/out",
        "loaded from /work/x",
        "~/models",
        "C:\\Users\\ada",
        "file:/x",
        getpass.getuser(),
        f"on {platform.node()} in 3 s",
        str(Path.home()),
        "hf_" + "aB3" * 12,
        "ghp_" + "aB3" * 12,
        "-----BEGIN PRIVATE KEY-----",
        "ada@example.org",
        "192.168.0.7",
    ],
)
def test_the_scan_finds_what_is_planted(planted: str) -> None:
    assert private.in_record(in_toto({"a": "0a" * 32}, "urn:x", {"taints": ["none", planted]})) == [planted]
    assert private.in_record(in_toto({"a": "0a" * 32}, "urn:x", {planted: 1})) == [planted]


def test_the_scan_refuses_what_is_nested_too_deeply() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        private.in_record(b"[" * 200_000 + b"]" * 200_000)


@pytest.mark.parametrize("path", sorted((ROOT / "builds").rglob("*.intoto.jsonl")), ids=lambda path: path.parent.name)
def test_nothing_of_a_machine_is_recorded(path: Path) -> None:
    assert private.in_record(path.read_bytes()) == []


def test_a_bundle_has_a_statement_a_digest_a_signature_and_no_more() -> None:
    value = json.loads(sign(STATEMENT, key("ed25519", 0)))
    assert base64.b64decode(value["dsseEnvelope"].pop("payload")) == STATEMENT
    hint = base64.b64encode(bytes.fromhex(key("ed25519", 0).public.id)).decode()
    assert len(value["dsseEnvelope"]["signatures"][0].pop("sig")) == 88
    assert value == {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
        "dsseEnvelope": {"payloadType": PAYLOAD_TYPE, "signatures": [{"keyid": ""}]},
    }
