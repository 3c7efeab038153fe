"""What the referee sends to a plugin's process, as bytes: data pickled without what the plugin must not see.

- Hidden splits of tasks are left out, wherever they are referred to.
- A tensor is sent without the rest of the memory that it is a view of, which may hold hidden rows.
- A text task's metric is sent as its file's name and one training document, from which lm-eval's object is made again.
  The object itself holds the documents of all splits.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from nftbench.contract import Task, WrappedTask
from nftbench.data import lm_eval_tasks
from nftbench.data.splits import Scorer
from nftbench.errors import NftbenchError
from nftbench.planning import registry
from nftbench.terms import SplitName


def pack(content: Any, hidden: Collection[object] = ()) -> bytes:
    """`content` as bytes, in which each object of `hidden` is replaced by a `Hidden`.

    Raises:
        NftbenchError: it cannot be pickled.
    """
    buffer = io.BytesIO()
    try:
        _Pickler(buffer, {id(item) for item in hidden}).dump(content)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise NftbenchError(f"cannot be sent to another process: {error}") from error
    return buffer.getvalue()


def unpack(content: bytes) -> Any:
    """What `pack` was given. Only a plugin's process calls it, with bytes from the referee."""
    return _Unpickler(io.BytesIO(content)).load()


def splits(task: Task, names: Sequence[SplitName]) -> list[object]:
    """Those of a task's splits that it has, to hide them."""
    found: list[object] = []
    while isinstance(task, WrappedTask):  # which would refuse to give them
        task = task.task
    for name in names:
        try:
            found.append(task.split(name))
        except (NftbenchError, LookupError):  # a utility task has a test split only
            continue
    return found


class Hidden:
    """In the place of something that this process must not see."""

    def __getattr__(self, name: str) -> Any:
        raise NftbenchError("hidden from this process: the referee alone has it")


class _Pickler(pickle.Pickler):
    def __init__(self, buffer: io.BytesIO, hidden: set[int]) -> None:
        super().__init__(buffer, pickle.HIGHEST_PROTOCOL)
        self.hidden = hidden

    def persistent_id(self, item: Any) -> str | None:
        return "hidden" if id(item) in self.hidden else None

    def reducer_override(self, item: Any) -> Any:
        if type(item) is Tensor and item.layout is torch.strided and not item.requires_grad:
            content = item.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            return _tensor, (content, item.dtype, tuple(item.shape), str(item.device))
        if isinstance(item, Scorer):
            return lm_eval_tasks.scorer_again, lm_eval_tasks.essence(item)
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        registry.import_module(module)  # the class may be of a task, or of a release's own code
        return super().find_class(module, name)

    def persistent_load(self, name: Any) -> Hidden:
        return Hidden()


def _tensor(content: Any, dtype: torch.dtype, shape: tuple[int, ...], device: str) -> Tensor:
    return torch.from_numpy(content).view(dtype).view(shape).to(device)
