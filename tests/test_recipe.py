import json
import tomllib
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from requant.errors import RecipeError
from requant.recipe import ESTIMATES, SCHEMES, Effort, LayerScheme, Recipe, Scheme, read_recipe

BUILDS = Path(__file__).parent.parent / "builds"
NAMES = ("ec", "gb10", "intel")
EC: dict[str, Any] = tomllib.loads((BUILDS / "ec" / "recipe.toml").read_text())


def flat(document: dict[str, Any]) -> dict[str, Any]:
    tables = {key: value for key, value in document.items() if isinstance(value, dict)}
    own = {key: value for key, value in document.items() if key not in tables}
    return own | {f"{name}.{key}": value for name, table in tables.items() for key, value in table.items()}


VALUES = flat(EC)


def with_value(key: str, value: Any) -> dict[str, Any]:
    document = deepcopy(EC)
    table, _, name = key.rpartition(".")
    (document[table] if table else document)[name] = value
    return document


def without(key: str) -> dict[str, Any]:
    document = deepcopy(EC)
    table, _, name = key.rpartition(".")
    del (document[table] if table else document)[name]
    return document


class Word(str):
    """TOML that has no JSON."""

    __slots__ = ()


def toml(document: dict[str, Any]) -> str:
    def line(key: str, value: Any) -> str:
        return f"{json.dumps(key)} = {value if isinstance(value, Word) else json.dumps(value)}"

    own = [line(key, value) for key, value in document.items() if not isinstance(value, dict)]
    for name, table in document.items():
        if isinstance(table, dict):
            own += [f"[{json.dumps(name)}]", *(line(key, value) for key, value in table.items())]
    return "\n".join(own) + "\n"


def read(folder: Path, document: dict[str, Any] | str) -> Recipe:
    path = folder / "recipe.toml"
    path.write_text(document if isinstance(document, str) else toml(document))
    return read_recipe(path)


def refused(folder: Path, document: dict[str, Any] | str) -> str:
    with pytest.raises(RecipeError) as error:
        read(folder, document)
    assert str(error.value).startswith(f"{folder / 'recipe.toml'}: ")
    return str(error.value).removeprefix(f"{folder / 'recipe.toml'}: ")


# What the issue asks for.

SCHEME = {
    "scheme.name": "W4A16",
    "scheme.symmetric": True,
    "scheme.group_size": 128,
    "scheme.format": "auto_round:auto_gptq",
}
SOURCES = {
    "base.repository": "Qwen/Qwen3.6-35B-A3B",
    "base.revision": "995ad96eacd98c81ed38be0c5b274b04031597b0",
    "calibration.dataset": "NeelNanda/pile-10k",
    "calibration.revision": "127bfedcd5047750df5ccf3a12979a47bfa0bafa",
    "calibration.file": "data/train-00000-of-00001-4746b8785c874cc7.parquet",
}
ASKED = {
    "ec": {
        "environment": "cu124",
        "tuning.iterations": 400,
        "calibration.samples": 256,
        "calibration.sequence_length": 4096,
        "layers.ignore": ["mtp.fc"],
        "mtp.policy": "rtn",
        "layout.shards": 10,
    },
    "gb10": {
        "environment": "gb10",
        "tuning.iterations": 400,
        "calibration.samples": 256,
        "calibration.sequence_length": 2048,
        "layers.ignore": ["shared_expert", "mtp.fc", "linear_attn.in_proj_a", "linear_attn.in_proj_b"],
        "mtp.policy": "bf16",
    },
    "intel": {
        "environment": "cu124",
        "tuning.iterations": 200,
        "calibration.samples": 128,
        "calibration.sequence_length": 2048,
        "layers.ignore": ["mtp.fc"],
        "mtp.policy": "rtn",
        "layout.shards": 10,
    },
}
COMMON = SCHEME | SOURCES | {"tuning.batch_size": 8, "tuning.gradient_accumulation": 1, "tuning.precision": "bfloat16"}


