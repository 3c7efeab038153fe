"""Properties of attacks that older records lack, inferred from the attacks' names."""

from __future__ import annotations

from collections.abc import Mapping

from nftbench.records.record import Record
from nftbench.records.spec import Spec
from nftbench.terms import TrainedWeights

_TRAINED_WEIGHTS: Mapping[str, TrainedWeights] = {
    "full": "all",
    "long": "all_longer",
    "head": "part",
    "layers": "part",
    "bitfit": "part",
    "linear_probe": "part",
}


def trained_weights(record: Record) -> TrainedWeights:
    """Which weights the record's attack trains: what it declares, or what an attack of its name declared in 0.1."""
    return record.trained_weights or _TRAINED_WEIGHTS.get(Spec.parse(record.attack).name, "other")
