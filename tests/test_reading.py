"""What loaders make of a declaration as a whole, beside the released code; and what `inspect` says of it."""

import ast
import builtins
import json
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.cases.tiny_models import healthy
from tests.releases import Ask, oracle, release, tried
from tests.test_loaders import GLOBAL

from requant.checkpoint.checkpoint import write_checkpoint
from requant.checkpoint.safetensors import Spec
from requant.errors import RequantError
from requant.inspect import Inspection, inspect
from requant.inspect.findings import Severity
from requant.inspect.headers import Headers, read_headers
from requant.inspect.loaders import LOADERS, Loader, named
from requant.inspect.loaders.reading import backend_of, has_dense_kernel, layout, read
from requant.inspect.loaders.resolver import Precision

AUTO_ROUND = [loader for loader in LOADERS if loader.reader.formats is not None]
LATEST, SGLANG, TRANSFORMERS = "vllm==0.33.0", "sglang==0.5.23", "transformers==5.5.1"


class Absent(Enum):
    """No value; printed alike in every process."""

    ABSENT = ""


ABSENT: Any = Absent.ABSENT

FORMATS: tuple[Any, ...] = (ABSENT, None, "junk", "auto_round:fp8", [], 3)
TYPES: tuple[Any, ...] = (ABSENT, None, "fp", "fp8", "mx_fp", "mx_fp4", "junk", [], 1)
BY_HAND: dict[str, dict[str, Any]] = {
    "as AutoRound writes it": {},
    "asymmetric": {"sym": False},
    "no sym": {"sym": ABSENT},
    **{f"bits {bits!r}": {"bits": bits} for bits in (ABSENT, 1, 2, 3, 5, 8, 16, True, 4.0, "4", [4], None)},
    **{f"groups {size!r}": {"group_size": size} for size in (ABSENT, -1, 32, 96, 256, [128, 128], [1], "128", None)},
    **{f"format {name!r}": {"packing_format": name} for name in FORMATS},
    **{f"type {name!r}": {"data_type": name} for name in TYPES},
    **{f"backend {name!r}": {"backend": name} for name in ("junk", "gptq", "gptq:marlin", "marlin", "awq", None, 1)},
    "another name for a backend": {"vllm_backend": "junk"},
    "a third name for a backend": {"sglang_backend": "junk"},
    "AWQ's order": {"packing_format": "auto_round:auto_awq"},
    "blocks of FP8": {"data_type": "fp", "bits": 8, "group_size": [128, 128], "packing_format": "auto_round:fp8"},
    "blocks of FP8, unsaid": {"data_type": "fp8", "bits": 8, "group_size": [128, 128], "packing_format": None},
    "blocks of FP8, other activations": {"data_type": "fp", "bits": 8, "group_size": [1, 1], "act_bits": 16}
    | {"packing_format": "auto_round:fp8"},
    "microscaling": {"data_type": "mx_fp", "group_size": 32, "packing_format": "auto_round:llm_compressor"},
    "microscaling, 8 bits": {"data_type": "mx_fp", "bits": 8, "group_size": 32, "act_bits": 16}
    | {"packing_format": "auto_round:llm_compressor"},
    "order of activations": {"desc_act": True},
    "overrides that are none": {"extra_config": []},
    "blocks that are none": {"block_name_to_quantize": 3},
}


@pytest.fixture(scope="module", params=tried(AUTO_ROUND))
def released(request: pytest.FixtureRequest) -> Iterator[tuple[Loader, Ask]]:
    with oracle(request.param.name) as ask:
        yield request.param, ask


def declared(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in (GLOBAL | changes).items() if value is not ABSENT}


def compare(loader: Loader, ask: Ask, config: dict[str, Any]) -> None:
    """Hold both against each other: whether the reader stops, and whether a dense layer finds a kernel."""
    ours, (theirs, kernel, *_) = read(config, loader.reader), ask(config, None)  # type: ignore[arg-type]
    malformed = not isinstance(config.get("extra_config", {}), dict) or not isinstance(
        config.get("block_name_to_quantize", []), list
    )
    if malformed:  # read_declared says so, whatever the release; SGLang stops later, or not where it is empty
        assert theirs == "stops" or loader.program == "sglang"
        return
    assert (ours.outcome == "stops") == (theirs == "stops"), (ours, theirs)
    integers = ours.outcome == "reads" and isinstance(config["group_size"], int) and type(config.get("sym")) is bool
    backend = backend_of(config, loader.reader)
    if integers and layout(config.get("packing_format") or "gptq", backend) == "gptq":
        precision = Precision(config["bits"], config["group_size"], config["sym"])
        assert has_dense_kernel(precision, backend, loader.reader) == (kernel == "kernel"), (ours, kernel)


