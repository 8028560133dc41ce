"""What engines answer and refuse, by a stand-in on PATH that says what they said; real ones where they are here."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Refuses

from requant.environment.image.engine import CHOSEN, DIALECTS, Built, Engine, Limits, find
from requant.environment.image.refusals import REFUSALS, refusal
from requant.errors import BuildError, LockError, NotAvailableError
from requant.programs import run

LIMITS = Limits(memory=110, temporary=8, shared=4)

DOCKER: dict[str, Any] = {
    "ServerVersion": "26.1.5+dfsg1",
    "SecurityOptions": ["name=seccomp,profile=builtin"],
    "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]],
    "ClientInfo": {"Plugins": [{"Name": "buildx", "Version": "0.13.1+ds1"}]},
}
PODMAN: dict[str, Any] = {"version": {"Version": "4.3.1"}, "host": {"security": {"rootless": False}}}

Pretend = Callable[..., None]


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pretend:
    """Put programs on PATH that answer by their first words, and nothing else; status 125 follows what is an error.

    An answer {"--option": text} is written to the file that the option names.
    """
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(CHOSEN, raising=False)

    def pretend(program: str, answers: dict[str, Any]) -> None:
        script = tmp_path / program
        script.write_text(
            f"#!{sys.executable}\nimport json, sys\n"
            f"open({str(tmp_path / 'said')!r}, 'a').write(' '.join(sys.argv[1:]) + chr(10))\n"
            f"for words, answer in json.loads({json.dumps(answers)!r}).items():\n"
            "    if ' '.join(sys.argv[1:]).startswith(words):\n"
            "        if isinstance(answer, str):\n"
            "            sys.stderr.write(answer)\n            raise SystemExit(125)\n"
            "        if isinstance(answer, dict) and (word := next(iter(answer))).startswith('--'):\n"
            "            open(sys.argv[sys.argv.index(word) + 1], 'w').write(answer[word])\n"
            "            raise SystemExit(0)\n"
            "        print(answer['text'] if 'text' in answer else json.dumps(answer))\n        raise SystemExit(0)\n"
            "raise SystemExit('not told: ' + ' '.join(sys.argv))\n"
        )
        script.chmod(0o755)

    return pretend


def test_docker_is_preferred_and_either_may_be_named(pretend: Pretend, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend("docker", {"info": DOCKER})
    pretend("podman", {"info": PODMAN})
    assert str(find()) == "docker 26.1.5+dfsg1"
    assert find("podman") == Engine(("podman",), "podman", "4.3.1", rootless=False)
    monkeypatch.setenv(CHOSEN, "podman")
    assert find().kind == "podman"
    assert find("docker").kind == "docker"


def test_podman_may_be_called_docker(pretend: Pretend) -> None:
    pretend("docker", {"info": PODMAN})
    assert find() == Engine(("docker",), "podman", "4.3.1", rootless=False)


def test_where_docker_does_not_answer_podman_may(pretend: Pretend, refuses: Refuses) -> None:
    pretend("docker", {"info": "Cannot connect to the Docker daemon at unix:///s. Is the docker daemon running?"})
    with refuses(NotAvailableError):
        find()
    pretend("podman", {"info": PODMAN})
    assert find().kind == "podman"


def test_no_engine(pretend: Pretend, refuses: Refuses) -> None:
    with refuses(NotAvailableError):
        find()


@pytest.mark.parametrize(
    ("program", "info"),
    [
        ("docker", {**DOCKER, "ServerVersion": "19.03.15"}),
        ("podman", {**PODMAN, "version": {"Version": "3.4.4"}}),
    ],
)
def test_an_engine_too_old(pretend: Pretend, program: str, info: dict[str, Any], refuses: Refuses) -> None:
    pretend(program, {"info": info})
    with refuses(NotAvailableError):
        find()


def inspected(version: str, driver: str = "docker") -> dict[str, str]:
    return {"text": f"Name:   default\nDriver: {driver}\n\nNodes:\nName: default\nBuildKit version: {version}\n"}


@pytest.mark.parametrize(
    ("info", "builder", "outcome"),
    [
        ({}, inspected("v0.13.2"), "BuildKit v0.13.2 of docker"),
        ({}, inspected("v0.0.0+unknown"), "BuildKit v0.0.0"),  # Debian's, and 26 has 0.13
        ({}, inspected("v0.12.4", "docker-container"), "its BuildKit is v0.12.4, expected 0.13 or newer"),
        ({"ServerVersion": "25.0.3"}, inspected("v0.0.0+unknown"), "its BuildKit is"),
        ({"ClientInfo": {"Plugins": []}}, inspected("v0.13.2"), "lacks buildx"),
        ({"ClientInfo": {"Plugins": None}}, inspected("v0.13.2"), "lacks buildx"),
        ({"DriverStatus": [["Backing Filesystem", "extfs"]]}, inspected("v0.13.2"), "older image store"),
        ({"DriverStatus": None}, inspected("v0.13.2", "docker-container"), "BuildKit v0.13.2 of docker"),
        ({"ServerVersion": "25.0.3"}, inspected("v0.13.2", "docker-container"), "BuildKit v0.13.2 of docker 25"),
    ],
)
def test_a_builder_that_can_fix_times(
    pretend: Pretend, info: dict[str, Any], builder: dict[str, str], outcome: str
) -> None:
    pretend("docker", {"info": DOCKER | info, "buildx inspect": builder})
    engine = find()
    try:
        said = engine.builder()
    except NotAvailableError as error:
        assert error.advice
        said = str(error)
    assert outcome in said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        # Whose words these are, and who has seen them: `environment/image/refusals.py`.
        (
            "no permission",
            "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock: "
            'Get "http://%2Fvar%2Frun%2Fdocker.sock/v1.50/version": dial unix /var/run/docker.sock: connect: '
            "permission denied",
        ),
        ("not running", "Cannot connect to the Docker daemon at unix:///nope. Is the docker daemon running?"),
        (
            "not running",  # docker 29: moby, client/errors.go
            "failed to connect to the docker API at unix:///var/run/docker.sock; check if the path is correct and if "
            "the daemon is running: dial unix /var/run/docker.sock: connect: no such file or directory",
        ),
        (
            "driver too old",  # libnvidia-container, nvc_container.c
            "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=13.0, please update your driver to "
            "a newer version, or use an earlier cuda container: unknown",
        ),
        (
            "no NVIDIA runtime",
            'docker: Error response from daemon: could not select device driver "" with capabilities: [[gpu]]',
        ),
        ("no NVIDIA runtime", "Error: setting up CDI devices: unresolvable CDI devices nvidia.com/gpu=all"),
        (
            "no NVIDIA runtime",  # libnvidia-container, where the driver is not loaded
            "nvidia-container-cli: initialization error: nvml error: driver not loaded: unknown",
        ),
        (
            "no NVIDIA runtime",  # the same, where it is not installed
            "nvidia-container-cli: initialization error: load library failed: libnvidia-ml.so.1: cannot open shared "
            "object file: no such file or directory: unknown",
        ),
        ("disk full", "write /var/lib/docker/tmp/GetImageBlob1: no space left on device"),
        (
            "no buildx",
            "ERROR: BuildKit is enabled but the buildx component is missing or broken.\n"
            "       Install the buildx component to build images with BuildKit:",
        ),
        ("no export", "ERROR: failed to build: Docker exporter is not supported for the docker driver."),
        ("not this host's folder", 'invalid mount config for type "bind": bind source path does not exist: /absent'),
        ("image missing", "docker: Error response from daemon: No such image: x:latest"),
        ("image missing", "Error: nope:1: image not known"),
        ("other bytes", "#9 ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have"),
        ("other bytes", "#9 0.154 /wheelhouse/pip-26.0.1-py3-none-any.whl: FAILED"),
    ],
)
def test_what_engines_say_is_understood(pretend: Pretend, name: str, said: str) -> None:
    known = refusal(said)
    assert known
    assert known.name == name
    pretend("docker", {"info": DOCKER, "load": said})
    with pytest.raises(known.error) as error:
        find().ask("load")
    assert known.message in str(error.value)
    assert error.value.advice == known.advice


STRANGE = ["", "[]", "{}", "null", "[" * 10**5, '{"version": 4}', '{"ServerVersion": "26"}', "\xff"]


@pytest.mark.parametrize("answer", STRANGE)
def test_what_is_no_engine_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, refuses: Refuses
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    program = tmp_path / "docker"
    (tmp_path / "answer").write_bytes(answer.encode("latin-1"))
    said = f"open({str(tmp_path / 'answer')!r}, 'rb').read()"
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.stdout.buffer.write({said})\n")
    program.chmod(0o755)
    with refuses(NotAvailableError, shared=True):
        find()
    program.chmod(0o644)
    with refuses(NotAvailableError, vary="no such program|Permission denied", shared=True):
        find()


BUILT = {"containerimage.config.digest": "sha256:c", "containerimage.digest": "sha256:m", "buildx.build.ref": "x"}


def stored(digest: str) -> list[dict[str, Any]]:
    return [{"Id": digest, "RootFS": {}, "Architecture": "", "Config": {}, "Created": "", "Os": ""}]


def building(engine: Engine, folder: Path, *, cached: bool = True) -> Built:
    return engine.build(folder, folder / "Dockerfile", name="x:1", epoch=7, arguments={}, cached=cached)


@pytest.mark.parametrize(
    ("kind", "found", "has", "lacks"),
    [
        ("docker", "sha256:m", "rewrite-timestamp=true,compression=uncompressed,force-compression=true", "--timestamp"),
        ("docker", "sha256:c", "--provenance=false --sbom=false", "--timestamp"),  # Docker's older store
        ("podman", "c", "--layers --timestamp 7 ", "--provenance"),
    ],
)
def test_how_an_image_is_built(pretend: Pretend, tmp_path: Path, kind: str, found: str, has: str, lacks: str) -> None:
    """No step has a network, times are fixed, nothing new each time is attached; Podman's cache is not used."""
    store = {"load": {"text": "done"}, "image inspect": stored(found)}
    pretend("docker", {"info": DOCKER, "buildx build": {"--metadata-file": json.dumps(BUILT)}, **store})
    pretend("podman", {"info": PODMAN, "build": {"--iidfile": "sha256:c"}, **store})
    for cached in (True, False):
        built = building(find(kind), tmp_path, cached=cached)
        assert (built.config, built.manifest) == ("sha256:c", "sha256:m" if kind == "docker" else None)
    first, second = (line for line in (tmp_path / "said").read_text().splitlines() if "--file" in line)
    for said in (first, second):
        assert " --network none " in said
        assert " --build-arg SOURCE_DATE_EPOCH=7 " in said
        assert has in said
        assert lacks not in said
    assert ("--no-cache" in first) == (kind == "podman")
    assert "--no-cache" in second


