"""A card says what records have, and nothing else: every figure is traced, and another record makes another card."""

import json
import re
import shutil
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from tests.cases.tiny_models import healthy
from tests.conftest import ROOT, Refuses, Worded
from tests.processes import requant
from tests.test_coverage import audit
from tests.test_measures import evaluation
from typer.main import get_command
from typer.testing import CliRunner

from requant.audit.audits import write_audit
from requant.build import RECORDED
from requant.card.compare import compare
from requant.card.facts import Facts, facts_of
from requant.card.licenses import LICENSES
from requant.card.records import Records, read_records
from requant.card.render import render
from requant.card.serving import flags, releases_with
from requant.checkpoint.checkpoint import write_checkpoint
from requant.cli.options import app
from requant.digest import canonical_json, sha256
from requant.errors import CheckpointError, UsageError
from requant.evaluate.evaluation import Evaluation
from requant.evaluate.measures import measures
from requant.recipe import read_recipe

NAMES = sorted(path.parent.name for path in ROOT.glob("builds/*/mini.manifest.json"))
FULL: dict[str, tuple[int, ...]] = {
    "ec": (31_030, 31_181, 151, 96_061, 93_393, 2_335, 20_891_142_880, 19_545_968_896, 1_345_173_984),
    "gb10": (30_850, 31_181, 331, 93_385, 93_033, 19, 22_320_500_448, 19_738_076_416, 2_582_424_032),
}
"""Of the full builds: layers, tensors and bytes, as tests/test_plan.py and tests/test_skeleton.py have them."""
BASE = (1_045, 333, 35_951_822_704, 71_903_645_408, 71_926_865_825)
RECORDED_ANEW = (
    r"\b[0-9a-f]{64}\b|[0-9T:-]{19}Z|(?<=\| Peak RAM \| ).*(?= \|)|(?<=\| Seconds of the worker \| ).*(?= \|)"
    r"|(?<=which took the worker ).*(?=\.)"
)
"""What is another in each build of the same bytes: digests of the environment and the journal, times, memory."""
NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")


@cache
def records(name: str, tiny: str | None = "mini") -> Records:
    return read_records(read_recipe(ROOT / "builds" / name), tiny)


@cache
def facts(name: str, tiny: str | None = "mini") -> Facts:
    return facts_of(records(name, tiny))


@cache
def card(name: str, tiny: str | None = "mini") -> str:
    return render(records(name, tiny), facts(name, tiny))


@pytest.mark.parametrize(("name", "tiny"), [("ec", "mini"), ("llama-current", "mini"), ("ec", None)])
def test_a_card(name: str, tiny: str | None, worded: Worded) -> None:
    worded(card(name, tiny), RECORDED_ANEW)


def numbers(text: str) -> set[str]:
    return {each.replace(",", "") for each in NUMBER.findall(text)}


def raw(name: str, tiny: str | None) -> str:
    """The text of every record that a card may quote."""
    recipe = read_recipe(ROOT / "builds" / name)
    environment = recipe.effort(tiny is not None).environment
    files = [recipe.path, recipe.beside("plan.json"), recipe.beside("baseline.toml")]
    files += [recipe.beside(f"{tiny}.{each}") for each in RECORDED]
    files += [recipe.beside(recipe.base.files), recipe.beside(recipe.base.files).with_suffix(".config.json")]
    files += [recipe.beside(recipe.calibration.files)]
    files += [recipe.lockfiles / each for each in (f"{environment}.in", f"{environment}.txt", "images.toml")]
    return "\n".join(path.read_text() for path in files if path.exists()) + " ".join(flags())


