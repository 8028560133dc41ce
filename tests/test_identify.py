"""Fingerprints exclude writers; cards are held against files."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.cases.mutations import EXTRAS, edit, fused_mtp_experts, rewritten
from tests.cases.twins import healthy
from tests.conftest import ROOT
from typer.testing import CliRunner

from requant.base_config import base_config
from requant.build import Built
from requant.card import judge
from requant.checkpoint import Checkpoint, json_file, shard_names, write_checkpoint
from requant.cli.options import app
from requant.identify import Fingerprint, identify
from requant.inspecting.headers import Headers, read_headers
from requant.inventory import base_tensors, extra_tensors, main_tensors
from requant.passes import PASSES, Context
from requant.recipe import read_recipe


@pytest.fixture(scope="module")
def ec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("identify") / "ec"
    write_checkpoint(healthy("ec"), folder)
    return folder


def test_a_healthy_twin(ec: Path) -> None:
    found = identify(read_headers(ec))
    assert found.mtp == "packed" and found.negative_rounded == 0.0
    assert set(found.zero_words or {}) == {path.name for path in ec.glob("*.safetensors")}
    assert {word for words in (found.zero_words or {}).values() for word in words} == {"0x77777777"}
    assert found.policies == (f"everything packed; MTP packed, visual in {EXTRAS}",)
    assert "requant" in found.writers and not any("2dda035" in writer for writer in found.writers)


@pytest.mark.parametrize(
    ("spoil", "excluded"),
    [
        (rewritten("mtp.layers.0.self_attn.q_proj.qzeros", 0x88), "requant"),
        (fused_mtp_experts, "requant"),
        (
            lambda c: edit(c, "tokenizer_config.json", lambda v: {**v, "tokenizer_class": "TokenizersBackend"}),
            "requant",
        ),
        (rewritten("mtp.layers.0.self_attn.q_proj.scales", 0xA0), "requant"),
    ],
)
def test_a_fingerprint_excludes(spoil: Callable[[Checkpoint], Checkpoint], excluded: str, tmp_path: Path) -> None:
    write_checkpoint(spoil(healthy("ec")), tmp_path / "other")
    assert excluded not in identify(read_headers(tmp_path / "other")).writers


@pytest.mark.room
def test_raw_output_is_recognised(built: Callable[[str], Built]) -> None:
    """AutoRound's own output, and what the build made of it, tell each other apart."""
    raw = identify(read_headers(built("ec").folder.with_name("ec.raw")))
    assert raw.writers == ("auto-round 0.12.2 to 2dda035",)
    assert raw.tokenizer == "rewritten by transformers 5"
    assert (raw.zero_words or {})[EXTRAS] == {"0x88888888": 7}
    made = identify(read_headers(built("ec").folder))
    assert "requant" in made.writers and made.negative_tuned and 0.3 < made.negative_tuned < 0.7


@cache
def described() -> Fingerprint:
    return identify(full("ec"))


@cache
def full(mtp: str) -> Headers:
    """The EC checkpoint at full scale, by headers: as the card describes it, or as its command leaves MTP."""
    recipe = read_recipe(ROOT / "builds" / "ec")
    config = base_config(recipe)
    base = Checkpoint({}, {"config.json": json_file(config)})
    files = PASSES["quantization_config"](
        Checkpoint({}, {}), Context(base, recipe, recipe.effort(False), "0.13.0")
    ).files
    main, extras = (
        main_tensors(config, recipe.layers.ignore, 128),
        extra_tensors(config, recipe.layers.ignore, 128, "rtn"),
    )
    if mtp == "raw":
        fused = {
            name: spec for name, spec in base_tensors(config).items() if name.startswith("mtp.layers.0.mlp.experts.")
        }
        extras = {name: spec for name, spec in extras.items() if ".mlp.experts." not in name} | fused
    shards = {name: dict(islice(main.items(), n, None, 10)) for n, name in enumerate(shard_names(10))} | {
        EXTRAS: extras
    }
    total = sum(spec.nbytes for held in shards.values() for spec in held.values())
    sides = {name: b"".join(content.chunks()) for name, content in files.items()}
    return Headers("EC", shards, total, sides, tuple(files))


CARD = """
35B parameters, 3B active, 128 experts, INT4, group_size: 128
| iters | 400 | nsamples | 256 | seqlen 4096
10 shards ~ 19.6 GB; extras ~ 1.35 GB; ~20.9 GB total
167 visual tensors, BF16. ~2,335 MTP weights. MTP block in INT4.
auto-round 0.13.0; tied embeddings; peak RAM 28.19 GB; 31,030 / 31,181 layers
"""


def verdicts(card: str, headers: Headers) -> dict[str, str]:
    return {claim.text: claim.verdict for claim in judge(card, identify(headers), headers)}


