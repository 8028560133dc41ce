"""A build in bfloat16, its drawn steps revealed and judged in another hardware class, and builders who lie.

The auditor's numerics are those of a worker without caps, on SSE alone: what every x86-64 CPU has.
"""

import re
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from tests.test_adapters import accumulating, of_one_s_own
from tests.test_portable import SSE, Ask, hinted

import requant.audit
from requant.audit import steps
from requant.audit.challenge import StepChallenge, draw_steps
from requant.audit.pool import prepare
from requant.audit.references import known
from requant.audit.response import CHALLENGE
from requant.audit.retuned import Audit
from requant.build import beside, build
from requant.build.inputs import Inputs, tiny_inputs
from requant.checkpoint.checkpoint import write_file
from requant.checkpoint.safetensors import read_header
from requant.digest import canonical_json, sha256, sha256_chunks, sha256_file, strict_json
from requant.evidence.journal import Writer, read_journal
from requant.new import EnvironmentName
from requant.progress import silent
from requant.protocol import DECISIONS, HINTS, INPUTS, REVEALED, label
from requant.recipe import Recipe

pytestmark = [pytest.mark.worker, pytest.mark.full]

MAGIC, RECORD = b"requant hints 3\n", struct.Struct("<cQI32s")
ITERATIONS = 12


def in_bfloat16(text: str) -> str:
    """A recipe whose tiny model is built with hints, in bfloat16."""
    head, tiny = hinted(text).split("[tiny]")
    for key, value in (("precision", '"bfloat16"'), ("iterations", ITERATIONS)):
        tiny, found = re.subn(rf"^{key} = .*$", f"{key} = {value}", tiny, flags=re.MULTILINE)
        assert found == 1
    return f"{head}[tiny]{tiny}"


@dataclass(frozen=True)
class Opened:
    """A tiny build in bfloat16, and its builder's response to a challenge."""

    recipe: Recipe
    inputs: Inputs
    checkpoint: Path
    response: Path
    asked: StepChallenge

    def judge(self, work: Path) -> Audit:
        """Judge it."""
        reference = known(self.recipe, "mini", self.checkpoint)
        work.mkdir()
        return steps.judge(
            self.checkpoint,
            prepare(self.recipe, "mini", self.inputs, silent, "venv", portable=True),
            reference,
            self.asked,
            self.response,
            hints=beside(self.checkpoint, HINTS),
            auditor="tests",
            make_pool=requant.audit.local(1),
            work=work,
            tell=silent,
        )

    def copied(self, folder: Path) -> "Opened":
        """Return a copy of the checkpoint, of what lies beside it, and of the response."""
        for each in ("", "journal.jsonl", "intoto.jsonl", HINTS):
            there, here = (beside(place, each) if each else place for place in (self.checkpoint, folder / "out"))
            shutil.copytree(there, here) if there.is_dir() else shutil.copyfile(there, here)
        shutil.copytree(self.response, folder / "response")
        return replace(self, checkpoint=folder / "out", response=folder / "response")


def drawn(journal: Path) -> StepChallenge:
    """Draw an iteration of the first segment of each of two blocks: of texts, the first that does."""
    names = [line.block for line in read_journal(journal).blocks]
    draws = (draw_steps(f"drand {each}", sha256_file(journal), names, ITERATIONS, 2) for each in count())
    return next(each for each in draws if [(step.index, step.iteration) for step in each.steps] == [(0, 5), (1, 2)])


def made(
    name: str, folder: Path, environment: EnvironmentName = "cpu", edit: Callable[[str], str] = in_bfloat16
) -> Opened:
    """Build a base of the corpus, and respond to a challenge."""
    recipe = of_one_s_own(folder, name, environment, edit)
    checkpoint = build(recipe, tiny="mini", out=folder / "out").folder
    inputs = tiny_inputs(recipe, "mini", folder / "inputs", silent)
    reference = known(recipe, "mini", checkpoint)
    asked = drawn(beside(checkpoint, "journal.jsonl"))
    (folder / "work").mkdir()

    def respond() -> Sequence[str]:
        return steps.respond(
            checkpoint,
            prepare(recipe, "mini", inputs, silent, "venv"),
            reference,
            asked,
            out=folder / "response",
            make_pool=requant.audit.local(1),
            work=folder / "work",
            tell=silent,
        )

    assert respond() == respond()  # the second time all of it is there
    return Opened(recipe, inputs, checkpoint, folder / "response", asked)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return made("llama", tmp_path_factory.mktemp("opened"))