def counted(name: str, tiny: str | None) -> Iterator[float]:
    """What follows from the records by counting and adding, done here once more and otherwise."""
    recipe = tomllib.loads((ROOT / "builds" / name / "recipe.toml").read_text())
    asked = recipe["tiny"] if tiny else recipe["calibration"]
    yield asked["samples"] * asked["sequence_length"]
    yield int(recipe["scheme"]["name"][1])  # W4A16
    plan: Any = json.loads((ROOT / "builds" / name / "plan.json").read_text())[tiny or "base"]
    layers = [(count(each[0]), each[2]) for each in plan["layers"]]
    yield from (number for number, _ in layers)  # in templates that fold what is packed alike
    yield from range(max(number for number, _ in layers) + 1) if tiny else ()
    packed, every = sum(number for number, reason in layers if not reason), sum(number for number, _ in layers)
    yield from (packed, every, every - packed, sum(map(count, plan["blocks"])))
    if tiny is None:
        yield from (*FULL[name], *BASE, 775, 777, 0, 40)  # layers of the MTP block; files of the base
        yield from range(257)  # in templates: blocks and experts
        return
    manifest = json.loads((ROOT / "builds" / name / f"{tiny}.manifest.json").read_text())
    width = {"BF16": 2, "F16": 2, "F32": 4, "I32": 4}
    sizes = {key: width[each["dtype"]] * product(each["shape"]) for key, each in manifest["tensors"].items()}
    extra = {key for key in sizes if manifest["tensors"][key]["file"] == "model_extra_tensors.safetensors"}
    yield from (len(sizes), sum(sizes.values()), len(extra), sum(sizes[key] for key in extra))
    yield from (len(sizes) - len(extra), sum(sizes[key] for key in sizes.keys() - extra))
    yield from (sum(key.startswith(part) for key in sizes) for part in ("mtp.", "model.visual."))
    rounded = [key for key in extra if key.startswith("mtp.") and key.endswith(".qweight")]
    kept = [key for key in extra if key.startswith("mtp.") and len(manifest["tensors"][key]["shape"]) == 2]
    yield from (len(rounded), len(rounded) + sum(key.endswith(".weight") for key in kept), *range(100))
    base = [(count(key), dtype, shape) for key, dtype, shape in plan["tensors"]]
    yield sum(number for number, *_ in base)
    yield sum(number * product(shape) for number, _, shape in base)
    yield sum(number * width[dtype] * product(shape) for number, dtype, shape in base)
    yield from (len(manifest["files"]), sum(each["bytes"] for each in manifest["files"].values()))
    for line in (ROOT / "builds" / name / f"{tiny}.journal.jsonl").read_text().splitlines()[1:]:
        loss = json.loads(line)["loss"]
        yield from (round(float.fromhex(loss[key]), 6) for key in ("initial", "best"))
    statement = json.loads((ROOT / "builds" / name / f"{tiny}.intoto.jsonl").read_text())
    yield round(float(statement["predicate"]["runDetails"]["byproducts"][-1]["annotations"]["seconds"]["total"]))
    lock = recipe["tiny"]["environment"]
    yield (ROOT / "lockfiles" / f"{lock}.txt").read_text().count("--hash=")


def count(template: str) -> int:
    """How many names a template of a plan stands for."""
    return product(
        sum(int(last or first) - int(first) + 1 for first, last in re.findall(r"(\d+)(?:\.\.(\d+))?", inside))
        for inside in re.findall(r"\{([^}]*)\}", template)
    )


def product(values: Any) -> int:
    made = 1
    for each in values:
        made *= each
    return made


@pytest.mark.parametrize(
    ("name", "tiny"),
    [*((name, "mini") for name in NAMES), ("ec", None), pytest.param("gb10", None, marks=pytest.mark.full)],
)
def test_every_figure_is_in_a_record(name: str, tiny: str | None) -> None:
    text = card(name, tiny).replace("SHA-256", "").replace("apache-2.0", "")
    quoted, own = raw(name, tiny), identity(name, tiny)
    known = numbers(quoted) | {f"{each:.6f}" if each % 1 else str(int(each)) for each in counted(name, tiny)}
    digests = {sha256(data) for data in recorded_bytes(name, tiny)} | {records(name, tiny).recipe.digest}
    rounded = {f"{int(each) / scale:.2f}" for each in known if each.isdigit() for scale in (10**6, 10**9)}
    strange: list[tuple[str, str]] = []
    for line in text.splitlines():
        for each in re.findall(r"\b[0-9a-f]{64}\b", line):
            assert each in quoted or each in digests or each == own, each
        bare = re.sub(r"\b[0-9a-f]{64}\b", "", line)
        said = numbers(bare) - known
        strange += ((each, line) for each in said if not (each in rounded and re.search(rf"{each} [GM]B\)", bare)))
    assert not strange, strange


