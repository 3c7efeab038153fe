"""One small model, release and task for all benchmarks, and the table that they fill.

`pytest tests/benchmarks` prints the table; with --write-table it also puts it into docs/performance.md.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.benchmarks.measure import Line

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
BEGIN, END = "<!-- table: written by the benchmarks -->\n", "<!-- end of table -->\n"
LINES: dict[str, Line] = {}
MODEL = {
    "model_type": "gpt2",
    "n_layer": 2,
    "n_embd": 48,
    "n_head": 2,
    "n_positions": 64,
    "activation_function": "gelu_pytorch_tanh",
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
"""The size of the suite `small`."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-table", action="store_true", help="Write the table of ratios into docs/performance.md.")


@pytest.fixture(scope="session")
def table() -> dict[str, Line]:
    """Where a benchmark puts its lines, by a name that sorts them."""
    return LINES


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not LINES:
        return
    text = rendered()
    terminalreporter.write_line("")
    terminalreporter.write(text)
    if config.getoption("--write-table"):
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        PAGE.write_text(before + BEGIN + text + END + after, encoding="utf-8")


def rendered() -> str:
    """The table as Markdown, under the machine that it was made on."""
    import torch
    import transformers

    model = next((line for line in _lines("/proc/cpuinfo") if line.startswith("model name")), platform.processor())
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    rows = [("what", "required", "measured", "A/A control", "how"), ("---",) * 5]
    rows += [(line.what, line.required, line.measured, line.control, line.note) for _, line in sorted(LINES.items())]
    machine = (
        f"{model.partition(':')[2].strip()}, {os.cpu_count()} cores (load {load} at the end), one thread; "
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    )
    return f"\nMachine: {machine}.\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows) + "\n"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


@dataclass(frozen=True)
class Wrapped:
    """A loaded task whose evaluation is another."""

    task: Any
    trainable: ClassVar[bool] = True

    def split(self, name: Any) -> Any:
        return self.task.split(name)

    def loss(self, network: Any, batch: Any) -> Any:
        return self.task.loss(network, batch)


class Bench:
    """A release of the suite `small`'s size, a task loaded for it, and the standard budget."""

    def __init__(self, folder: Path, cache: Path) -> None:
        from nftbench import suites
        from nftbench.device import CPU
        from nftbench.models import networks
        from nftbench.planning.plan import plan
        from nftbench.records.store import Store
        from nftbench.running.releases import make_release
        from nftbench.running.workspace import Workspace, load_task
        from nftbench.training import engine

        content: dict[str, Any] = {
            "name": "benchmark",
            "salt": "public",
            "model": MODEL,
            "corpus": {"source": "toy", "sentences": 8000, "heldout_blocks": 64},
            "pretraining": {"steps": 100, "warmup": 10, "learning_rate": 3e-3},
            "defenses": ["none"],
            "attacks": ["none", "full"],
            "tasks": ["toy_topic"],
            "utility": ["toy_agreement_pronoun"],
            "budget": {
                "learning_rates": {"adamw": [3e-4, 1e-3, 3e-3, 1e-2]},
                "durations": [25, 50, 100, 200],
                "batch": 32,
                "extension": 0,
                "restarts": 1,
                "max_validation_documents": 2000,
            },
            "seeds": [0],
        }
        self.content, self.folder, self.cache = content, folder, cache
        self.suite = suites.parse(content)
        self.workspace = Workspace(plan(self.suite), Store(folder / "results", cache))
        job = next(job for job in self.workspace.plan.jobs() if job.attack.name == "full")
        engine.set_threads(CPU)
        self.release = make_release(self.workspace, job.defense, 0, job.release)
        self.model = networks.load(self.release, attacker=True)
        self.task: Any = load_task(self.workspace, job.cells[0].task, job.seed, self.model)

    @property
    def budget(self) -> Any:
        return self.suite.budget


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"), cache)
