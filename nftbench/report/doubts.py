"""Doubts in plain words: what each flag means and what to do about it; those of every row are said once, above them."""

from __future__ import annotations

from dataclasses import dataclass

from nftbench.report import order
from nftbench.scoring.leaderboard import Leaderboard
from nftbench.scoring.scores import Flag, Score

SEVERITIES = {"unrank": "not ranked", "warn": "warning", "note": "note"}


@dataclass(frozen=True)
class Explanation:
    """One flag for a reader who has never seen it."""

    meaning: str
    """What it says of a row, without numbers."""
    advice: str
    """What the reader, or the author of the defense, can do about it."""


EXPLANATIONS: dict[str, Explanation] = {
    "edge": Explanation(
        "the best attack stopped at an edge of its grid of learning rates", "raise `budget.extension` and run it again"
    ),
    "utility": Explanation(
        "the release loses more than 10 % on some utility metric", "protect less strongly, or claim it at this cost"
    ),
    "above_reference": Explanation(
        "the release knows more than the undefended model",
        "train the defense on the suite's own text alone, for as long as the recipe does",
    ),
    "gradient": Explanation(
        "the release's gradients are wrong", "make the backward pass the derivative of the forward pass"
    ),
    "unchecked": Explanation(
        "the release's gradients could not be checked", "return a network that also computes in float64"
    ),
    "unexamined": Explanation(
        "what was found about the release is missing from its records",
        "delete these records, or take a new folder, and run the suite again",
    ),
    "prompts": Explanation(
        "the release reads prompts worse than other text", "do not let the release depend on how a text begins"
    ),
    "costume": Explanation(
        "the weights of another architecture cannot be brought to usual sizes",
        "release it in the base's architecture, or in one that can be rewritten",
    ),
    "rewrite": Explanation(
        "odd sizes of weights could not be undone", "compare the attacks by hand, or support the architecture's rewrite"
    ),
    "ledger": Explanation(
        "the defense spent more than the recipe allows", "spend less, or raise what the suite allows"
    ),
    "optimizer": Explanation(
        "another optimizer undoes the resistance", "count the attacks under all optimizers as the result"
    ),
    "part": Explanation(
        "training a part of the weights beats training all of them",
        "give attacks that train all weights more learning rates or steps",
    ),
    "edge_elsewhere": Explanation(
        "attacks that were not picked stopped at an edge of their grids", "raise `budget.extension` and run them again"
    ),
    "longer": Explanation(
        "more steps undo a part of the resistance", "add a longer duration to `budget.durations` and rank on that"
    ),
    "saturated": Explanation("the undefended model is at a task's ceiling", "choose a harder task"),
    "preliminary": Explanation("a rank takes five base seeds", "run five base seeds before citing a rank"),
    "no_effect": Explanation(
        "no effect beyond the trivial defenses is shown", "do not claim one; more base seeds narrow the interval"
    ),
    "skipped": Explanation(
        "some attacks were said not to apply", "read under *Not planned* why, and add an attack that does apply"
    ),
    "stuck": Explanation(
        "the best attack gains nothing over not training", "check by hand that the attack works on this release"
    ),
    "head_alone": Explanation(
        "only training the output head stayed finite", "add an attack that can train the other weights"
    ),
    "claim": Explanation(
        "attacks that the claim is about were not at their best", "raise `budget.extension` and run them again"
    ),
    "retried": Explanation(
        "the plain sweep blew up and a gentler one did not", "check that learning rates below the grid do no better"
    ),
    "restarts": Explanation(
        "training the release is brittle", "raise `budget.restarts`, and read the best run as what an attacker reaches"
    ),
    "same_weights": Explanation(
        "another row releases the same weights", "look for a parameter that has no effect, and leave one row out"
    ),
    "versions": Explanation(
        "other versions or settings of the defense had results on the same grammars",
        "run the final version once in a new folder, which draws fresh grammars",
    ),
    "config": Explanation("the release changes the base's configuration", "check that users can load such a model"),
    "own_code": Explanation(
        "the release computes by code of its own", "release it in an architecture of transformers or nftbench"
    ),
    "tokenizer": Explanation("the release changes the tokenizer", "release it with the base's tokenizer"),
    "left_out": Explanation(
        "the suite lacks the attacks of nftbench that were written against this defense",
        "list them under `attacks` in the suite: the page of each defense names them",
    ),
    "not_adaptive": Explanation(
        "no attack was written against this defense", "write one and list it in the suite: docs/plugins.md shows how"
    ),
    "incomplete": Explanation("cells are missing or failed", "run the suite again: it continues where it stopped"),
}


def common(board: Leaderboard) -> tuple[str, ...]:
    """The names of the flags that every defense has, if there are several defenses: they tell no two rows apart."""
    rows = [{flag.name for flag in score.flags if flag.severity != "unrank"} for score in order.defenses(board)]
    return tuple(name for name in EXPLANATIONS if all(name in row for row in rows)) if len(rows) > 1 else ()


def about_all(board: Leaderboard) -> str:
    """The common doubts as one sentence or several; empty where there are none."""
    said = [f"{EXPLANATIONS[name].meaning} ({EXPLANATIONS[name].advice})" for name in common(board)]
    return f"Of every defense here: {'; '.join(said)}." if said else ""


def own(board: Leaderboard, score: Score) -> tuple[Flag, ...]:
    """The flags of a row that not every defense has."""
    shared = common(board) if score.standing.group != "control" else ()
    return tuple(flag for flag in score.flags if flag.name not in shared)
