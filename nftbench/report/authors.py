"""For the author of an added plugin: one paragraph on what the run found about it, and what would strengthen that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from nftbench.records.spec import Spec
from nftbench.report import order, tables
from nftbench.report.answer import listed
from nftbench.report.doubts import EXPLANATIONS
from nftbench.report.labels import of
from nftbench.scoring.added_attacks import AddedAttack, Addition
from nftbench.scoring.intervals import RANKED_SEEDS
from nftbench.scoring.leaderboard import Leaderboard
from nftbench.scoring.scores import Score
from nftbench.scoring.table import interval, number

MOST = 4
"""Rows of a defense, variants of an attack, and reasons that a paragraph describes at most."""
SAID = frozenset({"preliminary", "not_adaptive", "left_out", "incomplete", "no_effect", "utility"})
"""Flags whose advice the paragraph gives in words of its own, or whose number it gives already."""


def paragraphs(board: Leaderboard) -> tuple[str, ...]:
    """One for each added defense and attack that has rows or records; none where nothing was added."""
    names = of(board)
    rows: dict[str, list[Score]] = {}
    for score in order.everything(board):
        rows.setdefault(Spec.parse(score.defense).name, []).append(score)
    defenses = [_defense(board, rows[name], names) for name in board.added_defenses if name in rows]
    attacks: dict[str, list[AddedAttack]] = {}
    for one in board.added_attacks:
        attacks.setdefault(Spec.parse(one.attack).name, []).append(one)
    return (*defenses, *(_attack(board, variants, names) for variants in attacks.values()))


# ----------------------------------------------------------------------------------------------------------- a defense


def _defense(board: Leaderboard, rows: Sequence[Score], names: Mapping[str, str]) -> str:
    said = [" ".join(_row(board, one, names)) for one in rows[:MOST]]
    if len(rows) > MOST:
        said.append(f"It has {len(rows) - MOST} more rows.")
    advice = list(dict.fromkeys(one for row in rows for one in _missing(row)))
    return " ".join([f"The added defense {Spec.parse(rows[0].defense).name}.", *said, *_strengthened(advice)])


def _row(board: Leaderboard, score: Score, names: Mapping[str, str]) -> Iterator[str]:
    name, standing = names[score.defense], score.standing
    if standing.rank is not None:
        among = sum(
            one.standing.rank is not None and one.row.reference == score.row.reference for one in order.defenses(board)
        )
        open_ranks = f", and the comparisons leave open {_ranks(score)}" if standing.ranks else ""
        preliminary = " (preliminary)" if standing.group == "preliminary" else ""
        yield f"{name} has rank {standing.rank} of {among}{preliminary}{open_ranks}."
    elif standing.group == "control":
        yield f"{name} is a control and has no rank."
    else:
        yield f"{name} has no rank: {'; '.join(standing.reasons[:MOST]) or 'not everything is measured'}."
    if score.excess.interval:
        yield (
            f"Its excess, which is what it takes beyond trivial defenses that keep as much utility, is "
            f"{interval(score.excess.interval)} points."
        )
    elif score.resistance.suppression:
        yield f"It takes {interval(score.resistance.suppression)} points from the best attack."
    if score.utility.retention:
        badge = {"keeps": ", so it keeps its utility", "loses": ", so it loses utility"}.get(score.utility.badge or "")
        yield f"Of utility {interval(score.utility.retention, 100)} % stay{badge or ''}."
    if score.claim.verdict is not None:
        yield f"Its claim: {tables.claim(score)}."
    if score.attacks:  # none are known while the reference has no records
        yield _broken(score)


def _ranks(score: Score) -> str:
    assert score.standing.ranks is not None
    first, last = score.standing.ranks.first, score.standing.ranks.last
    return f"ranks {first} to {last}" if first != last else f"no other than rank {first}"


def _broken(score: Score) -> str:
    """The best single attack on the release, beside where the best attacks on the undefended model end."""
    best = score.best_attack
    if best is None or best.attacked is None:
        return "No attack on it has a result that counts."
    undefended = score.resistance.undefended
    beside = f"; undefended, the best end at {number(undefended)}" if undefended is not None else ""
    ends = f"{number(best.attacked.value)} points{beside}"
    return f"The best single attack on validation is {best.attack}, which ends at {ends}."


def _missing(score: Score) -> Iterator[str]:
    """What would make the numbers of a row surer, the most important first."""
    if score.incomplete:
        yield f"the {len(score.incomplete)} cells without a result, first {score.incomplete[0]}"
    counts = [one.count for one in (score.resistance.suppression, score.excess.interval) if one]
    few = bool(counts) and min(counts) < RANKED_SEEDS
    if few:
        yield f"more base seeds: {min(counts)} of the {RANKED_SEEDS} that a rank takes are there"
    elif score.excess.interval and score.excess.interval.high >= 0 and _has_no_effect(score):
        yield "more base seeds, because its excess may be zero"
    if score.kind == "defense" and not score.by_knowledge.adaptive:
        yield "an attack written against it (`nftbench new attack`, with its name in `against`) and listed in the suite"
    if score.by_knowledge.untested:
        yield f"attacks that use all of {listed(score.by_knowledge.untested)}"
    if score.claim.verdict == "untested" and not score.claim.covered:
        yield "attacks that use all the knowledge that its claim grants"
    if score.utility.badge == "cannot tell" and not few:
        yield "more base seeds, because it may have lost utility"
    for flag in score.flags:
        if flag.severity != "note" and flag.name not in SAID:
            yield f"an answer to the doubt that {EXPLANATIONS[flag.name].meaning} ({EXPLANATIONS[flag.name].advice})"


def _has_no_effect(score: Score) -> bool:
    """As the rules have it: corrected for the number of defenses, which the interval is not."""
    return any(flag.name == "no_effect" for flag in score.flags)


# ----------------------------------------------------------------------------------------------------------- an attack


def _attack(board: Leaderboard, variants: Sequence[AddedAttack], names: Mapping[str, str]) -> str:
    said = [f"The added attack {Spec.parse(variants[0].attack).name}."]
    said += [sentence for one in variants[:MOST] for sentence in _variant(board, one, names)]
    if len(variants) > MOST:
        said.append(f"It has {len(variants) - MOST} more variants.")
    advice = dict.fromkeys(missing for one in variants for missing in _missing_of(board, one, names))
    return " ".join([*said, *_strengthened(list(advice))])


def _variant(board: Leaderboard, one: AddedAttack, names: Mapping[str, str]) -> Iterator[str]:
    compared = {names[found.defense]: found for found in one.additions if found.adds is not None}
    further = [_further(name, found) for name, found in compared.items() if found.adds and found.adds.low > 0]
    others = [name for name, found in compared.items() if found.adds and found.adds.low <= 0]
    if further:
        yield f"With {one.attack} attackers get further than with the catalogue alone: {listed(further)}."
    if others:
        yield f"With {one.attack} they get no further that the run can tell on {listed(others)}."
    if not compared:
        references = {score.row.reference for score in board.scores}  # on which no attack adds anything
        alone = [names[found.defense] for found in one.additions if found.alone and found.defense not in references]
        yield (
            f"{one.attack} cannot be compared with the catalogue on {listed(alone)} yet, because cells are missing."
            if alone
            else f"{one.attack} has no result that counts on any defense."
        )
    for found in one.additions:
        if found.adds is None and found.alone and found.catalogue:
            yield (
                f"On {names[found.defense]}, where it does not count, it ends at {number(found.alone.value)} points, "
                f"and the best of the catalogue at {number(found.catalogue.value)}."
            )
    if not one.counts:
        yield "It needs more knowledge than the ranking's attackers have, so no rank depends on it."


def _further(name: str, found: Addition) -> str:
    ends = f", where those end at {number(found.catalogue.value)}" if found.catalogue else ""
    return f"{interval(found.adds)} points on {name}{ends}"


def _missing_of(board: Leaderboard, one: AddedAttack, names: Mapping[str, str]) -> Iterator[str]:
    """What would make surer what an attack adds."""
    for score in order.without_ladder(board):
        for found in score.attacks:
            if found.attack == one.attack and found.failed:
                yield f"its {found.failed} cells without a result on {names[score.defense]} ({found.faults[0]})"
    counts = [found.adds.count for found in one.additions if found.adds]
    if counts and min(counts) < RANKED_SEEDS:
        yield f"more base seeds: {min(counts)} of {RANKED_SEEDS} are there"
    yield (
        "a place in the suite's own file, under `attacks`: an added attack counts on defenses alone, a listed one on "
        "the undefended model and on trivial defenses too"
    )


def _strengthened(advice: Sequence[str]) -> list[str]:
    return [f"What would strengthen the evidence: {'; '.join(advice)}."] if advice else []
