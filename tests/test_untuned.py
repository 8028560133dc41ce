"""All that tuning does not decide follows from base and recipe: the equal is identical, any change found and named.

No worker is needed for that: the tiny model and the recorded manifests are enough.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import ROOT, Refuses
from tests.tiny import tiny

from requant.audit import references
from requant.audit.audited import Audited
from requant.audit.challenge import MAX_TEXT
from requant.audit.pool import Setting
from requant.audit.untuned import NAMED, Deviation, Untuned, compare, derive, short, tuned
from requant.build import RECORDED, beside
from requant.build.inputs import tiny_inputs
from requant.checkpoint.checkpoint import INDEX, Checkpoint, Held, Tensor, header_of, open_checkpoint, write_checkpoint
from requant.checkpoint.manifest import Manifest, make_manifest, read_manifest
from requant.checkpoint.safetensors import Spec
from requant.digest import sha256_chunks
from requant.environment import Environment
from requant.errors import CheckpointError
from requant.model.target import target_of
from requant.passes import Context
from requant.passes.context import EXTRAS
from requant.progress import silent
from requant.recipe import read_recipe
from requant.sandbox.running import Sandbox
from requant.verdict import Outcome

VERSION = "0.12.2"
NORM = "model.language_model.norm.weight"
LAYER = "model.language_model.layers."


def context(name: str, version: str = VERSION) -> Context:
    recipe = read_recipe(ROOT / "builds" / name)
    return Context(tiny("mini"), target_of(recipe, "mini"), recipe, recipe.effort(tiny=True), version)


@cache
def derived(name: str) -> tuple[Checkpoint, frozenset[str]]:
    aim = context(name)
    return derive(aim), frozenset(tuned(aim))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What base and recipe give of `ec`, written as a checkpoint; its tuned tensors are stand-ins."""
    folder = tmp_path_factory.mktemp("written") / "ec"
    write_checkpoint(derived("ec")[0], folder)
    return folder


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "ec"))


def compared(folder: Path) -> Untuned:
    return compare(folder, make_manifest(folder), *derived("ec"))


def found(folder: Path) -> list[tuple[str, str]]:
    return [(each.kind, each.name) for each in compared(folder).deviations]


def rewritten(folder: Path, edit: Callable[[dict[str, dict[str, Tensor]]], object]) -> None:
    """Write the files of tensors anew, after an edit of file name to tensors."""
    old = open_checkpoint(folder)
    shards = {
        file: {name: Tensor(each.spec, Held(each.read())) for name, each in tensors.items()}
        for file, tensors in old.shards.items()
    }
    for file in old.shards:
        (folder / file).unlink()
    edit(shards)
    write_checkpoint(Checkpoint({file: tensors for file, tensors in shards.items() if tensors}, {}), folder)


def flipped(tensor: Tensor, byte: int = 0, bit: int = 0) -> Tensor:
    data = bytearray(tensor.read())
    data[byte] ^= 1 << bit
    return Tensor(tensor.spec, Held(bytes(data)))


@pytest.mark.parametrize("name", ["ec", "gb10", "intel"])
def test_it_is_what_the_recorded_build_has(name: str) -> None:
    """Held against what real builds wrote, byte for byte, though no worker is there to ask."""
    manifest = read_manifest(ROOT / "builds" / name / "mini.manifest.json")
    checkpoint, decided = derived(name)
    assert checkpoint.files.keys() | checkpoint.shards.keys() == manifest.files.keys()
    for path, content in checkpoint.files.items():
        assert sha256_chunks(content.chunks()) == manifest.files[path].sha256, path
    for file, tensors in checkpoint.shards.items():
        assert {key: each.spec for key, each in tensors.items()} == {
            key: Spec(each.dtype, each.shape) for key, each in manifest.tensors.items() if each.file == file
        }
        data = sum(each.spec.nbytes for each in tensors.values())
        assert len(header_of({key: each.spec for key, each in tensors.items()})) + data == manifest.files[file].bytes
        for key, tensor in tensors.items():
            assert key in decided or sha256_chunks(tensor.content.chunks()) == manifest.tensors[key].sha256, key
    assert len(decided) == 2 * sum(key.startswith(LAYER) and key.endswith(".qzeros") for key in manifest.tensors)


def test_the_equal_is_identical_whatever_was_tuned(copy: Path) -> None:
    assert compared(copy) == Untuned()
    assert compared(copy).outcome is Outcome.IDENTICAL

    def tune(shards: dict[str, dict[str, Tensor]]) -> None:
        for tensors in shards.values():
            tensors |= {name: flipped(each) for name, each in tensors.items() if name in derived("ec")[1]}

    rewritten(copy, tune)
    assert compared(copy) == Untuned()


