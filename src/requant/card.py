"""What a model card claims, held against the files: confirmed, refuted, or undecidable from the files alone.

A card is prose. Each recogniser below knows one kind of sentence; what none knows is not judged, and a number that
is only repeated in a configuration stays undecidable: whoever wrote the one wrote the other.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from requant.digest import MAX_CARD, read_whole
from requant.errors import CheckpointError
from requant.identify import Fingerprint
from requant.inspecting.headers import Headers
from requant.inventory import base_tensors

Verdict = Literal["confirmed", "refuted", "undecidable"]
MAX_CLAIMS = 200
GB = 10**9


@dataclass(frozen=True)
class Claim:
    """A claim of a card, as it stands there, with a verdict and its reason."""

    line: int
    text: str
    verdict: Verdict
    evidence: str

    def as_json(self) -> dict[str, Any]:
        """Return the claim as `--json` prints it."""
        return asdict(self)


@dataclass(frozen=True)
class Facts:
    """What the files say: the fingerprint, and the configuration."""

    found: Fingerprint
    config: Mapping[str, Any]
    base_bytes: int

    @property
    def text(self) -> Mapping[str, Any]:
        """The text model's configuration."""
        return self.config["text_config"]  # type: ignore[no-any-return]

    @property
    def declared(self) -> Mapping[str, Any]:
        """The quantization_config, empty where there is none."""
        return self.config.get("quantization_config") or {}


Judge = Callable[[re.Match[str], str, Facts], tuple[Verdict, str]]


def read_card(path: Path) -> str:
    """Return a card's text; raise CheckpointError where it cannot be read, or is no text."""
    try:
        return read_whole(path, MAX_CARD).decode()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not a card: {error}", "A card is Markdown in UTF-8.") from None


def judge(card: str, found: Fingerprint, headers: Headers) -> tuple[Claim, ...]:
    """Return the claims of a card that a recogniser knows, in order, each with its verdict."""
    config = headers.object("config.json") or {}
    facts = Facts(found, config, sum(spec.nbytes for spec in base_tensors(config).values()))
    claims = [claim for number, line in enumerate(card.splitlines(), 1) for claim in _line(number, line[:2000], facts)]
    return tuple(claims[:MAX_CLAIMS])


def _line(number: int, line: str, facts: Facts) -> Iterator[Claim]:
    for pattern, judged in _KNOWN:
        for match in pattern.finditer(line):
            yield Claim(number, match[0].strip(" |*`"), *judged(match, line, facts))


def _is(found: bool, evidence: str) -> tuple[Verdict, str]:
    return "confirmed" if found else "refuted", evidence


def _number(text: str) -> int:
    return int(text.replace(",", ""))


def _experts(match: re.Match[str], _: str, facts: Facts) -> tuple[Verdict, str]:
    count = facts.text["num_experts"]
    return _is(_number(match[1]) == count, f"the routers have {count} experts")


def _bits(match: re.Match[str], _: str, facts: Facts) -> tuple[Verdict, str]:
    packed = facts.found.quantized_layers
    return _is(int(match[1]) == 4 and packed > 0, f"{packed:,} layers hold eight codes in a word")


def _group(match: re.Match[str], _: str, facts: Facts) -> tuple[Verdict, str]:
    return _is(int(match[1]) == facts.declared.get("group_size"), f"declared {facts.declared.get('group_size')}")


def _effort(key: str) -> Judge:
    def judged(match: re.Match[str], _: str, facts: Facts) -> tuple[Verdict, str]:
        declared = facts.found.declared_effort[key]
        if isinstance(declared, int) and declared != _number(match[1]):
            return "refuted", f"the configuration declares {declared}"
        return "undecidable", f"declared {declared}; no tensor shows how long it was tuned"

    return judged


def _version(match: re.Match[str], _: str, facts: Facts) -> tuple[Verdict, str]:
    declared = facts.found.declared_version
    if declared and not declared.startswith(match[1]):
        return "refuted", f"the configuration declares {declared}"
    writers = ", ".join(facts.found.writers) or "none that is known"
    return "undecidable", f"declared {declared or 'nothing'}; possible writers: {writers}"