def recorded_bytes(name: str, tiny: str | None) -> Iterator[bytes]:
    """The files of which a card gives the digest."""
    recipe = read_recipe(ROOT / "builds" / name)
    yield (recipe.lockfiles / f"{recipe.effort(tiny is not None).environment}.txt").read_bytes()
    if tiny:
        yield recipe.beside(f"{tiny}.journal.jsonl").read_bytes()


def identity(name: str, tiny: str | None) -> str:
    """The digest of the weights, as docs/json.md has it: of canonical JSON of their files by path."""
    if tiny is None:
        return ""
    files = json.loads((ROOT / "builds" / name / f"{tiny}.manifest.json").read_text())["files"]
    weights = {path: each["sha256"] for path, each in files.items() if path.endswith(".safetensors")}
    return sha256(canonical_json(weights))


UNSAID = (
    *("manifest.weight_files", "manifest.weight_bytes", "manifest.tensors", "journal.blocks"),
    *("plan.float_layers", "plan.extra_tensors", "model.context", "model.hidden_size"),
)
"""Facts that `--json` has, and the text only in another form or not at all."""


@pytest.mark.parametrize(("name", "tiny"), [("ec", "mini"), ("llama-current", None)])
def test_a_fact_that_changes_changes_the_card(name: str, tiny: str | None) -> None:
    for key, fact in facts(name, tiny).items():
        if isinstance(fact.value, bool) or not isinstance(fact.value, int | float) or key.startswith("loss."):
            continue
        more: int | float = fact.value + 1111
        text = render(records(name, tiny), {**facts(name, tiny), key: replace(fact, value=more)})
        assert (text != card(name, tiny)) is (key not in UNSAID), key
        assert key in UNSAID or f"{more:,}" in text or f"{more:,.0f}" in text or str(more) in text


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The project in a folder of its own, but for what a card does not read."""
    for name in ("builds", "lockfiles"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for path in ROOT.glob("Dockerfile.*"):
        shutil.copyfile(path, tmp_path / path.name)
    return tmp_path


def made(project: Path, name: str, tiny: str | None, build: Path | None = None) -> str:
    found = read_records(read_recipe(project / "builds" / name), tiny, build)
    return render(found, facts_of(found))


def edited(path: Path, *pairs: tuple[str, str]) -> None:
    text = path.read_text()
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    path.write_text(text)


RECIPE: tuple[tuple[str, str, str], ...] = (
    ("iterations = 50", "iterations = 53", "| Iterations | 53 |"),
    ("batch_size = 2", "batch_size = 4", "| Batch size | 4 |"),
    ("gradient_accumulation = 1", "gradient_accumulation = 2", "| Gradient accumulation | 2 |"),
    ("learning_rate = 0.005\nmin", "learning_rate = 0.007\nmin", "| Learning rate | 0.007 |"),
    ("momentum = 0.0", "momentum = 0.5", "| Momentum | 0.5 |"),
    ("seed = 42", "seed = 43", "| Seed | 43 |"),
    ("samples = 64", "samples = 68", "| Samples | 68 |"),
    ("sequence_length = 512", "sequence_length = 513", "| Sequence length | 513 |"),
    ("shards = 1\n", "shards = 7\n", "| Shards | 7 |"),
    ("host_memory_gib = 6", "host_memory_gib = 9", "asks for, GiB | 9 |"),
    ("hours = 0.1", "hours = 0.3", "| 0.3 |"),
)


def test_a_record_that_changes_changes_the_card(project: Path) -> None:
    """Every number of a recipe; then what the plan, the pins, the lock and the base's image have."""
    recipe = project / "builds" / "llama-current" / "recipe.toml"
    before = recipe.read_text()
    for old, new, expected in RECIPE:
        edited(recipe, (old, new))
        assert expected in made(project, "llama-current", None) and expected not in card("llama-current", None)
        recipe.write_text(before)
    plain = card("llama-current", None)
    for file, old, new in (
        ("builds/llama-current/plan.json", '"model.layers.{0..', '"model.layers.{0..1'),
        ("builds/bases/llama-current.json", '"bytes": 102', '"bytes": 104'),
        ("builds/datasets/pile-10k.json", "a1a9475a", "a1a9475b"),
        ("lockfiles/images.toml", "python:3.11", "python:3.12"),
        ("lockfiles/current.txt", "numpy==2.4", "numpy==2.5"),
    ):
        kept = (project / file).read_text()
        edited(project / file, (old, new))
        assert made(project, "llama-current", None) != plain, file
        (project / file).write_text(kept)
    assert made(project, "llama-current", None) == plain


