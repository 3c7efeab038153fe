"""The terms that settings, plugins and records share, each as a closed list of strings."""

from __future__ import annotations

from typing import Literal, get_args

Knowledge = Literal["method", "data", "base", "sibling", "secret"]
"""What an attacker has besides the release and the task: the defense's code, public text, the base model, an earlier
checkpoint of the release's pre-training run, or the owner's secret."""
KNOWLEDGE: tuple[str, ...] = get_args(Knowledge)
Stage = Literal["pretrain", "posttrain"]
"""When a defense acts: it pre-trains the model itself, or it changes the pre-trained base model."""
Status = Literal["ok", "failed", "oom", "timeout", "nonfinite"]
Verdict = Literal["holds", "holds at a cost", "not shown", "refuted", "untested"]
"""The verdict on a defense's claim. `holds` and `holds at a cost`: it takes more from the attacker than every trivial
defense that keeps as much utility; at a cost where it cannot be told to keep the reference's utility. `refuted`: it
does not. `not shown`: the run cannot tell. `untested`: the attacks do not suffice to judge the claim."""
Optimizer = Literal["adamw", "sgd", "muon"]
SplitName = Literal["train", "validation", "selection", "test"]
"""The parts of a task's documents. Attackers train on `train` and choose their settings by `validation`. The referee
chooses among attacks by `selection`, which attackers do not see, and scores the chosen one on `test`."""
Adaptation = Literal["finetuning", "linear_probe", "merging", "rescaling"]
"""How an attack adapts a release. The last two act on a released update: it is merged with others, or rescaled."""
OF_UPDATES = frozenset({"merging", "rescaling"})
"""The adaptations that act on a released update."""
Role = Literal["ranked", "benign", "utility", "yardstick"]
"""The part that a task plays in a suite.

`ranked`: defenses should stop attackers from learning it; `benign`: it should stay trainable, and attacks on it do not
count in the score; `utility`: it is only measured on releases; `yardstick`: not a task but a paper's own metric.
"""
TrainedWeights = Literal["all", "all_longer", "part", "other"]
"""Which of a release's weights an attack trains.

`all`: every weight, within the suite's budget; `all_longer`: every weight, for more steps; `part`: some of the weights;
`other`: anything else, such as an adapter, a changed copy of the release, or nothing.
"""
