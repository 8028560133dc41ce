"""A recipe: everything that a person asks for and that can change a byte of the checkpoint, complete and strict.

Every key must be there and no other may be: nothing is inherited, defaulted or read from the environment. A key whose
field has a default is there exactly where it says something. The dataclasses below are the whole language.
"""

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

from requant.digest import MAX_TOML, canonical_json, read_whole, sha256
from requant.errors import RecipeError
from requant.toml_tables import read_tables

FILE = "recipe.toml"
NAME = re.compile(r"(?!.{41})[a-z0-9]+(\.[a-z0-9]+|-+[a-z0-9]+)*")
"""A build's name that can stand in names of files, of sessions and of a cluster's objects (RFC 1123)."""
NAMES = "at most 40 lower-case letters and digits, with dots or hyphens between them"


@dataclass(frozen=True)
class Base:
    """The unquantized model: `files` names its pins, relative to the recipe."""

    repository: str
    revision: str
    files: str


SchemeName = Literal["W2A16", "W3A16", "W4A16", "W8A16"]
GroupSize = Literal[-1, 32, 64, 128]
Format = Literal["auto_round:auto_gptq", "auto_round:auto_awq", "auto_round", "auto_gptq", "auto_awq"]


@dataclass(frozen=True)
class Scheme:
    """How a weight is stored: AutoRound's name for its bits, groups along the inputs, the format of the files.

    A `group_size` of -1 is one group per output. Asymmetric codes have a zero point per group.
    """

    name: SchemeName
    symmetric: bool
    group_size: GroupSize
    format: Format

    @property
    def bits(self) -> int:
        """Of a code."""
        return SCHEMES[self.name]

    @property
    def formats(self) -> tuple[Format, ...]:
        """The formats in which such codes can be written, first the one that AutoRound chooses by itself."""
        gptq: tuple[Format, ...] = ("auto_round:auto_gptq", "auto_gptq") if self.symmetric else ()
        awq: tuple[Format, ...] = ("auto_round:auto_awq", "auto_awq") if self.bits == 4 else ()
        return (*gptq, *awq) or ("auto_round",)

    @property
    def fault(self) -> str:
        """Say why AutoRound cannot write this, "" where it can; `unexported` has what one version cannot.

        Source: auto_round/formats.py, export/export_to_autogptq/qlinear_triton.py and
        auto_round_extension/torch/qlinear_torch_zp.py of 0.12.2, which `pack` the latter two of 0.16.1 too.
        """
        if self.format in self.formats:
            return ""
        kind = f"{_kind(self.symmetric)} codes of {self.bits} bits"
        if self.format == "auto_round":
            return f"AutoRound writes {kind} as {self.formats[0]} under this name"
        return AWQ_WIDTH if self.format.endswith("awq") else GPTQ_ZERO


def unexported(format_: Format, bits: int, autoround: str) -> str:
    """Say why a version of AutoRound cannot write codes of so many bits in a format that others can; "" where it can.

    Of 3 bits, versions before 0.16 leave GPTQ's export to AutoGPTQ's package, which no environment has. Source:
    `get_autogptq_packing_qlinear`, auto_round/export/utils.py of 0.12.2 and 0.16.1.
    """
    major, minor, *_ = (int(number) for number in re.findall(r"\d+", autoround))
    if format_ != "auto_gptq" or bits != 3 or (major, minor) >= (0, 16):
        return ""
    return f"AutoRound {autoround} exports no codes of 3 bits, 0.16 does"


AWQ_WIDTH = "AWQ's layout has 4 bits only"
GPTQ_ZERO = "AutoRound cannot store an asymmetric zero point of 0 there: it becomes 1, or changes the ones beside it"


def _kind(symmetric: bool) -> str:
    return "symmetric" if symmetric else "asymmetric"


SCHEMES: Mapping[SchemeName, int] = {"W2A16": 2, "W3A16": 3, "W4A16": 4, "W8A16": 8}
"""The schemes that exist, by AutoRound's name (auto_round/schemes.py, 0.12.2), and their bits."""
DATA_TYPE, SCALE_DTYPE = "int", "float16"
"""What codes and scales of all of them are."""


