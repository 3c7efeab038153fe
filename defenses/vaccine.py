"""Vaccine: the owner's tuning goes on while the outputs of attention are pushed where this raises the loss most.

Huang et al. 2024 (NeurIPS), "Vaccine: Perturbation-aware Alignment for Large Language Models against Harmful
Fine-tuning Attack", https://arxiv.org/abs/2402.01109. It needs no harmful data. Each step has two passes on one batch.
The first takes the gradient g of the loss in the outputs of all attention blocks. The second adds rho·g / ‖g‖ to these
outputs, with ‖g‖ over all blocks together. The gradient of its loss, with the added part held constant, is the step's.

The paper aligns a model with safe answers to harmful questions. A base model has no such data: the owner's data is here
the pre-training text. So what must survive the attacker's fine-tuning is what the base has learnt.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nftbench import Claim, Defense, Model, OwnerContext, Passes, Protected, Series, Stage, Suite
from nftbench.methods import adapters, passes, seeded, tuning
from nftbench.methods.benign_text import text_batches, text_loss
from nftbench.methods.control import changed
from nftbench.methods.cosine import cosine
from nftbench.methods.gradient_vectors import norm


@dataclass(frozen=True)
class Vaccine(Defense):
    """`rho`: the norm of what is added. `steps`: optimizer steps, each on `batch` blocks of text.

    The defaults are those of the authors' script (git-disl/Vaccine, commit 8937f68, script/alignment/Vaccine.sh with
    rho 2), which trains an adapter of Llama-2-7B. Only `steps` is ours: theirs are 50 epochs. Their weight decay of
    0.1, warm-up over a tenth of the steps, cosine and clipping are fixed here.
    """

    stage: ClassVar[Stage] = "posttrain"
    claims: ClassVar[Claim | None] = Claim()

    rho: float = 2.0
    trained: tuning.Trained = "lora"
    """What is tuned: an adapter of all linear layers, or all weights."""
    rank: int = 8
    alpha: float = 4.0
    dropout: float = 0.1
    """The adapter's dropout. The two passes of a step draw it anew, as in the authors' code."""
    learning_rate: float = 1e-3
    steps: int = 500
    batch: int = 5

    def __post_init__(self) -> None:
        if self.rho < 0 or min(self.rank, self.steps, self.batch) < 1 or min(self.alpha, self.learning_rate) <= 0:
            raise ValueError(
                "rho must be at least 0; rank, steps and batch at least 1; alpha and learning_rate above 0"
            )

    def control_row(self) -> str | None:
        """The same tuning without perturbation."""
        return changed("vaccine", self, rho=0.0) if self.rho else None

    def check(self, suite: Suite) -> None:
        tuning.needs_text("vaccine", suite)
        attention_blocks(tuning.outline(suite))

    def training_passes(self, suite: Suite) -> Passes:
        first = passes.ACTIVATIONS if self.rho else 0.0
        return Passes(
            blocks=self.steps * self.batch * (first + passes.of(self.trained)),
            blocks_at_once=self.batch,
            copies=2 + passes.trained_copies(self.trained),
        )

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        made = tuning.begin(
            model.network,
            self.trained,
            context.seed,
            rank=self.rank,
            alpha=self.alpha,
            targets="all",
            dropout=self.dropout,
        )
        watched = attention_blocks(model.network)
        blocks = [made.core.get_submodule(name) for name in watched]
        stepper = tuning.stepper(made.network, self.learning_rate, 0.1, cosine(self.steps, 0.1))
        batches = text_batches(context, self.batch, model.network.device)
        losses = []
        with seeded(context.seed):
            for _, tokens in zip(range(self.steps), batches, strict=False):
                loss = perturbed(functools.partial(text_loss, made.network, tokens), blocks, self.rho)
                losses.append(loss.item())
                stepper.step(loss)
        curve = Series("loss with perturbation", tuple(map(float, range(self.steps))), tuple(losses), y_label="nats")
        return Protected(Model(made.result(), model.tokenizer), series=(curve,))


def attention_blocks(network: PreTrainedModel) -> list[str]:
    """The names of the modules that hold the linear layers of attention, one for each decoder block.

    Raises:
        NftbenchError: the network has no linear layer whose name says that it belongs to attention.
    """
    return list(dict.fromkeys(name.rpartition(".")[0] for name in adapters.linear_layers(network, "attention")))


def perturbed(loss: Callable[[], Tensor], blocks: Sequence[nn.Module], rho: float) -> Tensor:
    """The loss at perturbed outputs of some modules; `loss` runs the network once and returns a scalar."""
    if not rho:
        return loss()
    outputs: list[Tensor] = []

    def keep(output: Tensor) -> Tensor:
        outputs.append(output)
        return output

    with replaced(blocks, keep):
        found = torch.autograd.grad(loss(), outputs)
    scale = rho / (norm(list(found)) + tuning.EPSILON)
    waiting = iter(found)
    with replaced(blocks, lambda output: output + scale * next(waiting)):
        return loss()


@contextlib.contextmanager
def replaced(blocks: Sequence[nn.Module], change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While the context lasts, the outputs of these modules are changed: the first one where there are several."""

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        return change(output) if isinstance(output, Tensor) else (change(output[0]), *output[1:])

    handles = [block.register_forward_hook(hook) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
