"""`identify CHECKPOINT`: which tool and which policy can have written these files.

A fingerprint excludes; it never proves. What is read: headers, side files, where the files are on this disk
zero points and scales, and with a base a few layers, which are made again. Each writer below is a list of what it
cannot have done otherwise.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from requant.check.makers import Made, made_again
from requant.check.reader import Reader
from requant.checkpoint.checkpoint import open_checkpoint
from requant.formats.declarations import stated
from requant.formats.form import Form
from requant.formats.gptq import bfloat16_to_float32
from requant.identify.declared import SHOWN, formats, tools
from requant.inspect import look
from requant.inspect.anatomy import EXPERTS, MTP, VISUAL, canonical
from requant.inspect.headers import Headers
from requant.inspect.loaders import DEFAULT
from requant.inspect.loaders.declared import Declared
from requant.inspect.rules.readings import is_packed, packed_layers
from requant.inspect.rules.seen import Seen
from requant.model.plan import Specs
from requant.model.skeleton import plan
from requant.model.tables import table_of
from requant.model.target import Target
from requant.passes.context import EXTRAS

IGNORED: Mapping[str, tuple[str, ...]] = {
    "everything packed": ("mtp.fc",),
    "shared experts float": ("mtp.fc", "shared_expert"),
    "in_proj_a and in_proj_b float": ("mtp.fc", "in_proj_a", "in_proj_b"),
    "shared experts, in_proj_a and in_proj_b float": ("mtp.fc", "shared_expert", "in_proj_a", "in_proj_b"),
}
"""What known recipes leave float in the blocks."""


@dataclass(frozen=True)
class Writer:
    """A tool over a range of versions: the MTP layouts that it writes, its rounding's zero word and scales' signs."""

    name: str
    mtp: tuple[str, ...]
    zero_words: tuple[int, ...]
    signed: tuple[bool, ...]
    rewrites_tokenizer: bool


WRITERS = (
    # missing_tensors.py of 0.12.2 and 2dda035: fused experts stay, the rest of MTP is packed with max|w|/7.
    Writer("auto-round 0.12.2 to 2dda035", ("experts fused, rest packed",), (0x88888888,), (False,), True),
    Writer("auto-round with mtp in ignore_layers", ("fused", "absent"), (), (), True),
    Writer("auto-round from #1758 on (in 0.13.0)", ("packed",), (0x77777777, 0x88888888), (True,), True),
    # auto-round's rounding by another script, experts split first.
    Writer("a script around auto-round's rounding", ("packed",), (0x88888888, 0x77777777), (False, True), True),
    Writer("requant", ("packed", "fused"), (0x77777777,), (False,), False),
)


@dataclass(frozen=True)
class Fingerprint:
    """What the files show. Words and shares are None where the values were not read.

    `formats` counts layers by how declaration and tensors say that they are stored, `unknown` the others, by why
    nothing is known of them; `tools` are those that the declaration names. What asks for the modules of the
    `architecture`, which are known for Qwen3.5-MoE, is None for others: MTP, policies, linear layers and writers.
    Where nothing is `quantized`, no tensor is packed, and there are no `writers` to tell apart. `unmodelled` says in
    what the declaration is none of those whose `policies` and `writers` are known, such as `8 bits`; else it is empty.
    `made` are layers that were made again, None without a base.
    """

    architecture: str
    quantized: bool
    declared: bool
    method: str
    tools: tuple[str, ...]
    formats: Mapping[str, int]
    unknown: Mapping[str, int]
    mtp: str | None
    zero_words: Mapping[str, Mapping[str, int]] | None
    negative_tuned: float | None
    negative_rounded: float | None
    main_bytes: int
    extra_bytes: int
    policies: tuple[str, ...] | None
    tokenizer: str
    declared_version: str
    declared_effort: Mapping[str, Any]
    tensors: Mapping[str, int]
    quantized_layers: int
    linear_layers: int | None
    writers: tuple[str, ...] | None
    unmodelled: str
    made: tuple[Made, ...] | None = None

    @property
    def silent(self) -> bool:
        """Whether codes are there, and nothing that was read says anything for or against any tool."""
        gave = any(count for each in self.made or () for count in each.gave.values())
        return self.quantized and not (self.tools or self.writers or gave)

    def as_json(self) -> dict[str, Any]:
        """Return the fingerprint as `--json` prints it."""
        return asdict(self)


def with_base(found: Fingerprint, checkpoint: Reader, base: Reader) -> Fingerprint:
    """Add which formulas make a few layers of each format, and which do not.

    Raises CheckpointError for what cannot be read.
    """
    made, unknown = made_again(checkpoint, base)
    return replace(found, made=tuple(made), unknown={**found.unknown, **unknown})


def identify(headers: Headers) -> Fingerprint:
    """Read a checkpoint's fingerprint; raise CheckpointError where it cannot be read."""
    seen = look(headers, (DEFAULT,), (1,))
    specs = {name: spec for held in headers.shards.values() for name, spec in held.items()}
    value = stated(seen.config)
    stored, unknown = formats(value, specs, packed_layers(seen))
    packed = bool(stored or unknown) or any(is_packed(name, spec.dtype) for name, spec in specs.items())
    words, tuned, rounded = _values(seen) if headers.folder else (None, None, None)
    sizes = {file: sum(spec.nbytes for spec in held.values()) for file, held in headers.shards.items()}
    extra = sizes.get(EXTRAS, 0)
    main = sum(sizes.values()) - extra
    tokenizer = _tokenizer(headers)
    layout = mtp_layout(seen) if seen.modelled else None
    names = [canonical(name) for held in headers.shards.values() for name in held]
    declared = value if isinstance(value, dict) else {}
    unmodelled = _unmodelled(seen.declared) if packed else ""
    writers, policies = None, None
    if layout is not None:
        told = packed and not unmodelled
        writers = tuple(_writers(layout, words, rounded, tokenizer)) if told else ()
        policies = () if unmodelled else tuple(_policies(seen, main, extra))
    return Fingerprint(
        architecture=seen.architecture,
        quantized=packed,
        declared=value is not None,
        method=str(declared.get("quant_method", ""))[:SHOWN],
        tools=tuple(tools(seen.config, headers.paths)),
        formats=dict(Counter(stored.values())),
        unknown=dict(Counter(unknown.values())),
        mtp=layout,
        zero_words=words,
        negative_tuned=tuned,
        negative_rounded=rounded,
        main_bytes=main,
        extra_bytes=extra,
        policies=policies,
        tokenizer=tokenizer,
        declared_version=str(declared.get("autoround_version", "")),
        declared_effort={key: declared.get(key, f"not declared: {default}") for key, default in DEFAULTS.items()}
        if seen.declared
        else {},
        tensors={
            "all": len(names),
            "MTP": sum(name.startswith(MTP) for name in names),
            "visual": sum(name.startswith(VISUAL) for name in names),
            "visual .weight": sum(name.startswith(VISUAL) and name.endswith(".weight") for name in names),
        },
        quantized_layers=sum(not canonical(name).startswith(MTP) for name in (*stored, *unknown)),
        linear_layers=sum(not name.startswith(MTP) for name in seen.model.layers(seen.model.tensors))
        if seen.modelled
        else None,
        writers=writers,
        unmodelled=unmodelled,
    )


