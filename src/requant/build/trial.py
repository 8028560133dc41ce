"""`trial RECIPE`: the cheapest proof, before anybody pays for a full build, that this machine can do it twice.

On the recipe's own hardware, in its own environment and precision and with its sequence length, a tiny model with few
layers of the base's true width is tuned for a few iterations: once in one go, and once more, stopped after its first
block and resumed. The two must be one, and what they took says what the full build will take.
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from requant.build import build, compare
from requant.build.rebuild import judge
from requant.digest import read_whole
from requant.errors import UsageError
from requant.model.base_config import base_config
from requant.model.plan import FILE as PLAN
from requant.model.rules import SIZES
from requant.model.target import config_of, target_of
from requant.model.tiny import calibration_text
from requant.progress import Progress, Tell, silent
from requant.protocol import Spent
from requant.recipe import FILE, Effort, Recipe, read_recipe
from requant.sandbox.preflight import require_for_trial
from requant.verdict import Outcome, Verdict

SIZE = "wide"
ITERATIONS = 10
STEPS = 2
"""Steps' worth of samples: two, so that batches are drawn from more than what one of them takes."""


@dataclass(frozen=True)
class Projection:
    """What the full build will take, as the trial makes one expect; `hours` of tuning, at most."""

    hours: float
    price: float | None


@dataclass(frozen=True)
class Trial:
    """What a trial found: the verdict on its two builds, and what they took.

    `iteration` is the median of the seconds between two iterations, `block` that of the seconds of a block; memory is
    in bytes, the greater of the two builds. `projection` is None where the tiny model is not of the base's width, or is
    tuned with less than the recipe asks for. `stopped` says how many blocks the second build had when it was stopped.
    """

    size: str
    effort: Effort
    verdict: Verdict
    stopped: int
    iteration: float
    block: float
    peak_memory_bytes: int
    peak_device_memory_bytes: int
    seconds: tuple[float, float]
    projection: Projection | None

    def as_json(self) -> dict[str, Any]:
        """Return the trial as `--json` prints it."""
        facts = {key: value for key, value in asdict(self).items() if key != "verdict"}
        return {**facts, **self.verdict.as_json()}


class _Stopped(Exception):  # noqa: N818 (nothing went wrong)
    """The second build has gone as far as it should."""


def trial(
    recipe: Recipe,
    folder: Path,
    *,
    rehearsal: bool = False,
    size: str = SIZE,
    iterations: int = ITERATIONS,
    price_per_hour: float | None = None,
    sandbox: str = "venv",
    tell: Tell = silent,
) -> Trial:
    """Try the recipe in the empty or new `folder`; a `rehearsal` tunes as the recipe's `[tiny]` does, without a GPU.

    Raises UsageError for a size or a number of iterations that there is not, or a folder that is in use,
    NotAvailableError where this machine is not the recipe's, BuildError where a build fails.
    """
    if size not in SIZES:
        raise UsageError(f"--size {size}: no such tiny model", f"There are {', '.join(SIZES)}.")
    if iterations < 2:
        raise UsageError(f"--iterations {iterations}: expected 2 or more, to see how long one takes")
    if recipe.rounds:
        raise UsageError(
            f"{recipe.path}: nothing is tuned, so no iteration can be timed", "Build its tiny model twice."
        )
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder}: is not empty", "Name a new folder with --work, or remove this one.")
    effort = _effort(recipe, rehearsal, iterations)
    specs = target_of(recipe, size).plan.tensors.values()
    if not rehearsal:
        require_for_trial(recipe, folder, sum(spec.nbytes for spec in specs))
    tried = stand_in(recipe, effort, folder)
    text = long_texts(effort.samples, effort.sequence_length)

    def once(name: str, hear: Tell) -> Spent:
        return build(tried, tiny=size, out=folder / name, text=text, sandbox=sandbox, tell=hear).worker

    first = once("first", tell)
    stopped = 0

    def until_the_first_block(now: Progress) -> None:
        nonlocal stopped
        tell(now)
        if now.stage == "tuning" and 0 < now.done < now.total:
            stopped = now.done
            raise _Stopped

    try:
        second = once("second", until_the_first_block)
    except _Stopped:
        second = once("second", tell)
    paths = folder / "second", folder / "first"
    verdict, _ = judge(compare(tried, size, *paths), *paths)
    if not stopped:
        verdict = _not_resumed(verdict)
    return _measured(recipe, size, effort, verdict, stopped, (first, second), price_per_hour)


