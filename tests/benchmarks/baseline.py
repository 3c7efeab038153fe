"""What a sweep costs with the usual tools: transformers' Trainer, and lm-eval for the scores.

`python -P baseline.py train RELEASE TASK STEPS RATE OUT` is the fresh process of one run; the functions serve the warm
process too. Everything that may be saved is: fused AdamW, no logging, no checkpoints, no bootstrap.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import torch


def trainer(network: Any, rows: list[dict[str, list[int]]], steps: int, rate: float, out: Path) -> Any:
    from transformers import Trainer, TrainingArguments

    settings = TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        learning_rate=rate,
        per_device_train_batch_size=32,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=10,
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=True,
        seed=0,
    )
    return Trainer(model=network, args=settings, train_dataset=rows, data_collator=collate)


def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    width = max(len(row["input_ids"]) for row in rows)
    return {
        key: torch.tensor([row[key] + [fill] * (width - len(row[key])) for row in rows])
        for key, fill in (("input_ids", 0), ("labels", -100))
    }


def tokenized(tokenizer: Any, documents: Any) -> list[dict[str, list[int]]]:
    """Prompt and gold choice as lm-eval's default rendering has it; the prompt is masked."""
    rows = []
    for document in documents:
        prompt = tokenizer(document["prompt"])["input_ids"]
        whole = tokenizer(document["prompt"] + " " + document["choices"][document["label"]])["input_ids"]
        rows.append({"input_ids": whole, "labels": [-100] * len(prompt) + whole[len(prompt) :]})
    return rows


def evaluate(network: Any, tokenizer: Any, task: str, manager: Any) -> float:
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=network, tokenizer=tokenizer, batch_size=128, device="cpu")
    found = lm_eval.simple_evaluate(
        model, tasks=[task], task_manager=manager, bootstrap_iters=0, log_samples=False, verbosity=None
    )
    assert found is not None
    return float(found["results"][task]["acc,none"])


def warm_run(
    network: Any, tokenizer: Any, rows: Any, steps: int, rate: float, out: Path, task: str, manager: Any
) -> float:
    """One run of the sweep in a process that has everything loaded."""
    own = copy.deepcopy(network)
    trainer(own, rows, steps, rate, out).train()
    return evaluate(own.eval(), tokenizer, task, manager)


def main(release: str, task: str, steps: str, rate: str, out: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from nftbench.tasks import toy

    torch.set_num_threads(1)
    network = AutoModelForCausalLM.from_pretrained(release, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(release)
    rows = tokenized(tokenizer, toy.documents(task.removeprefix("toy_"))["train"])
    trainer(network, rows, int(steps), float(rate), Path(out)).train()
    network.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    if sys.argv[1] == "train":
        main(*sys.argv[2:])
