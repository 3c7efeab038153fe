"""A given base: what its keys depend on, what runs on it, what it shares on disk, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file

from nftbench.contract import Model
from nftbench.data import corpus
from nftbench.device import CPU
from nftbench.errors import NftbenchError
from nftbench.models import networks
from nftbench.planning import facts, pinning
from nftbench.planning.plan import Plan, plan
from nftbench.records import disk_budget
from nftbench.records.record import Cell
from nftbench.records.spec import Spec
from nftbench.records.store import Store
from nftbench.running import estimate, given_base, given_estimate, preflight, releases
from nftbench.running.given_estimate import step_bytes
from nftbench.running.referee import Referee
from nftbench.running.workspace import Workspace, load_task, make_corpus
from nftbench.suites.schema import Suite
from nftbench.testing import tiny_suite
from tests import checkpoints
from tests.apart import attack_here


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return checkpoints.write_reader(tmp_path / "base")


def given(base: Path, **changes: Any) -> Suite:
    """The tiny suite on this base, with two seeds."""
    suite = tiny_suite(**{"defenses": ["none", "noise", "prune"], "seeds": [0, 1], **changes})
    return Suite.model_validate({**suite.model_dump(mode="json"), "model": {"path": str(base)}})


def workspace(whole: Plan, folder: Path) -> Workspace:
    return Workspace(whole, Store(folder / "results", folder / "cache"))


# -------------------------------------------------------------------------------------------------------------- keys


def test_keys_depend_on_the_weights_and_not_on_where_they_lie(base: Path, tmp_path: Path) -> None:
    first = plan(given(base))
    moved = base.rename(tmp_path / "elsewhere")
    assert [cell.key for cell in plan(given(moved)).cells] == [cell.key for cell in first.cells]
    checkpoints.edit(moved, lambda tensors: {name: 1.5 * tensor for name, tensor in tensors.items()})
    assert not {cell.key for cell in plan(given(moved)).cells} & {cell.key for cell in first.cells}


def test_deterministic_defenses_make_one_release_for_all_seeds(base: Path) -> None:
    keys = plan(given(base)).releases
    assert keys["none", 0] == keys["none", 1]
    assert keys["prune", 0] == keys["prune", 1]
    assert keys["noise", 0] != keys["noise", 1]
    jobs = plan(given(base)).jobs()
    assert len({job.key for job in jobs}) == len(jobs), "jobs of two seeds are claimed one by one"


def test_other_content_than_the_suite_pins_is_refused(base: Path) -> None:
    suite = given(base)
    pinned = plan(suite).suite.model
    assert plan(suite.model_copy(update={"model": pinned})).suite.model == pinned
    wrong = suite.model_copy(update={"model": {**pinned, "sha256": "0" * 64}})
    with pytest.raises(NftbenchError, match="and the suite asks for 000"):
        plan(wrong)


def test_a_checkpoint_with_the_base_as_twin_is_compared_with_the_base(base: Path, tmp_path: Path) -> None:
    other = checkpoints.write_reader(tmp_path / "other", seed=1)
    spec = f"checkpoint[path={other},reference={base}]"
    rows = plan(given(base, defenses=[spec])).rows
    assert {str(name): row.reference for name, row in rows.items()} == {"none": "none", spec: "none"}


# ----------------------------------------------------------------------------------------------------------- releases


def test_common_names_of_sizes_are_no_change_of_the_configuration(tmp_path: Path) -> None:
    """GPT-2 calls its width `n_embd`, and answers to `hidden_size`: only the first was in the release's file."""
    base = checkpoints.write_reader(tmp_path / "base", "gpt2")
    here = workspace(plan(given(base, seeds=[0])), tmp_path)
    job = next(job for job in here.plan.jobs() if job.defense.name == "noise")
    releases.make_release(here, job.defense, job.seed, job.release)
    protection = releases.load_protection(here, job.release)
    assert protection is not None
    assert protection.config_changed == {}


