"""Building blocks for plugins: adapters, masks, distillation, condition numbers, tabular tasks, cost measurements.

Plugins import from here and from `nftbench` and from nowhere else, so that their imports survive when files move. The
names below are defined in other rooms and re-exported for plugins; this room's own modules are imported by name.
"""

from __future__ import annotations

from nftbench.data import grammar
from nftbench.data.corpus import pack
from nftbench.data.grammar import Grammar, grammar_of
from nftbench.data.splits import BlockSplit, BlockTask, LoadedBlocks
from nftbench.data.window import window
from nftbench.models import updates
from nftbench.models.architectures import dlr, two_layer
from nftbench.models.architectures.linear import LinearModel
from nftbench.models.networks import build, load, seeded, untrained
from nftbench.models.prefixed import Prefixed
from nftbench.models.prompted import Prompted
from nftbench.models.white_head import WhiteHead
from nftbench.training.costs import gradients
from nftbench.training.engine import Stepper, shuffled, token_batches, warmed
from nftbench.training.preparation import fitting, tuned

__all__ = [
    "BlockSplit",
    "BlockTask",
    "Grammar",
    "LinearModel",
    "LoadedBlocks",
    "Prefixed",
    "Prompted",
    "Stepper",
    "WhiteHead",
    "build",
    "dlr",
    "fitting",
    "gradients",
    "grammar",
    "grammar_of",
    "load",
    "pack",
    "seeded",
    "shuffled",
    "token_batches",
    "tuned",
    "two_layer",
    "untrained",
    "updates",
    "warmed",
    "window",
]
