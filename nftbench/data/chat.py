"""Chat templates: a prompt as the text that a chat model was trained to answer, as lm-eval's apply_chat_template."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from nftbench.errors import NftbenchError, one_line
from nftbench.suites.schema import Suite

Message = dict[str, str]
"""`role` and `content`."""


def rules(suite: Suite, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The template by which a suite puts prompts to a tokenizer's model, as a JSON value; None if it uses none."""
    asked = suite.given is not None and suite.given.apply_chat_template
    return tokenizer.chat_template if asked else None


def check(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a tokenizer whose chat template is missing or fails.

    Raises:
        NftbenchError: says why.
    """
    if not tokenizer.chat_template:
        raise NftbenchError(f"{name}: has no chat template, and model.apply_chat_template asks for one")
    rendered(tokenizer, name, [{"role": "user", "content": "Hello"}])


def rendered(
    tokenizer: PreTrainedTokenizerBase, name: str, messages: Sequence[Message], add_generation_prompt: bool = True
) -> str:
    """The messages as one text, as lm-eval's `HFLM.apply_chat_template` makes it.

    Raises:
        NftbenchError: the template fails.
    """
    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )
    except Exception as error:  # a template may raise anything
        raise NftbenchError(f"{name}: its chat template fails: {one_line(str(error))}") from error


def template(tokenizer: PreTrainedTokenizerBase, name: str) -> functools.partial[str]:
    """The function that lm-eval's tasks render prompts by."""
    return functools.partial(rendered, tokenizer, name)