@pytest.mark.parametrize("name", NAMES)
def test_the_recipes_ask_for_what_the_cards_describe(name: str) -> None:
    recipe = read_recipe(BUILDS / name)
    found = flat(tomllib.loads((BUILDS / name / "recipe.toml").read_text()))
    for key, value in (COMMON | ASKED[name]).items():
        assert found[key] == value, key
        table, _, attribute = key.rpartition(".")
        read_value = getattr(getattr(recipe, table) if table else recipe, attribute)
        assert read_value == (tuple(value) if isinstance(value, list) else value), key
    assert recipe.name == name
    assert recipe.beside(recipe.base.files).is_file()
    assert recipe.beside(recipe.calibration.files).is_file()


def test_intel_is_ec_at_the_default_effort() -> None:
    intel = flat(tomllib.loads((BUILDS / "intel" / "recipe.toml").read_text()))
    other = {key for key, value in intel.items() if value != VALUES[key]}
    assert {key for key in other if not key.startswith(("hardware.", "tiny."))} == {
        "tuning.iterations",
        "calibration.samples",
        "calibration.sequence_length",
    }


def test_the_tiny_model_shrinks_the_effort_and_nothing_else() -> None:
    recipe = read_recipe(BUILDS / "ec")
    assert recipe.effort(tiny=False) == Effort("cu124", "cuda", "bfloat16", 400, 256, 4096, 10)
    assert recipe.effort(tiny=True) == Effort("cpu", "cpu", "float32", 6, 16, 64, 3)


def test_a_folder_and_its_recipe_are_the_same() -> None:
    assert read_recipe(BUILDS / "ec") == read_recipe(BUILDS / "ec" / "recipe.toml")


# Strictness.


@pytest.mark.parametrize("key", [*VALUES, *(key for key in EC if isinstance(EC[key], dict))])
def test_no_key_can_be_left_out(key: str, tmp_path: Path) -> None:
    assert refused(tmp_path, without(key)) == f"{key}: missing"


TYPES = {
    "whole": 3,
    "point": 1.5,
    "truth": True,
    "word": "other",
    "words": ["other"],
    "numbers": [1],
    "table": Word('{ "a" = 1 }'),
    "date": Word("1979-05-27"),
}


@pytest.mark.parametrize("key", VALUES)
def test_no_value_can_be_of_another_type(key: str, tmp_path: Path) -> None:
    right = {type(VALUES[key]), float} if key.endswith("learning_rate") else {type(VALUES[key])}
    wrong = {name: value for name, value in TYPES.items() if type(value) not in right}
    wrong |= {"numbers": [1], "mixed": ["a", 1]}
    for name, value in wrong.items():
        message = refused(tmp_path, with_value(key, value))
        assert message.startswith(f"{key}: found "), name
        assert ", allowed: " in message, name


@pytest.mark.parametrize("value", [3, 1.5, True, "other", ["other"]])
@pytest.mark.parametrize("table", [key for key in EC if isinstance(EC[key], dict)])
def test_no_table_can_be_a_value(table: str, value: Any, tmp_path: Path) -> None:
    assert refused(tmp_path, EC | {table: value}) == f"{table}: found {value!r}, expected a table [{table}]"


@pytest.mark.parametrize("table", ["", *(f"{key}." for key in EC if isinstance(EC[key], dict))])
def test_no_key_can_be_added(table: str, tmp_path: Path) -> None:
    message = refused(tmp_path, with_value(f"{table}surprise", 1))
    assert message.startswith(f"{table}surprise: unknown key; allowed here: ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scheme.name", "W5A16"),
        ("scheme.group_size", 16),
        ("scheme.format", "auto_round:gptqmodel"),
        ("tuning.learning_rate", "2/iterations"),
        ("tuning.precision", "float16"),
        ("mtp.policy", "tuned"),
        ("hardware.device", "xpu"),
        ("tiny.device", "tpu"),
    ],
)
def test_choices_are_closed(key: str, value: Any, tmp_path: Path) -> None:
    assert refused(tmp_path, with_value(key, value)).startswith(f"{key}: found {value!r}, allowed: ")


