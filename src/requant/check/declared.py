"""What a `quantization_config` says of each layer's codes; `contradictions.py` holds it against the tensors.

Field names are AutoRound's. A stranger wrote them: what is not of the expected type contradicts the tensors, or is
not modelled, and never ends the check.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from requant.check.findings import Finding, Kind
from requant.check.side_files import CONFIG, SIDE_FILES, Side
from requant.formats import AWQ, FORMATS, GPTQ, GPTQ_V2, Format, declarations
from requant.formats.codec import Declaration
from requant.inspect.loaders.resolver import is_expression, is_tried, matches

METHODS = ("auto-round", "intel/auto-round")
"""AutoRound's own values of `quant_method`."""
TOOLS = {"gptq": GPTQ, "awq": AWQ}
"""Values of `quant_method` that AutoRound's exports to other tools have, and their formats."""
REWRITTEN = ("block_name_to_quantize", "extra_config", "to_quant_block_names")
"""Keys that AutoRound 0.12.2 adds to in `config.json` for the MTP block, and not in the side file (defect D04)."""
KNOWN = {"autoround_version", "batch_size", "bits", "block_name_to_quantize", "data_type", "desc_act", "extra_config"}
KNOWN |= {"group_size", "iters", "modules_in_block_to_quantize", "nsamples", "packing_format", "quant_method", "seqlen"}
KNOWN |= {"sym", "to_quant_block_names", "low_gpu_mem_usage", "enable_quanted_input", "enable_minmax_tuning", "lr"}
KNOWN |= {"minmax_lr", "gradient_accumulate_steps", "dataset", "amp", "enable_norm_bias_tuning", "scale_dtype"}
"""Keys that are held against the tensors, or that say how the tuning went, which changes nothing of what codes mean."""
KNOWN |= {"provider", "damp_percent", "true_sequential"}
KNOWN |= {"meta", "zero_point"}
HARMLESS = {"act_bits": 16, "backend": "auto", "version": "gemm", "format": "gptq", "method": "gptq"}
HARMLESS |= {"pack_dtype": "int32", "checkpoint_format": "gptq"}
"""Keys, each with the one value that changes nothing of what codes mean."""
FLOAT = 16
"""`bits` from here on mean a float layer."""
MAX_EXPRESSIONS = 256
"""More regular expressions than this in `extra_config`, of all files together, are not tried on every layer."""
UNSTATED = object()


