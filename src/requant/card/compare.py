"""`card --compare`: what a published card says, held against the facts of a build, line by line.

Three verdicts, and none on what is not understood: `true` and `wrong` name the record, `not backed` means that no
record has the fact. Everything else is listed as not compared.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from requant.card import markdown
from requant.card.facts import Fact, Facts, text
from requant.card.markdown import Said
from requant.card.records import Records
from requant.card.serving import flags, releases_with
from requant.card.values import agrees
from requant.card.vocabulary import (
    ELSEWHERE,
    FILE_COLUMNS,
    FLOAT_COLUMNS,
    LABELS,
    LOSS,
    LOSS_LABELS,
    METADATA,
    OWN_COLUMN,
    PACKAGES,
    PHRASES,
    WORDS,
    Keys,
)
from requant.checkpoint.files import is_companion

Verdict = Literal["true", "wrong", "not backed"]
MAX_NAMES = 50
"""Names that one row, or one list, may have."""


@dataclass(frozen=True)
class Statement:
    """What a line of a card says of one fact, and what the record says: the `source`'s `recorded` value."""

    line: int
    text: str
    key: str
    stated: str
    verdict: Verdict
    recorded: str
    source: str


@dataclass(frozen=True)
class Uncompared:
    """A line of a card, or a part of one, that was not compared."""

    line: int
    text: str


@dataclass(frozen=True)
class Comparison:
    """A published card beside the truth: every statement that was understood, and every line that was not."""

    build: str
    statements: tuple[Statement, ...]
    uncompared: tuple[Uncompared, ...]

    def count(self, verdict: Verdict) -> int:
        """How many statements have a verdict."""
        return sum(each.verdict == verdict for each in self.statements)

    @property
    def exit_status(self) -> int:
        """1 where something is wrong, 3 where nothing was found true or wrong, else 0."""
        return 1 if self.count("wrong") else 0 if self.count("true") else 3

    def as_json(self) -> dict[str, Any]:
        """Return the comparison as `--json` prints it."""
        return asdict(self)


def compare(card: str, records: Records, facts: Facts) -> Comparison:
    """Hold the text of a card against the facts of a build."""
    judge = _Judge(records, facts)
    statements: list[Statement] = []
    uncompared: list[Uncompared] = []
    for said in markdown.parse(card):
        found = [*judge.of(said)]
        statements += found
        if not found:
            uncompared.append(Uncompared(said.line, said.text))
    build = f"{records.recipe.name}, tiny model {records.tiny}" if records.tiny else records.recipe.name
    return Comparison(build, tuple(statements), tuple(uncompared))


Found = Iterator[Statement]


