"""What loaders open of a checkpoint, and what else stands there that one of them could open or run.

Two loaders do not agree on which files are the weights. Each takes the first of these that is there:

- transformers 5.5.1 (`modeling_utils._get_resolved_checkpoint_files`, `utils.hub.get_checkpoint_shard_files`): what
  `transformers_weights` of config.json names; `model.safetensors`; the files that the index names, wherever they
  stand; `pytorch_model.bin`; the files that its index names.
- vLLM 0.33.0 (`model_loader.default_loader`, `weight_utils.filter_duplicate_safetensors_files`): every
  `consolidated*.safetensors`; every `*.safetensors` in the root, or those of them that the index names; every `*.bin`;
  every `*.pt`. Nothing hidden.

The weights of a checkpoint are taken to be what the index names, else the safetensors files in the root. Whatever
makes a loader open something else is a finding, and so is everything that can be opened or run besides.
"""

import json
import posixpath
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from requant.checkpoint.files import CODE, INDEX, SUFFIX, folded_case, is_index, is_opaque, weight_map
from requant.digest import side_limit

SINGLE = f"model{SUFFIX}"
CONFIGS: tuple[str, ...] = ("config.json", "tokenizer_config.json", "processor_config.json")
CONFIGS += ("preprocessor_config.json", "video_preprocessor_config.json")
"""Where transformers looks for `auto_map`."""
FIXED = {SINGLE, INDEX, *CONFIGS, "adapter_config.json", "adapter_model.safetensors", "generation_config.json"}
FIXED |= {"chat_template.jinja", "chat_template.json", "quantization_config.json", "quantize_config.json"}
FIXED |= {"added_tokens.json", "merges.txt", "special_tokens_map.json", "tokenizer.json", "vocab.json", "vocab.txt"}
FIXED |= {"sentencepiece.bpe.model", "spiece.model", "tokenizer.model", "tekken.json"}
"""Files that loaders open by their names."""
ONE_NAME = "a loader opens it where names that differ only in case are one"
KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
"""Keys of config.json that may name a repository of compiled code (transformers, `integrations.hub_kernels`)."""
DROPPED = "mtp."
"""What transformers ignores of these models: `_keys_to_ignore_on_load_unexpected` in modeling_qwen3_5_moe.py."""


@dataclass(frozen=True)
class Loadable:
    """A file, or a key in one, that makes a loader open or run something else than the checkpoint's weights."""

    name: str
    why: str


def deciding(names: Iterable[str]) -> list[str]:
    """Return those of a checkpoint's files whose text decides what is opened: the index and the configurations."""
    return [name for name in names if name in (INDEX, *CONFIGS)]


def opened(names: Collection[str], texts: Mapping[str, bytes]) -> list[str]:
    """Return the checkpoint's weight files, sorted, of all its files; `texts` has what `deciding` asks for.

    Where neither index nor root has any, all safetensors files: a checkpoint of which no loader would open any.
    """
    return _opened(names, _read_index(texts))


def findings(
    names: Collection[str], texts: Mapping[str, bytes], tensors: Mapping[str, Collection[str]]
) -> tuple[Loadable, ...]:
    """Return whatever could be loaded instead of the weights, or with them, in order of name.

    `texts` has what `deciding` asks for, `tensors` the names of the tensors in each `opened` file.
    """
    index = _read_index(texts)
    found = [*_strays(names, texts, index), *_disagreements(names, index, tensors), *_alone(names, tensors)]
    return tuple(sorted(found, key=lambda each: (each.name, each.why)))


def strays(names: Collection[str], texts: Mapping[str, bytes]) -> Iterator[Loadable]:
    """Yield files that are weights or code and not the checkpoint's, and keys of configurations that lead elsewhere."""
    yield from _strays(names, texts, _read_index(texts))


@dataclass(frozen=True)
class _Index:
    """What an index names: a file for each tensor; `fault` is why no loader can follow it. Both empty without one."""

    files: Mapping[str, str]
    fault: str = ""


def _read_index(texts: Mapping[str, bytes]) -> _Index:
    try:
        return _Index(weight_map(texts[INDEX]) if INDEX in texts else {})
    except ValueError as error:
        return _Index({}, f"no index that a loader can follow: {error}")


def _opened(names: Collection[str], index: _Index) -> list[str]:
    safetensors = {name for name in names if name.endswith(SUFFIX)}
    return sorted(set(map(_place, index.files.values())) & safetensors or set(filter(_in_root, names)) or safetensors)


def _strays(names: Collection[str], texts: Mapping[str, bytes], index: _Index) -> Iterator[Loadable]:
    weights, indexed = set(_opened(names, index)), set(map(_place, index.files.values()))
    root = any(map(_in_root, names))
    for name in names:
        if why := _why_file(name, root) or _why_tensors(name, name in weights, name in indexed):
            yield Loadable(name, why)
    for name in CONFIGS:
        if name in texts:
            yield from _keys(name, texts[name])