@dataclass(frozen=True)
class Scheme:
    """What a configuration says: its own fields, and how to read them for one layer.

    `value` is the object of `config.json`, or of a side file where that has none. `asides` are the side files that
    say more than it, by name: there `own` is what the file itself says, and `beneath` is this scheme, which holds for
    all that the side file does not say.
    """

    value: Mapping[str, Any]
    own: Mapping[str, Any] = field(default_factory=dict)
    asides: "Mapping[str, Scheme]" = field(default_factory=dict)
    beneath: "Scheme | None" = None
    _resolved: dict[str, Mapping[str, Any]] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def foreign(self) -> str:
        """Why none of its codes are modelled; "" where they may be."""
        method = self.value.get("quant_method")
        if isinstance(self.read, str):
            return self.read
        if self.format is None and self.read is None:
            named = "packing_format" if method in METHODS else "quant_method"
            return f"{named} {said_of(self.value.get(named))}"
        many = len(self.expressions) > MAX_EXPRESSIONS
        return f"extra_config with {len(self.expressions):,} regular expressions" if many else ""

    @cached_property
    def read(self) -> Declaration | str | None:
        """What it declares of a format that lies row by row, or why that is not modelled; None for other formats."""
        try:
            return declarations.declared(self.value)
        except ValueError as error:
            return str(error)

    @property
    def declaration(self) -> Declaration | None:
        """What it declares of a format that lies row by row, where that is modelled."""
        return None if isinstance(self.read, str) else self.read

    @cached_property
    def format(self) -> Format | None:
        """How codes lie in words; None where it is not known. What is not stated is AutoRound's default.

        AWQ has other orders for other kernels, of which only GEMM's is modelled.
        """
        method = self.value.get("quant_method")
        if method in METHODS:
            stated = self.value.get("packing_format", "auto_round:auto_gptq")
            found = FORMATS.get(stated) if isinstance(stated, str) else None
            return found if found and found.method == "auto-round" else None
        if not isinstance(method, str) or (method == "awq" and not self._is_gemm):
            return None
        if method == "gptq" and self.value.get("checkpoint_format", "gptq") == "gptq_v2":
            return GPTQ_V2
        return TOOLS.get(method)

    @property
    def _is_gemm(self) -> bool:
        return str(self.value.get("version", "gemm")).lower() == "gemm" and is_number(self.value.get("bits"), 4)

    @property
    def scales(self) -> bool:
        """Whether channels of norms and biases are scaled with the layers beside them."""
        return self.value.get("quant_method") == "awq" and self.strange_tool

    @property
    def strange_tool(self) -> bool:
        """Whether another tool than AutoRound made it, whose ways of rounding are not all known."""
        stated = self.value.get("quant_method") in METHODS or self.value.get("provider") == "auto-round"
        return not (stated or "autoround_version" in self.value)

    @property
    def transposes(self) -> bool:
        """Whether it is AutoRound 0.12's, which names the halves of transposed, interleaved experts gate and up.

        Later ones mean every second column by the same names, and have not been looked at.
        """
        return str(self.value.get("autoround_version", "")).startswith("0.12.")

    @property
    def dtype(self) -> str:
        """The dtype that AutoRound's exports to GPTQ and AWQ state, as kernels want it; tensors are untouched."""
        exported = self.layout == "awq" or self.value.get("quant_method") in [*TOOLS]
        return "float16" if exported and not self.strange_tool else ""

    @property
    def layout(self) -> str | None:
        """The order of codes in words; None: unknown."""
        return self.format.layout if self.format else None

    @cached_property
    def blocks(self) -> tuple[str, ...] | None:
        """Prefixes of the blocks that are packed; None where none are stated: then all may be."""
        stated = self.value.get("block_name_to_quantize") or self.value.get("to_quant_block_names")
        if isinstance(stated, str):
            stated = stated.split(",")
        if not isinstance(stated, list):
            return None
        return tuple(f"{name.strip()}." for name in flat(stated))

    @property
    def rounds(self) -> bool:
        """Whether it says that nothing was tuned."""
        return is_number(self.value.get("iters"), 0)

    def override(self, layer: str) -> Mapping[str, Any]:
        """Return the entry of `extra_config` that names a layer, exactly or by an expression; empty where none does."""
        if layer not in self._resolved:
            key = layer if layer in self.overrides else next((k for k, e in self.expressions if matches(e, layer)), "")
            under = self.beneath.override(layer) if self.beneath else {}
            left = {"bits": FLOAT} if any(part in layer for part in self.left_float) else {}
            self._resolved[layer] = {**under, **left, **self.overrides.get(key, {})}
        return self._resolved[layer]

    def of(self, layer: str, key: str, default: Any = None) -> Any:
        """Return what is said of a layer under `key`, or `default`."""
        return self.override(layer).get(key, self.value.get(key, default))

    def symmetric(self, layer: str) -> bool:
        """Say whether a layer's zero points are declared to be in the middle."""
        zeros = self.value.get("quant_method") == "awq" and self.value.get("zero_point") is True
        return self.of(layer, "sym", not zeros) is not False

    @cached_property
    def overrides(self) -> dict[str, Mapping[str, Any]]:
        """The entries of `extra_config` that are objects, by the name or the expression of their layers.

        Of GPTQ those of `dynamic` too: what is said of layers whose names begin so, or `-:` and those that are float.
        """
        stated = self.value.get("extra_config")
        entries = stated if isinstance(stated, dict) else {}
        found: dict[str, Mapping[str, Any]] = {key: each for key, each in entries.items() if isinstance(each, dict)}
        dynamic = self.value.get("dynamic") if self.value.get("quant_method") == "gptq" else None
        for key, each in dynamic.items() if isinstance(dynamic, dict) else ():
            if isinstance(each, dict):
                found[_begins(key.removeprefix("-:").removeprefix("+:"))] = {"bits": FLOAT} if key[:2] == "-:" else each
        return found

    @cached_property
    def left_float(self) -> tuple[str, ...]:
        """Parts of names of layers that AWQ's `modules_to_not_convert` leaves float."""
        stated = self.value.get("modules_to_not_convert") if self.value.get("quant_method") == "awq" else None
        return tuple(part for part in stated if isinstance(part, str)) if isinstance(stated, list) else ()

    @cached_property
    def expressions(self) -> list[tuple[str, str]]:
        """Keys that are regular expressions, and these without the `.*` in front, which makes a search slow."""
        keys = [key for key in self.overrides if is_expression(key)]
        return [(key, f"(?:{rest})" if (rest := key.removeprefix(".*")) != key else key) for key in keys]


def read_scheme(side: Side) -> tuple[Scheme | None, list[Finding]]:
    """Return what a checkpoint declares, and where the files that declare it say different things.

    None where nothing is declared. Raises CheckpointError for a file that is not a JSON object.
    """
    config = side.config()
    stated = {CONFIG: declarations.stated(config or {}), **{file: side.config(file) for file in SIDE_FILES}}
    read: dict[str, dict[str, Any]] = {file: value for file, value in stated.items() if isinstance(value, dict)}
    faults = [
        Finding("declared otherwise", f"{file}: quantization_config", detail=f"{said_of(value)}, expected an object")
        for file, value in stated.items()
        if value is not None and file not in read
    ]
    for file, value in read.items():
        first = next(iter(read))
        for key in sorted(value.keys() & read[first].keys()):
            if value[key] != read[first][key]:
                kind: Kind = "rewritten by a tool" if key in REWRITTEN else "declared otherwise"
                detail = f"{said_of(value[key])}, {first} has {said_of(read[first][key])}"
                faults.append(Finding(kind, f"{file}: {key}", detail=detail))
    said, other = (config or {}).get("quantization_config"), (config or {}).get("quantization")
    if said and other and said != other:  # MLX reads the latter, and writes both
        faults.append(
            Finding("declared otherwise", f"{CONFIG}: quantization", detail=f"{said_of(other)}, not the same")
        )
    if not read:
        return None, faults
    scheme, beyond = _beside(read)
    return scheme, [*faults, *beyond]


