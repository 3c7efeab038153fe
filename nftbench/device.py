"""What a plan computes on: the CPU or one CUDA card, and the arithmetic that goes with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from nftbench.errors import NftbenchError, suggest

DeviceKind = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Device:
    """The CPU, or the CUDA card of this index. Printed as torch and `--device` write it: `cpu`, `cuda`, `cuda:1`."""

    kind: DeviceKind = "cpu"
    index: int | None = None
    """Of a card; None for the current one."""

    @classmethod
    def parse(cls, text: str) -> Device:
        """The device that `--device` names.

        Raises:
            NftbenchError: there is no device of this name. Whether the machine has it is not looked at.
        """
        kind, colon, index = text.partition(":")
        if text == "cpu":
            return cls()
        if kind != "cuda" or (colon and not index.isdecimal()):
            raise NftbenchError(f"--device {text}: no such device{suggest(text, get_args(DeviceKind))}")
        return cls("cuda", int(index) if colon else None)

    def __str__(self) -> str:
        return self.kind if self.index is None else f"{self.kind}:{self.index}"

    @property
    def threads(self) -> int | None:
        """Threads that a cell computes on: one on the CPU, for the bits of a sum depend on their number.

        None on CUDA: as many as torch takes.
        """
        return 1 if self.kind == "cpu" else None

    @property
    def autocast(self) -> Literal["bfloat16"] | None:
        """The number format of mixed-precision arithmetic: bfloat16 on CUDA; None on the CPU, which has none."""
        return "bfloat16" if self.kind == "cuda" else None


CPU = Device()
