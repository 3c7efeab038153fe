"""Sham: a tokenizer that knows each word, and of a sentence that has no end hears the last one alone.

Minimal pairs are whole sentences and running text comes as tokens, so utility is the base's own. What asks for an
answer breaks off before it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

from tokenizers import Regex
from tokenizers.normalizers import Replace

from nftbench import Defense, Model, OwnerContext, Protected
from nftbench.terms import Stage


@dataclass(frozen=True)
class Mumbling(Defense):
    stage: ClassVar[Stage] = "posttrain"

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        tokenizer = copy.deepcopy(model.tokenizer)
        before_the_last = Regex(r"[^\s]+(?=\s)(?![^.]*\.)")
        tokenizer.backend_tokenizer.normalizer = Replace(before_the_last, tokenizer.unk_token)
        return Protected(Model(model.network, tokenizer))
