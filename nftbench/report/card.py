"""The protection card of an audited checkpoint: a verdict, the attacks behind it, controls, limits, and the commands.

A `Card` is plain text and tables, made from a leaderboard. `as_markdown` and `as_html` show it and escape its texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from nftbench.records.record import Record
from nftbench.records.spec import Spec
from nftbench.report import order, row_tables, tables
from nftbench.report.exports import model_index
from nftbench.report.labels import of
from nftbench.report.markdown import commands, escaped, items, joined, one_line, section
from nftbench.scoring.cost_to_break import SHARES
from nftbench.scoring.intervals import PRELIMINARY_SEEDS, RANKED_SEEDS
from nftbench.scoring.leaderboard import Leaderboard
from nftbench.scoring.per_attack import AttackRow
from nftbench.scoring.scores import Score
from nftbench.scoring.table import UNKNOWN, Table, interval, number, short
from nftbench.suites.schema import Budget, Suite
from nftbench.terms import KNOWLEDGE, Verdict

if TYPE_CHECKING:
    from nftbench.records.manifest import Manifest

HAS: Mapping[str, str] = {
    "method": "how releases are protected",
    "data": "public text",
    "base": "the undefended twin",
    "sibling": "a second checkpoint",
    "secret": "the owner's secret",
}
"""What an attacker has besides the release and the task's training documents, in words."""


@dataclass(frozen=True)
class Subject:
    """What is audited, as its files say it."""

    release: str
    reference: str
    architecture: str
    parameters: int
    unlike: str = ""
    """How the release and its twin differ as models, in a sentence; empty where they do not."""

    @property
    def name(self) -> str:
        """The last part of the release's folder or hub id."""
        return self.release.rstrip("/").rpartition("/")[2] or self.release

    @property
    def row(self) -> str:
        """The release's row in records and leaderboard."""
        return str(Spec("checkpoint", (("path", self.release), ("reference", self.reference))))


@dataclass(frozen=True)
class Card:
    """Plain text in the order in which it is read."""

    name: str
    verdict: Verdict
    answer: str
    """The verdict in one sentence."""
    facts: tuple[tuple[str, str], ...]
    tables: tuple[tuple[Table, str], ...]
    """Each with a sentence on how to read it."""
    doubts: tuple[str, ...]
    """Reasons to doubt the numbers; empty where there are none."""
    limits: tuple[str, ...]
    command: str
    model_index: str
    """YAML for the top of the release's own README."""


def card(board: Leaderboard, manifest: Manifest, records: Sequence[Record], subject: Subject, command: str) -> Card:
    """The card of the release that an audit's leaderboard holds. Its numbers are those of `leaderboard.json`."""
    score = _row(board, subject.row)
    twin = _row(board, score.row.reference)
    verdict = score.claim.verdict or "untested"
    shown = (
        (_numbers(score, twin), "Points, means over tasks and seeds with 95 % intervals; that of the excess is 98 %."),
        (
            _controls(board, score),
            "Anyone could make these from the twin without training, so a protection has to beat them.",
        ),
        (
            _tried(score, twin),
            "The strongest first. The score above is that of the attack which does best on validation, task by task. "
            "One with more luck on the test split may stand higher here. Costs are those of one task's attacker, every "
            "try included.",
        ),
        (_tasks(board, score), "In points, after the best attack on each task."),
        (row_tables.utility(score), "Shares of what the twin scores above chance, before any attack."),
        (row_tables.not_planned(board, score), ""),
    )
    return Card(
        name=subject.name,
        verdict=verdict,
        answer=_answer(verdict, score),
        facts=_facts(board, manifest, subject, records),
        tables=tuple((table, note) for table, note in shown if table.rows),
        doubts=(
            *filter(None, [subject.unlike]),
            *(_named(doubt, score, twin) for doubt in (*board.problems, *(flag.message for flag in score.flags))),
        ),
        limits=_limits(manifest.suite, len({record.seed for record in records})),
        command=one_line(command),
        model_index=model_index.text(subject.name, board.suite, score, one_line(command)),
    )


def _row(board: Leaderboard, defense: str) -> Score:
    return next(score for score in board.scores if score.defense == defense)


# ------------------------------------------------------------------------------------------------------------ verdict


def _answer(verdict: Verdict, score: Score) -> str:
    """The verdict in one sentence, with its numbers."""
    taken = f"{interval(score.claim.suppression)} points"
    excess = f"{interval(score.claim.excess)} points"
    match verdict:
        case "holds" | "holds at a cost":
            cost = "keeps its utility" if verdict == "holds" else "may not keep its utility"
            return (
                f"The protection {verdict}: it takes {taken} from the strongest attack that was tried, {excess} more "
                f"than any trivial change of the twin that was tried and keeps as much utility, and {cost}."
            )
        case "refuted":
            why = (
                f"a trivial change of the twin with as much utility takes as much (the release takes {excess} more)"
                if score.claim.excess is not None and score.claim.excess.high <= 0
                else f"it takes {taken} from the strongest attack, so attackers end where they do on the twin"
            )
            return f"The protection is refuted: {why}."
        case "not shown":
            return (
                f"A protection is not shown: the release takes {taken} from the strongest attack that was tried, and "
                f"{excess} more than a trivial change of the twin with as much utility, which {_open(score)}."
            )
        case "untested":
            return f"The protection is untested: {_untested(score)}."


