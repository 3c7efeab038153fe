"""The device: read from `--device`, printed as torch wants it, with the arithmetic that goes with it."""

from __future__ import annotations

import pytest
import torch

from nftbench.device import CPU, Device
from nftbench.errors import NftbenchError
from nftbench.training.engine import autocast


@pytest.mark.parametrize("text", ["cpu", "cuda", "cuda:0", "cuda:12"])
def test_a_device_is_printed_as_it_was_read_and_as_torch_reads_it(text: str) -> None:
    found = Device.parse(text)
    assert str(found) == text
    assert torch.device(str(found)) == torch.device(found.kind, found.index)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "gpu", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "CUDA"])
def test_other_words_are_refused_as_devices(text: str) -> None:
    with pytest.raises(NftbenchError, match=f"--device {text}: no such device"):
        Device.parse(text)


def test_threads_and_precision_are_those_of_the_device() -> None:
    assert (CPU.threads, CPU.autocast) == (1, None)
    assert (Device("cuda").threads, Device("cuda", 1).autocast) == (None, "bfloat16")
    with autocast(CPU):
        assert (torch.ones(1, 1) @ torch.ones(1, 1)).dtype == torch.float32
