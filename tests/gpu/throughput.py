"""How fast one GPU trains: by the engine, at once in a stack, and by the same steps in plain PyTorch, in one run.

    python -P tests/gpu/throughput.py TABLE          # writes the table to TABLE after each measurement
    python -P tests/gpu/throughput.py TABLE --tiny   # the same code, tiny and on the CPU: its numbers mean nothing

What is compared takes turns, in a new order each round, after a round that is not counted. Each time ends when the GPU
has done its work. Ratios are medians over rounds, with quartiles.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.append(str(Path(__file__).parents[2]))  # after the installed package, which alone has the plugins inside

import numpy as np
import torch
from torch import Tensor, nn

from nftbench.contract import Measurement, Model, Task
from nftbench.data import loglikelihood
from nftbench.data.loglikelihood import Batch, Encoded, Passes, PassPlanner, Rows
from nftbench.device import Device
from nftbench.methods import adapters
from nftbench.models import networks
from nftbench.suites.schema import Budget, Pretraining
from nftbench.training import engine, stack as stacks
from nftbench.training.sweep import Run, Sweep
from nftbench.training.trainer import Trainer
from tests.benchmarks.measure import by_turns, ratio

PEAKS = {"H100": 989e12, "H200": 989e12}
"""Dense bfloat16 FLOPs a second by NVIDIA's data sheets of the SXM cards, by a part of the card's name."""


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    large: Mapping[str, Any]
    """The model of pre-training and of one fine-tuning."""
    small: Mapping[str, Any]
    """The model of sixteen learning rates."""
    base: Mapping[str, Any]
    """The model beneath sixteen LoRA updates."""
    vocabulary: int
    block: int
    batch: int
    """Blocks in a batch of pre-training."""
    pretraining_steps: int
    steps: int
    """Of each fine-tuning run."""
    square: int
    """Width of the matrices whose product is the ceiling."""
    rounds: int


def gpt2(layers: int, width: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "n_layer": layers,
        "n_embd": width,
        "n_head": heads,
        "activation_function": "gelu_pytorch_tanh",
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    }


REAL = Sizes(
    gpt2(12, 768, 12),
    gpt2(2, 48, 2),
    gpt2(8, 512, 8),
    vocabulary=50304,
    block=1024,
    batch=16,
    pretraining_steps=20,
    steps=50,
    square=8192,
    rounds=3,
)
TINY = Sizes(
    gpt2(1, 16, 2),
    gpt2(1, 16, 2),
    gpt2(1, 16, 2),
    vocabulary=64,
    block=48,
    batch=2,
    pretraining_steps=2,
    steps=6,
    square=32,
    rounds=2,
)
RATES = 16
"""Networks in a stack."""
MEASURED_ALONE = 4
"""Of them, the runs that are trained one by one; their time is multiplied."""
WARMUP, DECAY = 2, 0.01
"""Steps of linear warm-up, and the weight decay of matrices, in fine-tuning."""
DOCUMENTS, LENGTH = 32, 32
"""In a batch of fine-tuning, and tokens of the longest: about a thousand tokens a step."""
VALIDATED = 100
"""Documents of a small validation split, as in `smollm2-gpu`. All 512 are scored as well."""


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    what: str
    goal: str
    measured: str
    how: str


# ------------------------------------------------------------------------------------------------------- what is timed


@dataclass(frozen=True)
class Bench:
    """A device, and how long an action takes on it."""

    device: Device
    sizes: Sizes

    def seconds(self, action: Callable[[], object]) -> float:
        """Wall time until the device has done all its work."""
        gc.collect()
        self._wait()
        begun = time.perf_counter()
        action()
        self._wait()
        return time.perf_counter() - begun

    def _wait(self) -> None:
        if self.device.kind == "cuda":
            torch.cuda.synchronize()

    def turns(self, actions: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
        """Seconds of each action in each round."""
        return by_turns(actions, self.sizes.rounds, self.seconds)

    def build(self, settings: Mapping[str, Any], positions: int) -> Any:
        fields = {**settings, "vocab_size": self.sizes.vocabulary, "n_positions": positions}
        return networks.build(fields, None, 0, str(self.device)).network

    @property
    def card(self) -> str:
        return torch.cuda.get_device_name() if self.device.kind == "cuda" else "the CPU"

    @property
    def peak(self) -> float | None:
        return next((peak for name, peak in PEAKS.items() if name in self.card), None)


@dataclass(frozen=True)
class Documents:
    """A training split of random tokens."""

    rows: Rows

    def __len__(self) -> int:
        return len(self.rows.lengths)

    def batch(self, indices: Sequence[int]) -> Batch:
        return self.rows.batch(indices)

    def even_batches(self, several: Sequence[Sequence[int]], *, packed: bool) -> Sequence[Batch]:
        return self.rows.even_batches(several, packed=packed)


class Answers(Task):
    """A text task of random documents with one answer's token each, whose evaluation costs nothing.

    `encoded` has each document with two answers to choose from, the right one first, for whoever wants to score them.
    """

    def __init__(self, vocabulary: int) -> None:
        draw = np.random.default_rng(0)
        lengths = draw.integers(LENGTH // 2, LENGTH, 512)
        texts = [draw.integers(0, vocabulary, length + 1).tolist() for length in lengths]
        right = [Encoded(text[:-1], text[-1:]) for text in texts]
        self.train = Documents(Rows(right, LENGTH))
        self.encoded = [
            answer for one in right for answer in (one, Encoded(one.context, [(one.continuation[0] + 1) % vocabulary]))
        ]

    def split(self, name: Any) -> Any:
        return self.train

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        return loglikelihood.loss(network, batch)

    def evaluate(self, network: nn.Module, split: Any) -> Measurement:
        return Measurement("acc", 0.5, 0.0, 1, 0.5, loss=1.0)


# -------------------------------------------------------------------------------------------------------- measurements


def ceiling(bench: Bench) -> Iterator[Line]:
    """What a large matrix product reaches on this card."""
    size = bench.sizes.square
    left, right = (torch.randn(size, size, device=str(bench.device), dtype=torch.bfloat16) for _ in range(2))
    seconds = bench.turns({"product": lambda: [left @ right for _ in range(10)]})["product"]
    found = [10 * 2 * size**3 / one / 1e12 for one in seconds]
    yield Line("a matrix product in bfloat16", "", spread(found, "TFLOP/s"), f"{size} × {size}, random values")


def pretraining(bench: Bench) -> Iterator[Line]:
    """The engine's pre-training, and the same loop in plain PyTorch."""
    recipe, blocks = pretraining_setup(bench)
    own = bench.build(bench.sizes.large, bench.sizes.block).train()
    found = bench.turns(
        {
            "the engine": lambda: engine.pretrain(own, blocks, recipe, 0, bench.device),
            "plain PyTorch": pretraining_by_hand(bench, own),
        }
    )
    yield from pretraining_lines(bench, own, found)
    value = ratio(found["the engine"], found["plain PyTorch"])
    yield Line("the engine's pre-training over plain PyTorch, time", "", str(value), "")


