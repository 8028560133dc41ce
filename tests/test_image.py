"""Images, really built: the same twice, and no longer so without each measure; found again, and never mistaken."""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from tests.conftest import ROOT
from tests.engines import answering
from tests.processes import requant
from tests.test_running import line

import requant.environment.image as imaging
from requant.digest import sha256
from requant.environment import Environment
from requant.environment.identity import worker_sources
from requant.environment.image import build_image, debian_base, ensure_image, epoch_of, repeat_image, set_up
from requant.environment.image import engine as engine_module
from requant.environment.image.dockerfile import write_dockerfiles
from requant.environment.image.engine import DIALECTS, Built, Engine
from requant.environment.image.evidence import Image, evidence_path, image_name, record
from requant.environment.image.refusals import explained
from requant.environment.image.rootfs import differences, read_rootfs
from requant.environment.lock import format_lock, read_intent, read_lock
from requant.errors import BuildError, LockError, NotAvailableError, UsageError
from requant.programs import follow

pytestmark = pytest.mark.engine

PACKAGES = ("attrs", "six")
"""What the small image holds; pip imports attrs where it finds it, and would leave its bytecode."""

Changes = tuple[tuple[str, str], ...]
Project = Callable[..., Path]


@pytest.fixture
def project(tmp_path: Path, builder: Engine) -> Iterator[Project]:
    """Make an environment of two small packages, its Dockerfile changed as told; return its folder of locks."""

    def make(changes: Changes = ()) -> Path:
        folder = tmp_path / "lockfiles"
        folder.mkdir()
        head = "# python = 3.11\n# platform = x86_64-manylinux_2_36\n# cutoff = 2026-04-24T00:00:00Z\n"
        (folder / "tiny.in").write_text(head + "".join(f"{line(f'{name}==')}\n" for name in PACKAGES))
        intent = read_intent(folder, "tiny")
        (folder / "tiny.txt").write_text(format_lock(intent, intent.given))
        for name in ("build-image.in", "build-image.txt"):
            shutil.copy(ROOT / "lockfiles" / name, folder)
        bases = (ROOT / "lockfiles" / "images.toml").read_text()
        (folder / "images.toml").write_text(bases.partition("[cu124]")[0].replace("[cpu]", "[tiny]"))
        (dockerfile,) = write_dockerfiles(folder)
        text = dockerfile.read_text()
        for before, after in changes:
            assert before in text
            text = text.replace(before, after)
        dockerfile.write_text(text)
        return folder

    yield make
    names = builder.ask("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", "requant/tiny").split()
    left = [name for name in names if "requant/tiny:" in name]  # Podman lists an image's other names too
    if left:
        builder.ask("image", "rm", "--force", *left)


def test_built_twice_it_is_one_image(project: Project, builder: Engine, debian: str) -> None:
    folder = project()
    told: list[str] = []
    built = repeat_image(folder, "tiny", builder, base=debian, tell=lambda now: told.append(now.note))
    assert built.differences == ()
    (taint,) = built.image.taints
    assert re.fullmatch(rf"base image: {debian}@sha256:[0-9a-f]{{64}}, instead of the pinned one", taint)
    assert any("pip" in each or "packages" in each for each in told)
    evidence = built.image.evidence
    assert evidence.environment == Environment.load(folder, "tiny").digest
    assert evidence.platform == "linux/amd64"
    assert evidence.overridden
    with pytest.raises(UsageError, match="cannot be recorded: base image"):
        record(folder, built.image, builder)


@pytest.mark.parametrize(
    "words",
    [
        'Error response from daemon: failed to resolve reference "python@sha256:2f": dial tcp: no such host',
        "ERROR: failed to solve: python:3.11@sha256:2f: failed to resolve source metadata for python:3.11@sha256:2f",
        "Error: initializing source docker://python@sha256:2f: pinging container registry: no such host",
        'Error: creating build container: short-name "requant/debian:2f" did not resolve to an alias',
    ],
)
def test_a_base_that_no_registry_gives(words: str) -> None:
    error = explained("the engine", words)
    assert isinstance(error, NotAvailableError)
    assert "--base IMAGE" in error.advice


class NoRegistry:
    """An engine that has no image and reaches no registry."""

    def builder(self) -> str:
        return "none"

    def image(self, reference: str) -> None:
        return None

    def pull(self, reference: str, platform: str) -> None:
        raise explained("the engine", f'failed to resolve reference "{reference}": dial tcp: no such host')


