"""The facts of a build, each under a key, with its value, its unit and the record that has it.

A card says them, and a published card is compared with them. Nothing else may be said: what no record has is no fact.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from requant.card.licenses import FILES, LICENSES
from requant.card.records import EVALUATION, Recorded, Records
from requant.checkpoint.files import SUFFIX
from requant.environment.image.dockerfile import BASES, pinned_base
from requant.model.plan import FILE as PLAN
from requant.model.plan import Specs
from requant.recipe import DATA_TYPE, FILE, SCALE_DTYPE, Recipe

Value = int | float | bool | str | tuple[str, ...] | tuple[int, ...]
Unit = Literal["", "bytes", "seconds", "loss", "measure", "version", "device", "commit"]
PACKAGES = (
    "auto-round",
    "torch",
    "torchvision",
    "transformers",
    "safetensors",
    "huggingface-hub",
    "accelerate",
    "numpy",
)
"""Packages of a lock that a card lists, where they are in it. Compared are all."""


@dataclass(frozen=True)
class Fact:
    """A value and the record it stands in: a file, and where in it.

    `unit` says what a number counts. A `version` is that of a package, a `device` the name of an accelerator, a
    `commit` 40 hexadecimal digits of which a card may give the first.
    """

    value: Value
    source: str
    unit: Unit = ""


Facts = Mapping[str, Fact]


def facts_of(records: Records) -> dict[str, Fact]:
    """Return every fact of a build, by its key, in the order of the records."""
    found = [
        _recipe(records.recipe, records.tiny),
        _pins(records),
        _plan(records),
        _config(records),
        _environment(records),
    ]
    if records.recorded:
        found += [_recorded(records.recorded), _coverage(records), _evaluation(records)]
    return {key: fact for each in found for key, fact in each}


Found = Iterator[tuple[str, Fact]]


def facts_of_record(recipe: Recipe, tiny: str | None, recorded: Recorded | None) -> dict[str, Fact]:
    """Return what a recipe asks for, of the base or of its tiny model of a size, and what is recorded of one build."""
    return dict([*_recipe(recipe, tiny), *(_recorded(recorded) if recorded else ())])


def _recipe(recipe: Recipe, size: str | None) -> Found:
    tiny = size is not None
    effort = recipe.effort(tiny)

    def said(key: str, value: Value, where: str = "", unit: Unit = "") -> tuple[str, Fact]:
        return key, Fact(value, f"{FILE}: {where or key}", unit)

    def at(full: str, name: str) -> str:
        return f"tiny.{name}" if tiny else full

    yield said("build.name", recipe.name, "the name of its folder")
    yield "build.recipe", Fact(recipe.digest, f"{FILE}: the digest of its values")
    if size:
        yield "build.tiny", Fact(size, "the size of the tiny model that was asked for")
    yield said("base.repository", recipe.base.repository)
    yield said("base.revision", recipe.base.revision, unit="commit")
    scheme, tuning, calibration = recipe.scheme, recipe.tuning, recipe.calibration
    yield said("scheme.name", scheme.name)
    yield said("scheme.bits", scheme.bits, "scheme.name")
    yield said("scheme.symmetric", scheme.symmetric)
    yield said("scheme.group_size", scheme.group_size)
    yield said("scheme.format", scheme.format)
    yield said("scheme.data_type", DATA_TYPE, "scheme.name")
    yield said("scheme.scale_dtype", SCALE_DTYPE, "scheme.name")
    yield said("tuning.iterations", effort.iterations, at("tuning.iterations", "iterations"))
    if recipe.rounds:
        yield said("tuning.search_scales", bool(tuning.search_scales))
    else:
        yield said("tuning.tuned", True, "tuning.iterations")
    for name in ("batch_size", "gradient_accumulation", "learning_rate", "minmax_learning_rate", "momentum", "seed"):
        yield said(f"tuning.{name}", getattr(tuning, name))
    yield said("tuning.precision", effort.precision, at("tuning.precision", "precision"))
    for name in ("tune_minmax", "keep_best", "low_gpu_memory", "hints"):
        yield said(f"tuning.{name}", getattr(tuning, name))
    if tuning.patience != -1:
        yield said("tuning.patience", tuning.patience)
    if not tiny:  # a tiny model listens to a text of requant's own
        yield said("calibration.dataset", calibration.dataset)
        yield said("calibration.revision", calibration.revision, unit="commit")
        yield said("calibration.file", calibration.file)
    yield said("calibration.samples", effort.samples, at("calibration.samples", "samples"))
    length = at("calibration.sequence_length", "sequence_length")
    yield said("calibration.sequence_length", effort.sequence_length, length)
    yield said("calibration.tokens", effort.samples * effort.sequence_length, f"{length}, times samples")
    yield said("layers.ignore", recipe.layers.ignore)
    yield said("mtp.policy", recipe.mtp.policy)
    yield said("layout.shards", effort.shards, at("layout.shards", "shards"))
    yield said("hardware.device", effort.device, at("hardware.device", "device"))
    if recipe.hardware.accelerator and effort.device == "cuda":
        yield said("hardware.accelerator", recipe.hardware.accelerator, unit="device")
    if not tiny:
        yield said("hardware.memory_gib", recipe.hardware.memory_gib)
        yield said("hardware.host_memory_gib", recipe.hardware.host_memory_gib)
        yield said("hardware.hours", recipe.hardware.hours)


def _pins(records: Records) -> Found:
    """Yield what is pinned of base and text; a tiny model is made of neither."""
    if records.tiny:
        return
    base, text, calibration = records.base, records.text, records.recipe.calibration
    file = records.recipe.base.files.rpartition("/")[2]
    yield "base.files", Fact(len(base.files), f"{file}: files")
    if all(each.bytes is not None for each in base.files.values()):
        yield "base.files_bytes", Fact(sum(each.bytes or 0 for each in base.files.values()), f"{file}: files", "bytes")
    license_file = next((name for name in FILES if name in base.files), "")
    if license_file and (digest := base.files[license_file].sha256):
        yield "license.file", Fact(license_file, f"{file}: files")
        yield "license.sha256", Fact(digest, f"{file}: files.{license_file}")
        if digest in LICENSES:
            yield "license.name", Fact(LICENSES[digest], f"{file}: files.{license_file}, by its digest")
    pinned = text.files.get(calibration.file)
    if pinned and pinned.sha256:
        pins = calibration.files.rpartition("/")[2]
        yield "calibration.sha256", Fact(pinned.sha256, f"{pins}: files.{calibration.file}")


def _size(specs: Specs) -> int:
    return sum(spec.nbytes for spec in specs.values())


def _plan(records: Records) -> Found:
    target, plan = records.target, records.target.plan

    def said(key: str, value: Value, what: str, unit: Unit = "") -> tuple[str, Fact]:
        return f"plan.{key}", Fact(value, f"{PLAN}: {what}", unit)

    yield said("base_tensors", len(plan.tensors), "tensors")
    yield said("parameters", sum(spec.size for spec in plan.tensors.values()), "tensors")
    yield said("base_bytes", _size(plan.tensors), "tensors", "bytes")
    yield said("tensors", len(target.main) + len(target.extras), "tensors and layers")
    yield said("bytes", _size(target.main) + _size(target.extras), "tensors and layers", "bytes")
    yield said("main_tensors", len(target.main), "tensors and layers")
    yield said("main_bytes", _size(target.main), "tensors and layers", "bytes")
    if target.extras:
        yield said("extra_tensors", len(target.extras), "tensors and layers")
        yield said("extra_bytes", _size(target.extras), "tensors and layers", "bytes")
    yield said("blocks", len(plan.blocks), "blocks")
    yield said("linear_layers", len(plan.layers), "layers")
    yield said("quantized_layers", len(plan.packed), "layers")
    yield said("float_layers", len(plan.layers) - len(plan.packed), "layers")
    if target.mtp:
        yield said("mtp_layers", len(target.mtp), "layers that lie in tensors of MTP")
        yield said("mtp_rounded_layers", len(target.rounded), "layers that lie in tensors of MTP")
    for part, prefix in target.table.extras.items():
        count = sum(name.startswith(prefix) for name in target.extras)
        if count:
            yield said(f"{part}_tensors", count, "tensors and layers")


_CONFIG = {
    "num_experts": "experts",
    "n_routed_experts": "experts",
    "num_experts_per_tok": "experts_per_token",
    "hidden_size": "hidden_size",
    "mtp_num_hidden_layers": "mtp_blocks",
    "num_nextn_predict_layers": "mtp_blocks",
    "max_position_embeddings": "context",
}
"""The facts of a model by the key of its configuration: architectures have two names for two of them."""


def _config(records: Records) -> Found:
    config = records.config
    text = config.get("text_config", config)
    yield "model.type", Fact(str(config.get("model_type")), "config.json: model_type")
    if (classes := config.get("architectures")) and isinstance(classes, list):
        yield "model.class", Fact(str(classes[0]), "config.json: architectures")
    for name, key in _CONFIG.items():
        if type(text.get(name)) is int:
            yield f"model.{key}", Fact(text[name], f"config.json: {name}")
    if type(config.get("vision_config", {}).get("depth")) is int:
        yield "model.visual_blocks", Fact(config["vision_config"]["depth"], "config.json: vision_config.depth")
    kinds = text.get("layer_types")
    if isinstance(kinds, list) and "full_attention" in kinds and len(set(kinds)) > 1:
        full = tuple(number for number, kind in enumerate(kinds) if kind == "full_attention")
        yield "model.full_attention_layers", Fact(full, "config.json: layer_types")


def _environment(records: Records) -> Found:
    lock, stated = records.lock, records.recorded and records.recorded.stated
    file = f"lockfiles/{lock.name}"
    yield "environment.name", Fact(lock.name, FILE)
    if stated and stated.lock != lock.digest:
        return  # it was built with another lock, which says nothing of this one's packages
    yield "environment.python", Fact(lock.python, f"{file}.txt: python", "version")
    yield "environment.platform", Fact(lock.platform, f"{file}.txt: platform")
    yield "environment.cutoff", Fact(lock.cutoff, f"{file}.txt: cutoff")
    yield "environment.lock", Fact(lock.digest, f"{file}.txt: its digest")
    yield "environment.packages", Fact(len(lock.pins), f"{file}.txt")
    for pin in lock.pins:
        yield f"package.{pin.name}", Fact(pin.version, f"{file}.txt", "version")
    for key, value in records.intent.sources:
        if key.endswith(".commit"):
            yield f"commit.{key.removesuffix('.commit')}", Fact(value, f"{file}.in: {key}", "commit")
    base = pinned_base(lock.file.parent, lock.name)
    yield "environment.image", Fact(base.image, f"lockfiles/{BASES}: {lock.name}.image")
    yield "environment.image_digest", Fact(base.digest, f"lockfiles/{BASES}: {lock.name}.digest")


def _recorded(recorded: Recorded) -> Found:
    name, manifest, header, stated = recorded.name, recorded.manifest, recorded.journal.header, recorded.stated
    weights = [path for path in manifest.files if path.endswith(SUFFIX)]
    files = f"{name}.manifest.json: files"
    yield "record.name", Fact(name, "the names of the records")
    yield "manifest.files", Fact(len(manifest.files), files)
    yield "manifest.bytes", Fact(sum(each.bytes for each in manifest.files.values()), files, "bytes")
    yield "manifest.weight_files", Fact(len(weights), files)
    yield "manifest.weight_bytes", Fact(sum(manifest.files[each].bytes for each in weights), files, "bytes")
    yield "manifest.tensors", Fact(len(manifest.tensors), f"{name}.manifest.json: tensors")
    yield "manifest.identity", Fact(manifest.identity, f"{files}, the digest of the weights'")
    journal, statement = f"{name}.journal.jsonl", f"{name}.intoto.jsonl"
    yield "journal.sha256", Fact(recorded.journal_sha256, f"{journal}: its digest")
    yield "journal.blocks", Fact(len(recorded.journal.blocks), journal)
    yield "journal.base", Fact(header.base, f"{journal}: base")
    yield "journal.calibration", Fact(header.calibration, f"{journal}: calibration")
    for number, block in enumerate(recorded.journal.blocks):
        if block.loss:
            for what, hexadecimal in (("before", block.loss.initial), ("after", block.loss.best)):
                yield f"loss.{number}.{what}", Fact(float.fromhex(hexadecimal), f"{journal}: {block.block}", "loss")
    yield "statement.environment", Fact(stated.environment, f"{statement}: environment")
    yield "statement.lock", Fact(stated.lock, f"{statement}: lock")
    yield "statement.text", Fact(stated.text, f"{statement}: calibration")
    yield "statement.requant", Fact(stated.requant, f"{statement}: builder.version", "version")
    yield "statement.sandbox", Fact(str(stated.sandbox.get("kind")), f"{statement}: sandbox.kind")
    yield "statement.started", Fact(stated.started, f"{statement}: startedOn")
    yield "statement.finished", Fact(stated.finished, f"{statement}: finishedOn")
    yield "statement.seconds", Fact(float(stated.seconds), f"{statement}: worker.seconds.total", "seconds")
    yield "statement.peak_memory", Fact(stated.peak_memory_bytes, f"{statement}: peak_memory_bytes", "bytes")
    if stated.peak_device_memory_bytes:
        peak = stated.peak_device_memory_bytes
        yield "statement.peak_device_memory", Fact(peak, f"{statement}: peak_device_memory_bytes", "bytes")
    for package, version in stated.versions.items():
        yield f"package.{package}", Fact(version, f"{statement}: versions", "version")
    device = stated.hardware.get("model") or stated.hardware.get("accelerator")
    if isinstance(device, str):
        yield "hardware.accelerator", Fact(device, f"{statement}: hardware", "device")


def _coverage(records: Records) -> Found:
    covered, file = records.covered, "audits/"
    if covered is None or not covered.decided:
        return
    *blocks, untuned = (each.parties if covered.named else each.claims for each in (*covered.blocks, covered.untuned))
    counted = [each for each in covered.counted.values() if covered.decides(each)]
    yield "audits.counted", Fact(len(counted), file)
    yield "audits.apart", Fact("keys of a list of builders" if covered.named else "the names that they give", file)
    yield "audits.blocks", Fact(sum(each > 0 for each in blocks), file)
    yield "audits.twice", Fact(sum(each > 1 for each in blocks), file)
    yield "audits.negative", Fact(covered.negatives, file)
    yield "audits.untuned", Fact(untuned, file)


def _evaluation(records: Records) -> Found:
    if (found := records.evaluation) is None or records.recorded is None:
        return
    file = f"{records.recorded.name}.{EVALUATION}"
    for name, each in found.measures.items():
        for key, number in (("", each.value), (".low", each.low), (".high", each.high)):
            yield f"evaluation.{name}{key}", Fact(number, f"{file}: measures.{name}{key or '.value'}", "measure")
    for name in ("samples", "length", "precision", "environment"):
        yield f"evaluation.{name}", Fact(getattr(found.settings, name), f"{file}: settings.{name}")
    for name in ("text", "tokens", "reference", "harness"):
        yield f"evaluation.{name}_sha256", Fact(getattr(found.digests, name), f"{file}: digests.{name}")
    if found.activations:
        yield "evaluation.activations", Fact(found.activations, f"{file}: activations")


def text(fact: Fact) -> str:
    """Return a fact's value as a card prints it, before Markdown: `20,891,142,880 bytes (20.89 GB)`."""
    value, unit = fact.value, fact.unit
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    if unit == "bytes" and isinstance(value, int):
        return f"{value:,} bytes{_rounded(value)}"
    if unit == "loss":
        return f"{value:.6f}"
    if unit == "measure":
        return f"{value:.4g}"
    if unit == "seconds":
        return f"{value:,.0f} s"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _rounded(size: int) -> str:
    scale = next((each for each in ((10**9, "GB"), (10**6, "MB")) if size >= each[0]), None)
    return f" ({size / scale[0]:.2f} {scale[1]})" if scale else ""


def as_json(facts: Facts) -> dict[str, dict[str, object]]:
    """Return facts as `--json` prints them."""
    return {key: asdict(fact) for key, fact in facts.items()}


def packages(facts: Facts) -> Iterable[str]:
    """Return the names of the packages that a card lists: those of `PACKAGES` that are there."""
    return (name for name in PACKAGES if f"package.{name}" in facts)
