"""`verify` against hashing alone: OpenSSL's command, coreutils' and model_signing, on one block of real width.

    python benchmarks/verify.py [FOLDER]

PEERS may name a folder of programs that are not on PATH. Each runs as a process of its own, start to end.
"""

import sys
from pathlib import Path

import layers
import peers

from requant.checkpoint.manifest import make_manifest

SOURCES = Path(__file__).resolve().parents[1] / "src"


def main() -> None:
    """Measure and print."""
    base, _ = layers.write_pair(peers.folder(), 1)
    manifest = Path(f"{base}.manifest.json")
    manifest.write_bytes(make_manifest(base).to_json())
    measured = {
        "openssl dgst -sha256": peers.each_file([base], "openssl", "dgst", "-sha256"),
        "requant verify (python3 -S -m requant.verify)": peers.run(
            ["env", f"PYTHONPATH={SOURCES}", sys.executable, "-S", "-m", "requant.verify", str(base), str(manifest)]
        ),
        "requant manifest": lambda: make_manifest(base),
        "coreutils sha256sum": peers.each_file([base], "sha256sum"),
    }
    if signing := peers.installed("model_signing"):
        key, signature = base.with_name("key.pem"), base.with_name("signature.json")
        peers.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(key)])()
        measured["model_signing sign key"] = peers.run(
            [signing, "sign", "key", str(base), "--private_key", str(key), "--signature", str(signature)]
        )
    medians = peers.compare("verify", peers.size(base), measured)
    ratio = medians["requant verify (python3 -S -m requant.verify)"] / medians["openssl dgst -sha256"]
    peers.told({"verify/openssl": ratio})


if __name__ == "__main__":
    main()
