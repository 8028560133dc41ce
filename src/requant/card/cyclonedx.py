"""A build's bill of materials as CycloneDX 1.7 has it, with a model card: an ML-BOM.

Format: https://cyclonedx.org/docs/1.7/json/, package URLs: https://github.com/package-url/purl-spec. Facts for which
the format has no field are properties `requant:<key>`.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from requant.card.bom import OWN_TEXT, Telling, descent, name, recorded, references, serial, text
from requant.card.facts import Facts
from requant.card.records import Records
from requant.environment.image.sbom import python
from requant.hub.pinned import Pins

KINDS = {"manifest": "build-meta", "journal": "log", "statement": "attestation", "audit": "attestation"}
"""What the format calls what lies beside a checkpoint."""
OF_THE_ENVIRONMENT = ("environment.", "hardware.", "statement.")
_LOSS = re.compile(r"loss\.(\d+)\.(before|after)")


def cyclonedx(records: Records, facts: Facts, repository: str = "") -> str:
    """Return the bill as the text of its file; raise UsageError where no build is recorded.

    `repository` is what the checkpoint is called, `owner/name`.
    """
    build = recorded(records)
    telling = Telling(facts)
    base = _base(records.base, telling, files=not records.tiny)
    calibration = _calibration(telling)
    hardware = {"type": "device", "bom-ref": "hardware", "name": _device(telling)}
    formula = {"bom-ref": "build", "components": [*_packages(records, telling), hardware]}
    model = {
        "type": "machine-learning-model",
        "bom-ref": "checkpoint",
        "name": repository or name(records),
        "version": telling.of("manifest.identity"),
        "modelCard": _model_card(telling),
        "pedigree": {"ancestors": [base], "notes": descent(records)},
        "externalReferences": [
            {"type": KINDS[each.kind], "url": quote(each.file), "hashes": _sha256(each.sha256)}
            for each in references(records)
        ],
        "components": [
            {"type": "file", "bom-ref": f"file/{path}", "name": path, "hashes": _sha256(each.sha256)}
            for path, each in sorted(build.manifest.files.items())
        ],
    }
    if "license.name" in facts:
        model["licenses"] = [{"license": {"name": telling.of("license.name")}}]
    environment = telling.left(*OF_THE_ENVIRONMENT)
    model["properties"] = _properties(telling.left(""))
    value = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.7",
        "version": 1,
        "metadata": {
            "lifecycles": [{"phase": "post-build"}],
            "tools": {"components": [{"type": "application", "name": "requant"}]},
            "component": model,
        },
        "components": [calibration],
        "dependencies": [{"ref": "checkpoint", "dependsOn": ["base", "calibration"]}],
        "compositions": [{"aggregate": "complete", "assemblies": ["checkpoint"]}],
        "formulation": [formula | {"properties": _properties(environment)}],
    }
    return text({**value, "serialNumber": serial(value)})


def _base(pins: Pins, telling: Telling, *, files: bool) -> dict[str, Any]:
    revision, repository = telling.of("base.revision"), telling.of("base.repository")
    made = {
        "type": "machine-learning-model",
        "bom-ref": "base",
        "name": repository,
        "version": revision,
        "purl": f"pkg:huggingface/{quote(repository)}@{revision}",
    }
    held = [
        {"type": "file", "bom-ref": f"base/{path}", "name": path, "hashes": _sha256(each.sha256)}
        for path, each in sorted(pins.files.items())
        if files and each.sha256
    ]
    return made | ({"components": held} if held else {})


def _calibration(telling: Telling) -> dict[str, Any]:
    digest = telling.of("calibration.sha256" if "calibration.sha256" in telling.facts else "statement.text")
    made = {"type": "data", "bom-ref": "calibration", "name": OWN_TEXT, "hashes": _sha256(digest)}
    if "calibration.dataset" in telling.facts:
        made |= {"name": telling.of("calibration.dataset"), "version": telling.of("calibration.revision")}
    return made | {"data": [{"type": "dataset", "name": made["name"]}]}


def _packages(records: Records, telling: Telling) -> Iterator[dict[str, Any]]:
    """Yield the packages of the environment, with their wheels where this lock was used."""
    facts = telling.facts
    pins = {pin.name: pin for pin in records.lock.pins} if "environment.lock" in facts else {}
    for key in sorted(each for each in facts if each.startswith("package.")):
        package, version = key.partition(".")[2], telling.of(key)
        pin = pins.get(package)
        url = f"pkg:pypi/{package}@{quote(version, safe='')}"
        made: dict[str, Any] = {"type": "library", "name": package, "version": version, "purl": url, "bom-ref": url}
        if pin and pin.version == version:
            made = python(package, version, pin.sha256)
        if f"commit.{package}" in facts:
            made["pedigree"] = {"commits": [{"uid": telling.of(f"commit.{package}")}]}
        yield made


def _device(telling: Telling) -> str:
    return telling.of(next(each for each in ("hardware.accelerator", "hardware.device") if each in telling.facts))


def _model_card(telling: Telling) -> dict[str, Any]:
    """Return family and class, what it listened to, and the loss of each block before and after it was tuned."""
    losses = []
    for key in telling.facts:
        if match := _LOSS.fullmatch(key):
            kind = f"mean squared error of a block's output, {match[2]} tuning"
            losses.append({"type": kind, "value": telling.of(key), "slice": f"block {match[1]}"})
    parameters: dict[str, Any] = {"architectureFamily": telling.of("model.type"), "datasets": [{"ref": "calibration"}]}
    if "model.class" in telling.facts:
        parameters["modelArchitecture"] = telling.of("model.class")
    analysis = {"quantitativeAnalysis": {"performanceMetrics": losses}} if losses else {}
    return {"modelParameters": parameters, **analysis}


def _sha256(digest: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": digest}]


def _properties(facts: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": f"requant:{key}", "value": value} for key, value in sorted(facts.items())]
