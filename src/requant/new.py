"""`new SOURCE --name NAME`: a recipe for a base, with everything that a build of it needs.

What is written stands in a project: a folder with `builds/` and `lockfiles/`, such as a clone of requant or one's own.
The base is a folder or a repository on the Hub. It is read by its headers, config.json and digests; AutoRound is asked
what it would pack (`build.survey`).
"""

import json
import math
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

from requant.build.inputs import LOCAL, cost
from requant.build.survey import ask
from requant.checkpoint.files import is_companion, is_opaque, list_files
from requant.checkpoint.loadable import opened
from requant.checkpoint.manifest import read_file
from requant.digest import canonical_json, sha256
from requant.environment.lock import lockfiles_of, read_lock, shipped
from requant.errors import CheckpointError, RecipeError, UsageError
from requant.hub import web
from requant.hub.pinned import PinnedFile, Pins, read_pins
from requant.hub.repository import listing, named
from requant.hub.stated import stated_pins
from requant.inspect.headers import Headers, read_headers
from requant.inspect.remote import headers_at
from requant.model.plan import FILE, Specs, write_plans
from requant.model.rules import SIZES
from requant.model.shrink import shrink
from requant.model.summary import Summary, summarize
from requant.model.tables import table_of
from requant.model.target import question, target_of
from requant.progress import Progress, Tell, silent
from requant.protocol import BASE
from requant.recipe import FILE as RECIPE
from requant.recipe import (
    NAME,
    NAMES,
    Format,
    GroupSize,
    Recipe,
    Scheme,
    SchemeName,
    read_recipe,
    rounds_mtp,
    unexported,
)
from requant.sandbox.preflight import Cost

Preset = Literal["default", "best", "light", "laptop"]
EnvironmentName = Literal["cpu", "cu124", "cu130", "current", "gb10"]


class Effort(NamedTuple):
    """How much is tuned: iterations of `batch_size` among `samples` calibration samples, of so many tokens each."""

    iterations: int
    samples: int
    learning_rate: str
    sequence_length: int = 2048
    batch_size: int = 8


PRESETS: Mapping[Preset, Effort] = {
    "default": Effort(200, 128, '"1/iterations"'),
    "best": Effort(1000, 512, '"1/iterations"'),
    "light": Effort(50, 128, "0.005"),
    "laptop": Effort(50, 64, "0.005", 512, 2),
}
"""AutoRound's own recipes (`RECIPES`, auto_round/__main__.py of 0.12.2), and one for a machine without a GPU."""

ENVIRONMENTS: Mapping[EnvironmentName, tuple[str, EnvironmentName]] = {
    "cpu": ("", "cpu"),
    "cu124": ("NVIDIA H200", "cpu"),
    "cu130": ("NVIDIA H200", "current"),
    "current": ("", "current"),
    "gb10": ("NVIDIA GB10", "cpu"),
}
"""The accelerator of each environment, "" for a CPU, and the environment of its tiny models: the same AutoRound, or the
nearest release of it."""
TINY_ITERATIONS = 6
"""Iterations of a tiny model, at most."""
NEWEST = "main"
"""The revision of a repository that is meant where none is named; what it stands for now is pinned."""
PILE = "pile-10k"
"""The calibration text where none is given; `builds/datasets/` has its pins."""
GIB = 1 << 30
SHARD = 5 << 30


@dataclass(frozen=True)
class New:
    """What was written for a base, and what a build of it makes and takes."""

    recipe: Recipe
    files: tuple[Path, ...]
    summary: Summary
    cost: Cost


@dataclass(frozen=True)
class _Base:
    """What is known of a base: its files by digest, its config.json and those of its tiny models, and its tensors."""

    pins: Pins
    configs: Mapping[str, Mapping[str, Any]]
    specs: Specs

    @property
    def bytes(self) -> int:
        return sum(spec.nbytes for spec in self.specs.values())


