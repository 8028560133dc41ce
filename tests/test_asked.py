"""What a recipe asks beside one scheme for all, from `new` to `audit`: no tuning, schemes of layers' own, `lm_head`."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from tests.owned import base, hold
from typer.testing import CliRunner

from requant.build import beside, build, record
from requant.build.survey import record as renew
from requant.check import check
from requant.check.findings import TUNED
from requant.check.reader import open_reader
from requant.checkpoint.checkpoint import open_checkpoint
from requant.cli.options import app
from requant.evidence.journal import read_journal
from requant.formats import PACKED, packing_of
from requant.model.target import target_of
from requant.recipe import Recipe, read_recipe
from requant.rounding import ways

EIGHT = '"mlp.down_proj" = { name = "W8A16", symmetric = true, group_size = 32 }'
TWO = '"layers.1.self_attn" = { name = "W2A16", symmetric = true, group_size = 64 }'
HEAD = 'lm_head = { name = "W4A16", symmetric = true, group_size = 64 }'
OWN = '"mlp.down_proj" = { name = "W8A16", symmetric = true, group_size = -1 }'
FLOAT = ["--ignore", "layers.0.self_attn", "--ignore", "layers.0.linear_attn"]
ROUNDED = ["--asymmetric", "--group-size", "32", "--iterations", "0"]
ASKED = {
    "rounded": ("llama", ROUNDED, [], {ways.FULL}),
    "searched": ("qwen3moe", ["--iterations", "0"], [], {ways.WIDE}),
    "mixed": ("llama", ["--ignore", "layers.0.self_attn."], [EIGHT, TWO], {TUNED}),
    "mixed, asymmetric": ("llama", ["--asymmetric", "--format", "auto_round", "--scheme", "W3A16"], [OWN], {TUNED}),
    "head": ("llama", ["--iterations", "0"], [HEAD], {ways.WIDE}),
    "head, rounded": ("llama", ["--iterations", "0", "--no-search-scales"], [HEAD, EIGHT], {ways.FULL}),
    "to GPTQ": ("qwen3moe", ["--format", "auto_gptq", "--ignore", "layers.0.self_attn."], [TWO], {TUNED}),
    "to GPTQ, head": ("llama", ["--format", "auto_gptq", "--iterations", "0"], [HEAD], {ways.WIDE}),
    "to AWQ": ("qwen3_5_moe", ["--format", "auto_awq", "--asymmetric", *FLOAT], [], {TUNED}),
    "rounded by 0.16": ("llama", ["--environment", "current", *ROUNDED], [], {ways.FULL}),
    "searched by 0.16": ("qwen3moe", ["--environment", "current", "--iterations", "0"], [], {ways.FARTHER_WIDE}),
    "mixed by 0.16": ("llama", ["--environment", "current", "--ignore", "layers.0.self_attn."], [EIGHT, TWO], {TUNED}),
    "Mixtral by 0.16": ("mixtral", ["--environment", "current"], [], {TUNED}),
    "head by 0.16": ("llama", ["--environment", "current", "--iterations", "0"], [HEAD, EIGHT], {ways.FARTHER_WIDE}),
}
"""Of which base, with which options of `new`, which schemes, and in which ways `check` says that layers were made."""


@pytest.fixture(scope="module", params=ASKED)
def asked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, worker: Path) -> Any:
    """The name of what is asked, and the recipe."""
    del worker
    kind, options, schemes, _ = ASKED[request.param]
    folder = tmp_path_factory.mktemp("asked")
    words = ["new", base(kind, folder / "model"), "--name", "mine", "--project", folder / "project", *options]
    words += [] if "--environment" in words else ["--environment", "cpu"]
    shown = CliRunner().invoke(app, [*map(str, words), "--sandbox", "venv", "--json"])
    assert shown.exit_code == 0, shown.output
    path = Path(json.loads(shown.stdout)["recipe"]) / "recipe.toml"
    text = path.read_text().replace("keep_best = true", "keep_best = false")  # often it is the untuned one
    path.write_text(f"{text}\n[layers.schemes]\n" + "\n".join(schemes) if schemes else text)
    recipe = read_recipe(path)
    if schemes:
        renew(recipe)
    return request.param, recipe


@pytest.mark.worker
@pytest.mark.full
def test_what_is_asked_is_built_twice_resumed_checked_and_audited(
    asked: tuple[str, Recipe], tmp_path: Path, ask: Callable[..., Any]
) -> None:
    name, own = asked
    first, target = build(own, tiny="mini", out=tmp_path / "first").folder, target_of(own, "mini")
    record(own, "mini", first)
    tensors = open_checkpoint(first).tensors
    for layer, planned in target.plan.packed.items():
        specs = {each: tensors[f"{layer}.{each}"].spec for each in PACKED}
        packing = packing_of(specs, *planned.shape)
        assert packing is not None and packing.bits == target.form_at(f"{layer}.qweight").bits
    lines = read_journal(beside(first, "journal.jsonl")).blocks
    assert {line.loss is None for line in lines} == {own.rounds}
    assert [line.block for line in lines] == [*target.plan.blocks]
    assert ("lm_head" in target.plan.blocks) == ("head" in name)

    hold(own, first, tmp_path)
    for recipe in (own, None):
        with open_reader(str(first)) as theirs, open_reader(str(tmp_path / "base")) as ours:
            checked = check(theirs, ours, recipe=recipe, tiny=True)
        assert checked.outcome == "clean", checked.findings
        found = {checked.layers[layer] for layer in target.plan.packed}
        assert found == ASKED[name][3] or (recipe is None and found == {ways.WIDE, ways.SEARCHED})
    if own.rounds:
        theirs = ask("alone", own.path, tmp_path / "base", tmp_path / "theirs", environment=own.environment)
        assert theirs == {each: sha256(tensors[each].read()).hexdigest() for each in tensors if each.endswith(PACKED)}
