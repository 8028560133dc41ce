"""The catalogue of defects, D01 to D35, that checkpoints of this architecture are known to have.

N01 to N03 are not defects: they say what `inspect` does not model, and that a checkpoint is not quantized.

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
        "the same weight is stored twice",
        "AutoRound copies what it believes to be missing. A text-only load saves prefixes that the source does not "
        "have, so that everything seems to be missing, and a second copy, rounded to nearest, goes to "
        "model_extra_tensors.safetensors (auto-round#2349, #2350). The same rule covers a layer that is both packed "
        "and float, and an index that lists a different set of tensors.",
        "requant repair keeps one copy, the tuned one (passes tuned and index)",
    ),
    (
        "D02",
        "the file whose copy is used is not the one that the index names",
        "Loaders take only the list of files from weight_map, and read the files in sorted order. Of two tensors with "
        "the same name the one that is read last is used, and model_extra_tensors sorts after model-00001 (vLLM "
        "weight_utils.py, transformers modeling_utils.py).",
        "requant repair keeps the copy that the index names (passes tuned and index)",
    ),
    (
        "D03",
        "the visual tower is packed or incomplete",
        "Duplication (D01) packs every two-dimensional weight. linear_fc2 has 4,304 inputs, which is not a multiple of "
        "128, so its packed form can never be loaded. Missing biases stay uninitialised.",
        "requant repair copies all tensors of the tower from the base (pass visual)",
    ),
    (
        "D04",
        "config.json and a side file that declares the same disagree",
        "AutoRound writes quantization_config.json from an older value than the one in config.json, ModelOpt writes "
        "hf_quant_config.json, and whoever edits one forgets the other. vLLM reads config.json first, other tools read "
        "the side file.",
        "requant repair writes both from one configuration (pass quantization_config)",
    ),
    (
        "D05",
        "in_proj_a and in_proj_b are packed, or only one of the two is",
        "Each has 32 outputs. Loaders merge them into one module with 64, and Marlin needs 64 on every rank "
        "(vllm#35924, #40361, sglang#19406). From vLLM 0.22.1 on, every rank holds the whole module.",
        "build with both in layers.ignore; if only the declaration differs, requant repair (pass quantization_config)",
    ),
    (
        "D06",
        "layers that loaders fuse differ in form or precision",
        "q, k and v, gate and up, in_proj_qkv and in_proj_z, and all experts of a layer: each of these sets becomes "
        "one module with one precision (auto-round#1726).",
        "if the declaration is wrong, requant repair (pass quantization_config); otherwise build again",
    ),
    (
        "D07",
        "the MTP block is absent or incomplete",
        "transformers drops mtp.* when it loads (modeling_qwen3_5_moe.py:881). vLLM then runs an uninitialised "
        "drafter, and none of its drafts is accepted (vllm#35548).",
        "requant repair makes the block from the base (pass mtp)",
    ),
    (
        "D08",
        "the MTP block does not have the form that is declared",
        "AutoRound declares mtp.layers packed and leaves its experts fused in BF16 (auto-round#1755), or packs mtp.fc, "
        "which loaders read as a float.",
        "requant repair (passes mtp and quantization_config)",
    ),
    (
        "D09",
        "the MTP block is in codes, as a rule rounded to nearest",
        "No known tool but requant calibrates it, and headers do not tell. Before auto-round#1758 its scales are "
        "max|w|/7 and never negative; later ones have either sign. Drafts are accepted less often than with a float "
        "block.",
        "nothing is broken; requant check says whether it is rounded; requant repair --mtp bf16 copies the float block "
        "of the base",
    ),
    (
        "D10",
        "zero points belong to another packing format",
        "GPTQ version 1 stores each zero point minus one, which is 0x77777777 for symmetric INT4; AutoRound's own "
        "rounding path writes 0x88888888. vLLM ignores them; kernels that read them shift every weight by one step.",
        "requant repair writes the constant of the packing format (passes tuned and mtp)",
    ),
    (
        "D11",
        "scales are negative",
        "AutoRound chooses the sign so that the larger side of a group gets the code -8. That is right for W4A16, but "
        "Marlin's path for int8 activations silently corrupts such weights (vllm#48905).",
        "nothing is broken; do not set VLLM_MARLIN_INPUT_DTYPE=int8",
    ),
    (
        "D12",
        "scales are float16, of mixed types, or not numbers",
        "vLLM holds scales in the model's dtype and casts float16 to bfloat16 without saying so. A scale of zero "
        "makes a whole group zero, an infinite one makes it NaN.",
        "for float16 nothing need be done, or serve with --dtype half; for other scales build again",
    ),
    (
        "D13",
        "a float tensor does not have the base's dtype",
        "AutoRound saves in the precision of its tuning. What is not quantized has to be the base's, bit for bit.",
        "requant repair copies the base's bytes (pass untouched)",
    ),
    (
        "D14",
        "a router or the shared expert's gate is packed or missing",
        "Loaders build mlp.gate and mlp.shared_expert_gate only as floats, so that there is no place for a qweight "
        "(auto-round#586, #1486, #1915).",
        "requant repair copies the base's bytes (pass untouched)",
    ),
    (
        "D15",
        "block_name_to_quantize is absent or wrong",
        "Without it, vLLM takes the visual tower and mtp.fc for packed; with a prefix that the model does not have, it "
        "takes everything for float. Names are compared by startswith, so layers.1 also means layers.10.",
        "requant repair declares what the tensors are (pass quantization_config)",
    ),
    (
        "D16",
        "an override matches nothing",
        "Loaders rename literal keys but not regular expressions, so one that contains model\\.language_model never "
        "matches. Neither does a misspelt name.",
        "requant repair declares what the tensors are (pass quantization_config)",
    ),
    (
        "D17",
        "an override for single experts",
        "vLLM 0.19.1 and 0.22.1 apply the entry of one expert to the whole layer; from 0.25.1 on none is read.",
        "requant repair declares what the tensors are (pass quantization_config)",
    ),
    (
        "D18",
        "a tensor that a module needs is missing",
        "vLLM counts a fused parameter as loaded after its first part, and looks for missing ones only if it is asked "
        "to. The rest stays uninitialised.",
        "for tuned tensors download or build again; for others requant repair (passes untouched and mtp)",
    ),
    (
        "D19",
        "a tensor has the wrong shape or type",
        "An expert tensor that is too small is copied into a corner of its place (vLLM 0.33.0 routed_experts.py); "
        "other modules stop.",
        "for tuned tensors build again; for others requant repair (passes untouched and mtp)",
    ),
    (
        "D20",
        "the checkpoint claims to be another model, or holds tensors that no part of the model has",
        "A text-only load leaves a different architecture and different prefixes behind (vllm#36585). vLLM up to "
        "0.22.1 skips unknown names, from 0.25.1 on it refuses them.",
        "requant repair drops them and takes the base's config.json (passes tuned and quantization_config)",
    ),
    (
        "D21",
        "tokenizer, template, processor or licence files are missing or rewritten",
        "transformers 5 writes a tokenizer_class that version 4 does not know; AutoRound copies no processor files.",
        "requant repair copies the base's, byte for byte (pass side_files)",
    ),
    (
        "D22",
        "the index is missing or its total_size is wrong",
        "AutoRound writes 0 for a single file, and otherwise leaves out the extra file (missing_tensors.py).",
        "requant repair writes an exact index (pass index)",
    ),
    (
        "D23",
        "transformers initialises new weights and says so only in a report",
        "A text-only class matched no layer name before auto-round#1705. It shows only at run time, as new keys.",
        "load with the composite class and require that no key is newly initialised",
        False,
    ),
    (
        "D24",
        "no kernel supports this degree of tensor parallelism",
        "A rank's share of a packed layer has to consist of whole groups, and for Marlin also of multiples of 64 "
        "outputs and 128 inputs. The shared expert's down_proj has 512 inputs, which leaves 64 at TP 8.",
        "serve with fewer ranks, or build with shared_expert in layers.ignore",
    ),
    (
        "D25",
        "a group that spans two ranks is read wrongly",
        "vllm#39460, closed without a merge. It cannot occur here up to TP 4.",
        "serve with fewer ranks",
        False,
    ),
    (
        "D26",
        "the repository changes but keeps its name",
        "Publishers have replaced tuned weights in place. Only a digest names the same bytes for ever.",
        "pin a revision and keep a manifest",
        False,
    ),
    (
        "D27",
        "an override of lm_head",
        "vLLM up to 0.25.1 ignores the short key and 0.33.0 reads it, so that one file means two models.",
        "requant repair declares what the tensors are (pass quantization_config)",
    ),
    (
        "D28",
        "SGLang expects a different precision from what the files have",
        "It has vLLM's older resolver, keeps the checkpoint's names, and requires an expression to match a whole "
        "name. It warns about a tensor that it cannot place, and goes on (sglang#35797).",
        "requant repair declares every float layer by its literal name (pass quantization_config)",
    ),
    (
        "D29",
        "a loader can open or run something other than these weights",
        "Weights in another format, an adapter, another index, code, or a key that leads to one of these. Which file "
        "is used depends on the loader (transformers 5.5.1 modeling_utils.py, vLLM 0.33.0 default_loader.py).",
        "remove what is named, unless you know what it is for",
    ),
    (
        "D30",
        "a value in quantization_config that a loader refuses, or reads as something else",
        "quant_method chooses the reader. vLLM and SGLang stop at names that they do not know; transformers takes "
        "such a checkpoint for float, and so does vLLM where there is no name. AutoRound's reader stops at bits, data "
        "types, packing formats and backends that it does not know. It has kernels for symmetric 4 and 8 bits, and "
        "from vLLM 0.33.0 on also for 2, 3, 5, 6 and 7 bits. vLLM ignores desc_act, SGLang reads an order that no "
        "file has, and transformers stops.",
        "declare what the tensors are, in config.json and in quantization_config.json",
    ),
    (
        "D31",
        "a layer that is stored in another format than quantization_config declares",
        "A declaration of NVFP4 over FP8 tensors, a layer that was left float and is not in `ignore`, a scale that was "
        "not written: loaders read what is there as what is declared, or stop.",
        "declare what the tensors are, or quantize again",
    ),
    (
        "D32",
        "a layer that quantization_config declares float, and that is stored as codes",
        "A name in `ignore` that finds more layers than were left out: loaders look for a float weight.",
        "declare what the tensors are, or quantize again",
    ),
    (
        "D33",
        "a block that predicts several tokens is promised, and is not there",
        "Tools that save what transformers loaded leave it out, and keep the key that counts it. A server that drafts "
        "with it has uninitialised weights or stops, and no draft is accepted.",
        "copy the block's tensors from the base, or set the key to 0",
    ),
    (
        "D34",
        "scales of the KV cache are declared and absent, or no scale at all",
        "Calibrations of a cache in FP8 leave a scale of k and one of v per layer. Without them, "
        "vLLM 0.33.0 takes 1 (kv_cache.py, compressed_tensors.py), whatever was calibrated. A scale of zero, and one "
        "that is no finite number, leaves nothing of what is stored. Of other loaders nothing is said.",
        "calibrate again, or serve with a cache in the model's dtype",
    ),
    (
        "D35",
        "tokenizer.json has a truncation or a padding",
        "A tool called the tokenizer with a length, as for calibration, and saved it so. transformers sets both anew "
        "at each call; what loads the file through `tokenizers` alone keeps them, and cuts or fills prompts.",
        "set truncation and padding in tokenizer.json to null, or copy the base's file",
    ),
    (
        "N01",
        "quantized by another tool or into another format",
        "AWQ, GPTQ, compressed-tensors, FP8 and others have readers of their own in every loader, and none of these is "
        "modelled here. This says nothing for or against the checkpoint.",
        "nothing is known to be broken; load it to find out",
    ),
    (
        "N02",
        "an architecture other than Qwen3.5-MoE",
        "Which modules a loader builds, and which it fuses, is modelled for Qwen3.5-MoE only. For other architectures, "
        "only files, index and declaration are examined.",
        "nothing is known to be broken; load it to find out",
    ),
    (
        "N03",
        "nothing is quantized",
        "config.json declares no quantization, and every tensor is a float.",
        "nothing is broken; if you expected a quantized model, this is its base",
    ),
)

DEFECTS = {entry[0]: Defect(*entry) for entry in _ENTRIES}
