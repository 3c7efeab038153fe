"""nftbench measures how much a claim of non-fine-tunability is worth.

The names below are what a plugin needs. They are loaded when first used: importing nftbench costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nftbench.suite import Suite as Suite
    from nftbench.types import (
        Attack as Attack,
        AttackerContext as AttackerContext,
        Claim as Claim,
        Defense as Defense,
        Inspection as Inspection,
        Mask as Mask,
        Measurement as Measurement,
        Model as Model,
        NftbenchError as NftbenchError,
        Outcome as Outcome,
        OwnerContext as OwnerContext,
        Prepared as Prepared,
        Protected as Protected,
        Reading as Reading,
        Release as Release,
        Secret as Secret,
        Series as Series,
        Split as Split,
        SplitName as SplitName,
        Task as Task,
        TaskContext as TaskContext,
        Update as Update,
        WrappedTask as WrappedTask,
        Yardstick as Yardstick,
    )

__version__ = "0.1.0"
__all__ = [
    "Attack",
    "AttackerContext",
    "Claim",
    "Defense",
    "Inspection",
    "Mask",
    "Measurement",
    "Model",
    "NftbenchError",
    "Outcome",
    "OwnerContext",
    "Prepared",
    "Protected",
    "Reading",
    "Release",
    "Secret",
    "Series",
    "Split",
    "SplitName",
    "Suite",
    "Task",
    "TaskContext",
    "Update",
    "WrappedTask",
    "Yardstick",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'nftbench' has no attribute {name!r}")
    return getattr(import_module("nftbench.suite" if name == "Suite" else "nftbench.types"), name)
