"""What the page shows of one leaderboard: its tables with a sort key, a chip or a colour for each cell, and its rows.

Tables come from nftbench.report.tables and row_tables, as those of leaderboard.md do. Text is escaped by the template.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nftbench.report import order, page, provenance, row_tables, tables
from nftbench.report.answer import sentences
from nftbench.report.authors import paragraphs
from nftbench.report.labels import NAMED, of
from nftbench.scoring.leaderboard import Leaderboard
from nftbench.scoring.scores import Score
from nftbench.scoring.table import Table, number, short

CHIPS = {
    "keeps": "good",
    "holds": "good",
    "holds at a cost": "unsure",
    "loses": "bad",
    "refuted": "bad",
    "does not hold": "bad",
    "not distinguishable": "unsure",
    "not ranked": "bad",
    "cannot tell": "unsure",
    "not shown": "unsure",
    "untested": "unsure",
    "warning": "unsure",
    "note": "plain",
    "no headroom": "bad",
}
"""The looks of a cell that is one of these words, or begins with one before a bracket."""
SHADES = 8
"""Steps of colour in the heat map."""
FIGURES = re.compile(r"[-\d.,e+×>≤%\[\]() –]*")
"""A number with its interval, which no line may break."""
FIRST = re.compile(r"^[(>≤ ]*(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)")


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    text: str
    order: str
    """What the column is sorted by: the first number of the cell, or its text."""
    row: str | None = None
    """The specification of the row that the cell names; its text is the label then."""
    anchor: str | None = None
    """The place in the page where this row is described."""
    chip: str | None = None
    shade: int | None = None

    @property
    def breaks(self) -> bool:
        """Whether the text may be broken into lines where the table is wide."""
        return not FIGURES.fullmatch(self.text)


@dataclass(frozen=True)
class Grid:
    """A table of cells. `about` is its caption."""

    title: str
    about: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Defense:
    """The section of one row."""

    row: str
    label: str
    anchor: str
    kind: str
    place: str
    broken: str
    """What broke it, in a sentence."""
    facts: Mapping[str, str]
    tables: tuple[Grid, ...]


@dataclass(frozen=True)
class View:
    """One leaderboard as the page shows it. The template asks for some of its tables several times."""

    board: Leaderboard
    name: str
    """The prefix of its anchors, different for each leaderboard of a page."""
    title: str
    """What the tab says."""
    command: str

    @functools.cached_property
    def labels(self) -> Mapping[str, str]:
        """The label of every row; the suite's own come first."""
        return of(self.board)

    @property
    def answer(self) -> Sequence[str]:
        """Who is ranked where, which claims hold and what breaks them: a sentence or two on each."""
        return sentences(self.board)

    @property
    def added(self) -> tuple[str, ...]:
        """What was found about each added defense and attack, in a paragraph."""
        return paragraphs(self.board)

    @functools.cached_property
    def first(self) -> tuple[Grid, ...]:
        """What stands before the ranking: claims of papers, in a suite that has them."""
        return self._beside(first=True)

    @functools.cached_property
    def ranking(self) -> Grid:
        """Every ranked row."""
        about = "Rows by excess: points taken from the best attacker beyond trivial defenses that keep as much utility."
        about = " ".join(filter(None, [about, tables.preliminary(self.board)]))
        return self._grid(tables.ranking(self.board), about)

    @property
    def beside(self) -> tuple[Grid, ...]:
        """What is compared with the ranking: rows without a rank, and trivial defenses."""
        controls = "Trivial defenses, which anyone could use, from the weakest dose of each family to the strongest."
        found = (
            (tables.unranked(self.board), "Rows without a rank, and why."),
            (tables.controls(self.board), controls),
        )
        return tuple(self._grid(table, about) for table, about in found if table.rows)

    @functools.cached_property
    def heat(self) -> Grid:
        """Suppression at each level of knowledge, as a heat map."""
        grid = self._grid(
            tables.levels(self.board),
            "Points taken from the best attacker who knows this much; the stronger the colour, the more.",
        )
        measured = range(2, len(grid.header) - 1)
        found = [_number(row[index].text) for row in grid.rows for index in measured]
        most = max((one for one in found if one is not None), default=0.0)
        return replace(
            grid,
            rows=tuple(
                tuple(_shaded(cell, most) if index in measured else cell for index, cell in enumerate(row))
                for row in grid.rows
            ),
        )

    @property
    def tasks(self) -> tuple[Grid, ...]:
        """Headroom, then each task."""
        room = "How much a defense could suppress: undefended after its best attack, less training from scratch."
        each = [self._grid(table, "Every row on this task, in points.") for table in tables.tasks(self.board)]
        return (self._grid(tables.headroom(self.board), room), *each)

    @property
    def more(self) -> tuple[Grid, ...]:
        """Utility by metric, details, and the tables of findings beside the ranking."""
        found = [tables.utility(order.everything(self.board)), tables.details(self.board)]
        return (*(self._grid(table, "") for table in found if table.rows), *self._beside(first=False))

    def _beside(self, *, first: bool) -> tuple[Grid, ...]:
        chosen = [side for side in self.board.side_tables if (side.position == "first") == first]
        return tuple(self._grid(table, "") for side in chosen for table in side.tables() if table.rows)

    @functools.cached_property
    def doubts(self) -> Grid:
        """Every doubt about every row."""
        return self._grid(tables.flags(self.board), "What was seen that makes a row less certain.")

    @property
    def defenses(self) -> tuple[Defense, ...]:
        """Every row, the ranked ones first and the doses of the ladder last."""
        return tuple(self._defense(score) for score in order.everything(self.board))

    @property
    def provenance(self) -> Mapping[str, str]:
        """When, where and with what the records were made."""
        return provenance.facts(self.board)

    @property
    def made(self) -> Mapping[str, int]:
        """The commands that made the records, where they are others than the last one."""
        commands = self.board.origin.commands
        return commands if set(commands) - {self.command} else {}

    @property
    def guide(self) -> str:
        """How to read it, as Markdown."""
        return page.guide(self.board)

    @functools.cached_property
    def _anchors(self) -> dict[str, str]:
        rows = order.everything(self.board)
        return {score.defense: f"{self.name}-row-{index}" for index, score in enumerate(rows)}

    def _defense(self, score: Score) -> Defense:
        shown = (
            tables.row_flags(score),
            row_tables.attacks(score),
            row_tables.cost_to_break(score),
            row_tables.gains(score),
            row_tables.utility(score),
            row_tables.not_planned(self.board, score),
        )
        return Defense(
            row=score.defense,
            label=self.labels[score.defense],
            anchor=self._anchors[score.defense],
            kind={"reference": "undefended", "trivial": "trivial defense"}.get(score.kind, score.kind),
            place=tables.rank(score),
            broken=breaking(score),
            facts=page.facts(self.board, score),
            tables=tuple(self._grid(table, "") for table in shown if table.rows),
        )

    def _grid(self, table: Table, about: str) -> Grid:
        rows = tuple(
            tuple(self._cell(head, text) for head, text in zip(table.header, row, strict=True)) for row in table.rows
        )
        return Grid(table.title, about, table.header, rows)

    def _cell(self, head: str, text: str) -> Cell:
        if head in NAMED and text in self.labels:
            label = self.labels[text]
            return Cell(label, label, row=text, anchor=self._anchors.get(text))
        first = _number(text)
        return Cell(text, text if first is None else repr(first), chip=CHIPS.get(text.partition(" (")[0]))


