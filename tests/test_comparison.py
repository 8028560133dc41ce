"""A published card beside the truth: what is understood is judged by a record, and what is not is never judged."""

import re
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text
from tests.claims import DOCS, compared, written
from tests.conftest import ROOT, Refuses, Worded
from tests.processes import requant
from tests.test_card import facts, records

from requant.card.compare import Comparison, compare
from requant.card.facts import Fact
from requant.card.markdown import LONGEST, MAX_CARD, MAX_LINES, parse, read_card
from requant.card.values import agrees
from requant.card.vocabulary import FORMS, LABELS, METADATA, PHRASES, SAME, WORDS
from requant.cli.card import comparison_text
from requant.errors import CheckpointError


def said(card: str, name: str = "ec", tiny: str | None = None) -> Comparison:
    return compare(card, records(name, tiny), facts(name, tiny))


def verdicts(card: str, name: str = "ec", tiny: str | None = None) -> list[tuple[str, str, str]]:
    return [(each.key, each.stated, each.verdict) for each in said(card, name, tiny).statements]


def test_the_page_of_claims_has_what_is_printed() -> None:
    assert DOCS.read_text() == written(DOCS.read_text()), "nox -s claims"


def test_what_is_wrong_with_both_published_cards() -> None:
    """What research by hand had found, of all that such tables hold, and nothing else."""
    wrong = {
        name: [(each.line, each.key, each.stated) for each in compared(name).statements if each.verdict == "wrong"]
        for name in ("ec", "gb10")
    }
    assert wrong == {
        "ec": [(45, "model.experts", "128")],
        "gb10": [
            (36, "plan.bytes", "~21 GB"),
            (53, "serving.flag", "--num-speculative-tokens"),
            (53, "serving.flag", "--speculative-model"),
        ],
    }
    assert (compared("ec").count("true"), compared("gb10").count("true")) == (34, 30)
    assert {each.key.split(".")[0] for each in compared("gb10").statements if each.verdict == "not backed"} == {
        *("statement", "loss"),
    }


def test_a_card_is_compared_on_the_command_line(worded: Worded) -> None:
    done = requant("card", "builds/ec", "--tiny", "--size", "mini", "--compare", "tests/fixtures/cards/ec.md")
    assert done.returncode == 1
    worded(done.stdout)


def test_the_example_of_the_page_is_what_is_printed() -> None:
    page = (ROOT / "docs" / "card.md").read_text()
    example = page.partition("$ requant card builds/gb10")[2].partition("\n\n")[0].splitlines()[1:]
    printed = [Text.from_markup(line).plain for line in comparison_text(compared("gb10"))]
    assert len(example) > 5 and {line[4:] for line in example} - {"..."} <= {*printed}


STRUCTURED = """---
base_model: Qwen/Qwen3.6-35B-A3B
license: apache-2.0
datasets:
- somebody/else
---

# A model, 128 experts

We have 128 experts, and 4 bits, and trained for 300 iterations.

| | Intel | This model |
|---|---|---|
| `iters` | 200 (default) | 400 |
| bits / group | 8 / 32 | 4 / 64 |

| Component | Version |
|:---|---:|
| torch | 2.7.0 |
| auto_round | 0.13.0, commit `2dda035` |
| flash-attn | 2.8 |

- **Layers:** 40 transformer blocks
- Visual: 26 blocks
- Attention: hybrid, layers [3, 7, 11, 15, 19, 23, 27, 31, 35, 39] are self_attn
- Total size: 20.90 GB

```bash
pip install torch==2.6.0 gptqmodel==5.0
auto-round --model Qwen/Qwen3.6-35B-A3B --iters 400 --nsamples=512 --seqlen 4096
auto-round --model Qwen/Other --iters 17
vllm serve me/x --tensor-parallel-size 2 --no-enable-prefix-caching --swap-space 4 -q awq
```

```python
model = load("Qwen/Qwen3.6-35B-A3B")
autoround = AutoRound(model, bits=4, iters=300)
evaluate(model, batch_size=1, iters=5)
```

## Evaluation

| Parameter | Value |
|---|---|
| Batch size | 1 |
| Seed | 1234 |

- Samples: 500
"""


