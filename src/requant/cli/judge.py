"""`requant judge`: compute the steps that a builder has revealed, and hold them against the build's commitments."""

from pathlib import Path
from typing import Annotated

import typer

import requant.audit
from requant.audit import steps
from requant.audit.pool import prepare
from requant.audit.portable import confirm
from requant.audit.references import known
from requant.build import beside
from requant.build.inputs import inputs_for
from requant.build.workplace import scratch
from requant.cli.audit import INSTEAD, Auditor, Record, answer, named_party
from requant.cli.options import (
    VERIFY,
    AsJson,
    BaseOption,
    BundleFile,
    ChallengeFile,
    CheckpointFolder,
    HintsOption,
    IsTiny,
    JournalOption,
    RecipeOption,
    SandboxOption,
    SignKey,
    Size,
    Workers,
    app,
    tiny_size,
)
from requant.cli.sign import outcome_signer
from requant.cli.terminal import progress
from requant.environment.install import cache
from requant.protocol import HINTS
from requant.recipe import read_recipe


@app.command(
    rich_help_panel=VERIFY,
    epilog="Example: requant judge CHECKPOINT response --recipe builds/mine --challenge challenge.json",
)
def judge(
    checkpoint: CheckpointFolder,
    response: Annotated[Path, typer.Argument(help="The folder that the builder has answered with.")],
    recipe: RecipeOption,
    challenge: ChallengeFile,
    base: BaseOption = None,
    journal: JournalOption = None,
    hints: HintsOption = None,
    workers: Workers = 1,
    tiny: IsTiny = False,
    size: Size = None,
    sandbox: SandboxOption = "auto",
    auditor: Auditor = "",
    record: Record = False,
    sign: SignKey = None,
    bundle: BundleFile = None,
    as_json: AsJson = False,
) -> None:
    """Compute the drawn steps of a build in bfloat16 from what its builder has revealed, on whatever hardware."""
    stand_in, read = tiny_size(tiny, size), read_recipe(recipe)
    name = named_party(auditor, record=record)
    reference = known(read, stand_in, checkpoint.absolute(), journal)
    asked = steps.read_challenge(challenge, read, stand_in, reference)
    requant.audit.confirm(read, stand_in, checkpoint, reference, tuple(asked.by_block))
    followed = hints or beside(checkpoint.absolute(), HINTS)
    confirm(followed, reference.lines)
    steps.confirm_response(response, read, stand_in, reference, asked)
    signed = outcome_signer(sign, bundle, checkpoint, "judge")
    with scratch(cache() / "audits") as work, progress() as tell:
        inputs = inputs_for(read, stand_in, base, work, tell, INSTEAD)
        done = steps.judge(
            checkpoint,
            prepare(read, stand_in, inputs, tell, sandbox, portable=True),
            reference,
            asked,
            response,
            hints=followed,
            auditor=name,
            make_pool=requant.audit.local(workers),
            work=work,
            tell=tell,
        )
    answer(read, done, record=record, as_json=as_json, sign=sign, signed=signed)
