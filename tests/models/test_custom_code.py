"""Whose code a network computes by: decided by the class itself and its file, whatever the class says."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
from transformers import GPT2LMHeadModel

from nftbench.models import networks
from nftbench.models.networks import has_custom_code
from nftbench.testing import ARCHITECTURES

FILE = sys.modules[GPT2LMHeadModel.__module__].__file__


def of(cls: Any) -> Any:
    """A tiny GPT-2 of this class."""
    settings = {"model_type": "gpt2", **ARCHITECTURES["gpt2"], "vocab_size": 10}
    network = networks.build(settings, None, 0, "cpu").network
    network.__class__ = cls
    return network


@pytest.mark.parametrize("model_type", [*ARCHITECTURES, "gpt_bigcode", "dlr-gpt2", "linear"])
def test_the_libraries_own_code_is_known(model_type: str) -> None:
    settings: dict[str, Any] = {"dlr-gpt2": {**ARCHITECTURES["gpt2"], "dlr_depth": 2}, "linear": {}}
    chosen = settings.get(model_type, ARCHITECTURES.get(model_type, ARCHITECTURES["gpt2"]))
    words = {} if model_type == "linear" else {"vocab_size": 10}
    assert not has_custom_code(networks.build({"model_type": model_type, **chosen, **words}, None, 0, "cpu").network)


def test_a_subclass_is_custom_code() -> None:
    class Mine(GPT2LMHeadModel):  # type: ignore[misc]
        pass

    assert has_custom_code(of(Mine))


def test_a_class_that_names_the_library_s_module_is_custom_code() -> None:
    class Mine(GPT2LMHeadModel):  # type: ignore[misc]
        pass

    Mine.__module__, Mine.__qualname__ = GPT2LMHeadModel.__module__, GPT2LMHeadModel.__qualname__
    assert has_custom_code(of(Mine))


def test_a_module_of_its_own_below_transformers_is_custom_code(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(GPT2LMHeadModel):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    planted = ModuleType("transformers.models.mine")
    planted.Mine, planted.__file__ = Mine, FILE  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, planted.__name__, planted)
    Mine.__module__, Mine.__qualname__ = planted.__name__, "Mine"
    assert has_custom_code(of(Mine)), "its forward is written here"


def test_a_forward_that_was_put_into_the_library_s_class_is_custom_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GPT2LMHeadModel, "forward", lambda self, **_: None)
    assert has_custom_code(of(GPT2LMHeadModel))
