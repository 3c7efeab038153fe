"""Condition-number immunization: features that let gradient descent learn a harmful task slowly, a primary one fast.

Zheng et al. 2025, "Model Immunization from a Condition Number Perspective", https://arxiv.org/abs/2505.23760, Algorithm
1: minimise L(D_P) + lambda_well R_well(H_P) + lambda_ill R_ill(H_H), where H = F^T F for the features F of a
mini-batch. The dummy layer of Appendix C.3 multiplies the regularizers' gradients by an inverse covariance. This is the
covariance of the inputs in the linear family, and of the features (the last hidden states) in causal LMs.

The authors' code (amberyzheng/model-immunization-cond-num, commit b749964) departs from the paper, and we follow the
paper, in these points of the linear family:

- Algorithm 1 multiplies the gradient of theta by the inverse covariance from the left, the side of the inputs. The code
  does this to the gradient of the layer's weight, which is theta transposed, and so to the side of the outputs. There
  the guarantees of Theorem 4.3 are lost: a small step on R_well can raise the condition number.
- Eq. 12 divides by the rank k of H, the code by the number of features. The code also adds 1e-6 to all eigenvalues.
- The undefended extractor is the identity. The code starts from a random theta with a bias and a random probe, we from
  the identity without bias and from a probe of zeros.
- Section 5.1 trains for 100 epochs on house prices, the code's configuration for 10 on two GPUs.

Two points are ours alone. The loss of a regression is half the squared error, whereas the code takes all of it. Batches
are always full and may span two epochs, whereas the code drops an epoch's last rows.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nftbench import Claim, Defense, Model, NftbenchError, OwnerContext, Passes, Protected, Series, Stage, Suite, Task
from nftbench.methods import conditioning, passes, shuffled, token_batches


@dataclass(frozen=True)
class ConditionNumber(Defense):
    """`harmful` is the spec of the task to protect against (required). `primary` is the spec of the task whose training
    must stay easy; if it is left out, this is the data of pre-training.

    The defaults are those of the authors' code for house prices (configs/house_price.yaml), with the paper's 100
    epochs. For MNIST their code has lambda_well=1, lambda_ill=5e7, ridge_harmful=1e-7, learning_rate=1e-3 and
    epochs=30. `lambda_well=0` is the paper's baseline "R_ill only".
    """

    stage: ClassVar[Stage] = "posttrain"
    claims: ClassVar[Claim | None] = Claim(frozenset({"method", "data"}), "linear_probe")
    task_aware: ClassVar[bool] = True

    harmful: str = ""
    primary: str = ""
    lambda_ill: float = 1e7
    lambda_well: float = 100.0
    balanced: bool = False
    """Whether to rescale both lambdas so that at 1 each regularizer's gradient has the norm of the loss's gradient at
    the first step. Section 5.1 chooses the lambdas like this, without a formula. Models other than the paper's need it,
    because R_ill scales with the features' size to the power -4."""
    learning_rate: float = 5e-3
    """The learning rate of Adam, as in the code."""
    epochs: int = 100
    """Passes over the smaller of the two tasks."""
    batch: int = 64
    """Rows in each covariance. As in the code, covariances are those of mini-batches."""
    ridge_harmful: float = 1.0
    ridge_primary: float = 1.0
    """Added to the diagonal of a covariance before it is inverted."""
    blocks: int = 1
    """For causal LMs: how many of the last decoder layers are trained, together with everything after them. In section
    5.2 it is one layer of a ViT."""

    def __post_init__(self) -> None:
        if min(self.lambda_ill, self.lambda_well, self.ridge_harmful, self.ridge_primary) < 0:
            raise ValueError("the lambdas and ridges must not be below 0")
        if min(self.epochs, self.batch, self.blocks) < 1 or self.learning_rate <= 0:
            raise ValueError("epochs, batch and blocks must be at least 1, the learning rate above 0")

    def told(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.harmful, self.primary)))

    def check(self, suite: Suite | None = None) -> None:
        if not self.harmful:
            raise NftbenchError("condition_number needs a harmful task: write condition_number[harmful=…]")
        if suite is not None:  # the families name their number of features differently
            conditioning.check_size(max(suite.model.get(name, 0) for name in ("input_dim", "n_embd", "hidden_size")))

    def training_passes(self, suite: Suite) -> Passes:
        """A step reads primary rows for the loss and again for R_well, and harmful ones for R_ill, all in float64. The
        given model is in memory beside its copy, with gradients and moments of the trained layers."""
        steps, trained = self.epochs * passes.epoch(suite, self.batch), passes.share_of_last(self.blocks, suite)
        kept = passes.FLOAT64 * trained
        each, copies = passes.FLOAT64 * steps * passes.last(self.blocks, suite), 1 + passes.FLOAT64 * (1 + 3 * trained)
        if self.primary or suite.pretraining.task:
            return Passes(documents=3 * each * self.batch, documents_at_once=3 * kept * self.batch, copies=copies)
        rows = 2 * max(1, self.batch // suite.corpus.block)
        return Passes(
            blocks=each * rows,
            documents=each * self.batch,
            blocks_at_once=kept * rows,
            documents_at_once=kept * self.batch,
            copies=copies,
        )

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        self.check()
        network = copy.deepcopy(model.network).double().train()  # float32 cannot represent a condition number of 1e9
        conditioning.check_size(network.get_output_embeddings().weight.shape[1])
        learned = self.primary or context.pretraining.task
        harmful = _Rows(context, self.harmful, self.batch, self.ridge_harmful)
        primary = _Rows(context, learned, self.batch, self.ridge_primary)
        weights = self.trainable(network)
        optimizer = torch.optim.Adam(weights, lr=self.learning_rate)
        well_scale, ill_scale = self.lambda_well, self.lambda_ill
        curve: list[tuple[float, ...]] = []
        steps = self.epochs * max(1, min(harmful.count, primary.count) // self.batch)
        for _, told, other in zip(range(steps), harmful.batches(), primary.batches(), strict=False):
            loss = primary.loss(network, other)
            well = conditioning.probe_r_well(primary.features(network, other))
            ill = conditioning.probe_r_ill(harmful.features(network, told))
            if self.balanced and not curve:
                unit = _length(loss, weights)
                well_scale *= unit / _length(well, weights)
                ill_scale *= unit / _length(ill, weights)
            optimizer.zero_grad()
            (loss + well_scale * well + ill_scale * ill).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            curve.append((loss.item(), well.item(), ill.item()))
        model.network.load_state_dict(network.state_dict())  # converts back to the model's precision
        x = tuple(float(step) for step in range(len(curve)))
        curves = zip(("primary loss", "R_well", "R_ill"), zip(*curve, strict=True), strict=True)
        return Protected(model, series=tuple(Series(name, x, y) for name, y in curves))

    def trainable(self, network: Any) -> list[nn.Parameter]:
        """The weights to train: all of a linear model; in a causal LM the last `blocks` layers and all after them."""
        layers = next((list(module) for module in network.modules() if isinstance(module, nn.ModuleList)), [])
        for module in network.modules():
            if module in layers[: -self.blocks] or isinstance(module, nn.Embedding):
                module.requires_grad_(False)
        return [weight for weight in network.parameters() if weight.requires_grad]


@dataclass(frozen=True)
class _Rows:
    """Mini-batches of a task's training split, or of the pre-training text if there is no task."""

    context: OwnerContext
    spec: str | None
    batch: int
    ridge: float

    @functools.cached_property
    def task(self) -> Task | None:
        return self.context.task(self.spec) if self.spec else None

    @property
    def count(self) -> int:
        return len(self.task.split("train")) if self.task else self.context.corpus.train.numel()

    def batches(self) -> Iterator[Any]:
        seed = self.context.seed
        if self.task is None:
            blocks = self.context.corpus.train
            return token_batches(blocks, max(1, self.batch // blocks.shape[1]), seed, "cpu")
        train = self.task.split("train")
        return (train.batch(indices) for indices in shuffled(len(train), min(self.batch, len(train)), seed))

    def loss(self, network: nn.Module, batch: Any) -> Tensor:
        if self.task is not None:
            return self.task.loss(network, batch)
        ids = batch.to(network.device)
        loss: Tensor = network(input_ids=ids, labels=ids).loss
        return loss

    def features(self, network: nn.Module, batch: Any) -> Tensor:
        """Features [rows, D], followed by the dummy layer that preconditions their gradient in the backward pass."""
        if self.task is None:
            ids = batch.to(network.device)
            features = network(input_ids=ids, output_hidden_states=True).hidden_states[-1].flatten(0, 1)
        else:
            features = self.task.features(network, batch)
        inputs = getattr(batch, "inputs", None)
        if inputs is not None:
            return conditioning.preconditioned_rows(features, inputs.to(features), ridge=self.ridge)
        return conditioning.preconditioned(features, conditioning.covariance(features), ridge=self.ridge)


def _length(value: Tensor, weights: list[nn.Parameter]) -> float:
    """The norm of the gradient of `value` over all weights."""
    gradients = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
    return math.hypot(*(float(gradient.norm()) for gradient in gradients if gradient is not None))
