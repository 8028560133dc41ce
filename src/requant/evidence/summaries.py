"""That a checkpoint was confirmed as its reader required, or was not: a verification summary of SLSA (VSA).

Format: https://slsa.dev/verification_summary/v1 (slsa-framework/slsa, docs/spec/v1.1/verification_summary.md). Whoever
trusts the one who signed it need not look at audits and rebuilds again. Nobody is named in it but by keys, and the
checkpoint by its files.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from requant.digest import canonical_json, sha256
from requant.evidence.outcomes import identity
from requant.evidence.statements import in_toto

SUMMARY = "https://slsa.dev/verification_summary/v1"
POLICY = "urn:requant:confirmed:1"


@dataclass(frozen=True)
class Summary:
    """What was decided of files, path to SHA-256, by which policy, given which statements, name to SHA-256.

    `level` is what a confirmed checkpoint is called, in the summary's word for it; empty for one that is not.
    """

    files: Mapping[str, str]
    policy: Mapping[str, Any]
    inputs: Mapping[str, str]
    level: str
    when: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def result(self) -> str:
        """PASSED or FAILED: here is nothing between."""
        return "PASSED" if self.level else "FAILED"

    def statement(self, key: str) -> bytes:
        """Return the statement as one line of canonical JSON, by the verifier who has the key of this id."""
        digest = {"sha256": sha256(canonical_json(self.policy))}
        predicate = {
            "verifier": {"id": f"urn:requant:verifier:{key}"},
            "timeVerified": f"{self.when:%Y-%m-%dT%H:%M:%SZ}",
            "resourceUri": f"urn:requant:checkpoint:{identity(self.files)}",
            "policy": {"uri": POLICY, "digest": digest, "annotations": self.policy},
            "inputAttestations": [
                {"name": name, "digest": {"sha256": each}} for name, each in sorted(self.inputs.items())
            ],
            "verificationResult": self.result,
            "verifiedLevels": [self.level or "FAILED"],
            "slsaVersion": "1.1",
        }
        return in_toto(self.files, SUMMARY, predicate)
