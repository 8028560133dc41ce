"""Everything that a Dockerfile takes from elsewhere is seen, and what is not pinned is named by its line."""

import pytest

from requant.pinning.reference import Reference, references

DIGEST = f"sha256:{'5' * 64}"
PINNED = f"python:3.12-slim@{DIGEST}"
COMMIT = "2dda035b275a297464565ba8d4d2cc24ae6a07a9"


def found(text: str) -> list[tuple[str, int, str]]:
    return [(each.name, each.line, each.fault) for each in references(text)]


def test_a_pinned_image_lacks_nothing() -> None:
    assert references(f"# why\n# this one\nFROM {PINNED} AS first\n") == (
        Reference("base image", "python:3.12-slim", DIGEST, 3, "why this one", ""),
    )


@pytest.mark.parametrize(
    ("text", "line", "name", "fault"),
    [
        ("FROM python:3.12", 1, "python:3.12", "a tag without a digest"),
        ("FROM python", 1, "python", "neither a tag nor a digest"),
        ("FROM localhost:5000/python", 1, "localhost:5000/python", "neither a tag nor a digest"),
        ("FROM python@sha256:0123", 1, "python@sha256:0123", "64 hexadecimal digits"),
        (f"FROM python@{DIGEST.upper()}", 1, f"python@{DIGEST.upper()}", "64 hexadecimal digits"),
        ("\n# a note\nfrom  --platform=linux/amd64   python:3.12  as x", 3, "python:3.12", "a tag without a digest"),
        ("FROM \\\n  # a note\n  python:3.12", 1, "python:3.12", "a tag without a digest"),
        ("ARG BASE=python:3.12\nFROM $BASE", 1, "python:3.12", "a tag without a digest"),
        ("ARG BASE='python:3.12'\nFROM ${BASE}", 1, "python:3.12", "a tag without a digest"),
        ("ARG TAG=3.12\nFROM python:$TAG", 2, "python:3.12", "a tag without a digest"),
        ("ARG BASE\nFROM $BASE", 1, "$BASE", "whoever builds chooses"),
        ("FROM $BASE", 1, "$BASE", "whoever builds chooses"),
        (f"ARG BASE={PINNED}\nFROM ${{BASE:-python:3.12}}", 2, "${BASE:-python:3.12}", "whoever builds chooses"),
        (f"FROM {PINNED} AS one\nARG BASE={PINNED}\nFROM $BASE", 3, "$BASE", "whoever builds chooses"),
        (f"FROM {PINNED} AS one\nCOPY --from=busybox:1 /a /b", 2, "busybox:1", "a tag without a digest"),
        (f"FROM {PINNED} AS one\nCOPY --from=1 /a /b", 2, "1", "neither a tag nor a digest"),
        (f"FROM {PINNED}\nCOPY --from=$X /a /b", 2, "$X", "can be any image"),
        (f"FROM {PINNED}\nRUN --mount=type=bind,from=busybox:1,target=/b x", 2, "busybox:1", "a tag without"),
        (f"FROM {PINNED}\nRUN --mount=type=bind,FROM=debian:12,target=/b x", 2, "debian:12", "a tag without"),
        (f'FROM {PINNED}\nRUN --mount=type=bind,"from=debian:12",target=/b x', 2, "debian:12", "a tag without"),
        (f"FROM {PINNED}\nRUN --mount='type=bind,\"from=debian:12\"' x", 2, "debian:12", "a tag without"),
        (f'FROM {PINNED}\nRUN --mount=type=bind,\\"from=debian:12\\" x', 2, "debian:12", "a tag without"),
        (f"FROM {PINNED}\nRUN --mo'unt'=type=bind,fr\\om=debian:12 x", 2, "debian:12", "a tag without"),
        (f"FROM {PINNED}\nRUN --mount=type=bind,\\\nfrom=debian:12 x", 2, "debian:12", "a tag without"),
        (f"FROM {PINNED}\nRUN --mount=type=bind,\\\n# note\n\nfr\\ \nom=debian:12 x", 2, "debian:12", "a tag without"),
        (f"FROM {PINNED}\nRUN --network=none --mount=from=debian:12 x", 2, "debian:12", "a tag without"),
        (f"FROM {PINNED}\nRUN --mount=type=bind,from=0 x", 2, "0", "neither a tag nor a digest"),
        (f"FROM {PINNED}\nCOPY --from='busybox:1' /a /b", 2, "busybox:1", "a tag without a digest"),
        (f'FROM {PINNED}\nRUN --mount=type=bind,"from=x y', 2, '--mount=type=bind,"from=x y', "without an end"),
        (f"FROM {PINNED}\nRUN --mount='a\",from=x' y", 2, "--mount='a\",from=x' y", "no CSV"),
        (f"FROM {PINNED}\nRUN --mount='\"a\"b,from=x' y", 2, "--mount='\"a\"b,from=x' y", "cannot be read"),
        (f"FROM {PINNED}\nRUN --mount='\"from=x' y", 2, "--mount='\"from=x' y", "cannot be read"),
        (f"FROM {PINNED}\nRUN --mount= y", 2, "--mount= y", "no CSV"),
        (f"FROM {PINNED}\nCOPY --from busybox:1 /a /b", 2, "--from busybox:1 /a /b", "--from without a value"),
        ("FROM\tpython:3.12", 1, "python:3.12", "a tag without a digest"),
        ("\ufeffFROM python:3.12", 1, "python:3.12", "a tag without a digest"),
        ("FROM \\\n\n  python:3.12", 1, "python:3.12", "a tag without a digest"),
        (f"FROM {PINNED}\nRUN echo \\\\\nFROM python:3.12", 3, "python:3.12", "a tag without a digest"),
        (f"# check=skip=all\n# syntax=docker/dockerfile:1 x\nFROM {PINNED}", 2, "docker/dockerfile:1", "a tag without"),
        (f"#!/bin/sh\n# syntax=docker/dockerfile:1\nFROM {PINNED}", 2, "docker/dockerfile:1", "a tag without"),
        (f"# syntax=docker/dockerfile:1\nFROM {PINNED}", 1, "docker/dockerfile:1", "a tag without a digest"),
        (f"# escape=`\nFROM {PINNED}", 1, "`", "escape"),
        (f"FROM {PINNED}\nADD https://example.org/a.tar /", 2, "https://example.org/a.tar", "neither commit nor"),
        (f"FROM {PINNED}\nADD https://example.org/a.git#v1 /", 2, "https://example.org/a.git", "neither commit nor"),
        (f"FROM {PINNED}\nADD git@example.org:a.git /", 2, "git@example.org:a.git", "neither commit nor"),
        ("FROM", 1, "", "names no image"),
        ("FROM --platform=linux/amd64", 1, "--platform=linux/amd64", "names no image"),
        (f"FROM {PINNED}\nONBUILD COPY --from=busybox:1 /a /b", 2, "busybox:1", "a tag without a digest"),
        (f"FROM {PINNED}\nRUN cat <<END\nFROM python:3.12", 2, "END", "without an end"),
        (f"FROM {PINNED}\nADD $WHERE /", 2, "$WHERE /", "any address"),
        (f"FROM {PINNED}\nADD here https://example.org/a /", 2, "https://example.org/a", "neither commit nor"),
        (f"FROM {PINNED}\nRUN <<END\nx\nEND\nFROM python:3.12", 5, "python:3.12", "a tag without a digest"),
    ],
)
def test_what_is_not_pinned_is_named(text: str, line: int, name: str, fault: str) -> None:
    (only,) = (each for each in references(f"{text}\n") if each.fault)
    assert (only.line, only.name) == (line, name)
    assert fault in only.fault


