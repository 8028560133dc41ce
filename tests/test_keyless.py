"""Signed without a key: by sigstore-python's own flow, with a Sigstore of our own in place of the public one."""

import base64
import builtins
import json
import sys
import webbrowser
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sigstore.models import Bundle as Theirs
from sigstore.models import ClientTrustConfig
from sigstore.verify import Verifier
from sigstore.verify.policy import Identity as Policy
from tests.conftest import ROOT, Refuses
from tests.sigstores import GITHUB, WORKFLOW, Sigstore, as_a_job, running
from typer.testing import CliRunner

from requant.audit.builders import FILE, read_builders
from requant.audit.parties import Party, party_of
from requant.cli.options import app
from requant.digest import canonical_json
from requant.errors import CheckpointError, NotAvailableError, UsageError
from requant.evidence import private
from requant.evidence.keyless import Identity, log_in
from requant.evidence.keys import write_key
from requant.evidence.signatures import Fault, SignatureError, read_bundle, sign, sign_file, verify
from requant.evidence.statements import in_toto

RECORD = ROOT / "builds" / "ec" / "mini.intoto.jsonl"
STATEMENT = in_toto({"model.safetensors": "0a" * 32}, "urn:x", {"says": "nothing"})
ADA = Identity("https://accounts.google.com", "ada@example.com")


@pytest.fixture(scope="module")
def sigstore() -> Iterator[Sigstore]:
    with running() as made:
        yield made