def new(
    source: str,
    name: str,
    project: Path,
    *,
    preset: Preset = "default",
    environment: EnvironmentName = "cu124",
    scheme: SchemeName = "W4A16",
    symmetric: bool = True,
    group_size: GroupSize = 128,
    packing_format: Format | None = None,
    iterations: int | None = None,
    search_scales: bool = True,
    ignore: Sequence[str] = (),
    text: Path | None = None,
    sandbox: str = "venv",
    tell: Tell = silent,
    endpoint: str | None = None,
) -> New:
    """Write `builds/NAME/` of a project for a base: the folder `source`, or else `owner/name[@revision]` on the Hub.

    Of a repository headers and small files are fetched, and no weight; `endpoint` overrides the library's. Without a
    `packing_format` it is the one that AutoRound chooses for the scheme, without `iterations` their number is the
    preset's. At 0 of them weights are rounded, to scales that are searched where codes are symmetric and
    `search_scales` is true. `ignore` are parts of names of layers that stay float. `text` is calibrated on instead of
    the pile, JSON lines or Parquet: it is copied into the project, where every verb finds it.

    Raises UsageError for a name that is taken or cannot be one, for a scheme that AutoRound cannot write in this
    format and for a text that is none, RecipeError for what cannot be asked of this base, and for a config.json that no
    rule shrinks, CheckpointError for a base that cannot be read or is not what the hub states, NotAvailableError for
    the network and refusals, BuildError where AutoRound does not take the model.
    """
    builds = project / "builds"
    if not NAME.fullmatch(name):
        raise UsageError(f"--name {name}: expected {NAMES}")
    if (builds / name).exists():
        raise UsageError(f"{builds / name}: already exists", "Choose another --name, or remove it.")
    stored = _scheme(scheme, symmetric, group_size, packing_format)
    _confirm_export(project, environment, stored)
    mine = _text(text) if text else {}
    base = _folder(Path(source), tell) if Path(source).exists() else _repository(source, endpoint, tell)
    written = [*_brought_along(project, environment)]
    builds.mkdir(parents=True, exist_ok=True)
    digests = {path: PinnedFile(len(data), sha256(data)) for path, data in mine.items()}
    pinned = _local("dataset", name, "a file", digests) if mine else read_pins(builds / "datasets" / f"{PILE}.json")
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=builds) as folder:
        place = Path(folder)
        effort = PRESETS[preset] if iterations is None else PRESETS[preset]._replace(iterations=iterations)
        search = search_scales and symmetric
        values = _values(name, base, effort, environment, stored, ignore, search=search)
        values |= _calibration(name if mine else PILE, pinned)
        (place / RECIPE).write_text(_recipe(values))
        asked = read_recipe(place)
        plans = ask(asked, base.configs, base.specs, sandbox=sandbox, tell=tell)
        write_plans(place / FILE, question(asked), plans)
        config = json.dumps(base.configs[BASE], indent=1, ensure_ascii=False) + "\n"
        beside = {f"bases/{name}.json": base.pins.to_json().encode(), f"bases/{name}.config.json": config.encode()}
        if mine:
            beside |= {f"datasets/{name}.json": pinned.to_json().encode()}
            beside |= {f"datasets/{name}/{path}": data for path, data in mine.items()}
        for path, data in beside.items():
            (builds / path).parent.mkdir(parents=True, exist_ok=True)
            (builds / path).write_bytes(data)
        try:
            target_of(asked, None)
        except RecipeError:
            for path in beside:
                (builds / path).unlink()
            raise
        written += [builds / path for path in beside]
        place.chmod(0o755)
        place.rename(builds / name)
        place.mkdir()  # for the context manager to remove
    recipe = read_recipe(builds / name)
    written += [recipe.path, recipe.beside(FILE)]
    return New(recipe, tuple(written), summarize(recipe), cost(recipe, project))


def _folder(folder: Path, tell: Tell) -> _Base:
    """Return the base in a folder, which has no revision, so its files' digests stand for one."""
    configs, specs, _ = _read(read_headers(folder))
    files = {}
    for path, file in list_files(folder).items():
        tell(Progress("hashing", note=path))
        record, _ = read_file(file, path)
        files[path] = PinnedFile(record.bytes, record.sha256)
    return _Base(_local("model", folder.resolve().name, "a folder", files), configs, specs)


