"""What a base looks like in files: which of its tensors transformers loads, and how its model's are named there.

The class of `config.json` is instantiated on meta, without weights. Its tensors get the names and shapes of files as
transformers loads and saves them.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from requant.errors import BuildError
from requant.names import named, numbered
from requant.protocol import Tensors


@dataclass(frozen=True)
class Base:
    """A base that stands in files: its tensors, those of them that transformers does not load, and what loads others.

    `names` is the pattern of a file's name by that of the parameter that it is as it stands; `conversions` do the rest.
    """

    architecture: str
    tensors: Tensors
    unloaded: tuple[str, ...]
    names: Mapping[str, str]
    conversions: tuple[Any, ...]
    hidden: int


def instantiate(folder: Path) -> Any:
    """Return the model of a folder's `config.json` on meta: modules and shapes, and no number.

    Raises BuildError where transformers has no such class, or refuses the configuration.
    """
    import torch
    import transformers

    names = json.loads((folder / "config.json").read_text()).get("architectures") or [""]
    if not (architecture := getattr(transformers, names[0], None)):
        raise BuildError(f"{folder}/config.json: transformers has no class {names[0]!r}", "Its code is never run.")
    try:
        config = architecture.config_class.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            return architecture._from_config(config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BuildError(f"{folder}/config.json: no configuration of {names[0]}: {error}") from None


def read(model: Any, tensors: Tensors) -> Base:
    """Return what transformers does with a base of these tensors.

    Raises BuildError where the model has a tensor that is not among them, or has another shape there.
    """
    names, conversions, unloaded = _loading(model, tensors)
    base = Base(type(model).__name__, tensors, unloaded, names, conversions, hidden_size(model))
    for name, shape in saved(model, base).items():
        if name not in tensors:
            raise BuildError(f"{name}: the model of config.json has it, the base's files have not")
        if shape != tensors[name][1]:
            raise BuildError(f"{name}: {list(tensors[name][1])} in the base, {list(shape)} by config.json")
    return base


def saved(model: Any, base: Base) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors that files like the base's would hold of the model, apart from unloaded ones."""
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    state = model.state_dict()
    for name in model._keys_to_ignore_on_save or ():
        state.pop(name, None)
    # It looks for tied ones among parameters, and on meta stops at a buffer, such as the bias of DeepSeek's router.
    buffers = {name: tensor for name, tensor in model.named_buffers() if state.pop(name, None) is not None}
    own = {name: model.get_parameter(name) for name in model.all_tied_weights_keys if numbered(name)[0] in base.names}
    written = _in_files(model, remove_tied_weights_from_state_dict(state, model) | buffers | own, base)
    return {name: tuple(tensor.shape) for name, tensor in written.items()}


def tied(model: Any, base: Base) -> dict[str, str]:
    """Return which tensor of the files stands for each that is tied to it; files may hold the latter too."""

    def in_files(name: str) -> str:
        return next(iter(_in_files(model, {name: model.get_parameter(name)}, base)))

    return {in_files(name): in_files(other) for name, other in model.all_tied_weights_keys.items()}


def _in_files(model: Any, state: dict[str, Any], base: Base) -> dict[str, Any]:
    """Return tensors as they are in files: by the names that loading the base meets, else converted back.

    Left to itself transformers would undo every conversion that it knows for the class, used or not, and some of them
    wrongly: saved without having been loaded, Qwen3.5-MoE's names say `language_model` three times, and Gemma 3's
    `language_model.model` comes back as `model.language_model.model`.
    """
    from transformers.core_model_loading import revert_weight_conversion

    found, left = {}, {}
    for name, tensor in state.items():
        pattern, numbers = numbered(name)
        if pattern in base.names:
            found[named(base.names[pattern], numbers)] = tensor
        else:
            left[name] = tensor
    model._weight_conversions = list(base.conversions)
    return found | dict(revert_weight_conversion(model, left) if base.conversions else left)


def _loading(model: Any, names: Iterable[str]) -> tuple[dict[str, str], tuple[Any, ...], tuple[str, ...]]:
    """Return how loading renames tensors of these names, the conversions it uses, and the names that it does not load.

    As `convert_and_load_state_dict_in_model` of transformers 5.5.1, which does not say which of them it used: a name
    that a conversion leads astray is taken as it stands.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    known = get_model_conversion_mapping(model)
    renamings = [each for each in known if isinstance(each, WeightRenaming)]
    converters = [each for each in known if isinstance(each, WeightConverter)]
    state, prefix = model.state_dict(), model.base_model_prefix
    renamed, used, unloaded = dict[str, str](), set[int](), []
    for name in names:
        target, converter = rename_source_key(name, renamings, converters, prefix, state)
        if target in state:
            used |= set(map(id, _applied(name, renamings, converters)))
        elif name in state:
            target, converter = name, None
        else:
            unloaded.append(name)
            continue
        (before, numbers), (after, same) = numbered(name), numbered(target)
        if converter is None and numbers == same:
            renamed.setdefault(after, before)
    return renamed, tuple(each for each in known if id(each) in used), tuple(unloaded)


def _applied(name: str, renamings: list[Any], converters: list[Any]) -> Iterator[Any]:
    """Yield the conversions that a name meets: every renaming that fits, then one converter."""
    for each in renamings:
        name, pattern = each.rename_source_key(name)
        if pattern is not None:
            yield each
    yield from [each for each in converters if each.rename_source_key(name)[1] is not None][:1]


def hidden_size(model: Any) -> int:
    """Return the width of the stream between the blocks of a model."""
    return int(model.config.get_text_config().hidden_size)
