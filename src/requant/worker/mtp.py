"""The MTP block of Qwen3.5, which predicts the token after the next one, and which transformers does not load.

Row `p` of its input is made of what the model, its last norm included, makes of token `p`, and of the embedding of
token `p + 1`; it stands at position `p`, sees the rows up to its own, and leads to the logits of token `p + 2`:

    x = fc(concat(pre_fc_norm_embedding(embedding of token p + 1), pre_fc_norm_hidden(model's hidden state p)))
    logits = lm_head(norm(layers[0](x)))

with embedding and head of the model. The last token of a sequence has no next one there, so it has no row: a sequence
of n tokens has n - 1. Further drafts, for which loaders feed the block its own output, are not computed here.

Sources: vLLM, models/qwen3_5_mtp.py (`Qwen3_5MultiTokenPredictor.forward`: order, norms, full attention), qwen3_next.py
(`Qwen3NextModel.forward`: the hidden state is the normed one) and v1/spec_decode (tokens are shifted by one, positions
are not); SGLang, models/qwen3_5_mtp.py and qwen3_5.py, in all of it alike. A wrong choice is silent, as each of the
norms makes good for the scale: llama.cpp gave the block the state before the norm and drafted worse, until its change
24025 measured the difference.
"""

from copy import deepcopy
from pathlib import Path
from typing import Any

from requant.errors import BuildError

NAME = "mtp"
"""What the module of the block is called, in files and in the model that it is attached to."""
BLOCK = f"{NAME}.layers.0"
"""Its decoder layer, which is a block like the model's own."""


def attach(model: Any, base: Path) -> None:
    """Give a model that transformers loaded the MTP block of its base, in the model's dtype, on the CPU.

    Its parts are the classes of the model's own. Raises BuildError where the base's tensors are not its tensors.
    """
    import torch

    decoder = model.get_decoder()
    config = deepcopy(decoder.config)
    config.layer_types, config.num_hidden_layers = ["full_attention"], 1
    width, norm = config.hidden_size, type(decoder.norm)
    with torch.device("meta"):
        block = torch.nn.Module()
        for name in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"):
            block.add_module(name, norm(width, eps=config.rms_norm_eps))
        block.fc = torch.nn.Linear(2 * width, width, bias=False)
        block.layers = torch.nn.ModuleList([type(decoder.layers[0])(config, 0)])
    tensors = {name.removeprefix(f"{NAME}."): tensor.to(model.dtype) for name, tensor in _stored(base).items()}
    expected = {name: tensor.shape for name, tensor in block.state_dict().items()}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if (one := found.get(name)) != (other := expected.get(name)):
            said = [list(each) if each is not None else "no such tensor" for each in (one, other)]
            raise BuildError(f"{NAME}.{name}: the base has {said[0]}, its MTP block of one layer has {said[1]}")
    block.load_state_dict(tensors, assign=True)
    block.requires_grad_(False)
    model.add_module(NAME, block.eval())


def _stored(base: Path) -> dict[str, Any]:
    from safetensors import safe_open

    found = {}
    for path in sorted(base.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found.update({name: file.get_tensor(name) for name in file.keys() if name.startswith(f"{NAME}.")})  # noqa: SIM118 (no mapping)
    return found


def given(model: Any, put_out: Any, tokens: Any) -> Any:
    """Return what the decoder layer of the MTP block is given [samples, tokens - 1, hidden].

    `put_out` is what the model's last block makes [samples, tokens, hidden] of the `tokens` [samples, tokens].
    """
    import torch

    block = model.get_submodule(NAME)
    hidden = block.pre_fc_norm_hidden(model.get_decoder().norm(put_out[:, :-1]))
    embedded = model.get_input_embeddings()(tokens[:, 1:]).to(hidden.device, hidden.dtype)
    return block.fc(torch.cat([block.pre_fc_norm_embedding(embedded), hidden], dim=-1))


def logits(model: Any, put_out: Any, tokens: Any) -> Any:
    """Return the logits [samples, tokens - 1, vocabulary] of each token after the next; arguments as of `given`."""
    import torch

    rows = given(model, put_out, tokens)
    count = rows.shape[1]
    unseen = torch.full((count, count), torch.finfo(rows.dtype).min, dtype=rows.dtype, device=rows.device).triu(1)
    positions = torch.arange(count, device=rows.device)[None].expand(len(rows), -1)
    made = model.get_submodule(BLOCK)(
        rows,
        position_embeddings=model.get_decoder().rotary_emb(rows, positions),
        attention_mask=unseen[None, None],
    )
    return model.get_output_embeddings()(model.get_submodule(NAME).norm(made))