@dataclass(frozen=True)
class Tuning:
    """What a recipe chooses of AutoRound's arguments; the others are literals in `worker/autoround/tuning.py`.

    At 0 `iterations` nothing is tuned: each weight is rounded to nearest, and `search_scales` says, there alone,
    whether AutoRound seeks scales first (`enable_opt_rtn`) or takes those of the widest weights (`disable_opt_rtn`).
    With `hints` the build writes what an audit on other hardware needs; no byte of the checkpoint depends on it.
    """

    iterations: int
    batch_size: int
    gradient_accumulation: int
    learning_rate: float | Literal["1/iterations"]
    minmax_learning_rate: float | Literal["1/iterations"]
    momentum: float
    seed: int
    precision: Literal["bfloat16", "float32"]
    tune_minmax: bool
    keep_best: bool
    patience: int
    low_gpu_memory: bool
    search_scales: bool | None = None
    hints: bool = False


@dataclass(frozen=True)
class Calibration:
    """The text that the tuning listens to: `files` names its pins; `sequence_length` in tokens."""

    dataset: str
    revision: str
    files: str
    file: str
    samples: int
    sequence_length: int


@dataclass(frozen=True)
class LayerScheme:
    """How layers are stored that have a scheme of their own, in the format of all."""

    name: SchemeName
    symmetric: bool
    group_size: GroupSize

    @property
    def bits(self) -> int:
        """Of a code."""
        return SCHEMES[self.name]

    def fault(self, packing_format: Format) -> str:
        """Say why AutoRound cannot write this in the format of a recipe, "" where it can.

        Source of the first: `save_quantized_as_autoawq`, auto_round/export/export_to_awq/export.py.
        """
        if packing_format == "auto_awq":
            return "none: AWQ's configuration has one scheme for all layers"
        if packing_format.endswith("awq") and self.bits != 4:
            return f"a name of 4 bits: {AWQ_WIDTH}"
        if packing_format.endswith("gptq") and not self.symmetric:
            return f"symmetric: {GPTQ_ZERO}"
        return ""


@dataclass(frozen=True)
class Layers:
    """Layers that are not as `[scheme]` says, each pattern a part of their names.

    `ignore` are those that stay float: AutoRound's `ignore_layers`. `schemes` are those of a scheme of their own:
    AutoRound's `layer_config`. A layer beside the blocks, such as `lm_head`, becomes codes only where it has one.
    """

    ignore: tuple[str, ...]
    schemes: Mapping[str, LayerScheme] = field(default_factory=dict, hash=False)
    """Compared, and no part of a hash: a mapping has none."""


@dataclass(frozen=True)
class Mtp:
    """What becomes of the block that predicts several tokens: copied, rounded to nearest, or tuned as all blocks are.

    `none`: there is none.
    """

    policy: Literal["bf16", "rtn", "calibrated", "none"]


@dataclass(frozen=True)
class Layout:
    """How the main tensors are spread over files."""

    shards: int


@dataclass(frozen=True)
class Hardware:
    """What the recipe runs on; `device` is torch's name for it. What it takes of that is in `ESTIMATES`."""

    device: Literal["cpu", "cuda"]
    accelerator: str
    memory_gib: int
    host_memory_gib: int
    hours: float


@dataclass(frozen=True)
class Tiny:
    """The few values that shrink when the tiny model stands in for the base."""

    environment: str
    device: Literal["cpu", "cuda"]
    precision: Literal["float32", "bfloat16"]
    iterations: int
    samples: int
    sequence_length: int
    shards: int


@dataclass(frozen=True)
class Effort:
    """How much is done, where, for the base or for its tiny model."""

    environment: str
    device: Literal["cpu", "cuda"]
    precision: Literal["bfloat16", "float32"]
    iterations: int
    samples: int
    sequence_length: int
    shards: int