def _local(kind: str, name: str, place: str, files: Mapping[str, PinnedFile]) -> Pins:
    label = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") or "base"
    said = f"Read by requant new from {place}; the revision is the beginning of the digest of all of these."
    revision = sha256(canonical_json({path: vars(file) for path, file in files.items()}))[:40]
    return Pins(kind, f"{LOCAL}{label}", revision, said, files)


def _text(path: Path) -> dict[str, bytes]:
    """Return a calibration text under the name that it gets in a project, which does not tell how its maker calls it.

    The worker takes what ends in `.parquet` as Parquet, and all else as JSON lines (`worker.autoround.calibration`).
    """
    advice = 'Give JSON lines, {"text": "..."} each, or Parquet with a column `text`.'
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"--text {path}: no regular file", advice)  # a pipe would be waited for
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"--text {path}: cannot be read: {error.strerror}", advice) from None
    if path.suffix == ".parquet":
        return {"text.parquet": data}
    for number, line in enumerate(data.splitlines(), 1):
        try:
            told = json.loads(line.decode())["text"]  # the worker reads UTF-8, without a mark of its order
        except (ValueError, TypeError, KeyError, RecursionError):
            told = None
        if not isinstance(told, str):
            raise UsageError(f"--text {path}: line {number} is no JSON object with a text", advice)
    if not data:
        raise UsageError(f"--text {path}: is empty", advice)
    return {"text.jsonl": data}


def _repository(text: str, endpoint: str | None, tell: Tell) -> _Base:
    """Return the base in a repository, at the commit that its revision stands for now.

    Pinned is what counts in a folder too, but for code and weights that are not these: no build downloads them.
    """
    patience = web.Patience()
    found = listing(*named(text, NEWEST), patience, endpoint, stated=True)
    headers = headers_at(found, patience, tell)
    configs, specs, weights = _read(headers)
    beside = [path for path in headers.paths if not (is_companion(path) or is_opaque(path))]
    pins = stated_pins(found, [*weights, *beside], patience, had=headers.sides, tell=tell)
    return _Base(pins, configs, specs)


def _read(headers: Headers) -> tuple[dict[str, Mapping[str, Any]], Specs, list[str]]:
    """Return the config.json of a base and those of its tiny models, its tensors, and the files that hold them."""
    config = headers.object("config.json")
    if config is None:
        raise CheckpointError(f"{headers.name}: no model that transformers knows: it has no config.json")
    if not headers.shards:
        advice = "Convert it first: weights in another format are not opened."
        raise CheckpointError(f"{headers.name}: no base: it has no safetensors files", advice)
    weights = opened([*headers.shards, *headers.paths], headers.sides)
    specs = {name: spec for file in weights for name, spec in headers.shards[file].items()}
    return {BASE: config, **{size: shrink(config, size) for size in SIZES}}, specs, weights


def _brought_along(project: Path, environment: EnvironmentName) -> list[Path]:
    """Copy what a project of one's own lacks: locks, Dockerfiles and the pins of the calibration text."""
    ours = shipped()
    both = {environment, ENVIRONMENTS[environment][1]}
    wanted = [f"lockfiles/{each}.{end}" for each in both for end in ("in", "txt", "files")]
    wanted += [f"Dockerfile.{each}" for each in both]
    wanted += [f"lockfiles/{each.name}" for each in (ours / "lockfiles").glob("build-*")]
    wanted += ["lockfiles/images.toml", f"builds/datasets/{PILE}.json"]
    written = []
    for path in sorted(wanted):
        if not (project / path).exists():
            (project / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ours / path, project / path)
            written.append(project / path)
    return written


