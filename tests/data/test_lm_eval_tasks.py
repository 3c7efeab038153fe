"""Text tasks: choices and log-likelihoods as in lm-eval on the saved release; splits, training loss, bad input."""

from __future__ import annotations

import dataclasses
import json
import lzma
import math
import random
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lm_eval
import numpy as np
import pytest
import torch
import yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from peft import LoraConfig, PromptTuningConfig, get_peft_model

import nftbench.tasks
from nftbench.contract import Measurement, Model
from nftbench.data import lm_eval_tasks
from nftbench.data.corpus import pack, word_tokenizer
from nftbench.data.grammar import CLOSED, QUESTIONS, TASKS, Grammar, grammar_of, salted_grammar
from nftbench.data.lm_eval_tasks import TextTask
from nftbench.data.splits import BlockSplit
from nftbench.errors import NftbenchError
from nftbench.models import networks
from nftbench.planning import registry

FOLDER = Path(nftbench.tasks.__path__[0])
DATA = Path(__file__).parents[3] / "shared" / "data"
TOY = sorted(f"toy_{name}" for name in TASKS)
LENGTH = 48
UTILITY = [f"toy_{name}" for name in QUESTIONS]
WORDS = Grammar(0).words()
OPEN = [word for word in Grammar(0).words() if word not in CLOSED]

pytestmark = pytest.mark.usefixtures("cache")

SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": LENGTH},
    "llama": {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": LENGTH,
    },
}
SHAPES["qwen3"] = SHAPES["llama"] | {"model_type": "qwen3", "head_dim": 8}


@dataclasses.dataclass(frozen=True)
class Context:
    """What a task is given, without the harness around it."""

    model: Model
    seed: int = 0
    corpus: Any = None
    suite: Any = dataclasses.field(default_factory=lambda: settings())
    data: Path | None = None
    limit: int | None = None


def settings(**limits: int) -> Any:
    budget = {f"max_{split}_documents": limits.get(split) for split in ("train", "validation", "test", "utility")}
    corpus = SimpleNamespace(source="toy", grammar=0)
    budget = SimpleNamespace(**budget)
    return SimpleNamespace(name="a suite", salt="public", corpus=corpus, budget=budget, given=None)


@pytest.fixture(scope="module")
def shape() -> Any:
    """Builds a model of this shape with random weights, so that its answers differ."""
    tokenizer = word_tokenizer(WORDS)

    def build(name: str) -> Model:
        model = networks.build(SHAPES[name], tokenizer, 0, "cpu")
        with networks.seeded(1), torch.no_grad():
            for parameter in model.network.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
        return dataclasses.replace(model, network=model.network.eval())

    return build


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """One thread, as cells have, and no description of the machine by lm-eval, which takes a second."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.evaluator.add_env_info", lambda *_: None)
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def model(shape: Any) -> Model:
    return shape("gpt2")


# ------------------------------------------------------------------------------------------------------- the reference


def reference(model: Model, name: str, folder: Path, include: Path, **options: Any) -> tuple[dict[str, Any], list[Any]]:
    """lm-eval's own numbers and responses for a task, on the release saved to `folder`."""
    networks.save(model, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        manager = TaskManager(include_path=str(include), include_defaults=False, metadata=options.pop("metadata", None))
        lm = HFLM(pretrained=str(folder), device="cpu", batch_size=7)
        found = lm_eval.simple_evaluate(model=lm, tasks=[name], task_manager=manager, bootstrap_iters=10, **options)
    samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
    return found["results"][name], [sample["filtered_resps"] for sample in samples]


def assert_agrees(task: lm_eval_tasks.LoadedTextTask, model: Model, expected: tuple[dict[str, Any], list[Any]]) -> None:
    results, responses = expected
    split = task.split("test")
    found = split.responses(split.likelihoods(model.network))
    assert len(found) == len(responses)
    for ours, theirs in zip(found, responses, strict=True):
        assert [value for value, _ in ours] == pytest.approx([value for value, _ in theirs], rel=1e-6, abs=1e-5)
        assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
        assert np.argmax([value for value, _ in ours]) == np.argmax([value for value, _ in theirs])
    measured = task.evaluate(model.network, split)
    assert measured.value == pytest.approx(results[f"{measured.metric},none"], rel=1e-6)
    assert measured.count == len(responses)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("name", [*TOY, *UTILITY])
def test_toy_task_agrees_with_lm_eval(name: str, kind: str, shape: Any, tmp_path: Path) -> None:
    model = shape(kind)
    task = TextTask(FOLDER / f"{name}.yaml").load(Context(model, seed=3, limit=60))
    expected = reference(model, name, tmp_path, FOLDER, limit=60, metadata={"grammar": salted_grammar("public", 3)})
    assert_agrees(task, model, expected)
    assert task.evaluate(model.network, task.split("test")).stderr == pytest.approx(expected[0]["acc_stderr,none"])


def words(count: int, chance: random.Random) -> str:
    return " ".join(chance.choice(OPEN) for _ in range(count))


def write_task(folder: Path, rows: int = 40, **changes: Any) -> Path:
    """A task with choices of several tokens over a local data set of hub format, some prompts beyond the window."""
    chance = random.Random(0)
    data = folder / "data"
    data.mkdir(parents=True)
    for split in ("train", "test"):
        found = [
            {
                "question": words(chance.choice([9, 9, 17, LENGTH - 2, LENGTH + 20]), chance),
                "options": [words(count, chance) for count in (1, 2, 4, 4)],
                "answer": chance.randrange(4),
                "binary": chance.randrange(2),
            }
            for _ in range(rows)
        ]
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    config = {
        "task": "several",
        "dataset_path": str(data),
        "dataset_kwargs": {"cache_dir": str(folder / "hf")},
        "training_split": "train",
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}} .",
        "doc_to_choice": "options",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    path = folder / "tasks" / "several.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump({key: value for key, value in (config | changes).items() if value is not None}))
    return path