@dataclass(frozen=True)
class Recipe:
    """One build, asked for in full; `digest` is that of the values that can change a byte, so comments may change."""

    path: Path
    digest: str
    environment: str
    base: Base
    scheme: Scheme
    tuning: Tuning
    calibration: Calibration
    layers: Layers
    mtp: Mtp
    layout: Layout
    hardware: Hardware
    tiny: Tiny

    @property
    def rounds(self) -> bool:
        """Whether nothing is tuned."""
        return self.tuning.iterations == 0

    @property
    def name(self) -> str:
        """The name of the build: that of its folder."""
        return self.path.parent.name

    def effort(self, tiny: bool) -> Effort:
        """Return what the base costs, or what its tiny model does."""
        if tiny:
            return Effort(**{field.name: getattr(self.tiny, field.name) for field in fields(Effort)})
        return Effort(
            self.environment,
            self.hardware.device,
            self.tuning.precision,
            self.tuning.iterations,
            self.calibration.samples,
            self.calibration.sequence_length,
            self.layout.shards,
        )

    @property
    def lockfiles(self) -> Path:
        """The folder of the locks: beside the one of all builds."""
        return self.path.resolve().parent.parent.parent / "lockfiles"

    def unused(self) -> str:
        """Name what the tiny model does not use of the recipe, each with what it uses instead: `iterations 400 (6)`.

        What is equal in both is not named; the base is replaced whole.
        """
        full, tiny = self.effort(False), self.effort(True)
        pairs = ((field.name, getattr(full, field.name), getattr(tiny, field.name)) for field in fields(Effort))
        return ", ".join(f"{name.replace('_', ' ')} {asked} ({used})" for name, asked, used in pairs if asked != used)

    def refusal(self, key: str, found: object, allowed: str) -> RecipeError:
        """Return the error that says which value is wrong, and what would do."""
        return RecipeError(f"{self.path}: {key}: found {found!r}, allowed: {allowed}")

    def confirm_export(self, autoround: str) -> None:
        """Raise RecipeError where this version of AutoRound cannot write codes of these widths in this format."""
        for name in (self.scheme.name, *(each.name for each in self.layers.schemes.values())):
            if fault := unexported(self.scheme.format, SCHEMES[name], autoround):
                raise self.refusal("scheme.format", self.scheme.format, f"'auto_round:auto_gptq': {fault}")

    def beside(self, name: str) -> Path:
        """Return the path of a file that the recipe names relative to itself."""
        return self.path.parent / name


ESTIMATES = ("memory_gib", "host_memory_gib", "hours")
"""What `[hardware]` says a build takes. It changes no byte, so the digest leaves it out: a better estimate orphans no
record and no audit."""


def read_recipe(path: Path) -> Recipe:
    """Read `recipe.toml`, or the one in the folder `path`.

    Raises RecipeError, which names file and key, what was found and what is allowed.
    """
    path = path / FILE if path.is_dir() else path
    try:
        document = tomllib.loads(read_whole(path, MAX_TOML).decode())
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}", "Name a folder under builds/, or its recipe.toml.") from None
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{path}: not TOML: {error}") from None
    tables = {field: kind for field, kind in get_type_hints(Recipe).items() if field not in ("path", "digest")}
    values = read_tables(path, tables, document)
    recipe = Recipe(path=path, digest=_digest(document), **values)
    _check(recipe)
    return recipe


def _digest(document: Mapping[str, Any]) -> str:
    hardware = {key: value for key, value in document["hardware"].items() if key not in ESTIMATES}
    return sha256(canonical_json({**document, "hardware": hardware}))


def rounds_mtp(scheme: Scheme) -> bool:
    """Say whether an MTP block can be rounded to nearest in a scheme, as AutoRound does.

    Source: `_woq_quantize_missing_tensors`, auto_round/utils/missing_tensors.py of 0.12.2. Of 2 or 3 bits it makes 4,
    and declares them as what they are not.
    """
    return scheme.format == "auto_round:auto_gptq" and scheme.bits in (4, 8)


