"""The command line's program, its groups, and the arguments that several commands have."""

import glob
import os
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer
from typer.core import TyperCommand, TyperGroup

from requant.errors import UsageError
from requant.recipe import FILE


def _typeless(params: Any) -> Any:
    """Leave a flag's type out of its help: it says `--json`, where typer would say `--json <bool>`."""
    for each in params:
        if getattr(each, "is_flag", False):
            each.metavar = ""
    return params


class Command(TyperCommand):
    """A command, its flags without a type."""

    def get_params(self, ctx: Any) -> Any:
        """Return the parameters, as click asks for them."""
        return _typeless(super().get_params(ctx))


class Group(TyperGroup):
    """A group of commands, its flags without a type."""

    def get_params(self, ctx: Any) -> Any:
        """Return the parameters, as click asks for them."""
        return _typeless(super().get_params(ctx))


app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: requant build builds/ec --tiny --size mini. Words: docs/glossary.md.",
)

MAKE, VERIFY, PUBLISH, MAINTAIN = "Make", "Verify", "Publish", "Maintain"
"""The headings under which `requant --help` lists the commands."""

CPUS = os.cpu_count() or 1

SizeName = Literal["mini", "demo", "wide"]
"""Sizes of the tiny model, as `model.rules.SIZES` has them."""
SandboxName = Literal["auto", "docker", "podman", "venv", "in-place"]
"""How the worker can be shut in, as `sandbox.choice.SANDBOXES` has it."""


def recipes(incomplete: str) -> list[str]:
    """Return the folders of recipes that complete a half-typed word."""
    beside = (Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent) if incomplete else Path()
    places = beside.glob(f"*/{FILE}"), beside.glob(f"*/*/{FILE}")
    return sorted(name for some in places for path in some if (name := str(path.parent)).startswith(incomplete))


def environments(incomplete: str) -> list[str]:
    """Return the environments that complete a half-typed word."""
    return sorted(path.stem for path in Path("lockfiles").glob(f"{glob.escape(incomplete)}*.in"))


HERE = "a folder, or owner/name@revision in the Hub's cache"
"""What is read whole, and so has to be here."""

AsJson = Annotated[bool, typer.Option("--json", help="Print the result, or the error, as one JSON document.")]
CheckpointFolder = Annotated[
    Path, typer.Argument(help="The checkpoint's folder: .safetensors files, and the files beside them.")
]
CheckpointSource = Annotated[str, typer.Argument(help="A folder, or a repository as owner/name@revision.")]
EnvironmentNames = Annotated[
    list[str] | None,
    typer.Argument(help="Names of environments, such as cpu. Without one, all of them.", autocompletion=environments),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over, even if an interrupted build could be resumed.")]
Lockfiles = Annotated[Path, typer.Option("--folder", help="The folder with the locks and images.toml.")]
BaseOption = Annotated[
    Path | None,
    typer.Option(
        "--base",
        help="The folder of the base, the unquantized model. Without it, it is downloaded (with --tiny: written).",
    ),
]
ChallengeFile = Annotated[
    Path, typer.Option("--challenge", metavar="FILE", help="The challenge, as challenge wrote it.")
]
HintsOption = Annotated[
    Path | None,
    typer.Option("--hints", metavar="FOLDER", help="The build's hints. Without it, CHECKPOINT.hints beside it."),
]
IsTiny = Annotated[
    bool,
    typer.Option("--tiny", help="The checkpoint is a build of the tiny model, the small stand-in for the base."),
]
JournalOption = Annotated[
    Path | None,
    typer.Option(
        "--journal",
        help="The journal of its build. Without it, the recorded one, or else the one beside the checkpoint.",
    ),
]
NewCheckpoint = Annotated[
    Path | None,
    typer.Option(
        "--out", help="The folder to write; it must not exist. Without it, one under out/, which is replaced."
    ),
]
RecipeOption = Annotated[
    Path,
    typer.Option(
        "--recipe",
        metavar="RECIPE",
        help="The recipe that it is a build of: a folder under builds/.",
        autocompletion=recipes,
    ),
]
RecipePath = Annotated[
    Path,
    typer.Argument(metavar="RECIPE", help="A folder under builds/, or its recipe.toml.", autocompletion=recipes),
]
SandboxOption = Annotated[
    SandboxName,
    typer.Option(
        metavar="SANDBOX",
        help="How the worker, the process that tunes, is shut in: "
        f"{', '.join(get_args(SandboxName))} (docs/sandboxes.md).",
    ),
]
SignKey = Annotated[
    str | None,
    typer.Option(
        "--sign", metavar="KEY", help="Sign the outcome, whatever it is, with this key, or keyless: docs/signing.md."
    ),
]
BundleFile = Annotated[
    Path | None,
    typer.Option("--bundle", metavar="FILE", help="With --sign, where to. Without it, beside the checkpoint."),
]
Builders = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Builders and their keys. Without it, builders.toml beside the recipe's folder."),
]
Registry = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="A folder of recorded builds that you trust, and its builders.toml. Without it, builds/."
    ),
]
Require = Annotated[
    int | None,
    typer.Option(min=1, help="Fail unless this many independent builders of the list have confirmed all of it."),
]
Trust = Annotated[
    list[str] | None,
    typer.Option(
        metavar="WHO", help="A builder of the list, or a public key, whose word alone is enough; can be repeated."
    ),
]
Endpoint = Annotated[
    str | None, typer.Option(metavar="URL", help="The address of the Hub. Without it, HF_ENDPOINT or huggingface.co.")
]
Size = Annotated[SizeName | None, typer.Option(help="The size of the tiny model; needs --tiny.", show_default="demo")]
Workers = Annotated[
    int, typer.Option("--workers", min=1, help="Blocks to work on at the same time, each on a CPU thread or a GPU.")
]
Threads = Annotated[int, typer.Option(min=1, help="Number of threads that read and compare.", show_default="all CPUs")]


def tiny_size(tiny: bool, size: SizeName | None) -> str | None:
    """Return the size of the tiny model that is meant, None for the base itself.

    Raises UsageError for a size without --tiny: that would start the full build, which takes hours.
    """
    if size and not tiny:
        raise UsageError(
            "--size needs --tiny", f"Add --tiny: {size} is a size of the tiny model, the small stand-in for the base."
        )
    return (size or "demo") if tiny else None


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"requant {version('requant')}")
        raise typer.Exit


@app.callback()
def _requant(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Build quantized checkpoints that anyone can build again, and verify published ones."""
