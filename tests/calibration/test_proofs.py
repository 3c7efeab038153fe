"""The verb `calibrate` from command line to page, for every proof that runs cells, on a tiny suite."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from nftbench import calibration
from nftbench.calibration import Run
from nftbench.cli import main
from nftbench.errors import NftbenchError
from nftbench.planning import registry
from nftbench.records.manifest import Manifest, PlannedCell
from nftbench.records.record import CellId
from nftbench.records.store import Store
from nftbench.testing import tiny_suite
from tests.calibration.pools import oracle_run, records, run_of

ORACLE = Path(__file__).parent / "planted.py"
SHAM = """
from dataclasses import dataclass
from typing import ClassVar

from nftbench import Defense, Model, OwnerContext, Protected


@dataclass(frozen=True)
class Nothing(Defense):
    stage: ClassVar[str] = "posttrain"

    def protect(self, model: Model, context: OwnerContext) -> Protected:
        return Protected(model)
"""


@pytest.fixture
def tiny(cache: Path, added: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a suite, in which the verb is called."""
    monkeypatch.chdir(tmp_path)
    suite = tiny_suite(
        attacks=["none", "linear_probe"],
        ladder={"early_stop": ["early_stop", "early_stop[fraction=0.2]"]},
        initialisations=2,
        budget={"durations": [2], "restarts": 1, "extension": 0},
    )
    Path("tiny.yaml").write_text(yaml.safe_dump(suite.model_dump(mode="json")))
    return tmp_path


