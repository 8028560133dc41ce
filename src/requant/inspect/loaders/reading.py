"""What a loader makes of a `quantization_config` before it asks about any module.

`quant_method` names the reader. AutoRound's own reader stops at values that it does not know, other tools' readers at
keys that they cannot do without; some loaders take what they do not know for an unquantized checkpoint. Own code, held
against the released functions by tests/test_reading.py. Sources: vLLM 0.19.1 to 0.33.0, config/model.py
(`_verify_quantization`), transformers_utils/model_arch_config_convertor.py and quantization/inc; SGLang 0.5.23,
configs/model_config.py and quantization/auto_round.py; transformers 5.5.1, quantizers/auto.py and
utils/quantization_config.py, with auto_round 0.12.2, inference/convert_model.py.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from requant.inspect.loaders.resolver import Precision

Demands = tuple[tuple[str, ...], ...]
Fault = tuple[str, str]
"""A key, and what the loader says against it."""

INT_FORMATS = ("auto_round:auto_gptq", "auto_round:auto_awq")
BACKENDS = ("auto", "gptq", "gptq:marlin", "awq", "awq:marlin", "marlin")
MARLIN = ((4, True), (8, True))
MARLIN_GROUPS = (-1, 32, 64, 128)

GPTQ_DEMANDS: Demands = (("bits",), ("group_size",), ("desc_act",), ("sym",))
AWQ_DEMANDS: Demands = (("w_bit", "bits"), ("q_group_size", "group_size"), ("zero_point",))
FP8_DEMANDS: Demands = (("activation_scheme",),)


@dataclass(frozen=True)
class Reading:
    """What becomes of a configuration.

    AutoRound's reader reads it; or the loader stops, takes the checkpoint for float, or hands it to another reader,
    which is not modelled. `key` is the one that decides, `why` a clause.
    """

    outcome: Literal["reads", "stops", "float", "another"]
    key: str = ""
    why: str = ""


@dataclass(frozen=True)
class Reader:
    """How a release finds a reader, and what AutoRound's own one accepts."""

    own: frozenset[str]
    """Methods that AutoRound's reader takes."""
    others: Mapping[str, Demands] = field(hash=False)
    """All other methods that the release knows, and the keys, or one of several, that their readers demand."""
    unknown: Literal["stops", "float"]
    """What becomes of a method that it does not know."""
    nameless: Literal["stops", "float"]
    """What becomes of a configuration without a method."""
    folds_case: bool
    required: tuple[str, ...]
    bits: frozenset[int]
    formats: frozenset[str] | None
    """Packing formats that it accepts; None where it does not look at them here."""
    backend_keys: tuple[str, ...]
    floats: bool
    """Whether it has other data types than `int`, and reads a packing format of null as absent."""
    minds_backend: bool
    """Whether a backend without marlin in its name keeps a layer from Marlin."""
    desc_act: Literal["ignored", "reorders", "stops"]
    """What `desc_act: true` does where no `g_idx` is; `reorders` is by memory that nobody wrote."""
    fallback: frozenset[int] | None
    """Bits that a dense layer may have, symmetric or not, where Marlin does not take it; None: a kernel for all."""


def read(config: Any, reader: Reader) -> Reading:
    """Return what a release makes of a `quantization_config`, which may be anything that JSON can hold."""
    if config is None:
        return Reading("float", "quantization_config", "nothing is declared")
    if not isinstance(config, dict):
        return Reading("stops", "quantization_config", f"found {config!r:.80}, expected an object")
    method = config.get("quant_method", "")
    if not isinstance(method, str) and (reader.folds_case or isinstance(method, dict | list | None)):
        return Reading("stops", "quant_method", f"found {method!r:.80}, expected a name")
    if reader.folds_case:
        method = method.lower().replace("compressed_tensors", "compressed-tensors")
    if "quant_method" not in config or (reader.folds_case and not method):
        return Reading(reader.nameless, "quant_method", "no method is named")
    if method in reader.own:
        key, why = next(_faults(config, reader), ("", ""))
        if not key and reader.floats and config.get("data_type", "int") != "int":
            return Reading("another", "data_type", f"{config['data_type']!r:.80} is not an integer format")
        return Reading("stops" if key else "reads", key, why)
    if method not in reader.others:
        return Reading(reader.unknown, "quant_method", f"this release does not know {method!r:.80}")
    for keys in reader.others[method]:
        if not config.keys() & set(keys):
            return Reading("stops", keys[-1], f"{keys[-1]} is absent, and the reader for {method!r} requires it")
    return Reading("another", "quant_method", f"{method!r} has a reader of its own")


def layout(packing_format: str, backend: str) -> Literal["gptq", "awq"]:
    """Return how a loader takes codes to lie in a word; `gptq` in either name wins."""
    return "gptq" if "gptq" in packing_format or "gptq" in backend else "awq"