def project(recipe: Recipe, tried: Effort, iteration: float, block: float, price_per_hour: float | None) -> Projection:
    """Return what the full build takes, from seconds per `iteration` and per `block` of a trial with `tried` effort.

    What a block takes beside its iterations (two forward passes over all samples, packing) is taken to grow with the
    samples: packing does not, so the hours are an upper bound.
    """
    full = recipe.effort(tiny=False)
    rest = max(0.0, block - tried.iterations * iteration) * full.samples / tried.samples
    blocks = len(target_of(recipe, None).plan.blocks)
    hours = blocks * (full.iterations * iteration + rest) / 3600
    return Projection(hours, None if price_per_hour is None else hours * price_per_hour)


def stand_in(recipe: Recipe, effort: Effort, folder: Path) -> Recipe:
    """Write the recipe into `folder` with `effort` for its tiny model's, beside the same locks and plan; return it."""
    document = tomllib.loads(read_whole(recipe.path).decode())
    document["tiny"] = asdict(effort)
    document["base"]["files"] = str(recipe.beside(recipe.base.files).resolve())
    place = folder / "builds" / recipe.name
    place.mkdir(parents=True)
    (folder / "lockfiles").symlink_to(recipe.lockfiles.resolve())
    (place / PLAN).symlink_to(recipe.beside(PLAN).resolve())
    (place / FILE).write_text(f"# generated by 'requant trial' from {recipe.name}\n{_toml(document)}")
    return read_recipe(place)


def long_texts(samples: int, tokens: int) -> bytes:
    """Return calibration text as JSON lines, `samples` of at least `tokens` bytes each: the tiny model's, joined.

    A byte is a token to the tiny model's tokenizer. Each text begins at another line, so no two are alike.
    """
    lines = [json.loads(line)["text"] for line in calibration_text().splitlines()]
    found = []
    for number in range(samples):
        text, at = "", number
        while len(text.encode()) < tokens:
            text += f"{lines[at % len(lines)]} "
            at += 1
        found.append(json.dumps({"text": text}, ensure_ascii=False))
    return "".join(f"{line}\n" for line in found).encode()


def _measured(
    recipe: Recipe,
    size: str,
    effort: Effort,
    verdict: Verdict,
    stopped: int,
    workers: tuple[Spent, Spent],
    price_per_hour: float | None,
) -> Trial:
    """Sum up what both workers took; times are the first one's, which tuned all blocks in one go."""
    first, second = workers
    iteration, block = median(first.seconds.iterations), median(first.seconds.tuning)
    fits = _is_full_work(recipe, size, effort)
    return Trial(
        size=size,
        effort=effort,
        verdict=verdict,
        stopped=stopped,
        iteration=iteration,
        block=block,
        peak_memory_bytes=max(each.peak_memory_bytes for each in workers),
        peak_device_memory_bytes=max(each.peak_device_memory_bytes for each in workers),
        seconds=(first.seconds.total, second.seconds.total),
        projection=project(recipe, effort, iteration, block, price_per_hour) if fits else None,
    )


def _effort(recipe: Recipe, rehearsal: bool, iterations: int) -> Effort:
    samples = STEPS * recipe.tuning.batch_size * recipe.tuning.gradient_accumulation
    effort = recipe.effort(tiny=rehearsal)
    return replace(effort, iterations=iterations, samples=samples, shards=recipe.tiny.shards)


def _is_full_work(recipe: Recipe, size: str, effort: Effort) -> bool:
    """Whether an iteration of a trial is one of the full build: of the base's width, where and as the recipe says."""
    full = recipe.effort(tiny=False)
    base, tiny = (each.get("text_config", each) for each in (base_config(recipe), config_of(recipe, size)))
    fields = ("hidden_size", "num_experts", "num_experts_per_tok", "moe_intermediate_size", "num_attention_heads")
    more = ("num_key_value_heads", "head_dim", "linear_key_head_dim", "linear_value_head_dim")
    as_asked = replace(effort, iterations=full.iterations, samples=full.samples, shards=full.shards) == full
    return as_asked and all(base.get(field) == tiny.get(field) for field in (*fields, *more))


def _not_resumed(verdict: Verdict) -> Verdict:
    reason = "the second build ended before it could be stopped, so resuming was not tried: ask for more --iterations"
    outcome = Outcome.DIFFERENT if verdict.outcome is Outcome.DIFFERENT else Outcome.INCONCLUSIVE
    return replace(verdict, outcome=outcome, reasons=(*verdict.reasons, reason))


def _toml(document: Mapping[str, Any]) -> str:
    """Write a recipe: texts, numbers and lists of texts, in tables; JSON has the same form for these."""
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in document.items() if not isinstance(value, dict)]
    for name, table in document.items():
        if isinstance(table, dict):
            inside = {f"{name}.{json.dumps(key)}": each for key, each in table.items() if isinstance(each, dict)}
            own = {key: each for key, each in table.items() if not isinstance(each, dict)}
            lines += [f"\n[{name}]\n", _toml(own), _toml(inside)]
    return "".join(lines)
