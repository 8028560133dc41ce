"""Verifiers of signatures that are written in Go, cosign and sigstore-go, as Debian 13 has them (.ci/trixie)."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REQUIRED = "REQUANT_REQUIRE_COSIGN"
"""Environment variable: where it is 1, a test without them fails, because somebody installed them for it."""


def refusal(program: str, *words: Path | str, cwd: Path) -> str:
    """Return what a verifier has against something, nothing where it holds. It is to ask nothing of the network."""
    if not shutil.which(program):
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"no {program}, and {REQUIRED} is 1")
        pytest.skip(f"no {program}: apt-get install cosign sigstore-go, which Debian 13 has")
    nowhere = {"http_proxy": "http://localhost:1", "https_proxy": "http://localhost:1"}
    environment = {"HOME": str(cwd), "PATH": os.environ["PATH"], **nowhere}
    done = subprocess.run([program, *words], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 or (done.returncode == 1 and done.stderr), done
    return done.stderr if done.returncode else ""


def cosign(
    bundle: Path | str, file: Path | str, key: Path | str, predicate: str, root: Path | str, *, cwd: Path
) -> str:
    """Return what cosign has against a file, of which a bundle speaks that was signed with a key.

    It wants a root even so, and would fetch Sigstore's.
    """
    words = ("--key", key, "--insecure-ignore-tlog", "--type", predicate, "--trusted-root", root)
    return refusal("cosign", "verify-blob-attestation", *words, "--bundle", bundle, file, cwd=cwd)
