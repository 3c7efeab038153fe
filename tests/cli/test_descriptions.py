"""What `nftbench info` shows of a suite with claims."""

from __future__ import annotations

import yaml

from nftbench import suites
from nftbench.cli import descriptions


def test_a_suite_s_claims_are_one_line_each() -> None:
    text = descriptions.describe("paper-pmp")
    settings = yaml.safe_load(text.split("\n", 1)[1])
    claims = suites.read("paper-pmp").claims
    assert len(settings["claims"]) == len(claims)
    for line, claim in zip(settings["claims"], claims, strict=True):
        assert line.startswith(claim.says)
        assert sum(line in shown for shown in text.splitlines()) >= 1
        if claim.above is not None:
            assert line.endswith(f" (above {claim.above:g})")
    unbounded = [claim for claim in claims if claim.above is None and claim.below is None]
    assert unbounded
    assert unbounded[0].says in settings["claims"]
