import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.checkpoints import nobody, on_a_disk, on_disk
from tests.conftest import Refuses, Worded

from requant.digest import canonical_json, strict_json
from requant.errors import CheckpointError
from requant.evidence.journal import READERS, Block, Follower, Header, Journal, Loss, Writer, read_journal

text = st.text(st.characters(exclude_categories=("C", "Z")), max_size=5)
strings = st.dictionaries(text, text, max_size=2)
losses = st.floats(allow_nan=False, allow_infinity=False).map(float.hex)
blocks = st.builds(
    Block,
    block=text,
    inputs=strings,
    random_state=text,
    loss=st.none() | st.builds(Loss, losses, losses, st.integers(0)),
    tensors=strings,
    outputs=strings,
    hints=st.none() | text,
)


@st.composite
def journals(draw: st.DrawFn) -> Journal:
    found = tuple(draw(st.lists(blocks, min_size=1, max_size=4)))
    header = draw(st.builds(Header, text, st.none() | text, text, text, text, st.just(len(found))))
    return Journal(header, found)


def written(journal: Journal) -> bytes:
    with on_disk({}) as folder:
        with Writer(folder / "journal.jsonl", journal.header) as writer:
            for block in journal.blocks:
                writer.append(block)
        return (folder / "journal.jsonl").read_bytes()


def read(data: bytes, *, growing: bool = False) -> Journal:
    with on_disk({"journal.jsonl": data}) as folder:
        return read_journal(folder / "journal.jsonl", growing=growing)


BLOCK = Block("layers.0", {"full": "ab"}, "cd", Loss((1.5).hex(), (0.5).hex(), 3), {"layers.0.w": "ef"}, {"full": "01"})
JOURNAL = Journal(
    Header("recipe", "mini", "environment", "base", "calibration", blocks=3),
    tuple(replace(BLOCK, block=f"layers.{i}") for i in range(3)),
)
LINES = written(JOURNAL).splitlines(keepends=True)


@on_a_disk
@given(journal=journals())
def test_what_is_written_is_read_back(journal: Journal) -> None:
    data = written(journal)
    assert read(data) == journal
    assert written(read(data)) == data


def test_a_build_without_a_tiny_model_has_none() -> None:
    journal = replace(JOURNAL, header=replace(JOURNAL.header, tiny=None))
    assert read(written(journal)) == journal


def test_a_block_without_hints_has_no_such_key(refuses: Refuses) -> None:
    assert [b'"hints"' in line for line in LINES] == [False] * 4
    assert b'"hints":"ab"' in written(replace(JOURNAL, blocks=(replace(BLOCK, hints="ab"),) * 3))
    header, line = LINES[0], json.loads(LINES[1])
    with refuses(CheckpointError):
        read(header + canonical_json({**line, "hints": None}) + b"\n", growing=True)


def test_a_journal_is_on_disk_line_by_line_and_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Writer(path, JOURNAL.header) as writer:
        for count, block in enumerate(JOURNAL.blocks):
            assert read_journal(path, growing=True) == replace(JOURNAL, blocks=JOURNAL.blocks[:count])
            writer.append(block)
    with pytest.raises(FileExistsError):
        Writer(path, JOURNAL.header)


@on_a_disk
@given(journal=journals(), data=st.data())
def test_a_growing_journal_is_read_as_far_as_it_goes(journal: Journal, data: st.DataObject) -> None:
    whole = written(journal)
    first = whole.index(b"\n") + 1
    part = whole[: data.draw(st.integers(first, len(whole)))]
    assert read(part, growing=True) == replace(journal, blocks=journal.blocks[: part.count(b"\n") - 1])
    if part != whole:
        with pytest.raises(CheckpointError):
            read(part)


@pytest.mark.parametrize("growing", [False, True])
@on_a_disk
@given(journal=journals(), data=st.data())
def test_a_flipped_bit_before_the_last_line_is_found(journal: Journal, growing: bool, data: st.DataObject) -> None:
    """Nothing follows from the last line: the attestation names the whole journal by digest."""
    spoilt = bytearray(written(journal))
    at = data.draw(st.integers(0, spoilt[:-1].rindex(b"\n")))
    spoilt[at] ^= 1 << data.draw(st.integers(0, 7))
    number = bytes(spoilt[:at]).count(b"\n") + 1
    with pytest.raises(CheckpointError, match=rf"line ({number}|{number + 1}): "):
        read(bytes(spoilt), growing=growing)