def compiled_pretraining(bench: Bench) -> Iterator[Line]:
    """What compiling would bring to the loop in plain PyTorch. The engine compiles nothing."""
    network = bench.build(bench.sizes.large, bench.sizes.block).train()
    action = pretraining_by_hand(bench, torch.compile(network))
    yield from pretraining_lines(bench, network, bench.turns({"plain PyTorch, compiled": action}))


def pretraining_setup(bench: Bench) -> tuple[Pretraining, Tensor]:
    """The recipe, and blocks of random tokens."""
    sizes, draw = bench.sizes, torch.Generator().manual_seed(0)
    blocks = torch.randint(sizes.vocabulary, (sizes.batch * 8, sizes.block), generator=draw)
    return Pretraining(steps=sizes.pretraining_steps, batch=sizes.batch, warmup=2), blocks


def pretraining_by_hand(bench: Bench, network: Any) -> Callable[[], None]:
    """A function that takes the recipe's steps in plain PyTorch."""
    recipe, blocks = pretraining_setup(bench)
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def action() -> None:
        batches = engine.token_batches(blocks, recipe.batch, 0, str(bench.device))
        for _, batch in zip(range(recipe.steps), batches, strict=False):
            with engine.autocast(bench.device):
                loss = network(input_ids=batch, labels=batch).loss
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, recipe.clip)
            optimizer.step()

    return action


def pretraining_lines(bench: Bench, network: Any, found: Mapping[str, Sequence[float]]) -> Iterator[Line]:
    """Tokens a second and the share of the card's peak, by what was timed."""
    sizes = bench.sizes
    flops, tokens = token_flops(network, sizes.block), sizes.pretraining_steps * sizes.batch * sizes.block
    for name, seconds in found.items():
        rates = [tokens / one for one in seconds]
        peak = bench.peak
        share = "" if peak is None else f"; {statistics.median(rates) * flops / peak:.1%} of the card's peak"
        yield Line(
            f"pre-training {millions(network)} in bfloat16, {name}",
            "≥ 40 % of peak" if name == "the engine" else "",
            spread(rates, "tokens/s") + share,
            f"{sizes.pretraining_steps} steps of {sizes.batch} × {sizes.block} tokens; {flops:.3g} FLOPs a token",
        )


