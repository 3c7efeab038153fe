"""nftbench tests claims of non-fine-tunability: that a released model gains little from unauthorised fine-tuning.

Plugins import the names below from here, and shared building blocks from `nftbench.methods`. Each name is loaded at its
first use, so that `import nftbench` is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nftbench.contract import (
        Adapter as Adapter,
        Attack as Attack,
        AttackerContext as AttackerContext,
        Candidates as Candidates,
        Claim as Claim,
        Corpus as Corpus,
        Cost as Cost,
        Defense as Defense,
        EachStep as EachStep,
        Guess as Guess,
        Inspection as Inspection,
        Mask as Mask,
        Measurement as Measurement,
        Model as Model,
        Outcome as Outcome,
        OwnerContext as OwnerContext,
        Point as Point,
        Prepared as Prepared,
        Protected as Protected,
        Protection as Protection,
        Reading as Reading,
        Release as Release,
        Secret as Secret,
        Series as Series,
        Split as Split,
        StepLoss as StepLoss,
        Task as Task,
        TaskContext as TaskContext,
        Update as Update,
        WrappedTask as WrappedTask,
        Yardstick as Yardstick,
    )
    from nftbench.errors import NftbenchError as NftbenchError
    from nftbench.records.spec import Spec as Spec
    from nftbench.suites import (
        Budget as Budget,
        Pretraining as Pretraining,
        Suite as Suite,
    )
    from nftbench.terms import (
        Adaptation as Adaptation,
        Knowledge as Knowledge,
        Optimizer as Optimizer,
        SplitName as SplitName,
        Stage as Stage,
        TrainedWeights as TrainedWeights,
    )

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