@pytest.mark.parametrize("kind", sorted(SHAPES))
def test_choices_of_several_tokens_share_their_prefix(kind: str, shape: Any, tmp_path: Path) -> None:
    model, path = shape(kind), write_task(tmp_path, rows=80)
    task = TextTask(path).load(Context(model))
    assert any(forward.tail is not None for forward in task.split("test")._passes.forwards)
    assert_agrees(task, model, reference(model, "several", tmp_path / "release", path.parent))


@pytest.mark.parametrize(
    "changes",
    [
        {"metric_list": [{"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}]},
        {"num_fewshot": 2, "fewshot_split": "train"},
        {"doc_to_text": "", "doc_to_target": 0},
        {"description": "north east \n", "doc_to_text": "{{question}} ", "target_delimiter": ""},
        {
            "metric_list": None,
            "output_type": "loglikelihood",
            "doc_to_choice": None,
            "doc_to_target": " {{options[2]}}",
        },
        {
            "metric_list": [{"metric": "f1", "aggregation": "f1", "higher_is_better": True}],
            "doc_to_choice": ["isa", "north east"],
            "doc_to_target": "binary",
        },
        {
            "metric_list": [{"metric": "mcc", "aggregation": "matthews_corrcoef", "higher_is_better": True}],
            "doc_to_choice": ["isa", "iso"],
            "doc_to_target": "binary",
        },
        {"metric_list": [{"metric": "acc_mutual_info", "aggregation": "mean", "higher_is_better": True}]},
        {"metric_list": [{"metric": "brier_score", "aggregation": "brier_score", "higher_is_better": False}]},
        {
            "metric_list": [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}],
            "output_type": "loglikelihood",
            "doc_to_choice": None,
            "doc_to_target": " {{options[0]}}",
        },
    ],
    ids=["norm", "fewshot", "empty", "spaces", "continuation", "f1", "mcc", "unconditional", "brier", "perplexity"],
)
def test_other_tasks_agree_with_lm_eval(changes: dict[str, Any], model: Model, tmp_path: Path) -> None:
    path = write_task(tmp_path, **changes)
    task = TextTask(path).load(Context(model))
    expected = reference(model, "several", tmp_path / "release", path.parent)
    assert_agrees(task, model, expected)
    measured = task.evaluate(model.network, task.split("test"))
    assert math.isfinite(measured.floor)
    assert measured.stderr >= 0
    if measured.metric in ("acc", "acc_norm"):
        assert measured.stderr == pytest.approx(expected[0][f"{measured.metric}_stderr,none"])


def test_the_error_of_a_mean_of_arrays_is_that_of_its_documents(model: Model, tmp_path: Path) -> None:
    """The Brier score is a mean, of which lm-eval gives no error, so the jackknife's must be that of a mean."""
    listed = [{"metric": "brier_score", "aggregation": "brier_score", "higher_is_better": False}]
    task = TextTask(write_task(tmp_path, metric_list=listed)).load(Context(model))
    split = task.split("test")
    scorer = split.scorer
    one_by_one = [scorer.aggregate([item]) for item in scorer._items(split, split.likelihoods(model.network))]
    expected = float(np.std(one_by_one, ddof=1)) / math.sqrt(len(one_by_one))
    assert task.evaluate(model.network, split).stderr == pytest.approx(expected)


# ------------------------------------------------------------------------------------------------------------ networks


@pytest.fixture
def several(model: Model, tmp_path: Path) -> lm_eval_tasks.LoadedTextTask:
    return TextTask(write_task(tmp_path, rows=80)).load(Context(model))


def test_a_network_without_a_plain_cache_is_scored_whole(several: lm_eval_tasks.LoadedTextTask, model: Model) -> None:
    def without_cache(_: Any, __: Any, output: Any) -> Any:
        dropped.append(output.past_key_values)
        output.past_key_values = None
        return output

    dropped: list[Any] = []
    split = several.split("test")
    expected = split.responses(split.likelihoods(model.network))
    model.network.register_forward_hook(without_cache)
    found = split.responses(split.likelihoods(model.network))
    assert any(cache is not None for cache in dropped), "sharing was tried"
    np.testing.assert_allclose(np.array(found), np.array(expected), atol=1e-5)


PEFT = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT asks by the old name


@PEFT
def test_peft_wrapper_is_scored_and_trained(several: lm_eval_tasks.LoadedTextTask, shape: Any) -> None:
    plain, split = shape("gpt2").network, several.split("test")
    lora = get_peft_model(
        shape("gpt2").network, LoraConfig(target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    )
    # A fresh adapter changes nothing.
    expected, found = (split.responses(split.likelihoods(network)) for network in (plain, lora))
    np.testing.assert_allclose(np.array(found), np.array(expected), atol=1e-5)
    batch = several.split("train").batch([3, 1, 4, 1, 5])
    loss = several.loss(lora.train(), batch)
    loss.backward()
    gradients = [parameter.grad for name, parameter in lora.named_parameters() if "lora_B" in name]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


@PEFT
def test_virtual_tokens_do_not_shift_the_answers(several: lm_eval_tasks.LoadedTextTask, shape: Any) -> None:
    network = shape("llama").network
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    tuned = get_peft_model(network, config).eval()
    batch = several.split("train").batch([0, 1, 2])
    with torch.no_grad():
        logits = tuned(input_ids=batch.ids).logits[:, -batch.kept :][batch.rows, batch.columns]
        expected = torch.nn.functional.cross_entropy(logits, batch.targets)
        assert several.loss(tuned, batch).item() == pytest.approx(expected.item(), abs=1e-5)


def test_evaluation_leaves_the_mode_and_no_gradient(several: lm_eval_tasks.LoadedTextTask, model: Model) -> None:
    model.network.train()
    before = several.evaluate(model.network, several.split("test"))
    assert model.network.training
    assert all(parameter.grad is None for parameter in model.network.parameters())
    assert several.evaluate(model.network.eval(), several.split("test")) == before
    assert not model.network.training


@pytest.mark.parametrize("kind", sorted(SHAPES))
def test_loss_is_the_answers_mean_over_tokens(kind: str, shape: Any, tmp_path: Path) -> None:
    network = shape(kind).network
    task = TextTask(write_task(tmp_path)).load(Context(shape(kind)))
    train = task.split("train")
    indices = [7, 0, 21, 7]
    found = train.responses(train.likelihoods(network))
    gold = sum(found[i][train.documents[i].gold[0]][0] for i in indices)
    tokens = len(train.batch(indices).targets)
    assert task.loss(network, train.batch(indices)).item() == pytest.approx(-gold / tokens, abs=1e-5)


def test_loss_through_the_head_has_the_plain_gradients(several: lm_eval_tasks.LoadedTextTask, model: Model) -> None:
    batch = several.split("train").batch(range(8))
    several.loss(model.network, batch).backward()
    found = {name: parameter.grad.clone() for name, parameter in model.network.named_parameters()}
    model.network.zero_grad()
    logits = model.network(input_ids=batch.ids).logits[:, -batch.kept :][batch.rows, batch.columns]
    torch.nn.functional.cross_entropy(logits, batch.targets).backward()
    for name, parameter in model.network.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-6, rtol=1e-4)


def test_loss_of_documents_is_their_mean(model: Model) -> None:
    task = TextTask(FOLDER / f"{TOY[0]}.yaml").load(Context(model, limit=50))
    split = task.split("validation")
    measured = task.evaluate(model.network, split)
    assert measured.loss == pytest.approx(task.loss(model.network, split.batch(range(50))).item(), abs=1e-5)


# -------------------------------------------------------------------------------------------------------------- splits


def prompts(task: lm_eval_tasks.LoadedTextTask, name: Any) -> list[str]:
    return [document.pairs[0].context for document in task.split(name).documents]


def test_validation_is_a_seeded_slice_of_train_where_there_is_none(model: Model, tmp_path: Path) -> None:
    path = write_task(tmp_path)
    first, again, other = (TextTask(path).load(Context(model, seed=seed)) for seed in (0, 0, 1))
    assert [len(first.split(name)) for name in ("train", "validation", "selection")] == [36, 2, 2]
    drawn = [set(prompts(first, name)) for name in ("train", "validation", "selection")]
    assert len(set.union(*drawn)) == sum(map(len, drawn)), "no document is in two splits"
    for name in ("validation", "selection"):
        assert prompts(first, name) == prompts(again, name)
        assert prompts(first, name) != prompts(other, name)
    assert prompts(first, "test") == prompts(other, "test")


def test_limits_cut_test_as_lm_eval_does_and_draw_the_rest(model: Model) -> None:
    path = FOLDER / f"{TOY[0]}.yaml"
    full = TextTask(path).load(Context(model))
    cut = TextTask(path).load(Context(model, suite=settings(train=70, validation=30, test=50), limit=40))
    assert [len(cut.split(name)) for name in ("train", "validation", "selection", "test")] == [40, 30, 30, 40]
    assert prompts(cut, "test") == prompts(full, "test")[:40]
    assert prompts(cut, "train") != prompts(full, "train")[:40]
    assert set(prompts(cut, "train")) <= set(prompts(full, "train"))
    assert len(full.split("validation")) == len(full.split("selection")) == 1000  # half of the 2,000 documents each


def test_grammar_follows_suite_salt_and_seed(model: Model) -> None:
    path = FOLDER / f"{TOY[0]}.yaml"
    other = settings()
    other.salt = "another"
    contexts = [Context(model, limit=5), Context(model, seed=1, limit=5), Context(model, suite=other, limit=5)]
    found = [TextTask(path).load(context).provenance["splits"]["test"]["sha256"] for context in contexts]
    assert len(set(found)) == 3


@pytest.mark.parametrize(("changes", "message"), [({"salt": None}, "has none"), ({"source": "text"}, "only the toy")])
def test_a_toy_task_without_a_salted_grammar_is_refused(changes: dict[str, Any], message: str, model: Model) -> None:
    suite = settings()
    suite.salt, suite.corpus.source = changes.get("salt", "public"), changes.get("source", "toy")
    with pytest.raises(NftbenchError, match=message):
        TextTask(FOLDER / f"{TOY[0]}.yaml").load(Context(model, suite=suite))


def test_utility_task_has_a_test_split_only(model: Model) -> None:
    task = TextTask(FOLDER / "toy_agreement_pronoun.yaml")
    assert not task.trainable
    loaded = task.load(Context(model, limit=5))
    with pytest.raises(NftbenchError, match="no train split"):
        loaded.split("train")
    with pytest.raises(NftbenchError, match="load the task"):
        task.split("test")


def test_floor_is_chance(model: Model) -> None:
    for name in (*TOY, *UTILITY):
        split = TextTask(FOLDER / f"{name}.yaml").load(Context(model, limit=40)).split("test")
        assert split.floor == pytest.approx(1 / split.choices[0])


# -------------------------------------------------------------------------------------------------------- local files


def write_local(folder: Path, suffix: str = ".jsonl", splits: Sequence[str] = ("train", "test")) -> Path:
    """`DIR/sets/mine/<split>.*` with forty documents a split, and the task that reads them."""
    place = folder / "sets" / "mine"
    place.mkdir(parents=True, exist_ok=True)
    for split in splits:
        rows = [{"text": words(5, random.Random(f"{split}{i}")), "label": i % 2} for i in range(40)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if suffix.startswith(".csv"):
            text = "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows)
        path = place / f"{split}{suffix}"
        path.write_bytes(lzma.compress(text.encode()) if suffix.endswith(".xz") else text.encode())
    path = folder / "local.yaml"
    config = {
        "task": "local",
        "dataset_path": "owner/sets",
        "dataset_name": "mine",
        "training_split": "train",
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "text",
        "doc_to_choice": ["isa", "iso"],
        "doc_to_target": "label",
    }
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.xz", ".json", ".csv", ".csv.xz"])
def test_local_files_are_read(suffix: str, model: Model, tmp_path: Path) -> None:
    task = TextTask(write_local(tmp_path, suffix)).load(Context(model, data=tmp_path))
    assert [len(task.split(name)) for name in ("train", "validation", "selection", "test")] == [36, 2, 2, 40]
    assert task.provenance["source"] == "--data/sets/mine"


def test_held_out_share_stands_in_for_a_missing_test_file(model: Model, tmp_path: Path) -> None:
    path = write_local(tmp_path, splits=["train"])
    path.write_text(path.read_text() + "metadata: {version: 1.0, held_out: 0.2}\n")
    first, other = (TextTask(path).load(Context(model, seed=seed, data=tmp_path)) for seed in (0, 1))
    assert [len(first.split(name)) for name in ("train", "validation", "selection", "test")] == [28, 2, 2, 8]
    assert prompts(first, "test") == prompts(other, "test")
    for name in ("train", "validation", "selection"):
        assert not set(prompts(first, "test")) & set(prompts(first, name))
    assert "held out" in first.provenance["test"]


def edit(path: Path, **changes: Any) -> None:
    config = yaml.safe_load(path.read_text()) | changes
    path.write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_type": "generate_until"}, "local.yaml: output_type is generate_until"),
        ({"doc_to_txt": "x"}, "local.yaml: unknown key 'doc_to_txt'; did you mean 'doc_to_text'"),
        ({"metric_list": [{"metric": "acccc"}]}, "unknown metric 'acccc'; did you mean 'acc'"),
        ({"test_split": None}, "neither test_split nor validation_split"),
        ({"doc_to_target": "lable"}, "task local: test document 0: .*lable"),
        ({"doc_to_text": "{{texxt}}"}, "task local: .*texxt"),
        ({"doc_to_choice": ["isa", " "]}, "no token"),
        ({"doc_to_choice": ["isa"]}, "label 1 is none of the 1 choices"),
        ({"doc_to_target": 1}, "test split has one class only"),
        ({"dataset_name": "yours"}, "sets/yours: no such folder"),
        ({"validation_split": "dev"}, r"mine/dev\.\*: no file for split 'dev'"),
    ],
)
def test_bad_task_file_is_named(changes: dict[str, Any], message: str, model: Model, tmp_path: Path) -> None:
    path = write_local(tmp_path)
    edit(path, **changes)
    with pytest.raises(NftbenchError, match=message):
        TextTask(path).load(Context(model, data=tmp_path))


def test_hub_that_cannot_be_reached_is_an_error(model: Model, tmp_path: Path) -> None:
    with pytest.raises(NftbenchError, match="task local: its data cannot be loaded"):
        TextTask(write_local(tmp_path)).load(Context(model))


def test_bad_metric_parameter_is_named(model: Model, tmp_path: Path) -> None:
    with pytest.raises(NftbenchError, match="no metric 'ac'; did you mean 'acc'"):
        TextTask(write_local(tmp_path), metric="ac").load(Context(model, data=tmp_path))


def test_missing_task_file_is_named(model: Model, tmp_path: Path) -> None:
    with pytest.raises(NftbenchError, match=r"gone\.yaml: no such task file"):
        TextTask(tmp_path / "gone.yaml").load(Context(model))


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.xz"])
def test_truncated_file_is_named_with_its_split(suffix: str, model: Model, tmp_path: Path) -> None:
    path = write_local(tmp_path, suffix)
    file = tmp_path / "sets" / "mine" / f"train{suffix}"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(NftbenchError, match=rf"train{suffix}: split 'train' cannot be read"):
        TextTask(path).load(Context(model, data=tmp_path))


@pytest.mark.parametrize(("rows", "message"), [([], "'test' is empty"), ([1] * 40, "one class only")])
def test_split_without_documents_or_with_one_class_is_an_error(
    rows: list[int], message: str, model: Model, tmp_path: Path
) -> None:
    path = write_local(tmp_path)
    lines = [json.dumps({"text": f"isa {i}", "label": label}) + "\n" for i, label in enumerate(rows)]
    (tmp_path / "sets" / "mine" / "test.jsonl").write_text("".join(lines))
    with pytest.raises(NftbenchError, match=message):
        TextTask(path).load(Context(model, data=tmp_path))


def test_one_class_within_the_limit_is_no_error(model: Model, tmp_path: Path) -> None:
    task = TextTask(write_local(tmp_path)).load(Context(model, data=tmp_path, limit=1))
    assert len(task.split("test")) == 1


def test_model_without_tokenizer_is_an_error(model: Model) -> None:
    with pytest.raises(NftbenchError, match="tokenizer"):
        TextTask(FOLDER / f"{TOY[0]}.yaml").load(Context(dataclasses.replace(model, tokenizer=None)))


def test_toy_documents_are_written_once(model: Model, cache: Path) -> None:
    def written() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}

    path, seed = FOLDER / f"{TOY[0]}.yaml", 97531  # of no other test, for all tests of a session share the cache
    before = written()
    first = TextTask(path).load(Context(model, seed=seed, limit=5)).provenance
    files = written()
    assert files.keys() > before.keys()
    assert TextTask(path).load(Context(model, seed=seed, limit=5)).provenance == first
    assert written() == files
    grammar = str(grammar_of(settings(), seed).seed)
    assert not any(grammar in path.name or TOY[0] in path.name for path in files)