@pytest.mark.parametrize(("name", "advised"), [("cpu", True), ("cu124", False)])
def test_a_debian_base_is_advised_where_apt_has_its_python(
    name: str, advised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian 12, whose Python is 3.11; that of cu124 is 3.12."""

    def apt(words: Sequence[str], **_: object) -> str:
        if "python3.12" in words:
            raise BuildError("N: Unable to locate package python3.12")
        return "Package: python3.11\n"

    monkeypatch.setattr("requant.environment.image.debian.run", apt)
    engine = cast(Engine, NoRegistry())
    with pytest.raises(NotAvailableError) as refused:
        build_image(ROOT / "lockfiles", name, engine)
    assert ("--base debian" in refused.value.advice) == advised
    if not advised:
        fetched = "requant.environment.image.wheels"
        monkeypatch.setattr(fetched, lambda *_, **__: pytest.fail("wheels are fetched for what cannot be built"))
        with pytest.raises(NotAvailableError, match=r"apt does not know python3\.12") as refused:
            build_image(ROOT / "lockfiles", name, engine, base="debian")
        assert "this machine's Debian only" in refused.value.advice


@pytest.mark.full
def test_the_command_says_what_names_the_image(project: Project, builder: Engine, debian: str) -> None:
    words = ("image", "tiny", "--base", debian, "--folder", str(project()))
    done = requant(*words, "--json")
    assert done.returncode == 0, done.stderr
    assert "taint base image: requant/debian:" in done.stderr
    said = json.loads(done.stdout)
    assert said["reference"].startswith("requant/tiny:")
    assert said["rootfs"].startswith("sha256:")
    done = requant(*words, "--record")
    assert done.returncode == UsageError.exit_status
    assert "cannot be recorded" in done.stderr


PYC = "cpython-311.pyc: sha256"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        pytest.param(
            (("UNCHECKED_HASH", "TIMESTAMP"),),
            f"opt/bytecode/opt/environment/lib/python3.11/site-packages/six.{PYC}",
            marks=pytest.mark.full,
        ),
        pytest.param(
            ((" PYTHONDONTWRITEBYTECODE=1\nARG", "\nARG"),),
            f"site-packages/attr/__pycache__/__init__.{PYC}",
            marks=pytest.mark.full,
        ),
        # Either of these two is enough alone: with a date in its environment, Python hashes the source unasked.
        pytest.param(
            ((" --no-compile", ""), ("ARG SOURCE_DATE_EPOCH\n", "")),
            f"opt/environment/lib/python3.11/site-packages/__pycache__/six.{PYC}",
            marks=pytest.mark.full,
        ),
        pytest.param((("USER", "RUN date +%N > /var/log/log\nUSER"),), "var/log/log: sha256", marks=pytest.mark.full),
    ],
    ids=["bytecode with times", "bytecode left by pip", "bytecode as pip compiles it, without a date", "a log"],
)
def test_without_a_measure_it_is_not(
    project: Project, builder: Engine, debian: str, changes: Changes, said: str
) -> None:
    built = repeat_image(project(changes), "tiny", builder, base=debian)
    assert any(each.endswith(said) for each in built.differences), built.differences[:9]
    assert "configuration: RootFS" in built.differences
    assert builder.image(f"{built.image.reference}-again") is None


@pytest.mark.full
def test_without_its_time_it_is_not(
    project: Project, builder: Engine, debian: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(command: Sequence[str], tell: Callable[[str], None]) -> None:
        follow([word.replace("SOURCE_DATE_EPOCH=", "NO_DATE=") for word in command], tell)

    monkeypatch.setattr(engine_module, "follow", forgetful)
    built = repeat_image(project(), "tiny", builder, base=debian)
    assert "configuration: Created" in built.differences
    assert any(each.endswith("six.py: time") for each in built.differences)


def test_what_is_loaded_is_what_was_built(
    project: Project, builder: Engine, debian: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody puts another image in the place of the builder's file before it is loaded."""
    if builder.kind != "docker":
        pytest.skip("Podman builds into its store")
    folder = project()
    reference = image_name(Environment.load(folder, "tiny"))

    def exchanged(command: Sequence[str], tell: Callable[[str], None]) -> None:
        follow(command, tell)
        said = Path(command[command.index("--metadata-file") + 1])
        builder.ask("tag", debian, reference)
        builder.ask("save", "--output", str(said.with_name("image.tar")), reference)
        builder.ask("image", "rm", reference)

    monkeypatch.setattr(engine_module, "follow", exchanged)
    with pytest.raises(LockError, match=rf"{reference}: the engine has sha256:.*, expected sha256:.*, which was built"):
        build_image(folder, "tiny", builder, base=debian)


@pytest.mark.full
def test_an_image_is_found_again_and_never_mistaken(
    project: Project, builder: Engine, debian: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project()
    builds: list[Mapping[str, Any]] = []
    build = Engine.build

    def counted(self: Engine, *words: Any, **options: Any) -> Built:
        builds.append(options)
        return build(self, *words, **options)

    monkeypatch.setattr(Engine, "build", counted)
    made = build_image(folder, "tiny", builder, base=debian)
    assert len(builds) == 1
    assert ensure_image(Environment.load(folder, "tiny"), builder) == made
    assert ensure_image(Environment.load(folder, "tiny"), builder, base=debian) == made
    assert len(builds) == 1

    builder.ask("tag", debian, "requant/tiny:other-base")
    other = ensure_image(Environment.load(folder, "tiny"), builder, base="requant/tiny:other-base")
    assert (other.reference, other.taints) != (made.reference, made.taints)
    assert ensure_image(Environment.load(folder, "tiny"), builder, base=debian) == made
    assert len(builds) == 3
    builds.clear()

    builder.ask("tag", debian, made.reference)  # another image under its name
    assert ensure_image(Environment.load(folder, "tiny"), builder, base=debian) == made
    assert len(builds) == 1

    kept = evidence_path(made.evidence.environment, builder)
    kept.write_text(kept.read_text()[:-9])
    assert ensure_image(Environment.load(folder, "tiny"), builder, base=debian) == made
    assert len(builds) == 2

    def renamed(text: str) -> str:
        (folder / "tiny.in").write_text(text)
        intent = read_intent(folder, "tiny")
        (folder / "tiny.txt").write_text(format_lock(intent, intent.given))
        return image_name(Environment.load(folder, "tiny"))

    asked = (folder / "tiny.in").read_text()
    assert renamed(f"{asked}\n# Another line: the same environment.\n") == made.reference
    edited = renamed(re.sub("(?m)^(# cutoff = 20..-..)-..", r"\1-02", asked))
    assert edited != made.reference
    assert builder.image(edited) is None


@pytest.mark.full
def test_docker_and_podman_make_the_same_files(project: Project) -> None:
    """Their images have other digests; what is in them has one."""
    folder = project()
    lock = read_lock(folder, "tiny")
    digests: dict[str, str] = {}
    for kind in DIALECTS:
        engine = answering(kind)
        engine.builder()
        base = debian_base(lock, engine, scratch := folder / kind)
        digests[kind] = build_image(folder, "tiny", engine, base=base).evidence.rootfs
        shutil.rmtree(scratch)
    assert digests["docker"] == digests["podman"]


@pytest.mark.parametrize("name", ["six", "pip"])
def test_a_wheel_altered_on_its_way_into_the_image(
    project: Project, builder: Engine, debian: str, tmp_path: Path, name: str
) -> None:
    """The host confirms every wheel; the build does so again."""
    folder = project()
    set_up(folder, "tiny", tmp_path / "context")
    (wheel,) = (tmp_path / "context" / "wheelhouse").glob(f"{name}-*.whl")
    data = wheel.read_bytes()
    wheel.unlink()  # it is a link into the cache
    wheel.write_bytes(data + b"\0")
    with pytest.raises(LockError, match=r"six.* from .*\n.*Expected|pip-26\.0\.1-py3-none-any\.whl: FAILED"):
        builder.build(
            tmp_path / "context",
            tmp_path / "Dockerfile.tiny",
            name="requant/altered:test",
            epoch=epoch_of(read_lock(folder, "tiny")),
            arguments={"BASE": debian},
        )


SOURCE = {
    "pyproject.toml": '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n',
    "setup.py": """\
from email.parser import Parser
from pathlib import Path
from setuptools import setup
setup(name="auto-round", version=Parser().parsestr(Path("PKG-INFO").read_text())["Version"], py_modules=["round"])
""",
    "round.py": "ROUND = 1\n",
}


@pytest.mark.full
def test_a_package_built_from_a_folder_is_the_pinned_one_or_none(
    project: Project, builder: Engine, debian: str, tmp_path: Path
) -> None:
    source = tmp_path / "tree"
    source.mkdir()
    for name, text in SOURCE.items():
        (source / name).write_text(text)
    folder = project()
    for name in ("build-auto-round.in", "build-auto-round.txt"):
        shutil.copy(ROOT / "lockfiles" / name, folder)

    def pin(wheel: str) -> None:
        head = "# python = 3.11\n# platform = x86_64-manylinux_2_36\n# cutoff = 2026-04-24T00:00:00Z\n"
        for key, value in read_intent(ROOT / "lockfiles", "cu124").sources:
            head += f"# {key} = {value}\n"
        (folder / "tiny.in").write_text(f"{head}auto-round==7+g2dda --hash=sha256:{wheel}\n")
        intent = read_intent(folder, "tiny")
        (folder / "tiny.txt").write_text(format_lock(intent, intent.given))
        write_dockerfiles(folder)

    pin(64 * "0")
    with pytest.raises(LockError, match=r"auto-round==7.*from") as refused:
        build_image(folder, "tiny", builder, base=debian, source=source)
    (made,) = set(re.findall("Got +([0-9a-f]{64})", str(refused.value)))
    pin(made)
    image = build_image(folder, "tiny", builder, base=debian, source=source)
    with builder.export(image.reference) as stream:
        files = read_rootfs(stream, image.reference).entries
    assert files["opt/environment/lib/python3.11/site-packages/round.py"].sha256 == sha256(SOURCE["round.py"].encode())
    (source / "round.py").write_text("ROUND = 2\n")
    with pytest.raises(LockError, match=r"auto-round==7.*from"):
        build_image(folder, "tiny", builder, base=debian, source=source)


def test_another_worker_is_another_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Environment.load(ROOT / "lockfiles", "cpu").digest
    altered = {path: data + b"EXTRA = 1\n" * path.endswith("tuning.py") for path, data in worker_sources().items()}
    monkeypatch.setattr("requant.environment.identity.worker_sources", lambda: altered)
    assert Environment.load(ROOT / "lockfiles", "cpu").digest != before


@pytest.mark.full
def test_the_tiny_models_image_built_twice(builder: Engine, debian: str) -> None:
    assert repeat_image(ROOT / "lockfiles", "cpu", builder, base=debian).differences == ()


def test_the_tiny_models_image_adds_what_was_copied_alone(image: Image, builder: Engine, debian: str) -> None:
    """No cache, log, account or compiler beside it: everything that the base does not have is below /opt."""
    with builder.export(debian) as stream:
        base = read_rootfs(stream, debian)
    with builder.export(image.reference) as stream:
        rootfs = read_rootfs(stream, image.reference)
    assert f"sha256:{rootfs.digest}" == image.evidence.rootfs
    added = [each.partition(":")[0] for each in differences(base, rootfs)]
    assert {path.split("/")[0] for path in added} == {"opt"}
    below = {path.split("/")[1] for path in added if "/" in path}
    assert below == {"bytecode", "environment", "requant"}
    programs = {path.rpartition("/")[2] for path, entry in rootfs.entries.items() if entry.kind != "folder"}
    assert not programs & {"as", "cc", "c++", "clang", "g++", "gcc", "ld", "pip", "pip3"}
    for path, data in worker_sources().items():
        source = rootfs.entries[f"opt/requant/{path}"]
        assert (source.sha256, source.mode, source.uid) == (sha256(data), 0o644, 0)


def test_the_tiny_models_image_says_what_it_is(image: Image, builder: Engine) -> None:
    lock = read_lock(ROOT / "lockfiles", "cpu")
    stored = builder.image(image.reference)
    assert stored is not None
    labels = stored.configuration["Config"]["Labels"]
    assert labels["requant.lock"] == lock.digest
    assert labels["requant.environment"] == Environment.load(ROOT / "lockfiles", "cpu").digest
    config = json.loads(builder.ask("image", "inspect", "--format", "{{json .Config}}", image.reference))
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["/opt/environment/bin/python", "-s", "-P", "-m", "requant.worker"]
    kept = evidence_path(image.evidence.environment, builder).with_suffix(".cdx.json").read_bytes()
    assert f"sha256:{sha256(kept)}" == image.evidence.sbom
    materials = json.loads(kept)
    names = {each["name"] for each in materials["components"]}
    assert {"libc6", "torch", "requant.worker"} <= names


def test_the_tiny_models_image_imports_its_libraries(image: Image, builder: Engine) -> None:
    words = ["run", "--rm", "--pull", "never", "--network", "none", "--read-only", "--tmpfs", "/tmp"]  # noqa: S108
    script = "import torch, auto_round, sys; print(torch.__version__, sys.flags.safe_path, sys.dont_write_bytecode)"
    words += ["--entrypoint", "/opt/environment/bin/python", image.reference, "-s", "-P", "-c", script]
    assert builder.ask(*words).strip().splitlines()[-1] == "2.13.0+cpu True True"


def test_an_environment_without_an_image(builder: Engine) -> None:
    with pytest.raises(UsageError, match="build-image: has no image; there are cpu, cu124, cu130, current, gb10"):
        imaging.build_image(ROOT / "lockfiles", "build-image", builder)