UNTUNED = sorted(set(derived("ec")[0].tensors) - derived("ec")[1])
KINDS_OF_TENSORS = (
    "lm_head.weight",
    "model.language_model.embed_tokens.weight",
    NORM,
    f"{LAYER}0.input_layernorm.weight",
    f"{LAYER}3.mlp.gate.weight",
    f"{LAYER}1.mlp.shared_expert_gate.weight",
    "model.visual.patch_embed.proj.bias",
    "mtp.fc.weight",
    "mtp.norm.weight",
    f"{LAYER}2.mlp.shared_expert.down_proj.qzeros",
)


def test_the_tensors_that_are_named_here_are_there() -> None:
    assert {*KINDS_OF_TENSORS} <= {*UNTUNED}


@pytest.mark.parametrize("name", KINDS_OF_TENSORS)
def test_a_flipped_bit_is_found_and_named(name: str, copy: Path) -> None:
    rewritten(
        copy, lambda shards: [each.update({name: flipped(each[name])}) for each in shards.values() if name in each]
    )
    assert found(copy) == [("changed tensor", name)]
    assert compared(copy).outcome is Outcome.DIFFERENT


def test_every_tensor_that_is_not_tuned_is_looked_at(written: Path) -> None:
    manifest = make_manifest(written)
    tensors = {name: replace(each, sha256="00" * 32) for name, each in manifest.tensors.items()}
    some = compare(written, Manifest(manifest.files, tensors), *derived("ec"))
    assert (some.count, len(some.deviations)) == (len(UNTUNED), NAMED)
    assert [each.name for each in some.deviations] == UNTUNED[:NAMED]
    assert some.text()[-1] == f"  and {len(UNTUNED) - NAMED} more"


def test_one_tensor_more_or_less_is_named(copy: Path) -> None:
    def edit(shards: dict[str, dict[str, Tensor]]) -> None:
        shards[EXTRAS]["mtp.more"] = Tensor(Spec("F32", (1,)), Held(bytes(4)))
        for tensors in shards.values():
            tensors.pop(NORM, None)

    rewritten(copy, edit)
    assert found(copy) == [("missing tensor", NORM), ("extra tensor", "mtp.more")]


@pytest.mark.parametrize("name", [NORM, f"{LAYER}0.mlp.shared_expert.up_proj.qweight"])
def test_a_tensor_in_another_file_or_form_is_named(name: str, copy: Path) -> None:
    def move(shards: dict[str, dict[str, Tensor]]) -> None:
        file = next(file for file, tensors in shards.items() if name in tensors)
        shards[EXTRAS][name] = shards[file].pop(name)

    def wider(shards: dict[str, dict[str, Tensor]]) -> None:
        tensor = shards[EXTRAS][name]
        shards[EXTRAS][name] = Tensor(Spec("U8", (tensor.spec.nbytes,)), tensor.content)

    rewritten(copy, move)
    assert found(copy) == [("moved tensor", name)]
    rewritten(copy, wider)
    assert sorted(found(copy)) == [("changed tensor", name), ("moved tensor", name)]


def test_the_order_in_a_file_and_its_metadata_are_its_header_s(copy: Path) -> None:
    def turned(shards: dict[str, dict[str, Tensor]]) -> None:
        shards[EXTRAS] = dict(reversed(shards[EXTRAS].items()))

    rewritten(copy, turned)
    assert found(copy) == [("changed file", EXTRAS)]
    rewritten(copy, turned)
    assert found(copy) == []
    data = (copy / EXTRAS).read_bytes()
    (copy / EXTRAS).write_bytes(data.replace(b'"pt"', b'"PT"', 1))
    assert found(copy) == [("changed file", EXTRAS)]


def test_a_file_of_weights_that_is_gone_or_one_too_many(copy: Path) -> None:
    (copy / "z").mkdir()
    (copy / EXTRAS).rename(copy / "z" / "more.safetensors")
    names = {name for name in UNTUNED if name.startswith(("mtp.", "model.visual."))}
    some = compared(copy)
    assert (some.count, some.deviations[:2]) == (
        len(names) + 2,
        (Deviation("missing file", EXTRAS), Deviation("extra file", "z/more.safetensors")),
    )
    assert {each.kind for each in some.deviations[2:]} == {"moved tensor"}