@pytest.mark.parametrize("key", [key for key in VALUES if isinstance(VALUES[key], float) or key.endswith("_rate")])
@pytest.mark.parametrize("value", ["nan", "+nan", "-nan", "inf", "-inf", "1e400"])
def test_numbers_are_finite(key: str, value: str, tmp_path: Path) -> None:
    assert "a finite number" in refused(tmp_path, with_value(key, Word(value)))


# Combinations.

COUNTS = ("batch_size", "gradient_accumulation", "samples", "sequence_length", "shards")


@pytest.mark.parametrize("key", [key for key in VALUES if key.rpartition(".")[2] in COUNTS])
@pytest.mark.parametrize("value", [0, -1])
def test_there_is_at_least_one_of_each(key: str, value: int, tmp_path: Path) -> None:
    assert refused(tmp_path, with_value(key, value)).startswith(f"{key}: found {value}")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tuning.learning_rate", -0.1),
        ("tuning.learning_rate", 0.0),  # AutoRound would take 1/iterations
        ("tuning.minmax_learning_rate", 0.0),  # AutoRound would take the other rate
        ("tuning.momentum", -0.5),
        ("tuning.seed", -1),
        ("tuning.seed", 2**32),
        ("tuning.patience", 0),  # AutoRound would never stop
        ("tuning.patience", -2),
        ("hardware.memory_gib", -1),
        ("hardware.hours", -1.0),
        ("calibration.samples", 252),
        ("calibration.samples", 4),  # AutoRound would shrink the batch
        ("tiny.samples", 12),
    ],
)
def test_numbers_out_of_range_are_refused(key: str, value: float, tmp_path: Path) -> None:
    assert refused(tmp_path, with_value(key, value)).startswith(f"{key}: found {value}, allowed: ")


def test_an_iteration_takes_no_more_samples_than_there_are(tmp_path: Path) -> None:
    """AutoRound would lower gradient_accumulation to 2, and only warn."""
    assert "no fewer than the 24" in refused(tmp_path, with_value("tuning.gradient_accumulation", 3))
    assert read(tmp_path, with_value("tuning.gradient_accumulation", 2)).tuning.gradient_accumulation == 2


def rounded(**tuning: Any) -> dict[str, Any]:
    """EC's recipe at 0 iterations."""
    document = with_value("tiny.iterations", 0)
    document["tuning"] |= {"iterations": 0, "search_scales": True} | tuning
    return document


def test_at_no_iterations_a_recipe_says_whether_scales_are_searched(tmp_path: Path) -> None:
    for search in (True, False):
        recipe = read(tmp_path, rounded(search_scales=search))
        assert recipe.rounds
        assert recipe.tuning.search_scales is search
    silent = rounded()
    del silent["tuning"]["search_scales"]
    assert refused(tmp_path, silent) == "tuning.search_scales: found None, allowed: true or false"
    told = refused(tmp_path, with_value("tuning.search_scales", False))
    assert told == "tuning.search_scales: found False, allowed: no such key: scales are searched at 0 iterations only"
    assert "true or false" in refused(tmp_path, rounded(search_scales="yes"))
    assert not read_recipe(BUILDS / "ec").rounds


def test_a_tiny_model_is_tuned_where_its_base_is(tmp_path: Path) -> None:
    told = refused(tmp_path, with_value("tuning.iterations", 0))
    assert told == "tiny.iterations: found 6, allowed: 0, as tuning.iterations is"
    told = refused(tmp_path, with_value("tiny.iterations", 0))
    assert told == "tiny.iterations: found 0, allowed: 1 or more, as tuning.iterations is"
    for key in ("tuning.iterations", "tiny.iterations"):
        assert refused(tmp_path, with_value(key, -1)) == f"{key}: found -1, allowed: 0 or more"


def test_scales_of_asymmetric_codes_are_not_searched(tmp_path: Path) -> None:
    document = rounded()
    document["scheme"] |= {"symmetric": False, "format": "auto_round:auto_awq"}
    document["mtp"] = {"policy": "bf16"}
    assert "the scales of symmetric codes only" in refused(tmp_path, document)
    document["tuning"]["search_scales"] = False
    assert read(tmp_path, document).rounds


EIGHT: dict[str, Any] = {"name": "W8A16", "symmetric": True, "group_size": 32}