def test_structures_are_compared_and_prose_is_not() -> None:
    found = {(key, stated): verdict for key, stated, verdict in verdicts(STRUCTURED)}
    assert found == {
        ("base.repository", "Qwen/Qwen3.6-35B-A3B"): "true",
        ("license.name", "apache-2.0"): "true",
        ("tuning.iterations", "400"): "true",
        ("scheme.bits", "4"): "true",
        ("scheme.group_size", "64"): "wrong",
        ("package.torch", "2.7.0"): "wrong",
        ("package.auto-round", "0.13.0"): "true",
        ("commit.auto-round", "2dda035"): "true",
        ("plan.blocks", "40"): "true",
        ("model.visual_blocks", "26"): "wrong",
        ("model.full_attention_layers", "3, 7, 11, 15, 19, 23, 27, 31, 35, 39"): "true",
        ("plan.bytes", "20.90 GB"): "wrong",
        ("package.torch", "2.6.0"): "true",
        ("package.gptqmodel", "5.0"): "not backed",
        ("calibration.samples", "512"): "wrong",
        ("calibration.sequence_length", "4096"): "true",
        ("serving.flag", "--tensor-parallel-size"): "true",
        ("serving.flag", "--no-enable-prefix-caching"): "true",
        ("serving.flag", "--swap-space"): "wrong",
        ("tuning.iterations", "300"): "wrong",
    }


def test_every_line_is_compared_or_listed() -> None:
    card = said(STRUCTURED)
    lines = {each.line for each in card.statements} | {each.line for each in card.uncompared}
    structure = re.compile(r"|---|```.*|\|[:|-]+\||datasets:")
    assert {
        number for number, line in enumerate(STRUCTURED.split("\n"), 1) if not structure.fullmatch(line.strip())
    } == lines


NOTHING = (
    "We do not use 128 experts.",
    "Intel's card says: iters 200.",
    "Not quantized: 30,000 / 31,181 linear layers",
    "| iters | 200 | 300 |",
    "| Model | Iters |\n|---|---|\n| Intel/Other | 200 |",
    "| | Intel/Other |\n|---|---|\n| iters | 200 |",
    "# Benchmarks\n## Setup\n- Batch size: 1",
    "Parameters: 35B",
    "Scheme: INT4",
    "Batch size: 8 to 16",
    "Iterations: 200-400",
    "Dataset: our own mix",
    "Hardware: 8x A100",
    "Total size: small",
    "```\niters=17\n```",
    "```python\nAutoRound(other, iters=17)\n```",
    "The command auto-round Qwen/Qwen3.6-35B-A3B --iters 17 is not ours.",
    "transformers>=5.5.1 is needed.",
    "```\npip install 'transformers>=4,<6' torch\n```",
    "License: our own",
    "Precision: float32",
    "## Requirements\n\n| Package | Version |\n|---|---|\n| torch | 2.9.0 |\n\n`pip install torch==2.9.0`",
    "## How to use\n```\npip install transformers==5.9.9\n```",
)


@pytest.mark.parametrize("card", NOTHING)
def test_what_is_not_understood_is_not_judged(card: str) -> None:
    assert not said(card).statements
    assert said(card).uncompared and said(card).exit_status == 3


TRUTHS = (
    ("| Value |", "| Group size | 128 |", "scheme.group_size"),
    ("| Value |", "| Learning rate | 0.0025 |", "tuning.learning_rate"),
    ("| Value |", "| LR | 2.5e-3 |", "tuning.learning_rate"),
    ("| Value |", "| Total size | 19.46 GiB |", "plan.bytes"),
    ("| Value |", "| Total size | ≈ 21 GB |", "plan.bytes"),
    ("| Value |", "| Total size | 20,891,142,880 bytes |", "plan.bytes"),
    ("| Value |", "| Symmetric | symmetric |", "scheme.symmetric"),
    ("| Value |", "| Tuning precision | BF16 |", "tuning.precision"),
    ("| Value |", "| GPU | H200 SXM |", "hardware.accelerator"),
)


@pytest.mark.parametrize(("header", "row", "key"), TRUTHS)
def test_a_value_is_as_exact_as_it_is_written(header: str, row: str, key: str) -> None:
    ((found, _, verdict),) = verdicts(f"| Parameter {header}\n|---|---|\n{row}")
    assert (found, verdict) == (key, "true")


LIES = (
    "Group size: 64",
    "Learning rate: 0.005",
    "Total size: 22 GB",
    "Total size: ~23 GB",
    "Symmetric: no",
    "Seed: 43",
)


@pytest.mark.parametrize("card", LIES)
def test_a_value_that_is_another_is_wrong(card: str) -> None:
    assert [verdict for *_, verdict in verdicts(card)] == ["wrong"] and said(card).exit_status == 1


def test_losses_and_files_are_held_against_a_recorded_build() -> None:
    card = "Loss: layer 1 loss 0.030804→0.021789, layer 3 loss 0.057684→0.051452, layer 9 loss 0.1→0.1\n\n"
    card += "| File | What |\n|---|---|\n| `config.json` / `adapter.json` | configuration |\n| README.md | this |\n"
    assert verdicts(card, tiny="mini") == [
        ("loss.1.before", "0.030804", "true"),
        ("loss.1.after", "0.021789", "true"),
        ("loss.3.before", "0.057684", "true"),
        ("loss.3.after", "0.051452", "wrong"),
        ("loss.9.before", "0.1", "not backed"),
        ("loss.9.after", "0.1", "not backed"),
        ("manifest.file", "config.json", "true"),
        ("manifest.file", "adapter.json", "wrong"),
    ]


