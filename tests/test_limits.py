"""Whatever stands in a file that a verb reads, it takes less than 1 GiB: the worst of each kind, at its limit.

Memory is what the kernel counted. Time, 10 seconds where nothing else runs, is held by a limit far above it.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from securesystemslib.dsse import Envelope
from tests.cases.tiny_models import healthy
from tests.checkpoints import shard, write
from tests.conftest import ROOT, Refuses

from requant.card.markdown import MAX_CARD, MAX_LINES
from requant.checkpoint.checkpoint import INDEX, write_checkpoint
from requant.digest import (
    DEEPEST,
    MAX_INDEX,
    MAX_JOURNAL,
    MAX_MANIFEST,
    MAX_SIDE,
    MAX_STATEMENT,
    MAX_TOML,
    MAX_VALUES,
    read_whole,
    strict_json,
)
from requant.evidence.keys import read_private, write_key
from requant.evidence.signatures import MAX_BUNDLE, PAYLOAD_TYPE, Bundle

MOST = 1 << 20
"""KiB of memory."""
PROGRAM = """if True:
    import sys
    from requant.__main__ import main
    try:
        main()
    finally:
        told = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
        sys.stderr.write("\\nKiB " + told.split()[1])
"""


def taken(*words: object, cwd: Path) -> int:
    """Run a verb; return the KiB that it took at most. It says what is wrong, and is not at a loss."""
    command = [sys.executable, "-c", PROGRAM, *map(str, words)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode not in (70, -9), done.stderr[-2000:]
    assert len(done.stderr) < 30_000
    return int(done.stderr.rpartition("KiB ")[2])


def filled(unit: bytes, limit: int) -> bytes:
    """Return a list of as many units as there may be."""
    marks = sum(unit.count(mark) for mark in (b",", b"[", b"{"))
    return b"[" + unit * min((limit - 9) // len(unit), (MAX_VALUES - 9) // marks) + b"0]"


def deep(limit: int) -> bytes:
    """Objects in objects: the most memory for a byte."""
    inside = DEEPEST - 5
    return filled(b'{"":' * inside + b"0" + b"}" * inside + b",", limit)


def many(limit: int) -> bytes:
    """One object with as many keys as there may be."""
    count = min(limit // 12 - 9, MAX_VALUES - 99)
    return b"{" + b",".join(b'"%07d":0' % number for number in range(count)) + b"}"


def long(limit: int) -> bytes:
    """One key of the widest letters."""
    return '{"\U0001f600'.encode() + b"a" * (limit - 99) + b'":{}}'


def manifest_of(limit: int) -> bytes:
    """A manifest of as many tensors as there may be, none of which is there."""
    one = '"%07d":{"dtype":"U8","file":"a","sha256":"' + "0" * 64 + '","shape":[1]}'
    count = min(limit // 128, MAX_VALUES // 6) - 99
    tensors = ",".join(one % number for number in range(count))
    return f'{{"files":{{"a":{{"bytes":1,"sha256":"{"0" * 64}"}}}},"schema":1,"tensors":{{{tensors}}}}}\n'.encode()


def dotted(limit: int) -> bytes:
    return b"a." * ((limit - 9) // 2) + b"a = 1\n"


def headers_of_tables(limit: int) -> bytes:
    return b"[" + b"a." * ((limit - 9) // 2) + b"a]\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("limits")
    write_checkpoint(healthy("ec"), folder / "C")
    for name in ("builds", "lockfiles"):
        shutil.copytree(ROOT / name, folder / name)
    for path in ROOT.glob("Dockerfile.*"):
        shutil.copyfile(path, folder / path.name)
    write_key(folder / "K", "ed25519")
    return folder


def again(*case: object) -> Any:
    """One of the full tier: in the other, `test_what_is_longer_is_refused_by_name` holds nearly the same readers."""
    return pytest.param(*case, marks=pytest.mark.full)


CARD = "card builds/ec --tiny --size mini --compare CARD"
SIDES = ("config.json", "quantization_config.json", "tokenizer_config.json", INDEX)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        again("M", manifest_of(MAX_MANIFEST), "verify C M --json"),
        ("M", b'{"files":' + long(MAX_MANIFEST - 99) + b',"schema":1,"tensors":{}}\n', "verify C M"),
        again("J", deep(MAX_JOURNAL) + b"\n", "show journal J"),
        ("B", deep(MAX_BUNDLE), "show bundle B --key K.pub"),
        again("B", b'{"dsseEnvelope":' + many(MAX_BUNDLE - 99) + b"}", "show bundle B --key K.pub"),
        again(f"C/{INDEX}", b'{"weight_map":' + deep(MAX_INDEX - 99) + b"}", "inspect C"),
        again(
            f"C/{INDEX}",
            b'{"weight_map":' + many(MAX_INDEX - 99).replace(b":0", b':"a"')[: MAX_INDEX - 99],
            "inspect C",
        ),
        ("C/config.json", deep(MAX_SIDE), "identify C"),
        again("C/config.json", long(MAX_SIDE), "diff C builds"),
        again("C/tokenizer_config.json", many(MAX_SIDE), "identify C"),
        ("builds/bases/qwen3.6-35b-a3b.json", b'{"files":' + many(MAX_SIDE - 99) + b"}", "plan builds/ec"),
        ("builds/ec/mini.intoto.jsonl", deep(MAX_STATEMENT), "coverage builds/ec --tiny --size mini"),
        again("builds/ec/audits/A", deep(MAX_STATEMENT), "coverage builds/ec"),
        ("builds/ec/recipe.toml", dotted(MAX_TOML), "plan builds/ec"),
        again("builds/ec/recipe.toml", headers_of_tables(MAX_TOML), "plan builds/ec"),
        again("builds/ec/recipe.toml", b"a=" + b"[" * (MAX_TOML - 9), "plan builds/ec"),
        again("builds/ec/baseline.toml", dotted(MAX_TOML), "inspect C --recipe builds/ec"),
        again("builds/builders.toml", dotted(MAX_TOML), "coverage builds/ec"),
        ("CARD", b"| iters | 4 | [ |" * 6 + b"\n" + b"Seed: 1\n" * (MAX_LINES - 9), f"{CARD} --json"),
        again("CARD", b"AutoRound(" + b"a=[" * (MAX_CARD // 3 - 9), CARD),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_worst_of_each_kind(file: str, content: bytes, words: str, place: Path) -> None:
    path = place / file
    if file.endswith("/A"):
        path = path.with_name(f"{hashlib.sha256(content).hexdigest()}.intoto.jsonl")
        path.parent.mkdir(exist_ok=True)
    before = path.read_bytes() if path.exists() else None
    path.write_bytes(content)
    try:
        assert taken(*words.split(), cwd=place) < MOST
    finally:
        path.unlink() if before is None else path.write_bytes(before)


@pytest.mark.parametrize(
    ("file", "limit", "words"),
    [
        ("M", MAX_MANIFEST, "verify C M"),
        ("J", MAX_JOURNAL, "show journal J"),
        ("B", MAX_BUNDLE, "show bundle B --key K.pub"),
        ("S", MAX_STATEMENT, "sign S --key K.key"),
        ("C/config.json", MAX_SIDE, "inspect C"),
        (f"C/{INDEX}", MAX_INDEX, "inspect C"),
        ("builds/ec/recipe.toml", MAX_TOML, "plan builds/ec"),
        ("builds/bases/qwen3.6-35b-a3b.config.json", MAX_SIDE, "plan builds/ec"),
        ("CARD", MAX_CARD, CARD),
    ],
)
def test_what_is_longer_is_refused_by_name(file: str, limit: int, words: str, place: Path) -> None:
    path = place / file
    before = path.read_bytes() if path.exists() else None
    with path.open("wb") as holes:
        holes.truncate(1 << 40)
    try:
        command = [sys.executable, "-m", "requant", *words.split()]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True)
        assert done.returncode in (4, 6) and f"larger than {limit:,} bytes" in done.stderr
        assert path.name in done.stderr
    finally:
        path.unlink() if before is None else path.write_bytes(before)


@pytest.mark.parametrize("make", [deep, long], ids=lambda make: str(make.__name__))
def test_the_worst_that_is_signed(make: Callable[[int], bytes], place: Path) -> None:
    """A bundle whose signature holds, so that what is signed is read too, and a statement that is to be signed."""
    key, statement = read_private(place / "K.key"), make(MAX_STATEMENT)
    made = Envelope(statement, PAYLOAD_TYPE, {}).sign(key.signer)
    bundle = Bundle(key.public.id, statement, bytes.fromhex(made.signature)).as_bytes()
    assert len(bundle) < MAX_BUNDLE
    (place / "B").write_bytes(bundle)
    (place / "S").write_bytes(statement)
    assert taken("show", "bundle", "B", "--key", "K.pub", cwd=place) < MOST
    assert taken("sign", "S", "--key", "K.key", cwd=place) < MOST


def test_however_many_threads_compare_however_wide_a_layer_is(tmp_path: Path) -> None:
    """Blocks of 128 outputs that no formula made, which are read together."""
    rows, columns = 1024, 49152
    chance, name = np.random.default_rng(7), "model.layers.0.mlp.up_proj.weight"
    one = [-(-rows // 128), columns // 128]
    base = chance.integers(0x3C00, 0x3D00, (rows, columns), np.uint16)
    codes = chance.integers(0, 0x7E, (rows, columns), np.uint8)
    made = {
        name: ("F8_E4M3", [rows, columns], codes.tobytes()),
        f"{name}_scale_inv": ("F32", one, np.full(one, 2.0**-12, np.float32).tobytes()),
    }
    said = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    for folder, tensors, more in (
        ("base", {name: ("BF16", [rows, columns], base.tobytes())}, {}),
        ("made", made, {"quantization_config": said}),
    ):
        config = json.dumps({"model_type": "qwen3", **more}).encode()
        write(tmp_path / folder, {"config.json": config, "model.safetensors": shard(tensors)})
    assert taken("check", "made", "--base", "base", "--fresh", "--threads", "64", cwd=tmp_path) < MOST


def test_what_is_real_has_worker() -> None:
    """A checkpoint of 100,000 tensors, each name as long as they are, keeps well below every limit."""
    name = "model.language_model.layers.39.mlp.experts.255.gate_proj.qweight{:06d}"
    record = {"dtype": "I32", "file": "model-00001-of-00010.safetensors", "sha256": "0" * 64, "shape": [256, 512]}
    tensors = {name.format(number): record for number in range(100_000)}
    files: dict[str, Callable[[], object]] = {
        "manifest": lambda: {"files": {}, "schema": 1, "tensors": tensors},
        "index": lambda: {"weight_map": {key: each["file"] for key, each in tensors.items()}},
    }
    for kind, limit in (("manifest", MAX_MANIFEST), ("index", MAX_INDEX)):
        data = json.dumps(files[kind](), separators=(",", ":")).encode()
        assert len(data) < limit * 2 / 3
        assert strict_json(data) == files[kind]()


@pytest.mark.parametrize("text", [b"[" * 102 + b"]" * 102, b'{"a":' * 102 + b"1" + b"}" * 102])
def test_documents_are_shallow(text: bytes, refuses: Refuses) -> None:
    with refuses(ValueError, shared=True):
        strict_json(text)
    assert strict_json(b"[" * 90 + b"]" * 90)


def test_documents_have_a_number_of_values(tmp_path: Path, refuses: Refuses) -> None:
    with refuses(ValueError):
        strict_json(b"[" + b"0," * 2_000_000 + b"0]")
    (tmp_path / "f").write_bytes(b"abc")
    assert read_whole(tmp_path / "f", 3) == b"abc"
    with refuses(ValueError):
        read_whole(tmp_path / "f", 2)