def with_schemes(schemes: Any, **scheme: Any) -> str:
    """EC's recipe with schemes of layers' own, and another one of all."""
    document = with_value("mtp.policy", "bf16")
    document["scheme"] |= scheme
    text = toml(document)
    for pattern, own in schemes.items():
        lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in own.items())
        text += f"\n[layers.schemes.{json.dumps(pattern)}]\n{lines}\n"
    return text


def test_layers_may_have_a_scheme_of_their_own(tmp_path: Path) -> None:
    recipe = read(tmp_path, with_schemes({"self_attn": EIGHT, "lm_head": EIGHT | {"name": "W2A16"}}))
    found = recipe.layers.schemes
    assert found == {"self_attn": LayerScheme("W8A16", True, 32), "lm_head": LayerScheme("W2A16", True, 32)}
    assert [each.bits for each in found.values()] == [8, 2]
    assert recipe.digest != read(tmp_path, with_schemes({"self_attn": EIGHT})).digest
    assert read(tmp_path, EC).layers.schemes == {}


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"name": "W5A16"}, "layers.schemes.\"a\".name: found 'W5A16', allowed: "),
        ({"group_size": 16}, 'layers.schemes."a".group_size: found 16, allowed: '),
        ({"bits": 8}, 'layers.schemes."a".bits: unknown key'),
        ({"symmetric": False}, "layers.schemes.\"a\": found 'W8A16, asymmetric', allowed: symmetric: "),
    ],
)
def test_a_scheme_of_layers_is_as_strict(own: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert refused(tmp_path, with_schemes({"a": EIGHT | own})).startswith(said)


def test_a_scheme_of_layers_is_whole(tmp_path: Path) -> None:
    for key in EIGHT:
        without_it = {name: value for name, value in EIGHT.items() if name != key}
        assert refused(tmp_path, with_schemes({"a": without_it})) == f'layers.schemes."a".{key}: missing'
    assert refused(tmp_path, with_value("layers.schemes", ["a"])).startswith("layers.schemes: found ['a'], expected")
    for pattern in ("layers.1", "mlp.*down", ""):
        told = refused(tmp_path, with_schemes({pattern: EIGHT}))
        assert told.startswith(f"layers.schemes: found {pattern!r}, allowed")


def test_a_format_decides_which_schemes_mix(tmp_path: Path) -> None:
    awq, own = {"format": "auto_round:auto_awq"}, {"format": "auto_round"}
    four, asymmetric = EIGHT | {"name": "W4A16"}, {"symmetric": False}
    told = refused(tmp_path, with_schemes({"a": EIGHT}, **awq))
    assert told.endswith("found 'W8A16, symmetric', allowed: a name of 4 bits: AWQ's layout has 4 bits only")
    assert read(tmp_path, with_schemes({"a": four | asymmetric}, **awq)).layers.schemes
    told = refused(tmp_path, with_schemes({"a": EIGHT}, **awq, **asymmetric))
    assert told.startswith(
        "scheme.format: found 'auto_round:auto_awq', allowed: 'auto_round', in which AutoRound mixes"
    )
    assert read(tmp_path, with_schemes({"a": EIGHT}, **own, **asymmetric)).layers.schemes
    told = refused(tmp_path, with_schemes({"a": four}, **own, **asymmetric))
    assert "as auto_round:auto_awq under this name" in told
    told = refused(tmp_path, with_schemes({"a": four}, format="auto_awq"))
    assert told.endswith("allowed: none: AWQ's configuration has one scheme for all layers")
    assert read(tmp_path, with_schemes({"a": EIGHT}, format="auto_gptq")).layers.schemes
    told = refused(tmp_path, with_schemes({"a": four | asymmetric}, format="auto_gptq"))
    assert "allowed: symmetric: AutoRound cannot store an asymmetric zero point of 0 there" in told


def test_patience_needs_the_best_to_be_kept(tmp_path: Path) -> None:
    """AutoRound stops early only where it keeps the best iteration."""
    document = with_value("tuning.patience", 5)
    assert read(tmp_path, document).tuning.patience == 5
    document["tuning"]["keep_best"] = False
    assert refused(tmp_path, document).startswith("tuning.patience: found 5")


def test_hints_are_of_signs_and_of_the_best_iteration(tmp_path: Path) -> None:
    """With momentum AutoRound takes the signs of other sums, and without the best iteration its last parameters."""
    assert read(tmp_path, with_value("tuning.hints", True)).tuning.hints
    assert not read_recipe(BUILDS / "ec").tuning.hints
    for key, value in {"momentum": 0.5, "keep_best": False, "patience": 5}.items():
        document = with_value("tuning.hints", True)
        document["tuning"][key] = value
        assert refused(tmp_path, document).startswith("tuning.hints: found True, allowed: with momentum = 0.0"), key


def test_a_scheme_is_found_by_its_name() -> None:
    assert {*SCHEMES} == {*get_args(get_type_hints(Scheme)["name"])}
    assert read_recipe(BUILDS / "ec").scheme.bits == 4


def test_a_scheme_has_formats_that_autoround_can_write(tmp_path: Path) -> None:
    document, written = deepcopy(EC), set()
    document["mtp"]["policy"] = "bf16"
    choices = (get_args(get_type_hints(Scheme)[key]) for key in ("name", "format"))
    for name, packing_format, symmetric in product(*choices, (True, False)):
        document["scheme"] |= {"name": name, "symmetric": symmetric, "format": packing_format}
        scheme = Scheme(name, symmetric, 128, packing_format)
        if packing_format in scheme.formats:
            assert read(tmp_path, document).scheme == scheme
            written.add((scheme.bits, symmetric, packing_format))
        else:
            message = refused(tmp_path, document)
            assert message.startswith(f"scheme.format: found {packing_format!r}, allowed: {scheme.formats[0]!r}")
            assert message.endswith(scheme.fault)
    assert written == {
        *((bits, True, gptq) for bits in (2, 3, 4, 8) for gptq in ("auto_round:auto_gptq", "auto_gptq")),
        *((bits, False, "auto_round") for bits in (2, 3, 8)),
        *((4, symmetric, awq) for symmetric in (True, False) for awq in ("auto_round:auto_awq", "auto_awq")),
    }


@pytest.mark.parametrize(
    ("scheme", "rounds"),
    [
        ({"name": "W8A16"}, True),
        ({"group_size": -1}, True),
        ({"name": "W2A16"}, False),
        ({"name": "W3A16"}, False),
        ({"format": "auto_gptq"}, False),
        ({"format": "auto_round:auto_awq"}, False),
        ({"symmetric": False, "format": "auto_round:auto_awq"}, False),
    ],
)
def test_an_mtp_block_is_rounded_only_where_autoround_can(scheme: dict[str, Any], rounds: bool, tmp_path: Path) -> None:
    document = deepcopy(EC)
    document["scheme"] |= scheme
    if rounds:
        assert read(tmp_path, document).mtp.policy == "rtn"
    else:
        assert refused(tmp_path, document).startswith("mtp.policy: found 'rtn', allowed: 'bf16'")


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("scheme.name", "W2A16", ""),
        ("tuning.gradient_accumulation", 2, ""),
        ("scheme.format", "auto_gptq", "'bf16': a tuned MTP block is written as 'auto_round:auto_gptq' only"),
        ("tuning.hints", True, "'bf16' or 'rtn' with tuning.hints, or with 0 iterations"),
        ("tuning.iterations", 0, "'bf16' or 'rtn' with tuning.hints, or with 0 iterations"),
    ],
)
def test_an_mtp_block_is_tuned_as_blocks_are(key: str, value: Any, fault: str, tmp_path: Path) -> None:
    document = with_value(key, value)
    document["mtp"] = {"policy": "calibrated"}
    if key == "tuning.iterations":
        document["tuning"]["search_scales"] = False
        document["tiny"]["iterations"] = 0
    if fault:
        assert refused(tmp_path, document) == f"mtp.policy: found 'calibrated', allowed: {fault}"
    else:
        assert read(tmp_path, document).mtp.policy == "calibrated"


