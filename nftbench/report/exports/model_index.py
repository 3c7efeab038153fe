"""A `model-index` block: the numbers of a release as metadata for its own README, as the hub reads them.

The layout is that of huggingface_hub's model cards. Each number names the command that made it.
"""

from __future__ import annotations

from typing import Any

from nftbench.report.exports.results import Results
from nftbench.report.labels import of
from nftbench.report.page import file_names
from nftbench.scoring.intervals import Interval
from nftbench.scoring.scores import Score
from nftbench.scoring.table import number


def files(results: Results) -> dict[str, str]:
    """A file for each defense that has a number; controls are nobody's release."""
    stems, names, suite = file_names(results.board), of(results.board), results.board.suite
    blocks = {
        f"model-index/{stems[score.defense].removesuffix('.md')}.yaml": text(
            names[score.defense], suite, score, results.command
        )
        for score in results.rows
        if score.kind == "defense"
    }
    return {path: block for path, block in blocks.items() if block}


def text(model: str, suite: str, score: Score, command: str) -> str:
    """YAML with the key `model-index`; empty where no number is known.

    `nftbench.attacked_score` and `nftbench.suppression` are in points, `nftbench.utility_kept` is in percent. An
    interval is that of 95 % over seeds, of the excess 98 %. Each task and metric is a `config` of the data set: without
    one huggingface_hub would write all of them as one result with the first one's name.
    """
    from huggingface_hub import EvalResult, ModelCardData

    def result(config: str, name: str, metric: str, title: str, value: Interval, scale: float = 1.0) -> EvalResult:
        return EvalResult(
            task_type="text-generation",
            task_name="resistance to fine-tuning" if metric != "utility_kept" else "utility before any attack",
            dataset_type=f"nftbench/{suite}",
            dataset_name=name,
            dataset_config=config,
            metric_type=f"nftbench.{metric}",
            metric_name=title,
            metric_value=_rounded(value.value, scale),
            metric_args=_arguments(value, scale, command),
        )

    found = [
        result(
            f"attacked {task.task}",
            f"{task.task}, fine-tuned by the strongest attack",
            "attacked_score",
            "score, points",
            task.attacked,
        )
        for task in score.resistance.tasks
        if task.attacked is not None
    ]
    if score.resistance.suppression is not None:
        taken = "points taken from the strongest attack, against the undefended model"
        found.append(result("attacked", "mean over tasks", "suppression", taken, score.resistance.suppression))
    if score.excess.interval is not None:
        beyond = "points taken beyond trivial defenses"
        found.append(result("attacked", "mean over tasks", "excess", beyond, score.excess.interval))
    share = "percent of the undefended model's"
    if score.utility.retention is not None:
        found.append(result("utility", "mean over metrics", "utility_kept", share, score.utility.retention, 100))
    for metric, kept in score.utility.by_metric.items():
        found.append(result(f"utility {metric}", metric, "utility_kept", share, kept, 100))
    return str(ModelCardData(model_name=model, eval_results=found).to_yaml()) if found else ""


def _rounded(value: float, scale: float) -> float:
    return float(number(scale * value, 2))


def _arguments(value: Interval, scale: float, command: str) -> dict[str, Any]:
    found: dict[str, Any] = {"command": command, "seeds": value.count}
    if value.count > 1:
        found["interval"] = [_rounded(value.low, scale), _rounded(value.high, scale)]
    return found
