"""What `nftbench plan` prints: cells by defense and attack, what is skipped, and the costs of the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nftbench.planning.plan import Plan
from nftbench.records.count import count
from nftbench.records.manifest import Skip
from nftbench.records.record import Record
from nftbench.records.spec import Spec
from nftbench.records.store import Store, settled
from nftbench.running import estimate, forecast
from nftbench.running.estimate import Left


def overview(plan: Plan, records: Mapping[str, Record], store: Store, workers: int) -> RenderableType:
    """The whole overview of a plan, or of a part of one."""
    done = settled(plan.cells, records)
    left = estimate.remaining(plan, store, done)
    parameters = estimate.parameters_of(plan.suite)
    counted = count([cell.key for cell in plan.cells], records)
    lines = [
        f"{plan.suite.name}: {counted} in {store.results}; {len(plan.jobs())} jobs, each one attack on one release",
        *_skipped(plan.skips),
        *training(plan),
        *costs(plan, records, store, left, parameters, workers),
    ]
    defenses = _table("defense", [(str(cell.defense), cell.key in done) for cell in plan.cells])
    attacks = _table("attack", [(str(cell.attack), cell.key in done) for cell in plan.cells])
    return Group(Text(lines[0]), defenses, attacks, *map(Text, lines[1:]))


def costs(
    plan: Plan, records: Mapping[str, Record], store: Store, left: Left, parameters: int, workers: int
) -> list[str]:
    """What the rest takes: time, memory and disk, in a line each."""
    return [
        f"time: {forecast.time_line(plan, records, left, parameters, workers)}",
        f"memory: {estimate.memory_line(left, parameters, workers)}",
        f"disk: {estimate.disk_line(plan, store, left, parameters, workers)}",
    ]


def _skipped(skips: Sequence[Skip]) -> list[str]:
    """What is not planned: one line for each reason, with the attacks and defenses."""
    against: dict[tuple[str, str], list[str]] = {}
    for skip in skips:
        against.setdefault((skip.attack, skip.reason), []).append(Spec.parse(skip.defense).name)
    together: dict[tuple[str, str], list[str]] = {}
    for (attack, reason), names in against.items():
        together.setdefault((", ".join(dict.fromkeys(names)), reason), []).append(attack)
    return [f"skipped: {', '.join(attacks)} against {names}: {reason}" for (names, reason), attacks in together.items()]


def training(plan: Plan) -> list[str]:
    """How a GPU trains the runs of a sweep; nothing on the CPU, which trains them one by one."""
    if plan.device.kind == "cpu":
        return []
    from nftbench.training.stack import ELEMENTWISE

    alone = [str(spec) for spec, facts in plan.attacks.items() if facts.optimizer not in (None, *ELEMENTWISE)]
    line = (
        "training: a sweep's runs at once, with steps as CUDA graphs, or one by one where a network cannot be stacked; "
        "provenance.training says which"
    )
    return [line + (f"; one by one in any case: {', '.join(alone)}" if alone else "")]


def _table(name: str, cells: Sequence[tuple[str, bool]]) -> Table:
    """How many cells are planned for each spec, and how many of them are done; `cells` are specs and whether done."""
    planned = Counter(spec for spec, _ in cells)
    done = Counter(spec for spec, is_done in cells if is_done)
    table = Table()
    table.add_column(name, overflow="fold")
    table.add_column("cells done", justify="right", no_wrap=True)
    table.add_column("planned", justify="right", no_wrap=True)
    for spec, number in planned.items():
        table.add_row(Text(spec), str(done[spec]), str(number))
    return table