@pytest.mark.parametrize(
    "pattern",
    ["", "layers.1", "lm_head,mtp.fc", "in proj", "in_proj_[ab]", ".*gate.*", "gate$", "a|b", "été", "mtp.fc\n"],
)
def test_a_pattern_is_a_part_of_a_name(pattern: str, tmp_path: Path) -> None:
    """AutoRound splits at commas, drops spaces, adds a dot to a last digit, and reads some signs as an expression."""
    assert refused(tmp_path, with_value("layers.ignore", ["mtp.fc", pattern])).startswith("layers.ignore: found ")


# What is no recipe at all.


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "recipe.toml", tmp_path / "no" / "recipe.toml"):
        with pytest.raises(RecipeError, match="No such file") as error:
            read_recipe(path)
        assert str(tmp_path) in str(error.value)
        assert error.value.advice


def test_a_folder_in_the_place_of_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").mkdir()
    with pytest.raises(RecipeError, match=r"recipe\.toml"):
        read_recipe(tmp_path)


@pytest.mark.parametrize(
    "data",
    [b"environment", b"\xff\xfe", b"\xef\xbb\xbf", b"a = 1\na = 2", b"a = " + b"[" * 5000, b"a = " + b"1" * 5000],
    ids=["words", "no UTF-8", "byte order mark", "twice", "deep", "long"],
)
def test_what_is_not_toml_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(data)
    with pytest.raises(RecipeError, match="not TOML") as error:
        read_recipe(path)
    assert str(path) in str(error.value)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(data)
    with pytest.raises(RecipeError):
        read_recipe(path)


