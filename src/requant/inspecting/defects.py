"""The catalogue of defects, D01 to D30, that checkpoints of this architecture are known to have.

N01 to N03 are no defects: they say what `inspect` does not model, and what is no quantized checkpoint.

Sources: auto-round at 2dda035, 0.12.2, 0.12.3, 0.13.0 and 0.16.1, vLLM 0.19.1 to 0.33.0, SGLang 0.5.23 and
transformers 5.5.1, by file and issue where the entry names one. `in_files` says whether `inspect` can see it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Defect:
    """A defect by its identifier: what it is, how it comes about, and what mends it."""

    id: str
    title: str
    cause: str
    repair: str
    in_files: bool = True


_ENTRIES = (
    (
        "D01",
        "the same weight stands twice",
        "AutoRound copies what it believes missing; a text-only load saves other prefixes than the source has, so that "
        "everything is missing, and a second copy, rounded to nearest, goes to model_extra_tensors.safetensors "
        "(auto-round#2349, #2350). Also: a layer both packed and float, or an index that knows another set of tensors.",
        "pass tuned: one copy, the tuned one; pass index",
    ),
    (
        "D02",
        "the file that wins is not the one that the index names",
        "Loaders take from weight_map only the list of files, and read them in sorted order; the last writer of a "
        "name wins, and model_extra_tensors sorts after model-00001 (vLLM weight_utils.py, transformers "
        "modeling_utils.py).",
        "pass tuned: the copy that the index names; pass index",
    ),
    (
        "D03",
        "the visual tower is packed or incomplete",
        "Duplication (D01) packs every two-dimensional weight; linear_fc2 has 4,304 inputs, no multiple of 128, so "
        "that its packed form can never be loaded. Missing biases stay uninitialised.",
        "pass visual: all tensors of the tower as the base has them",
    ),
    (
        "D04",
        "config.json and quantization_config.json disagree",
        "AutoRound writes the side file from a value that is older than the config's. vLLM reads config.json, other "
        "tools the side file.",
        "pass quantization_config",
    ),
    (
        "D05",
        "in_proj_a and in_proj_b are packed, or only one of them is",
        "Both have 32 outputs; loaders make one module of 64 of them, and Marlin wants 64 on every rank (vllm#35924, "
        "#40361, sglang#19406). From vLLM 0.22.1 on every rank holds all of it.",
        "build with both in layers.ignore; where only one is declared: pass quantization_config",
    ),
    (
        "D06",
        "layers that loaders fuse differ in form or precision",
        "q, k and v; gate and up; in_proj_qkv and in_proj_z; all experts of a layer: each becomes one module with one "
        "precision (auto-round#1726).",
        "pass quantization_config where the declaration is wrong, else build again",
    ),
    (
        "D07",
        "the MTP block is absent or incomplete",
        "transformers drops mtp.* when it loads (modeling_qwen3_5_moe.py:881). vLLM serves an uninitialised drafter, "
        "of which nothing is accepted (vllm#35548).",
        "pass mtp",
    ),
    (
        "D08",
        "the MTP block has another form than declared",
        "AutoRound declares mtp.layers packed and leaves its experts fused in BF16 (auto-round#1755), or packs mtp.fc, "
        "which loaders read as float.",
        "pass mtp, then pass quantization_config",
    ),
    (
        "D09",
        "the MTP block is rounded to nearest",
        "No known tool calibrates it. Up to auto-round#1758 its scales are max|w|/7, never negative; later ones are "
        "signed. Drafts are accepted less often than with a float block.",
        "nothing is broken; repair --mtp bf16 copies the base's",
    ),
    (
        "D10",
        "zero points of another packing format",
        "GPTQ version 1 stores zero points less one, 0x77777777 for symmetric INT4; AutoRound's own rounding path "
        "writes 0x88888888. vLLM ignores them, kernels that read them shift every weight by one step.",
        "pass tuned, and pass mtp: the constant that the packing format means",
    ),
    (
        "D11",
        "scales are negative",
        "AutoRound chooses the sign so that the larger side of a group gets the code -8. Right for W4A16; Marlin's "
        "int8-activation path corrupts them silently (vllm#48905).",
        "nothing is broken; do not set VLLM_MARLIN_INPUT_DTYPE=int8",
    ),
    (
        "D12",
        "scales are float16, mixed, or not numbers",
        "vLLM holds scales in the model's dtype and casts float16 to bfloat16 without a word. Zero or infinite scales "
        "make a whole group zero or NaN.",
        "for float16: nothing, or serve with --dtype half; other scales: build again",
    ),
    (
        "D13",
        "a float tensor has another dtype than the base",
        "AutoRound saves in the precision of its tuning. What is not quantized has to be the base's, bit for bit.",
        "pass untouched: the base's bytes",
    ),
    (
        "D14",
        "a router or the shared expert's gate is packed or missing",
        "Loaders build mlp.gate and mlp.shared_expert_gate without precision: their qweight fits nowhere "
        "(auto-round#586, #1486, #1915).",
        "pass untouched: the base's bytes",
    ),
    (
        "D15",
        "block_name_to_quantize is absent or wrong",
        "Without it vLLM takes the visual tower and mtp.fc for packed; with a prefix that the model does not have, all "
        "is float. It is compared by startswith, so layers.1 means layers.10 as well.",
        "pass quantization_config",
    ),
    (
        "D16",
        "an override matches nothing",
        "Loaders rename literal keys but no regular expressions: one that spells model\\.language_model never matches. "
        "A misspelt name does the same.",
        "pass quantization_config",
    ),
    (
        "D17",
        "an override below mlp.experts",
        "vLLM 0.19.1 and 0.22.1 take one expert's entry for the whole layer, from 0.25.1 on none is read.",
        "pass quantization_config",
    ),
    (
        "D18",
        "a tensor that a module needs is missing",
        "vLLM counts a fused parameter as loaded after its first part, and looks for missing ones only where it is "
        "asked to. The rest stays uninitialised memory.",
        "float tensors: pass untouched; MTP: pass mtp; tuned ones: download or build again",
    ),
    (
        "D19",
        "a tensor has another shape or type than its place",
        "A smaller expert tensor is copied into a corner (vLLM 0.33.0 routed_experts.py); other modules stop.",
        "float tensors: pass untouched; MTP: pass mtp; tuned ones: build again",
    ),
    (
        "D20",
        "the checkpoint says that it is another model, or holds names that no part of it has",
        "A text-only load leaves other architectures and other prefixes (vllm#36585). Unknown names are skipped up to "
        "vLLM 0.22.1, and refused from 0.25.1 on.",
        "pass tuned drops them; pass quantization_config takes the base's config.json",
    ),
    (
        "D21",
        "tokenizer, template, processor or licence files are missing or rewritten",
        "transformers 5 writes a tokenizer_class that version 4 does not know; AutoRound copies no processor files.",
        "pass side_files: the base's, byte for byte",
    ),
    (
        "D22",
        "the index is missing or its total_size is wrong",
        "AutoRound writes 0 for a single file, and leaves the extras out otherwise (missing_tensors.py).",
        "pass index",
    ),
    (
        "D23",
        "transformers makes new weights and says so only in a report",
        "A text-only class matched no layer name before auto-round#1705. Seen at run time: newly initialised keys.",
        "load with the composite class and require that no key is new",
        False,
    ),
    (
        "D24",
        "a degree of tensor parallelism that no kernel serves",
        "A rank's share of a packed layer has to hold whole groups, and for Marlin 64 outputs and 128 inputs. The "
        "shared expert's down_proj has 512 inputs: 64 at TP 8.",
        "serve with fewer ranks, or build with shared_expert in layers.ignore",
    ),
    (
        "D25",
        "a group that straddles two ranks is read wrongly",
        "vllm#39460, closed unmerged. Not reachable here up to TP 4.",
        "serve with fewer ranks",
        False,
    ),
    (
        "D26",
        "the repository changes under its name",
        "Publishers have replaced tuned weights in place. A digest is the only name that stays.",
        "pin a revision and keep a manifest",
        False,
    ),
    (
        "D27",
        "an override of lm_head",
        "The short key is ignored up to vLLM 0.25.1 and read by 0.33.0, so that one file means two models.",
        "pass quantization_config",
    ),
    (
        "D28",
        "SGLang resolves another precision than the files have",
        "It has vLLM's older resolver, keeps the checkpoint's names, and wants an expression to match a whole name. It "
        "warns of a parameter that it cannot place, and goes on (sglang#35797).",
        "pass quantization_config: literal names for every float layer",
    ),
    (
        "D29",
        "a loader can open or run something besides these weights",
        "Weights in another format, an adapter, another index, code, or a key that leads to one of these. Which file "
        "wins depends on the loader (transformers 5.5.1 modeling_utils.py, vLLM 0.33.0 default_loader.py).",
        "remove what is named, unless you know what it is for",
    ),
    (
        "D30",
        "a value in quantization_config that a loader refuses, or reads as something else",
        "quant_method chooses the reader: vLLM and SGLang stop at names that they do not know, transformers takes such "
        "a checkpoint for float, and so does vLLM without a name. AutoRound's reader stops at bits, data types, "
        "packing formats and backends that it does not know, and has kernels for symmetric 4 and 8 bits (from vLLM "
        "0.33.0 on for 2, 3, 5, 6 and 7 bits too). vLLM does not read desc_act; SGLang reads an order that no file "
        "has, and transformers stops.",
        "state what the tensors are, in config.json and in quantization_config.json",
    ),
    (
        "N01",
        "quantized by another tool or into another format",
        "AWQ, GPTQ, compressed-tensors, FP8 and others have readers of their own in every loader, and none of these is "
        "modelled here. Nothing is said for or against the checkpoint.",
        "nothing is known to be broken; load it to find out",
    ),
    (
        "N02",
        "another architecture than Qwen3.5-MoE",
        "Which modules a loader builds, and which it fuses, is modelled for Qwen3.5-MoE only. For others, files, index "
        "and declaration are looked at.",
        "nothing is known to be broken; load it to find out",
    ),
    (
        "N03",
        "nothing is quantized",
        "config.json declares no quantization, and every tensor is a float.",
        "nothing is broken; if it should be quantized, this is its base",
    ),
)

DEFECTS = {entry[0]: Defect(*entry) for entry in _ENTRIES}