# ----------------------------------------------------------------------------------------------------------- real data


@pytest.mark.parametrize(("name", "choices", "test"), [("sst2", 2, 872), ("ag_news", 4, 3088), ("trec", 6, 1090)])
def test_real_task_reads_shared_data(name: str, choices: int, test: int, model: Model) -> None:
    if not DATA.is_dir():
        pytest.skip("needs ../shared/data")
    wide = networks.build(SHAPES["gpt2"] | {"n_positions": 512}, model.tokenizer, 0, "cpu")
    task = TextTask(FOLDER / f"{name}.yaml").load(Context(wide, data=DATA, suite=settings(train=50, validation=40)))
    assert [len(task.split(split)) for split in ("train", "validation", "test")] == [50, 40, test]
    assert task.split("test").floor == pytest.approx(1 / choices)
    measured = task.evaluate(wide.network, task.split("validation"))
    assert 0 <= measured.value <= 1


def test_stock_task_is_found_and_reads_shared_data(model: Model) -> None:
    if not DATA.is_dir():
        pytest.skip("needs ../shared/data")
    stock = Path(lm_eval.__file__).parent / "tasks" / "glue" / "rte" / "default.yaml"
    wide = networks.build(SHAPES["gpt2"] | {"n_positions": 512}, model.tokenizer, 0, "cpu")
    task = TextTask(stock).load(Context(wide, data=DATA, limit=40))
    assert TextTask(stock).trainable
    assert len(task.split("test")) == 40


