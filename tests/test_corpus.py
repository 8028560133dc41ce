"""What other tools and other architectures leave: nobody is accused, and nothing ends in a traceback."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.conftest import Refuses
from tests.corpus import BASES, NAMES, headers, on_disk
from typer.testing import CliRunner

from requant.cli.options import app
from requant.errors import NotModelledError, RequantError
from requant.identify import identify
from requant.inspect import inspect
from requant.inspect.findings import Severity
from requant.inspect.headers import Headers, read_headers
from requant.inspect.loaders import LOADERS
from requant.repair import repair

OTHER_TOOLS = (
    "a12-llama-w4sym-awq-tuned",
    "a16-llama-w4-gptq-tuned",
    "gm-llama-w4-gptq",
    "lc-llama-fp8",
    "lc-llama-w4a16",
)
RAW = "a12-q35-w8-ar-rtn"
ASYMMETRIC = "a12-llama-w4asym-argptq-tuned"
QWEN35 = "base-qwen3_5_moe"


def rules(name: str, severity: Severity) -> set[str]:
    return {each.rule for each in inspect(headers(name)).findings if each.severity is severity}


def test_all_of_them_are_here() -> None:
    assert len(NAMES) == 29 and len(BASES) == 9


@pytest.mark.parametrize("name", [name for name in NAMES if name not in (RAW, ASYMMETRIC, QWEN35)])
def test_what_is_not_modelled_is_no_error(name: str) -> None:
    inspection = inspect(headers(name))
    assert not inspection.errors and inspection.outcome == "not modelled"
    wanted = {"N01", "N02"} if name in OTHER_TOOLS else {"N02"}
    assert rules(name, Severity.UNMODELLED) == wanted
    assert not rules(name, Severity.WARNING)
    assert ("N03" in rules(name, Severity.NOTE)) == (name in BASES)


@pytest.mark.parametrize("name", OTHER_TOOLS)
def test_no_loader_is_said_to_stop_at_what_another_tool_wrote(name: str) -> None:
    assert not inspect(headers(name), LOADERS).errors


def test_an_asymmetric_checkpoint_is_refused_where_no_kernel_is() -> None:
    """tests/test_reading.py has the released code say so; vLLM 0.19.1 has one, and transformers too."""
    found = inspect(headers(ASYMMETRIC), LOADERS)
    assert {each.rule for each in found.errors} == {"D30"}
    hit = {target.loader for each in found.errors for target in each.targets}
    assert hit == {loader.name for loader in LOADERS} - {"vllm==0.19.1", "transformers==5.5.1"}


def test_an_asymmetric_checkpoint_gets_the_advice_that_applies() -> None:
    """Its declaration is right: what helps is a loader with a kernel for it."""
    advice = {each.repair for each in inspect(headers(ASYMMETRIC), LOADERS).errors}
    assert len(advice) == 1 and "vllm==0.19.1 or transformers==5.5.1" in "".join(advice)
    assert not any("what the tensors are" in each for each in advice)
    assert "backend" not in "".join(advice)


def test_zero_points_of_no_packing_format_are_not_to_be_replaced_by_a_constant(tmp_path: Path) -> None:
    """They may be right, and the declaration wrong: a constant would then shift every weight."""
    found = inspect(read_headers(on_disk("a12-llama-w4-ar-tuned", tmp_path / "zero")), look_at_values=True)
    (advice,) = {each.repair for each in found.errors if each.rule == "D10"}
    assert advice == "set sym to false if the weights are asymmetric; otherwise download or build again"


def test_a_backend_without_a_kernel_is_to_be_left_out() -> None:
    healthy = headers("a12-llama-w4-ar-tuned")
    config = json.loads(healthy.sides["config.json"])
    config["quantization_config"]["backend"] = "gptq"
    inner = json.dumps(config["quantization_config"]).encode()
    sides = {**healthy.sides, "config.json": json.dumps(config).encode(), "quantization_config.json": inner}
    found = inspect(type(healthy)("x", healthy.shards, healthy.data_bytes, sides, healthy.paths), LOADERS)
    (advice,) = {each.repair for each in found.errors}
    assert advice.startswith("remove backend from quantization_config") and "sym" not in advice


def test_raw_output_has_its_known_defects_at_8_bits() -> None:
    """As at 4 bits: MTP's experts float and declared packed, its fc packed, no processor files; no shape is wrong."""
    assert rules(RAW, Severity.ERROR) == {"D04", "D07", "D08", "D21", "D22"}
    assert not rules(RAW, Severity.UNMODELLED)


def test_an_unquantized_base_is_called_that() -> None:
    inspection = inspect(headers(QWEN35))
    assert [each.rule for each in inspection.findings] == ["N03"] and inspection.outcome == "no errors"


