"""Prompting: the likelihoods are those of the full text, the prompt fits the window, and a copying network gains."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from nftbench.attacks.few_shot import FewShot, separator, solved
from nftbench.contract import Measurement, Model, Prepared, Split, Task
from nftbench.data.grammar import Grammar
from nftbench.data.splits import TextSplit
from nftbench.errors import NftbenchError
from nftbench.methods import Prompted
from nftbench.models.networks import seeded
from nftbench.planning.specs import task_spec
from nftbench.records.spec import Spec
from nftbench.running.attacker import Attacker
from nftbench.running.owner import Owner
from nftbench.running.workspace import Workspace, load_task
from nftbench.terms import SplitName
from nftbench.testing import ARCHITECTURES, tiny_suite
from tests.apart import attack_here

MakeWorkspace = Callable[..., Workspace]
WINDOW = 120


def made(workspace: MakeWorkspace, architecture: str = "gpt2", spec: str = "toy_topic") -> tuple[Model, Task]:
    """A network whose answers depend on every word, and a text task encoded for it."""
    field = "n_positions" if architecture == "gpt2" else "max_position_embeddings"
    here = workspace(architecture=architecture, model={field: WINDOW})
    model = Owner(here, 0).build()
    with seeded(1), torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    model.network.eval()
    return model, load_task(here, Spec.parse(spec), 0, model)


@pytest.fixture
def several(tmp_path: Path, added: Callable[[Path], str]) -> str:
    """A task whose choices have up to three words, so that the requests of a document share its prompt."""
    words = Grammar(0).words()[20:]
    for split in ("train", "test"):
        rows = [
            {
                "question": " ".join(words[(7 * row + i) % len(words)] for i in range(9)),
                "options": [" ".join(words[row + i + j] for j in range(1 + i)) for i in range(3)],
                "answer": row % 3,
            }
            for row in range(30)
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "task": "several",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "test")},
            "cache_dir": str(tmp_path / "hf"),
        },
        "training_split": "train",
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}} .",
        "doc_to_choice": "options",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    path = tmp_path / "several.yaml"
    path.write_text(yaml.safe_dump(config))
    return added(path)


def written_out(network: PreTrainedModel, prompt: Sequence[int], split: TextSplit) -> list[list[float]]:
    """The log-likelihood of each choice of each document: prompt, question and choice in one row, without padding."""
    found = []
    for document in split.documents:
        values = []
        for context, continuation in split.encoder.encode(document.pairs):
            ids = torch.tensor([[*prompt, *context, *continuation]])
            assert ids.shape[1] <= WINDOW
            with torch.no_grad():
                logs = network(input_ids=ids).logits.log_softmax(-1)[0]
            start = ids.shape[1] - len(continuation)
            values.append(sum(float(logs[start + i - 1, token]) for i, token in enumerate(continuation)))
        found.append(values)
    return found


# -------------------------------------------------------------------------------------------------------- the prompt


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_prompt_gives_the_likelihoods_of_the_text_written_out(architecture: str, workspace: MakeWorkspace) -> None:
    model, task = made(workspace, architecture)
    examples = [[*solved(model.network, task, index), *separator(model.tokenizer)] for index in (3, 1, 4)]
    split = task.split("validation")
    assert isinstance(split, TextSplit)
    network = Prompted(model.network, examples, WINDOW)
    found = [[value for value, _ in document] for document in split.responses(split.likelihoods(network))]
    expected = written_out(model.network, [*itertools.chain(*examples)], split)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-4, atol=1e-4)
    plain = [[value for value, _ in document] for document in split.responses(split.likelihoods(model.network))]
    assert (torch.tensor(plain) - torch.tensor(found)).abs().max() > 0.1, "the prompt changes what the network says"
    assert task.evaluate(network, split) == task.evaluate(network, split)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_prompt_gives_the_same_likelihoods_where_choices_share_a_prefix(
    architecture: str, several: str, workspace: MakeWorkspace
) -> None:
    model, task = made(workspace, architecture, several)
    split = task.split("test")
    assert isinstance(split, TextSplit)
    assert any(forward.tail is not None for forward in split._passes.forwards)
    examples = [solved(model.network, task, index) for index in (0, 2)]
    found = split.responses(split.likelihoods(Prompted(model.network, examples, WINDOW)))
    expected = written_out(model.network, [*itertools.chain(*examples)], split)
    for ours, theirs in zip(found, expected, strict=True):
        assert [value for value, _ in ours] == pytest.approx(theirs, abs=1e-4)


def test_logits_are_those_behind_the_prompt_with_and_without_a_mask(workspace: MakeWorkspace) -> None:
    model, _ = made(workspace)
    ids = torch.randint(20, 60, (7, 11), generator=torch.Generator().manual_seed(0))
    examples = [[5, 6, 7], [8, 9]]
    network = Prompted(model.network, examples, WINDOW)
    mask = torch.ones_like(ids)
    mask[2, 8:] = 0
    with torch.no_grad():
        expected = model.network(input_ids=torch.cat([torch.tensor([[5, 6, 7, 8, 9]]).expand(7, -1), ids], 1)).logits
        torch.testing.assert_close(network(ids).logits, expected[:, 5:], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(network(ids, logits_to_keep=3).logits, expected[:, -3:], rtol=1e-4, atol=1e-4)
        masked = network(ids, attention_mask=mask).logits
    torch.testing.assert_close(masked[mask.bool()], expected[:, 5:][mask.bool()], rtol=1e-4, atol=1e-4)


def seen_by(network: PreTrainedModel) -> list[torch.Size]:
    shapes: list[torch.Size] = []
    network.register_forward_pre_hook(lambda _, __, named: shapes.append(named["input_ids"].shape), with_kwargs=True)
    return shapes


def test_the_first_examples_are_dropped_where_the_prompt_exceeds_the_window(workspace: MakeWorkspace) -> None:
    model, task = made(workspace)
    examples = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]
    network = Prompted(model.network, examples, 20)
    assert network.prompt(11) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert network.prompt(12) == [4, 5, 6, 7, 8, 9]
    assert network.prompt(14) == [4, 5, 6, 7, 8, 9]
    assert network.prompt(15) == [6, 7, 8, 9]
    assert network.prompt(17) == []
    assert network.prompt(20) == []
    assert Prompted(model.network, examples, None).prompt(10_000) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    shapes = seen_by(model.network)
    many = [[*solved(model.network, task, index)] for index in range(12)]
    task.evaluate(Prompted(model.network, many, WINDOW), task.split("validation"))
    assert max(width for _, width in shapes) <= WINDOW
    assert len({width for _, width in shapes}) > 1


def test_a_pass_has_no_more_tokens_than_it_was_asked_for(workspace: MakeWorkspace) -> None:
    model, _ = made(workspace)
    shapes = seen_by(model.network)
    network = Prompted(model.network, [[1] * 30], WINDOW)
    with torch.no_grad():
        assert network(torch.ones(10, 20, dtype=torch.long), logits_to_keep=1).logits.shape[:2] == (10, 1)
        assert network(torch.ones(1, 5, dtype=torch.long)).logits.shape[:2] == (1, 5)
    assert [tuple(shape) for shape in shapes] == [(4, 50), (4, 50), (2, 50), (1, 35)]


# ---------------------------------------------------------------------------------------------------------- examples


@pytest.mark.parametrize("spec", ["toy_topic", "several"])
def test_an_example_is_a_training_documents_question_and_right_answer(
    spec: str, several: str, workspace: MakeWorkspace
) -> None:
    model, task = made(workspace, spec=spec)
    split = task.split("train")
    assert isinstance(split, TextSplit)
    assert model.tokenizer is not None
    for index in range(4):
        document = split.documents[index]
        context, answer = document.pairs[document.gold[0]]
        text = model.tokenizer(context + answer, add_special_tokens=False)["input_ids"]
        assert solved(model.network, task, index) == text
    assert separator(model.tokenizer) == [model.tokenizer.eos_token_id], "words, of which a line break is none"
    assert separator(None) == []


def test_candidates_are_the_plain_network_and_each_count_of_examples_of_each_draw(workspace: MakeWorkspace) -> None:
    model, task = made(workspace)
    prepared = Prepared(model)
    plugin = FewShot(shots=5, draws=3)
    found = list(plugin.prompted(prepared, task, 0))
    assert found[0] == (model.network, 0.0, 0)
    shown: dict[tuple[float, int], list[list[int]]] = {}
    for network, draw, shots in found[1:]:
        assert isinstance(network, Prompted)
        assert len(network.examples) == shots
        shown[draw, shots] = network.examples
    assert {shots for _, shots in shown} == {1, 2, 4}
    assert {draw for draw, _ in shown} == {0.0, 1.0, 2.0}
    for draw in range(3):
        assert shown[draw, 4][:2] == shown[draw, 2]
    assert shown[0, 4] != shown[1, 4]
    again = [network.examples for network, *_ in plugin.prompted(prepared, task, 0) if isinstance(network, Prompted)]
    assert again == list(shown.values())
    other = [network.examples for network, *_ in plugin.prompted(prepared, task, 1) if isinstance(network, Prompted)]
    assert other != list(shown.values())


def test_counts_that_exceed_the_window_are_not_tried(workspace: MakeWorkspace) -> None:
    model, task = made(workspace)
    model.network.config.n_positions = 40
    for network, _, shots in FewShot(shots=16).prompted(Prepared(model), task, 0):
        if isinstance(network, Prompted):
            shortest = min(len(example) for example in network.examples)
            assert network.prompt(shortest) == [*itertools.chain(*network.examples)]
            assert shots < 16


# ------------------------------------------------------------------------------------------------- does prompting work?


class Recalling(nn.Module):
    """Predicts the token that followed the last occurrence of the present one, as induction heads do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.config = SimpleNamespace(max_position_embeddings=64)

    def forward(self, input_ids: Tensor, **_: Any) -> CausalLMOutput:
        logits = torch.zeros(*input_ids.shape, 20)
        for row, tokens in enumerate(input_ids.tolist()):
            for now, token in enumerate(tokens):
                before = [place for place in range(now) if tokens[place] == token]
                if before:
                    logits[row, now, tokens[before[-1] + 1]] = 5.0
        return CausalLMOutput(logits=logits + self.weight)