def fine_tuning(bench: Bench) -> Iterator[Line]:
    """One run at about a thousand tokens a step: by the engine, as a stack of one, and in plain PyTorch."""
    sweep, runs = sweeping(bench, bench.build(bench.sizes.large, LENGTH), count=1)
    found = bench.turns(
        {
            "the engine": lambda: sweep.alone(runs[0]),
            "a stack of one": lambda: sweep.at_once(runs),
            "plain PyTorch": lambda: by_hand(sweep, runs),
        }
    )
    for name, seconds in found.items():
        rates = [bench.sizes.steps / one for one in seconds]
        yield Line(
            f"fine-tuning {millions(sweep.model.network)}, {name}",
            "",
            spread(rates, "steps/s"),
            f"{bench.sizes.steps} steps of {DOCUMENTS} documents of {LENGTH // 2} to {LENGTH} tokens",
        )


def sixteen_rates(bench: Bench) -> Iterator[Line]:
    """Sixteen learning rates of a small model."""
    yield from stacked(bench, "sixteen learning rates", bench.build(bench.sizes.small, LENGTH), None)


def sixteen_updates(bench: Bench) -> Iterator[Line]:
    """Sixteen LoRA updates of one base."""
    adapter = lambda network, seed: adapters.lora(network, 8, 16.0)  # noqa: E731
    yield from stacked(bench, "sixteen LoRA updates", bench.build(bench.sizes.base, LENGTH), adapter)


def stacked(bench: Bench, what: str, network: Any, adapter: Any) -> Iterator[Line]:
    """Runs at once, with and without CUDA graphs, against the same runs one by one."""
    sweep, runs = sweeping(bench, network, RATES, adapter)

    def eager() -> None:
        with mock.patch.object(stacks, "Graphs", return_value=stacks.Graphs("measured without")):
            dataclasses.replace(sweep).at_once(runs)

    found = bench.turns(
        {
            "at once": lambda: sweep.at_once(runs),
            "without graphs": eager,
            "one by one": lambda: [sweep.alone(run) for run in runs[:MEASURED_ALONE]],
            "plain PyTorch": lambda: by_hand(sweep, runs[:MEASURED_ALONE]),
        }
    )
    scale = RATES / MEASURED_ALONE
    refused = f"; no CUDA graphs: {sweep.without_graphs}" if sweep.without_graphs else ""
    how = f"{bench.sizes.steps} steps; one by one: {MEASURED_ALONE} of {RATES} runs, times {scale:g}"
    for above, below, goal in (
        ("plain PyTorch", "at once", "≥ 4×, then 8×"),
        ("one by one", "at once", ""),
        ("plain PyTorch", "without graphs", ""),
    ):
        value = ratio([scale * one for one in found[above]], found[below])
        steps = RATES * bench.sizes.steps / statistics.median(found[below])
        yield Line(
            f"{what} of {millions(network)}: {above} over a stack{' ' + below if below != 'at once' else ''}, time",
            goal,
            str(value),
            f"{how}; the stack {steps:,.0f} steps/s{refused if below == 'at once' else ''}",
        )


