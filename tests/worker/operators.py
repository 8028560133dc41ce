"""`RECIPE BASE CUMSUM`: every operator that the tuning of a linear and of a full attention block runs, and its fate.

AutoRound tunes the blocks for one iteration, forward and backward; what autograd runs is seen as well, because on
a CPU it runs in the same thread. With CUMSUM `torch` the worker's replacement is taken away again.

The fate is what torch documents for CUDA under strict determinism (`torch.use_deterministic_algorithms`, 2.13.0):
`raises`, or `switches` to a deterministic form. The tables name the operators behind the documented names; the
document itself is printed too, so that a test finds names that a newer torch has added.
"""

import re
import traceback
from pathlib import Path
from typing import Any

import torch
from tests.worker.prepared import answer, prepare
from torch.utils._python_dispatch import TorchDispatchMode

BLOCKS = ("model.language_model.layers.0", "model.language_model.layers.3")
LIBRARIES = ("auto_round", "transformers")

RAISES = {
    "torch.nn.AvgPool3d": ("avg_pool3d_backward",),
    "torch.nn.AdaptiveAvgPool2d": ("_adaptive_avg_pool2d_backward",),
    "torch.nn.AdaptiveAvgPool3d": ("_adaptive_avg_pool3d_backward",),
    "torch.nn.AdaptiveMaxPool2d": ("adaptive_max_pool2d_backward",),
    "torch.nn.FractionalMaxPool2d": ("fractional_max_pool2d_backward",),
    "torch.nn.FractionalMaxPool3d": ("fractional_max_pool3d_backward",),
    "torch.nn.MaxUnpool1d": ("max_unpool2d",),
    "torch.nn.MaxUnpool2d": ("max_unpool2d",),
    "torch.nn.MaxUnpool3d": ("max_unpool3d",),
    "torch.nn.functional.interpolate": (
        "upsample_linear1d_backward",
        "upsample_bilinear2d_backward",
        "upsample_bicubic2d_backward",
        "upsample_trilinear3d_backward",
        "_upsample_bilinear2d_aa_backward",
        "_upsample_bicubic2d_aa_backward",
    ),
    "torch.nn.ReflectionPad1d": ("reflection_pad1d_backward",),
    "torch.nn.ReflectionPad2d": ("reflection_pad2d_backward",),
    "torch.nn.ReflectionPad3d": ("reflection_pad3d_backward",),
    "torch.nn.NLLLoss": ("nll_loss_forward", "nll_loss2d_forward"),
    "torch.nn.CTCLoss": ("_ctc_loss_backward", "_cudnn_ctc_loss"),
    "torch.nn.EmbeddingBag": ("_embedding_bag_dense_backward",),
    "torch.Tensor.put_": ("put accumulate=True", "put accumulate=False"),
    "torch.histc": ("histc",),
    "torch.bincount": ("bincount weights",),
    "torch.median": ("median indices", "nanmedian indices"),
    "torch.nn.functional.grid_sample": ("grid_sampler_2d_backward", "grid_sampler_3d_backward"),
    "torch.cumsum": ("cumsum float",),
    "torch.Tensor.scatter_reduce": ("scatter_reduce reduce=prod",),
    "torch.Tensor.resize_": ("quantized_resize",),
}

RAISED_EARLIER = {
    "torch.nn.ReplicationPad1d": ("replication_pad1d_backward",),
    "torch.nn.ReplicationPad3d": ("replication_pad3d_backward",),
    "torch.nn.MaxPool3d": ("max_pool3d_with_indices_backward",),
    "torch.kthvalue": ("kthvalue",),
}
"""What raised in 2.6.0, the version in the lock cu124, or before, and has a deterministic form in 2.13.0."""

