"""What names an image beside its environment, kept so that it is found again and never mistaken for another."""

from dataclasses import asdict, dataclass
from pathlib import Path

from requant.digest import canonical_json, read_whole, sha256, strict_json
from requant.environment import Environment
from requant.environment.image.engine import Engine
from requant.environment.install import cache
from requant.errors import BuildError, NotAvailableError, UsageError


@dataclass(frozen=True)
class Evidence:
    """How an image was built, and its digests: `environment` as hexadecimal digits, the others as `sha256:…`.

    `rootfs` is the one to compare across engines and builders; `config` and `manifest` repeat with one builder only.
    `base` is what it stands on, `overridden` where that is not the pinned one; `sbom` is of its list of materials.
    """

    environment: str
    name: str
    platform: str
    base: str
    overridden: bool
    rootfs: str
    config: str
    manifest: str | None
    builder: str
    sbom: str

    def to_json(self) -> bytes:
        """Return it as one line of canonical JSON; `read_evidence` inverts it."""
        return canonical_json(asdict(self)) + b"\n"


@dataclass(frozen=True)
class Image:
    """An image in an engine's store; `reference` is its name there."""

    reference: str
    evidence: Evidence

    @property
    def taints(self) -> tuple[str, ...]:
        """What keeps a build in it from being evidence: the base, where it is not the pinned one."""
        return (f"base image: {self.evidence.base}, instead of the pinned one",) if self.evidence.overridden else ()


def image_name(environment: Environment) -> str:
    """Return the name under which an environment's image is stored."""
    return f"requant/{environment.name}:{environment.digest[:16]}"


def evidence_path(environment: str, engine: Engine) -> Path:
    """Return where the evidence of an environment's image is kept; the list of its materials is `.cdx.json` there."""
    return cache() / "images" / f"{environment}.{engine.kind}.json"


def keep(image: Image, engine: Engine, materials: bytes) -> None:
    """Keep the evidence of an image in the cache, and the list of its materials."""
    path = evidence_path(image.evidence.environment, engine)
    path.with_suffix(".cdx.json").write_bytes(materials)
    path.write_bytes(image.evidence.to_json())


def find_image(environment: Environment, engine: Engine) -> Image | None:
    """Return the image that was kept last, if the engine still has it; None where it has none, or another."""
    evidence = read_evidence(evidence_path(environment.digest, engine))
    reference = image_name(environment)
    stored = engine.image(reference)
    if evidence is None or stored is None or stored.id not in (evidence.config, evidence.manifest):
        return None
    return Image(reference, evidence)


def read_evidence(path: Path) -> Evidence | None:
    """Read what was kept; None where nothing is, or not in this version's form: the image is built anew then."""
    try:
        return Evidence(**strict_json(read_whole(path)))
    except (OSError, ValueError, TypeError):
        return None


def record(lockfiles: Path, image: Image, engine: Engine) -> tuple[Path, Path]:
    """Write an image's evidence and the list of its materials beside its lock; return their paths.

    Raises UsageError where the image has a taint, NotAvailableError where no list is kept, BuildError where that is
    not the image's.
    """
    if image.taints:
        raise UsageError(f"{image.reference}: cannot be recorded: {image.taints[0]}", "Build it without --base.")
    kept = evidence_path(image.evidence.environment, engine).with_suffix(".cdx.json")
    try:
        materials = kept.read_bytes()
    except OSError as error:
        raise NotAvailableError(f"{kept}: {error.strerror}", "Build the image again.") from None
    if (found := f"sha256:{sha256(materials)}") != image.evidence.sbom:
        raise BuildError(f"{kept}: found {found}, expected {image.evidence.sbom}", "Build the image again.")
    evidence, beside = (lockfiles / f"{image.evidence.name}.{suffix}.json" for suffix in ("image", "cdx"))
    beside.write_bytes(materials)
    evidence.write_bytes(image.evidence.to_json())
    return evidence, beside