@on_a_disk
@given(journal=journals(), data=st.data())
def test_a_flipped_bit_anywhere_is_another_journal_or_none(journal: Journal, data: st.DataObject) -> None:
    spoilt = bytearray(written(journal))
    spoilt[data.draw(st.integers(0, len(spoilt) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        assert read(bytes(spoilt)) != journal
    except CheckpointError as error:
        assert "journal.jsonl" in str(error)


def lines(*blocks: Block) -> list[bytes]:
    return written(replace(JOURNAL, blocks=blocks)).splitlines(keepends=True)


REARRANGED = {
    "first dropped": LINES[1:],
    "second dropped": [*LINES[:1], *LINES[2:]],
    "third dropped": [*LINES[:2], *LINES[3:]],
    "last dropped": LINES[:3],
    "all but the header dropped": LINES[:1],
    "everything dropped": [],
    "header twice": [LINES[0], *LINES],
    "block twice": [*LINES[:2], *LINES[1:]],
    "last block twice": [*LINES, LINES[3]],
    "one more, well chained": [*LINES, *lines(*JOURNAL.blocks, BLOCK)[4:]],
    "two exchanged": [LINES[0], LINES[2], LINES[1], LINES[3]],
    "backwards": LINES[::-1],
    "a line of another journal": [*LINES[:3], lines(BLOCK, BLOCK, BLOCK)[3]],
    "an empty line": [*LINES[:2], b"\n", *LINES[2:]],
    "an empty line at the end": [*LINES, b"\n"],
    "the last line's end dropped": [*LINES[:3], LINES[3][:-1]],
    "line ends of Windows": [line[:-1] + b"\r\n" for line in LINES],
    "white space": [LINES[0].replace(b":", b": ", 1), *LINES[1:]],
}


@pytest.mark.parametrize("lines", REARRANGED.values(), ids=REARRANGED)
def test_a_line_that_was_dropped_added_or_moved_is_named(lines: list[bytes], refuses: Refuses) -> None:
    with refuses(CheckpointError):
        read(b"".join(lines))


@pytest.mark.parametrize(("number", "key"), [(0, "recipe"), (1, "block"), (2, "random_state")])
def test_a_line_that_was_changed_and_is_well_formed_is_found_by_the_next(
    number: int, key: str, refuses: Refuses
) -> None:
    changed = canonical(json.loads(LINES[number]) | {key: "changed"})
    with refuses(CheckpointError, vary=r"line \d", shared=True):
        read(b"".join([*LINES[:number], changed, *LINES[number + 1 :]]))


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def with_header(**changes: Any) -> bytes:
    return canonical(json.loads(LINES[0]) | changes)


def with_block(**changes: Any) -> bytes:
    """A journal whose last block says something else."""
    return b"".join([*LINES[:3], canonical(json.loads(LINES[3]) | changes)])


def with_loss(**changes: Any) -> bytes:
    return with_block(loss={"initial": (1.5).hex(), "best": (0.5).hex(), "best_iteration": 3} | changes)


def test_the_journal_that_is_spoilt_below_is_one() -> None:
    assert read(with_header(), growing=True).header == JOURNAL.header
    assert read(with_block()) == read(with_loss()) == JOURNAL


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


HOSTILE = (
    with_header(schema=4),
    with_header(schema=True),
    canonical([]),
    with_header(host="here"),
    with_header(recipe=None),
    with_header(tiny=["mini"]),
    with_header(blocks=0),
    with_header(blocks=-1),
    with_header(blocks=True),
    with_header(blocks="3"),
    with_header(blocks=10**4299),
    with_header(base="\ud800"),
    with_block(seconds=1),
    with_block(block=4),
    with_block(inputs=[]),
    with_block(inputs={"full": 1}),
    with_block(tensors={"w": None}),
    with_block(tensors=nested(90)),
    with_block(outputs=None),
    with_block(outputs={"\x1b[2J": 1}),
    with_block(outputs={"\x1b[2J": "a"}),
    with_block(outputs={"full": "\x1b]0;a\a"}),
    with_block(block="x\nlayer 7 loss"),
    with_block(block="x" * 1025),
    with_header(recipe="\x1b[2J"),
    with_block(loss={}),
    with_loss(worst=(1.5).hex()),
    with_loss(best_iteration=3.0),
    with_loss(best_iteration=False),
    with_loss(initial=1),
    with_loss(initial="nan"),
    with_loss(best="inf"),
    with_loss(best="-inf"),
    with_loss(best="1.5"),
    with_loss(best="0x1.80p+0"),
    with_loss(best="0x1.0p+99999"),
    with_loss(best="9" * 10**6),
    with_loss(best=""),
    with_block()[:-2] + b',"previous":""}\n',
    LINES[0] + b"NaN\n",
    LINES[0] + b"\xff\n",
    LINES[0] + b"[" * 100_000 + b"\n",
    LINES[0] + b"[]\n",
    b"\n",
    bytes(100) + b"\n",
)


@pytest.mark.parametrize("growing", [False, True])
def test_hostile_lines_are_named_in_words_that_print(growing: bool, worded: Worded) -> None:
    said = []
    for data in HOSTILE:
        with pytest.raises(CheckpointError) as caught:
            read(data, growing=growing)
        said.append(str(caught.value))
        assert said[-1].isprintable()
        assert len(said[-1]) < 1000
    worded("\n".join(said), vary=r"(.)\1{99,}", shared=True)


@pytest.mark.parametrize("line", [0, 3])
def test_a_key_that_is_missing_is_named(line: int) -> None:
    for key in json.loads(LINES[line]):
        value = json.loads(LINES[line])
        del value[key]
        with pytest.raises(CheckpointError, match=f"line {line + 1}: "):
            read(b"".join([*LINES[:line], canonical(value)]))


def test_what_cannot_be_opened_is_named(tmp_path: Path, refuses: Refuses) -> None:
    for name in ("absent", "."):
        with refuses(CheckpointError):
            read_journal(tmp_path / name)
    with on_disk({"locked": b"".join(LINES)}) as folder:
        (folder / "locked").chmod(0)
        with nobody(), refuses(CheckpointError):
            read_journal(folder / "locked")


def test_a_file_without_end_is_refused(refuses: Refuses) -> None:
    with refuses(CheckpointError):
        read_journal(Path("/dev/zero"))


@pytest.mark.parametrize("schema", READERS)
def test_a_schema_before_is_refused_by_name(schema: int, refuses: Refuses) -> None:
    """The first lacks a part of what a block was given, so a comparison with it would say more than it knows."""
    old = json.loads(LINES[0]) | {"schema": schema}
    with refuses(CheckpointError):
        read(b"".join([canonical(old), *LINES[1:]]))


@on_a_disk
@given(journal=journals(), data=st.data())
def test_a_follower_reads_each_line_once_as_soon_as_it_has_its_end(journal: Journal, data: st.DataObject) -> None:
    whole = written(journal)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    with on_disk({}) as folder:
        follower = Follower(folder / "journal.jsonl")
        assert not follower.read()
        seen = 0
        for start, end in pairwise([0, *cuts, len(whole)]):
            with (folder / "journal.jsonl").open("ab") as file:
                file.write(whole[start:end])
            lines = whole[:end].count(b"\n")
            assert follower.read() == (lines > seen)
            seen = lines
            assert follower.header == (journal.header if lines else None)
            assert tuple(follower.blocks) == journal.blocks[: max(0, lines - 1)]


def test_a_follower_reads_no_byte_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []

    def counted(line: bytes) -> object:
        parsed.append(line)
        return strict_json(line)

    monkeypatch.setattr("requant.evidence.journal.strict_json", counted)
    follower = Follower(tmp_path / "journal.jsonl")
    for number in range(1, len(LINES) + 1):
        (tmp_path / "journal.jsonl").write_bytes(b"".join(LINES[:number]))
        for _ in range(3):
            follower.read()
    assert parsed == [line.rstrip(b"\n") for line in LINES]


def test_a_follower_confirms_the_chain(tmp_path: Path, refuses: Refuses) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b"".join(LINES[:2]))
    follower = Follower(path)
    follower.read()
    path.write_bytes(b"".join([*LINES[:2], LINES[3]]))
    with refuses(CheckpointError):
        follower.read()
