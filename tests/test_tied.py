"""A base that stores its output head beside the embeddings that it is: a checkpoint of it needs one of the two."""

from pathlib import Path
from typing import Any

import pytest

from requant.check import check
from requant.check.checked import Checked
from requant.check.reader import open_reader
from requant.checkpoint.checkpoint import write_checkpoint
from requant.checkpoint.safetensors import Spec
from requant.model.tiny import stand_in

HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"
SPECS = {EMBEDDINGS: Spec("BF16", (320, 64))} | {f"model.{i}.weight": Spec("BF16", (320, 64)) for i in range(3)}


def checked(folder: Path, config: dict[str, Any], *, head: Spec, tied: bool) -> Checked:
    """Hold a checkpoint without a head against a base with one."""
    specs, others = {**SPECS, HEAD: head}, {HEAD: EMBEDDINGS} if tied else {}
    write_checkpoint(stand_in("mini", config, specs, zero_centred=False, tied=others), folder / "base")
    write_checkpoint(stand_in("mini", config, SPECS, zero_centred=False), folder / "checkpoint")
    with open_reader(str(folder / "checkpoint")) as theirs, open_reader(str(folder / "base")) as ours:
        return check(theirs, ours)


@pytest.mark.parametrize(
    ("config", "head", "tied", "lacks"),
    [
        ({"tie_word_embeddings": True}, SPECS[EMBEDDINGS], True, []),
        ({"text_config": {"tie_word_embeddings": True}}, SPECS[EMBEDDINGS], True, []),
        ({"tie_word_embeddings": False}, SPECS[EMBEDDINGS], True, [HEAD]),
        ({"tie_word_embeddings": "yes"}, SPECS[EMBEDDINGS], True, [HEAD]),
        ({}, SPECS[EMBEDDINGS], True, [HEAD]),
        ({"tie_word_embeddings": True}, SPECS[EMBEDDINGS], False, [HEAD]),
        ({"tie_word_embeddings": True}, Spec("BF16", (319, 64)), False, [HEAD]),
    ],
)
def test_a_head_may_be_left_out_where_it_is_the_embeddings(
    config: dict[str, Any], head: Spec, tied: bool, lacks: list[str], tmp_path: Path
) -> None:
    found = checked(tmp_path, config, head=head, tied=tied)
    assert [each.tensor for each in found.findings if each.kind == "not in the checkpoint"] == lacks