def statement(project: Path, change: Callable[[Any], None]) -> None:
    path = project / "builds" / "ec" / "mini.intoto.jsonl"
    value = json.loads(path.read_text())
    change(value)
    path.write_bytes(canonical_json(value) + b"\n")


def test_a_number_of_a_statement_or_a_journal_changes_the_card(project: Path) -> None:
    folder = project / "builds" / "ec"

    def change(value: Any) -> None:
        run = value["predicate"]["runDetails"]
        run["byproducts"][-1]["annotations"]["peak_memory_bytes"] = 911_548_417
        run["byproducts"][-1]["annotations"]["seconds"]["total"] = "185.216"
        run["metadata"]["startedOn"] = "2026-11-29T04:49:38Z"
        value["predicate"]["buildDefinition"]["internalParameters"]["versions"]["torch"] = "2.13.1+cpu"
        value["predicate"]["buildDefinition"]["internalParameters"]["hardware"]["model"] = "AMD EPYC (25/2)"

    statement(project, change)
    text = made(project, "ec", "mini")
    for each in ("911,548,417", "185 s", "2026-11-29T04:49:38Z", "2.13.1+cpu", "AMD EPYC (25/2)"):
        assert each in text and each not in card("ec")

    lines = (folder / "mini.journal.jsonl").read_bytes().splitlines()
    last = json.loads(lines[-1])
    last["loss"]["best"] = (0.0123456).hex()
    journal = b"\n".join((*lines[:-1], canonical_json(last))) + b"\n"
    (folder / "mini.journal.jsonl").write_bytes(journal)
    statement(project, lambda value: named(value, "journal")["digest"].update(sha256=sha256(journal)))
    assert "| 0.012346 |" in made(project, "ec", "mini") and "0.012346" not in card("ec")

    edited(folder / "mini.manifest.json", ('"bytes":3025', '"bytes":3026'))
    assert "| `config.json` | 3,026 |" in made(project, "ec", "mini")


def named(value: Any, name: str) -> Any:
    return next(each for each in value["predicate"]["runDetails"]["byproducts"] if each["name"] == name)


def _another_recipe(project: Path) -> None:
    edited(project / "builds" / "ec" / "recipe.toml", ("seed = 42", "seed = 43"))


def _another_build(project: Path) -> None:
    edited(project / "builds" / "ec" / "mini.manifest.json", ("2a1192afff1c", "2a1192afff1d"))


def _no_journal(project: Path) -> None:
    (project / "builds" / "ec" / "mini.journal.jsonl").unlink()


def _another_journal(project: Path) -> None:
    statement(project, lambda value: named(value, "journal")["digest"].update(sha256="0" * 64))


def _no_statement(project: Path) -> None:
    statement(project, lambda value: value["predicate"]["runDetails"].pop("metadata"))


def measured(project: Path, **digests: str) -> Evaluation:
    """Put an evaluation beside the records of a tiny model."""
    found = evaluation(digests={"checkpoint": identity("ec", "mini"), **digests})
    (project / "builds" / "ec" / "mini.evaluation.json").write_text(found.to_text())
    return found


def _of_another_checkpoint(project: Path) -> None:
    measured(project, checkpoint="0" * 64)


SPOILT = (_another_recipe, _another_build, _no_journal, _another_journal, _no_statement, _of_another_checkpoint)


@pytest.mark.parametrize("spoil", SPOILT)
def test_records_of_two_builds_make_no_card(spoil: Callable[[Path], None], project: Path, refuses: Refuses) -> None:
    spoil(project)
    with refuses(CheckpointError):
        made(project, "ec", "mini")


