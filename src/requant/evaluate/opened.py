"""A checkpoint as a model of floats: what its codes decode to, under the base's names, with the base's configuration.

So every format that is modelled can be run by the class of the base, on any machine, whatever kernels there are for
it. It is written in windows, file by file as the base's, and a file that is there is not written again.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from requant.check import side_of, traced_spans
from requant.check.declared import Scheme, read_scheme
from requant.check.reader import Reader
from requant.check.side_files import CONFIG
from requant.check.spans import Span, Window
from requant.check.stored import Stored, fixed
from requant.checkpoint.checkpoint import INDEX, Held, Tensor, header_of, index
from requant.checkpoint.safetensors import ITEM_BITS, Spec
from requant.errors import CheckpointError, NotModelledError
from requant.evaluate.decoded import decode, windows
from requant.evaluate.evaluation import Precision
from requant.formats.codec import FLOATS, Array, narrow
from requant.model.tables import table_of
from requant.progress import Progress, Tell

FAULTS = ("missing tensor", "wrong shape", "used twice")


@dataclass(frozen=True)
class Arranged:
    """Where all of a checkpoint lies in its base.

    `mtp` says whether it has an MTP block, `unread` are its tensors that the base's model has no place for, and
    `activations` is what its scheme says of quantizing the inputs of layers, "" where it leaves them.
    """

    checkpoint: Reader
    base: Reader
    spans: tuple[Span, ...]
    mtp: bool
    unread: tuple[str, ...]
    activations: str

    def specs(self, precision: Precision) -> dict[str, dict[str, Spec]]:
        """Return the tensors of the model, by the base's files and in their order.

        What the base has in float32 stays so in any precision, and so does what holds no floats.
        """
        found: dict[str, dict[str, Spec]] = {}
        for name in sorted(self._by_tensor, key=lambda name: self.base.tensors[name].start):
            spec = self.base.tensors[name].spec
            dtype = "F32" if precision == "float32" or spec.dtype == "F32" else "BF16"
            made = Spec(dtype if spec.dtype in FLOATS else spec.dtype, spec.shape)
            found.setdefault(self.base.tensors[name].file, {})[name] = made
        return dict(sorted(found.items()))

    def nbytes(self, precision: Precision) -> int:
        """Return how many bytes the model is."""
        return sum(spec.nbytes for specs in self.specs(precision).values() for spec in specs.values())

    @cached_property
    def _by_tensor(self) -> dict[str, list[Span]]:
        found: dict[str, list[Span]] = {}
        for span in self.spans:
            found.setdefault(span.base, []).append(span)
        return found

    def write(self, folder: Path, precision: Precision, tell: Tell, threads: int = os.cpu_count() or 1) -> None:
        """Write the model into a folder; what stands there under its name is whole."""
        folder.mkdir(parents=True, exist_ok=True)
        specs = self.specs(precision)
        total, done = self.nbytes(precision), 0
        with ThreadPoolExecutor(threads) as pool:
            for file, inside in specs.items():
                if not (folder / file).exists():
                    for size in self._write_file(folder / file, inside, pool, 4 * threads):
                        tell(Progress("open the checkpoint", done + size, total))
                done += sum(spec.nbytes for spec in inside.values())
                tell(Progress("open the checkpoint", done, total))
        if len(specs) > 1:
            none = Held(b"")
            shards = {
                file: {name: Tensor(spec, none) for name, spec in inside.items()} for file, inside in specs.items()
            }
            (folder / INDEX).write_bytes(index(shards).data)
        (folder / CONFIG).write_bytes(self.base.files.whole(CONFIG))

    def _write_file(self, path: Path, specs: Mapping[str, Spec], pool: ThreadPoolExecutor, ahead: int) -> Iterator[int]:
        part = path.with_name(f".{path.name}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        header = header_of(specs)
        begins, end = {}, len(header)
        for name, spec in specs.items():
            begins[name], end = end, end + spec.nbytes
        with part.open("wb") as file:
            file.write(header)
            file.truncate(end)
            file.flush()

            def put(window: Window) -> int:
                name = window.span.base
                values = decode(window, self.checkpoint, self.base)
                return _put(file.fileno(), begins[name], window, specs[name], self.base.tensors[name].spec, values)

            queue = (
                each
                for name in specs
                for span in self._by_tensor[name]
                for each in windows(span, self.checkpoint, self.base)
            )
            done = 0
            while some := [*islice(queue, ahead)]:
                done += sum(pool.map(put, some))
                yield done
            os.fsync(file.fileno())
        part.rename(path)


def _put(file: int, begin: int, window: Window, spec: Spec, own: Spec, values: Array) -> int:
    """Write decoded rows to where they lie in a tensor that begins at a byte of a file; return how many bytes."""
    data = values if own.dtype not in FLOATS else narrow(values, spec.dtype)
    span, first = window.span, window.span.first + window.first
    item = ITEM_BITS[spec.dtype] // 8
    if not span.transposed:
        _pwrite(file, np.ascontiguousarray(data), begin + item * span.columns * first)
        return int(data.nbytes)
    outputs = own.shape[-1]
    expert, output = divmod(first, outputs)
    for column, each in enumerate(np.ascontiguousarray(data.T)):
        _pwrite(file, each, begin + item * ((expert * span.columns + column) * outputs + output))
    return int(data.nbytes)


def _pwrite(file: int, data: Array, offset: int) -> None:
    view = data.reshape(-1).view(np.uint8).data
    while view:
        count = os.pwrite(file, view, offset)
        view, offset = view[count:], offset + count


def of_mtp(base: Reader) -> frozenset[str]:
    """Return the tensors of a base's MTP block, which transformers does not load with the model, if one is known."""
    block = table_of(side_of(base).config() or {}).mtp
    return frozenset(name for name in base.tensors if block and name.startswith(block.prefix))