@pytest.mark.parametrize(
    "text",
    [
        f"ARG BASE={PINNED}\nFROM $BASE AS base\nFROM base\nCOPY --from=base /a /b\nCOPY --from=0 /a /b",
        f"FROM {PINNED} AS Base\nFROM bAsE AS next\nRUN --mount=type=bind,from=next,target=/a x",
        f"FROM {PINNED}\nRUN <<END\nFROM python:3.12\nEND",
        f"FROM {PINNED}\nRUN echo \\\n  FROM python:3.12",
        f'FROM {PINNED} AS one\nRUN --mount=\\\n# a note\nFrom=ONE,rw \\\n  --mount=type=tmpfs,"target=/a b" x',
        f"FROM {PINNED}\nRUN podman run --mount=type=bind,from=debian:12 x",
        f"FROM {PINNED}\nRUN --mount=type=bind,source=wheels,target=/wheels x",
        f"# syntax=docker/dockerfile:1@{DIGEST}\nFROM {PINNED}",
        f"FROM {PINNED}\n# syntax=docker/dockerfile:1\nADD here there",
        f"FROM scratch\nADD https://example.org/a.git#{COMMIT}:folder /",
        f"FROM scratch\nADD --checksum={DIGEST} https://example.org/a.tar /",
    ],
)
def test_what_is_pinned_is_no_fault(text: str) -> None:
    assert not [each for each in references(f"{text}\n") if each.fault]
    assert [each.by for each in references(f"{text}\n")]


def test_source_code_is_pinned_by_its_commit() -> None:
    (only,) = references(f"FROM scratch\n# why\nADD https://example.org/a.git#{COMMIT} /\n")
    assert only == Reference("git commit", "https://example.org/a.git", COMMIT, 3, "why", "")
