"""What works on which architecture of transformers, found by trying everything on tiny models with random weights.

`make architectures` tries it all again and writes `architectures.json`, from which docs/architectures.md has its
tables. Each model is offered as the given base of a suite. Every defense and control that starts from a trained model
is applied to it, and every attack runs, for one step each.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from nftbench.errors import NftbenchError
from nftbench.methods import adapters, matrices
from nftbench.models import networks
from nftbench.planning import facts, registry
from nftbench.planning.plan import OF_THE_RUN, Job, Plan, plan
from nftbench.records.record import Record
from nftbench.records.spec import Spec
from nftbench.records.store import Store
from nftbench.running import isolation, referee
from nftbench.running.workspace import Workspace
from nftbench.suites.schema import Suite
from nftbench.testing import tiny_suite
from tests import checkpoints, few_steps

FILE = Path(__file__).with_name("architectures.json")
NAMES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma3_text": "Gemma 3",
    "olmo2": "OLMo 2",
    "phi": "Phi",
    "phi3": "Phi-3",
    "gpt2": "GPT-2",
    "gpt_neox": "GPT-NeoX",
    "opt": "OPT",
    "bloom": "BLOOM",
    "mixtral": "Mixtral",
    "qwen3_moe": "Qwen3-MoE",
    "gpt_oss": "GPT-OSS",
    "deepseek_v3": "DeepSeek-V3",
    "mamba": "Mamba",
    "mamba2": "Mamba-2",
    "falcon_h1": "Falcon-H1",
}
"""The architectures that are tried, by `model_type`."""
VARIANTS: Mapping[registry.Kind, tuple[str, ...]] = {
    "defenses": ("specdef[form=folded]",),
    "attacks": ("inject[what=split]", "precondition[by=newton]", "memory_light[by=mezo,directions=2]"),
}
"""Variants of a method that work in another way."""
CHOOSE = ("form", "what", "by")
"""The parameters that choose a variant."""
YES = "yes"


def outcomes(
    kind: str, folder: Path, *, defenses: Sequence[str] | None = None, attacks: Sequence[str] | None = None
) -> dict[str, str]:
    """Try everything on one architecture: `yes`, or the reason why not, for each thing, such as `attack lora`.

    Args:
        folder: for all files.
        defenses: specs of those to try; None for all. `attacks` likewise.
    """
    base, other = (checkpoints.write_reader(folder / name, kind, seed=seed) for seed, name in enumerate(("a", "b")))
    found = {"out of LoRA's reach": _unreached(base)}
    planned = []
    for spec in _all_defenses(base, other) if defenses is None else defenses:
        try:
            plan(_suite(base, [spec], []))
        except NftbenchError as error:
            found[f"defense {_label(spec)}"] = str(error).removeprefix(f"{spec}: ")
        else:
            planned.append(spec)
    whole = plan(_suite(base, planned, _first("attacks") if attacks is None else attacks))
    workspace = Workspace(whole, Store(folder / "results", folder / "cache"))
    with mock.patch.object(isolation, "run", _here):
        for job in _jobs(whole):
            (record,) = referee.execute(workspace, job) or ()
            found |= _outcome(record)
    return found


def _here(function: Callable[[bytes, Path], None], order: bytes, folder: Path, *_: Any, **__: Any) -> float:
    """`isolation.run` without a process for each method: starting them would take longer than all else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as a process of a plugin shows them, and does not end
        function(order, folder)
    return 0.0


def _suite(base: Path, defenses: Sequence[str], attacks: Sequence[str]) -> Suite:
    """A suite on a given base in which each attack takes a step at two learning rates."""
    suite = tiny_suite(
        defenses=list(dict.fromkeys(["none", *defenses])),
        attacks=list(dict.fromkeys(["none", *attacks])),
        tasks=["toy_topic", "toy_tone"],
        utility=["bits_per_byte"],
        budget={"durations": [1], "learning_rates": {name: [1e-3, 3e-3] for name in ("adamw", "sgd", "muon")}}
        | {"extension": 0, "restarts": 1, "preparation_steps": 2, "warmup": 0},
    )
    return Suite.model_validate({**suite.model_dump(mode="json"), "model": {"path": str(base)}})


def _all_defenses(base: Path, other: Path) -> list[str]:
    """The defenses and controls that start from a trained model, and releases that are given."""
    specs = [spec for spec in _first("defenses") if facts.defense(spec).stage == "posttrain"]
    made = [spec for spec in specs if Spec.parse(spec).name not in ("none", *OF_THE_RUN)]
    return [*made, f"checkpoint[path={other},reference={base}]", f"smaller[path={other}]"]


def _first(kind: registry.Kind) -> list[str]:
    """One spec of each plugin that needs no other model, and those in `VARIANTS`."""
    by_name = {Spec.parse(spec).name: spec for spec in reversed(few_steps.specs(kind))}
    return [*reversed(by_name.values()), *VARIANTS[kind]]


def _jobs(whole: Plan) -> Iterator[Job]:
    """One cell of each row that is only measured, and one of each attack, on the first row that it is planned for."""
    attacked = set()
    for job in whole.jobs():
        if str(job.attack) == "none" or job.attack not in attacked:
            attacked.add(job.attack)
            yield dataclasses.replace(job, cells=job.cells[:1])


def _outcome(record: Record) -> dict[str, str]:
    reason = YES if record.status == "ok" else record.reason or record.status
    if record.attack != "none":
        return {f"attack {_label(record.attack)}": reason}
    if record.defense != "none":
        return {f"defense {_label(record.defense)}": reason}
    seen = record.protection
    checks = {"gradients": seen.unchecked or YES, "rewrite": seen.rewrite or YES} if seen is not None else {}
    return {"reading": reason, **checks}


def _label(spec: str) -> str:
    """The plugin with the parameters that make it another method, as in `inject[what=split]`."""
    parsed = Spec.parse(spec)
    return str(Spec(parsed.name, tuple(item for item in parsed.parameters if item[0] in CHOOSE)))


def _unreached(base: Path) -> str:
    """The matrices that LoRA leaves as they are, by their names in a block; `nothing` if it reaches all."""
    network = networks.load(base).network
    head = network.get_output_embeddings()
    wanted = {name for name, matrix in matrices.of(network).items() if matrix.module is not head}
    adapted = adapters.lora(copy.deepcopy(network), 2, 2.0)
    reached = {name.split(".lora_A")[0] for name, _ in adapted.named_parameters() if ".lora_A" in name}
    left = {name for name in wanted if f"base_model.model.{name.removesuffix('.weight')}" not in reached}
    return ", ".join(sorted({name.rpartition(".0.")[2].removesuffix(".weight") for name in left})) or "nothing"


def write(kinds: Sequence[str] = tuple(NAMES)) -> None:
    """Try these architectures, and put what was found into `FILE`."""
    kept = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else []
    by_kind = {entry["model_type"]: entry for entry in kept}
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            found = outcomes(kind, Path(folder))
        by_kind[kind] = {"model_type": kind, "name": NAMES[kind], "outcomes": found}
        print(f"{NAMES[kind]}: {sum(value == YES for value in found.values())} of {len(found) - 1} work", flush=True)
        content = [by_kind[name] for name in NAMES if name in by_kind]
        FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
