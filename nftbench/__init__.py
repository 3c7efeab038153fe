"""nftbench tests claims of non-fine-tunability: that a released model gains little from unauthorised fine-tuning.

Plugins import the names below from here, and shared building blocks from `nftbench.methods`. Each name is loaded at its
first use, so that `import nftbench` is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nftbench.contract import (
        Adapter,
        Attack,
        AttackerContext,
        Candidates,
        Claim,
        Corpus,
        Cost,
        Defense,
        EachStep,
        Guess,
        Inspection,
        Mask,
        Measurement,
        Model,
        Outcome,
        OwnerContext,
        Passes,
        Point,
        Prepared,
        Protected,
        Protection,
        Reading,
        Release,
        Secret,
        Series,
        Split,
        StepLoss,
        Task,
        TaskContext,
        Update,
        WrappedTask,
        Yardstick,
    )
    from nftbench.errors import NftbenchError
    from nftbench.records.spec import Spec
    from nftbench.suites import Budget, Pretraining, Suite
    from nftbench.terms import Adaptation, Knowledge, Optimizer, SplitName, Stage, TrainedWeights

__version__ = "0.2.0"
__all__ = [
    "Adaptation",
    "Adapter",
    "Attack",
    "AttackerContext",
    "Budget",
    "Candidates",
    "Claim",
    "Corpus",
    "Cost",
    "Defense",
    "EachStep",
    "Guess",
    "Inspection",
    "Knowledge",
    "Mask",
    "Measurement",
    "Model",
    "NftbenchError",
    "Optimizer",
    "Outcome",
    "OwnerContext",
    "Passes",
    "Point",
    "Prepared",
    "Pretraining",
    "Protected",
    "Protection",
    "Reading",
    "Release",
    "Secret",
    "Series",
    "Spec",
    "Split",
    "SplitName",
    "Stage",
    "StepLoss",
    "Suite",
    "Task",
    "TaskContext",
    "TrainedWeights",
    "Update",
    "WrappedTask",
    "Yardstick",
]
_MODULES = ("nftbench.contract", "nftbench.records.spec", "nftbench.suites")
"""Modules that have these names, searched in this order. The one that takes longest to import is last."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'nftbench' has no attribute {name!r}")
    return next(getattr(module, name) for module in map(import_module, _MODULES) if hasattr(module, name))
