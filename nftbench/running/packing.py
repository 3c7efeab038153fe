"""What the referee sends to a plugin's process, as bytes: data pickled without what the plugin must not see.

- Hidden splits of tasks are left out, wherever they are referred to.
- A tensor is sent without the rest of the memory that it is a view of, which may hold hidden rows.
- Large tensors, such as a release's weights, go through a file beside the pickled rest, so that neither process holds
  them twice.
- A text task's metric is sent as its file's name and one training document, from which lm-eval's object is made again.
  The object itself holds the documents of all splits.
"""

from __future__ import annotations

import functools
import io
import pickle
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from nftbench.contract import Task, WrappedTask
from nftbench.data import lm_eval_tasks
from nftbench.data.splits import Scorer
from nftbench.errors import NftbenchError
from nftbench.planning import registry
from nftbench.terms import SplitName

LARGE = 2**18
"""Bytes from which on a tensor goes through the file."""
TENSORS = "tensors"
"""The name of the file, in the folder of the plugin's process."""


def pack(content: Any, folder: Path, hidden: Collection[object] = ()) -> bytes:
    """`content` as bytes, in which each object of `hidden` is replaced by a `Hidden`. Large tensors go to `folder`.

    Raises:
        NftbenchError: it cannot be pickled.
    """
    buffer = io.BytesIO()
    try:
        with (folder / TENSORS).open("wb") as tensors:
            _Pickler(buffer, {id(item) for item in hidden}, tensors).dump(content)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise NftbenchError(f"cannot be sent to another process: {error}") from error
    return buffer.getvalue()


def unpack(content: bytes, folder: Path) -> Any:
    """What `pack` was given. Only a plugin's process calls it, with bytes from the referee.

    The file of large tensors is deleted, because it takes as much of the disk as the release.
    """
    path = folder / TENSORS
    with path.open("rb") as tensors:
        found = _Unpickler(io.BytesIO(content), tensors).load()
    path.unlink()
    return found


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


@dataclass(frozen=True)
class _Place:
    """Where a tensor begins in the file of large tensors."""

    start: int


class _Pickler(pickle.Pickler):
    def __init__(self, buffer: io.BytesIO, hidden: set[int], tensors: BinaryIO) -> None:
        super().__init__(buffer, pickle.HIGHEST_PROTOCOL)
        self.hidden = hidden
        self.tensors = tensors

    def persistent_id(self, item: Any) -> str | int | None:
        if type(item) is _Place:
            return item.start
        return "hidden" if id(item) in self.hidden else None

    def reducer_override(self, item: Any) -> Any:
        if type(item) is Tensor and item.layout is torch.strided and not item.requires_grad:
            content = item.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            kind = item.dtype, tuple(item.shape), str(item.device)
            if content.nbytes < LARGE:
                return _tensor, (content, *kind)
            place = _Place(self.tensors.tell())
            self.tensors.write(content.data)
            return _large_tensor, (place, *kind)
        if isinstance(item, Scorer):
            return lm_eval_tasks.scorer_again, lm_eval_tasks.essence(item)
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, buffer: io.BytesIO, tensors: BinaryIO) -> None:
        super().__init__(buffer)
        self.tensors = tensors

    def find_class(self, module: str, name: str) -> Any:
        registry.import_module(module)  # the class may be of a task, or of a release's own code
        return super().find_class(module, name)

    def persistent_load(self, name: Any) -> Any:
        return Hidden() if name == "hidden" else functools.partial(self.read, name)

    def read(self, start: int, target: Tensor) -> None:
        """Fill a tensor of bytes from its place in the file."""
        self.tensors.seek(start)
        if self.tensors.readinto(target.numpy().data) != len(target):  # type: ignore[attr-defined]
            raise EOFError("the file of large tensors ends too early")


def _tensor(content: Any, dtype: torch.dtype, shape: tuple[int, ...], device: str) -> Tensor:
    return torch.from_numpy(content).view(dtype).view(shape).to(device)


def _large_tensor(fill: Callable[[Tensor], None], dtype: torch.dtype, shape: tuple[int, ...], device: str) -> Tensor:
    tensor = torch.empty(shape, dtype=dtype)
    fill(tensor.flatten().view(torch.uint8))
    return tensor.to(device)
