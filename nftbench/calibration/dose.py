"""Less of a model is no defense: under-trained and damaged models of every dose, each judged like a defense.

Such a model takes points from an attacker and loses utility. Judged are:

- the doses of the suite's ladder, each against the ladder without itself;
- doses halfway between two of them, and between the reference and the weakest. A chord under a concave curve would
  reward them;
- models that the user names with `--plugin`, such as two families composed.

None may have an excess whose lower end lies above zero. Reported beside it is each dose's excess over the ladder
without its whole family: what a new kind of trivial defense, of which the suite does not know, would be taken for.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nftbench.calibration import derived
from nftbench.calibration.proof import Finding, Run
from nftbench.errors import NftbenchError
from nftbench.planning import facts
from nftbench.planning.specs import canonical
from nftbench.records.spec import Spec
from nftbench.scoring.intervals import RANKED_SEEDS, Interval
from nftbench.scoring.scores import Score
from nftbench.scoring.table import UNKNOWN, Table, interval
from nftbench.suites.schema import Suite

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STOPPED = "early_stop"


@dataclass(frozen=True)
class Dose:
    """A model that is worth less than the reference, judged like a defense."""

    row: str
    family: str | None
    """Of the ladder on which it is, or between whose doses it lies."""
    on_ladder: bool
    retention: Interval | None
    least: str | None
    """The metric that it keeps least of."""
    suppression: Interval | None
    excess: Interval | None
    over: tuple[str | None, str | None]
    """The metric and the family that leave least."""
    without_family: Interval | None
    """Its excess over the ladder without its own family."""
    reason: str | None
    """Why it has no excess."""

    @property
    def taken_for_a_defense(self) -> bool:
        return self.excess is not None and self.excess.low > 0


def derive(suite: Suite, rows: Sequence[str], attacks: Sequence[str]) -> Suite:
    """The ladder, every dose between, and the models that the user names; five seeds, the ladder's attacks.

    Raises:
        NftbenchError: the suite has no ladder.
    """
    derived.needs_ladder(suite, "dose")
    halfway = [dose for name in suite.ladder for dose in between(suite, name)]
    stopped = [dose for dose in halfway if Spec.parse(dose).name == STOPPED]
    fractions = {facts.defense(dose).parameters["fraction"] for dose in stopped}
    kept = sorted({*suite.pretraining.checkpoints, *fractions})
    return derived.derive(
        suite,
        "dose",
        derived.attackers(suite, attacks),
        defenses=derived.rows(halfway, rows),
        pretraining=suite.pretraining.model_copy(update={"checkpoints": tuple(kept)}),
        seeds=derived.seeds(suite, RANKED_SEEDS),
    )


def between(suite: Suite, family: str) -> list[str]:
    """The rows halfway between two neighbours of a family, and between the reference and its weakest dose.

    The doses of a family differ in one number. Where it falls from dose to dose, as a share of the training does, the
    reference has 1; where it rises, as noise does, the reference has 0. One dose alone does neither.

    Raises:
        NftbenchError: the doses differ in anything but one number.
    """
    doses = [facts.defense(text) for text in suite.ladder[family].doses]
    if len(doses) == 1:
        return []
    names, settings = {dose.name for dose in doses}, [dose.parameters for dose in doses]
    varied = [key for key in settings[0] if len({one.get(key) for one in settings}) > 1]
    if len(names) > 1 or len(varied) != 1:
        raise NftbenchError(
            f"{suite.name}: ladder: the doses of {family} must be one defense with exactly one parameter that differs"
        )
    (parameter,) = varied
    values = [one[parameter] for one in settings]
    values = [1.0 if values[-1] < values[0] else 0.0, *values]
    fixed = doses[0].spec.without(parameter)
    halfway = [round((near + far) / 2, 6) for near, far in itertools.pairwise(values)]
    specs = [Spec(fixed.name, (*fixed.parameters, (parameter, value))) for value in halfway]
    return [str(canonical("defenses", str(spec))) for spec in specs]


def judge(suite: Suite, run: Run) -> Finding:
    """Judge every dose by its excess."""
    if run.missing:
        return Finding(run.suite.name, failures=(run.missing,))
    scores = {one.defense: one for one in run.board().scores if one.kind != "reference"}
    of = {Spec.parse(dose).name: name for name, family in run.ladder.items() for dose in family.doses}
    without = {name: _without(run, name) for name in run.ladder}
    doses = []
    for row, score in scores.items():
        family = of.get(Spec.parse(row).name)
        doses.append(_dose(run, score, family, without[family].get(row) if family is not None else None))
    doses = sorted(doses, key=lambda one: -(one.retention.value if one.retention else 0.0))
    failures = [
        f"{one.row} is taken for a defense: excess {interval(one.excess)} over {one.over[1]} on {one.over[0]}"
        for one in doses
        if one.taken_for_a_defense
    ]
    failures += [f"{one.row} has no excess: {one.reason}" for one in doses if one.excess is None]
    numbers = {"doses": [asdict(one) for one in doses]}
    tables = (_table(doses), _resolution(doses))
    picture = partial(draw, doses, run.suite)
    return Finding(run.suite.name, tables, numbers, tuple(failures), draw=picture)


def _without(run: Run, family: str) -> dict[str, Interval | None]:
    """By row: its excess over the ladder without this family."""
    rest = {name: doses for name, doses in run.ladder.items() if name != family}
    return {one.defense: one.excess.interval for one in replace(run, ladder=rest).board().scores}


def _dose(run: Run, score: Score, family: str | None, without_family: Interval | None) -> Dose:
    return Dose(
        row=score.defense,
        family=family,
        on_ladder=any(score.defense in one.doses for one in run.ladder.values()),
        retention=score.utility.retention,
        least=score.utility.least,
        suppression=score.resistance.suppression,
        excess=score.excess.interval,
        over=(score.excess.metric, score.excess.family),
        without_family=without_family,
        reason=score.excess.reason,
    )


# ----------------------------------------------------------------------------------------------------------- showing


def _table(doses: Sequence[Dose]) -> Table:
    return Table(
        "Under-trained and damaged models, each judged like a defense: no lower end of an excess may lie above zero",
        ("row", "on the ladder", "utility %", "least metric", "suppression", "excess", "over"),
        tuple(
            (one.row, "yes" if one.on_ladder else "no", interval(one.retention, 100), one.least or UNKNOWN,
             interval(one.suppression), interval(one.excess), f"{one.over[1] or UNKNOWN} on {one.over[0] or UNKNOWN}")
            for one in doses
        ),
    )  # fmt: skip


def _resolution(doses: Sequence[Dose]) -> Table:
    """By family: the most that one of its rows would be taken for if the suite did not know the family."""
    rows = []
    for family in sorted({one.family for one in doses if one.family}):
        known = [one for one in doses if one.family == family and one.without_family is not None]
        seen = [one for one in known if one.without_family and one.without_family.low > 0]
        most = max(known, key=lambda one: one.without_family.value if one.without_family else 0.0, default=None)
        rows.append(
            (family, f"{len(seen)} of {len(known)}", interval(most.without_family) if most else UNKNOWN,
             most.row if most else UNKNOWN)
        )  # fmt: skip
    header = ("family left out", "rows with an effect then", "the largest excess", "of the row")
    return Table("A family that the ladder lacks", header, tuple(rows))


def draw(doses: Sequence[Dose], suite: Suite, folder: Path) -> Path:
    """Suppression against the mean share of utility that each row keeps, family by family: `dose.png`."""
    import matplotlib as mpl

    mpl.use("Agg")  # no display: figures are files
    import matplotlib.pyplot as plt
    import seaborn as sns

    sns.set_theme(style="whitegrid", context="paper")
    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    _families(axes, doses, sns.color_palette("colorblind"))
    axes.set(
        xlabel="utility: % of the undefended model, mean over the metrics",
        ylabel="suppression: points taken from the best attack",
        title=f"{suite.name}: what trivial defenses keep and take",
    )
    path = folder / "dose.png"
    figure.savefig(path, dpi=160, bbox_inches="tight")
    plt.close(figure)
    return path


def _families(axes: Axes, doses: Sequence[Dose], colors: Sequence[Any]) -> None:
    """Each family in its colour; filled points are on the ladder."""
    for color, family in zip(colors, dict.fromkeys(one.family for one in doses), strict=False):
        known = [
            (100 * one.retention.value, one.suppression.value, one.on_ladder)
            for one in doses
            if one.family == family and one.retention and one.suppression
        ]
        axes.plot([x for x, _, _ in known], [y for _, y, _ in known], color=color, linewidth=0.6)
        for on_ladder, face in ((True, color), (False, "white")):
            points = [(x, y) for x, y, on in known if on == on_ladder]
            axes.scatter([x for x, _ in points], [y for _, y in points], color=face, edgecolor=color, s=22, zorder=3)
        axes.plot([], [], "o", color=color, label=family or "others")
    axes.legend(frameon=False)
