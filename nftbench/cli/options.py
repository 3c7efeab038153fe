"""The options that several verbs share, each with its name, type, default and help.

A verb takes a group of options as one parameter, a dataclass of this module, and `with_options` tells typer about the
group's fields. README.md's tables are made from the same texts.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from nftbench.cli import completion
from nftbench.errors import NftbenchError

if TYPE_CHECKING:
    from nftbench.planning import shards
    from nftbench.planning.registry import Kind
    from nftbench.suites.schema import Suite

SuiteName = Annotated[
    str,
    typer.Argument(
        metavar="SUITE",
        help="A suite of nftbench, or the path of a YAML file.",
        autocompletion=completion.suite,
    ),
]
RunFolder = Annotated[
    Path,
    typer.Argument(
        metavar="FOLDER",
        file_okay=False,
        help="A folder that run wrote, as `runs/<suite>`.",
        autocompletion=completion.folder,
    ),
]
Defenses = Annotated[
    str | None,
    typer.Option(
        "--defenses",
        metavar="A,B[x=1]",
        help="Only these defenses, as in `pmp,noise[scale=0.2]`. A name without brackets means all its variants in the "
        "suite. What the suite lacks is added.",
        autocompletion=completion.plugins("defenses"),
    ),
]
Attacks = Annotated[
    str | None,
    typer.Option(
        "--attacks",
        metavar="A,B[x=1]",
        help="Only these attacks, named like defenses.",
        autocompletion=completion.plugins("attacks"),
    ),
]
Tasks = Annotated[
    str | None,
    typer.Option(
        "--tasks",
        metavar="A,B",
        help="Only these tasks, named like defenses.",
        autocompletion=completion.plugins("tasks"),
    ),
]
Seeds = Annotated[str | None, typer.Option("--seeds", metavar="0,1", help="Only these base seeds of the suite.")]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit",
        min=1,
        metavar="N",
        help="At most N documents of each split, to see that everything runs. Such a run has no scores.",
    ),
]
Shard = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Only the I-th of N shares, as in `3/16`, for several machines on one `--out` and one cache; default: "
        "in a SLURM array, the share of its task.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        file_okay=False,
        help="Folder for records and reports; default: `runs/<suite>`, for calibrate `runs/<suite>-<proof>`, "
        "for audit `runs/audit-<release>`.",
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        min=1,
        metavar="N",
        help="Worker processes; default: one for each core, on cuda one. On a cluster: the most jobs at a time; "
        "default: as many as it has room for.",
    ),
]
ExecutorName = Annotated[
    Literal["local", "slurm", "ray"],
    typer.Option(
        "--executor",
        help="Where jobs run: in processes on this machine, on a SLURM cluster (`nftbench[slurm]`) or on a Ray cluster "
        "(`nftbench[ray]`).",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="ADDRESS",
        help="ray: the address of a running cluster, or `auto`; default: one is started on this machine.",
    ),
]
ParallelConfig = Annotated[
    Path | None,
    typer.Option(
        "--parallel-config",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="slurm: a YAML file with benchopt's keys, such as `slurm_partition`; what jobs ask the cluster for.",
    ),
]
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="`cpu`, `cuda`, or one card as in `cuda:1`.")]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        exists=True,
        file_okay=False,
        help="Folder of local data; default: data sets of the hub.",
    ),
]
Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin", metavar="FILE", help="Add the plugins of a file, or of a folder with an `__init__.py`; repeatable."
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a key of the suite, as in `--set budget.restarts=5`; repeatable.",
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="DIR",
        file_okay=False,
        help="Folder of models and generated data; default: `$NFTBENCH_CACHE` or `~/.cache/nftbench`.",
    ),
]
CacheSize = Annotated[
    str | None,
    typer.Option(
        "--cache-size",
        metavar="SIZE",
        help="Most disk for the cache, as in `20GB`: models that were not used for the longest time are deleted, and "
        "made again when needed; default: `$NFTBENCH_CACHE_SIZE`, or no limit.",
    ),
]
ModelPath = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="PATH",
        help="The base of every seed, in place of the suite's own model: a folder, a GGUF file or a hub id.",
    ),
]
FailOnClaims = Annotated[
    bool,
    typer.Option(
        "--fail-on-claims",
        help="End with exit code 1 if a claim of a paper does not hold, or is not measured, or if a defense's claim is "
        "refuted.",
    ),
]
LogTo = Annotated[
    Literal["trackio", "wandb", "mlflow"] | None,
    typer.Option(
        "--log-to",
        help="Also log the results with `trackio`, `wandb` or `mlflow`; pip installs it with `nftbench[NAME]`.",
    ),
]
SaltText = Annotated[
    str | None,
    typer.Option(
        "--salt",
        metavar="TEXT",
        help="Repeat a run of the toy language with this salt, which its packed manifest names. The leaderboard then "
        "says that the salt was public. Default: the folder's own, drawn at random.",
    ),
]
TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code",
        help="Measure releases that only their owner's code can open: that code runs with your rights. Such a row has "
        "no rank.",
    ),
]


@dataclass(frozen=True)
class Selection:
    """The part of a suite that a command line asks for."""

    defenses: Defenses = None
    attacks: Attacks = None
    tasks: Tasks = None
    seeds: Seeds = None
    limit: Limit = None
    shard: Shard = None

    def names(self) -> Mapping[Kind, Sequence[str]]:
        """The specs asked for of each kind; an empty list asks for all.

        Raises:
            NftbenchError: an option is given and names nothing.
        """
        return {
            "defenses": parts("--defenses", self.defenses),
            "attacks": parts("--attacks", self.attacks),
            "tasks": parts("--tasks", self.tasks),
        }

    def base_seeds(self) -> Sequence[int]:
        """The base seeds asked for; an empty list asks for all.

        Raises:
            NftbenchError: the option is given and names nothing, or something that is no number.
        """
        seeds = parts("--seeds", self.seeds)
        for seed in seeds:
            if not seed.isdecimal():
                raise NftbenchError(f"--seeds {self.seeds}: {seed!r} is not a seed; write 0,1,2")
        return [int(seed) for seed in seeds]

    def share(self) -> shards.Shard | None:
        """The share asked for; None for everything.

        Raises:
            NftbenchError: it is not written as in 3/16.
        """
        from nftbench.planning.shards import Shard

        return Shard.parse(self.shard) if self.shard is not None else None

    def in_array(self) -> Selection:
        """The selection, in a task of a SLURM array with the task's share, unless another one is asked for.

        Raises:
            NftbenchError: the numbers of the array's tasks are not evenly spaced.
        """
        from nftbench.planning.shards import Shard

        found = Shard.of_array(os.environ) if self.shard is None else None
        return replace(self, shard=str(found)) if found is not None else self


@dataclass(frozen=True)
class RunOptions:
    """What every verb that plans a suite takes: changes of the suite, folders, and how to compute."""

    out: Out = None
    jobs: Jobs = None
    executor: ExecutorName = "local"
    address: Address = None
    parallel_config: ParallelConfig = None
    device: Device = "cpu"
    data: Data = None
    plugin: Plugins = None
    changes: Changes = None
    model: ModelPath = None
    cache: Cache = None
    cache_size: CacheSize = None
    salt: SaltText = None
    trust_code: TrustCode = False

    def __post_init__(self) -> None:
        if self.address is not None and self.executor != "ray":
            raise NftbenchError("--address is for --executor ray")
        if self.parallel_config is not None and self.executor != "slurm":
            raise NftbenchError("--parallel-config is for --executor slurm")

    def suite(self, name: str) -> Suite:
        """The suite of this name or file with the command line's changes.

        Raises:
            NftbenchError: there is none, the salt is empty or contains blanks, or a change does not fit.
        """
        from nftbench import suites

        if self.salt is not None and self.salt.split() != [self.salt]:
            raise NftbenchError(f"--salt {self.salt!r}: write one word, without blanks")
        options = {}
        if self.model is not None:
            path = json.dumps({"path": self.model}, ensure_ascii=False)
            options[f"--model {self.model!r}"] = f"model={path}"
        if self.salt is not None:
            options[f"--salt {self.salt!r}"] = f"salt={json.dumps(self.salt, ensure_ascii=False)}"
        return suites.read(name, self.changes or (), options)


def parts(option: str, text: str | None) -> list[str]:
    """The specs in the comma-separated value of an option; empty if the option is not given.

    Raises:
        NftbenchError: the option is given, but its value names nothing.
    """
    from nftbench.records.spec import split

    specs = split(text or "")
    if text is not None and not specs:
        raise NftbenchError(f"{option} {text!r} names nothing; leave it out for the whole suite")
    return specs


def with_options(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb as typer reads it: a parameter that is a dataclass of options becomes the dataclass's fields."""
    groups: dict[str, type[Any]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(verb, eval_str=True).parameters.values():
        if is_dataclass(parameter.annotation) and isinstance(parameter.annotation, type):
            groups[parameter.name] = parameter.annotation
            parameters += inspect.signature(parameter.annotation, eval_str=True).parameters.values()
        else:
            parameters.append(parameter)

    def call(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        verb(**values)

    # keyword-only, so that an argument without a default may follow one that has a default
    keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    call.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    call.__name__, call.__doc__ = verb.__name__, verb.__doc__
    return call
