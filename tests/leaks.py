"""Whether an object leads to a secret: a walk over everything that can be reached from it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType

import torch
from torch import Tensor


def reachable(root: object) -> Iterator[tuple[str, object]]:
    """Everything that attributes, slots, items and closures lead to, with the way there."""
    waiting: list[tuple[str, object]] = [("", root)]
    seen: set[int] = set()
    keep_alive = []
    while waiting:
        way, item = waiting.pop()
        if id(item) in seen or isinstance(item, ModuleType | type | BuiltinFunctionType):
            continue
        seen.add(id(item))
        keep_alive.append(item)
        yield way, item
        children: list[tuple[str, object]] = []
        if isinstance(item, Mapping):
            children += [(f"{way}[{str(key)[:40]}]", value) for key, value in item.items()]
            children += [(f"{way}.keys", key) for key in item]
        elif isinstance(item, list | tuple | set | frozenset):
            children += [(f"{way}[{index}]", value) for index, value in enumerate(item)]
        if isinstance(item, FunctionType):
            cells = zip(item.__code__.co_freevars, item.__closure__ or (), strict=True)
            children += [(f"{way}.<closure {name}>", cell.cell_contents) for name, cell in cells]
            children += [(f"{way}.<default>", value) for value in item.__defaults__ or ()]
            children += [(f"{way}.<default>", value) for value in (item.__kwdefaults__ or {}).values()]
        if isinstance(item, MethodType):
            children += [(f"{way}.__self__", item.__self__), (f"{way}.__func__", item.__func__)]
        if isinstance(item, functools.partial):
            children += [(f"{way}.func", item.func), (f"{way}.args", item.args), (f"{way}.keywords", item.keywords)]
        if isinstance(item, Tensor):
            children += [(f"{way}.grad_fn", item.grad_fn), (f"{way}._backward_hooks", item._backward_hooks)]
        children += [(f"{way}.{name}", value) for name, value in getattr(item, "__dict__", {}).items()]
        for cls in type(item).__mro__:
            slots = vars(cls).get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if not name.startswith("__") and hasattr(item, name):
                    children.append((f"{way}.{name}", getattr(item, name)))
        waiting += children


def leaks(root: object, mask: Mapping[str, Tensor], folder: Path) -> list[str]:
    """The ways from `root` to a tensor of the mask (or its complement), or to a path under `folder`."""
    told = [kept for kept in mask.values() if 0 < int(kept.sum()) < kept.numel()]

    def tells(item: Tensor) -> bool:
        # Only tensors of two values: a frozen bias that starts at zero shows its mask too, but by the method itself.
        marks = item.bool()
        if item.numel() == 0 or not torch.equal(item, item.flatten()[marks.flatten().int().argmax()] * marks):
            return False
        return any(
            kept.shape == item.shape and torch.equal(marks, kept ^ flip) for kept in told for flip in (False, True)
        )

    found = []
    for way, item in reachable(root):
        if isinstance(item, str | Path) and str(folder) in str(item):
            found.append(f"{way}: {item}")
        if isinstance(item, Tensor) and tells(item):
            found.append(f"{way}: the mask")
    return found