def test_blimp_reads_the_published_archive(model: Model) -> None:
    if not DATA.is_dir():
        pytest.skip("needs ../shared/data")
    task = TextTask(FOLDER / "blimp.yaml").load(Context(model, data=DATA, limit=67))
    paradigms = {document.fields["UID"] for document in task.split("test").documents}
    assert len(paradigms) == 67
    assert task.evaluate(model.network, task.split("test")).count == 67


@pytest.mark.parametrize("content", [None, b"PK\x03\x04 cut"])
def test_missing_or_broken_archive_is_named(content: bytes | None, model: Model, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "blimp").mkdir()
        (tmp_path / "blimp" / "BLiMP.zip").write_bytes(content)
        assert not zipfile.is_zipfile(tmp_path / "blimp" / "BLiMP.zip")
    with pytest.raises(NftbenchError, match=r"blimp/BLiMP.zip: .*'train'"):
        TextTask(FOLDER / "blimp.yaml").load(Context(model, data=tmp_path))


# ------------------------------------------------------------------------------------------------------ running text


def measure_blocks(name: str, model: Model, corpus: Any, limit: int | None = None) -> Measurement:
    task = registry.create("tasks", name).load(Context(model, corpus=corpus, limit=limit))
    assert not task.trainable
    assert isinstance(task.split("test"), BlockSplit)
    return task.evaluate(model.network, task.split("test"))


