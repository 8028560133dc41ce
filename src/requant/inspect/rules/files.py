"""Rules about files: which tensor stands where, what the index says, side files, and what else could be loaded.

D01, D02, D04 (AutoRound's), D20 to D22, D29.
"""

from collections.abc import Iterator

from requant.checkpoint.checkpoint import INDEX
from requant.checkpoint.loadable import strays
from requant.errors import CheckpointError
from requant.inspect.anatomy import canonical
from requant.inspect.findings import Finding, Severity, Target
from requant.inspect.rules.seen import Seen

NEEDED = ("generation_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")
USEFUL = ("LICENSE", "chat_template.jinja", "merges.txt", "video_preprocessor_config.json", "vocab.json")
KIND = ("Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe", "qwen3_5_moe_text")


def check(seen: Seen) -> Iterator[Finding]:
    """Yield what is wrong with files, index and side files."""
    yield from _copies(seen)
    yield from _index(seen)
    yield from _configurations(seen)
    if seen.modelled:
        yield from _kind(seen)
        yield from _sides(seen)
    yield from _strays(seen)


def second_names(seen: Seen) -> dict[str, str]:
    """Return tensors under another prefix by the module's proper name, where that has tensors of its own."""
    strange = {name: proper for name in seen.anatomy.rest if (proper := canonical(name)) != name}
    wanted = {proper.rpartition(".")[0] for proper in strange.values()}
    found = {module for name in seen.anatomy.rest if (module := name.rpartition(".")[0]) in wanted}
    if strange:
        inside = ((block, name.rpartition(".")[0]) for block, held in seen.anatomy.blocks.items() for name in held)
        found |= {module for block, name in inside if (module := f"{block}.{name}") in wanted}
    return {name: proper for name, proper in strange.items() if proper.rpartition(".")[0] in found}


def _copies(seen: Seen) -> Iterator[Finding]:
    if seen.anatomy.copies:
        yield seen.error(
            "D01", seen.anatomy.copies, "Several files hold a tensor of this name: the one read last is used."
        )
    if twice := second_names(seen):
        yield seen.error(
            "D01", twice, "The same weight is stored again under a second prefix: loaders skip it or refuse to load."
        )


def _index(seen: Seen) -> Iterator[Finding]:
    headers = seen.headers
    index = headers.object(INDEX)
    if index is None:
        if len(headers.shards) != 1 or "model.safetensors" not in headers.shards:
            yield seen.error("D22", [INDEX], "Without an index, transformers does not find the files.")
        return
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or set(map(type, weight_map.values())) - {str}:
        raise CheckpointError(f"{headers.name}/{INDEX}: its weight_map is not an object of file names")
    for file in set(weight_map.values()):
        if file.startswith(("/", "\\")) or ".." in file.split("/") or not file.isprintable():
            raise CheckpointError(
                f"{headers.name}/{INDEX}: names the file {file!r:.120}, which is outside this folder",
                "Do not load this checkpoint: its index points elsewhere.",
            )
    read = sorted(headers.shards.keys() & set(weight_map.values()))
    agreed = sum(list(map(weight_map.get, headers.shards[file])).count(file) for file in read)
    if not agreed == len(weight_map) == sum(len(headers.shards[file]) for file in read):
        yield from _differing(seen, {name: file for file in read for name in headers.shards[file]}, weight_map)
    metadata = index.get("metadata")
    claimed = metadata.get("total_size") if isinstance(metadata, dict) else None
    if stray := sorted(headers.shards.keys() - set(weight_map.values())):
        yield seen.error("D01", stray, "No loader reads this file, because the index does not name it.")
    unread = sum(spec.nbytes for file in stray for spec in headers.shards[file].values())
    if claimed != headers.data_bytes - unread and not seen.anatomy.copies:
        yield seen.error(
            "D22",
            [INDEX],
            f"The index claims {claimed!r:.40} bytes of tensors, but the files hold {headers.data_bytes - unread}.",
        )