@pytest.mark.parametrize("name", ["checkpoint", "smaller"])
def test_a_release_on_the_hub_is_that_of_the_planned_commit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The defense's process has no network: the referee finds the files for it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    commit = checkpoints.write_to_hub_cache(tmp_path / "hub", "some/model", checkpoints.write)
    spec = Spec.parse(f"{name}[path=some/model]")
    whole = plan(tiny_suite(defenses=["none", str(spec)]))
    (tmp_path / "hub" / "models--some--model" / "refs" / "main").write_text("f" * 40)
    here = workspace(whole, tmp_path)
    job = next(job for job in whole.jobs() if job.defense == spec)
    (record,) = Referee(here, job).run(job.cells[:1])
    assert (record.status, record.reason) == ("ok", None)
    assert record.provenance["revision"] == commit
    assert record.defense == str(spec)


@pytest.mark.parametrize("place", ["cache/releases/given", "data/given"])
def test_a_given_release_may_lie_where_plugins_may_not_look(place: str, tmp_path: Path) -> None:
    """Such as a release of an earlier run, in the cache."""
    row = Spec.parse(f"checkpoint[path={checkpoints.write(tmp_path / place)}]")
    here = workspace(plan(tiny_suite(defenses=["none", str(row)]), data=tmp_path / "data"), tmp_path)
    job = next(job for job in here.plan.jobs() if job.defense == row)
    (record,) = Referee(here, job).run(job.cells[:1])
    assert (record.status, record.reason) == ("ok", None)


def test_a_checkpoint_with_fewer_words_than_the_suites_text_is_measured(base: Path, tmp_path: Path) -> None:
    """The referee read it the numbers of the text's own words, of which there are more, and every cell failed."""
    row = Spec.parse(f"checkpoint[path={base}]")
    here = workspace(plan(tiny_suite(defenses=["none", str(row)])), tmp_path)
    job = next(job for job in here.plan.jobs() if job.defense == row)
    (record,) = Referee(here, job).run(job.cells[:1])
    assert (record.status, record.reason) == ("ok", None)
    assert record.protection is not None
    words = len(networks.load_tokenizer(base))
    assert record.protection.plain_text["passages"] < 1.2 * math.log2(words)


@pytest.mark.parametrize("name", ["checkpoint", "smaller"])
def test_a_given_release_that_is_edited_after_planning_is_refused(name: str, tmp_path: Path) -> None:
    """Its key is that of the files as they were, and the record would hold numbers of others."""
    folder = checkpoints.write(tmp_path / "given")
    row = Spec.parse(f"{name}[path={folder}]")
    here = workspace(plan(tiny_suite(defenses=["none", str(row)])), tmp_path)
    checkpoints.edit(folder, lambda tensors: {name: 1.5 * tensor for name, tensor in tensors.items()})
    job = next(job for job in here.plan.jobs() if job.defense == row)
    (record,) = Referee(here, job).run(job.cells[:1])
    assert record.status == "failed"
    assert record.reason == f"{row}: its files have changed since the run was planned; start the run again"
    again = workspace(plan(tiny_suite(defenses=["none", str(row)])), tmp_path)
    assert again.plan.releases[str(row), 0] != here.plan.releases[str(row), 0]