@pytest.mark.parametrize("case", BY_HAND)
def test_agreement_by_hand(released: tuple[Loader, Ask], case: str) -> None:
    compare(*released, declared(**BY_HAND[case]))


values: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, False, -1, 0, 1, 2, 3, 4, 5, 8, 16, 32, 64, 100, 128, 4.0, "4", "int", "fp", []]
)
values |= st.sampled_from(["mx_fp", "mx_fp4", "auto_round:auto_gptq", "auto_round:auto_awq", "auto_round:fp8", "auto"])
values |= st.sampled_from(
    ["auto_round:llm_compressor", "marlin", "gptq", "junk", [128, 128], [32], ["a"], {}, {"a": 1}]
)
KEYS = ("bits", "group_size", "sym", "data_type", "packing_format", "backend", "vllm_backend", "act_bits", "fmt")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.dictionaries(st.sampled_from(KEYS), values, max_size=4), gone=st.sets(st.sampled_from(KEYS), max_size=1)
)
def test_agreement_on_any_configuration(released: tuple[Loader, Ask], changes: dict[str, Any], gone: set[str]) -> None:
    config = {key: value for key, value in declared(**changes).items() if key not in gone}
    compare(*released, config)


def test_an_order_of_activations_is_remembered_or_not_read(released: tuple[Loader, Ask]) -> None:
    loader, ask = released
    remembered = ask(declared(desc_act=True), None)[2]  # type: ignore[arg-type]
    assert remembered == (loader.reader.desc_act == "reorders")
    if remembered:  # and then Marlin is told of a g_idx, which is memory that only a tensor of that name would fill
        source = "".join(next(release(loader.name).rglob("gptq_marlin.py")).read_text().split())
        assert "has_g_idx=self.quant_config.desc_act" in source
        assert "g_idx=RowvLLMParameter(data=torch.empty(" in source


def test_the_methods_are_the_released_ones(released: tuple[Loader, Ask]) -> None:
    loader, ask = released
    known = set(loader.reader.others) | set(loader.reader.own)
    theirs = set(ask(None, None))  # type: ignore[arg-type]
    # auto-round is vLLM's other name for inc. SGLang adds mxfp4 on CUDA, and takes gptq for gptq_marlin.
    assert known - theirs <= ({"auto-round", "mxfp8"} if loader.program == "vllm" else {"mxfp4", "gptq"})
    assert theirs <= known


@pytest.mark.parametrize("method", ["fp8", "gptq", "awq"])
def test_other_readers_demand_what_is_modelled(released: tuple[Loader, Ask], method: str) -> None:
    loader, ask = released
    whole = declared(quant_method=method, activation_scheme="dynamic", desc_act=False, zero_point=False)
    for gone in ("", *whole.keys() - {"quant_method"}):
        config = {key: value for key, value in whole.items() if key != gone}
        ours, theirs = read(config, loader.reader).outcome, ask(config, None)[0]  # type: ignore[arg-type]
        assert (ours == "stops") == (theirs == "stops"), (gone, ours, theirs)