@pytest.fixture(scope="module", params=["cpu", "current"])
def mixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """Four experts, two for each token, in every block; they run one by one, or as of AutoRound 0.16 together."""
    return made("qwen3moe", tmp_path_factory.mktemp("mixture"), request.param)


@pytest.fixture
def other_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge with SSE alone."""
    for name, value in SSE.items():
        monkeypatch.setenv(name, value)


def explained(found: Audit) -> None:
    """Every block is identical, by decisions that rounding explains; few could have been others."""
    assert found.outcome == "identical", found.text()
    for each in found.blocks:
        assert each.hinted
        assert 0 < each.hinted.signs < 0.02 * each.hinted.decided
        assert each.hinted.free_per_million < 150_000
        assert each.hinted.furthest_percent <= 50


@pytest.mark.usefixtures("other_class")
def test_every_drawn_step_is_explained_in_another_class(opened: Opened, tmp_path: Path) -> None:
    explained(opened.judge(tmp_path / "work"))


@pytest.mark.usefixtures("other_class")
def test_every_drawn_iteration_of_two_steps_is_explained_in_another_class(tmp_path: Path) -> None:
    two = made("llama", tmp_path, edit=lambda text: accumulating(in_bfloat16(text)))
    explained(two.judge(tmp_path / "judged"))


@pytest.mark.usefixtures("other_class")
def test_every_drawn_step_of_a_mixture_of_experts_is_explained_in_another_class(
    mixture: Opened, tmp_path: Path
) -> None:
    found = mixture.judge(tmp_path / "work")
    explained(found)
    assert sum(each.hinted.routes for each in found.blocks if each.hinted) > 0


def records(data: bytes) -> Iterator[tuple[int, bytes, str]]:
    """Yield where each record lies, its kind and its digest."""
    for at in range(len(MAGIC), len(data) - 8 * (ITERATIONS + 1), RECORD.size):
        kind, _, _, digest = RECORD.unpack_from(data, at)
        yield at, kind, digest.hex()


def commit(opened: Opened, number: int, kind: bytes, place: int, forge: Callable[[str], str]) -> None:
    """Let a build have committed to something else: in a block, the record of a kind at a place among those."""
    path = beside(opened.checkpoint, HINTS) / label(number)
    data = bytearray(path.read_bytes())
    at, _, digest = [each for each in records(bytes(data)) if each[1] == kind][place]
    data[at + RECORD.size - 32 : at + RECORD.size] = bytes.fromhex(forge(digest))
    path.write_bytes(data)


def journalled(opened: Opened, inputs: Mapping[int, Mapping[str, str]] = MappingProxyType({})) -> Opened:
    """Write a journal with the hints as they are now, and other digests of `inputs`; let the same steps be drawn."""
    path = beside(opened.checkpoint, "journal.jsonl")
    journal = read_journal(path)
    path.unlink()
    with Writer(path, journal.header) as writer:
        for number, line in enumerate(journal.blocks):
            hints = sha256_file(beside(opened.checkpoint, HINTS) / label(number))
            writer.append(replace(line, hints=hints, inputs={**line.inputs, **inputs.get(number, {})}))
    asked = drawn(path)
    (opened.response / CHALLENGE).write_bytes(asked.to_json())
    return replace(opened, asked=asked)


def turned(path: Path, share: float = 0.0) -> Callable[[str], str]:
    """Turn 8,192 signs of a vector among the decisions of a response, behind so many of it."""

    def forge(digest: str) -> str:
        tensors = {name: (spec, b"".join(there.chunks())) for name, (spec, there) in read_header(path)[0].items()}
        spec, data = tensors.pop(digest)
        at = int(len(data) // 2 * share)  # behind the signs of all it has a bit for each that is zero
        forged = data[:at] + bytes(byte ^ 255 for byte in data[at : at + 1024]) + data[at + 1024 :]
        tensors[sha256(forged)] = (spec, forged)
        path.unlink()
        write_file(path, {name: (spec, [each]) for name, (spec, each) in tensors.items()})
        return sha256(forged)

    return forge


def test_a_builder_that_committed_to_a_lie_is_named(opened: Opened, tmp_path: Path) -> None:
    """A sign that rounding does not explain, in one block; a state that does not follow from the signs, in another."""
    copy = opened.copied(tmp_path)
    commit(copy, 0, b"s", 5, turned(copy.response / label(0) / REVEALED / DECISIONS))
    commit(copy, 1, b"p", 1, lambda _: "ab" * 32)
    first, second = journalled(copy).judge(tmp_path / "work").blocks
    assert [str(each.judgement) for each in (first, second)] == ["different", "different"]
    assert re.match(
        r"iteration 5: model\.layers\.0\.\S+: its hints change the sign of value \d+, whose gradient is ", first.reason
    )
    assert second.reason == "iteration 8: what its signs lead to is not the state that the build committed to"


@pytest.mark.usefixtures("other_class")
def test_a_builder_that_turned_signs_of_an_expert_is_named(mixture: Opened, tmp_path: Path) -> None:
    copy = mixture.copied(tmp_path)
    commit(copy, 0, b"s", 5, turned(copy.response / label(0) / REVEALED / DECISIONS, 0.5))
    first, second = journalled(copy).judge(tmp_path / "work").blocks
    assert [str(each.judgement) for each in (first, second)] == ["different", "identical"]
    layer = r"iteration 5: model\.layers\.0\.mlp\.experts\.\d+\.\S+"
    assert re.match(rf"{layer}: its hints change the signs? of (value \d+, whose gradient is|\S+ of) ", first.reason)


def given_otherwise(response: Path, number: int, token: int) -> dict[str, str]:
    """Let a token of a block's quantized stream be half as large again; return the digests."""
    folder = response / label(number) / INPUTS / label(number)
    path = folder / "quantized.safetensors"
    tensors = {name: (spec, b"".join(there.chunks())) for name, (spec, there) in read_header(path)[0].items()}
    name = min(tensors)
    spec, data = tensors[name]
    numbers = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").reshape(spec.shape).copy()
    numbers[:, token] *= 1.5
    tensors[name] = spec, (numbers.view("<u4") >> 16).astype("<u2").tobytes()
    path.unlink()
    write_file(path, {each: (spec, [data]) for each, (spec, data) in tensors.items()})
    said = strict_json((folder / "inputs.json").read_bytes())["said"]
    said["digests"]["quantized"] = sha256_chunks(tensors[each][1] for each in sorted(tensors))
    (folder / "inputs.json").write_bytes(canonical_json({"said": said, "sha256": sha256(canonical_json(said))}))
    return {"quantized": said["digests"]["quantized"]}


