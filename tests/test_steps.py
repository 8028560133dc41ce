"""Challenges and responses of steps as files: drawn by anybody alike, and refused where they are anything else."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cases.audits import DRAWN, STEPPED
from tests.conftest import Refuses
from tests.test_journal import BLOCK, JOURNAL
from tests.tiny import EC

from requant.audit.audits import STEPS, read_audit, statement
from requant.audit.challenge import StepChallenge, draw_steps
from requant.audit.response import CHALLENGE, confirm
from requant.checkpoint.checkpoint import write_file
from requant.checkpoint.safetensors import Spec
from requant.digest import canonical_json, sha256, sha256_chunks, strict_json
from requant.errors import CheckpointError, RequantError, UsageError
from requant.evidence.journal import Journal
from requant.protocol import DECISIONS, INPUTS, REVEALED, label
from requant.recipe import Effort

NAMES = tuple(f"layers.{number}" for number in range(5))
DIGEST = "0a" * 32
EFFORT: Effort = replace(EC.effort(tiny=True), precision="bfloat16", samples=2, sequence_length=3, iterations=20)
RANDOM = [3, [1, 2, 3], None]


def test_vectors() -> None:
    """As `printf "drand 1\\n0a0a…\\nlayers.0\\n7" | sha256sum` orders them."""
    drawn = draw_steps("drand 1", DIGEST, NAMES, 20, 4)
    assert [(each.index, each.iteration) for each in drawn.steps] == [
        tuple(map(int, each.split(".")))
        for each in sorted(
            sorted(
                (f"{index}.{iteration}" for index in range(5) for iteration in range(20)),
                key=lambda each: sha256(f"drand 1\n{DIGEST}\nlayers.{each.replace('.', chr(10))}".encode()),
            )[:4],
            key=lambda each: [*map(int, each.split("."))],
        )
    ]
    assert drawn.by_block.keys() == {each.index for each in drawn.steps}
    assert json.loads(drawn.to_json())["schema"] == "requant.challenge/1"


@given(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=9), st.integers(1, 100))
def test_a_draw_is_of_so_many_steps_in_order_and_the_same_for_all(text: str, steps: int) -> None:
    drawn = draw_steps(text, DIGEST, NAMES, 20, steps)
    places = [(each.index, each.iteration) for each in drawn.steps]
    assert places == sorted({*places})
    assert len(places) == steps
    assert drawn.is_drawn(DIGEST, NAMES, 20)
    assert not drawn.is_drawn(DIGEST, NAMES, 21)
    assert not drawn.is_drawn("0b" * 32, NAMES, 20)
    assert steps == 100 or {*drawn.steps} < {*draw_steps(text, DIGEST, NAMES, 20, steps + 1).steps}


@pytest.mark.parametrize("text", ["", "a\nb", "x" * 1001])
def test_a_text_that_cannot_be_recorded_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--text"):
        draw_steps(text, DIGEST, NAMES, 20, 1)


@pytest.mark.parametrize("steps", [0, 101])
def test_more_steps_than_there_are_are_refused(steps: int) -> None:
    with pytest.raises(UsageError, match=f"--steps {steps}"):
        draw_steps("drand 1", DIGEST, NAMES, 20, steps)


def test_a_statement_of_steps_is_of_its_own_kind_and_read_back(tmp_path: Path) -> None:
    data = statement(STEPPED)
    assert json.loads(data)["predicateType"] == STEPS
    path = tmp_path / f"{sha256(data)}.intoto.jsonl"
    path.write_bytes(data)
    assert read_audit(path) == STEPPED
    assert any("2 of 80 steps judged, in 1 of 4 blocks" in line for line in STEPPED.text())


@pytest.mark.parametrize("harm", ["blocks", "journal", "order", "iterations", "portable"])
def test_a_statement_of_steps_that_nobody_can_have_written_is_refused(harm: str) -> None:
    first, second = DRAWN.steps
    spoiled: dict[str, StepChallenge] = {
        "blocks": replace(DRAWN, steps=(replace(first, index=1), second)),
        "journal": replace(DRAWN, journal="05" * 32),
        "order": replace(DRAWN, steps=(second, first)),
        "iterations": replace(DRAWN, iterations=first.iteration),
    }
    harmed = replace(STEPPED, steps=spoiled[harm]) if harm in spoiled else replace(STEPPED, portable=False)
    with pytest.raises(CheckpointError, match="not an audit"):
        statement(harmed)


def stream(value: int) -> dict[str, tuple[Spec, list[bytes]]]:
    return {f"{number:06d}": (Spec("BF16", (1, 3, 2)), [bytes([value + number] * 12)]) for number in range(2)}


def hashed(tensors: dict[str, tuple[Spec, list[bytes]]]) -> str:
    return sha256_chunks(chunk for _, chunks in tensors.values() for chunk in chunks)


FULL, QUANTIZED = stream(1), stream(5)
LINES: Journal = replace(
    JOURNAL,
    blocks=tuple(
        replace(
            BLOCK,
            block=name,
            inputs={"full": hashed(FULL), "quantized": hashed(QUANTIZED if number else FULL), "others": "00" * 32},
            random_state=sha256(canonical_json(RANDOM)),
        )
        for number, name in enumerate(NAMES)
    ),
)
ASKED = b"a challenge"
OPENED = {0: (3,), 2: (4, 9, 19)}


def respond(folder: Path) -> Path:
    """Write a response as builders do."""
    folder.mkdir()
    (folder / CHALLENGE).write_bytes(ASKED)
    for number, starts in {0: (), 2: (8, 16)}.items():
        place = folder / label(number)
        for each in range(max(number - 1, 0), number + 1):
            inputs = place / INPUTS / label(each)
            inputs.mkdir(parents=True)
            streams = {"full": FULL, **({"quantized": QUANTIZED} if each else {})}
            line = LINES.blocks[each].inputs
            said = {
                "random_state": RANDOM,
                "digests": {"full": line["full"], "quantized": line["quantized"]},
                "streams": [*streams],
            }
            data = canonical_json({"said": said, "sha256": sha256(canonical_json(said))})
            (inputs / "inputs.json").write_bytes(data)
            for name, tensors in streams.items():
                write_file(inputs / f"{name}.safetensors", tensors)
        revealed = place / REVEALED
        revealed.mkdir()
        decisions = {sha256(each): (Spec("U8", (len(each),)), [each]) for each in (b"signs", b"routes")}
        write_file(revealed / DECISIONS, decisions)
        if number:
            write_file(revealed / f"{label(number - 1)}.before.safetensors", decisions)
        for start in starts:
            write_file(revealed / f"{label(start)}.safetensors", {"q.value": (Spec("F32", (2,)), [bytes(8)])})
    return folder


def confirmed(folder: Path) -> None:
    confirm(folder, ASKED, EFFORT, LINES, OPENED)


def test_a_response_is_taken(tmp_path: Path) -> None:
    confirmed(respond(tmp_path / "response"))


def another_challenge(folder: Path) -> None:
    (folder / CHALLENGE).write_bytes(b"b challenge")


def without(folder: Path) -> None:
    (folder / label(2) / REVEALED / "00016.safetensors").unlink()


def more(folder: Path) -> None:
    (folder / label(0) / REVEALED / "more").write_bytes(b"")


def linked(folder: Path) -> None:
    path = folder / label(2) / REVEALED / DECISIONS
    path.rename(folder / "elsewhere")
    path.symlink_to(folder / "elsewhere")


def no_block(folder: Path) -> None:
    shutil.rmtree(folder / label(0))


def other_inputs(folder: Path) -> None:
    (folder / label(2) / INPUTS / label(2) / "full.safetensors").unlink()
    write_file(folder / label(2) / INPUTS / label(2) / "full.safetensors", stream(2))


def other_form(folder: Path) -> None:
    path = folder / label(2) / INPUTS / label(2) / "full.safetensors"
    path.unlink()
    write_file(path, {key: (Spec("F32", (1, 3, 1)), chunks) for key, (_, chunks) in FULL.items()})


def other_random_state(folder: Path) -> None:
    path = folder / label(0) / INPUTS / label(0) / "inputs.json"
    said = {**strict_json(path.read_bytes())["said"], "random_state": [3, [1, 2, 4], None]}
    path.write_bytes(canonical_json({"said": said, "sha256": sha256(canonical_json(said))}))


def other_decision(folder: Path) -> None:
    path = folder / label(0) / REVEALED / DECISIONS
    path.unlink()
    write_file(path, {sha256(b"signs"): (Spec("U8", (5,)), [b"singe"])})


def half_a_state(folder: Path) -> None:
    path = folder / label(2) / REVEALED / "00008.safetensors"
    path.unlink()
    write_file(path, {"q.value": (Spec("F16", (2,)), [bytes(4)])})


HARMS: tuple[Callable[[Path], None], ...] = (
    another_challenge,
    without,
    more,
    linked,
    no_block,
    other_inputs,
    other_form,
    other_random_state,
    other_decision,
    half_a_state,
)


@pytest.mark.parametrize("harm", HARMS)
def test_a_response_of_another_form_is_refused(harm: Callable[[Path], None], tmp_path: Path, refuses: Refuses) -> None:
    folder = respond(tmp_path / "response")
    harm(folder)
    with refuses(CheckpointError):
        confirmed(folder)


@settings(max_examples=40)
@given(data=st.data())
def test_whatever_a_file_holds_the_answer_is_an_error_or_none(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = respond(tmp_path_factory.mktemp("fuzzed") / "response")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(files))
    content = path.read_bytes()
    at = data.draw(st.integers(0, len(content)))
    put = data.draw(st.binary(max_size=20))
    path.write_bytes(content[:at] + put + content[at + data.draw(st.integers(0, 20)) :])
    try:
        confirmed(folder)
    except RequantError as error:
        assert isinstance(error, CheckpointError)
    shutil.rmtree(folder.parent)