@pytest.fixture(scope="module")
def trust(sigstore: Sigstore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trust") / "sigstore.json"
    path.write_text(json.dumps(sigstore.trust_config()))
    return path


@pytest.fixture(autouse=True)
def job(sigstore: Sigstore, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Be a job; the Sigstore is as it was afterwards."""
    as_a_job(sigstore, monkeypatch)
    yield
    sigstore.issuer, sigstore.subject, sigstore.late = GITHUB, WORKFLOW, timedelta()


@pytest.fixture(scope="module")
def bundle(sigstore: Sigstore, trust: Path) -> bytes:
    """One that holds, of the workflow."""
    with pytest.MonkeyPatch.context() as patch:
        as_a_job(sigstore, patch)
        return sign(STATEMENT, log_in(trust))


def workflow(trust: Path) -> Identity:
    return Identity(GITHUB, WORKFLOW, trust)


def fault(data: bytes, *known: Identity) -> tuple[Fault, str]:
    with pytest.raises(SignatureError) as caught:
        verify(read_bundle(data, "b"), known, "b")
    return caught.value.fault, str(caught.value)


def test_signed_and_verified(bundle: bytes, trust: Path) -> None:
    signed = verify(read_bundle(bundle, "b"), [workflow(trust)], "b")
    assert (signed.statement, signed.subjects) == (STATEMENT, {"model.safetensors": "0a" * 32})
    assert signed.key == workflow(trust)
    assert signed.as_json()["identity"] == {"issuer": GITHUB, "subject": WORKFLOW}
    assert read_bundle(bundle, "b").as_bytes() == bundle


def test_the_library_alone_verifies_it_too(bundle: bytes, trust: Path) -> None:
    verifier = Verifier(trusted_root=ClientTrustConfig.from_json(trust.read_text()).trusted_root)
    kind, payload = verifier.verify_dsse(Theirs.from_json(bundle), Policy(identity=WORKFLOW, issuer=GITHUB))
    assert (kind, payload) == ("application/vnd.in-toto+json", STATEMENT)


def test_who_is_exactly_who(bundle: bytes, trust: Path) -> None:
    for subject in (WORKFLOW[:-1], f"{WORKFLOW}s", WORKFLOW.replace("ada", "Ada"), "https://github.com/.*", ""):
        found, said = fault(bundle, Identity(GITHUB, subject, trust))
        assert found is Fault.UNKNOWN_IDENTITY and WORKFLOW in said
    for issuer in (f"{GITHUB}/", "https://accounts.google.com", ""):
        found, said = fault(bundle, Identity(issuer, WORKFLOW, trust))
        assert found is Fault.OTHER_ISSUER and GITHUB in said
    assert fault(bundle)[0] is Fault.UNKNOWN_IDENTITY


def test_a_subject_of_a_foreign_issuer(sigstore: Sigstore, trust: Path) -> None:
    sigstore.issuer = "https://example.com"
    forged = sign(STATEMENT, log_in(trust))
    assert fault(forged, workflow(trust))[0] is Fault.OTHER_ISSUER


@pytest.mark.parametrize("late", [timedelta(minutes=11), timedelta(minutes=-2)], ids=["after", "before"])
def test_the_certificate_was_not_valid_when_the_log_saw_it(late: timedelta, sigstore: Sigstore, trust: Path) -> None:
    sigstore.late = late
    found, said = fault(sign(STATEMENT, log_in(trust)), workflow(trust))
    assert found is Fault.CERTIFICATE and "not valid at validation time" in said


def test_another_sigstore(bundle: bytes, trust: Path, tmp_path: Path) -> None:
    """Each of its three keys is needed: that of the authority, of the log of certificates, of the log of signatures."""
    ours, another = json.loads(trust.read_text()), Sigstore(url="http://localhost:1").trust_config()
    for part, said in (
        ("certificateAuthorities", "failed to build timestamp certificate chain"),
        ("ctlogs", "failed to verify SCT"),
        ("tlogs", "invalid log entry"),
    ):
        mixed = ours | {"trustedRoot": ours["trustedRoot"] | {part: another["trustedRoot"][part]}}
        path = tmp_path / f"{part}.json"
        path.write_text(json.dumps(mixed))
        found, text = fault(bundle, workflow(path))
        assert found is Fault.CERTIFICATE and said in text


def changed(data: bytes, *keys: Any, to: Any) -> bytes:
    value = json.loads(data)
    inside = value
    for key in keys[:-1]:
        inside = inside[key]
    inside[keys[-1]] = to
    return canonical_json(value) + b"\n"


def test_what_was_changed_is_found(bundle: bytes, trust: Path) -> None:
    other = base64.b64encode(STATEMENT.replace(b"nothing", b"another")).decode()
    entry = json.loads(bundle)["verificationMaterial"]["tlogEntries"][0]
    material = ("verificationMaterial",)
    log = (*material, "tlogEntries")
    del entry["inclusionPromise"]
    for data in (
        changed(bundle, "dsseEnvelope", "payload", to=other),
        changed(bundle, "dsseEnvelope", "signatures", to=[{"keyid": "", "sig": "MAYCAQECAQE="}]),
        changed(bundle, *log, to=[]),
        changed(bundle, *log, to=[entry]),  # nothing says when
        changed(bundle, *log, 0, "logIndex", to="1"),
        changed(bundle, *log, 0, "integratedTime", to="1700000000"),
        changed(bundle, *material, "more", to=1),
        changed(bundle, *log, 0, "more", to=1),
    ):
        assert fault(data, workflow(trust))[0] is Fault.CERTIFICATE
    unsigned = changed(bundle, "dsseEnvelope", "signatures", to=[])
    assert fault(unsigned, workflow(trust))[0] is Fault.UNSIGNED


def test_a_bundle_of_a_stranger_stops_nothing(bundle: bytes, trust: Path) -> None:
    certificate = json.loads(bundle)["verificationMaterial"]["certificate"]["rawBytes"]
    version = b"\xa0\x03\x02\x01"
    unheard_of = base64.b64decode(certificate).replace(version + b"\x02", version + b"\x09", 1)
    material = ("verificationMaterial",)
    infinite = changed(bundle, *material, "more", to=7).replace(b'"more":7', b'"more":1e999')
    for data in (
        changed(bundle, *material, "certificate", "rawBytes", to=base64.b64encode(unheard_of).decode()),
        infinite,
    ):
        assert data != bundle and fault(data, workflow(trust))[0] is Fault.UNREADABLE


def test_a_certificate_is_no_key(bundle: bytes, trust: Path, tmp_path: Path) -> None:
    """A bundle whose hint is the id of an identity, or whose material is a key's, is nobody's."""
    hint = base64.b64encode(bytes.fromhex(workflow(trust).id)).decode()
    forged = changed(bundle, "verificationMaterial", to={"publicKey": {"hint": hint}, "tlogEntries": []})
    assert fault(forged, workflow(trust))[0] is Fault.CERTIFICATE
    named = changed(bundle, "verificationMaterial", "certificate", to={"rawBytes": "AA=="})
    assert fault(named, workflow(trust))[0] is Fault.UNREADABLE


@given(data=st.data())
def test_no_other_bit_says_something_else(data: st.DataObject, bundle: bytes, trust: Path) -> None:
    """One bit of the bundle is another: refused, or what is said by whom is what it was."""
    place = data.draw(st.integers(0, len(bundle) - 1))
    flipped = bytearray(bundle)
    flipped[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        signed = verify(read_bundle(bytes(flipped), "b"), [workflow(trust)], "b")
    except SignatureError:
        return
    assert (signed.statement, signed.key) == (STATEMENT, workflow(trust))


def builders(folder: Path, trust: Path, *tables: str) -> Path:
    path = folder / FILE
    (folder / "sigstore.json").write_text(trust.read_text())
    path.write_text('trust_config = "sigstore.json"\n' + "".join(f"[[builder]]\n{each}\n" for each in tables))
    return path


def test_an_identity_is_a_party(bundle: bytes, trust: Path, tmp_path: Path) -> None:
    table = f'name = "Ada"\nidentity = "{WORKFLOW}"\nissuer = "{GITHUB}"\n'
    path = tmp_path / "s.sigstore.json"
    path.write_bytes(bundle)
    known = read_builders(builders(tmp_path, trust, table))
    assert party_of(path, STATEMENT, known, "Eve") == Party(workflow(trust).id, "Ada")
    over = read_builders(builders(tmp_path, trust, f"{table}until = 2020-01-01\n"))
    assert party_of(path, STATEMENT, over, "Eve") == Party("", "Eve", "the key of Ada expired on 2020-01-01")
    foreign = read_builders(builders(tmp_path, trust, table.replace(GITHUB, "https://example.com")))
    assert "another issuer" in party_of(path, STATEMENT, foreign, "Eve").why
    path.write_bytes(changed(bundle, "verificationMaterial", "tlogEntries", to=[]))
    with pytest.raises(SignatureError, match="certificate does not hold"):
        party_of(path, STATEMENT, known, "Eve")


@pytest.mark.parametrize(
    "table",
    [
        'name = "Ada"\nidentity = "x"',
        'name = "Ada"\nissuer = "x"\nkey = "x"',
        'name = "Ada"\nidentity = 1\nissuer = "x"',
        'name = "Ada"\nidentity = "x"\nissuer = "y"\n[[builder]]\nname = "Eve"\nidentity = "x"\nissuer = "y"',
    ],
)
def test_a_list_that_names_nobody(table: str, trust: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a list of builders"):
        read_builders(builders(tmp_path, trust, table))


def test_a_trust_configuration_stands_beside_the_list(trust: Path, tmp_path: Path) -> None:
    path = builders(tmp_path, trust)
    path.write_text('trust_config = "../sigstore.json"\n')
    with pytest.raises(CheckpointError, match="beside the list"):
        read_builders(path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the library leaves a socket open
def test_somebody_logs_in(sigstore: Sigstore, trust: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of CI the library opens the browser, or asks for a code."""
    monkeypatch.delenv("GITHUB_ACTIONS")
    monkeypatch.setattr(webbrowser, "open", lambda *_: False)
    monkeypatch.setattr(builtins, "input", lambda _: "a code")
    sigstore.issuer, sigstore.subject = ADA.issuer, ADA.subject
    signed = verify(read_bundle(sign(STATEMENT, log_in(trust)), "b"), [Identity(ADA.issuer, ADA.subject, trust)], "b")
    assert signed.text()[0] == "signed by ada@example.com, for whom https://accounts.google.com vouches"


def test_no_token_is_in_it(sigstore: Sigstore, trust: Path, bundle: bytes) -> None:
    assert private.in_text(bundle) == []
    assert private.in_record(read_bundle(bundle, "a bundle").statement) == []  # a signature can look like anything
    assert sigstore.token().encode() not in bundle
    assert "token" not in repr(log_in(trust)).replace("token.actions", "")


def test_the_commands(trust: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini.intoto.jsonl").write_bytes(RECORD.read_bytes())
    builders(tmp_path, trust, f'name = "Ada"\nidentity = "{WORKFLOW}"\nissuer = "{GITHUB}"\n')
    sign_it = ["sign", "mini.intoto.jsonl", "--key", "keyless:sigstore.json"]
    for _ in range(2):  # the second says so, and signs nothing
        done = CliRunner().invoke(app, sign_it)
        assert done.exit_code == 0 and f"signed by {WORKFLOW}" in done.stdout.replace("\n", "")
    show = ["show", "bundle", "mini.sigstore.json"]
    done = CliRunner().invoke(app, [*show, "--builders", FILE, "--json"])
    assert json.loads(done.stdout)["kind"] == "identity"
    manifest = str(ROOT / "builds" / "ec" / "mini.manifest.json")
    assert CliRunner().invoke(app, [*show, "--builders", FILE, "--manifest", manifest]).exit_code == 0
    other = ["--identity", "eve@example.com", "--issuer", GITHUB]
    assert isinstance(CliRunner().invoke(app, [*show, *other]).exception, SignatureError)
    for half in ([], ["--identity", "eve@example.com"], ["--issuer", GITHUB]):
        assert CliRunner().invoke(app, [*show, *half]).exit_code == 2


def test_another_bundle_is_not_replaced(trust: Path, tmp_path: Path, refuses: Refuses) -> None:
    path = tmp_path / "mini.intoto.jsonl"
    path.write_bytes(RECORD.read_bytes())
    write_key(tmp_path / "eve", "ed25519")
    path.with_name("mini.sigstore.json").write_bytes(b"{}")
    with pytest.raises(UsageError, match="exists"):
        sign_file(path, log_in(trust))


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, bundle: bytes, refuses: Refuses) -> None:
    monkeypatch.setitem(sys.modules, "sigstore", None)
    for known in (workflow(Path("x")), workflow(Path("y"))):
        with pytest.raises(UsageError, match="not installed"):
            verify(read_bundle(bundle, "b"), [known], "b")
    with refuses(UsageError):
        log_in(None)


def test_nobody_answers(tmp_path: Path, trust: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sigstore.json"
    path.write_text(json.dumps(Sigstore(url="http://localhost:1").trust_config()))
    with pytest.raises(NotAvailableError, match="Sigstore: "):
        log_in(path)
    monkeypatch.delenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN")
    with pytest.raises(NotAvailableError, match="ACTIONS_ID_TOKEN_REQUEST_TOKEN"):
        log_in(trust)
    for text in ("{}", "[", "{" + "a" * 9):
        path.write_text(text)
        with pytest.raises(UsageError, match="not the trust configuration"):
            log_in(path)
    with pytest.raises(UsageError, match="No such file"):
        log_in(tmp_path / "none.json")