def _check(recipe: Recipe) -> None:
    def refuse(key: str, found: object, allowed: str) -> None:
        raise recipe.refusal(key, found, allowed)

    tuning, scheme = recipe.tuning, recipe.scheme
    widths = {each.bits for each in recipe.layers.schemes.values()}
    if not scheme.symmetric and scheme.bits == 4 and widths - {4}:
        if scheme.format != "auto_round":
            refuse(
                "scheme.format", scheme.format, "'auto_round', in which AutoRound mixes 4 asymmetric bits with others"
            )
    elif scheme.fault:
        refuse("scheme.format", scheme.format, f"{' or '.join(map(repr, scheme.formats))}: {scheme.fault}")
    if recipe.mtp.policy == "rtn" and not rounds_mtp(scheme):
        refuse("mtp.policy", "rtn", "'bf16': AutoRound rounds MTP as 'auto_round:auto_gptq' only, and to 4 or 8 bits")
    if recipe.mtp.policy == "calibrated":
        if scheme.format != "auto_round:auto_gptq":
            refuse("mtp.policy", "calibrated", "'bf16': a tuned MTP block is written as 'auto_round:auto_gptq' only")
        if recipe.rounds or tuning.hints:
            refuse("mtp.policy", "calibrated", "'bf16' or 'rtn' with tuning.hints, or with 0 iterations")
    for table in ("tuning", "calibration", "layout", "hardware", "tiny"):
        value = getattr(recipe, table)
        for name in (each.name for each in fields(value)):
            number, key = getattr(value, name), f"{table}.{name}"
            if isinstance(number, int | float) and name not in ("seed", "patience") and number < 0:
                refuse(key, number, "0 or more")
            if number == 0 and name in _AT_LEAST_ONE:
                refuse(key, number, "1 or more")
            if number == 0 and name.endswith("learning_rate"):
                refuse(key, number, "more than 0, for which AutoRound takes a rate of its own")
    if bool(recipe.tiny.iterations) == recipe.rounds:
        allowed = "0, as tuning.iterations is" if recipe.rounds else "1 or more, as tuning.iterations is"
        refuse("tiny.iterations", recipe.tiny.iterations, allowed)
    if recipe.rounds == (tuning.search_scales is None):
        allowed = "true or false" if recipe.rounds else "no such key: scales are searched at 0 iterations only"
        refuse("tuning.search_scales", tuning.search_scales, allowed)
    if tuning.search_scales and not scheme.symmetric:
        refuse("tuning.search_scales", True, "false: AutoRound searches the scales of symmetric codes only")
    for effort, key in ((recipe.calibration, "calibration"), (recipe.tiny, "tiny")):
        step = tuning.batch_size * tuning.gradient_accumulation
        if effort.samples % tuning.batch_size or effort.samples < step:
            refuse(
                f"{key}.samples",
                effort.samples,
                f"a multiple of tuning.batch_size = {tuning.batch_size}, and no fewer than the {step} of one iteration",
            )
    if not 0 <= tuning.seed < 2**32:
        refuse("tuning.seed", tuning.seed, "0 to 4294967295, what numpy accepts")
    if tuning.patience != -1 and (tuning.patience < 1 or not tuning.keep_best):
        refuse("tuning.patience", tuning.patience, "-1, or with keep_best 1 or more: AutoRound takes all else as -1")
    if tuning.hints and (tuning.momentum or tuning.patience != -1 or not tuning.keep_best or recipe.rounds):
        refuse("tuning.hints", True, "with momentum = 0.0, keep_best = true, patience = -1 and 1 or more iterations")
    for pattern, own in recipe.layers.schemes.items():
        if fault := own.fault(scheme.format):
            refuse(f"layers.schemes.{json.dumps(pattern)}", f"{own.name}, {_kind(own.symmetric)}", fault)
    patterns = [("layers.ignore", each) for each in recipe.layers.ignore]
    for key, pattern in (*patterns, *(("layers.schemes", each) for each in recipe.layers.schemes)):
        if not re.fullmatch(r"[\w.]*[a-zA-Z_.]", pattern, re.ASCII):
            refuse(
                key,
                pattern,
                "a part of a layer's name that does not end in a digit (AutoRound adds a dot to it), no expression",
            )


_AT_LEAST_ONE = ("batch_size", "gradient_accumulation", "samples", "sequence_length", "shards")