def arrange(checkpoint: Reader, base: Reader) -> Arranged:
    """Trace a checkpoint to its base, whose model it is to be run as.

    Raises NotModelledError for a layer whose format is not modelled, and a base that is quantized itself;
    CheckpointError where the checkpoint lacks something of the base, but for an MTP block.
    """
    theirs, ours = side_of(checkpoint), side_of(base)
    config = ours.config()
    if config is None:
        raise CheckpointError(f"{base.name}: has no {CONFIG}", "Name the folder of the base, as it was published.")
    if config.get("quantization_config"):
        raise NotModelledError(f"{base.name}: is quantized itself", "Name the model in floats that it was made from.")
    for name, file in checkpoint.twice:
        raise CheckpointError(f"{checkpoint.name}: {name} stands in two files, also in {file}", WHOLE)
    scheme, _ = read_scheme(theirs)
    spans, findings, _ = traced_spans(scheme, checkpoint, base, theirs, ours, narrow=False)
    for each in findings:
        if each.kind == "not modelled":
            detail = f": {each.detail}" if each.detail else ""
            raise NotModelledError(f"{checkpoint.name}: {each.tensor} is not modelled{detail}", DECODED)
        if each.kind in FAULTS:
            told = f"{checkpoint.name}: {each.tensor}: {each.kind}: {each.detail}"
            raise CheckpointError(told, WHOLE)
    coded = (span for span in spans if span.codec)
    for odd in (each for span in coded for each in fixed(span, Stored.of(span, checkpoint, base), checkpoint)):
        # A loader reads codes as this tensor says, which is not how they are decoded here.
        raise CheckpointError(f"{checkpoint.name}: {odd.tensor}: {odd.kind}: {odd.detail}", WHOLE)
    lacking = [each.tensor for each in findings if each.kind == "not in the checkpoint"]
    block = of_mtp(base)
    if main := [name for name in lacking if name not in block]:
        more = f", and {len(main) - 1:,} more" if len(main) > 1 else ""
        told = f"{checkpoint.name}: lacks {main[0]} of the base{more}"
        raise CheckpointError(told, "What is run is the base's whole model.")
    mtp = bool(block) and not lacking
    kept = tuple(span for span in spans if mtp or span.base not in block)
    unread = [each.tensor for each in findings if each.kind == "no origin"] + [name for name, _ in checkpoint.beyond]
    return Arranged(checkpoint, base, kept, mtp, tuple(unread), activations(scheme))


WHOLE = "`requant check` names all that does not fit."
DECODED = "What is run are the weights that its codes decode to: docs/formats.md lists the formats."


def activations(scheme: Scheme | None) -> str:
    """Return the key of a configuration that asks for quantized inputs of layers; "" where none does."""
    value: Mapping[str, Any] = scheme.value if scheme else {}
    groups = value.get("config_groups")
    for each in _objects(groups.values() if isinstance(groups, Mapping) else ()):
        if each.get("input_activations"):
            return "config_groups.input_activations"
    if value.get("quant_method") in ("fp8", "fbgemm_fp8"):
        return "activation_scheme"
    for each in _objects((value, value.get("quantization"))):
        if "A16" not in str(each.get("quant_algo") or "A16").upper():
            return "quant_algo"
    if value.get("load_in_8bit"):
        return "load_in_8bit"
    bits = value.get("act_bits", 16)
    return "act_bits" if type(bits) is int and bits < 16 else ""


def _objects(values: Iterable[Any]) -> Sequence[Mapping[str, Any]]:
    return [each for each in values if isinstance(each, Mapping)]
