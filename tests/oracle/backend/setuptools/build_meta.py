"""A build back end that builds nothing: the metadata is what PKG-INFO says."""

from pathlib import Path


def get_requires_for_build_wheel(config_settings: object = None) -> list[str]:
    return []


def prepare_metadata_for_build_wheel(folder: str, config_settings: object = None) -> str:
    lines = Path("PKG-INFO").read_text(errors="replace").splitlines()
    name, version = (
        next(line[len(key) :] for line in lines if line.startswith(key)) for key in ("Name: ", "Version: ")
    )
    info = Path(folder, f"{name}-{version}.dist-info")
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return info.name