@pytest.mark.parametrize(
    ("file", "edit", "detail"),
    [
        ("config.json", lambda value: value["text_config"].update(rms_norm_eps=0.1), "text_config.rms_norm_eps: 1e-06"),
        ("config.json", lambda value: value.update(auto_map={"A": "a.B"}), 'auto_map: absent -> {"A": "a.B"}'),
        ("config.json", lambda value: value["quantization_config"].update(bits=8), "quantization_config.bits: 4 -> 8"),
        ("quantization_config.json", lambda value: value.pop("sym"), "sym: true -> absent"),
        ("generation_config.json", lambda value: value.update(top_k=1), "top_k: "),
        ("tokenizer_config.json", lambda value: value.update(model_max_length=1), "model_max_length: "),
        ("processor_config.json", lambda value: value.update(processor_class="X"), 'processor_class: "Qwen3VL'),
        (INDEX, lambda value: value["weight_map"].update({NORM: EXTRAS}), f"weight_map.{NORM}: "),
        (INDEX, lambda value: None, "the same values, written otherwise"),
    ],
)  # fmt: skip
def test_an_altered_key_is_named(file: str, edit: Callable[[Any], object], detail: str, copy: Path) -> None:
    value = json.loads((copy / file).read_text())
    edit(value)
    (copy / file).write_text(json.dumps(value))
    (deviation,) = compared(copy).deviations
    assert (deviation.kind, deviation.name) == ("changed file", file)
    assert deviation.detail.startswith(detail)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000])
def test_a_side_file_that_is_no_json_is_another_one(data: bytes, copy: Path) -> None:
    (copy / "config.json").write_bytes(data)
    assert compared(copy).deviations == (
        Deviation("changed file", "config.json", "its bytes are not what base and recipe give"),
    )


def test_other_side_files(copy: Path) -> None:
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    (copy / "tokenizer.json").unlink()
    (copy / "modeling.py").write_text("import os")
    (copy / "pytorch_model.bin").write_bytes(b"\x80")
    assert found(copy) == [
        ("changed file", "chat_template.jinja"),
        ("extra file", "modeling.py"),
        ("extra file", "pytorch_model.bin"),
        ("missing file", "tokenizer.json"),
    ]


def test_a_strangers_keys_can_be_recorded(copy: Path) -> None:
    value = json.loads((copy / "config.json").read_text())
    value["\x1b[2J"] = "x" * 5000
    value["other" * 1000] = 1
    (copy / "config.json").write_text(json.dumps(value))
    (deviation,) = compared(copy).deviations
    assert deviation.detail.isprintable()
    assert len(deviation.detail) == MAX_TEXT


@given(text=st.text())
def test_any_text_is_made_fit_for_a_statement(text: str) -> None:
    assert short(text).isprintable()
    assert len(short(text)) <= MAX_TEXT
    assert short(text) == text or not text.isprintable()


# The build that an audit holds a checkpoint against, and what its environment decides.


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """What an audit of the tiny model mini of ec is given; nobody enters its worker."""
    inputs = tiny_inputs(read_recipe(ROOT / "builds" / "ec"), "mini", tmp_path_factory.mktemp("inputs"), silent)
    environment = replace(Environment.load(ROOT / "lockfiles", "cpu"), digest="ab" * 32)
    return Setting(read_recipe(ROOT / "builds" / "ec"), "mini", inputs, environment, cast(Sandbox, None))


def stated(environment: str | None) -> references.Reference:
    """A reference of which only the environment is known."""

    class Stated(references.Reference):
        @property
        def environment(self) -> str | None:
            return environment

    return Stated(None, None)


@pytest.mark.parametrize("environment", ["ab" * 32, "cd" * 32, None])
def test_the_version_that_autoround_states_is_its_environment_s(
    environment: str | None, copy: Path, setting: Setting
) -> None:
    audited = Audited(copy, setting, stated(environment))
    manifest = audited.manifest(silent)
    assert audited.untuned(manifest, VERSION) == Untuned()
    other = audited.untuned(manifest, "0.14.0")
    if environment == setting.environment.digest:
        assert other.outcome is Outcome.DIFFERENT
        assert [each.detail for each in other.deviations] == [
            'quantization_config.autoround_version: "0.14.0" -> "0.12.2"',
            'autoround_version: "0.14.0" -> "0.12.2"',
        ]
    else:
        assert other.outcome is Outcome.INCONCLUSIVE
        assert other.open.startswith("it states AutoRound 0.12.2, here it is 0.14.0")
    (copy / "chat_template.jinja").write_text("")
    assert audited.untuned(audited.manifest(silent), "0.14.0").outcome is Outcome.DIFFERENT