@dataclass(frozen=True)
class Capitals(Task):
    """Question q, 0 to 3, has the answer 10 + q, which no network can know."""

    def split(self, name: SplitName) -> Split:
        return Questions(torch.arange(24)[:, None] % 4)

    def loss(self, network: nn.Module, batch: Tensor) -> Tensor:
        return nn.functional.cross_entropy(network(input_ids=batch).logits[:, -1], 10 + batch[:, 0])

    def targets(self, network: nn.Module, batch: Tensor) -> Tensor:
        return nn.functional.one_hot(10 + batch[:, 0], 20)

    def evaluate(self, network: nn.Module, split: Split) -> Measurement:
        assert isinstance(split, Questions)
        answers = network(input_ids=split.ids).logits[:, -1, 10:].argmax(-1)
        right = float((answers == split.ids[:, 0]).double().mean())
        return Measurement("acc", right, 0.01, len(split), 0.25)


@dataclass(frozen=True)
class Questions:
    ids: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: Sequence[int]) -> Tensor:
        return self.ids[list(indices)]


def attacker(seed: int = 0) -> Attacker:
    return Attacker(seed=seed, budget=tiny_suite().budget)


def test_examples_raise_the_score_of_a_network_that_copies_from_its_prompt() -> None:
    network = Recalling()
    found = FewShot().adapt(Prepared(Model(network)), Capitals(), attacker())  # type: ignore[arg-type]
    assert found.curve[0].score == 0.25
    assert found.validation is not None
    assert found.validation.value == 1.0
    assert 4 <= found.picked.step <= 16
    assert isinstance(found.network, Prompted)
    assert {example[0] for example in found.network.examples} == {0, 1, 2, 3}
    assert found.cost.steps == 0, "no step of an optimizer"
    assert not found.stuck