def test_a_builder_that_gave_a_block_something_else_is_named(opened: Opened, tmp_path: Path) -> None:
    copy = opened.copied(tmp_path)
    first, second = journalled(copy, {1: given_otherwise(copy.response, 1, 3)}).judge(tmp_path / "work").blocks
    assert [str(each.judgement) for each in (first, second)] == ["identical", "different"]
    assert re.match(
        r"its revealed inputs are not those that the block before it puts out: quantized, sample 0, token 3 is ",
        second.reason,
    )


def sent_elsewhere(*paths: Path) -> Callable[[str], str]:
    """Send every token of a batch to another expert than the second one of its two, in these files of a response."""

    def forge(digest: str) -> str:
        forged = b""
        for path in paths:
            tensors = {name: (spec, b"".join(there.chunks())) for name, (spec, there) in read_header(path)[0].items()}
            spec, data = tensors.pop(digest)
            routes = np.frombuffer(data, "<i4").reshape(-1, 2).copy()
            first, second = routes.T
            routes[:, 1] = [
                next(each for each in range(4) if each not in taken) for taken in zip(first, second, strict=True)
            ]
            forged = routes.tobytes()
            tensors[sha256(forged)] = (spec, forged)
            path.unlink()
            write_file(path, {name: (spec, [each]) for name, (spec, each) in tensors.items()})
        return sha256(forged)

    return forge


