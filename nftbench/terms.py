"""The closed lists of terms that settings, plugins and records share."""

from __future__ import annotations

from typing import Literal, get_args

Knowledge = Literal["method", "data", "base", "sibling", "secret"]
KNOWLEDGE: tuple[str, ...] = get_args(Knowledge)
Stage = Literal["pretrain", "posttrain"]
Status = Literal["ok", "failed", "oom", "timeout", "nonfinite"]
Verdict = Literal["holds", "refuted", "untested"]
"""On a claim; the burden of proof is on the defense."""
Optimizer = Literal["adamw", "sgd", "muon"]
SplitName = Literal["train", "validation", "test"]
Adaptation = Literal["finetuning", "linear_probe", "merging", "rescaling"]
"""How an attack adapts a release. The last two are of updates: merged with others, or scaled alone."""
OF_UPDATES = frozenset({"merging", "rescaling"})
Role = Literal["ranked", "benign", "utility", "yardstick"]
"""What a task is for: kept out of reach, kept within reach (attacked as the ranked ones are, but never part of a
suppression), or only measured. A yardstick stands in a task's place and is no part of any score."""
TrainedWeights = Literal["all", "all_longer", "part", "other"]
"""Which of a release's weights an attack trains: every one, within the suite's budget; every one, for longer; some of
them; or anything else, such as an adapter, a changed copy of the release, or nothing."""
