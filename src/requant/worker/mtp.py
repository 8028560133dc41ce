"""The MTP block, which predicts the token after the next one, and which transformers does not load with its model.

Row `p` of its input is made of what the model, its last norm included, makes of token `p`, and of the embedding of
token `p + 1`; it stands at position `p`, sees the rows up to its own, and leads to the logits of token `p + 2`. Of
Qwen3.5, where other architectures have other names and the same order (`requant.mtp_blocks`, with the sources):

    x = fc(concat(pre_fc_norm_embedding(embedding of token p + 1), pre_fc_norm_hidden(model's hidden state p)))
    logits = lm_head(norm(layers[0](x)))

with embedding and head of the model. The last token of a sequence has no next one there, so it has no row: a sequence
of n tokens has n - 1. Further drafts, for which loaders feed the block its own output, are not computed here.

A wrong choice is silent, as each of the norms makes good for the scale: llama.cpp gave the block of Qwen3.5 the state
before the norm and drafted worse, until its change 24025 measured the difference.
"""

from collections.abc import Collection, Mapping
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

from requant.errors import BuildError
from requant.mtp_blocks import MTP_BLOCKS, Half, MtpBlock

Shapes = dict[str, tuple[int, ...]]


def attach(model: Any, base: Path) -> None:
    """Give a model that transformers loaded the MTP block of its base, in the model's dtype, on the CPU.

    Its modules have in the model the names that they have in files, and are of the model's own classes. Raises
    BuildError where the base's tensors are not its tensors, or where no such block is known of the architecture.
    """
    import torch

    block = _block(model)
    decoder = model.get_decoder()
    width, norm = decoder.config.hidden_size, type(decoder.norm)
    with torch.device("meta"):
        parts = {part: norm(width, eps=decoder.config.rms_norm_eps) for part in (*block.halves.values(), block.norm)}
        parts[block.joint] = torch.nn.Linear(2 * width, width, bias=False)
    weights = {f"{part}.weight": module for part, module in parts.items()}
    stored, inside = _stored(base, block), f"{block.layer}." if block.layer else ""
    own = {name for name in stored if name in weights or not name.startswith(inside)}
    _confirm(block, _shapes({name: each.weight for name, each in weights.items()}), _shapes(stored, own))
    for name, module in weights.items():
        module.load_state_dict({"weight": stored[name].to(model.dtype)}, assign=True)
    layer = _layer(model, block, {name.removeprefix(inside): stored[name] for name in stored.keys() - own})
    for name, module in {block.block: layer, **{block.named(part): module for part, module in parts.items()}}.items():
        _put(model, name, module.requires_grad_(False).eval())


def _block(model: Any) -> MtpBlock:
    kind = model.config.model_type
    if kind not in MTP_BLOCKS:
        raise BuildError(f"{kind}: the MTP block of such a model is not known", f"Known are {', '.join(MTP_BLOCKS)}.")
    return MTP_BLOCKS[kind].behind(model.get_decoder().config.num_hidden_layers)