def _size(match: re.Match[str], line: str, facts: Facts) -> tuple[Verdict, str]:
    found = facts.found
    # As exact as it is written; "about" is 3 %, and headers, which are no tensors, 0.1 %.
    slack = max(0.5 * 10.0 ** -len(match[2].partition(".")[2]), (0.03 if match[1] else 0.001) * float(match[2]))
    sizes = {
        "in all": found.main_bytes + found.extra_bytes,
        "in the main files": found.main_bytes,
        "in the extra file": found.extra_bytes,
        "of the base": facts.base_bytes,
    }
    for where, size in sizes.items():
        if abs(size / GB - float(match[2])) <= slack:
            return "confirmed", f"{size:,} bytes of tensors {where}"
    if re.search(r"total|size|shard|extras|int4|quantized|disk", line, re.I) and not re.search(
        r"ram|memory|peak", line, re.I
    ):
        return "refuted", ", ".join(f"{size:,} bytes {where}" for where, size in sizes.items())
    return "undecidable", "no size of these files, and perhaps none is meant"


def _tensors(match: re.Match[str], line: str, facts: Facts) -> tuple[Verdict, str]:
    count, tensors = _number(match[1]), facts.found.tensors
    if count == tensors["visual .weight"] != tensors["visual"] and re.search("visual|vision", line, re.I):
        return "refuted", f"the tower has {tensors['visual']}; {count} of them end in .weight"
    for what, number in tensors.items():
        if count == number:
            return "confirmed", f"{count:,} tensors: {what}"
    if re.search(r"mtp", line, re.I):
        return "refuted", f"there are {tensors['MTP']:,} MTP tensors"
    if re.search("visual|vision", line, re.I):
        return "refuted", f"there are {tensors['visual']:,} visual tensors"
    return "undecidable", "no count of these files, and perhaps none is meant"


def _layers(match: re.Match[str], _: str, facts: Facts) -> tuple[Verdict, str]:
    found = (facts.found.quantized_layers, facts.found.linear_layers)
    return _is(
        (_number(match[1]), _number(match[2])) == found, f"{found[0]:,} of {found[1]:,} linear layers are packed"
    )


def _tied(_: re.Match[str], __: str, facts: Facts) -> tuple[Verdict, str]:
    tied = bool(facts.text.get("tie_word_embeddings"))
    return _is(tied, f"tie_word_embeddings is {str(tied).lower()}")


def _mtp(match: re.Match[str], _: str, facts: Facts) -> tuple[Verdict, str]:
    layout = facts.found.mtp
    wanted = ("fused", "split") if re.search("bf16|bfloat16", match[0], re.I) else ("packed",)
    return _is(layout in wanted, f"the MTP block is {layout}")


_KNOWN: tuple[tuple[re.Pattern[str], Judge], ...] = (
    (re.compile(r"\b(\d[\d,]{0,6})\s+(?:routed\s+)?experts\b", re.I), _experts),
    (re.compile(r"\b(?:INT|W)(\d)(?:A16)?\b"), _bits),
    (re.compile(r"\bgroup[_ -]?size\b[^\d\n]{0,12}(\d{1,4})\b", re.I), _group),
    (re.compile(r"\biter(?:s|ations)\b[^\d\n]{0,12}(\d{1,6})\b", re.I), _effort("iters")),
    (re.compile(r"\bnsamples\b[^\d\n]{0,12}(\d{1,6})\b", re.I), _effort("nsamples")),
    (re.compile(r"\bseqlen\b[^\d\n]{0,12}(\d{1,6})\b", re.I), _effort("seqlen")),
    (re.compile(r"\bauto-?round\b[^\d\n]{0,12}v?(\d{1,3}\.\d{1,3}\.\d{1,3})\b", re.I), _version),
    (re.compile(r"([~≈]?)\s?(\d{1,6}(?:\.\d{1,3})?)\s?GB\b"), _size),
    (re.compile(r"\b(\d[\d,]{1,9})\s+(?:[\w-]{1,20}\s+){0,2}(?:tensors|weights)\b", re.I), _tensors),
    (re.compile(r"\b(\d{1,3},\d{3})\s?(?:/|of)\s?(\d{1,3},\d{3})\b"), _layers),
    (re.compile(r"\btied (?:word )?embeddings\b", re.I), _tied),
    (re.compile(r"\bMTP\b[^.\n|]{0,40}\b(?:BF16|bfloat16|INT4)\b", re.I), _mtp),
)
"""Each pattern with who judges it; bounded repetitions only, for a stranger wrote the card."""