def backend_of(config: Mapping[str, Any], reader: Reader) -> str:
    """Return the backend that a configuration asks for, under whichever key the release looks at first."""
    return str(_first(config, reader.backend_keys, "auto"))


def has_dense_kernel(precision: Precision, backend: str, reader: Reader) -> bool:
    """Say whether a dense layer in GPTQ's layout finds a kernel on a CUDA device; elsewhere there are fewer."""
    if reader.fallback is None or precision.bits in reader.fallback:
        return True
    asked = not reader.minds_backend or backend == "auto" or "marlin" in backend
    return asked and (precision.bits, precision.sym) in MARLIN and precision.group_size in MARLIN_GROUPS


def _first(config: Mapping[str, Any], keys: tuple[str, ...], default: Any) -> Any:
    return next((config[key] for key in keys if key in config), default)


def _faults(config: Mapping[str, Any], reader: Reader) -> Iterator[Fault]:
    """Yield what AutoRound's reader of a release stops at."""
    for key in reader.required:
        if key not in config:
            yield key, f"{key} is absent"
            return
    bits = config.get("bits", 4)
    if not any(bits == each for each in reader.bits) or (type(bits) is not int and reader.formats is not None):
        yield "bits", f"found {bits!r:.80}, expected one of {', '.join(map(str, sorted(reader.bits)))}"
    if reader.formats is None:
        yield from _transformers(config)
        return
    kind = config.get("data_type", "int")
    if reader.floats:
        yield from _kinds(config, "fp" if kind == "fp8" else kind)
    elif kind != "int":
        yield "data_type", f"found {kind!r:.80}, expected 'int'"
    name = config.get("packing_format", INT_FORMATS[0])
    if not (name is None and reader.floats) and (not isinstance(name, str) or name not in reader.formats):
        yield "packing_format", f"found {name!r:.80}, expected one of {', '.join(sorted(reader.formats))}"
    backend = _first(config, reader.backend_keys, "auto")
    if not isinstance(backend, str) or backend not in BACKENDS:
        yield "backend", f"found {backend!r:.80}, expected one of {', '.join(BACKENDS)}"


def _transformers(config: Mapping[str, Any]) -> Iterator[Fault]:
    size = config.get("group_size", 128)
    if not isinstance(size, int | float) or (size != -1 and size <= 0):
        yield "group_size", f"found {size!r:.80}, expected -1 or a positive number"
    if config.get("desc_act") and not config.get("static_groups"):
        yield "desc_act", "AutoRound's inference does not reorder inputs"


def _kinds(config: Mapping[str, Any], kind: Any) -> Iterator[Fault]:
    """Yield what vLLM 0.33.0 stops at for a data type: integers, blocks of FP8, or microscaling formats."""
    if not isinstance(kind, str) or not (kind in ("int", "fp") or "mx_fp" in kind):
        yield "data_type", f"found {kind!r:.80}, expected int, fp or an mx_fp type"
        return
    size, bits = config["group_size"], config["bits"]
    pair = isinstance(size, list)
    if not (isinstance(size, int) or (pair and len(size) == 2 and all(isinstance(each, int) for each in size))):
        yield "group_size", f"found {size!r:.80}, expected a whole number, or two for blocks"
        return
    expected: dict[str, Any] = {}
    if kind == "int":
        if pair:
            yield "group_size", f"found {size!r:.80}, expected a whole number for data_type int"
        if config.get("packing_format") not in (None, *INT_FORMATS):
            yield "packing_format", f"found {config['packing_format']!r:.80}, expected one of {', '.join(INT_FORMATS)}"
    elif kind == "fp":
        if bits != 8 or not pair:
            yield "data_type", f"fp requires 8 bits in blocks, found bits {bits!r:.20} and group_size {size!r:.40}"
            return
        expected = {"packing_format": "auto_round:fp8", **_activations(8, size[0], "fp")}
        expected |= {"activation_scheme": "dynamic", "fmt": "e4m3"}
    else:
        if kind == "mx_fp" and (bits not in (4, 8) or size != 32):
            yield (
                "data_type",
                f"mx_fp requires 4 or 8 bits in groups of 32, found bits {bits!r:.20} and group_size {size!r:.40}",
            )
        if kind == "mx_fp":
            expected = {"packing_format": "auto_round:llm_compressor"}
        if bits == 8:
            expected |= _activations(8, 32, "mx_fp")
    if kind in ("fp", "mx_fp"):
        expected |= {"backend": "auto"}
        if not config.get("sym", True):
            yield "sym", f"{kind} requires symmetric weights"
    for key, value in expected.items():
        found = _first(config, ("backend", "vllm_backend") if key == "backend" else (key,), value)
        if found != value and not (key == "packing_format" and found is None):
            yield key, f"found {found!r:.80}, expected {value!r} for data_type {kind}"


def _activations(bits: int, size: int, kind: str) -> dict[str, Any]:
    return {
        "act_bits": bits,
        "act_group_size": size,
        "act_data_type": kind,
        "act_sym": True,
        "act_dynamic": True,
    }