def views(boards: Sequence[tuple[Leaderboard, str]], folders: Sequence[str] = ()) -> list[View]:
    """Leaderboards, each with the command that made it, as the page shows them.

    Several of one suite are told apart by the names of their folders, as far as these are given, or by numbers.
    """
    found: list[View] = []
    seen: Counter[str] = Counter()
    suites = [board.suite or "Leaderboard" for board, _ in boards]
    for index, (board, command) in enumerate(boards):
        title = suite = suites[index]
        seen[suite] += 1
        if suites.count(suite) > 1 and folders:
            title = f"{suite} · {folders[index]}"
        elif seen[suite] > 1:
            title = f"{suite} ({seen[suite]})"
        found.append(View(board, f"board-{index}", title, command))
    return found


def breaking(score: Score) -> str:
    """What the best single attack does, reaches and costs, as far as it is known."""
    best = score.best_attack
    if best is None or best.attacked is None:
        return "No attack has a result."
    reached = best.attacked.value
    undefended = score.resistance.undefended
    beside = f" (undefended, after its best attacks: {number(undefended)})" if undefended is not None else ""
    rate = None if best.learning_rate is None else f"learning rate {short(best.learning_rate)}"
    costs = ((best.steps, "steps"), (best.flops, "FLOPs"), (best.seconds, "s a task"))
    spent = [f"{short(cost)} {unit}" for cost, unit in costs if cost is not None]
    recipe = ", ".join(filter(None, [rate, *spent]))
    ends = f"{best.attack}, {number(reached)} points{beside}{f'; {recipe}' if recipe else ''}"
    return f"Best single attack on validation: {ends}."


def _number(text: str) -> float | None:
    found = FIRST.match(text)
    return float(found[1]) if found else None


def _shaded(cell: Cell, most: float) -> Cell:
    found = _number(cell.text)
    if found is None:
        return cell
    return replace(cell, shade=max(0, round(SHADES * found / most)) if most > 0 else 0)