class _Judge:
    """Understands what is in the vocabulary, and nothing else."""

    def __init__(self, records: Records, facts: Facts) -> None:
        self._facts = facts
        self._files = records.recorded.manifest.files if records.recorded else None
        self._manifest = f"{records.recorded.name}.manifest.json: files" if records.recorded else "no manifest"
        target = records.target
        packed = target.plan.packed.keys() | target.rounded.keys()
        self._float: Mapping[str, bool] = {name: name not in packed for name in (*target.plan.layers, *target.mtp)}

    def of(self, said: Said) -> Found:
        """Yield what a thing that a card says states of facts; nothing where it is not understood."""
        match said.carrier:
            case "metadata":
                yield from self._one(said, METADATA.get(said.label, ()), said.values[0])
            case "table" if not ELSEWHERE.search(said.section):
                yield from self._row(said)
            case "label" if not ELSEWHERE.search(said.section):
                yield from self._labelled(said, said.label, said.values[0])
            case "command":
                yield from self._command(said)
            case "keyword" if said.about == self._facts["base.repository"].value:
                yield from self._one(said, WORDS.get(said.label.lower(), ()), said.values[0])

    def _fact(self, keys: Keys) -> tuple[str, Fact | None]:
        return next(((key, self._facts[key]) for key in keys if key in self._facts), (keys[0], None))

    def _one(self, said: Said, keys: Keys, stated: str) -> Found:
        """Yield what a value states of the first of `keys` that there is a fact of."""
        if not keys:
            return
        key, fact = self._fact(keys)
        found = agrees(key, fact, stated, self._facts)
        if found:
            value, equal = found
            verdict: Verdict = "not backed" if fact is None else "true" if equal else "wrong"
            yield _statement(said, key, value, verdict, text(fact) if fact else "", fact.source if fact else "")

    def _labelled(self, said: Said, label: str, value: str) -> Found:
        name = _normal(label)
        if name in LOSS_LABELS:
            for block, *losses in LOSS.findall(value):
                for what, loss in zip(("before", "after"), losses, strict=True):
                    yield from self._one(said, (f"loss.{int(block)}.{what}",), loss)
        if name in LABELS:
            yield from self._one(said, LABELS[name], value)
        elif package := self._package(label):
            yield from self._one(said, (package,), value)
            if commit := re.search(r"\b[0-9a-f]{7,40}\b", value):
                yield from self._one(said, (package.replace("package.", "commit."),), commit[0])
        elif "/" in name:
            names, values = [each.strip() for each in name.split("/")], [each.strip() for each in value.split("/")]
            if len(names) == len(values) and all(each in LABELS for each in names):
                for each, stated in zip(names, values, strict=True):
                    yield from self._one(said, LABELS[each], stated)
        for phrase in PHRASES:
            if name in phrase.labels and (match := phrase.pattern.search(value)):
                for keys, stated in zip(phrase.keys, match.groups(), strict=True):
                    yield from self._one(said, keys, stated)

    def _package(self, label: str) -> str:
        name = re.sub(r"[-_.]+", "-", label.strip("`* ").lower()).removesuffix(" version").strip()
        key = f"package.{PACKAGES.get(name, name)}"
        return key if key in self._facts else ""

    def _row(self, said: Said) -> Found:
        values = said.values if any(said.values) else ()
        while values and not values[-1]:
            values = values[:-1]
        columns = [each.lower().strip("`* ") for each in said.header][-1 - len(values) :]
        if columns and columns[0] in FILE_COLUMNS and len(columns) > len(values):
            yield from self._named_files(said)
        elif columns and columns[0] in FLOAT_COLUMNS and len(columns) > len(values):
            yield from self._kept(said)
        elif values:
            names = columns[-len(values) :]
            own = [number for number, name in enumerate(names) if name in OWN_COLUMN or "this model" in name]
            if len(values) == 1 and not names:
                own = [0]
            if len(own) == 1 and len(names) in (0, len(values)):
                yield from self._labelled(said, said.label, values[own[0]])

    def _named_files(self, said: Said) -> Found:
        for name in re.split(r" / |, ", said.label)[:MAX_NAMES]:
            bare = name.strip("`* ")
            if (shards := re.fullmatch(r"model-.{1,40}-of-0*(\d{1,5})\b.{0,20}", bare)) and "{" in bare:
                yield from self._one(said, ("layout.shards",), shards[1])
            elif _FILE.fullmatch(bare) and not is_companion(bare):
                there = self._files is not None and bare in self._files
                verdict: Verdict = "not backed" if self._files is None else "true" if there else "wrong"
                recorded = "" if self._files is None else "there" if there else "no such file"
                yield _statement(said, "manifest.file", bare, verdict, recorded, self._manifest if recorded else "")

    def _kept(self, said: Said) -> Found:
        """Yield whether layers are float that a table lists as such, by parts of their names."""
        for part in said.label.split(" / ")[:MAX_NAMES]:
            pattern = re.sub(r" \(.*", "", part).strip("`* ").rstrip(".*")
            if not re.fullmatch(r"[\w.]{2,200}", pattern, re.ASCII):
                continue
            named = [is_float for name, is_float in self._float.items() if pattern in name]
            kept = sum(named)
            verdict: Verdict = "not backed" if not named else "true" if kept == len(named) else "wrong"
            recorded = f"{kept:,} of {len(named):,} linear layers of this name are float" if named else ""
            yield _statement(said, "layers.float", pattern, verdict, recorded, "plan.json: layers" if named else "")

    def _command(self, said: Said) -> Found:
        words = said.values
        if words[:2] in (("pip", "install"), ("pip3", "install")) and not ELSEWHERE.search(said.section):
            for word in words[2:]:
                yield from self._installed(said, word)
        elif words[:2] == ("vllm", "serve"):
            for word in words[2:]:
                flag = word.partition("=")[0]
                if re.fullmatch(r"--[a-z][a-z0-9_.-]{1,60}", flag):
                    known = releases_with(flag)
                    where = ", ".join(known) if known else f"in none of {', '.join(flags())}"
                    source = "card/flags.json"
                    yield _statement(said, "serving.flag", flag, "true" if known else "wrong", where, source)
        elif words[0] == "auto-round":
            yield from self._quantized(said, words)

    def _installed(self, said: Said, word: str) -> Found:
        if match := re.fullmatch(r"([A-Za-z0-9][\w.-]*)(?:\[[\w,-]*\])?==([\w.+!]+)", word):
            name = re.sub(r"[-_.]+", "-", match[1].lower())
            yield from self._one(said, (f"package.{name}",), match[2])
        elif match := re.fullmatch(r"git\+https://[\w.-]+/[\w.-]+/([\w.-]+?)(?:\.git)?@([0-9a-f]{7,40})", word):
            yield from self._one(said, (f"commit.{match[1].lower()}",), match[2])

    def _quantized(self, said: Said, words: tuple[str, ...]) -> Found:
        """Yield what a command of AutoRound's states, where it is given this build's base."""
        given: dict[str, str] = {}
        name = ""
        for word, following in zip(words, (*words[1:], ""), strict=True):
            flag, equals, value = word.partition("=")
            if flag.startswith("--"):
                name = flag[2:].replace("-", "_").lower()
                given[name] = value if equals else following
        model = given.get("model", given.get("model_name", words[1] if len(words) > 1 else ""))
        if model != self._facts["base.repository"].value:
            return
        yield from self._one(said, ("base.repository",), model)
        for name, value in given.items():
            yield from self._one(said, WORDS.get(name, ()), value)


_FILE = re.compile(r"[\w.-]+\.(?:json|jinja|safetensors|txt|model)|LICENSE")


def _statement(said: Said, key: str, stated: str, verdict: Verdict, recorded: str, source: str) -> Statement:
    return Statement(said.line, said.text, key, stated, verdict, recorded, source)


def _normal(label: str) -> str:
    """Return a label as the vocabulary has it: in lower case, without emphasis, `group_size` as `group size`."""
    return re.sub(r"[\s_]+", " ", label.strip("`*_ :").replace("`", "").lower())