@pytest.mark.usefixtures("other_class")
def test_a_builder_that_turned_an_expert_is_named(mixture: Opened, tmp_path: Path) -> None:
    """In the pass that says what a block is to put out, which gives the next block its inputs too; or in a step."""
    beyond = (
        r"its hints send token \d+ of a batch to other experts, whose scores are \S+ times as far from the best as "
    )
    whole, step = (mixture.copied(tmp_path / each) for each in ("whole", "step"))
    revealed = [whole.response / label(0) / REVEALED / DECISIONS]
    revealed += [whole.response / label(1) / REVEALED / f"{label(0)}.before.safetensors"]
    commit(whole, 0, b"r", 0, sent_elsewhere(*revealed))
    first, second = journalled(whole).judge(tmp_path / "whole" / "work").blocks
    assert [str(each.judgement) for each in (first, second)] == ["different", "different"]
    assert re.match(f"before its iterations: {beyond}", first.reason)
    assert re.match(f"the block before, full: {beyond}", second.reason)

    before = [kind for _, kind, _ in records((beside(step.checkpoint, HINTS) / label(1)).read_bytes())]
    signs = [number for number, kind in enumerate(before) if kind == b"s"]
    place = before[: signs[2]].count(b"r") - 1
    commit(step, 1, b"r", place, sent_elsewhere(step.response / label(1) / REVEALED / DECISIONS))
    first, second = journalled(step).judge(tmp_path / "step" / "work").blocks
    assert [str(each.judgement) for each in (first, second)] == ["identical", "different"]
    assert re.match(f"iteration 2: {beyond}", second.reason)


def test_a_choice_of_many_experts_is_as_far_off_as_its_own_scores(ask: Ask) -> None:
    """However large the first of them are: no token can be sent to an expert that is far behind."""
    found = ask("explained", "routes")
    for name in ("all", "half", "groups"):
        assert found[name] > 0
        turned = found[f"{name}, turned"]
        assert turned["next"] > 3 * turned["tenth"]
        assert turned["far"] == turned["last"] == 0


def test_of_the_tokens_that_could_each_be_sent_elsewhere_only_some_can_be(ask: Ask) -> None:
    """Each of them is within its bound, and all of them together are more than rounding sends."""
    found = ask("explained", "tokens")
    taken, beyond = found["other"]
    assert 0 < taken < found["free"] / 4
    assert not beyond
    assert found["a tenth"][1] == ""
    taken, beyond = found["all"]
    assert taken == 0
    assert re.fullmatch(
        rf"its hints send {found['free']} of 512 tokens of a batch to other experts, and rounding explains \d+ at most",
        beyond,
    )
    assert found["one by one"] == [0, 2, 7, 20, 10913]  # as Poisson distributions have them


def test_of_the_signs_that_are_free_only_some_can_be_others(ask: Ask) -> None:
    """Each of them is within its bound, and all of them together are more than rounding turns."""
    found = ask("explained", "signs")
    taken, beyond = found["other"]
    assert 0 < taken < 0.1 * found["count"]
    assert not beyond
    assert found["free"] > 0.4 * found["count"]
    assert found["a tenth"][1] == ""
    taken, beyond = found["half"]
    assert taken == 0
    assert re.fullmatch(
        r"iteration 0: layer: its hints change the signs of \S+ of 16,384 gradients of value, "
        r"and rounding explains \S+ at most",
        beyond,
    )


def test_a_state_that_was_not_committed_to_accuses_nobody(opened: Opened, tmp_path: Path) -> None:
    copy = opened.copied(tmp_path)
    states = sorted(copy.response.glob(f"*/{REVEALED}/00008.safetensors"))
    assert states, "the best iteration of a block is behind the first segment"
    path = states[0]
    header, _ = read_header(path)
    tensors = {name: b"".join(there.chunks()) for name, (_, there) in header.items()}
    name = next(iter(tensors))
    moved = np.frombuffer(tensors[name], "<f4") + np.float32(0.125)
    path.unlink()
    write_file(
        path, {each: (spec, [moved.tobytes() if each == name else tensors[each]]) for each, (spec, _) in header.items()}
    )
    found = copy.judge(tmp_path / "work")
    assert found.outcome == "inconclusive"
    reasons = [each.reason for each in found.blocks if each.reason]
    assert reasons == ["iteration 8: what was revealed is not the state that the build committed to"]
