"""`requant evaluate`: measure how far a checkpoint's model is from its base's."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from requant.cli.options import HERE, VERIFY, AsJson, SandboxOption, app, environments, recipes
from requant.cli.terminal import confirm_new, out, print_json, progress, say, write_new
from requant.environment import Environment
from requant.environment.lock import lockfiles_of
from requant.errors import UsageError
from requant.recipe import read_recipe


@app.command(rich_help_panel=VERIFY, epilog="Example: requant evaluate out/ec-tiny --base out/base")
def evaluate(
    checkpoint: Annotated[
        str, typer.Argument(help=f"{HERE}; or a GGUF file, or a result that --out wrote.".capitalize())
    ],
    base: Annotated[str, typer.Option(help=f"The base, the unquantized model that it was made from: {HERE}.")] = "",
    text: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Held-out text: JSON lines or Parquet with a column text. Without it, one for tiny models.",
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(metavar="RECIPE", help="Its recipe, whose calibration text is refused.", autocompletion=recipes),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=2, max=4096, help="Sequences to read.", show_default="64; of requant's own text, 32"),
    ] = None,
    length: Annotated[
        int | None, typer.Option(min=2, help="Tokens of each.", show_default="512; of requant's own text, 256")
    ] = None,
    precision: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="In which both models are run.")
    ] = "float32",
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where both models are run.")] = "cpu",
    environment: Annotated[
        str, typer.Option(help="The locked environment that runs them.", autocompletion=environments)
    ] = "cpu",
    sandbox: SandboxOption = "auto",
    against: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The result of another checkpoint of this base, to compare this one with."),
    ] = None,
    out_file: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where to write the result; must not exist.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how far a model is from its base's, on held-out text: divergence, agreement, perplexity, MTP drafts.

    The checkpoint's weights are decoded, and run by the class of the base: docs/evaluate.md.
    """
    import requant.evaluate  # numba, as in check
    from requant.check.gguf import is_gguf
    from requant.check.reader import open_reader
    from requant.evaluate.evaluation import read_evaluation
    from requant.hub.snapshots import folder_of

    if out_file:
        confirm_new(out_file)
    other = read_evaluation(against) if against else None
    if checkpoint.endswith(".json"):
        found = read_evaluation(Path(checkpoint))
    elif not base:
        raise UsageError("--base is missing", "Name the unquantized model that the checkpoint was made from.")
    else:
        usual = requant.evaluate.USUAL if text else requant.evaluate.OWN
        held_out = requant.evaluate.held_out(text, read_recipe(recipe) if recipe else None)
        locked = Environment.load(lockfiles_of(Path(), environment), environment)
        place = Path(checkpoint) if is_gguf(Path(checkpoint)) else folder_of(checkpoint)
        with open_reader(str(place)) as theirs, open_reader(str(folder_of(base))) as ours, progress() as tell:
            found = requant.evaluate.evaluate(
                theirs,
                ours,
                held_out,
                locked,
                samples=samples or usual[0],
                length=length or usual[1],
                precision=precision,
                device=device,
                sandbox=sandbox,
                tell=tell,
            )
    if other:
        found = found.compared(other)
    if out_file:
        write_new(out_file, found.to_text())
        say(f"wrote {escape(str(out_file))}")
    if as_json:
        print_json("requant.evaluation/1", found.as_json())
    else:
        out.lines(map(escape, found.text()))