def test_a_task_without_tokens_is_refused() -> None:
    class Table(Capitals):
        def loss(self, network: nn.Module, batch: Tensor) -> Tensor:
            return network(inputs=batch).sum()  # type: ignore[no-any-return]

    class Rows(Recalling):
        def forward(self, inputs: Tensor) -> Tensor:  # type: ignore[override]
            return inputs.double()

    with pytest.raises(NftbenchError, match="shows the network no tokens"):
        solved(Rows(), Table(), 0)  # type: ignore[arg-type]


def test_the_referee_scores_the_prompted_network(
    workspace: MakeWorkspace, run_all: Callable[..., Any], tmp_path: Path
) -> None:
    here = workspace(attacks=["none", "few_shot[shots=2,draws=1]"])
    record = run_all(here)["none", "few_shot[shots=2,draws=1]", "toy_topic", 0]
    assert record.status == "ok", record.reason
    assert [point.step for point in record.curve] == [0, 1, 2]
    (job,) = (job for job in here.plan.jobs() if job.attack.name == "few_shot")
    (network,) = attack_here(here, job, tmp_path / "attack")
    task = load_task(here, task_spec("toy_topic"), 0, Owner(here, 0).build())
    assert record.picked in record.curve
    assert task.evaluate(network, task.split("validation")).loss == record.picked.loss
    assert task.evaluate(network, task.split("selection")) == record.validation
    assert task.evaluate(network, task.split("test")) == record.attacked
    assert record.cost.steps == 0
    assert record.trains