def sixteen_scores(bench: Bench) -> Iterator[Line]:
    """Validation of sixteen networks of a sweep."""
    network = bench.build(bench.sizes.small, LENGTH)
    sweep, runs = sweeping(bench, network, RATES)
    stack = sweep.stack(runs, 1)
    rows = stack.weights.detach()
    planner = PassPlanner(LENGTH, bench.sizes.vocabulary, network.device)
    for documents in (VALIDATED, len(sweep.task.encoded) // 2):
        passes = planner.plan(sweep.task.encoded[: 2 * documents], share=True)

        def at_once(passes: Passes = passes) -> None:
            with engine.autocast(bench.device):
                loglikelihood.likelihoods_of_each(stack.of_each(rows), passes)

        def one_by_one(passes: Passes = passes) -> None:
            for row in rows:
                with engine.autocast(bench.device):
                    loglikelihood.loglikelihoods(stack.network(row), passes)

        found = bench.turns({"at once": at_once, "one by one": one_by_one})
        yield Line(
            f"validation of {RATES} networks of {millions(network)}: one by one over at once, time",
            "",
            str(ratio(found["one by one"], found["at once"])),
            f"{documents} documents with two answers each; at once {1000 * statistics.median(found['at once']):.1f} ms",
        )


MEASUREMENTS: Sequence[Callable[[Bench], Iterator[Line]]] = (
    sixteen_rates,
    sixteen_updates,
    sixteen_scores,
    fine_tuning,
    ceiling,
    pretraining,
    compiled_pretraining,
)
"""The most wanted first; compiling may take a minute, and comes last."""


def sweeping(bench: Bench, network: Any, count: int, adapter: Any = None) -> tuple[Sweep, list[Run]]:
    """A sweep whose runs are trained at once, and so many of its runs, of a learning rate each."""
    steps = bench.sizes.steps
    budget = Budget(
        learning_rates={"adamw": (1e-5, 1e-4)}, durations=(steps,), batch=DOCUMENTS, warmup=WARMUP, weight_decay=DECAY
    )
    sweep = Sweep(
        Trainer(0, budget, bench.device), Model(network), Answers(bench.sizes.vocabulary), adapter, serial=None
    )
    return sweep, [Run(1e-5 * (1 + index), 0, (steps,)) for index in range(count)]


def by_hand(sweep: Sweep, runs: Sequence[Run]) -> list[nn.Module]:
    """The runs one by one in plain PyTorch, and their networks: the engine's steps, with batches on the device."""
    device = str(sweep.trainer.device)
    train = sweep.task.split("train")
    order = sweep.order(0)
    batches = [train.batch(next(order)) for _ in range(runs[0].stops[-1])]
    ready = [Batch(*(part.to(device) if isinstance(part, Tensor) else part for part in batch)) for batch in batches]
    trained = []
    for run in runs:
        network = copy.deepcopy(sweep.model.network)
        network = (sweep.adapter(network, 0) if sweep.adapter is not None else network).train()
        parameters = [one for one in network.parameters() if one.requires_grad]
        groups = [
            {"params": [one for one in parameters if one.ndim >= 2], "weight_decay": DECAY},
            {"params": [one for one in parameters if one.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW([one for one in groups if one["params"]], lr=run.learning_rate, fused=True)
        for step, batch in enumerate(ready, 1):
            for group in optimizer.param_groups:
                group["lr"] = run.learning_rate * min(1.0, (step - 1) / WARMUP)
            with engine.autocast(sweep.trainer.device):
                logits = network(input_ids=batch.ids, use_cache=False, logits_to_keep=batch.kept).logits
                loss = nn.functional.cross_entropy(logits[batch.rows, batch.columns].float(), batch.targets)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        trained.append(network)
    return trained


def token_flops(network: Any, block: int) -> float:
    """FLOPs of a training step for each token: 6N + 12·layers·width·block (Chowdhery et al. 2022, PaLM, appendix B).

    N is the number of parameters without the table of positions, which is looked up and multiplies nothing.
    """
    config = network.config
    count = sum(weight.numel() for weight in network.parameters()) - network.transformer.wpe.weight.numel()
    return float(6 * count + 12 * config.n_layer * config.n_embd * block)


# --------------------------------------------------------------------------------------------------------------- table


def millions(network: Any) -> str:
    return f"{sum(weight.numel() for weight in network.parameters()) / 1e6:.3g} M"


def spread(values: Sequence[float], unit: str) -> str:
    """`1,234 tokens/s [1,200, 1,250]`: the median with the extremes."""
    digits = 0 if statistics.median(values) >= 100 else 2
    low, middle, high = (f"{one:,.{digits}f}" for one in (min(values), statistics.median(values), max(values)))
    return f"{middle} {unit} [{low}, {high}]"


def table(lines: Sequence[Line], bench: Bench) -> str:
    rows = [("what", "goal", "measured", "how"), ("---",) * 4]
    rows += [(line.what, line.goal, line.measured, line.how) for line in lines]
    head = f"{bench.card}, torch {torch.__version__}, {bench.sizes.rounds} rounds"
    return f"{head}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def measure(bench: Bench, path: Path, measurements: Sequence[Callable[[Bench], Iterator[Line]]] = MEASUREMENTS) -> None:
    """Write the table after each measurement. One that fails leaves a line that says so, and the next one follows."""
    lines: list[Line] = []
    for one in measurements:
        try:
            lines += one(bench)
        except Exception as error:  # an untried card may refuse anything; the other numbers are still wanted
            lines.append(
                Line(one.__name__, "", "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
            )
        path.write_text(table(lines, bench), encoding="utf-8")
        if bench.device.kind == "cuda":
            torch.cuda.empty_cache()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("--tiny", action="store_true", help="tiny sizes on the CPU")
    given = parser.parse_args()
    bench = Bench(Device(), TINY) if given.tiny else Bench(Device("cuda"), REAL)
    measure(bench, given.table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