def _differing(seen: Seen, winners: dict[str, str], weight_map: dict[str, str]) -> Iterator[Finding]:
    wrong = [name for name, file in winners.items() if name in weight_map and weight_map[name] != file]
    wrong = [name for name in wrong if name not in seen.anatomy.copies]
    if wrong:
        yield seen.error("D02", wrong, "The index names a different file from the one that holds it.")
    yield from _losing(seen, weight_map)
    if absent := [name for name in winners if name not in weight_map]:
        yield seen.error("D01", absent, "The index does not list this tensor: vLLM loads it, transformers does not.")
    if gone := [name for name in weight_map if name not in winners and not _needed(seen, name)]:
        yield seen.error("D01", gone, "The index lists this tensor, but no file holds it.")


def _losing(seen: Seen, weight_map: dict[str, str]) -> Iterator[Finding]:
    """Yield, loader by loader, the copies that the index means and that are not read last."""
    for loader in seen.loaders:
        targets = tuple(Target(loader.name, degree) for degree in seen.degrees)
        losing = [n for n, files in seen.anatomy.copies.items() if loader.order(files)[-1] != weight_map.get(n)]
        if losing:
            text = "The file that is read last is not the one that the index names, and its copy is used."
            yield Finding("D02", Severity.ERROR, tuple(losing), text, targets)


def _needed(seen: Seen, name: str) -> bool:
    """Say whether the rules about tensors report the absence of a name themselves."""
    block = next((block for block in seen.builds if name.startswith(f"{block}.")), None)
    if block is None:
        return name in seen.expected
    return any(fault.flaw == "missing" and f"{block}.{fault.name}" == name for fault in seen.builds[block].faults)


def _configurations(seen: Seen) -> Iterator[Finding]:
    side = seen.headers.object("quantization_config.json")
    declared = seen.config.get("quantization_config")
    if side is None and declared is not None and not seen.another:  # other tools write other side files
        yield seen.warning(
            "D04", ["quantization_config.json"], "Tools that look for this file take every tensor for a float."
        )
    if side is not None and side != declared:
        inside = declared if isinstance(declared, dict) else {}
        keys = sorted(key for key in {*side, *inside} if side.get(key) != inside.get(key)) or ["quantization_config"]
        yield seen.error("D04", keys, "The two configurations differ, and tools do not agree on which one to read.")


def _kind(seen: Seen) -> Iterator[Finding]:
    config = seen.config
    text = config.get("text_config")
    inner = text.get("model_type") if isinstance(text, dict) else None
    if ([KIND[0]], *KIND[1:]) != (config.get("architectures"), config.get("model_type"), inner):
        yield seen.error(
            "D20",
            ["config.json: architectures, model_type, text_config.model_type"],
            "Loaders choose a different class, which skips the visual tower or does not know these names.",
        )
    if config.get("language_model_only"):
        yield seen.error("D20", ["config.json: language_model_only"], "Loaders build no visual tower.")


def _sides(seen: Seen) -> Iterator[Finding]:
    if missing := [name for name in NEEDED if name not in seen.headers.paths]:
        yield seen.error("D21", missing, "Without it, text or images cannot be prepared as for the base.")
    if missing := [name for name in USEFUL if name not in seen.headers.paths]:
        yield seen.warning("D21", missing, "The base has this file; without it, programs fall back to a default.")
    tokenizer = seen.headers.object("tokenizer_config.json") or {}
    if tokenizer.get("tokenizer_class") == "TokenizersBackend":
        for loader in seen.loaders:
            text = "transformers 5 rewrote it with a class name that transformers 4 does not know."
            severity = Severity.NOTE if loader.knows_new_tokenizers else Severity.WARNING
            targets = tuple(Target(loader.name, degree) for degree in seen.degrees)
            yield Finding("D21", severity, ("tokenizer_config.json: tokenizer_class",), text, targets)


def _strays(seen: Seen) -> Iterator[Finding]:
    """Yield what a loader could open or run besides; files of tensors that the index does not name are `_index`'s."""
    headers = seen.headers
    index = headers.object(INDEX)
    named = headers.shards.keys() - set(index["weight_map"].values()) if index else set()
    for each in strays([*headers.shards, *headers.paths], headers.sides):
        if each.name not in named:
            yield seen.error("D29", [each.name], f"{each.why[0].upper()}{each.why[1:]}.")
