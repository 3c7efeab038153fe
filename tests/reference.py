"""The tables in the documents that are made from the code. `make tables` writes them.

A table stands between `<!-- table NAME -->` and `<!-- end of table NAME -->`. Its texts are the help of verbs and
options, and the docstrings under the fields of classes.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import typer
import yaml
from pydantic import BaseModel

from nftbench import contract
from nftbench.cli import app
from nftbench.records import record
from nftbench.suites import schema

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    ROOT / "README.md",
    ROOT / "docs" / "verbs.md",
    ROOT / "docs" / "suites.md",
    ROOT / "docs" / "architectures.md",
    ROOT / "results" / "README.md",
)
RECORD = (
    record.Record,
    record.Row,
    contract.Cost,
    contract.Measurement,
    contract.Point,
    contract.Protection,
    contract.OwnerLedger,
    contract.Spent,
    contract.Reading,
    contract.Series,
)
SUITE = (
    schema.Suite,
    schema.GivenModel,
    schema.CorpusSettings,
    schema.Pretraining,
    schema.Budget,
    schema.Family,
    schema.PaperClaim,
    schema.Quantity,
)
BLOCK = re.compile(r"(<!-- table ([\w-]+) -->\n).*?(<!-- end of table \2 -->)", re.DOTALL)


# ----------------------------------------------------------------------------------------------------- verbs, options


def verbs() -> str:
    """A line for each verb with its arguments."""
    return table(("verb", "what it does"), ((f"`nftbench {usage(verb)}`", verb.help) for verb in commands()))


def options() -> str:
    """A line for each option with the verbs that take it; options that mean different things are different lines."""
    takers: dict[tuple[str, str], list[str]] = {}
    for verb in commands():
        for option in verb.params:
            if option.param_type_name == "option":
                name = " ".join(filter(None, [option.opts[0], option.metavar]))
                takers.setdefault((f"`{name}`", f"{option.help}{default(option)}"), []).append(f"`{verb.name}`")
    return table(
        ("option", "verbs", "meaning"), ((name, ", ".join(names), text) for (name, text), names in takers.items())
    )


def commands() -> list[Any]:
    """The verbs, in the order of `nftbench --help`."""
    group: Any = typer.main.get_command(app)
    return list(group.commands.values())


def usage(verb: Any) -> str:
    """A verb and its arguments, as on a command line."""
    arguments = [parameter.metavar for parameter in verb.params if parameter.param_type_name == "argument"]
    return " ".join([verb.name, *arguments, *["…"] * verb.context_settings.get("allow_extra_args", False)])


def default(option: Any) -> str:
    """An option's default, where it has one."""
    return f" [default: `{option.default}`]" if isinstance(option.default, str) else ""


# --------------------------------------------------------------------------------------------------- fields of classes


def record_fields(cls: type[Any]) -> str:
    """A line for each field of a dataclass that records hold, in the words of JSON."""
    texts = explanations(cls)
    return table(
        ("field", "meaning"), ((f"`{one.name}`", re.sub(r"\bNone\b", "`null`", texts[one.name])) for one in fields(cls))
    )


def suite_keys(model: type[BaseModel]) -> str:
    """A line for each key of a suite's section, with its default."""
    texts = explanations(model)
    return table(
        ("key", "default", "meaning"),
        (
            (f"`{key}`", "required" if field.is_required() else f"`{in_yaml(field)}`", texts[key])
            for key, field in model.model_fields.items()
        ),
    )


def explanations(cls: type[Any]) -> dict[str, str]:
    """The docstring under each field of a class."""
    (definition,) = ast.parse(inspect.getsource(cls)).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in itertools.pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def in_yaml(field: Any) -> str:
    """A key's default as it would be written in a suite."""
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_defaults=True)
    elif isinstance(value, frozenset):
        value = sorted(value)
    elif isinstance(value, tuple):
        value = list(value)
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


# ------------------------------------------------------------------------------------------------------ architectures

TRIED = ROOT / "tests" / "architectures.json"
"""What was found on each architecture; `make architectures` writes it."""


def works() -> str:
    """A line for each architecture: what works there, and how much of the rest does."""
    header = ("architecture", "`model_type`", "text", "gradients", "rewrite", "defenses", "attacks", "LoRA leaves out")
    lines = []
    for entry in tried():
        found = entry["outcomes"]
        checks = [short(found[name]) for name in ("reading", "gradients", "rewrite")]
        methods = [all_but(found, kind) for kind in ("defense", "attack")]
        left_out = found["out of LoRA's reach"]
        names = ", ".join(f"`{name}`" for name in left_out.split(", ")) if left_out != "nothing" else "nothing"
        lines.append((entry["name"], f"`{entry['model_type']}`", *checks, *methods, names))
    return table(header, lines)


def fails() -> str:
    """A line for each reason why something does not work, with the architectures where it is so."""
    where: dict[tuple[str, str], list[str]] = {}
    for entry in tried():
        for name, reason in entry["outcomes"].items():
            if name != "out of LoRA's reach" and reason != "yes":
                where.setdefault((named(name), reason), []).append(entry["name"])
    lines = sorted(((name, ", ".join(places), reason) for (name, reason), places in where.items()))
    return table(("what", "not on", "why"), lines)


def tried() -> list[Any]:
    found: list[Any] = json.loads(TRIED.read_text(encoding="utf-8"))
    return found


def short(reason: str) -> str:
    return "yes" if reason == "yes" else "no"


def all_but(found: dict[str, str], kind: str) -> str:
    """How many methods of a kind work, and the names of those that do not."""
    reasons = {name: reason for name, reason in found.items() if name.startswith(f"{kind} ")}
    out = [named(name) for name, reason in reasons.items() if reason != "yes"]
    return f"all {len(reasons)}" if not out else f"{len(reasons) - len(out)} of {len(reasons)}; not {', '.join(out)}"


def named(name: str) -> str:
    """`attack lora` as `lora` in code; checks of the referee are words."""
    kind, _, method = name.partition(" ")
    return f"`{method}`" if kind in ("attack", "defense") else name


# -------------------------------------------------------------------------------------------------------------- pages

TABLES: dict[str, Callable[[], str]] = {
    "verbs": verbs,
    "options": options,
    "works": works,
    "fails": fails,
    **{cls.__name__: partial(record_fields, cls) for cls in RECORD},
    **{model.__name__: partial(suite_keys, model) for model in SUITE},
}


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in line] for line in lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def names(page: str) -> Iterator[str]:
    """The names of the tables that a page has places for."""
    return (name for _, name, _ in BLOCK.findall(page))


def filled(page: str) -> str:
    """The page with its tables made anew."""
    return BLOCK.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}{found[3]}", page)


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