def test_an_evaluation_of_the_recorded_checkpoint_is_in_the_card_with_all_its_figures(project: Path) -> None:
    found = measured(project)
    text = made(project, "ec", "mini")
    section = text.partition("## Evaluation")[2].partition("## How to verify")[0]
    for name, each in found.measures.items():
        rows = [
            line
            for line in section.splitlines()
            if line.endswith(f"| {each.value:.4g} | {each.low:.4g} to {each.high:.4g} |")
        ]
        assert len(rows) == 1, name
    figures = {f"{number:.4g}".lstrip("-") for each in found.measures.values() for number in asdict(each).values()}
    told = {f"{found.settings.samples}", f"{found.settings.length}", "95", "99.9", "32", "256"}
    assert numbers(re.sub(r"\b[0-9a-f]{64}\b", "", section)) <= figures | told
    digests = {found.digests.text, found.digests.tokens, found.digests.reference, found.digests.harness}
    assert {*re.findall(r"\b[0-9a-f]{64}\b", section)} == digests
    assert "Nothing was measured" not in section and "Nothing was measured" in card("ec")
    read = read_records(read_recipe(project / "builds" / "ec"), "mini")
    for key, fact in facts_of(read).items():
        if key.startswith("evaluation."):
            other = {**facts_of(read), key: replace(fact, value=4711.0 if fact.unit else "changed")}
            assert render(read, other) != text, key


def test_an_evaluation_without_drafts_has_no_rows_of_them(project: Path) -> None:
    found = measured(project)
    rows = tuple(
        replace(each, drafted=None, overlap=None, base_drafted=None, base_overlap=None) for each in found.sequences
    )
    without = replace(found, sequences=rows, measures=measures(rows, found.tokens), mtp="none")
    (project / "builds" / "ec" / "mini.evaluation.json").write_text(without.to_text())
    section = made(project, "ec", "mini").partition("## Evaluation")[2].partition("## How to verify")[0]
    assert "MTP" not in section and "less the base" not in section and "Perplexity" in section


def test_audits_are_counted_and_nobody_is_named(project: Path) -> None:
    recipe = read_recipe(project / "builds" / "ec")
    for party, blocks in (("Ada", {0: "identical", 1: "identical"}), ("Grace", {0: "identical"})):
        write_audit(recipe, audit(blocks, auditor=party))
    text = made(project, "ec", "mini")
    assert "Audits that count: 2. Blocks found identical: 2, by two parties or more: 1; negative results: 0." in text
    assert "Ada" not in text and "Grace" not in text and "No audit of this build" not in text


def test_nothing_that_others_wrote_is_markup(project: Path) -> None:
    def change(value: Any) -> None:
        value["predicate"]["buildDefinition"]["internalParameters"]["taints"] = ["a|b`c<d>[e](f)*g*\u202e\n# h"]

    statement(project, change)
    (line,) = (line for line in made(project, "ec", "mini").splitlines() if "Taint" in line)
    assert not re.search(r"[`<>\[\]*\u202e]|(?<!\\)\|", line) and line.endswith("# h")


def test_a_lock_that_was_renewed_says_nothing_of_packages(project: Path) -> None:
    edited(project / "lockfiles" / "cpu.txt", ("numpy==2.4.4", "numpy==2.4.5"))
    text = made(project, "ec", "mini")
    assert "| torch | 2.13.0+cpu |" in text and "numpy" not in text
    assert "another one by now" in text