@pytest.mark.parametrize("kind", DIALECTS)
@pytest.mark.parametrize("found", [stored("sha256:d"), "No such image: x:1"])
def test_what_is_in_the_store_must_be_what_was_built(
    pretend: Pretend, tmp_path: Path, kind: str, found: Any, refuses: Refuses
) -> None:
    store = {"load": {"text": "done"}, "image inspect": found}
    pretend("docker", {"info": DOCKER, "buildx build": {"--metadata-file": json.dumps(BUILT)}, **store})
    pretend("podman", {"info": PODMAN, "build": {"--iidfile": "sha256:c"}, **store})
    with refuses(LockError):
        building(find(kind), tmp_path)


METADATA = ["", "{", "[]", "[" * 10**5, "{}", json.dumps({**BUILT, "containerimage.digest": 1})]


@pytest.mark.parametrize("said", METADATA, ids=lambda said: said[:2])
def test_metadata_that_name_no_image(pretend: Pretend, tmp_path: Path, said: str, refuses: Refuses) -> None:
    pretend("docker", {"info": DOCKER, "buildx build": {"--metadata-file": said}})
    with refuses(BuildError):
        building(find(), tmp_path)


def test_what_is_not_understood_is_repeated(pretend: Pretend, refuses: Refuses) -> None:
    lost = "the moon is in the wrong phase"
    pretend("docker", {"info": DOCKER, "load": lost, "image inspect": lost, "rm": lost})
    engine = find()
    for ask in (lambda: engine.ask("load"), lambda: engine.image("x"), lambda: engine.remove("x")):
        with refuses(BuildError):
            ask()