def _stored(base: Path, block: MtpBlock) -> dict[str, Any]:
    """Return the tensors of the block, but for what is the model's own, by their names below its root."""
    from safetensors import safe_open

    found = {}
    for path in sorted(base.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                if block.holds(name):
                    found[name.removeprefix(block.prefix)] = file.get_tensor(name)
    return found


def _layer(model: Any, block: MtpBlock, tensors: Mapping[str, Any]) -> Any:
    """Return the decoder layer, which transformers makes of its tensors as it does of a model's of one layer."""
    decoder = model.get_decoder()
    config = deepcopy(decoder.config)
    config.update({"num_hidden_layers": 1, **block.one_layer})
    first = "layers.0."
    state = {f"{first}{name}": tensor for name, tensor in tensors.items()}
    beside = {"embed_tokens.weight": model.get_input_embeddings().weight, "norm.weight": decoder.norm.weight}
    try:
        alone, said = type(decoder).from_pretrained(
            None,
            config=config,
            state_dict={**state, **beside},
            dtype=model.dtype,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except RuntimeError as error:  # of experts that are too few, or unlike
        raise BuildError(f"{block.block}: transformers makes no layer of the base's tensors: {error}") from None
    expected = _shapes(alone.state_dict(), said["missing_keys"])
    found = _shapes(state, said["unexpected_keys"])
    for name, one, other in said["mismatched_keys"]:
        found[name], expected[name] = tuple(one), tuple(other)
    inside = f"{block.layer}." if block.layer else ""
    _confirm(
        block, *({f"{inside}{name.removeprefix(first)}": each[name] for name in each} for each in (expected, found))
    )
    for module in alone.layers[0].modules():
        if hasattr(module, "config"):  # what is said later of how experts run, as AutoRound does, is said there
            module.config = decoder.config
    return alone.layers[0]


def _shapes(tensors: Mapping[str, Any], names: Collection[str] | None = None) -> Shapes:
    return {name: tuple(tensors[name].shape) for name in (tensors if names is None else names)}


def _confirm(block: MtpBlock, expected: Shapes, found: Shapes) -> None:
    """Raise BuildError for the first name, below the block's root, of which both do not say the same."""
    for name in sorted(expected.keys() | found.keys()):
        if (one := found.get(name)) != (other := expected.get(name)):
            said = [list(each) if each is not None else "no such tensor" for each in (one, other)]
            raise BuildError(f"{block.named(name)}: the base has {said[0]}, its MTP block of one layer has {said[1]}")


def _put(model: Any, name: str, module: Any) -> None:
    """Put a module into the model under a name, and into it what the name needs."""
    import torch

    *path, last = name.split(".")
    for part, following in pairwise((*path, last)):
        if not hasattr(model, part):
            model.add_module(part, torch.nn.ModuleList() if following.isdecimal() else torch.nn.Module())
        model = getattr(model, part)
    model.add_module(last, module)


def layer_name(model: Any) -> str:
    """Return the name of the decoder layer of the MTP block that was attached to a model, "" where none was."""
    if model.config.model_type not in MTP_BLOCKS:
        return ""
    block = _block(model)
    attached = any(name == block.named(block.joint) for name, _ in model.named_modules())
    return block.block if attached else ""


def beside_layer(model: Any) -> list[Any]:
    """Return the modules of the MTP block that are not of its decoder layer."""
    block = _block(model)
    return [model.get_submodule(block.named(part)) for part in (*block.halves.values(), block.joint, block.norm)]


def given(model: Any, put_out: Any, tokens: Any) -> Any:
    """Return what the decoder layer of the MTP block is given [samples, tokens - 1, hidden].

    `put_out` is what the model's last block makes [samples, tokens, hidden] of the `tokens` [samples, tokens].
    """
    import torch

    block = _block(model)
    state = model.get_decoder().norm(put_out[:, :-1])
    embedding = model.get_input_embeddings()(tokens[:, 1:]).to(state.device, state.dtype)
    of: Mapping[Half, Any] = {"embedding": embedding, "state": state}
    halves = [model.get_submodule(block.named(norm))(of[half]) for half, norm in block.halves.items()]
    return model.get_submodule(block.named(block.joint))(torch.cat(halves, dim=-1))


def logits(model: Any, put_out: Any, tokens: Any) -> Any:
    """Return the logits [samples, tokens - 1, vocabulary] of each token after the next; arguments as of `given`."""
    import torch

    block, rows = _block(model), given(model, put_out, tokens)
    count = rows.shape[1]
    unseen = torch.full((count, count), torch.finfo(rows.dtype).min, dtype=rows.dtype, device=rows.device).triu(1)
    positions = torch.arange(count, device=rows.device)[None].expand(len(rows), -1)
    made = model.get_submodule(block.block)(
        rows,
        position_embeddings=model.get_decoder().rotary_emb(rows, positions),
        attention_mask=unseen[None, None],
    )
    return model.get_output_embeddings()(model.get_submodule(block.named(block.norm))(made))