# The digest.


def test_comments_order_and_spelling_do_not_change_the_digest(tmp_path: Path) -> None:
    expected = read_recipe(BUILDS / "ec").digest
    backwards = {name: EC[name] for name in reversed(EC)}
    backwards["tuning"] = {name: EC["tuning"][name] for name in reversed(EC["tuning"])}
    backwards["tuning"] |= {"momentum": Word("0e0"), "seed": Word("0x2A")}
    assert read(tmp_path, "# A comment.\n\n" + toml(backwards)).digest == expected


FIXED = {"scheme.symmetric", "scheme.format"}
"""Of these one decides about the other."""
OTHERS = {
    "scheme.name": "W8A16",
    "scheme.group_size": 64,
    "tuning.learning_rate": 0.5,
    "tuning.minmax_learning_rate": 0.5,
    "tuning.precision": "float32",
    "tuning.patience": 5,
    "layers.ignore": ["mtp.fc", "self_attn"],
    "mtp.policy": "bf16",
    "hardware.device": "cpu",
    "tiny.device": "cuda",
    "tiny.precision": "bfloat16",
}


@pytest.mark.parametrize("key", sorted(VALUES.keys() - FIXED - {f"hardware.{name}" for name in ESTIMATES}))
def test_any_value_that_can_change_a_byte_changes_the_digest(key: str, tmp_path: Path) -> None:
    value = VALUES[key]
    other = not value if isinstance(value, bool) else f"{value}x" if isinstance(value, str) else value * 2 or 0.5
    changed = read(tmp_path, with_value(key, OTHERS.get(key, other)))
    assert changed.digest != read_recipe(BUILDS / "ec").digest


def test_an_estimate_does_not_change_the_digest(tmp_path: Path) -> None:
    """Else a better one would orphan every record and every audit."""
    for key, other in (("memory_gib", 81), ("host_memory_gib", 1), ("hours", 0.5)):
        assert VALUES[f"hardware.{key}"] != other
        changed = read(tmp_path, with_value(f"hardware.{key}", other))
        assert changed.digest == read_recipe(BUILDS / "ec").digest
        assert getattr(changed.hardware, key) == other


def test_what_the_tiny_model_does_not_use_is_named() -> None:
    assert read_recipe(BUILDS / "ec").unused() == (
        "environment cu124 (cpu), device cuda (cpu), precision bfloat16 (float32), iterations 400 (6), "
        "samples 256 (16), sequence length 4096 (64), shards 10 (3)"
    )


def test_what_is_equal_in_both_is_used(tmp_path: Path) -> None:
    assert "iterations" not in read(tmp_path, with_value("tiny.iterations", EC["tuning"]["iterations"])).unused()
