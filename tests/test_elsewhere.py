"""What stays float under another name than the base's, or lies in part of one of its tensors: router and biases."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.conftest import Refuses
from tests.tiny import EC

from requant.check.spans import trace
from requant.checkpoint.checkpoint import Checkpoint, Held, Tensor
from requant.checkpoint.safetensors import Spec
from requant.errors import BuildError
from requant.formats.form import Form
from requant.formats.gptq import bfloat16_to_float32
from requant.model.plan import Plan, Question, read_plan, write_plans
from requant.model.tables import Table
from requant.model.target import Target
from requant.model.tiny import stream
from requant.passes import Context, apply
from requant.passes.context import MAIN
from requant.protocol import Layer, Source

BLOCK = "model.layers.0"
FUSED, BOTH = f"{BLOCK}.mlp.experts.gate_up_proj", f"{BLOCK}.mlp.experts.gate_up_proj_bias"
STORED, ROUTER = f"{BLOCK}.block_sparse_moe.gate.weight", f"{BLOCK}.mlp.gate.weight"
QUERY = f"{BLOCK}.self_attn.q_proj"
EXPERTS = [(f"{BLOCK}.mlp.experts.{i}.{part}_proj", (i,), n) for i in (0, 1) for n, part in enumerate(("gate", "up"))]
SPECS = {
    STORED: Spec("BF16", (2, 32)),
    FUSED: Spec("BF16", (2, 64, 32)),
    BOTH: Spec("BF16", (2, 64)),
    f"{QUERY}.weight": Spec("BF16", (64, 32)),
    f"{QUERY}.bias": Spec("BF16", (64,)),
}
LAYERS = {name: Layer((32, 32), "", Source(FUSED, index, part, 2)) for name, index, part in EXPERTS}
LAYERS[QUERY] = Layer((64, 32), "", Source(f"{QUERY}.weight"))
ELSEWHERE = {f"{name}.bias": Source(BOTH, index, part, 2) for name, index, part in EXPERTS} | {ROUTER: Source(STORED)}
PLAN = Plan({}, SPECS, (BLOCK,), LAYERS, elsewhere=ELSEWHERE)
FORM = Form("auto_round:auto_gptq", 4, 32, symmetric=True)
TARGET = Target(PLAN, Table("none"), (), "none", FORM)
BASE = Checkpoint(
    {"model.safetensors": {name: Tensor(spec, stream("", name, spec)) for name, spec in SPECS.items()}}, {}
)
CONTEXT = Context(BASE, TARGET, EC, EC.effort(tiny=True), "0.12.2")


def rows(name: str, first: int, last: int) -> bytes:
    return BASE.tensors[name].read()[2 * first : 2 * last]


def in_f16(data: bytes) -> bytes:
    return bfloat16_to_float32(data).astype("<f2").tobytes()


BIASES = {f"{name}.bias": rows(BOTH, 64 * i + 32 * part, 64 * i + 32 * part + 32) for name, (i,), part in EXPERTS}
BIASES[f"{QUERY}.bias"] = rows(f"{QUERY}.bias", 0, 64)


def raw(**changed: bytes) -> Checkpoint:
    """What AutoRound writes: biases in F16, the router in F32."""
    tensors: dict[str, Tensor] = {}
    for name, layer in LAYERS.items():
        for suffix, spec in FORM.specs(layer.shape).items():
            words = {"qweight": bytes(spec.nbytes), "scales": bytes.fromhex("003c") * spec.size}
            tensors[f"{name}.{suffix}"] = Tensor(spec, Held(words.get(suffix) or FORM.zeros(spec)))
    for name, data in BIASES.items():
        tensors[name] = Tensor(Spec("F16", (len(data) // 2,)), Held(in_f16(data)))
    wide = bfloat16_to_float32(BASE.tensors[STORED].read()).astype("<f4").tobytes()
    tensors[ROUTER] = Tensor(Spec("F32", SPECS[STORED].shape), Held(wide))
    for name, data in changed.items():
        tensors[name] = replace(tensors[name], content=Held(data))
    return Checkpoint({"model.safetensors": tensors}, {})


def finished(checkpoint: Checkpoint) -> dict[str, Tensor]:
    return dict(apply(checkpoint, CONTEXT, ("tuned", "untouched")).shards[MAIN])


def test_a_checkpoint_has_the_bases_bytes_under_the_models_names() -> None:
    made = finished(raw())
    assert {name: tensor.spec for name, tensor in made.items()} == TARGET.main
    for name, data in BIASES.items():
        assert made[name].spec.dtype == "BF16"
        assert made[name].read() == data
    assert made[ROUTER].read() == BASE.tensors[STORED].read()
    assert not {STORED, BOTH} & made.keys()


@pytest.mark.parametrize("name", [ROUTER, f"{QUERY}.bias", f"{EXPERTS[3][0]}.bias"])
def test_what_the_tuning_has_changed_is_refused(name: str, refuses: Refuses) -> None:
    before = raw().shards["model.safetensors"][name].read()
    with refuses(BuildError):
        finished(raw(**{name: bytes([before[0] ^ 1, *before[1:]])}))


def test_a_bias_of_an_unpacked_layer_stays_whole() -> None:
    layers = {name: replace(layer, reason="left alone") for name, layer in LAYERS.items()}
    assert replace(TARGET, plan=replace(PLAN, layers=layers)).main == {
        **{name: spec for name, spec in SPECS.items() if name != STORED},
        ROUTER: SPECS[STORED],
    }


def in_own_halves(_: str, source: Source) -> Source:
    return source


def exchanged(_: str, source: Source) -> Source:
    return replace(source, part=source.parts - 1 - source.part)


@pytest.mark.parametrize(("lies", "first"), [(in_own_halves, 0), (exchanged, 32)])
def test_a_check_goes_by_the_plan(lies: Callable[[str, Source], Source], first: int) -> None:
    planned = {name: lies(name, source) for name, source in TARGET.places.items()}
    spans, findings = trace(TARGET.main, SPECS, planned=planned)
    assert findings == []
    found = {span.name: (span.base, span.first) for span in spans}
    assert found[EXPERTS[0][0]] == (FUSED, first)
    assert found[f"{EXPERTS[0][0]}.bias"] == (BOTH, first)
    assert found[ROUTER] == (STORED, 0)


def test_a_plan_says_it_where_there_is_something_to_say(tmp_path: Path) -> None:
    asked = Question("W4A16", 32, ())
    for plan in (PLAN, replace(PLAN, elsewhere={})):
        write_plans(tmp_path / "plan.json", asked, {"base": plan})
        assert read_plan(tmp_path / "plan.json", "base", asked) == plan
        assert ("elsewhere" in (tmp_path / "plan.json").read_text()) == bool(plan.elsewhere)
