"""What makes a tuning repeat bit for bit: set before torch is imported, confirmed after AutoRound is built.

What is known about each measure, and how it was measured: docs/determinism.md.
"""

import importlib.util
import os
import platform
import random
from pathlib import Path
from typing import Any

from requant.digest import canonical_json, sha256
from requant.errors import BuildError

CPU_CAPS = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "COMPATIBLE",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
"""What fixes the order of every sum on a CPU: instruction sets, because each processor's widest vectors sum in
their own order, and one thread, because two split a matrix product and a reduction at other places than one."""

AUTOTUNED = ("fla", "causal_conv1d", "flash_attn")
"""Packages whose kernels choose their own tiling by stopwatch; the model uses them as soon as they are there."""


def prepare(device: str, *, capped: bool = True) -> None:
    """Set what must be set before torch is imported.

    Of a CPU that is not `capped` all instructions are used, by one thread unless the environment says more.
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    if device == "cpu":
        os.environ.update(CPU_CAPS if capped else {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")})
    if found := [name for name in AUTOTUNED if importlib.util.find_spec(name)]:
        raise BuildError(f"{', '.join(found)}: installed, and tuned by stopwatch", "Build in the locked environment.")


def confirm_accelerator(device: str, expected: str) -> None:
    """Raise BuildError unless the GPU that torch takes is the one with the UUID `expected`, which the host looked at.

    Torch takes the first that it sees, which on a machine with several need not be the one that was looked at.
    """
    if device == "cpu":
        return
    import torch

    if not torch.cuda.is_available():
        raise BuildError(
            f"torch sees no GPU, expected {expected}", "Look at what nvidia-smi says in the worker's place."
        )
    properties = torch.cuda.get_device_properties(0)
    found = f"GPU-{str(properties.uuid).removeprefix('GPU-')}"
    if found != expected:
        raise BuildError(
            f"torch takes {properties.name} {found}, expected {expected or 'none'}",
            "The worker is to see that GPU alone: what sets CUDA_VISIBLE_DEVICES, or gives the container another one?",
        )


def enforce() -> None:
    """Make torch refuse every operator without a deterministic form, and sum cumulatively in a fixed order.

    On CUDA `cumsum` of floats has no deterministic form, and transformers 5.5.1 calls it in the gated delta
    rule (modeling_qwen3_5_moe.py:276). The replacement runs everywhere, so that a tiny model runs the same code.
    """
    import torch

    torch.use_deterministic_algorithms(True, warn_only=False)
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = False
    whole_numbers = torch.Tensor.cumsum

    def cumsum(self: Any, dim: int, **options: Any) -> Any:
        return fixed_order_cumsum(self, dim) if self.is_floating_point() else whole_numbers(self, dim, **options)

    torch.Tensor.cumsum = cumsum


def fixed_order_cumsum(values: Any, dim: int) -> Any:
    """Return the cumulative sum along `dim` by doubling strides: additions only, in an order that is fixed.

    Hillis and Steele, "Data parallel algorithms", 1986. The result has the shape and dtype of `values`.
    """
    import torch

    stride = 1
    while stride < values.shape[dim]:
        first, rest = values.split([stride, values.shape[dim] - stride], dim)
        values = torch.cat([first, rest + values.narrow(dim, 0, rest.shape[dim])], dim)
        stride *= 2
    return values


def confirm(autoround: Any, device: str, precision: str, *, capped: bool = True) -> None:
    """Raise BuildError unless torch is still strict and AutoRound tunes in the recipe's precision.

    AutoRound's constructor relaxes torch to warnings, and chooses the precision by CPUID, unless told otherwise.
    """
    import torch

    if not torch.are_deterministic_algorithms_enabled() or torch.is_deterministic_algorithms_warn_only_enabled():
        raise BuildError("AutoRound has relaxed torch's determinism to warnings", "Report this with the log.")
    if autoround.amp_dtype != getattr(torch, precision):
        raise BuildError(f"AutoRound tunes in {autoround.amp_dtype}, the recipe asks for {precision}")
    if device == "cpu" and capped:
        capability, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
        if capability != "AVX2":
            raise BuildError(
                f"torch runs with {capability}, the cap is AVX2", "A CPU without AVX2 cannot build a tiny model."
            )
        if threads != 1:
            raise BuildError(f"torch runs with {threads} threads, the cap is 1", "Report this with the log.")


def random_state() -> str:
    """Return the digest of Python's generator, which is the only one that AutoRound draws from between blocks."""
    return sha256(canonical_json(random.getstate()))


def hardware_class(device: str, precision: str, *, capped: bool = True) -> dict[str, Any]:
    """Return the class inside which equal bits are claimed; see docs/determinism.md for what each part does.

    Of a CPU that is not `capped` it says what torch uses of it instead of the caps: bits are not claimed to be equal.
    """
    import torch

    if device == "cpu":
        vendor, model = processor(Path("/proc/cpuinfo").read_text())
        return {
            "accelerator": "cpu",
            "machine": platform.machine(),
            "caps": CPU_CAPS if capped else _used(),
            "precision": precision,
            "vendor": vendor,
            "model": model,
        }
    properties = torch.cuda.get_device_properties(0)
    driver = Path("/proc/driver/nvidia/version")
    return {
        "accelerator": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "mig": "MIG" in properties.name,
        "driver": driver.read_text().splitlines()[0] if driver.exists() else "",
        "libraries": {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()},
        "precision": precision,
    }


def _used() -> dict[str, str]:
    import torch

    set_here = {name: os.environ[name] for name in CPU_CAPS if name in os.environ}
    return {**set_here, "capability": torch.backends.cpu.get_cpu_capability(), "threads": str(torch.get_num_threads())}


def processor(cpuinfo: str) -> tuple[str, str]:
    """Return vendor and model of the first processor of `/proc/cpuinfo`; Linux tells them in numbers alone on ARM."""
    pairs = (line.partition(":") for line in cpuinfo.split("\n\n")[0].splitlines())
    cpu = {key.strip(): value.strip() for key, _, value in pairs}
    if "CPU part" in cpu:
        return cpu.get("CPU implementer", ""), f"part {cpu['CPU part']} ({cpu.get('CPU variant', '')})"
    return cpu.get("vendor_id", ""), f"{cpu.get('model name', '')} ({cpu.get('cpu family', '')}/{cpu.get('model', '')})"