@pytest.mark.parametrize("version", ["\x1b[2J", "", "newest", "0" * 65, 3, None])
def test_a_version_that_is_none_is_a_difference(version: object, copy: Path, setting: Setting) -> None:
    for file in ("config.json", "quantization_config.json"):
        value = json.loads((copy / file).read_text())
        value.get("quantization_config", value)["autoround_version"] = version
        (copy / file).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    audited = Audited(copy, setting, stated(None))
    assert audited.untuned(audited.manifest(silent), VERSION).outcome is Outcome.DIFFERENT


def test_what_tuning_needs_must_be_there_and_all_else_may_be_gone(
    copy: Path, setting: Setting, refuses: Refuses
) -> None:
    rewritten(copy, lambda shards: [tensors.pop(NORM, None) for tensors in shards.values()])
    audited = Audited(copy, setting, stated(None))
    some = audited.untuned(audited.manifest(silent), VERSION)
    assert [(each.kind, each.name) for each in some.deviations] == [("missing tensor", NORM)]
    code = f"{LAYER}0.mlp.shared_expert.up_proj.qweight"
    rewritten(copy, lambda shards: [tensors.pop(code, None) for tensors in shards.values()])
    with refuses(CheckpointError):
        Audited(copy, setting, stated(None))


def test_codes_that_the_recipe_does_not_mean_are_not_replayed(copy: Path, setting: Setting, refuses: Refuses) -> None:
    """A replay would take them for the layer's weight, and every block behind it would seem changed."""
    more = f"{LAYER}1.mlp.gate.qweight"
    rewritten(copy, lambda shards: shards[EXTRAS].update({more: Tensor(Spec("I32", (1,)), Held(bytes(4)))}))
    with refuses(CheckpointError):
        Audited(copy, setting, stated(None))


def test_companions_are_named_and_change_nothing(copy: Path, setting: Setting) -> None:
    (copy / ".cache" / "huggingface").mkdir(parents=True)
    (copy / ".cache" / "huggingface" / "x.lock").write_text("")
    audited = Audited(copy, setting, stated(None))
    assert [name.partition("/")[0] for name in audited.companions()] == [".cache"]
    assert audited.untuned(audited.manifest(silent), VERSION) == Untuned()


def test_what_is_recorded_decides_and_no_journal_of_the_publisher(tmp_path: Path, setting: Setting) -> None:
    """A publisher's journal, without a statement or with one of another class, made `different` inconclusive."""
    recipe = setting.recipe
    checkpoint = tmp_path / "ec"
    own = {name: beside(checkpoint, name) for name in RECORDED}
    recorded = {name: ROOT / "builds" / "ec" / f"mini.{name}" for name in RECORDED}
    for name in RECORDED:
        shutil.copyfile(recorded[name], own[name])
    as_recorded = references.Reference(recorded["journal.jsonl"], recorded["intoto.jsonl"])
    assert references.known(recipe, "mini", checkpoint) == as_recorded
    own["intoto.jsonl"].write_text(own["intoto.jsonl"].read_text().replace("COMPATIBLE", "AVX2"))
    found = references.known(recipe, "mini", checkpoint)
    assert found == as_recorded
    assert found.stated and found.lines
    here = replace(setting, environment=replace(setting.environment, digest=found.lines.header.environment))
    assert found.unlike(here, found.stated[1]) == ""
    own["intoto.jsonl"].unlink()
    assert references.known(recipe, "mini", checkpoint) == as_recorded
    assert references.known(recipe, "mini", checkpoint, own["journal.jsonl"]) == references.Reference(
        own["journal.jsonl"], recorded["intoto.jsonl"]
    )
    assert references.known(recipe, "mini", checkpoint, compared=False) == references.Reference(
        None, recorded["intoto.jsonl"]
    )


def test_where_nothing_is_recorded_what_lies_beside_the_checkpoint_is_looked_at(
    tmp_path: Path, setting: Setting
) -> None:
    recipe = replace(setting.recipe, path=tmp_path / "recipe" / "recipe.toml")
    checkpoint = tmp_path / "ec"
    assert references.known(recipe, "mini", checkpoint) == references.Reference(None, None)
    for name in RECORDED:
        beside(checkpoint, name).write_text("")
    assert references.known(recipe, "mini", checkpoint) == references.Reference(
        beside(checkpoint, "journal.jsonl"), beside(checkpoint, "intoto.jsonl")
    )
    named = tmp_path / "named.journal.jsonl"
    assert references.known(recipe, "mini", checkpoint, named) == references.Reference(named, None)
