"""The device that a run computes on, the CPU or one CUDA GPU, with its number of threads and its precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from nftbench.errors import NftbenchError, suggest

DeviceKind = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Device:
    """The CPU or one CUDA GPU. As text it is written as in torch and in `--device`: `cpu`, `cuda`, `cuda:1`."""

    kind: DeviceKind = "cpu"
    index: int | None = None
    """The number of the GPU; None for torch's current one, and for the CPU."""

    @classmethod
    def parse(cls, text: str) -> Device:
        """The device with this name. It need not exist on this machine.

        Raises:
            NftbenchError: the text is not the name of a device.
        """
        kind, colon, index = text.partition(":")
        if text == "cpu":
            return cls()
        if kind != "cuda" or (colon and not index.isdecimal()):
            near = "cuda" if kind.lower() in ("gpu", "nvidia") else text  # gpu looks more like cpu
            raise NftbenchError(f"--device {text}: no such device{suggest(near, get_args(DeviceKind))}")
        return cls("cuda", int(index) if colon else None)

    def __str__(self) -> str:
        return self.kind if self.index is None else f"{self.kind}:{self.index}"

    @property
    def threads(self) -> int | None:
        """The number of CPU threads for one cell; None on CUDA, which leaves it to torch.

        On the CPU it is one, because rounding errors of sums depend on the number of threads.
        """
        return 1 if self.kind == "cpu" else None

    @property
    def autocast(self) -> Literal["bfloat16"] | None:
        """The number format of mixed-precision training: bfloat16 on CUDA; None on the CPU, which trains in float32."""
        return "bfloat16" if self.kind == "cuda" else None


CPU = Device()