def test_layers_that_are_said_to_be_float_are_looked_up() -> None:
    rows = (
        "| Layer pattern | Reason |\n|---|---|\n| shared_expert | x |\n| `lm_head` | x |\n| mtp.* | x |\n| nope | x |"
    )
    assert [verdict for *_, verdict in verdicts(rows)] == ["wrong", "true", "wrong", "not backed"]
    assert [verdict for *_, verdict in verdicts(rows, "gb10")] == ["true", "true", "true", "not backed"]


def test_the_vocabulary_is_of_facts_that_there_are() -> None:
    """A key that no build of this project has is one of its journal's, its statement's, or never recorded here."""
    known = {*facts("ec", None), *facts("ec", "mini"), *facts("llama-current", None)}
    named = {key for table in (LABELS, WORDS, METADATA) for keys in table.values() for key in keys}
    named |= {key for phrase in PHRASES for keys in phrase.keys for key in keys}
    assert named - known == {"statement.peak_device_memory"}
    assert {*FORMS} <= known
    assert all(each == each.lower() for each in (*LABELS, *WORDS, *METADATA, *SAME))
    assert all(phrase.pattern.groups == len(phrase.keys) for phrase in PHRASES)


def test_a_version_of_a_build_may_have_a_label() -> None:
    torch = Fact("2.13.0+cpu", "", "version")
    for stated, equal in (("2.13.0", True), ("v2.13.0+cpu", True), ("2.13.1", False), ("2.13.0+cu124", True)):
        assert agrees("package.torch", torch, stated, {}) == (stated.removeprefix("v"), equal)
    assert agrees("package.torch", torch, ">=2", {}) is None


PIECES: tuple[str, ...] = (
    "|",
    "---",
    "\n",
    "```",
    "~~~",
    "# ",
    "- ",
    ": ",
    "**",
    "`",
    "[",
    "]",
    "(",
    ")",
    '"',
    "'",
    "=",
    "\\",
    "--x ",
)
PIECES += ("pip install a==1", "vllm serve x", "auto-round y", "AutoRound(", "iters", "400", "1,000", "~21 GB")
PIECES += ("\u202e", "\x1b[2J", "\r\n", "é", " ", "| iters | 4 |\n", "Layers: 7 blocks\n", "---\n", "a: b\n")


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=60))
def test_any_text_is_a_card(parts: Sequence[str]) -> None:
    """Each line that is not blank, a fence or a rule is in what is said, once as a whole or in several parts."""
    text = "".join(parts)
    found = [*parse(text)]
    assert all(1 <= each.line <= text.count("\n") + 1 and each.text.strip() for each in found)
    assert [each.line for each in found] == sorted(each.line for each in found)
    assert sum(len(each.text) for each in found) <= 3 * len(text) + 99
    card = said(text, tiny="mini")
    assert {each.line for each in card.statements} | {each.line for each in card.uncompared} == {
        each.line for each in found
    }


UNITS: tuple[str, ...] = (
    "|",
    "(",
    "[",
    '"',
    "'",
    "`",
    "*",
    "=",
    "a=[",
    "x = [",
    "- A: ",
    " - A: ",
    "# ",
    "\\",
    "1,111",
    "0.",
    "~1 GB ",
)
UNITS += ("a.", "layer 1 loss 0.1", "| iters ", "layers [1, ", "AutoRound(a=[", "--a ", "'a/b' ", "\u202e", "**")


@pytest.mark.parametrize("unit", UNITS)
def test_no_card_takes_long(unit: str) -> None:
    """As many letters as may be, in the longest lines that are looked into, in and out of code: in linear time."""
    line = (unit * LONGEST)[: LONGEST - 20]
    begun = time.process_time()
    for begin, before in (
        ("", ""),
        ("```\n", "AutoRound("),
        ("", "pip install "),
        ("", "Loss: "),
        ("", "Total size: "),
    ):
        card = begin + "\n".join([before + line] * (MAX_CARD // 5 // LONGEST))
        said(card, tiny="mini")
    assert time.process_time() - begun < 10


def test_what_is_no_card_is_refused(tmp_path: Path, refuses: Refuses) -> None:
    path = tmp_path / "README.md"
    for content in (b"\x89PNG\r\n\x1a\n", b"a\0b", b"\n" * (MAX_LINES + 1), b"a" * (MAX_CARD + 1)):
        path.write_bytes(content)
        with refuses(CheckpointError):
            read_card(path)
    for absent in (tmp_path, tmp_path / "none.md"):
        with refuses(CheckpointError):
            read_card(absent)