SWITCHES = {
    "torch.nn.Conv1d": ("convolution", "convolution_backward"),
    "torch.nn.Conv2d": ("convolution", "convolution_backward"),
    "torch.nn.Conv3d": ("convolution", "convolution_backward"),
    "torch.nn.ConvTranspose1d": ("convolution", "convolution_backward"),
    "torch.nn.ConvTranspose2d": ("convolution", "convolution_backward"),
    "torch.nn.ConvTranspose3d": ("convolution", "convolution_backward"),
    "torch.nn.ReplicationPad1d": (),
    "torch.nn.ReplicationPad2d": ("replication_pad2d_backward",),
    "torch.nn.ReplicationPad3d": (),
    "torch.nn.MaxPool3d": (),
    "torch.bmm": ("bmm sparse",),
    "torch.Tensor.__getitem__": ("index_put accumulate=True", "_unsafe_index_put accumulate=True"),
    "torch.Tensor.index_put": ("index_put accumulate=False", "index_put accumulate=True"),
    "torch.Tensor.put_": (),
    "torch.Tensor.scatter_add_": ("scatter_add",),
    "torch.gather": ("gather", "gather_backward"),
    "torch.index_add": ("index_add",),
    "torch.index_select": ("index_select", "index_select_backward"),
    "torch.repeat_interleave": ("repeat_interleave",),
    "torch.Tensor.index_copy": ("index_copy",),
    "torch.Tensor.scatter": ("scatter src",),
    "torch.Tensor.scatter_reduce": ("scatter_reduce reduce=sum", "scatter_reduce reduce=mean"),
}

ATTENTION = ("scaled_dot_product", "flash_attention", "efficient_attention", "cudnn_attention")
"""Not in the document. In strict mode memory-efficient attention keeps one split of its keys, flash attention sums
its gradients in order, and cuDNN's is not taken (`attention_backward.cu`, `sdp_utils.cpp`)."""


class Trace(TorchDispatchMode):  # type: ignore[misc]  # torch is Any
    """Counts operators, and keeps one place that each is called from."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, dict[str, Any]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = described(function, args, kwargs or {})
        if name not in self.seen:
            self.seen[name] = {"calls": 0, "fate": fate(name), "place": place()}
        self.seen[name]["calls"] += 1
        return function(*args, **(kwargs or {}))


def described(function: Any, args: Any, kwargs: Any) -> str:
    """Return the operator's name without the underscore of in-place forms, and the argument its fate depends on."""
    name = str(function.overloadpacket._qualified_op_name).removeprefix("aten::").rstrip("_")
    names = [each.name for each in function._schema.arguments]
    given = {
        key: value for key, value in {**dict(zip(names, args, strict=False)), **kwargs}.items() if value is not None
    }
    words = [name]
    if name == "cumsum" and (args[0].is_floating_point() or args[0].is_complex()):
        words.append("float")
    if name == "bmm" and any(each.is_sparse for each in args[:2]):
        words.append("sparse")
    if name.endswith("median") and "dim" in given:
        words.append("indices")
    words += [f"{key}={given[key]}" for key in ("accumulate", "reduce") if key in given]
    words += [key for key in ("src", "weights") if key in given and name in ("scatter", "bincount")]
    return " ".join(words)


def fate(name: str) -> str:
    for table, word in ((RAISES, "raises"), (RAISED_EARLIER, "raises"), (SWITCHES, "switches")):
        if any(name in operators for operators in table.values()):
            return word
    return "attention" if any(part in name for part in ATTENTION) else ""


def place() -> str:
    """Return the innermost place in AutoRound or transformers: backward operators come from `backward`."""
    frames = [frame for frame in traceback.extract_stack() if any(f"/{each}/" in frame.filename for each in LIBRARIES)]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].name}" if frames else ""


def document() -> dict[str, list[str]]:
    """Return the names in the two lists of torch's own document."""
    text = torch.use_deterministic_algorithms.__doc__
    _, switches, raises = re.split("normally-nondeterministic operations will", text)
    raises = raises.partition("In addition")[0]
    return {
        word: sorted(set(re.findall(r"\* :(?:class|func):`([\w.]+)`", part)))
        for word, part in (("raises", raises), ("switches", switches))
    }


def operators(recipe: str, base: str, cumsum: str) -> dict[str, Any]:
    original = torch.Tensor.cumsum
    autoround = prepare(recipe, Path(base), iterations=1).autoround
    if cumsum == "torch":
        torch.Tensor.cumsum = original
    compressor, trace = type(autoround), Trace()
    tune = compressor._quantize_block

    def quantize_block(self: Any, block: Any, *args: Any, **kwargs: Any) -> Any:
        if block.global_name not in BLOCKS:
            return tune(self, block, *args, **kwargs)
        with trace:
            return tune(self, block, *args, **kwargs)

    compressor._quantize_block = quantize_block
    autoround.quantize()
    known = {"raises": sorted(RAISES), "switches": sorted(SWITCHES)}
    return {"seen": trace.seen, "known": known, "document": document()}


if __name__ == "__main__":
    answer(operators)
