"""What host and worker tell each other: values, and where in the worker's folder they lie.

    sources/ recipe.toml request.json  what the worker finds: its code, the recipe, and one of `TASKS`
    worker.json                        what it says of itself, a `Report`
    error.json                         why it ended, an `Ended`
    resume/ raw/                       of `Build`: the resume state with its journal, and AutoRound's own output
    passed.jsonl inputs/00003/         of `Replay` and `Connect`: a `Passed` for each block, what a chosen one is given
    jobs/00003/ answers/00003/         of `Tune`: what a block is given, and its record beside what it was packed to
                                       and with hints what came of them, a `Hinted`
    revealed/                          of `Replay`, where steps are to be revealed: the routes of each block
    survey.json                        of `Survey`: `Answers`
    tokens.json logits/ scored/        of `Evaluate`: `Sequences`, the logits of each, and what came of each, a `Scored`

A file or folder appears under its name when it is whole, but for `passed.jsonl`, whose lines do. Standard library only.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeVar

from requant.errors import BuildError
from requant.records import record

REQUEST = "request.json"
REPORT = "worker.json"
ERROR = "error.json"
RESUME = "resume"
JOURNAL = f"{RESUME}/journal.jsonl"
RAW = "raw"
PASSED = "passed.jsonl"
INPUTS, JOBS, ANSWERS = "inputs", "jobs", "answers"
BLOCK = "block.json"
"""In an answer, the block's record as a journal has it."""
HINTS = "hints"
"""In a resume state the folder of all hints, one file for each block; in a job, that file."""
HINTED = "hinted.json"
STEPS = "steps.json"
"""In a job, which iterations are to be opened, `Steps`."""
REVEALED = "revealed"
"""In a job to judge, what was revealed of the block; of a replay to reveal, the routes of each block, by its number."""
DECISIONS = "decisions.safetensors"
SEGMENT = 8
"""Iterations from one state that a build in bfloat16 commits to to the next."""
SURVEY = "survey.json"
TOKENS, LOGITS, SCORED = "tokens.json", "logits", "scored"

LEASH = "REQUANT_LEASH"
"""Environment variable that tells a worker to end when its standard input ends."""

BASE = "base"
"""Among the models of a survey, the base itself, whose files there are."""

Value = TypeVar("Value")


def label(number: int) -> str:
    """Return the name of what belongs to a block, in `inputs/`, `jobs/`, `answers/` and the resume state."""
    return f"{number:05d}"


@dataclass(frozen=True)
class Tuning:
    """What every task that runs the model is given.

    `base` and `text` are paths; `environment` and `base_digest` are digests for the header of the journal.
    `accelerator` is the UUID of the GPU, "" for a CPU. `blocks`, `packed` and the packed layers that are stored in
    their `own` way are the plan's: AutoRound is held against it before it tunes.
    """

    tiny: str | None
    base: str
    text: str
    environment: str
    base_digest: str
    accelerator: str
    blocks: tuple[str, ...]
    packed: tuple[str, ...]
    own: "Mapping[str, Own]"


@dataclass(frozen=True)
class Build:
    """Tune all blocks; what was begun in `resume/` is gone on with."""

    tuning: Tuning


@dataclass(frozen=True)
class Tune:
    """Tune each block whose inputs appear in `jobs/`, until the host ends the worker; a `portable` task by hints."""

    tuning: Tuning
    portable: bool = False


@dataclass(frozen=True)
class Replay:
    """Go through the blocks with the codes of the files `checkpoint`; write what `blocks` are given.

    At most `waiting` of these lie in `inputs/` at a time. `hints` is the folder of the hints to go by, if there is one.
    Where it is to `reveal`, it writes the routes of each block.
    """

    tuning: Tuning
    checkpoint: tuple[str, ...]
    blocks: tuple[int, ...]
    waiting: int
    hints: str | None = None
    reveal: bool = False

    @property
    def portable(self) -> bool:
        """Whether it goes by hints."""
        return self.hints is not None


@dataclass(frozen=True)
class Connect:
    """Hold what a `response` says that `blocks` are given against what the block before each puts out; pass it on.

    Where it does not follow there is a `Hinted` in its place. What else it is told is what `Replay` is.
    """

    tuning: Tuning
    checkpoint: tuple[str, ...]
    blocks: tuple[int, ...]
    waiting: int
    hints: str
    response: str

    @property
    def portable(self) -> bool:
        """Whether it runs without caps: on any hardware."""
        return True


Tensors = Mapping[str, tuple[str, tuple[int, ...]]]
"""Of each tensor, by name, its safetensors dtype and its shape."""