def test_a_base_that_is_edited_while_it_is_read_is_refused(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = workspace(plan(given(base)), tmp_path)
    load = networks.load

    def late(place: Any) -> Model:
        found = load(place)
        checkpoints.edit(base, lambda tensors: {name: 1.5 * tensor for name, tensor in tensors.items()})
        return found

    monkeypatch.setattr(networks, "load", late)
    with pytest.raises(NftbenchError, match="its files have changed since the run was planned; start the run again"):
        given_base.folder(here.store, here.suite)
    assert not list((tmp_path / "cache" / "bases").glob("*-given"))


def test_equal_weights_are_kept_once(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nftbench.records.store.LARGE", 1)
    whole = plan(given(base))
    here = workspace(whole, tmp_path)
    folders = {
        name: releases.make_release(here, Spec.parse(name), seed, whole.releases[name, seed])
        for name, seed in (("none", 0), ("prune", 1))
    }
    kept = next((tmp_path / "cache" / "bases").glob("*-given")) / checkpoints.WEIGHTS
    assert (folders["none"] / checkpoints.WEIGHTS).samefile(kept)
    assert not (folders["prune"] / checkpoints.WEIGHTS).samefile(kept)
    pruned = networks.load(folders["prune"]).network
    matrices = [weight for weight in pruned.parameters() if weight.ndim > 1]
    zero = sum(int((weight == 0).sum()) for weight in matrices) / sum(weight.numel() for weight in matrices)
    assert zero == pytest.approx(0.2, abs=0.001)


def test_a_release_shares_the_tensors_that_it_leaves_unchanged(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large networks are saved in many files, of which releases of one base share those that are equal."""
    for name, value in (("records.store.LARGE", 1), ("models.networks.LARGE", 1), ("models.networks.SHARD", 2000)):
        monkeypatch.setattr(f"nftbench.{name}", value)
    store, model = Store(tmp_path / "results", tmp_path / "cache"), networks.load(base)
    whole = store.make("bases", "base", lambda draft: networks.save(model, draft))
    with torch.no_grad():
        model.network.model.layers[0].mlp.up_proj.weight.add_(1)
    release = store.make("releases", "release", lambda draft: networks.save(model, draft))
    files = sorted(path.name for path in whole.glob("*.safetensors"))
    assert files == sorted(path.name for path in release.glob("*.safetensors"))
    assert len(files) > 3
    assert sum(not (whole / name).samefile(release / name) for name in files) == 1
    found = networks.load(release)
    assert all(
        torch.equal(tensor, found.network.state_dict()[name]) for name, tensor in model.network.state_dict().items()
    )
    assert networks.tensors_sha256(whole) != networks.tensors_sha256(release)


# ----------------------------------------------------------------------------------------------------------- precision


def test_bfloat16_is_kept_for_all_that_is_not_trained(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = set()

    def check(network: Any, *_: Any) -> tuple[float, None]:
        checked.add(network.dtype)
        return 0.0, None

    monkeypatch.setattr(releases, "_checked_gradients", check)
    suite = given(base, defenses=["none", "noise"], attacks=["none", "lora[rank=1]", "head"], seeds=[0])
    half = suite.model_copy(update={"model": {**suite.model, "dtype": "bfloat16"}})
    assert not {cell.key for cell in plan(half).cells} & {cell.key for cell in plan(suite).cells}
    here = workspace(plan(half), tmp_path)
    jobs = {str(job.attack): job for job in here.plan.jobs() if str(job.defense) == "noise"}
    kept = {"none": torch.bfloat16, "lora[rank=1]": torch.bfloat16, "head": torch.float32}
    for attack, dtype in kept.items():
        networks_found = attack_here(here, jobs[attack], tmp_path / attack)
        for network in networks_found:
            adapters = {weight.dtype for name, weight in network.named_parameters() if "lora_" in name}
            rest = {weight.dtype for name, weight in network.named_parameters() if "lora_" not in name}
            assert rest == {dtype}, attack
            assert adapters == ({torch.float32} if "lora" in attack else set())
    stored = load_file(releases.make_release(here, Spec.parse("noise"), 0, jobs["none"].release) / checkpoints.WEIGHTS)
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert checked == {torch.float32}, "gradients are checked in what attackers train"


# ---------------------------------------------------------------------------------------------------------------- text


def test_bits_per_byte_are_counted_in_the_models_own_tokens_after_the_first(base: Path, tmp_path: Path) -> None:
    here = workspace(plan(given(base)), tmp_path)
    model = networks.load(base)
    task = load_task(here, Spec.parse("bits_per_byte"), 0, model)
    text = make_corpus(here, 0, "scored")
    assert model.tokenizer is not None
    assert text.heldout[:, 0].tolist() == [model.tokenizer.bos_token_id] * len(text.heldout)

    found = task.evaluate(model.network, task.split("test"))
    with torch.no_grad():
        logits = model.network(input_ids=text.heldout).logits.double().log_softmax(-1)
    nats = -logits[:, :-1].gather(-1, text.heldout[:, 1:, None]).sum()
    size = len(model.tokenizer.decode(text.heldout[:, 1:].flatten()).encode())
    assert found.value == pytest.approx(float(nats) / math.log(2) / size, rel=1e-3)


def test_the_unigram_floor_does_not_fall_with_the_size_of_the_text(base: Path, tmp_path: Path) -> None:
    """The scored tokens' own entropy does: in few tokens few words occur."""
    here = workspace(plan(given(base)), tmp_path)
    text = make_corpus(here, 0)
    few = corpus.ForeignCorpus(text.tokenizer, text.train, text.heldout[:1], 1)
    assert few.unigram_bits == pytest.approx(text.unigram_bits, abs=0.5)
    own = corpus.Corpus(text.tokenizer, text.train, text.heldout[:1], 1).unigram_bits
    assert own < few.unigram_bits - 0.5


def test_a_checkpoint_with_other_words_reads_text_by_its_own_tokenizer(base: Path, tmp_path: Path) -> None:
    here = workspace(plan(tiny_suite()), tmp_path)
    model = networks.load(base)
    task = load_task(here, Spec.parse("bits_per_byte"), 0, model)
    found = task.evaluate(model.network, task.split("test"))
    assert found.value < 1.2 * math.log2(len(model.tokenizer or ())), "a random model is about as bad as guessing"


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("row", ["early_stop", "short", "narrow", "random_mask", "pmp"])
def test_defenses_that_pre_train_are_refused(base: Path, row: str) -> None:
    with pytest.raises(NftbenchError, match=r"^" + row + r".*: it pre-trains, and the base of this suite is given"):
        plan(given(base, defenses=[row]))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"corpus": {"source": "none"}, "pretraining": {"task": "toy_topic"}}, "a given base reads text"),
        ({"initialisations": 2}, "a given base has one; set initialisations=1"),
    ],
)
def test_settings_of_a_pre_training_are_refused(base: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        given(base, **changes)


def test_a_chat_template_surrounds_the_prompts(base: Path, tmp_path: Path) -> None:
    model = networks.load(base)
    assert model.tokenizer is not None
    model.tokenizer.chat_template = (
        "{% for one in messages %}[{{ one.role }}] {{ one.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}[me] {% endif %}"
    )
    model.tokenizer.save_pretrained(base)
    suite = given(base)
    plain, chat = (
        load_task(
            workspace(plan(one), tmp_path / name), Spec.parse("toy_topic"), 0, Model(model.network, model.tokenizer)
        )
        for name, one in (
            ("plain", suite),
            ("chat", suite.model_copy(update={"model": {**suite.model, "apply_chat_template": True}})),
        )
    )
    contexts = [task.split("test").documents[0].pairs[0].context for task in (plain, chat)]  # type: ignore[attr-defined]
    assert contexts[1] == f"[user] {contexts[0]}\n[me] "


CHATS = "{% for one in messages %}[{{ one.role }}] {{ one.content }}\n{% endfor %}"
MUTE = "{% for one in messages %}[{{ one.role }}]\n{% endfor %}"
"""A template that shows no content, and so hides every prompt from whoever fine-tunes the release."""


def test_a_chat_template_that_hides_the_prompts_is_seen_and_undone(
    base: Path, tmp_path: Path, plugin: Callable[[str, str], Path]
) -> None:
    model = networks.load(base)
    assert model.tokenizer is not None
    model.tokenizer.chat_template = CHATS
    model.tokenizer.save_pretrained(base)
    plugin(
        "mute",
        "@dataclass(frozen=True)\n"
        "class Mute(Defense):\n"
        '    stage: ClassVar = "posttrain"\n\n'
        "    def protect(self, model, context):\n"
        f"        model.tokenizer.chat_template = {MUTE!r}\n"
        "        return Protected(model)\n",
    )
    suite = given(base, defenses=["none", "mute"], attacks=["none", "full"], seeds=[0])
    here = workspace(plan(suite.model_copy(update={"model": {**suite.model, "apply_chat_template": True}})), tmp_path)
    found = {}
    for job in here.plan.jobs():
        folder = releases.make_release(here, job.defense, job.seed, job.release)
        opened = Referee(here, job).with_readable_text(releases.open_release(here, folder))
        protection = releases.load_protection(here, job.release)
        assert protection is not None
        assert protection.tokenizer_changed == (str(job.defense) == "mute")
        task = load_task(here, Spec.parse("toy_topic"), 0, opened)
        found[str(job.defense), str(job.attack)] = task.split("test").documents[0].pairs[0].context  # type: ignore[attr-defined]
    assert found["mute", "full"] == found["none", "full"]
    assert found["mute", "none"] == "[user]\n", "what only measures takes the release as it is published"
    assert found["none", "none"] == found["none", "full"] != "[user]\n"


def test_a_release_that_says_it_reads_less_than_the_prompts_is_refused(
    base: Path, tmp_path: Path, plugin: Callable[[str, str], Path]
) -> None:
    """With rotary positions this number changes nothing but where documents are cut."""
    plugin(
        "short_sighted",
        "@dataclass(frozen=True)\n"
        "class ShortSighted(Defense):\n"
        '    stage: ClassVar = "posttrain"\n\n'
        "    def protect(self, model, context):\n"
        "        model.network.config.max_position_embeddings = context.corpus.train.shape[1]\n"
        "        return Protected(model)\n",
    )
    suite = given(base, defenses=["none", "short_sighted"], tasks=["toy_tone"], seeds=[0], corpus={"block": 16})
    here = workspace(plan(suite), tmp_path)
    name = Spec.parse("short_sighted")
    with pytest.raises(NftbenchError, match=r"reads 16 tokens at once, a prompt of its tasks has \d\d"):
        releases.make_release(here, name, 0, here.plan.releases["short_sighted", 0])


@pytest.mark.parametrize("path", ["nowhere", "a/b/c", "./missing/folder"])
def test_a_path_that_leads_nowhere_is_refused(path: str) -> None:
    with pytest.raises(NftbenchError, match="is neither a folder nor a hub id"):
        pinning.is_on_hub(path)


def test_a_model_on_the_hub_is_refused_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    with pytest.raises(
        NftbenchError, match=r"^some/model: the hub has not answered for it: no route to host; download it"
    ):
        plan(given(Path("some/model")))


# ---------------------------------------------------------------------------------------------------------------- disk


@pytest.mark.parametrize(
    ("free", "budget", "said"),
    [
        (7.1e9, None, None),
        (6.9e9, None, r"grows by about 7 GB, and 6\.9 GB are free; --cache-size 2GB would fit, or choose"),
        (2.9e9, None, "are free; choose another folder"),
        (3.1e9, "2GB", None),
        (2.9e9, "2GB", "grows by about 3 GB"),
        (9e9, "1.9GB", r"--cache-size 1\.9 GB is too little: jobs need models of 2 GB .* --cache-size 2GB would fit"),
    ],
)
def test_what_does_not_fit_on_the_disk_is_refused_with_what_would_fit(
    free: float, budget: str | None, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache grows by 6 GB, of which jobs need 2 GB at one time, and 1 GB passes through it."""
    monkeypatch.setattr(preflight, "free_on_disk", lambda folder: free)
    monkeypatch.setenv(disk_budget.VARIABLE, budget or "")
    if said is None:
        preflight.check_disk(6e9, 2e9, 1e9, tmp_path)
        return
    with pytest.raises(NftbenchError, match=said):
        preflight.check_disk(6e9, 2e9, 1e9, tmp_path)


def test_the_disk_that_a_plan_expects_is_what_a_run_takes(base: Path, tmp_path: Path) -> None:
    here = workspace(plan(given(base, seeds=[0])), tmp_path)
    size = estimate.parameters_of(here.suite)
    left = estimate.remaining(here.plan, here.store, set())
    expected = estimate.disk_bytes(here.plan, left, size)
    for job in here.plan.jobs():
        releases.make_release(here, job.defense, job.seed, job.release)
    written = {
        path.stat().st_ino: path.stat().st_size
        for kind in ("bases", "releases")
        for path in (here.store.cache / kind).glob("*/*.safetensors")
    }
    assert expected == 4 * 3 * size, "the base, noise and prune; the release of none is the base"
    assert sum(written.values()) == pytest.approx(expected, rel=0.5)


SMOLLM2 = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
}
"""The shape of SmolLM2-135M. With a head that is not tied it has 163 million parameters."""


def test_a_model_that_reads_images_too_is_planned_by_its_text_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the larger ones of Gemma 3, whose sizes stand in a section of their configuration."""
    text, found = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 300}, []
    for settings in (text, {"text_config": text}):
        monkeypatch.setattr(given_estimate, "_settings", lambda *_, held=settings: held)
        found.append(step_bytes(given(Path("base")), 100.0))
    assert found[0] == found[1] > 0


@pytest.mark.parametrize(
    ("copies", "tokens", "measured"),
    [
        # The attack's process peaked at 5.2 GB in two steps of AdamW; its worker holds the release beside it, 1.0 GB.
        (estimate.COPIES, 256, 6.2e9),
        # The check of the release's gradients peaked at 3.1 GB, in the worker itself.
        (estimate.CHECKED_COPIES, 160, 3.1e9),
    ],
)
def test_memory_is_within_a_factor_of_two_of_what_was_measured_for_each_worker_and_for_all(
    copies: int, tokens: int, measured: float, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2))
    cell = Cell(Spec("none"), Spec("full"), Spec("toy_topic"), 0, "key", "release")
    left = estimate.Left((cell,), (), (), step_bytes=step_bytes(given(tmp_path), tokens), copies=copies)
    for workers in (1, 2):
        assert measured / 2 < estimate.memory_bytes(left, 162_826_560, workers) / workers < 2 * measured
    each, both = (f"{estimate.memory_bytes(left, 162_826_560, workers) / 1e9:.2g} GB" for workers in (1, 2))
    size = "for a model of 163 M parameters"
    assert estimate.memory_line(left, 162_826_560, 1) == f"about {each} with 1 worker, {size}"
    assert estimate.memory_line(left, 162_826_560, 2) == f"about {both} with 2 workers, at most {each} each, {size}"


