"""A build's bill of materials as SPDX 3.0.1 has it, in its profiles AI, Dataset, Software and Build: JSON-LD.

Format: https://spdx.github.io/spdx-spec/v3.0.1/. Time of creation is that at which the build ended, for the format
demands one. What the format has no field for are hyperparameters, metrics, and parameters and environment of the build,
by the keys of the card's facts.
"""

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from requant.card.bom import OWN_TEXT, Telling, descent, name, recorded, references, serial, text
from requant.card.facts import Facts
from requant.card.records import Records
from requant.evidence.statements import BUILD_TYPE

CONTEXT = "https://spdx.org/rdf/3.0.1/spdx-context.jsonld"
UNKNOWN_LICENSE = "https://spdx.org/rdf/3.0.1/terms/ExpandedLicensing/NoAssertionLicense"
KINDS = {"manifest": "buildMeta", "journal": "buildMeta", "statement": "secureSoftwareAttestation"}
"""What the format calls what lies beside a checkpoint; an audit is an attestation too."""
HYPERPARAMETERS = ("scheme.", "tuning.", "calibration.", "layers.", "mtp.")
ENVIRONMENT = ("environment.", "hardware.", "package.", "commit.", "statement.")
IDENTIFIERS = {"apache-2.0": "Apache-2.0"}
"""The SPDX identifier of a licence, by the Hub's name."""
_PLACE = "urn:requant:bom#"
"""Stands for the document's namespace until its content is known."""


def spdx(records: Records, facts: Facts, repository: str = "") -> str:
    """Return the bill as the text of its file; raise UsageError where no build is recorded.

    `repository` is what the checkpoint is called, `owner/name`.
    """
    build = recorded(records)
    telling = Telling(facts)
    of = telling.of
    base = {
        **_element("ai_AIPackage", "base", of("base.repository")),
        "software_packageVersion": of("base.revision"),
        "software_packageUrl": f"pkg:huggingface/{quote(of('base.repository'))}@{of('base.revision')}",
        "software_primaryPurpose": "model",
    }
    license_name = of("license.name") if "license.name" in facts else ""
    license_id = IDENTIFIERS.get(license_name)
    listened = _calibration(telling)
    model = {
        **_element("ai_AIPackage", "checkpoint", repository or name(records)),
        "software_packageVersion": of("manifest.identity"),
        "software_primaryPurpose": "model",
        "builtTime": of("statement.finished"),
        "ai_typeOfModel": [of(key) for key in ("model.type", "model.class") if key in facts],
        "externalRef": [
            {
                "type": "ExternalRef",
                "externalRefType": KINDS.get(each.kind, "secureSoftwareAttestation"),
                "locator": [quote(each.file)],
                "comment": f"{each.kind}, SHA-256 {each.sha256}",
            }
            for each in references(records)
        ],
    }
    if losses := telling.left("loss."):
        model["ai_metric"] = _entries(losses)
    made = {
        **_element("build_Build", "build", f"build of {name(records)}"),
        "build_buildType": BUILD_TYPE,
        "build_buildStartTime": of("statement.started"),
        "build_buildEndTime": of("statement.finished"),
        "build_configSourceEntrypoint": ["recipe.toml"],
        "build_configSourceDigest": _sha256(of("build.recipe")),
    }
    model["ai_hyperparameter"] = _entries(telling.left(*HYPERPARAMETERS))
    made["build_environment"] = _entries(telling.left(*ENVIRONMENT))
    made["build_parameter"] = _entries(telling.left(""))
    files = [
        {
            **_element("software_File", f"file/{quote(path)}", path),
            "software_primaryPurpose": "model" if path in build.manifest.weights else "configuration",
            "verifiedUsing": _sha256(each.sha256),
        }
        for path, each in sorted(build.manifest.files.items())
    ]
    licence = {"type": "simplelicensing_LicenseExpression", "spdxId": f"{_PLACE}license", "creationInfo": "_:creation"}
    kinship = "other" if records.tiny else "descendantOf"
    relations = [
        _relation("contains", "checkpoint", [each["spdxId"] for each in files], completeness="complete"),
        _relation(kinship, "checkpoint", [base["spdxId"]], comment=descent(records)),
        _relation("trainedOn", "checkpoint", [listened["spdxId"]]),
        _relation("hasInput", "build", [*([] if records.tiny else [base["spdxId"]]), listened["spdxId"]]),
        _relation("hasOutput", "build", [model["spdxId"]]),
        _relation("hasDeclaredLicense", "base", [licence["spdxId"] if license_id else UNKNOWN_LICENSE]),
        _relation("hasConcludedLicense", "base", [UNKNOWN_LICENSE]),
        _relation("hasDeclaredLicense", "checkpoint", [UNKNOWN_LICENSE]),
        _relation("hasConcludedLicense", "checkpoint", [UNKNOWN_LICENSE]),
    ]
    elements = [model, base, listened, made, *files, *relations]
    if license_id:
        elements.append({**licence, "simplelicensing_licenseExpression": license_id})
    return _document(elements, of("statement.finished"))


def _document(elements: list[dict[str, Any]], created: str) -> str:
    tool = {"type": "Tool", "spdxId": f"{_PLACE}tool", "creationInfo": "_:creation", "name": "requant"}
    agent = {"type": "SoftwareAgent", "spdxId": f"{_PLACE}agent", "creationInfo": "_:creation", "name": "requant"}
    creation = {
        "type": "CreationInfo",
        "@id": "_:creation",
        "specVersion": "3.0.1",
        "created": created,
        "createdBy": [agent["spdxId"]],
        "createdUsing": [tool["spdxId"]],
    }
    document = {
        "type": "SpdxDocument",
        "spdxId": f"{_PLACE}document",
        "creationInfo": "_:creation",
        "profileConformance": ["core", "software", "simpleLicensing", "ai", "dataset", "build"],
        "rootElement": [f"{_PLACE}checkpoint"],
        "element": [each["spdxId"] for each in (agent, tool, *elements)],
    }
    value = {"@context": CONTEXT, "@graph": [creation, document, agent, tool, *elements]}
    return text(value).replace(f'"{_PLACE}', f'"{serial(value)}#')


def _calibration(telling: Telling) -> dict[str, Any]:
    of, known = telling.of, "calibration.dataset" in telling.facts
    digest = of("calibration.sha256" if "calibration.sha256" in telling.facts else "statement.text")
    made = {
        **_element("dataset_DatasetPackage", "calibration", of("calibration.dataset") if known else OWN_TEXT),
        "dataset_datasetType": ["text"],
        "software_primaryPurpose": "data",
        "verifiedUsing": _sha256(digest),
    }
    return made | ({"software_packageVersion": of("calibration.revision")} if known else {})


def _element(kind: str, identifier: str, title: str) -> dict[str, Any]:
    return {"type": kind, "spdxId": f"{_PLACE}{identifier}", "creationInfo": "_:creation", "name": title}


def _relation(kind: str, about: str, to: Iterable[str], **more: str) -> dict[str, Any]:
    return {
        "type": "Relationship",
        "spdxId": f"{_PLACE}{about}/{kind}",
        "creationInfo": "_:creation",
        "relationshipType": kind,
        "from": f"{_PLACE}{about}",
        "to": [*to],
        **more,
    }


def _sha256(digest: str) -> list[dict[str, str]]:
    return [{"type": "Hash", "algorithm": "sha256", "hashValue": digest}]


def _entries(facts: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"type": "DictionaryEntry", "key": key, "value": value} for key, value in sorted(facts.items())]