@dataclass(frozen=True)
class Model:
    """A model that is asked about: a folder with its `config.json`, and its files' tensors, None where it has none."""

    config: str
    tensors: Tensors | None


@dataclass(frozen=True)
class Survey:
    """Say what would be done to these models: to `BASE`, and to others of its class."""

    models: Mapping[str, Model]


@dataclass(frozen=True)
class Evaluate:
    """Say of each token of some sequences what a model makes of it; it needs no recipe.

    `model` is a folder with floats only. Without a `reference` it is the reference: its tokenizer makes `samples`
    sequences of `length` tokens from `text`, and its logits are kept. Else `reference` is the folder of the worker that
    did so, and the model is held against these logits. With `mtp` its MTP block drafts. `accelerator` is that of
    `Tuning`.
    """

    model: str
    text: str
    samples: int
    length: int
    precision: str
    device: str
    accelerator: str
    mtp: bool
    reference: str | None = None


Task = Build | Tune | Replay | Connect | Survey | Evaluate
TASKS: dict[str, type[Task]] = {
    "build": Build,
    "tune": Tune,
    "replay": Replay,
    "connect": Connect,
    "survey": Survey,
    "evaluate": Evaluate,
}


@dataclass(frozen=True)
class Seconds:
    """Where a worker's time went: `tuning` block by block, `iterations` the median of each block that had two.

    `resumed` is no time: how many blocks were there already.
    """

    total: float
    preparing: float
    resumed: int = 0
    tuning: tuple[float, ...] = ()
    iterations: tuple[float, ...] = ()
    listening: float = 0.0


@dataclass(frozen=True)
class Spent:
    """What a task took."""

    seconds: Seconds
    peak_memory_bytes: int
    peak_device_memory_bytes: int


@dataclass(frozen=True)
class Report:
    """What a worker says of itself before it tunes; `spent` is known at its end.

    `autoround_version` is what AutoRound states in its output, `absent` the packages that must not be there.
    """

    hardware: Mapping[str, Any]
    versions: Mapping[str, str]
    absent: tuple[str, ...]
    autoround_version: str
    spent: Spent | None = None


@dataclass(frozen=True)
class Passed:
    """A block that a replay has come to: the digests of what it is given, as a journal has them.

    Where hints have `lost` the way to it, why; then what it is given is not known.
    """

    inputs: Mapping[str, str]
    random_state: str
    lost: str = ""


@dataclass(frozen=True)
class Steps:
    """Which iterations of a block are to be opened, in order, and the journal's losses: the first and the best one."""

    opened: tuple[int, ...]
    initial: str
    best: str


@dataclass(frozen=True)
class Hinted:
    """What came of tuning a block by hints; docs/portable.md has the words.

    Of the signs that were `decided`, the hints changed `signs`, and of the routers' choices `routes`. In the first
    iteration they could have changed `free_per_million`; the furthest that they changed took `furthest_percent` of its
    bound. `inconclusive` says why the block could not be followed to its end, `beyond` which decision rounding cannot
    explain.
    """

    decided: int
    signs: int
    routes: int
    free_per_million: int
    furthest_percent: int
    inconclusive: str = ""
    beyond: str = ""


@dataclass(frozen=True)
class Source:
    """Where in the base a layer's weight [out, in] lies, or a bias [out], seen as [out, 1].

    `index` picks a matrix of `tensor`: the expert, in a fused one. Of that matrix, seen in `parts` equal ones of its
    rows, the weight is the one numbered `part`; `interleaved` parts take every n-th row, and of a `transposed` matrix
    columns are meant.
    """

    tensor: str
    index: tuple[int, ...] = ()
    part: int = 0
    parts: int = 1
    interleaved: bool = False
    transposed: bool = False

    @property
    def whole(self) -> bool:
        """Whether it is all of the tensor, as it stands."""
        return not self.index and self.parts == 1 and not self.transposed

    @property
    def plain(self) -> bool:
        """Whether the weight is rows of the tensor, one after the other."""
        return not (self.interleaved or self.transposed)

    def rows(self, out: int) -> slice:
        """Return which rows of the matrix, or of its transpose, a layer of `out` rows is."""
        if self.interleaved:
            return slice(self.part, None, self.parts)
        return slice(self.part * out, (self.part + 1) * out)

    def flat_rows(self, shape: tuple[int, ...], out: int) -> tuple[int, int]:
        """Return the first row and the one after the last, of a tensor of this shape seen as [rows, in]; if plain."""
        matrix = 0
        for number, size in zip(self.index, shape, strict=False):
            matrix = matrix * size + number
        before, rows = matrix * prod(shape[len(self.index) : -1]), self.rows(out)
        return before + rows.start, before + rows.stop


