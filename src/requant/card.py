"""What a model card claims, held against the tensors: confirmed, refuted, or undecidable from the files alone.

A card is prose, in whole phrases: what stands between commas, full stops, semicolons, table cells and line ends. A
phrase is decided where one of the patterns below is all of it and no word around it turns it round; everything else
is undecidable. So is whatever a configuration merely repeats: whoever wrote the one wrote the other.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from requant.digest import MAX_CARD, read_whole
from requant.errors import CheckpointError
from requant.identify import Fingerprint
from requant.inspecting.anatomy import canonical
from requant.inspecting.headers import Headers
from requant.inventory import MTP, VISUAL, linears
from requant.passes.context import EXTRAS
from requant.safetensors import Spec

Verdict = Literal["confirmed", "refuted", "undecidable"]
MAX_CLAIMS = 200
LONGEST = 200
"""Characters of a phrase that is looked at: a longer one is not understood."""
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
    """What the files show: the fingerprint, every tensor by its canonical name, and how many files are the main ones.

    `linears` are the layers that the configuration speaks of: names to look for, no evidence of anything.
    """

    found: Fingerprint
    tensors: Mapping[str, Spec]
    linears: frozenset[str]
    main_files: int

    def packed(self, first: str, second: str) -> Iterator[tuple[Spec, Spec]]:
        """Yield two tensors of each packed layer, by the ends of their names."""
        for name, spec in self.tensors.items():
            if name.endswith(first) and (other := self.tensors.get(name.removesuffix(first) + second)):
                yield spec, other


Judge = Callable[[re.Match[str], Facts], tuple[Verdict, str]]


def read_card(path: Path) -> str:
    """Return a card's text; raise CheckpointError where it cannot be read, or is no text."""
    try:
        return read_whole(path, MAX_CARD).decode()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not a card: {error}", "A card is Markdown in UTF-8.") from None


def judge(card: str, found: Fingerprint, headers: Headers) -> tuple[Claim, ...]:
    """Return the claims of a card that are about what files show, in order, each with its verdict."""
    tensors = {canonical(name): spec for held in headers.shards.values() for name, spec in held.items()}
    facts = Facts(
        found, tensors, frozenset(linears(headers.object("config.json") or {})), len({*headers.shards} - {EXTRAS})
    )
    claims: list[Claim] = []
    before = ""
    for number, line in enumerate(card.splitlines(), 1):
        turned, before = bool(_TURNED.search(before) or _TURNED.search(line)), line
        for phrase in _ENDS.split(line):
            if len(claims) < MAX_CLAIMS and (
                claim := _claim(number, " ".join(phrase.split()).strip("*`_#>- "), facts, turned)
            ):
                claims.append(claim)
    return tuple(claims)


def _claim(number: int, phrase: str, facts: Facts, turned: bool) -> Claim | None:
    if len(phrase) <= LONGEST and not turned:
        for pattern, judged in _KNOWN:
            if match := pattern.fullmatch(phrase):
                return Claim(number, phrase, *judged(match, facts))
    if _ABOUT.search(phrase[:LONGEST]):
        return Claim(number, phrase[:LONGEST], "undecidable", "not understood, or nothing that a tensor shows")
    return None


def _is(found: bool, evidence: str) -> tuple[Verdict, str]:
    return "confirmed" if found else "refuted", evidence


def _number(text: str) -> int:
    return int(text.replace(",", ""))


def _near(about: str | None, claimed: float, found: float, slack: float) -> bool:
    """Whether a number is what is claimed: as exact as it is written, and 3 % where it says "about"."""
    return abs(found - claimed) <= (max(slack, 0.03 * claimed) if about else slack)


def _one(values: set[int], claimed: int, what: str) -> tuple[Verdict, str]:
    told = ", ".join(f"{value:,}" for value in sorted(values)) or "none"
    return _is(values == {claimed}, f"{what}: {told}")


def _experts(match: re.Match[str], facts: Facts) -> tuple[Verdict, str]:
    routers = {
        spec.shape[0] for name, spec in facts.tensors.items() if name.endswith(".mlp.gate.weight") and spec.shape
    }
    return _one(routers, _number(match[1]), "experts that the routers have weights for")