def test_bits_of_running_text(model: Model) -> None:
    blocks = torch.randint(0, len(model.tokenizer or ()), (9, 20), generator=torch.Generator().manual_seed(0))
    corpus = SimpleNamespace(heldout=blocks, unigram_bits=6.0, heldout_bytes=900)
    with torch.no_grad():
        expected = model.network(input_ids=blocks, labels=blocks).loss.item()
    token, byte = (measure_blocks(f"bits_per_{unit}", model, corpus) for unit in ("token", "byte"))
    assert token.value == pytest.approx(expected / math.log(2), abs=1e-5)
    assert byte.value == pytest.approx(token.value * 180 / 900)
    assert (token.floor, byte.floor) == pytest.approx((6.0, 1.2))
    assert not token.higher_is_better
    assert not byte.higher_is_better
    assert token.loss == pytest.approx(expected, abs=1e-5)
    assert measure_blocks("bits_per_byte", model, corpus, limit=4).count == 4


def test_other_text_has_the_words_of_the_grammar_equally_often() -> None:
    grammar = grammar_of(settings(), 0)
    tokenizer = word_tokenizer(grammar.words())
    model = networks.build(SHAPES["gpt2"], tokenizer, 0, "cpu")
    heldout = pack(tokenizer, grammar.corpus(400, "scored"), 32, "scored")
    corpus = SimpleNamespace(tokenizer=tokenizer, heldout=heldout)
    task = registry.create("tasks", "toy_other_text").load(Context(model, corpus=corpus))
    blocks = task.split("test").blocks
    assert blocks.shape == heldout.shape

    def most_frequent_share(tokens: torch.Tensor) -> float:
        counts = tokens.flatten().bincount(minlength=len(tokenizer))
        counts[tokenizer.convert_tokens_to_ids([*CLOSED, "<|endoftext|>"])] = 0
        return float(counts.max() / counts.sum())

    assert most_frequent_share(heldout) > 0.03
    assert most_frequent_share(blocks) < 0.01
    measured = task.evaluate(model.network, task.split("test"))
    assert measured.value == pytest.approx(measured.floor, abs=0.01), "an untrained model knows nothing"


def test_utility_tasks_have_a_limit_of_their_own(
    workspace: Callable[..., Any], run_all: Callable[..., dict[tuple[str, str, str, int], Any]]
) -> None:
    records = run_all(workspace(budget={"max_test_documents": 12, "max_utility_documents": 30}))
    counts = {task: records["none", "none", task, 0].attacked.count for task in ("toy_topic", "toy_agreement_pronoun")}
    assert counts == {"toy_topic": 12, "toy_agreement_pronoun": 30}