@dataclass(frozen=True)
class Own:
    """How the quantizer packs a layer that is not as the recipe's scheme says; `reason` names the pattern that asks."""

    bits: int
    group_size: int
    symmetric: bool
    reason: str


@dataclass(frozen=True)
class Layer:
    """A linear layer [out, in] as the quantizer sees it; `reason` says why it is not packed, "" where it is.

    `source` is None where the weight is no such part of one tensor, `own` where a packed one is in the recipe's scheme.
    """

    shape: tuple[int, int]
    reason: str
    source: Source | None
    own: Own | None = None

    @property
    def packed(self) -> bool:
        """Whether its weight becomes codes."""
        return not self.reason


@dataclass(frozen=True)
class Answer:
    """What would be done to a model: its `layers` as they lie in its files, `blocks` in the order of tuning.

    `unloaded` are tensors that transformers does not load; `tied` are parameters that others stand for. `elsewhere`
    are tensors of the model that stay float and lie in its files under another name, or in part of one: the bias of an
    expert's layer.
    """

    tensors: Tensors
    blocks: tuple[str, ...]
    layers: Mapping[str, Layer]
    unloaded: tuple[str, ...]
    tied: Mapping[str, str]
    elsewhere: Mapping[str, Source]


@dataclass(frozen=True)
class Answers:
    """What a survey found, and the packages that were asked."""

    versions: Mapping[str, str]
    models: Mapping[str, Answer]


@dataclass(frozen=True)
class Sequences:
    """The held-out sequences: token ids [samples, length], and the SHA-256 of the text that each begins."""

    tokens: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Scored:
    """What a model makes of a sequence of n tokens; lists are of the n - 1 that have a next one.

    `logits` is the SHA-256 of its logits, float32 [n - 1, vocabulary], row-major and little-endian. `unbounded` are
    logits that are no finite numbers: where there are any, lists are empty. `surprises` are negative log likelihoods of
    the next token, in nats. Beside a reference, `divergences` are KL(reference || model) in nats, and `agreed` says
    whether both have the same most likely token. With an MTP block, `drafted` says whether its most likely draft of the
    token after the next is the model's own most likely one there, and `overlaps` is the sum of the lesser of both
    probabilities: how often speculative sampling keeps the draft.
    """

    logits: str
    unbounded: int
    surprises: tuple[float, ...] = ()
    divergences: tuple[float, ...] = ()
    agreed: tuple[bool, ...] = ()
    drafted: tuple[bool, ...] = ()
    overlaps: tuple[float, ...] = ()


@dataclass(frozen=True)
class Ended:
    """Why a worker ended, and what the reader can do about it."""

    message: str
    advice: str


def ask(folder: Path, task: Task) -> None:
    """Write what is asked of the worker of a folder; `asked` inverts it."""
    kind = next(name for name, each in TASKS.items() if type(task) is each)
    (folder / REQUEST).write_text(json.dumps({"task": kind, **asdict(task)}))


def asked(folder: Path) -> Task:
    """Return what is asked of the worker of a folder. Raises BuildError where that is none of `TASKS`."""
    try:
        value = json.loads((folder / REQUEST).read_text())
        return record(TASKS[value.pop("task")], value)
    except (AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        raise BuildError(f"{folder / REQUEST}: no task of this requant's worker: {error!r}") from None


def write(path: Path, value: Any) -> None:
    """Write a dataclass as JSON; `read` inverts it."""
    part = path.with_name(f".{path.name}")
    part.write_text(json.dumps(asdict(value)))
    part.rename(path)


def read(path: Path, kind: type[Value]) -> Value:
    """Return what `write` wrote. Raises BuildError where it cannot be read, or is not this dataclass."""
    try:
        return record(kind, json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise BuildError(f"{path}: not what a worker of this requant says: {error}") from None


def say_passed(folder: Path, line: Passed) -> None:
    """Add a block that a replay has come to; `passed` reads it."""
    with (folder / PASSED).open("a") as file:
        file.write(json.dumps(asdict(line)) + "\n")


def passed(folder: Path) -> tuple[Passed, ...]:
    """Return the blocks that a replay has come to by now, in order. Raises BuildError for a line that is none."""
    try:
        lines = (folder / PASSED).read_bytes().split(b"\n")[:-1]
        return tuple(record(Passed, json.loads(line)) for line in lines)
    except FileNotFoundError:
        return ()
    except ValueError as error:
        raise BuildError(f"{folder / PASSED}: not what a worker of this requant says: {error}") from None
