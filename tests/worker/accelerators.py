"""What the worker says to GPUs that are stand-ins: only the one that the host looked at will do."""

from types import SimpleNamespace
from typing import Any

import torch
from tests.worker.prepared import answer

from requant.errors import BuildError
from requant.worker import determinism

UUID = "8b9a1c22-0000-4444-8888-0123456789ab"


def accelerators() -> dict[str, Any]:
    def said(expected: str, *, device: str = "cuda", there: bool = True, uuid: str = UUID) -> str:
        torch.cuda.is_available = lambda: there
        torch.cuda.get_device_properties = lambda _: SimpleNamespace(name="NVIDIA H200", uuid=uuid)
        try:
            determinism.confirm_accelerator(device, expected)
        except BuildError as error:
            return str(error)
        return ""

    return {
        "the same": said(f"GPU-{UUID}"),
        "the same, by its whole name": said(f"GPU-{UUID}", uuid=f"GPU-{UUID}"),
        "another": said("GPU-ffffffff-0000-4444-8888-0123456789ab"),
        "none was named": said(""),
        "none is there": said(f"GPU-{UUID}", there=False),
        "a CPU": said("", device="cpu", there=False),
    }


if __name__ == "__main__":
    answer(accelerators)