def test_every_refusal_has_advice() -> None:
    assert all(each.message and each.advice for each in REFUSALS)
    assert len({each.name for each in REFUSALS}) == len(REFUSALS)


def words(engine: Engine, accelerator: str = "") -> str:
    """The command line that starts a worker, in one string."""
    paths = {"writable": [Path("/out")], "readable": [Path("/base")]}
    return " ".join(
        engine.run_words("image", "name", **paths, variables={"A": "b c"}, limits=LIMITS, accelerator=accelerator)
    )


@pytest.mark.parametrize("kind", DIALECTS)
def test_how_a_worker_is_started(kind: str) -> None:
    said = words(Engine((kind,), kind, "99", rootless=False))
    assert said.startswith(f"{kind} run --rm ")
    for part in (
        "--pull never",
        "--network none",
        "--read-only",
        "--cap-drop ALL",
        "--security-opt no-new-privileges",
        f"--user {os.geteuid()}:{os.getegid()}",
        "--memory 110g",
        "--shm-size 4g",
        "--tmpfs /tmp:rw,exec,size=8g",
        "--mount type=bind,source=/base,target=/base,readonly",
        "--mount type=bind,source=/out,target=/out ",
        "--env A=b c",
    ):
        assert part in said
    assert said.endswith(" image")
    assert "gpu" not in said