def test_a_card_is_held_against_the_files() -> None:
    found = verdicts(CARD, full("ec"))
    assert found["128 experts"] == "refuted"
    assert found["INT4"] == found["group_size: 128"] == "confirmed"
    assert found["10 shards ~ 19.6 GB"] == found["extras ~ 1.35 GB"] == found["~20.9 GB total"] == "confirmed"
    assert found["167 visual tensors"] == "refuted"
    assert found["~2,335 MTP weights"] == found["MTP block in INT4"] == "confirmed"
    assert found["tied embeddings"] == "refuted"
    assert found["peak RAM 28.19 GB"] == "undecidable"
    assert found["31,030 / 31,181 layers"] == "confirmed"
    assert found["iters"] == found["seqlen 4096"] == "undecidable"  # declared, which is no proof
    assert found["auto-round 0.13.0"] == "undecidable"


PHRASES = {
    "256 experts": "confirmed",
    "not 256 experts": "undecidable",
    "256 sparse experts": "undecidable",
    "not INT4": "undecidable",
    "INT8": "refuted",
    "370 encrypted uncensored tensors": "undecidable",
    "2,335 encrypted MTP tensors": "undecidable",
    "2,336 MTP tensors": "refuted",
    "333 visual tensors": "confirmed",
    "no 333 visual tensors": "undecidable",
    "0.0 GB": "undecidable",
    "0.0 GB total": "undecidable",
    "20.9 GB": "undecidable",
    "20.9 GB total": "confirmed",
    "20.7 GB total": "refuted",
    "20.9 GB total RAM": "undecidable",
    "9 shards ~ 19.6 GB": "refuted",
    "MTP is in BF16": "refuted",
    "the MTP block is not in INT4": "undecidable",
    "untied embeddings": "undecidable",
    "group size 64": "refuted",
    "1,030 of 31,181 layers": "refuted",
    "group_size: 128, and rare 256 experts": "confirmed undecidable",
    "x" * 300 + " 256 experts": "",
    "256 experts " * 40: "undecidable",
    "It is not, by any means, INT4": "undecidable",
    "never\nINT4": "undecidable",
    "This isn't it: | INT4 |": "undecidable",
}


def test_only_a_phrase_that_is_understood_as_a_whole_is_decided() -> None:
    claims = judge("\n\n".join(PHRASES), described(), full("ec"))
    begins: list[int] = [0]
    for phrase in PHRASES:
        begins.append(begins[-1] + phrase.count("\n") + 2)
    found = {
        phrase: " ".join(claim.verdict for claim in claims if begins[number] < claim.line <= begins[number + 1])
        for number, phrase in enumerate(PHRASES)
    }
    assert found == PHRASES


def test_an_edited_configuration_confirms_nothing() -> None:
    """Of 64 experts, that is: the routers have 256."""
    headers = full("ec")
    config = json.loads(headers.sides["config.json"])
    for key in ("num_experts", "tie_word_embeddings"):
        assert key in config["text_config"] or key in config
    config["text_config"] |= {"num_experts": 64, "tie_word_embeddings": True}
    config["quantization_config"] |= {"group_size": 64, "iters": 400}
    edited = replace(headers, sides={**headers.sides, "config.json": json.dumps(config).encode()}, _parsed={})
    claims = judge("64 experts; group_size: 64; tied embeddings; iters: 400", described(), edited)
    assert [claim.verdict for claim in claims] == ["refuted", "refuted", "refuted", "undecidable"]


def test_the_printed_command_cannot_have_written_2335_tensors() -> None:
    """The worked example of docs/identify.md: its raw output has 33, and other bytes."""
    raw, ec = identify(full("raw")), described()
    assert (raw.tensors["MTP"], ec.tensors["MTP"]) == (33, 2_335)
    assert raw.mtp == "experts fused, rest packed" and ec.mtp == "packed"
    assert "auto-round 0.12.2 to 2dda035" in raw.writers
    assert "auto-round 0.12.2 to 2dda035" not in ec.writers
    assert raw.main_bytes + raw.extra_bytes == 22_083_373_792
    assert ec.main_bytes + ec.extra_bytes == 20_891_142_880
    assert any("but for its experts" in policy for policy in raw.policies)


@given(st.text(max_size=400))
def test_any_card_is_read(ec: Path, text: str) -> None:
    claims = judge(text, described(), read_headers(ec))
    assert all(claim.verdict in ("confirmed", "refuted", "undecidable") for claim in claims)


def test_the_command(ec: Path, tmp_path: Path) -> None:
    (tmp_path / "card.md").write_text(CARD)
    shown = CliRunner().invoke(app, ["identify", str(ec), "--card", str(tmp_path / "card.md"), "--json"])
    document = json.loads(shown.output)
    assert document["mtp"] == "packed" and len(document["claims"]) > 10
    (tmp_path / "card.md").write_bytes(b"\xff\xfe")
    assert CliRunner().invoke(app, ["identify", str(ec), "--card", str(tmp_path / "card.md")]).exit_code != 0