def test_a_card_is_the_same_from_everywhere_and_names_no_place(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint with its records beside it, in a folder of somebody's, gives the recorded build's card and more."""
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    monkeypatch.setenv("USER", "somebody")
    assert made(project, "ec", "mini") == card("ec")
    folder = project / "home" / "somebody" / "checkpoint"
    folder.parent.mkdir(parents=True)
    write_checkpoint(healthy("ec"), folder)
    for each in RECORDED:
        shutil.copyfile(ROOT / "builds" / "ec" / f"mini.{each}", folder.with_name(f"{folder.name}.{each}"))
    text = made(project, "ec", "mini", folder)
    for secret in (str(project), "somebody", "hf_secret", "/home", str(Path.home())):
        assert secret not in text
    assert "| vllm==0.33.0 | 1 | no errors |" in text and "| vllm==0.19.1 | 2 | errors: D05, D24 |" in text
    assert "No checkpoint was at hand" not in text


@pytest.mark.parametrize(("name", "tiny"), [*((name, "mini") for name in NAMES), ("ec", None)])
def test_commands_of_a_card_exist(name: str, tiny: str | None) -> None:
    """Each is parsed by the command line itself, and each flag of vLLM's is one of every modelled release."""
    group = get_command(app)
    found = [line.split() for line in card(name, tiny).splitlines() if line.startswith(("requant ", "vllm "))]
    assert {words[0] for words in found} == ({"requant"} if tiny else {"requant", "vllm"})
    for words in found:
        if words[0] == "vllm":
            assert all(releases_with(each) == tuple(flags()) for each in words if each.startswith("--"))
            continue
        verb = group.commands[words[1]]  # type: ignore[attr-defined]
        verb.make_context(words[1], words[2:])
    assert "build" in {words[1] for words in found}


def test_the_metadata_is_what_the_hub_reads() -> None:
    data = vars(ModelCard(card("ec", None)).data)
    assert data["base_model"] == "Qwen/Qwen3.6-35B-A3B" and data["license"] == "apache-2.0"
    assert (data["base_model_relation"], data["datasets"]) == ("quantized", ["NeelNanda/pile-10k"])
    assert "base_model" not in card("llama-current", None)  # a folder's
    assert ModelCard(card("ec")).data.base_model is None  # type: ignore[attr-defined]


def test_licenses_are_known_by_their_text() -> None:
    text = (ROOT / "LICENSE").read_text()
    own = {text} | {
        text.removesuffix("\n").replace("[yyyy] [name of copyright owner]", f"{year} Alibaba Cloud")
        for year in (2024, 2026)
    }
    assert {sha256(each.encode()) for each in own} == {*LICENSES} and {*LICENSES.values()} == {"apache-2.0"}


@pytest.mark.parametrize("name", NAMES)
def test_a_card_holds_against_its_own_build(name: str) -> None:
    found = compare(card(name), records(name), facts(name))
    assert not found.count("wrong") and not found.count("not backed") and found.count("true") > 40


def test_one_number_of_a_card_that_is_changed_is_wrong() -> None:
    """Each that is compared, one after the other, and no other line of the card is accused."""
    lines = card("ec").splitlines()
    tried = set()
    for each in compare(card("ec"), records("ec"), facts("ec")).statements:
        line = lines[each.line - 1]
        number = re.match(r"\d[\d,]*", each.stated)
        if (
            not number
            or line.count(each.stated) != 1
            or each.key.startswith(("package", "commit", "base.rev", "tuning.learning", "tuning.minmax"))
        ):
            continue
        other = line.replace(each.stated, each.stated.replace(number[0], "7,777,777" if "," in number[0] else "77"))
        changed = [*lines[: each.line - 1], other, *lines[each.line :]]
        found = compare("\n".join(changed), records("ec"), facts("ec"))
        assert [(one.line, one.key) for one in found.statements if one.verdict == "wrong"] == [(each.line, each.key)]
        tried.add(each.key)
    assert len(tried) > 25


def test_a_card_is_written_once(tmp_path: Path, worded: Worded) -> None:
    words = ("card", str(ROOT / "builds" / "ec"), "--tiny", "--size", "mini", "--out", str(tmp_path / "README.md"))
    assert CliRunner().invoke(app, [*words]).exit_code == 0 and (tmp_path / "README.md").read_text() == card("ec")
    for more in ((), ("--compare", "README.md")):
        done = requant(*words, *more)
        assert (done.returncode, done.stdout) == (UsageError.exit_status, "")
        worded(done.stderr)


def test_a_card_names_its_repository(refuses: Refuses) -> None:
    text = render(records("ec", None), facts("ec", None), "me/ec")
    assert "vllm serve me/ec --" in text and "OWNER/NAME" not in text
    for name in ("me", "me/ec@main", "me/ec; rm"):
        with refuses(UsageError):
            render(records("ec", None), facts("ec", None), name)


@pytest.mark.full
def test_flags_are_those_of_the_releases() -> None:
    """Their sources are fetched, 150 MB, where the cache has them not."""
    from tests.flags import FILE, text

    assert FILE.read_text() == text(), "nox -s flags"