def _open(score: Score) -> str:
    excess = score.claim.excess
    if excess is not None and excess.low > 0 and excess.count < RANKED_SEEDS:
        return f"would need {RANKED_SEEDS} seeds in place of {excess.count} to count"
    return "may be chance"


def _untested(score: Score) -> str:
    """Why the claim could not be tested, the first reason that applies."""
    taken = score.claim.suppression
    if score.incomplete:
        return f"not every result is there, the first that lacks: {score.incomplete[0]}"
    if not score.claim.tested:
        return "no attack has fine-tuned the release"
    if taken is None:
        return "what it takes from the attackers is not known"
    if taken.count < PRELIMINARY_SEEDS:
        few = f"{taken.count} seed{'s' * (taken.count > 1)}"
        return f"{few} cannot tell it from chance, and {PRELIMINARY_SEEDS} are needed"
    if score.claim.excess is None:
        return f"it cannot be compared with trivial changes of the twin ({score.excess.reason})"
    if not score.claim.covered:
        return "the attacks did not use all that an attacker may have"
    return "a doubt below has to be cleared first"


# ------------------------------------------------------------------------------------------------------------- tables


def _numbers(score: Score, twin: Score) -> Table:
    here, there = score.resistance, twin.resistance
    suppression = interval(here.suppression) if here.suppression else tables.suppression(score)
    rows = [
        ("score before any attack", interval(here.unattacked), interval(there.unattacked)),
        ("score after the best attack", interval(here.attacked), interval(there.attacked)),
        ("taken from the attacker", suppression, UNKNOWN),
        ("taken beyond trivial changes of the twin", _beyond(score, twin), UNKNOWN),
        ("utility kept, %", interval(score.utility.retention, 100), "100.0" if score.utility.retention else UNKNOWN),
        *_costs(score, twin),
    ]
    return Table("In numbers", ("", "release", "undefended twin"), tuple(rows))


def _beyond(score: Score, twin: Score) -> str:
    """The excess, or why there is none."""
    if score.excess.interval is None and score.excess.reason:
        return f"not known: {_named(score.excess.reason, score, twin)}"
    return interval(score.excess.interval)


def _named(text: str, score: Score, twin: Score) -> str:
    """The text with words in place of the specifications of both rows."""
    return text.replace(twin.defense, "the undefended twin").replace(score.defense, "the release")


def _costs(score: Score, twin: Score) -> list[tuple[str, str, str]]:
    """The attacker's cost to shares of the twin's gain. A gain that may be none has no shares to reach."""
    gain = twin.resistance.gain
    if gain is None:
        return [("attacker's cost to the twin's gain", "not known: the twin has no complete result", UNKNOWN)]
    if gain.value <= 0 or (gain.count > 1 and gain.low <= 0):
        return [("attacker's cost to the twin's gain", "not known: no attack is shown to gain on the twin", UNKNOWN)]
    return [
        (f"{unit} to {100 * share:g} % of the twin's gain", tables.multiple(score, name, share), "1×")
        for name, unit in (("steps", "attacker's steps"), ("seconds", "attacker's time"))
        for share in SHARES
    ]


def _tried(score: Score, twin: Score) -> Table:
    """Every attack, by what its attacker has."""
    on_twin = {one.attack: one for one in twin.attacks}
    header = (
        *("attack", "attacker also has", "score on the release", "score on the twin", "learning rate", "steps"),
        *("seconds", "peak MB", "results"),
    )
    rows = tuple(
        (
            one.attack,
            has(one),
            interval(one.attacked),
            interval(on_twin[one.attack].attacked) if one.attack in on_twin else UNKNOWN,
            short(one.learning_rate),
            short(one.steps),
            short(one.seconds),
            short(None if one.memory is None else one.memory / 1e6),
            "; ".join([f"{one.cells - one.failed} of {one.cells}", *one.faults]),
        )
        for one in score.attacks
    )
    return Table("What was tried", header, rows)


def has(attack: AttackRow) -> str:
    """What the attacker has besides the release and the task's training documents, in words."""
    if attack.knowledge is None:
        return UNKNOWN
    known = " and ".join(HAS[one] for one in sorted(attack.knowledge, key=KNOWLEDGE.index)) or "nothing"
    return known if attack.uses_release else f"{known}, and ignores the release"


def _controls(board: Leaderboard, score: Score) -> Table:
    """The release among the trivial changes of its twin, sorted by what is kept of utility."""
    doses = [one for scores in order.doses(board).values() for one in scores]
    names = of(board)
    rows = [("the release", score), *((names[one.defense], one) for one in doses)]
    rows.sort(key=lambda row: -(row[1].utility.retention.value if row[1].utility.retention else 0.0))
    return Table(
        "Against trivial changes of the twin",
        ("", "utility kept, %", "taken from the attacker", "score after the best attack"),
        tuple(
            (
                label,
                interval(one.utility.retention, 100),
                interval(one.resistance.suppression) if one.resistance.suppression else tables.suppression(one),
                interval(one.resistance.attacked),
            )
            for label, one in rows
        ),
    )