@pytest.mark.parametrize(
    ("spec", "measured"),
    # Peaks of the defense's process, of its server and of the worker, on SmolLM2-135M-Instruct with documents of SST-2.
    [("dlr_lock[module_steps=80,joint_steps=40,batch=8]", 12.4e9), ("repnoise[harmful=toy_topic,steps=100]", 7.6e9)],
)
def test_the_memory_of_a_defense_that_trains_is_planned_and_taken_once(
    spec: str, measured: float, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2))
    size, blocks = 134_515_008, {"corpus": {"block": 128}}
    trained = facts.training_passes(spec, tiny_suite("llama", model=SMOLLM2, **blocks))
    needed = estimate.protecting_bytes(given(tmp_path, **blocks), trained, size)
    assert measured / 2 < needed < 2 * measured
    cell = Cell(Spec.parse(spec), Spec("full"), Spec("toy_topic"), 0, "key", "release")
    left = estimate.Left((cell,), ((Spec("none"), 0), (Spec.parse(spec), 0)), (), protecting=(0.0, needed))
    assert estimate.memory_bytes(left, size, 1) == needed
    attacking = estimate.memory_bytes(replace(left, protecting=(0.0, 0.0)), size, 1)
    assert estimate.memory_bytes(left, size, 3) == needed + 2 * attacking, "one worker makes it"
    assert estimate.memory_line(left, size, 2).endswith(f"parameters, most of it while {spec} trains")
    assert estimate.most_for(replace(left, protecting=(0.0, 0.9 * attacking)), size) == ""
    assert estimate.most_for(replace(left, protecting=(0.0, 0.0)), size) == "", "neither says what it takes"


def test_a_run_that_does_not_fit_is_refused_with_what_takes_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "memory_of", lambda device: 16e9)
    needs = [10e9, 15e9, 20e9].__getitem__
    said = "3 workers need about 20 GB, most of it while dlr_lock trains, and there are 16 GB; --jobs 2 would fit"
    with pytest.raises(NftbenchError, match=said):
        preflight.workers_that_fit(3, 2, lambda number: needs(number - 1), CPU, ", most of it while dlr_lock trains")