def _why_file(name: str, root: bool) -> str:
    """Say why a file that is no safetensors file should not be there, nothing where it may; `root` has weights."""
    folded = folded_case(name)
    if name not in FIXED and folded in FIXED:
        return ONE_NAME
    if folded.endswith(CODE):
        return "code, which a loader runs where it is told to trust this repository"
    if is_opaque(name):
        if folded.endswith(SUFFIX):
            return ONE_NAME
        if "/" not in name and not root and name.endswith((".bin", ".pt")):
            return "loaders open it, because no safetensors file stands in the root; it is not looked into"
        return "weights in another format, or a pickle that can run anything; it is not looked into"
    if name.rpartition("/")[2] == "adapter_config.json":
        return "transformers adds the adapter that it describes to the weights"
    if is_index(name) and name != INDEX:
        return f"an index beside {INDEX}: a loader that follows it opens other files"
    return ""


def _why_tensors(name: str, is_opened: bool, is_indexed: bool) -> str:
    """Say why a safetensors file is not what every loader opens, nothing where it is."""
    if not name.endswith(SUFFIX):
        return ""
    if name.rpartition("/")[2].startswith("consolidated"):
        return "vLLM opens it instead of every other file"
    if not _in_root(name) and is_indexed:
        return "transformers opens it because the index names it, vLLM looks into the root alone and refuses"
    if not _in_root(name):
        return "weights outside of the root: a loader opens them where it is given this folder or subfolder"
    if is_opened:
        return ""
    if name == SINGLE:
        return "transformers opens it instead of the files that the index names"
    return "no loader opens it, for the index does not name it: its tensors are not loaded"


def _keys(name: str, text: bytes) -> Iterator[Loadable]:
    if len(text) > side_limit(name):
        yield Loadable(name, f"larger than {side_limit(name):,} bytes, and not looked into")
        return
    try:
        value = json.loads(text.decode())
    except (RecursionError, ValueError):
        yield Loadable(name, "not JSON that a loader can read")
        return
    for path, key, inner in _walk(value, ""):
        said = json.dumps(inner)[:120]
        if key == "auto_map":
            yield Loadable(f"{name}: {path}", f"names code that a loader runs where it is told to trust it: {said}")
        elif key in KERNELS and "/" in said:
            yield Loadable(f"{name}: {path}", f"names a repository of compiled code: {said}")
        elif key == "transformers_weights" and name == "config.json":
            yield Loadable(f"{name}: {path}", f"transformers opens what it names before everything else: {said}")


def _walk(value: Any, path: str) -> Iterator[tuple[str, str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"{path}{key}", key, inner
            yield from _walk(inner, f"{path}{key}.")


def _disagreements(names: Collection[str], index: _Index, tensors: Mapping[str, Collection[str]]) -> Iterator[Loadable]:
    """Yield in what the index is wrong about the files, tensors folded by their numbers."""
    indexed = index.files
    if not {INDEX, SINGLE} & set(names) and any(map(_in_root, names)):
        yield Loadable(INDEX, "not there: transformers finds no weights, vLLM opens every safetensors file in the root")
    if index.fault:
        yield Loadable(INDEX, index.fault)
    if index.fault or INDEX not in names:
        return
    for file in sorted(set(indexed.values())):
        if _place(file).startswith(("/", "..")) or not file.isprintable():
            yield Loadable(INDEX, f"leads out of the checkpoint: {file!r:.120}")
        elif _place(file) not in names:
            yield Loadable(INDEX, f"names {file:.120}, which is not there")
        elif not file.endswith(SUFFIX):
            yield Loadable(INDEX, f"leads to {file:.120}, which transformers opens as a pickle")
    held = {name: file for file, some in tensors.items() for name in some}
    for tensor, count in _fold(name for name in held if name not in indexed):
        yield Loadable(tensor, f"in the files and not in the index{count}")
    read = {name for name, file in indexed.items() if _place(file) in tensors}
    for tensor, count in _fold(name for name in read if name not in held):
        yield Loadable(tensor, f"in the index and in none of the files that it names{count}")
    for tensor, count in _fold(name for name in read if name not in tensors[_place(indexed[name])] and name in held):
        yield Loadable(tensor, f"in another file than the index says{count}")


def _alone(names: Collection[str], tensors: Mapping[str, Collection[str]]) -> Iterator[Loadable]:
    """Yield what transformers misses where it opens `model.safetensors` and nothing else."""
    if SINGLE in names and SINGLE in tensors:
        missed = (name for file, some in tensors.items() if file != SINGLE for name in some)
        for tensor, count in _fold(name for name in missed if not name.startswith(DROPPED)):
            yield Loadable(tensor, f"transformers opens {SINGLE} alone, and this stands in another file{count}")


def _place(file: str) -> str:
    return posixpath.normpath(file)


def _in_root(name: str) -> bool:
    return name.endswith(SUFFIX) and "/" not in name and not name.startswith(".")


def _fold(tensors: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield names with their numbers as `*`, and how many there are of each where they are several."""
    folded: dict[str, list[str]] = {}
    for name in tensors:
        folded.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", name), []).append(name)
    for star, same in folded.items():
        yield (same[0], "") if len(same) == 1 else (star, f": {len(same):,}")