def _unmodelled(declared: Declared | None) -> str:
    """Return in what AutoRound's declaration is not symmetric INT4, which alone the known writers make."""
    if declared is None or (declared.bits == 4 and declared.sym):
        return ""
    return f"{declared.bits} bits" if declared.bits != 4 else "asymmetric codes"


DEFAULTS = {"iters": 200, "nsamples": 128, "seqlen": 2048}
"""What AutoRound leaves out of a configuration where it is this (export/utils.py)."""


def mtp_layout(seen: Seen) -> str:
    """Return how the MTP block is stored: absent, fused, split, packed, or experts fused and the rest packed."""
    builds = [build for block, build in seen.builds.items() if block.startswith(MTP)]
    if not builds or not any(name.startswith(MTP) for name in (*seen.anatomy.blocks, *seen.anatomy.rest)):
        return "absent"
    experts = builds[0].forms[EXPERTS]
    others = {form for name, form in builds[0].forms.items() if name != EXPERTS}
    if experts == "fused" and "packed" in others:
        return "experts fused, rest packed"
    return {"fused": "fused", "float": "split", "packed": "packed"}.get(experts, "incomplete")


def _values(seen: Seen) -> tuple[dict[str, dict[str, int]], float | None, float | None]:
    words: dict[str, Counter[str]] = {}
    signs = {True: [0, 0], False: [0, 0]}
    if seen.headers.folder is None:
        return {}, None, None
    for file, held in open_checkpoint(seen.headers.folder).shards.items():
        for name, tensor in held.items():
            if name.endswith(".qzeros") and tensor.spec.dtype == "I32":
                found = np.unique(np.frombuffer(tensor.read(), "<u4"))
                words.setdefault(file, Counter()).update(f"{int(word):#010x}" for word in found)
            elif name.endswith(".scales") and f"{name.removesuffix('.scales')}.qweight" in held:
                data = tensor.read()
                scales = np.frombuffer(data, "<f2") if tensor.spec.dtype == "F16" else bfloat16_to_float32(data)
                count = signs[name.startswith(MTP)]
                count[0] += int((scales < 0).sum())
                count[1] += scales.size
    share = {rounded: negative / count if count else None for rounded, (negative, count) in signs.items()}
    return {file: dict(found) for file, found in words.items()}, share[False], share[True]


