"""Records of Every Eval Ever (https://github.com/evaleval/every_eval_ever), schema 0.3.0: one JSON file a row.

A row is one model there. Its results are means over base seeds, since each base seed is another draw of the same
release. The path of a file is `data/nftbench/<developer>/<model>/<uuid>.json`. The uuid is made from the content, so
that equal results give equal files.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from nftbench.records.origin import origin
from nftbench.records.spec import Spec
from nftbench.report.exports.results import Results
from nftbench.report.json import written
from nftbench.report.labels import of
from nftbench.report.page import file_names
from nftbench.scoring.intervals import Interval, in_percent
from nftbench.scoring.scores import Score, TaskScore
from nftbench.suites.schema import Suite

SCHEMA = "0.3.0"
COLLECTION = "nftbench"
UNBOUNDED = {"min_score": "-Infinity", "max_score": "Infinity"}
SEEDS = "Student's t over base seeds"
"""How most intervals are made."""


def files(results: Results) -> dict[str, str]:
    """The files by their path. Rows without any number are left out."""
    found, stems, names = {}, file_names(results.board), of(results.board)
    for score in results.rows:
        numbers = list(_results(results, score))
        if numbers:
            model = _model(results, score, stems[score.defense].removesuffix(".md"), names[score.defense])
            log = _log(results, model, numbers)
            developer, _, name = model["id"].partition("/")
            digest = hashlib.sha256(json.dumps(log, sort_keys=True).encode()).digest()
            path = f"data/{COLLECTION}/{developer}/{name}/{uuid.UUID(bytes=digest[:16], version=4)}.json"
            found[f"every_eval_ever/{path}"] = written(log)
    return found


def _log(results: Results, model: Mapping[str, Any], numbers: list[dict[str, Any]]) -> dict[str, Any]:
    where = origin(results.records)
    # When the last number was measured: a time of today would give another file for the same results.
    time = str(int(datetime.fromisoformat(results.written).timestamp())) if results.written else "0"
    identity = f"{COLLECTION}.{results.board.suite}/{model['id']}/{time}"
    for count, one in enumerate(numbers):
        one["evaluation_result_id"] = f"{identity}#{count}"
    return {
        "schema_version": SCHEMA,
        "evaluation_id": identity,
        "evaluation_timestamp": time,
        "retrieved_timestamp": time,
        "source_metadata": {
            "source_name": f"nftbench, suite {results.board.suite}",
            "source_type": "evaluation_run",
            "source_organization_name": "nftbench",
            # Whoever runs a suite also makes its releases; of a checkpoint nobody knows.
            "evaluator_relationship": "other" if _checkpoint(model["name"]) else "first_party",
            "additional_details": {"problems": "; ".join(results.board.problems)},
        },
        "eval_library": {
            "name": "nftbench",
            "version": ", ".join(where.versions.get("nftbench", ())) or "unknown",
            "additional_details": {
                "commits": ", ".join(where.commits),
                "processors": ", ".join(where.processors),
                **{f"version of {name}": ", ".join(values) for name, values in where.versions.items()},
                **{f"version of the area {name}": ", ".join(values) for name, values in where.areas.items()},
            },
        },
        "model_info": model,
        "evaluation_results": numbers,
    }


def _model(results: Results, score: Score, stem: str, label: str) -> dict[str, Any]:
    """The release. A checkpoint of the hub has its id there; other models exist only within the suite."""
    place = _checkpoint(score.defense)
    on_hub = place is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", place) is not None and not Path(place).exists()
    standing = score.standing
    return {
        "name": score.defense,
        "id": place if on_hub else f"{COLLECTION}/{results.board.suite}-{stem}".replace(" ", "_").rstrip("."),
        "additional_details": {
            "deployment_type": "self_deployed",
            "model_availability": "open_weights" if on_hub else "unknown",
            "label": label,
            "kind": score.kind,
            "reference": score.row.reference,
            **_base(results.manifest.suite),
            "standing": standing.group + (f", rank {standing.rank}" if standing.rank is not None else ""),
            "claim": score.claim.verdict or "none",
            "utility": score.utility.badge or "unknown",
            "doubts": ", ".join(flag.name for flag in score.flags),
        },
    }


def _base(suite: Suite) -> dict[str, str]:
    """What the releases are made from: a checkpoint that is given, or models of an architecture, pre-trained here."""
    given = suite.given
    if given is None:
        return {"model_type": str(suite.model["model_type"])}
    pinned = {"base_model_revision": given.revision, "base_model_sha256": given.sha256}
    return {"base_model": given.path, **{name: value for name, value in pinned.items() if value is not None}}


def _checkpoint(defense: str) -> str | None:
    """The folder or hub id of a row that is a checkpoint."""
    spec = Spec.parse(defense)
    path = dict(spec.parameters).get("path")
    return str(path) if spec.name == "checkpoint" and path else None


# ------------------------------------------------------------------------------------------------------------ results


def _results(results: Results, score: Score) -> Iterator[dict[str, Any]]:
    board, resistance = results.board, score.resistance
    tasks = [one.task for one in resistance.tasks]
    knows = {"attackers have": board.rules.ranking}

    def result(
        metric: str,
        value: Interval | None,
        about: str,
        on: list[str],
        method: str = SEEDS,
        unit: str = "points",
        lower_is_better: bool = False,
        **details: Any,
    ) -> Iterator[dict[str, Any]]:
        if value is not None:
            yield {
                "evaluation_name": f"nftbench.{board.suite}.{on[0] if len(on) == 1 else 'all_tasks'}",
                "source_data": _data(results, on),
                "metric_config": {
                    "evaluation_description": about,
                    "metric_id": f"nftbench.{metric}",
                    "metric_name": metric.replace("_", " "),
                    "metric_unit": unit,
                    "lower_is_better": lower_is_better,
                    "score_type": "continuous",
                    **UNBOUNDED,
                },
                "score_details": _score(value, method),
                "generation_config": {
                    "generation_args": {"execution_command": results.command},
                    "additional_details": {key: str(one) for key, one in {**knows, **details}.items()},
                },
            }

    if score.kind != "reference":
        about = "score of the strongest attack on the undefended model less that on this release"
        yield from result("suppression", resistance.suppression, about, tasks)
        about = "suppression beyond that of the best trivial defense that keeps as much utility"
        method = "delta method over base seeds; the lower end is the lowest over all families of trivial defenses"
        yield from result("excess", score.excess.interval, about, tasks, method)
    for task in resistance.tasks:
        about = "score after fine-tuning by the strongest attack"
        recipe = _recipe(score, task)
        yield from result("attacked_score", task.attacked, about, [task.task], lower_is_better=True, **recipe)
        if score.kind != "reference":
            about = "score of the strongest attack on the undefended model less that on this release"
            yield from result("suppression", task.suppression, about, [task.task], **recipe)
    about = "share of the undefended model's score above the floor, before any attack"
    for metric, kept in score.utility.by_metric.items():
        yield from result("utility_kept", in_percent(kept), about, [metric], unit="percent")
    if score.utility.retention is not None:
        mean, metrics = in_percent(score.utility.retention), list(score.utility.by_metric)
        yield from result("mean_utility_kept", mean, f"{about}; mean over metrics", metrics, unit="percent")


def _recipe(score: Score, task: TaskScore) -> dict[str, Any]:
    """The attack that is the strongest on most seeds, with what its attacker knows and what it took."""
    found = next((one for one in score.attacks if one.attack == task.attack), None)
    if found is None:
        return {}
    known = {
        "attack": found.attack,
        "attack knows": ", ".join(found.knowledge or ()) or "release alone",
        "learning rate": found.learning_rate,
        "step": found.step,
        "optimizer steps in all": found.steps,
        "FLOPs in all": found.flops,
    }
    return {name: value for name, value in known.items() if value is not None}


def _score(value: Interval, method: str) -> dict[str, Any]:
    uncertainty: dict[str, Any] = {"num_samples": value.count}
    if math.isfinite(value.low) and math.isfinite(value.high):
        ends = {"lower": value.low, "upper": value.high}
        uncertainty["confidence_interval"] = {**ends, "confidence_level": value.confidence, "method": method}
    return {"score": value.value, "uncertainty": uncertainty}


def _data(results: Results, tasks: list[str]) -> dict[str, Any]:
    """The tasks, and where their documents come from."""
    details = {"tasks": ", ".join(tasks), "pre-training text": results.manifest.suite.corpus.source}
    for record in results.records:
        if record.task in tasks and record.provenance.get("documents"):
            details[f"documents of {record.task}"] = json.dumps(record.provenance["documents"], sort_keys=True)
    name = tasks[0] if len(tasks) == 1 else f"nftbench suite {results.board.suite}"
    return {"dataset_name": name, "source_type": "other", "additional_details": details}
