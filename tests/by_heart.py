"""A network that knows its task: what attacks are tried on."""

from __future__ import annotations

import torch
from torch import nn

from nftbench.contract import Task


def by_heart(network: nn.Module, task: Task) -> None:
    """Train on 64 rows of every split, test documents too, until the network knows them."""
    batches = [task.split(name).batch(range(64)) for name in ("train", "validation", "test")]  # type: ignore[arg-type]
    every = tuple(torch.cat([batch[part] for batch in batches]) for part in (0, 1))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.0)
    for step in range(200):
        loss = task.loss(network, every)
        if step >= 40 and float(loss.detach()) < 0.05:
            return
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    raise AssertionError("the network does not know its task after 200 steps")