def _policies(seen: Seen, main: int, extra: int) -> Iterator[str]:
    group_size = seen.declared.group_size if seen.declared and seen.declared.group_size > 0 else 128
    visual = sum(spec.nbytes for name, spec in seen.expected.items() if name.startswith(VISUAL))
    form, table = Form("auto_round:auto_gptq", 4, group_size, symmetric=True), table_of(seen.config)
    for text, ignore in IGNORED.items():
        target = Target(plan(seen.config, ignore), table, ignore[:1], "rtn", form)
        weight = sum(spec.nbytes for spec in target.main.values())
        for shown, beside in _extras(target):
            more = sum(spec.nbytes for spec in beside.values())
            if (main, extra) == (weight, more):
                yield f"{text}; {shown}, visual in {EXTRAS}"
            elif (main, extra) == (weight + visual, more - visual):
                yield f"{text}; {shown}, visual in the main files"
            elif main + extra == weight + more:
                yield f"{text}; {shown}, spread over files in another way"


def _extras(target: Target) -> Iterator[tuple[str, Specs]]:
    """Yield what stands beside the main part, by what became of MTP; AutoRound's own way leaves its experts fused."""
    packed, fused = target.extras, replace(target, policy="bf16").extras
    yield "MTP packed", packed
    yield "MTP float", fused
    rest = {name: spec for name, spec in packed.items() if f".{EXPERTS}." not in name}
    yield "MTP packed but for its experts", rest | {n: spec for n, spec in fused.items() if f".{EXPERTS}." in n}


def _tokenizer(headers: Headers) -> str:
    found = headers.object("tokenizer_config.json")
    if found is None:
        return "no tokenizer_config.json"
    if found.get("tokenizer_class") == "TokenizersBackend":
        return "rewritten by transformers 5"
    return (
        "rewritten by transformers"
        if "added_tokens_decoder" not in found and "extra_special_tokens" in found
        else "as it came"
    )


def _writers(
    layout: str, words: Mapping[str, Mapping[str, int]] | None, negative: float | None, tokenizer: str
) -> Iterator[str]:
    found = {int(word, 16) for word in (words or {}).get(EXTRAS, {})}
    for writer in WRITERS:
        excluded = layout not in writer.mtp or (
            tokenizer == "rewritten by transformers 5" and not writer.rewrites_tokenizer
        )
        if "packed" in layout:
            excluded |= bool(found) and not found <= set(writer.zero_words)
            excluded |= negative is not None and (negative > 0) not in writer.signed
        if not excluded:
            yield writer.name
