"""Proofs that the benchmark finds defenses that work, and takes nothing else for one. See docs/validity.md.

Each proof is one file. Most derive a suite from another one, run it, and judge its records; `power`, `attacks`,
`spread` and `order` read the records of finished runs.
"""

from __future__ import annotations

from collections.abc import Mapping

from nftbench.calibration import attacks, calibration, dose, null, oracle, order, power, shams, spread
from nftbench.calibration.proof import Finding, Measured, Read, Run
from nftbench.calibration.report import report, write
from nftbench.errors import NftbenchError, suggest

__all__ = ["PROOFS", "Finding", "Measured", "Read", "Run", "find", "report", "write"]

PROOFS: Mapping[str, Measured | Read] = {
    "calibration": Measured(calibration.derive, calibration.judge, calibration.needed),
    "null": Measured(null.derive, null.judge),
    "dose": Measured(dose.derive, dose.judge, tries=True),
    "shams": Measured(shams.derive, shams.judge, tries=True),
    "oracle": Measured(oracle.derive, oracle.judge, tries=True),
    "power": Read(power.judge, ("null", "oracle")),
    "attacks": Read(attacks.judge),
    "spread": Read(spread.judge),
    "order": Read(order.judge),
}


def find(name: str) -> Measured | Read:
    """The proof of this name.

    Raises:
        NftbenchError: there is none; the message names the nearest one.
    """
    if name not in PROOFS:
        raise NftbenchError(f"--proof {name}: no such proof{suggest(name, list(PROOFS))}")
    return PROOFS[name]
