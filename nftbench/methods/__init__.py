"""What plugins share and the referee does not need: adapters, masks, distillation, condition numbers, tabular tasks.

Plugins import from here and from `nftbench`, and from nowhere else, so that their import lines stay valid when files
move. The functions and modules below live in other rooms and are offered here to plugins.
"""

from __future__ import annotations

from nftbench.data import grammar
from nftbench.data.grammar import PHENOMENA, Grammar
from nftbench.data.splits import BlockSplit
from nftbench.models import updates
from nftbench.models.architectures import dlr
from nftbench.models.architectures.linear import LinearModel
from nftbench.models.networks import build, load, seeded, untrained
from nftbench.training.costs import gradients
from nftbench.training.engine import Stepper, shuffled, token_batches
from nftbench.training.preparation import fitting, tuned

__all__ = [
    "PHENOMENA",
    "BlockSplit",
    "Grammar",
    "LinearModel",
    "Stepper",
    "build",
    "dlr",
    "fitting",
    "gradients",
    "grammar",
    "load",
    "seeded",
    "shuffled",
    "token_batches",
    "tuned",
    "untrained",
    "updates",
]