def definitions(path: Path, *names: str) -> dict[str, Any]:
    """The named classes and functions of a released file; whatever else it names is an empty object."""
    tree = ast.parse(path.read_text())
    known = dir(builtins)
    scope: dict[str, Any] = {
        node.id: SimpleNamespace() for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id not in known
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name in names:
            node.bases, node.decorator_list = [], []
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name in names:
            source = f"from __future__ import annotations\n{ast.unparse(node)}"
            exec(compile(source, str(path), "exec"), scope)  # noqa: S102 - released code, as the oracle's
    return scope


@pytest.mark.parametrize("case", BY_HAND)
def test_agreement_with_transformers(case: str) -> None:
    """Its configuration class, and the part of auto_round's inference that looks at desc_act."""
    loader = named(TRANSFORMERS)
    path = release(TRANSFORMERS) / "utils/quantization_config.py"
    made = definitions(path, "AutoRoundConfig")
    made["QuantizationMethod"].AUTOROUND = "auto-round"
    config = declared(**BY_HAND[case])
    convert = definitions(release("auto-round==0.12.2") / "inference/convert_model.py", "convert_hf_model")
    convert["is_transformers_version_greater_or_equal_5"] = lambda: False
    stopped = False
    try:
        found = made["AutoRoundConfig"](**config)
    except (TypeError, ValueError):
        stopped = True
    else:
        model = SimpleNamespace(config=SimpleNamespace(quantization_config=found))
        try:
            convert["convert_hf_model"](model)
        except NotImplementedError:
            stopped = True
        except TypeError:  # beyond what looks at the configuration, everything is a stand-in
            pass
    assert (read(config, loader.reader).outcome == "stops") == stopped


def test_transformers_knows_the_same_methods() -> None:
    tree = ast.parse((release(TRANSFORMERS) / "quantizers/auto.py").read_text())
    tables: dict[str, list[str]] = {
        ast.unparse(node.targets[0]): [key.value for key in node.value.keys]  # type: ignore[union-attr]
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
    }
    theirs = set(tables["AUTO_QUANTIZATION_CONFIG_MAPPING"])
    reader = named(TRANSFORMERS).reader
    assert theirs == set(reader.others) | set(reader.own)
    scope = definitions(release(TRANSFORMERS) / "quantizers/auto.py", "AutoHfQuantizer")
    scope |= {name: dict.fromkeys(theirs) for name in tables}
    scope["logger"].warning = lambda _: None
    supports = scope["AutoHfQuantizer"].supports_quant_method
    for method in ("auto-round", "gptq", "junk", "Auto-Round", ""):
        ours = read(declared(quant_method=method), reader).outcome
        assert (ours == "float") == (not supports({"quant_method": method})), method
    with pytest.raises(ValueError, match="quant_method"):
        supports({})
    assert read(declared(quant_method=ABSENT), reader).outcome == "stops"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Headers:
    folder = tmp_path_factory.mktemp("reading") / "ec"
    write_checkpoint(healthy("ec"), folder)
    return read_headers(folder)


def changed(headers: Headers, edit: Any, **more: Any) -> Headers:
    """The checkpoint with another quantization_config, in both of its places."""
    config = json.loads(headers.sides["config.json"])
    config["quantization_config"] = edit(config["quantization_config"])
    config |= more
    inner = json.dumps(config["quantization_config"]).encode()
    sides = {**headers.sides, "config.json": json.dumps(config).encode(), "quantization_config.json": inner}
    return type(headers)(headers.name, headers.shards, headers.data_bytes, sides, headers.paths, headers.folder)


def found(headers: Headers, **changes: Any) -> Inspection:
    def edit(value: dict[str, Any]) -> dict[str, Any]:
        return {key: each for key, each in (value | changes).items() if each is not ABSENT}

    return inspect(changed(headers, edit), LOADERS)


def hits(inspection: Inspection, severity: Severity = Severity.ERROR) -> set[str]:
    """Whom findings under D19, D30 and N01 hit."""
    return {
        target.loader
        for each in inspection.findings
        if each.severity is severity and each.rule in ("D19", "D30", "N01")
        for target in each.targets
    }


EVERY = {loader.name for loader in LOADERS}
VLLM = {loader.name for loader in LOADERS if loader.program == "vllm"}


@pytest.mark.parametrize(
    ("changes", "stopped"),
    [
        ({}, set()),
        ({"quant_method": "AUTO-ROUND"}, {TRANSFORMERS}),
        ({"quant_method": "fp8"}, VLLM | {SGLANG}),
        ({"quant_method": "gptq"}, VLLM | {SGLANG}),
        ({"quant_method": "junk"}, EVERY),
        ({"quant_method": ABSENT}, EVERY),
        ({"packing_format": "junk"}, VLLM | {SGLANG}),
        ({"packing_format": "auto_round:auto_awq"}, VLLM | {SGLANG}),
        ({"data_type": "fp"}, VLLM | {SGLANG}),
        ({"backend": "junk"}, VLLM | {SGLANG}),
        ({"desc_act": True}, {SGLANG, TRANSFORMERS}),
        ({"group_size": -1}, VLLM | {SGLANG}),
        ({"group_size": 64}, VLLM | {SGLANG}),
        ({"bits": 8}, VLLM | {SGLANG}),
        ({"bits": 3}, VLLM | {SGLANG}),
        ({"bits": 5}, EVERY),
        ({"bits": "4"}, EVERY),
        ({"bits": [4]}, EVERY),
        ({"bits": ABSENT}, EVERY),
        ({"sym": False}, {"vllm==0.22.1", "vllm==0.25.1", LATEST, SGLANG}),
        ({"sym": "yes"}, EVERY),
        ({"extra_config": []}, EVERY),
        ({"iters": "200"}, set()),
    ],
    ids=lambda value: repr(value) if isinstance(value, dict) else "",  # a set has another order in each process
)
def test_a_value_hits_those_who_stop_at_it(tiny: Headers, changes: dict[str, Any], stopped: set[str]) -> None:
    assert hits(found(tiny, **changes)) == stopped


@pytest.mark.parametrize(
    ("changes", "ignored"),
    [({"desc_act": True}, VLLM), ({"iters": "200"}, EVERY), ({"desc_act": False}, set())],
    ids=lambda value: repr(value) if isinstance(value, dict) else "",  # a set has another order in each process
)
def test_a_value_that_is_not_read_is_a_note(tiny: Headers, changes: dict[str, Any], ignored: set[str]) -> None:
    assert hits(found(tiny, **changes), Severity.NOTE) == ignored


def test_what_another_tool_reads_is_not_modelled_and_no_error(tiny: Headers) -> None:
    """With all that a reader for GPTQ wants, nothing is known against it."""
    inspection = found(tiny, quant_method="gptq", desc_act=False)
    assert not inspection.errors and inspection.outcome == "not modelled"
    assert hits(inspection, Severity.UNMODELLED) == EVERY
    assert inspection.as_json()["outcome"] == "not modelled"


@pytest.mark.parametrize("changes", [{"group_size": -1}, {"bits": 8}, {"packing_format": "junk"}, {"backend": "junk"}])
def test_what_is_left_to_other_classes_is_not_modelled(tiny: Headers, changes: dict[str, Any]) -> None:
    assert hits(found(tiny, **changes), Severity.UNMODELLED) == {TRANSFORMERS}


def test_nothing_declared_is_said_once(tiny: Headers) -> None:
    inspection = inspect(changed(tiny, lambda _: None), LOADERS)
    assert {each.rule for each in inspection.errors} == {"D15"}


@pytest.mark.parametrize(
    ("stated", "accused"), [({"bits": 8}, False), ({}, True), ({"bits": 8, "group_size": 32}, True)]
)
def test_a_layer_of_8_bits_is_held_against_its_override(tiny: Headers, stated: dict[str, Any], accused: bool) -> None:
    layer = "model.language_model.layers.3.self_attn.o_proj"

    double = {f"{layer}.qweight": (2, 1), f"{layer}.qzeros": (1, 2)}

    def wider(name: str, spec: Spec) -> Spec:
        if name not in double:
            return spec
        return Spec(spec.dtype, tuple(a * b for a, b in zip(spec.shape, double[name], strict=True)))

    shards = {file: {name: wider(name, spec) for name, spec in held.items()} for file, held in tiny.shards.items()}
    mixed = type(tiny)(tiny.name, shards, tiny.data_bytes, tiny.sides, tiny.paths)
    overrides = json.loads(tiny.sides["config.json"])["quantization_config"]["extra_config"]
    inspection = found(mixed, extra_config={**overrides, layer: stated})
    assert {each.subjects for each in inspection.errors if each.rule == "D19"} == ({(layer,)} if accused else set())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
ALL_KEYS = (*GLOBAL, "data_type", "backend", "desc_act", "iters", "extra_config", "block_name_to_quantize", "act_bits")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=json_values, changes=st.dictionaries(st.sampled_from(ALL_KEYS), json_values, max_size=3))
def test_any_declaration_is_judged_or_refused(tiny: Headers, value: Any, changes: dict[str, Any]) -> None:
    for edit in (lambda _: value, lambda found: found | changes):
        for model_type in ("qwen3_5_moe", "llama"):
            try:
                inspect(changed(tiny, edit, model_type=model_type), LOADERS, (1, 8))
            except RequantError as error:
                assert str(error)