@pytest.mark.parametrize(
    ("kind", "gpus"), [("docker", " --gpus device=GPU-7f "), ("podman", " --device nvidia.com/gpu=all ")]
)
def test_how_a_gpu_is_given(kind: str, gpus: str) -> None:
    assert gpus in words(Engine((kind,), kind, "99", rootless=False), accelerator="GPU-7f")


@pytest.mark.parametrize(("kind", "user"), [("docker", "--user 0:0"), ("podman", "--userns keep-id")])
def test_files_are_the_callers_without_root_too(pretend: Pretend, kind: str, user: str) -> None:
    security = {"SecurityOptions": ["name=seccomp", "name=rootless"]}
    info = DOCKER | security if kind == "docker" else {**PODMAN, "host": {"security": {"rootless": True}}}
    pretend(kind, {"info": info})
    said = words(find())
    assert user in said
    assert f"--user {os.geteuid() or 'none'}:" not in said


def test_what_is_writable_stays_so_where_it_is_readable_too() -> None:
    engine = Engine(("docker",), "docker", "99", rootless=False)
    paths = {"writable": [Path("/out")], "readable": [Path("/out"), Path("/base"), Path("/base")]}
    said = engine.run_words("image", "name", **paths, variables={}, limits=LIMITS, accelerator="")
    assert [word for word in said if word.startswith("type=bind")] == [
        "type=bind,source=/out,target=/out",
        "type=bind,source=/base,target=/base,readonly",
    ]


def test_a_real_client_without_its_daemon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refuses: Refuses) -> None:
    if not shutil.which("docker"):
        pytest.skip("no docker client is here")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/socket")
    with refuses(NotAvailableError, vary=r"\n.*(?=\nStart it)"):
        find("docker")


@pytest.mark.engine
def test_a_real_socket_without_the_right(tmp_path: Path) -> None:
    """As another user, from a process of its own: this one needs its rights again."""
    from tests.engines import answering

    answering("docker")
    if os.geteuid() != 0:
        pytest.skip("only root can try another user")
    program = (
        "import os, sys; sys.path[:] = sys.argv[1:]; os.setgroups([]); os.setgid(65534)\n"
        "from requant.environment.image.engine import find\n"
        "from requant.errors import NotAvailableError\nos.setuid(65534)\n"
        "try: find('docker')\nexcept NotAvailableError as error: print(error)\n"
    )
    said = run([sys.executable, "-c", program, *filter(None, sys.path)])
    assert "this user may not speak to the engine" in said