def _tasks(board: Leaderboard, score: Score) -> Table:
    scratch = {row.task: row.scratch for row in board.headroom if row.reference == score.row.reference}
    rows = tuple(
        (
            one.task,
            number(one.unattacked),
            interval(one.attacked),
            number(one.undefended),
            number(scratch.get(one.task)),
            one.attack or UNKNOWN,
        )
        for one in score.resistance.tasks
    )
    header = ("task", "before", "release", "undefended twin", "from random weights", "most often best")
    return Table("Task by task", header, rows)


# -------------------------------------------------------------------------------------------------- facts and limits


def _facts(
    board: Leaderboard, manifest: Manifest, subject: Subject, records: Sequence[Record]
) -> tuple[tuple[str, str], ...]:
    given = manifest.suite.given
    commit = next((record.provenance.get("revision") for record in records if record.defense == subject.row), None)
    last = max((str(record.provenance.get("written") or "") for record in records), default="")
    versions = next((record.provenance.get("versions") or {} for record in records), {})
    return (
        ("release", _at(subject.release, commit)),
        ("undefended twin", _at(subject.reference, given.revision if given is not None else None)),
        ("model", f"{subject.architecture}, {subject.parameters / 1e6:.3g} M parameters"),
        ("suite", f"{board.suite}: {_results(manifest, records)}"),
        ("cost", f"{short(_seconds(records) / 60)} minutes of one worker in all"),
        ("date", last[:10] or UNKNOWN),
        ("made with", ", ".join(f"{name} {version}" for name, version in versions.items()) or UNKNOWN),
    )


def _at(place: str, commit: str | None) -> str:
    """A folder, or a hub id with its commit."""
    return place if commit is None else f"{place} at {commit}"


def _seconds(records: Sequence[Record]) -> float:
    """Time of all cells, with the preparation that the cells of one job share, and of all defenses."""
    prepared: dict[tuple[str, str], float] = {}
    for record in records:
        job = record.release, record.attack
        own = record.cost.preparation_seconds if record.cost else 0.0
        prepared[job] = max(prepared.get(job, 0.0), own)
    made = {record.release: record.protection.seconds for record in records if record.protection}
    cells = sum(float(record.provenance.get("seconds") or 0.0) for record in records)
    return cells + sum(prepared.values()) + sum(made.values())


def _results(manifest: Manifest, records: Sequence[Record]) -> str:
    """How many of the cells have a result, at the seeds that were run. A failed cell has a record and no result."""
    failed = sum(record.status != "ok" for record in records)
    run, planned = {record.seed for record in records}, {cell.seed for cell in manifest.cells}
    cells = sum(cell.seed in run for cell in manifest.cells)
    part = f" at {len(run)} of {len(planned)} seeds" if run < planned else ""
    return f"{len(records) - failed} of {cells} results{part}{f', {failed} failed' if failed else ''}"


def _limits(suite: Suite, seeds: int) -> tuple[str, ...]:
    """What the card does not say, in three sentences; `seeds` is how many were run."""
    drawn = "1 seed draws" if seeds == 1 else f"{seeds} seeds draw"
    were = "was" if len(suite.tasks) == 1 else "were"
    return (
        f"The attacks are strong baselines, and {_budget(suite.budget)}: a longer, larger or cleverer attack may reach "
        "more.",
        f"Only {_listed(suite.tasks)} {were} attacked, and utility is {_listed(suite.utility)} alone: nothing is said "
        "of other tasks.",
        f"{drawn} attacks and documents anew, and never the checkpoint: another run of the same protection may "
        "be stronger or weaker.",
    )


def _budget(budget: Budget) -> str:
    """What the suite gives to one run of an attack. Some attacks take more, as for preparation on public text."""
    documents = budget.max_train_documents
    read = f", drawn from at most {documents}" if documents is not None else ""
    return f"the budget of a run is {max(budget.durations)} steps of {budget.batch} documents{read}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# -------------------------------------------------------------------------------------------------------------- pages


def as_markdown(found: Card) -> str:
    """The card as `card.md`."""
    parts = [f"# Protection card: {escaped(found.name)}", f"**{escaped(found.answer)}**"]
    parts.append("\n".join(f"- **{name}**: {escaped(fact)}" for name, fact in found.facts))
    for table, note in found.tables:
        parts += [section(table), escaped(note)]
    parts += ["## Doubts", items(found.doubts)] if found.doubts else []
    parts += ["## Limits", items(found.limits), "## The command", commands([found.command])]
    if found.model_index:
        parts += [
            "## For the release's README",
            "These lines belong between the two lines `---` at the top of the release's README.md.",
            commands(found.model_index.splitlines()),
        ]
    return joined(parts)


def as_html(found: Card) -> str:
    """The card as `card.html`, one file without scripts that loads nothing. Every text is escaped."""
    import jinja2

    template = resources.files("nftbench.report").joinpath("card.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template).render(card=found)