def _beside(read: Mapping[str, Mapping[str, Any]]) -> tuple[Scheme, list[Finding]]:
    """Return the first file's scheme with the side files that say more, and those that have too much to try."""
    first, *others = read
    declared, asides, faults = Scheme(read[first]), {}, []
    tried = len(declared.expressions)
    for file in others:
        other = Scheme(read[file])
        same = [*other.overrides.items()] in ([], [*declared.overrides.items()])  # which expression is first counts
        fits = other.blocks in (None, declared.blocks) and not any(_strange(other.value))
        if same and fits and other.value.keys() <= declared.value.keys():
            continue
        tried += len(other.expressions)
        if tried > MAX_EXPRESSIONS:
            detail = f"{tried:,} regular expressions with those of other files, and not the same"
            faults.append(Finding("not modelled", f"{file}: extra_config", detail=detail))
            continue
        # What both state was compared: here it is what the first says.
        value = {**other.value, **declared.value, "extra_config": other.value.get("extra_config")}
        asides[file] = Scheme(value, read[file], beneath=declared)
    return replace(declared, asides=asides), faults


def unknown(scheme: Scheme, packed: Collection[str] = ()) -> Iterator[Finding]:
    """Yield the keys that may change what codes mean, and that are not modelled; an empty value says nothing.

    `packed` names the packed layers: what a configuration leaves out may be anything else.
    """
    stated = [("quantization_config", scheme.value), *(("extra_config", each) for each in scheme.overrides.values())]
    found = Counter(_strange(scheme.value))
    for file, aside in scheme.asides.items():
        own = {key: value for key, value in aside.own.items() if key not in scheme.value}
        stated += [(file, own), *((f"{file}: extra_config", each) for each in aside.overrides.values())]
        found.update(f"{file}: {each}" for each in _strange(aside.own))
    for where, value in stated:
        for key, said in value.items():
            if key not in KNOWN and said and said != HARMLESS.get(key) and not _is_idle(key, value, packed):
                found[f"{where}: {key}"] += 1
        if str(value.get("data_type", "int")).startswith("int") and value.get("data_type", "int") != "int":
            found[f"{where}: data_type {said_of(value['data_type'])}"] += 1
    for key, count in sorted(found.items()):
        yield Finding("not modelled", key, count, detail="could change what the codes mean")
    # Not tried, they name no layer here, and may name every one for a loader.
    for where, each in (("", scheme), *((f"{file}: ", aside) for file, aside in scheme.asides.items())):
        if untried := [key for key, _ in each.expressions if not is_tried(key)]:
            detail = f"expressions that are not tried, such as {said_of(untried[0])}"
            yield Finding("not modelled", f"{where}extra_config", len(untried), detail=detail)


def _begins(expression: str) -> str:
    """Return a key of `overrides` for an expression of `dynamic`, which loaders hold against a name's beginning."""
    if exact := re.fullmatch(r"\^?((?:\w|\\\.)+)\$", expression):
        return exact[1].replace("\\.", ".")
    return expression if expression.startswith(("^", ".*")) and "|" not in expression else f"^(?:{expression})"


def _is_idle(key: str, value: Mapping[str, Any], packed: Collection[str]) -> bool:
    """Say whether what is said under a key is of no consequence beside the rest."""
    if key.startswith("act_"):
        return bool(value.get("act_bits", FLOAT) == FLOAT)
    if key == "checkpoint_format":
        return value.get("quant_method") == "gptq" and value[key] == "gptq_v2"
    if key == "dynamic":  # without objects, `_strange` says so
        return value.get("quant_method") == "gptq" and isinstance(value[key], dict)
    if key == "lm_head":
        return value[key] is True and key in packed
    if key == "modules_to_not_convert" and isinstance(value[key], list):
        return not any(str(part) in layer for part in value[key] for layer in packed)
    return False


def _strange(value: Mapping[str, Any]) -> Iterator[str]:
    """Yield `extra_config` or `dynamic` for each time that it, or an entry of it, is not what loaders expect."""
    for key in ("extra_config", "dynamic"):
        stated = value.get(key)
        if stated and not isinstance(stated, dict):
            yield key
        elif stated:
            yield from (key for each in stated.values() if not isinstance(each, dict))


def flat(names: list[Any]) -> Iterator[str]:
    """Yield the names of a list, which AutoRound nests by tower and GPTQ by step."""
    for each in names:
        yield from (name for name in (each if isinstance(each, list) else [each]) if isinstance(name, str))


def is_number(stated: Any, found: int) -> bool:
    """Say whether something that is stated is this whole number, and no truth value or text."""
    return type(stated) is int and stated == found


def said_of(value: Any) -> str:
    """Return how a finding words a stated value."""
    return "not stated" if value is UNSTATED else f"{value!r:.80}"
