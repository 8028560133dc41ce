"""Named mutations: a healthy tiny model in, one that breaks one rule out. Nothing here knows how rules are checked."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from requant.checkpoint.checkpoint import INDEX, Checkpoint, Content, Held, Tensor, json_file
from requant.checkpoint.safetensors import Spec

Mutation = Callable[[Checkpoint], Checkpoint]
EXTRAS = "model_extra_tensors.safetensors"
L0, L3, M0 = "model.language_model.layers.0.", "model.language_model.layers.3.", "mtp.layers.0."
FLOAT = {"bits": 16, "data_type": "fp"}


@dataclass(frozen=True)
class Case:
    """A broken tiny model of a recipe, and the rule under which it has to be found, for a loader at a degree."""

    name: str
    rule: str
    mutate: Mutation
    recipe: str = "ec"
    loader: str = "vllm==0.33.0"
    tp: int = 1
    repairable: bool = True


def with_tensors(checkpoint: Checkpoint, file: str, changed: Mapping[str, Tensor | None]) -> Checkpoint:
    """Change, add or (None) remove tensors of a file; the index is told nothing."""
    held = {**checkpoint.shards[file], **changed}
    kept = {name: tensor for name, tensor in held.items() if tensor is not None}
    return replace(checkpoint, shards={**checkpoint.shards, file: kept})


def file_of(checkpoint: Checkpoint, name: str) -> str:
    return next(file for file, held in checkpoint.shards.items() if name in held)


def change(checkpoint: Checkpoint, changed: Mapping[str, Tensor | None]) -> Checkpoint:
    """Change or remove tensors where they stand, and make the index anew, as a careful author would."""
    for name, tensor in changed.items():
        beside = name if any(name in held for held in checkpoint.shards.values()) else None
        file = (
            file_of(checkpoint, beside)
            if beside
            else EXTRAS
            if name.startswith(("mtp", "model.visual"))
            else next(iter(checkpoint.shards))
        )
        checkpoint = with_tensors(checkpoint, file, {name: tensor})
    return indexed(checkpoint)


def indexed(checkpoint: Checkpoint) -> Checkpoint:
    from requant.checkpoint.checkpoint import index

    return with_file(checkpoint, INDEX, index(checkpoint.shards))


def with_file(checkpoint: Checkpoint, path: str, content: Content | None) -> Checkpoint:
    files = {key: value for key, value in checkpoint.files.items() if key != path}
    return replace(checkpoint, files=files if content is None else {**files, path: content})


def edit(checkpoint: Checkpoint, path: str, editing: Callable[[Any], Any]) -> Checkpoint:
    return with_file(checkpoint, path, json_file(editing(json.loads(checkpoint.file(path)))))


def declare(editing: Callable[[dict[str, Any]], Any]) -> Mutation:
    """Edit the quantization_config in both files alike."""

    def both(checkpoint: Checkpoint) -> Checkpoint:
        def inside(config: dict[str, Any]) -> dict[str, Any]:
            editing(config["quantization_config"])
            return config

        def beside(declared: dict[str, Any]) -> dict[str, Any]:
            editing(declared)
            return declared

        return edit(edit(checkpoint, "config.json", inside), "quantization_config.json", beside)

    return both


def override(key: str, value: Mapping[str, Any] | None) -> Mutation:
    def editing(declared: dict[str, Any]) -> None:
        declared["extra_config"].pop(key, None)
        if value is not None:
            declared["extra_config"][key] = value

    return declare(editing)


def partly(checkpoint: Checkpoint) -> Checkpoint:
    """The overrides of in_proj_a, in_proj_b and in_proj_ba as one expression for the end of a name."""

    def editing(declared: dict[str, Any]) -> None:
        kept = {key: value for key, value in declared["extra_config"].items() if "in_proj_" not in key}
        declared["extra_config"] = {**kept, "in_proj_(a|b|ba)$": FLOAT}

    return declare(editing)(checkpoint)


def blocks(value: Any) -> Mutation:
    return declare(lambda declared: declared.update(block_name_to_quantize=value))


def stated(key: str, value: Any) -> Mutation:
    return declare(lambda declared: declared.update({key: value}))


def made(dtype: str, *shape: int, byte: int = 1) -> Tensor:
    spec = Spec(dtype, shape)
    return Tensor(spec, Held(bytes([byte]) * spec.nbytes))


def drop(*names: str) -> Mutation:
    return lambda checkpoint: change(checkpoint, dict.fromkeys(names))


def drop_if(test: Callable[[str], bool]) -> Mutation:
    return lambda checkpoint: change(checkpoint, dict.fromkeys(filter(test, checkpoint.tensors)))


def unpack(module: str) -> Mutation:
    """Put a float weight in the place of a packed layer."""

    def mutate(checkpoint: Checkpoint) -> Checkpoint:
        rows, outputs = checkpoint.tensors[f"{module}.qweight"].spec.shape
        gone = {f"{module}.{suffix}": None for suffix in ("qweight", "qzeros", "scales")}
        return change(checkpoint, {f"{module}.weight": made("BF16", outputs, 8 * rows), **gone})

    return mutate


def pack(module: str) -> Mutation:
    """Put a packed layer in the place of a float weight."""

    def mutate(checkpoint: Checkpoint) -> Checkpoint:
        outputs, inputs = checkpoint.tensors[f"{module}.weight"].spec.shape
        groups = -(-inputs // 128)
        packed = {
            "qweight": ("I32", inputs // 8, outputs),
            "qzeros": ("I32", groups, max(1, outputs // 8)),
            "scales": ("F16", groups, outputs),
        }
        added = {
            f"{module}.{suffix}": made(dtype, *shape, byte=0x77 if suffix == "qzeros" else 1)
            for suffix, (dtype, *shape) in packed.items()
        }
        return change(checkpoint, {**added, f"{module}.weight": None})

    return mutate


def second_copy(checkpoint: Checkpoint, name: str, under: str) -> Checkpoint:
    return with_tensors(checkpoint, EXTRAS, {under: checkpoint.tensors[name]})


def wins_unseen(checkpoint: Checkpoint) -> Checkpoint:
    """The extras hold a copy of a tuned tensor, and the index goes on naming the main file."""
    name = f"{L0}mlp.shared_expert.up_proj.qweight"
    spec = checkpoint.tensors[name].spec
    return with_tensors(checkpoint, EXTRAS, {name: made(spec.dtype, *spec.shape)})


def wrong_file(checkpoint: Checkpoint) -> Checkpoint:
    name = f"{L0}input_layernorm.weight"

    def editing(value: Any) -> Any:
        value["weight_map"][name] = EXTRAS
        return value

    return edit(checkpoint, INDEX, editing)


def index_edit(editing: Callable[[Any], Any]) -> Mutation:
    def mutate(checkpoint: Checkpoint) -> Checkpoint:
        def both(value: Any) -> Any:
            editing(value)
            return value

        return edit(checkpoint, INDEX, both)

    return mutate


def rewritten(name: str, byte: int) -> Mutation:
    def mutate(checkpoint: Checkpoint) -> Checkpoint:
        spec = checkpoint.tensors[name].spec
        return change(checkpoint, {name: made(spec.dtype, *spec.shape, byte=byte)})

    return mutate


def one_scale(value: float) -> Mutation:
    def mutate(checkpoint: Checkpoint) -> Checkpoint:
        name = f"{L3}self_attn.k_proj.scales"
        tensor = checkpoint.tensors[name]
        scales = np.frombuffer(tensor.read(), "<f2").copy()
        scales[0] = value
        return change(checkpoint, {name: Tensor(tensor.spec, Held(scales.tobytes()))})

    return mutate


def fused_mtp_experts(checkpoint: Checkpoint) -> Checkpoint:
    """What AutoRound leaves in a block that it declares packed."""
    split = [name for name in checkpoint.tensors if name.startswith(f"{M0}mlp.experts.")]
    experts = 1 + max(int(name.split(".")[5]) for name in split)
    rows, hidden = checkpoint.tensors[f"{M0}mlp.experts.0.down_proj.qweight"].spec.shape
    fused = {
        f"{M0}mlp.experts.gate_up_proj": made("BF16", experts, 16 * rows, hidden),
        f"{M0}mlp.experts.down_proj": made("BF16", experts, hidden, 8 * rows),
    }
    return change(checkpoint, {**dict.fromkeys(split), **fused})


def text_only(checkpoint: Checkpoint) -> Checkpoint:
    """The language model under the names of a text-only load."""
    shards = {
        file: {name.replace("model.language_model.", "model."): tensor for name, tensor in held.items()}
        for file, held in checkpoint.shards.items()
    }
    return indexed(replace(checkpoint, shards=shards))


def narrower(checkpoint: Checkpoint) -> Checkpoint:
    name = f"{L0}mlp.experts.1.up_proj.qweight"
    rows, outputs = checkpoint.tensors[name].spec.shape
    return change(checkpoint, {name: made("I32", rows // 2, outputs)})


def cast(name: str, dtype: str) -> Mutation:
    return lambda checkpoint: change(checkpoint, {name: made(dtype, *checkpoint.tensors[name].spec.shape)})


def side(path: str, editing: Callable[[Any], Any]) -> Mutation:
    return (
        index_edit(editing)
        if path == INDEX
        else lambda checkpoint: edit(checkpoint, path, lambda value: editing(value) or value)
    )


def left_over(checkpoint: Checkpoint) -> Checkpoint:
    """A shard of an earlier build, which no index names."""
    return replace(checkpoint, shards={**checkpoint.shards, "model-00009-of-00009.safetensors": {"a": made("BF16", 4)}})


def unpack_all(*modules: str) -> Mutation:
    def mutate(checkpoint: Checkpoint) -> Checkpoint:
        for module in modules:
            checkpoint = unpack(module)(checkpoint)
        return checkpoint

    return mutate


CASES = (
    Case("a file that the index does not name", "D01", left_over),
    Case("no side file", "D04", lambda c: with_file(c, "quantization_config.json", None)),
    Case(
        "a and b float, declared packed", "D05", unpack_all(f"{L0}linear_attn.in_proj_a", f"{L0}linear_attn.in_proj_b")
    ),
    Case("an expression for one expert", "D17", override(r".*experts\.0\.up_proj", FLOAT)),
    Case("an expression that matches nothing", "D16", override(r"mlp\.shared_experts\..*", FLOAT)),
    Case("q of MTP float", "D06", unpack(f"{M0}self_attn.q_proj")),
    Case("a block without a dot", "D15", blocks(["model.language_model.layers.1", "mtp.layers"])),
    Case("a wide zero point", "D10", rewritten(f"{L0}linear_attn.out_proj.qzeros", 0x88)),
    Case(
        "a copy in the extras, which the index names",
        "D01",
        lambda c: indexed(second_copy(c, f"{L0}linear_attn.out_proj.scales", f"{L0}linear_attn.out_proj.scales")),
    ),
    Case(
        "a copy under another prefix",
        "D01",
        lambda c: indexed(
            second_copy(c, f"{L0}linear_attn.out_proj.qweight", "model.layers.0.linear_attn.out_proj.qweight")
        ),
    ),
    Case(
        "a copy under a doubled prefix",
        "D01",
        lambda c: indexed(
            second_copy(
                c, f"{L0}input_layernorm.weight", "model.language_model.language_model.layers.0.input_layernorm.weight"
            )
        ),
    ),
    Case("float beside packed", "D01", lambda c: change(c, {f"{L3}self_attn.o_proj.weight": made("BF16", 256, 256)})),
    Case(
        "a tensor that the index does not know",
        "D01",
        index_edit(lambda v: v["weight_map"].pop(f"{L0}input_layernorm.weight")),
    ),
    Case("a name that no file holds", "D01", index_edit(lambda v: v["weight_map"].update({"model.more": EXTRAS}))),
    Case("the index names another file", "D02", wrong_file),
    Case("visual biases gone", "D03", drop_if(lambda name: name.startswith("model.visual") and name.endswith("bias"))),
    Case("a visual layer packed", "D03", pack("model.visual.blocks.0.mlp.linear_fc1")),
    Case(
        "the side file is older",
        "D04",
        lambda c: edit(c, "quantization_config.json", lambda v: {**v, "extra_config": {}}),
    ),
    Case("one of a and b declared float", "D05", override(f"{L0}linear_attn.in_proj_a", FLOAT)),
    Case("one of a and b float on disk", "D05", unpack(f"{L0}linear_attn.in_proj_b"), repairable=False),
    Case("a and b packed at TP 2", "D05", lambda c: c, loader="vllm==0.19.1", tp=2, repairable=False),
    Case("q float beside packed k and v", "D06", unpack(f"{L3}self_attn.q_proj"), repairable=False),
    Case("gate and up declared differently", "D06", override(f"{L0}mlp.shared_expert.up_proj", FLOAT)),
    Case("no MTP", "D07", drop_if(lambda name: name.startswith("mtp."))),
    Case("an MTP norm missing", "D07", drop("mtp.pre_fc_norm_hidden.weight")),
    Case("MTP experts fused in a packed block", "D08", fused_mtp_experts),
    Case(
        "mtp.fc not excepted",
        "D08",
        lambda c: blocks(["model.language_model.layers", "mtp"])(override("mtp.fc", None)(c)),
    ),
    Case("MTP not declared packed", "D08", blocks(["model.language_model.layers"])),
    Case("zero points of version 2", "D10", rewritten(f"{M0}mlp.experts.0.up_proj.qzeros", 0x88)),
    Case("scales in float32", "D12", cast(f"{L0}linear_attn.out_proj.scales", "F32"), repairable=False),
    Case("a scale that is no number", "D12", one_scale(float("nan")), repairable=False),
    Case("a scale of zero", "D12", one_scale(0.0), repairable=False),
    Case("a norm in float32", "D13", cast(f"{L0}input_layernorm.weight", "F32")),
    Case("a visual weight in float16", "D13", cast("model.visual.merger.linear_fc1.weight", "F16")),
    Case("a router packed", "D14", pack(f"{L0}mlp.gate")),
    Case("the shared expert's gate missing", "D14", drop(f"{L3}mlp.shared_expert_gate.weight")),
    Case("no blocks", "D15", blocks(None)),
    Case("blocks of a text-only load", "D15", blocks(["model.layers", "mtp.layers"])),
    Case("visual declared packed", "D15", blocks(["model.language_model.layers", "model.visual.blocks", "mtp.layers"])),
    Case(
        "an expression with the prefix",
        "D16",
        lambda c: override(r"model\.language_model\.layers\.\d+\.mlp\.shared_expert_gate", FLOAT)(c),
    ),
    Case("a misspelt name", "D16", override(f"{L0}mlp.shared_expert.upproj", FLOAT)),
    Case("an override of one expert", "D17", override(f"{L0}mlp.experts.2.up_proj", FLOAT)),
    Case("one expert's scales missing", "D18", drop(f"{L0}mlp.experts.1.down_proj.scales"), repairable=False),
    Case(
        "k missing",
        "D18",
        drop(*(f"{L3}self_attn.k_proj.{s}" for s in ("qweight", "qzeros", "scales"))),
        repairable=False,
    ),
    Case("a norm missing", "D18", drop(f"{L0}post_attention_layernorm.weight")),
    Case("a narrower expert", "D19", narrower, repairable=False),
    Case(
        "a text-only class",
        "D20",
        lambda c: edit(c, "config.json", lambda v: {**v, "architectures": ["Qwen3_5MoeForCausalLM"]}),
    ),
    Case("a tensor of no module", "D20", lambda c: change(c, {"model.language_model.rotary": made("BF16", 4)})),
    Case(
        "a tokenizer of transformers 5",
        "D21",
        side("tokenizer_config.json", lambda v: v.update(tokenizer_class="TokenizersBackend")),
    ),
    Case("no processor files", "D21", lambda c: with_file(c, "preprocessor_config.json", None)),
    Case("no licence", "D21", lambda c: with_file(c, "LICENSE", None)),
    Case("total_size 0", "D22", index_edit(lambda v: v["metadata"].update(total_size=0))),
    Case("no index", "D22", lambda c: with_file(c, INDEX, None)),
    Case("an override of the head", "D27", override("lm_head", FLOAT)),
    Case("weights in a pickle", "D29", lambda c: with_file(c, "pytorch_model.bin", Held(b"")), repairable=False),
    Case("an adapter", "D29", lambda c: with_file(c, "adapter_config.json", Held(b"{}")), repairable=False),
    Case("code of its own", "D29", side("config.json", lambda v: v.update(auto_map={"AutoModel": "m.M"}))),
    Case(
        "an expression for a part of a name",
        "D28",
        partly,
        recipe="gb10",
        loader="sglang==0.5.23",
    ),
    Case("a packing format that no loader knows", "D30", stated("packing_format", "junk"), repairable=False),
    Case("a method that no loader knows", "D30", stated("quant_method", "junk"), repairable=False),
    Case("a data type of other bits", "D30", stated("data_type", "fp"), repairable=False),
    Case(
        "an order of codes that the tensors do not have",
        "D19",
        stated("packing_format", "auto_round:auto_awq"),
        repairable=False,
    ),
)
"""Every mutation, with the rule under which it is to be found."""
