"""What a loader would open decides, and whatever else it could open or run is named; the healthy are not accused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.checkpoints import shard, write
from tests.hub import running

from requant.check import check
from requant.check.checked import Checked
from requant.check.reader import open_reader
from requant.checkpoint.checkpoint import INDEX
from requant.checkpoint.files import RUNNABLE, is_companion
from requant.checkpoint.loadable import CONFIGS, deciding, findings, opened

SINGLE, FIRST, SECOND = "model.safetensors", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
EXTRA = "model_extra_tensors.safetensors"
HELD = {FIRST: ["layers.0.a", "layers.1.a"], SECOND: ["layers.2.a", "norm"]}
SIDES = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]


def index(held: dict[str, list[str]], **more: str) -> bytes:
    named = {name: file for file, names in held.items() for name in names}
    return json.dumps({"metadata": {"total_size": 0}, "weight_map": {**named, **more}}).encode()


def told(files: list[str], texts: dict[str, bytes], held: dict[str, list[str]]) -> dict[str, str]:
    names = [*files, *texts]
    tensors = {file: held.get(file, []) for file in opened(names, texts)}
    return {each.name: each.why for each in findings(names, texts, tensors)}


HEALTHY: dict[str, tuple[list[str], dict[str, bytes], dict[str, list[str]]]] = {
    "one file, by AutoRound": ([*SIDES, "quantization_config.json", SINGLE], {}, {SINGLE: ["a"]}),
    "one file, by llm-compressor": ([*SIDES, "recipe.yaml", SINGLE], {}, {SINGLE: ["a"]}),
    "one file, by gptqmodel": ([*SIDES, "quantize_config.json", SINGLE], {}, {SINGLE: ["a"]}),
    "a base in one file": ([*SIDES, "merges.txt", "vocab.json", SINGLE], {}, {SINGLE: ["a"]}),
    "AutoRound's own output, with MTP in another file": (
        [*SIDES, "chat_template.jinja", SINGLE, EXTRA],
        {INDEX: index({SINGLE: ["layers.0.a"], EXTRA: ["mtp.a"]})},
        {SINGLE: ["layers.0.a"], EXTRA: ["mtp.a"]},
    ),
    "several files": ([*SIDES, "LICENSE", FIRST, SECOND], {INDEX: index(HELD)}, HELD),
    "configurations": (
        [SINGLE],
        dict.fromkeys(CONFIGS, b'{"dtype": "bfloat16", "_attn_implementation": "sdpa", "_name_or_path": "o/n"}'),
        {SINGLE: ["a"]},
    ),
}
"""The layouts of 20 checkpoints by four tools, of their bases, and of our own builds."""


@pytest.mark.parametrize(("files", "texts", "held"), HEALTHY.values(), ids=HEALTHY)
def test_a_healthy_layout_is_not_accused(files: list[str], texts: dict[str, bytes], held: dict[str, list[str]]) -> None:
    assert told(files, texts, held) == {}
    assert opened([*files, *texts], texts) == sorted(name for name in files if name.endswith(".safetensors"))


Layout = tuple[list[str], dict[str, bytes], dict[str, list[str]]]
CASES = ["Config.json", "ADAPTER_CONFIG.JSON", "Model.SafeTensors", "sub/x.SAFETENSORS", "Vocab.json", "conﬁg.json"]
CASES += [
    "Special_Tokens_Map.json",
    "Chat_Template.json",
    "model.\u017fafetensors",
    "model.safetensors.index.j\u017fon",
]
W, ONE = ".w/model.safetensors", {SINGLE: ["a"]}
FOUND: dict[str, tuple[Layout, list[str], dict[str, str]]] = {
    "an index that leads to a hidden folder, healthy files in the root": (
        ([FIRST, SECOND, W], {INDEX: index({W: ["a"]})}, {W: ["a"]}),
        [W],
        {FIRST: "does not name it", SECOND: "does not name it", W: "because the index names it"},
    ),
    "a pickle in the root, healthy files in a folder": (
        (["pytorch_model.bin", f"sub/{SINGLE}"], {}, {}),
        [f"sub/{SINGLE}"],
        {"pytorch_model.bin": "loaders open it", f"sub/{SINGLE}": "outside of the root"},
    ),
    "a pickle beside healthy files": (
        ([SINGLE, "pytorch_model.bin"], {}, {}),
        [SINGLE],
        {"pytorch_model.bin": "not looked into"},
    ),
    "an index that omits a block whose file it names": (
        ([FIRST, SECOND], {INDEX: index({FIRST: ["layers.0.a"], SECOND: HELD[SECOND]})}, HELD),
        [FIRST, SECOND],
        {"layers.1.a": "in the files and not in the index"},
    ),
    "an index that omits blocks": (
        ([FIRST, SECOND], {INDEX: index({FIRST: [], SECOND: ["norm"]}, norm=SECOND)}, HELD),
        [SECOND],
        {FIRST: "does not name it", "layers.2.a": "not in the index"},
    ),
    "an index that omits several of one kind": (
        ([SINGLE], {INDEX: index({SINGLE: ["norm"]})}, {SINGLE: ["norm", "x.0.a", "x.1.a", "x.2.experts.7.a"]}),
        [SINGLE],
        {"x.*.a": "not in the index: 2", "x.2.experts.7.a": "not in the index"},
    ),
    "an index that omits a file": (
        ([FIRST, SECOND], {INDEX: index({FIRST: HELD[FIRST]})}, HELD),
        [FIRST],
        {SECOND: "its tensors are not loaded"},
    ),
    "an index that names a tensor that is not there": (
        ([FIRST, SECOND], {INDEX: index(HELD, gone=FIRST)}, HELD),
        [FIRST, SECOND],
        {"gone": "in none of the files"},
    ),
    "an index that names a file that is not there": (
        ([FIRST, SECOND], {INDEX: index(HELD, gone="gone.safetensors")}, HELD),
        [FIRST, SECOND],
        {INDEX: "names gone.safetensors, which is not there"},
    ),
    "an index that names another file": (
        ([FIRST, SECOND], {INDEX: index(HELD, norm=FIRST)}, HELD),
        [FIRST, SECOND],
        {"norm": "in another file than the index says"},
    ),
    "an index that leads out": (
        ([SINGLE], {INDEX: index({"../other/x.safetensors": ["a"]})}, {SINGLE: ["a"]}),
        [SINGLE],
        {INDEX: "leads out of the checkpoint"},
    ),
    "an index that leads to a pickle": (
        ([SINGLE, "README.md"], {INDEX: index({SINGLE: ["a"], "README.md": ["b"]})}, {SINGLE: ["a"]}),
        [SINGLE],
        {INDEX: "opens as a pickle"},
    ),
    "an index that is none": (
        ([SINGLE], {INDEX: b'{"weight_map": []}'}, {SINGLE: ["a"]}),
        [SINGLE],
        {INDEX: "not an object"},
    ),
    "one file beside an index that does not name it": (
        ([SINGLE, FIRST, SECOND], {INDEX: index(HELD)}, HELD),
        [FIRST, SECOND],
        {SINGLE: "transformers opens it instead"},
    ),
    "a block in a file that transformers does not open": (
        (
            [SINGLE, EXTRA],
            {INDEX: index({SINGLE: ["layers.0.a"], EXTRA: ["layers.1.a"]})},
            {SINGLE: ["layers.0.a"], EXTRA: ["layers.1.a"]},
        ),
        [SINGLE, EXTRA],
        {"layers.1.a": "transformers opens model.safetensors alone"},
    ),
    "consolidated weights": (
        ([FIRST, SECOND, "consolidated.safetensors"], {INDEX: index(HELD)}, HELD),
        [FIRST, SECOND],
        {"consolidated.safetensors": "vLLM opens it instead"},
    ),
    "code": (
        ([SINGLE, "modeling.py"], {"config.json": b'{"auto_map": {"AutoModel": "modeling.M"}}'}, {}),
        [SINGLE],
        {"modeling.py": "code", "config.json: auto_map": "code that a loader runs"},
    ),
    "code of another repository": (
        ([SINGLE], {"tokenizer_config.json": b'{"auto_map": {"AutoTokenizer": "o/n--t.T"}}'}, {}),
        [SINGLE],
        {"tokenizer_config.json: auto_map": "o/n--t.T"},
    ),
    "a compiled kernel of another repository": (
        ([SINGLE], {"config.json": b'{"text_config": {"_attn_implementation": "o/kernel"}}'}, {}),
        [SINGLE],
        {"config.json: text_config._attn_implementation": "compiled code"},
    ),
    "a file that the configuration names": (
        ([SINGLE, "x/y.safetensors"], {"config.json": b'{"transformers_weights": "x/y.safetensors"}'}, {}),
        [SINGLE],
        {"x/y.safetensors": "outside of the root", "config.json: transformers_weights": "before everything else"},
    ),
    "an adapter": (
        ([SINGLE, "adapter_config.json", "adapter_model.safetensors"], {INDEX: index({SINGLE: ["a"]})}, ONE),
        [SINGLE],
        {"adapter_config.json": "adapter", "adapter_model.safetensors": "does not name it"},
    ),
    "nested weights": (
        ([SINGLE, "original/model.safetensors"], {}, {}),
        [SINGLE],
        {"original/model.safetensors": "outside of the root"},
    ),
    "hidden weights in the root": (
        ([SINGLE, ".x.safetensors"], {}, {}),
        [SINGLE],
        {".x.safetensors": "outside of the root"},
    ),
    "another index": (
        ([SINGLE, "pytorch_model.bin.index.json", "sub/model.safetensors.index.json"], {}, {}),
        [SINGLE],
        {"pytorch_model.bin.index.json": "an index beside", "sub/model.safetensors.index.json": "an index beside"},
    ),
    "no index": (([FIRST, SECOND], {}, HELD), [FIRST, SECOND], {INDEX: "transformers finds no weights"}),
    "one file of another name": (([FIRST], {}, HELD), [FIRST], {INDEX: "transformers finds no weights"}),
    "the index of a variant": (
        ([SINGLE, "model.safetensors.index.fp16.json", "Model.Safetensors.INDEX.JSON"], {}, {}),
        [SINGLE],
        {
            "model.safetensors.index.fp16.json": "an index beside",
            "Model.Safetensors.INDEX.JSON": "differ only in case",
        },
    ),
    "names that differ only in case": (([SINGLE, *CASES], {}, {}), [SINGLE], dict.fromkeys(CASES, "only in case")),
    "a configuration that is no JSON": (([SINGLE], {"config.json": b"{"}, {}), [SINGLE], {"config.json": "not JSON"}),
}  # fmt: skip


@pytest.mark.parametrize(("layout", "weights", "expected"), FOUND.values(), ids=FOUND)
def test_what_could_be_loaded_instead_is_named(layout: Layout, weights: list[str], expected: dict[str, str]) -> None:
    files, texts, _ = layout
    assert opened([*files, *texts], texts) == sorted(weights)
    found = told(*layout)
    assert found.keys() == expected.keys()
    for name, why in expected.items():
        assert why in found[name]


@given(
    folder=st.sampled_from(["", "sub/", ".w/", ".git/", "a/.b/"]), suffix=st.sampled_from(RUNNABLE), upper=st.booleans()
)
def test_what_is_weights_or_code_is_named_wherever_it_stands(folder: str, suffix: str, upper: bool) -> None:
    name = f"{folder}x{suffix.upper() if upper else suffix}"
    assert told([SINGLE, name], {}, {}).keys() == {name}
    assert not is_companion(name)


@given(data=st.binary(max_size=40) | st.from_regex(r'\{"weight_map": ?[\[\]{}":,a-z0-9]*\}').map(str.encode))
def test_whatever_stands_in_an_index_is_no_traceback(data: bytes) -> None:
    told([SINGLE], {INDEX: data, "config.json": data}, {SINGLE: ["a"]})


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"weight_map":' + b"{}," * 2000, b"0" * (1 << 25) + b"0"])
def test_an_index_that_would_swell_is_refused(text: bytes) -> None:
    assert INDEX in told([SINGLE], {INDEX: text}, {SINGLE: []})


def test_only_what_decides_is_read() -> None:
    assert deciding([SINGLE, INDEX, "sub/config.json", "README.md", *CONFIGS]) == [INDEX, *CONFIGS]


# From here on through `check`, in a folder and over the network.

BASE = {f"x.{number}.weight": ("BF16", [2], bytes([number, 1, 2, 3])) for number in range(3)}
GOOD, BAD = shard(BASE), shard({**BASE, "x.1.weight": ("BF16", [2], b"evil")})
TENSORS = {SINGLE: list(BASE)}


def checked(name: str, base: Path, endpoint: str | None = None) -> Checked:
    with open_reader(name, endpoint) as theirs, open_reader(str(base)) as ours:
        return check(theirs, ours)


def over_the_network(folder: Path, base: Path) -> Checked:
    with running() as hub:
        hub.serve("model", "o/n", "0" * 40, folder)
        return checked("o/n@main", base, hub.url)


WAYS: dict[str, Callable[[Path, Path], Checked]] = {
    "folder": lambda folder, base: checked(str(folder), base),
    "network": over_the_network,
}
PLANTED: dict[str, tuple[dict[str, bytes], set[str]]] = {
    "nothing": ({SINGLE: GOOD, "README.md": b"", ".gitattributes": b""}, set()),
    "hidden weights": (
        {SINGLE: GOOD, W: BAD, INDEX: index({W: list(BASE)})},
        {SINGLE, W, "x.1.weight"},
    ),
    "a pickle": ({"pytorch_model.bin": b"evil", f"sub/{SINGLE}": GOOD}, {"pytorch_model.bin", f"sub/{SINGLE}"}),
    "an omitted block": ({SINGLE: GOOD, INDEX: index({SINGLE: list(BASE)[:2]})}, {"x.2.weight"}),
    "an adapter": ({SINGLE: GOOD, "adapter_config.json": b"{}"}, {"adapter_config.json"}),
    "code": ({SINGLE: GOOD, "config.json": b'{"auto_map": {}}'}, {"config.json: auto_map"}),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(("files", "named"), PLANTED.values(), ids=PLANTED)
def test_check_names_what_is_loaded_instead(
    files: dict[str, bytes], named: set[str], way: Callable[[Path, Path], Checked], tmp_path: Path
) -> None:
    base = write(tmp_path / "base", {SINGLE: GOOD})
    result = way(write(tmp_path / "made", files), base)
    assert {each.tensor for each in result.findings} == named
    assert (result.exit_status == 1) == bool(named)