def read(proof: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(Path(f"runs/tiny-{proof}/{proof}.json").read_text())
    page = Path(f"runs/tiny-{proof}/{proof}.md").read_text()
    word = {None: "reported", True: "valid", False: "not valid"}[found["valid"]]  # type: ignore[index]
    assert page.startswith(f"# tiny-{proof}\n\ntiny-{proof}: {word}\n")
    return found


@pytest.mark.slow
def test_doses_are_run_and_judged_and_judged_again(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["calibrate", "tiny.yaml", "--proof", "dose", "--jobs", "1"])
    found = read("dose")
    assert "jobs to run" in capsys.readouterr().out
    assert main(["calibrate", "tiny.yaml", "--proof", "dose", "--from", "runs/tiny-dose", "--out", "again"]) == code
    assert "jobs to run" not in capsys.readouterr().out
    again = json.loads(Path("again/dose.json").read_text())
    assert {**again, "command": found["command"]} == found
    assert main(["calibrate", "tiny.yaml", "--proof", "null", "--from", "runs/tiny-dose"]) == 2
    assert {one["row"] for one in found["doses"]} == {  # type: ignore[attr-defined]
        "early_stop[fraction=0.75]", "early_stop", "early_stop[fraction=0.35]", "early_stop[fraction=0.2]",
    }  # fmt: skip
    assert Path("runs/tiny-dose/dose.png").exists()


@pytest.mark.slow
def test_shams_are_run_and_judged_and_a_second_call_runs_nothing(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tiny / "shams").mkdir()
    (tiny / "shams/nothing.py").write_text(SHAM)
    (tiny / "shams/__init__.py").write_text("")
    words = ["--proof", "shams", "--shams", "shams", "--jobs", "1"]
    main(["calibrate", "tiny.yaml", *words])
    capsys.readouterr()
    main(["calibrate", "tiny.yaml", *words])
    assert "nothing is left to run" in capsys.readouterr().out
    (sham,) = read("shams")["shams"]  # type: ignore[misc]
    assert sham["row"] == "nothing"
    assert [one["attack"] for one in sham["attacks"]] == ["linear_probe"]
    assert sham["attacks"][0]["lacks"]["value"] == 0.0  # it is the undefended model, bit for bit
    assert main(["calibrate", "tiny.yaml", "--proof", "shams"]) == 2  # none is named
    assert main(["calibrate", "tiny.yaml", "--proof", "shams", "--shams", "elsewhere"]) == 2


WORDS = ["--proof", "oracle", "--plugin", str(ORACLE), "--defenses", "planted[points=3],planted", "--jobs", "1"]
WORDS += ["--attacks", "planted[attack=heal]"]


@pytest.mark.slow
def test_the_oracle_is_run_and_judged(tiny: Path) -> None:
    main(["calibrate", "tiny.yaml", *WORDS])
    assert [one["row"] for one in read("oracle")["grades"]] == ["planted[points=3]", "planted"]  # type: ignore[attr-defined]


def written(run: Run, folder: Path) -> None:
    """A finished run in a folder of results."""
    store, kept = Store(folder, folder), [replace(one, key=f"{at:064x}") for at, one in enumerate(run.records)]
    cells = tuple(PlannedCell(*CellId.of(one), one.key) for one in kept)
    store.write_manifest(Manifest(suite=run.suite, cells=cells, ladder=run.ladder, initialisations=run.initialisations))
    for one in kept:
        store.write(one)


@pytest.mark.slow
@pytest.mark.parametrize(("taken", "valid"), [(-6.0, True), (6.0, False)])
def test_null_is_judged_again_and_the_exit_code_is_its_verdict(tiny: Path, taken: float, valid: bool) -> None:
    """Models that are far easier to attack than the reference are no false positives; far harder ones are."""
    written(run_of(records(0, noise=0.005, taken=taken)), tiny / "runs/tiny-null")
    assert main(["calibrate", "tiny.yaml", "--proof", "null", "--from", "runs/tiny-null"]) == (0 if valid else 1)
    found = read("null")
    assert found["valid"] is valid
    assert {one["seeds"] for one in found["shares"]} == {3, 5}  # type: ignore[attr-defined]


@pytest.mark.slow
def test_power_is_read_from_both_runs(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(run_of(records(0, noise=0.005)), tiny / "runs/tiny-null")
    written(oracle_run(weak=2.0, strong=12.0), tiny / "runs/tiny-oracle")
    assert main(["calibrate", "tiny.yaml", "--proof", "power"]) == 0
    assert {one["row"] for one in read("power")["detections"]} == {"weak", "strong"}  # type: ignore[attr-defined]
    assert main(["calibrate", "tiny.yaml", "--proof", "power", "--from", "runs/tiny-null"]) == 2
    assert "one run of the proof oracle" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["--proof", "null", "--defenses", "pmp"], "--defenses"),
        (["--proof", "null", "--shams", "shams"], "--shams"),
        (["--defenses", "pmp"], "--defenses"),
        (["--proof", "null", "--from", "runs/tiny-null", "--attacks", "full"], "--attacks"),
        (["--proof", "oracle", "--from", "runs/tiny-oracle", "--device", "cpu"], "--device"),
        (["--proof", "power", "--jobs", "1"], "--jobs"),
        (["--proof", "spread", "--attacks", "full"], "--attacks"),
        (["--proof", "attacks", "--set", "seeds=[1]"], "--set"),
    ],
)
def test_an_option_that_a_proof_does_not_heed_is_refused(
    tiny: Path, words: list[str], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", "tiny.yaml", *words]) == 2
    assert f" takes no {option}\n" in capsys.readouterr().err


@pytest.mark.parametrize("proof", ["calibration", "null", "dose", "shams", "oracle"])
def test_a_proof_needs_an_attack_that_trains_the_release(tiny: Path, proof: str) -> None:
    registry.add_file(ORACLE)
    derive = calibration.PROOFS[proof].derive  # type: ignore[union-attr]
    for attacks in (["none"], ["scratch"], ["none", "authorized"]):
        suite = tiny_suite(ladder={"noise": ["noise"]}, attacks=attacks)
        with pytest.raises(NftbenchError, match="needs an attack that trains the release"):
            derive(suite, ["planted"], () if proof == "shams" else attacks)
    twice = ["none", "scratch", "planted[attack=heal]", "planted[attack=heal]"]
    derived = derive(tiny_suite(ladder={"noise": ["noise"]}, attacks=["linear_probe"]), ["planted"], twice)
    own = {"linear_probe"} if proof == "shams" else set()
    assert set(derived.attacks) == {"none", "scratch", "planted[attack=heal]"} | own
    assert len(set(derived.attacks)) == len(derived.attacks)


def test_every_proof_is_known() -> None:
    assert set(calibration.PROOFS) == {
        "calibration", "null", "dose", "shams", "oracle", "power", "attacks", "spread", "order",
    }  # fmt: skip