def _scheme(name: SchemeName, symmetric: bool, group_size: GroupSize, packing_format: Format | None) -> Scheme:
    chosen = Scheme(name, symmetric, group_size, "auto_round:auto_gptq")
    chosen = replace(chosen, format=packing_format or chosen.formats[0])
    if chosen.fault:
        raise UsageError(f"--format {chosen.format}: {chosen.fault}", f"Choose {' or '.join(chosen.formats)}.")
    return chosen


def _confirm_export(project: Path, environment: EnvironmentName, stored: Scheme) -> None:
    for each in (environment, ENVIRONMENTS[environment][1]):
        lock = read_lock(lockfiles_of(project, each), each)
        if fault := unexported(stored.format, stored.bits, lock.version("auto-round")):
            advice = "Choose auto_round:auto_gptq, or an --environment with it."
            raise UsageError(f"--environment {each}: {stored.format}: {fault}", advice)


def _packed_share(scheme: Scheme) -> float:
    """Return what a checkpoint has of a base's bytes in BF16, roughly: it decides about the number of files only."""
    return scheme.bits / 16 + 0.05


def _hours(size: int, effort: Effort, *, gpu: bool) -> float:
    """Estimate a build, in proportion to the base's bytes and to the tokens of a block's iterations.

    On an H200 that of EC, 9 hours for 71.9 GB and 400 x 8 x 4,096 tokens; on a CPU, where one thread tunes, that of a
    Qwen3-0.6B, 3.5 hours for 1.5 GB and 50 x 2 x 512 tokens, from the first two of its 28 blocks on a busy machine.
    """
    tokens = effort.iterations * effort.batch_size * effort.sequence_length
    share = size * tokens / ((71.9e9 * 400 * 8 * 4096) if gpu else (1.5e9 * 50 * 2 * 512))
    return max(0.1, round((9.0 if gpu else 3.5) * share, 1))


def _calibration(name: str, text: Pins) -> dict[str, Any]:
    (file,) = text.files
    return {"dataset": text.repository, "text_revision": text.revision, "text": name, "text_file": file}


def _values(
    name: str,
    base: _Base,
    effort: Effort,
    environment: EnvironmentName,
    scheme: Scheme,
    ignore: Sequence[str],
    *,
    search: bool,
) -> dict[str, Any]:
    mtp = table_of(base.configs[BASE]).mtp
    has_mtp = mtp is not None and any(each.startswith(mtp.prefix) for each in base.specs)
    accelerator, tiny = ENVIRONMENTS[environment]
    gpu = bool(accelerator)
    memory = math.ceil(1.2 * base.bytes / GIB)
    return {
        "environment": environment,
        "repository": base.pins.repository,
        "revision": base.pins.revision,
        "base": f"../bases/{name}.json",
        "scheme": scheme.name,
        "symmetric": json.dumps(scheme.symmetric),
        "group_size": scheme.group_size,
        "format": scheme.format,
        "iterations": effort.iterations,
        "batch_size": effort.batch_size,
        "rate": effort.learning_rate,
        "samples": effort.samples,
        "sequence_length": effort.sequence_length,
        "precision": "bfloat16" if gpu else "float32",
        "search": "" if effort.iterations else f"\nsearch_scales = {json.dumps(search)}",
        "tiny_iterations": min(effort.iterations, TINY_ITERATIONS),
        "ignore": json.dumps([*ignore, *([mtp.floats] if mtp and has_mtp else [])]),
        "mtp": ("rtn" if rounds_mtp(scheme) else "bf16") if has_mtp else "none",
        "shards": max(1, math.ceil(_packed_share(scheme) * base.bytes / SHARD)),
        "device": "cuda" if gpu else "cpu",
        "accelerator": accelerator,
        "memory": memory if gpu else 0,
        "host_memory": 2 * memory + 4,
        "hours": f"{_hours(base.bytes, effort, gpu=gpu):.1f}",
        "tiny": tiny,
    }


def _recipe(values: Mapping[str, Any]) -> str:
    text = resources.files("requant").joinpath("recipe.toml.template").read_text()
    for key, value in values.items():
        text = text.replace(f"@{key}@", str(value))
    return text
