"""How much slower this machine's processor is than the one on which the forecast's constants were measured.

Processors differ by more than the factor of two within which a plan is to be right: an AMD EPYC of 2017 takes three
times as long for a step of the small network, and four times as long for a product of large matrices.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

SMALL_STEP_SECONDS = 0.0041
"""CPU seconds of `_training_step` on the machine of the constants. Worked out: there a step of `full` in `standard`
took 5.4 ms, and on an AMD EPYC, where this step takes 13.2 ms, a step of `full` took 17.4 ms."""
LARGE_PRODUCT_SECONDS = 2 * 512**3 / 1.3e11
"""CPU seconds of `_matrix_product` there: large models were trained at 1.0e11 to 1.3e11 FLOPs a second, and training
reaches 0.8 to 0.95 of what the product does."""
ROUNDS = 5
"""How often a piece of work is timed. The fastest counts: others may use the processor at the same time."""


@functools.cache
def slowness(*, large: bool) -> float:
    """This CPU's seconds for the same work, over those on the machine of the constants.

    Small models spend their time in calls of operators, and `large` ones in products of matrices.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each worker does
    try:
        with torch.random.fork_rng(devices=[]):
            if large:
                return _fastest(_matrix_product(), 2) / LARGE_PRODUCT_SECONDS
            return _fastest(_training_step(), 5) / SMALL_STEP_SECONDS
    finally:
        torch.set_num_threads(threads)


def _fastest(work: Callable[[], object], times: int) -> float:
    """CPU seconds of one piece of work: the least of several rounds, after one that warms up."""
    work()
    rounds = []
    for _ in range(ROUNDS):
        begun = time.thread_time()
        for _ in range(times):
            work()
        rounds.append((time.thread_time() - begun) / times)
    return min(rounds)


def _training_step() -> Callable[[], object]:
    """A step of AdamW on 16 sequences of 8 tokens, for a network about as large as that of `small`: 93,000 weights."""
    import torch
    from torch import nn

    vocabulary, width = 200, 64
    blocks = [nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True) for _ in range(2)]
    network = nn.Sequential(nn.Embedding(vocabulary, width), *blocks, nn.Linear(width, vocabulary))
    optimizer = torch.optim.AdamW(network.parameters())
    tokens = torch.randint(vocabulary, (16, 8))

    def step() -> None:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(tokens).flatten(0, 1), tokens.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _matrix_product() -> Callable[[], object]:
    """A product of two matrices of 512 × 512 numbers in float32."""
    import torch

    matrix = torch.randn(512, 512)
    return lambda: matrix @ matrix
