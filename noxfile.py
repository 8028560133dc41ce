# /// script
# requires-python = ">=3.11"
# dependencies = ["nox>=2025.2.9"]
# ///
"""Sessions name things; what they do is in src/. `nox -l` lists them, arguments follow `--`."""

from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"  # pip, so that pip's own settings hold for everything
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["tests"]

NEWER = (0, 1)
"""Status of an update that was shown: 1 says that there is something newer, which is no failure."""
ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml("pyproject.toml")
PARALLEL = ("--numprocesses=3", "--no-loadscope-reorder")
"""For pytest: on two cores a third process works while tests wait for locks, disks and the network."""


def needs(session: nox.Session, *groups: str) -> None:
    """Install requant with extras and dependency groups, by their names."""
    extras = [name for name in groups if name in PROJECT["project"]["optional-dependencies"]]
    rest = nox.project.dependency_groups(PROJECT, *(name for name in groups if name not in extras))
    session.install("--quiet", "--editable", f".[{','.join(extras)}]" if extras else ".", *rest)


def define_builds(name: str) -> None:
    """Define the sessions `build-<name>` and `rebuild-<name>`."""

    @nox.session(name=f"build-{name}")
    def build(session: nox.Session) -> None:
        needs(session)
        session.run("requant", "build", f"builds/{name}", *session.posargs)

    build.__doc__ = f"Build builds/{name} and compare it with what is recorded; with `-- --tiny`, its tiny model."

    @nox.session(name=f"rebuild-{name}")
    def rebuild(session: nox.Session) -> None:
        needs(session)
        session.run("requant", "rebuild", f"builds/{name}", *session.posargs)

    rebuild.__doc__ = f"Build builds/{name} again and compare bytes and journal; `-- --against FOLDER` with another's."


for recipe in sorted(ROOT.glob("builds/*/recipe.toml")):
    define_builds(recipe.parent.name)


def define_image(name: str) -> None:
    """Define the session `image-<name>`."""

    @nox.session(name=f"image-{name}")
    def image(session: nox.Session) -> None:
        needs(session)
        session.run("requant", "image", name, *session.posargs)

    image.__doc__ = f"Build the image of Dockerfile.{name}; with `-- --twice`, two times, and compare."


for file in sorted(ROOT.glob("Dockerfile.*")):
    define_image(file.suffix[1:])


@nox.session
def tests(session: nox.Session) -> None:
    """Style, types and the tests but those marked `full`; with arguments, pytest alone with these."""
    run_tests(session, "-m", "not full")


@nox.session(name="tests-full")
def tests_full(session: nox.Session) -> None:
    """Style, types and all tests: before a release, and where much has changed."""
    run_tests(session, "--hypothesis-profile", "more")


def run_tests(session: nox.Session, *words: str) -> None:
    """Run style, types and pytest."""
    needs(session, "lint", "lock", "tests", "typecheck")
    if not session.posargs:
        check_style(session)
        check_types(session)
    session.run("pytest", *(session.posargs or (*PARALLEL, *words)))


@nox.session
def reword(session: nox.Session) -> None:
    """Write what tests hear said anew into tests/__snapshots__; `-- tests/test_<module>.py` for some."""
    needs(session, "lock", "tests")
    words = session.posargs or (*PARALLEL, "-m", "not full")
    session.run("pytest", "--snapshot-update", *words)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, and that imports go down."""
    needs(session, "lint")
    check_style(session)


@nox.session
def typecheck(session: nox.Session) -> None:
    """Types, strictly."""
    needs(session, "typecheck")
    check_types(session)


@nox.session
def verify(session: nox.Session) -> None:
    """Verify a checkpoint: `-- CHECKPOINT MANIFEST`."""
    needs(session)
    session.run("requant", "verify", *session.posargs)


@nox.session
def lock(session: nox.Session) -> None:
    """Resolve lockfiles/*.in anew; with `-- --check`, only say whether that would change a lock."""
    needs(session, "lock")
    session.run("requant", "lock", *session.posargs)


@nox.session(name="update-locks")
def update_locks(session: nox.Session) -> None:
    """Show what newer locks would bring: `-- --cutoff 2026-06-01T00:00:00Z`; with `--write`, write them."""
    needs(session, "lock")
    session.run("requant", "update", "locks", *session.posargs, success_codes=NEWER)


@nox.session(name="update-images")
def update_images(session: nox.Session) -> None:
    """Show which base images, or `-- NAME`, have moved on, as a registry says; with `-- --write`, write them."""
    needs(session)
    session.run("requant", "update", "images", *session.posargs, success_codes=NEWER)


@nox.session
def dockerfiles(session: nox.Session) -> None:
    """Write the Dockerfiles from lockfiles/images.toml and the locks."""
    needs(session)
    session.run("requant", "dockerfiles", *session.posargs)


@nox.session
def formats(session: nox.Session) -> None:
    """Write the table of docs/formats.md from the formats and formulas that are modelled."""
    needs(session, "tests")
    session.run("python", "-m", "tests.formats")


@nox.session
def claims(session: nox.Session) -> None:
    """Write into docs/claims.md what `requant card --compare` says of both published cards."""
    needs(session, "tests")
    session.run("python", "-m", "tests.claims")


@nox.session
def flags(session: nox.Session) -> None:
    """Write which flags `vllm serve` has in each modelled release, from their sources."""
    needs(session, "tests")
    session.run("python", "-m", "tests.flags")


@nox.session
def schemas(session: nox.Session) -> None:
    """Write docs/schemas from the types of what requant prints and writes."""
    needs(session, "tests")
    session.run("python", "-m", "tests.schemas")


@nox.session
def quality(session: nox.Session) -> None:
    """Measure what a tuned MTP block and more calibration are worth (docs/quality.md); `-- --train`: train anew."""
    needs(session, "tests")
    seeds = [each for each in session.posargs if each != "--train"]
    if "--train" in session.posargs:
        session.run("python", "benchmarks/quality/run.py", "--train")
    session.run("python", "benchmarks/quality/run.py", *seeds)
    session.run("python", "-m", "tests.quality")


@nox.session
def board(session: nox.Session) -> None:
    """Write the board of builds/ into site/, or extend the one that is there; `-- theirs=FOLDER` adds others'."""
    needs(session)
    session.run("requant", "board", "builds", *session.posargs, "--out", "site")


@nox.session
def pictures(session: nox.Session) -> None:
    """Draw docs/pictures anew: pages of recorded tiny builds, in Debian's Chromium."""
    needs(session, "pictures", "tests")
    session.run("python", "-m", "tests.pictures")


@nox.session
def cpus(session: nox.Session) -> None:
    """Tune a very small tiny model here and on emulated CPUs, and compare the journals; `-- MODEL …` names others."""
    needs(session, "tests")
    session.run("python", "-m", "tests.emulated", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure where a tiny model's build spends its time; docs/benchmarks.md names the other benchmarks."""
    needs(session)
    session.run("python", "benchmarks/build.py", *session.posargs)


def check_style(session: nox.Session) -> None:
    """Run ruff and import-linter."""
    session.run("ruff", "check", "--quiet")
    session.run("ruff", "format", "--check", "--quiet")
    session.run("lint-imports", "--no-cache")


def check_types(session: nox.Session) -> None:
    """Run mypy."""
    session.run("mypy")


if __name__ == "__main__":
    nox.main()