def _bits(match: re.Match[str], facts: Facts) -> tuple[Verdict, str]:
    pairs = list(facts.packed(".scales", ".qzeros"))
    bits = {32 * zeros.shape[-1] // max(1, scales.shape[-1]) for scales, zeros in pairs if scales.shape and zeros.shape}
    return _one(bits, int(match[1]), "bits of a code, by the zero points of packed layers")


def _group(match: re.Match[str], facts: Facts) -> tuple[Verdict, str]:
    pairs = list(facts.packed(".qweight", ".scales"))
    sizes = {
        8 * weight.shape[0] // max(1, scales.shape[0]) for weight, scales in pairs if weight.shape and scales.shape
    }
    return _one(sizes, int(match[1]), "codes to a scale")


def _size(match: re.Match[str], facts: Facts) -> tuple[Verdict, str]:
    claimed, slack = float(match["size"]), 0.5 * 10.0 ** -len(match["size"].partition(".")[2])
    if not claimed:
        return "undecidable", "a size of nothing"
    found, shards = facts.found, match.groupdict().get("shards")
    if shards is not None:
        size, where = found.main_bytes, f"in {facts.main_files} main files"
    elif match.groupdict().get("extras"):
        size, where = found.extra_bytes, "in the extra file"
    else:
        size, where = found.main_bytes + found.extra_bytes, "in all"
    fits = _near(match["about"], claimed, size / GB, max(slack, 0.001 * claimed))  # headers are no tensors: 0.1 %
    return _is(fits and shards in (None, str(facts.main_files)), f"{size:,} bytes of tensors {where}")


def _tensors(match: re.Match[str], facts: Facts) -> tuple[Verdict, str]:
    kind = {"mtp": "MTP", "visual": "visual", "vision": "visual"}.get((match["kind"] or "").lower(), "all")
    count = facts.found.tensors[kind]
    return _is(_near(match["about"], _number(match["count"]), count, 0), f"{count:,} tensors: {kind}")


def _layers(match: re.Match[str], facts: Facts) -> tuple[Verdict, str]:
    packed = {name.removesuffix(".qweight") for name in facts.tensors if name.endswith(".qweight")}
    packed = {name for name in packed if not name.startswith((MTP, VISUAL))}
    if not packed <= facts.linears:
        return "undecidable", "the configuration does not know all of the layers that are packed"
    there = {name for name in facts.linears if name in packed or f"{name}.weight" in facts.tensors}
    counts = (_number(match[1]), _number(match[2]))
    return _is(counts == (len(packed), len(there)), f"{len(packed):,} of {len(there):,} linear layers are packed")


def _tied(_: re.Match[str], facts: Facts) -> tuple[Verdict, str]:
    head = "lm_head.weight" in facts.tensors or "lm_head.qweight" in facts.tensors
    return _is(not head, f"lm_head is {'stored' if head else 'not stored'}")


def _mtp(match: re.Match[str], facts: Facts) -> tuple[Verdict, str]:
    layout = facts.found.mtp
    if match[1].upper() == "INT4":
        return _is(layout == "packed", f"the MTP block is {layout}")
    dtypes = sorted({spec.dtype for name, spec in facts.tensors.items() if name.startswith(MTP)})
    return _is(
        layout in ("fused", "split") and dtypes == ["BF16"], f"the MTP block is {layout}, in {', '.join(dtypes)}"
    )


_ENDS = re.compile(r"[|;()]|,(?!\d)|[.!?](?=\s|$)")
_TURNED = re.compile(
    r"\b(?:no|not|non|never|none|neither|nor|without|unlike|except|instead|cannot)\b|n['\u2019]t\b", re.I
)
"""A word in the same line or the one before, after which nothing is decided."""
_ABOUT_SIZE = r"(?P<about>~|≈|about |approx\. )? ?(?P<size>\d{1,6}(?:\.\d{1,3})?) ?GB"
_KNOWN: tuple[tuple[re.Pattern[str], Judge], ...] = (
    (re.compile(r"(\d[\d,]{0,6}) (?:routed )?experts", re.I), _experts),
    (re.compile(r"(?:INT|W)(\d)(?:A16)?"), _bits),
    (re.compile(r"group[_ -]?size[ :=]{0,3}(\d{1,4})", re.I), _group),
    (re.compile(rf"(?P<extras>extras?) {_ABOUT_SIZE}", re.I), _size),
    (re.compile(rf"(?P<shards>\d{{1,4}}) shards? {_ABOUT_SIZE}", re.I), _size),
    (re.compile(rf"{_ABOUT_SIZE} (?:in )?(?:total|all)", re.I), _size),
    (
        re.compile(
            r"(?P<about>~)? ?(?P<count>\d[\d,]{0,9}) (?:(?P<kind>MTP|visual|vision) )?(?:tensors|weights)", re.I
        ),
        _tensors,
    ),
    (re.compile(r"(\d{1,3},\d{3}) ?(?:/|of) ?(\d{1,3},\d{3}) (?:linear )?layers", re.I), _layers),
    (re.compile(r"tied (?:word )?embeddings", re.I), _tied),
    (re.compile(r"(?:the )?MTP(?: block)?(?: is)?(?: in)? (BF16|bfloat16|INT4)", re.I), _mtp),
)
"""Each pattern with who judges it; it is to match a whole phrase."""
_ABOUT = re.compile(
    r"\d ?GB\b|\bexperts\b|\b(?:INT|W)\d|\btensors\b|\bweights\b|\blayers\b|\bMTP\b|\bembeddings\b"
    r"|\bgroup[_ -]?size\b|\biters|\bnsamples\b|\bseqlen\b|\bauto-?round\b",
    re.I,
)
"""What makes a phrase a claim about the files, understood or not."""
