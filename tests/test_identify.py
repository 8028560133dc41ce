"""Fingerprints exclude writers."""

import json
from collections.abc import Callable
from functools import cache
from itertools import islice
from pathlib import Path

import pytest
from tests.cases.mutations import EXTRAS, edit, fused_mtp_experts, rewritten
from tests.cases.tiny_models import healthy
from tests.conftest import ROOT
from typer.testing import CliRunner

from requant.build import Built
from requant.checkpoint.checkpoint import Checkpoint, json_file, shard_names, write_checkpoint
from requant.cli.options import app
from requant.identify import Fingerprint, identify
from requant.inspect.headers import Headers, read_headers
from requant.model.base_config import base_config
from requant.model.target import target_of
from requant.passes import PASSES, Context
from requant.recipe import read_recipe


@pytest.fixture(scope="module")
def ec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("identify") / "ec"
    write_checkpoint(healthy("ec"), folder)
    return folder


def test_a_healthy_tiny_model(ec: Path) -> None:
    found = identify(read_headers(ec))
    assert found.mtp == "packed" and found.negative_rounded == 0.0
    assert set(found.zero_words or {}) == {path.name for path in ec.glob("*.safetensors")}
    assert {word for words in (found.zero_words or {}).values() for word in words} == {"0x77777777"}
    assert found.policies == (f"everything packed; MTP packed, visual in {EXTRAS}",)
    assert found.writers and "requant" in found.writers
    assert not any("2dda035" in writer for writer in found.writers)


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
    assert excluded not in (identify(read_headers(tmp_path / "other")).writers or ())


@pytest.mark.worker
def test_raw_output_is_recognised(built: Callable[[str], Built]) -> None:
    """AutoRound's own output, and what the build made of it, tell each other apart."""
    raw = identify(read_headers(built("ec").folder.with_name("ec.raw")))
    assert raw.writers == ("auto-round 0.12.2 to 2dda035",)
    assert raw.tokenizer == "rewritten by transformers 5"
    assert (raw.zero_words or {})[EXTRAS] == {"0x88888888": 7}
    made = identify(read_headers(built("ec").folder))
    assert made.writers and "requant" in made.writers and made.negative_tuned and 0.3 < made.negative_tuned < 0.7


@cache
def described() -> Fingerprint:
    return identify(full("ec"))


@cache
def full(mtp: str) -> Headers:
    """The EC checkpoint at full scale, by headers: as the card describes it, or as its command leaves MTP."""
    recipe = read_recipe(ROOT / "builds" / "ec")
    config = base_config(recipe)
    base, target = Checkpoint({}, {"config.json": json_file(config)}), target_of(recipe, None)
    files = PASSES["quantization_config"](
        Checkpoint({}, {}), Context(base, target, recipe, recipe.effort(False), "0.13.0")
    ).files
    main, extras = target.main, target.extras
    if mtp == "raw":
        fused = {
            name: spec for name, spec in target.plan.tensors.items() if name.startswith("mtp.layers.0.mlp.experts.")
        }
        extras = {name: spec for name, spec in extras.items() if ".mlp.experts." not in name} | fused
    shards = {name: dict(islice(main.items(), n, None, 10)) for n, name in enumerate(shard_names(10))} | {
        EXTRAS: extras
    }
    total = sum(spec.nbytes for held in shards.values() for spec in held.values())
    sides = {name: b"".join(content.chunks()) for name, content in files.items()}
    return Headers("EC", shards, total, sides, tuple(files))


@pytest.mark.full
def test_the_printed_command_cannot_have_written_2335_tensors() -> None:
    """The worked example of docs/identify.md: its raw output has 33, and other bytes."""
    raw, ec = identify(full("raw")), described()
    assert (raw.tensors["MTP"], ec.tensors["MTP"]) == (33, 2_335)
    assert raw.mtp == "experts fused, rest packed" and ec.mtp == "packed"
    assert "auto-round 0.12.2 to 2dda035" in (raw.writers or ())
    assert "auto-round 0.12.2 to 2dda035" not in (ec.writers or ())
    assert raw.main_bytes + raw.extra_bytes == 22_083_373_792
    assert ec.main_bytes + ec.extra_bytes == 20_891_142_880
    assert any("but for its experts" in policy for policy in raw.policies or ())


def test_the_command(ec: Path) -> None:
    shown = CliRunner().invoke(app, ["identify", str(ec), "--json"])
    assert json.loads(shown.output)["mtp"] == "packed"