@pytest.mark.parametrize(("key", "value"), [("group_size", 64), ("bits", 8), ("packing_format", "auto_round:auto_awq")])
def test_a_declaration_that_the_tensors_belie_is_an_error_for_any_architecture(key: str, value: object) -> None:
    healthy = headers("a12-llama-w4-ar-tuned")
    config = json.loads(healthy.sides["config.json"])
    config["quantization_config"][key] = value
    inner = json.dumps(config["quantization_config"]).encode()
    sides = {**healthy.sides, "config.json": json.dumps(config).encode(), "quantization_config.json": inner}
    found = inspect(type(healthy)("x", healthy.shards, healthy.data_bytes, sides, healthy.paths))
    assert {each.rule for each in found.errors} == {"D19"} and found.outcome == "errors"


@pytest.mark.parametrize(
    "name", ["a12-llama-w4-ar-tuned", "gm-llama-w4-gptq", "lc-llama-fp8", RAW, QWEN35, "base-llama"]
)
def test_the_commands_end_with_a_status_of_their_own(name: str, tmp_path: Path) -> None:
    folder = str(on_disk(name, tmp_path / "one"))
    base = str(on_disk(QWEN35 if name in (RAW, QWEN35) else "base-llama", tmp_path / "base"))
    wanted = {
        ("inspect", folder, "--headers-only"): {RAW: 1, QWEN35: 0}.get(name, 3),
        ("inspect", folder, "--headers-only", "--json", "--all"): {RAW: 1, QWEN35: 0}.get(name, 3),
        ("identify", folder): 0,
        ("identify", folder, "--base", base): 0,
        ("repair", folder, "--base", base): 6 if name == QWEN35 else 3,
        ("diff", folder, base): 0 if name in (QWEN35, "base-llama") else 1,
    }
    for arguments, status in wanted.items():
        shown = CliRunner().invoke(app, list(arguments))
        found = shown.exception.exit_status if isinstance(shown.exception, RequantError) else shown.exit_code
        assert found == status, (arguments, shown.output, shown.exception)


def test_degrees_of_parallelism_are_sorted_as_numbers() -> None:
    for degrees in ((1, 2, 4, 8), (16, 8, 2), (2, 16, 1, 2)):
        inspection = inspect(headers(RAW), LOADERS, degrees)
        for each in inspection.as_json()["findings"]:
            assert all(hit == sorted(set(hit)) for hit in each["hits"].values()), each
        assert any(each.rule == "D24" for each in inspection.findings)


@pytest.mark.parametrize("name", BASES)
def test_identify_says_of_an_unquantized_base_that_nothing_is_quantized(name: str, tmp_path: Path) -> None:
    folder = str(on_disk(name, tmp_path / "base"))
    shown = CliRunner().invoke(app, ["identify", folder])
    assert shown.output.startswith("nothing is quantized")
    assert "possible writers" not in shown.output and "auto-round" not in shown.output
    found = json.loads(CliRunner().invoke(app, ["identify", folder, "--json"]).output)
    assert (found["quantized"], found["writers"]) == (False, [] if name == QWEN35 else None)


def test_identify_says_of_a_quantized_checkpoint_that_it_is_one(tmp_path: Path) -> None:
    folder = str(on_disk(RAW, tmp_path / "raw"))
    shown = CliRunner().invoke(app, ["identify", folder])
    assert "nothing is quantized" not in shown.output and "possible writers" in shown.output
    assert json.loads(CliRunner().invoke(app, ["identify", folder, "--json"]).output)["quantized"] is True
    assert identify(headers("a12-llama-w4-ar-tuned")).quantized is True


def test_repair_is_advised_only_where_it_works(tmp_path: Path, refuses: Refuses) -> None:
    """AutoRound's raw output for Qwen3.5-MoE in 8 bits has defects that `repair` mends in 4 bits alone."""
    folder, base = (str(on_disk(name, tmp_path / name)) for name in (RAW, QWEN35))
    with refuses(NotModelledError):
        repair(Path(folder), Path(base))
    found = inspect(headers(RAW))
    assert found.errors and all(each.repair for each in found.findings)
    for each in found.findings:
        if each.severity is Severity.ERROR:
            assert each.repair == (
                "mend it by hand, or make the checkpoint anew: "
                "`requant repair` refuses it (quantization_config.bits: found 8, expected 4)"
            )
        else:
            assert "requant repair" not in each.repair or "refuses" in each.repair
    other = inspect(undeclared(headers("a12-llama-w4-ar-tuned")))
    (finding,) = (each for each in other.findings if each.rule == "D15")
    assert "refuses it (LlamaForCausalLM is not modelled)" in finding.repair


def undeclared(healthy: Headers) -> Headers:
    config = json.loads(healthy.sides["config.json"])
    del config["quantization_config"]
    return replace(healthy, sides={**healthy.sides, "config.json": json.dumps(config).encode()}, _parsed={})


def test_identify_says_that_it_knows_no_writer_of_8_bits(tmp_path: Path) -> None:
    folder = str(on_disk(RAW, tmp_path / "raw"))
    said = " ".join(CliRunner().invoke(app, ["identify", folder]).output.split())
    assert "possible writers 8 bits are not modelled" in said and "fits 8 bits are not modelled" in said
    assert "none of those known" not in said
    found = json.loads(CliRunner().invoke(app, ["identify", folder, "--json"]).output)
    assert (found["unmodelled"], found["writers"], found["policies"]) == ("8 bits", [], [])
