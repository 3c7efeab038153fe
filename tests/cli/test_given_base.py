"""A given base on the command line: from plan to ranking, and what plan refuses in one line."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml

from nftbench import suites
from nftbench.cli import execution
from nftbench.errors import NftbenchError
from nftbench.models import gguf as gguf_files, networks
from nftbench.testing import tiny_suite
from tests import checkpoints

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return checkpoints.write_reader(tmp_path / "base")


def write_suite(**changes: Any) -> None:
    settings = tiny_suite(**{"seeds": [0, 1], **changes}).model_dump(mode="json", exclude_none=True)
    Path("tiny.yaml").write_text(yaml.safe_dump(settings))


@pytest.mark.slow
def test_a_suite_on_a_given_base_runs_from_plan_to_ranking(call: Call, base: Path) -> None:
    """And nothing is pre-trained: the cache holds the base and no run."""
    write_suite(
        defenses=["none", "noise", "prune"],
        attacks=["none", "scratch", "full"],
        utility=["bits_per_byte"],
        ladder={"interpolate": ["interpolate"], "continued": ["continued[steps=2]"]},
    )
    code, _, err = call("run", "tiny.yaml", "--model", str(base), "--out", "found", "--jobs", "1", "--cache", "cache")
    assert (code, err) == (0, "")
    board = json.loads(Path("found/leaderboard.json").read_text())
    assert {row["defense"] for row in board["scores"]} == {
        "none",
        "noise",
        "prune",
        "interpolate",
        "continued[steps=2]",
    }
    assert [path.name.rpartition("-")[2] for path in Path("cache/bases").iterdir()] == ["given"]


def nan(folder: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors["model.norm.weight"][0] = math.nan
        return tensors

    checkpoints.edit(folder, spoil)


def half_infinite(folder: Path) -> None:
    """A float8 tensor, in which torch itself looks for no infinity."""

    def spoil(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.to(torch.float8_e5m2).fill_(math.inf) for name, tensor in tensors.items()}

    checkpoints.edit(folder, spoil)


def without(*names: str) -> Callable[[Path], object]:
    return lambda folder: checkpoints.edit(
        folder, lambda held: {name: one for name, one in held.items() if name not in names}
    )


def setting(**changes: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def neither_of_the_tied(folder: Path) -> None:
    setting(tie_word_embeddings=True)(folder)
    without("lm_head.weight", "model.embed_tokens.weight")(folder)


def without_special_words(folder: Path) -> None:
    tokenizer = networks.load_tokenizer(folder)
    tokenizer.bos_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)


def into(name: str) -> Callable[[Path], object]:
    """Its files lie deeper, as in the hub's cache."""

    def move(folder: Path) -> None:
        files = list(folder.iterdir())
        (folder / name).mkdir(parents=True)
        for file in files:
            file.rename(folder / name / file.name)

    return move


def few_embeddings(folder: Path) -> None:
    checkpoints.edit(
        folder, lambda held: {name: one[:200].clone() if len(one) > 200 else one for name, one in held.items()}
    )
    setting(vocab_size=200)(folder)


def in_parts(folder: Path) -> list[Path]:
    networks.load(folder).network.save_pretrained(folder, max_shard_size="8KB")
    (folder / checkpoints.WEIGHTS).unlink(missing_ok=True)
    return sorted(folder.glob("model-*.safetensors"))


def link_without_its_blob(name: str) -> Callable[[Path], object]:
    """As in a copy of the hub's cache."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to("../../blobs/0123")

    return change


def a_folder_of_weights(folder: Path) -> None:
    (folder / checkpoints.WEIGHTS).unlink()
    (folder / checkpoints.WEIGHTS).mkdir()


def classifier(folder: Path) -> None:
    checkpoints.edit(folder, lambda held: {name.replace("lm_head", "score"): one for name, one in held.items()})


def encoder(folder: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=300, **sizes)).save_pretrained(folder)


def encoder_and_decoder(folder: Path) -> None:
    """As of Whisper, of which AutoModelForCausalLM loads the decoder alone."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    sizes = {f"{side}_{name}": 1 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0)
    config = WhisperConfig(vocab_size=300, d_model=8, encoder_ffn_dim=8, decoder_ffn_dim=8, **sizes, **special)
    WhisperForConditionalGeneration(config).save_pretrained(folder)


def stored_as(dtype: torch.dtype, scale: str | None = None) -> Callable[[Path], object]:
    """One matrix is stored in another type, with its scales beside it if they are named."""

    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = "model.layers.0.mlp.up_proj.weight"
        beside = {} if scale is None else {f"{name}{scale}": torch.ones(1)}
        return {**tensors, name: tensors[name].mul(100).to(dtype), **beside}

    return lambda folder: checkpoints.edit(folder, change)


def weights(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / checkpoints.WEIGHTS).write_bytes(
        change((folder / checkpoints.WEIGHTS).read_bytes())
    )


@pytest.mark.parametrize(
    ("accident", "said"),
    [
        (
            lambda folder: [file.unlink() for file in folder.glob("tokenizer*")],
            "has no tokenizer (tokenizer.json); save",
        ),
        (lambda folder: (folder / "tokenizer.json").unlink(), "its tokenizer cannot be read: "),
        (without_special_words, "neither a token that begins a text nor one that ends it; name one as eos_token"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "its tokenizer cannot be read: "),
        (
            lambda folder: (folder / checkpoints.WEIGHTS).rename(folder / "pytorch_model.bin"),
            "pytorch_model.bin could run code when read: load it once and save it with save_pretrained",
        ),
        (lambda folder: (folder / checkpoints.WEIGHTS).unlink(), "has no weights in the safetensors format"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "holds an adapter and not the model"),
        (encoder, "is no causal LM: bert reads text in both directions; give "),
        (encoder_and_decoder, "is no causal LM: whisper has an encoder, which reads the whole text; give "),
        (setting(is_causal=False), "is no causal LM: its is_causal is False, so that it reads text in both directions"),
        (setting(model_type="llava"), "is no causal LM: transformers has no causal LM of the architecture llava"),
        (classifier, "the files lack lm_head.weight; they hold score.weight instead"),
        (
            without("lm_head.weight"),
            "the files lack lm_head.weight; if its head is tied to its embeddings, config.json",
        ),
        (neither_of_the_tied, "the files lack lm_head.weight, model.embed_tokens.weight"),
        (nan, "holds weights that are not finite: model.norm.weight"),
        (half_infinite, "holds weights that are not finite: "),
        (few_embeddings, "its tokenizer has 300 words, and its model embeds 200, without "),
        (setting(vocab_size=200), "has the shape [300, 16] in the files, and config.json asks for [200, 16]"),
        (
            setting(quantization_config={"quant_method": "gptq", "bits": 4}),
            "its weights are quantized (gptq) and cannot",
        ),
        (stored_as(torch.int8), "its weights are quantized (model.layers.0.mlp.up_proj.weight is stored as I8) and"),
        (stored_as(torch.int8, "_scale"), "its weights are quantized (model.layers.0.mlp.up_proj.weight is stored as"),
        (stored_as(torch.float8_e4m3fn, "_scale_inv"), "up_proj.weight is stored as F8_E4M3) and cannot be trained"),
        (setting(model_type="martian"), "model type `martian`"),
        (setting(hidden_size=15), "is not a multiple of the number of attention heads (2)"),
        (setting(max_position_embeddings=16), "reads 16 tokens at once, and corpus.block is 32; set a shorter block"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not a valid JSON file"),
        (lambda folder: (folder / "config.json").write_text("null"), "config.json holds no settings but null"),
        (setting(hidden_size=0), "in the files, and config.json asks for ["),
        *(
            (setting(num_hidden_layers=count), "of layers that config.json does not count; to use fewer layers")
            for count in (0, -1)
        ),
        *(
            (link_without_its_blob(name), f"{name} is a link to ../../blobs/0123, which is not there, as where the hub")
            for name in ("config.json", checkpoints.WEIGHTS)
        ),
        (
            lambda folder: link_without_its_blob(in_parts(folder)[0].name)(folder),
            "model-00001-of-00004.safetensors is a link to ../../blobs/0123, which is not there",
        ),
        (a_folder_of_weights, "model.safetensors is a folder, and should be a file"),
        (setting(hidden_act="martian"), "config.json asks for 'martian', which transformers does not know"),
        (into("snapshots/0123"), "holds no model: it lacks a config.json; give "),
        (lambda folder: [into("old")(folder), shutil.rmtree(folder / "old")], "it lacks a config.json"),
        (
            lambda folder: in_parts(folder)[-1].unlink(),
            "its index names model-00004-of-00004.safetensors, which is not",
        ),
        (lambda folder: [in_parts(folder), (folder / f"{checkpoints.WEIGHTS}.index.json").unlink()], "nor the index"),
        (
            lambda folder: [in_parts(folder), (folder / f"{checkpoints.WEIGHTS}.index.json").write_text("{")],
            "index.json",
        ),
        (weights(lambda whole: b""), "model.safetensors is damaged or incomplete; download it again"),
        (weights(lambda whole: whole[:40]), "model.safetensors is damaged or incomplete; download it again"),
        (weights(lambda whole: whole[:-100]), "model.safetensors is damaged or incomplete; download it again"),
    ],
)
def test_a_base_with_an_accident_is_one_line_in_plan(
    call: Call, base: Path, accident: Callable[[Path], object], said: str
) -> None:
    write_suite()
    accident(base)
    code, _, err = call("plan", "tiny.yaml", "--model", str(base))
    assert (code, len(err.splitlines())) == (2, 1)
    assert said in err
    assert str(base) in err


@pytest.mark.parametrize("row", ["checkpoint", "smaller"])
@pytest.mark.parametrize(
    ("accident", "said"),
    [
        (nan, "holds weights that are not finite: model.norm.weight"),
        (encoder, "is no causal LM: bert reads text in both directions"),
        (stored_as(torch.int8), "its weights are quantized (model.layers.0.mlp.up_proj.weight is stored as I8)"),
        (few_embeddings, "its tokenizer has 300 words, and its model embeds 200"),
        (setting(max_position_embeddings=16), "reads 16 tokens at once, and corpus.block is 32"),
    ],
)
def test_a_given_release_with_an_accident_is_one_line_in_plan(
    call: Call, base: Path, accident: Callable[[Path], object], said: str, row: str
) -> None:
    write_suite(defenses=["none", f"{row}[path={base}]"])
    accident(base)
    code, _, err = call("plan", "tiny.yaml")
    assert (code, len(err.splitlines())) == (2, 1)
    assert said in err
    assert str(base) in err


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_weights_may_be_stored_in_any_precision(call: Call, base: Path, dtype: torch.dtype) -> None:
    write_suite()
    stored_as(dtype)(base)
    assert call("plan", "tiny.yaml", "--model", str(base))[::2] == (0, "")


def test_a_given_release_without_a_chat_template_is_one_line_in_plan(call: Call, base: Path, tmp_path: Path) -> None:
    (base / "chat_template.jinja").write_text("{{ messages[0].content }}")
    other = checkpoints.write_reader(tmp_path / "other")
    write_suite(defenses=["none", f"checkpoint[path={other},reference={base}]"])
    code, _, err = call("plan", "tiny.yaml", "--set", f"model={{path: {base}, apply_chat_template: true}}")
    assert (code, len(err.splitlines())) == (2, 1)
    assert f"{other}: has no chat template" in err


def test_a_release_that_the_hub_does_not_have_is_one_line_in_plan(call: Call) -> None:
    write_suite(defenses=["none", "checkpoint[path=some/model]"])
    code, _, err = call("plan", "tiny.yaml")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "some/model: the hub has not answered for it: " in err


def test_a_folder_may_have_any_name(call: Call, base: Path) -> None:
    write_suite()
    assert call("plan", "tiny.yaml", "--model", base.rename("my model, [v2] ü 🙂"))[::2] == (0, "")


def test_a_base_whose_window_cuts_the_prompts_is_one_line_in_plan(call: Call, base: Path) -> None:
    write_suite(corpus={"block": 16})
    setting(max_position_embeddings=16)(base)
    code, _, err = call("plan", "tiny.yaml", "--model", str(base))
    assert (code, len(err.splitlines())) == (2, 1)
    assert re.search(
        r"reads 16 tokens at once, and \d+% of the prompts of toy_topic are longer, up to \d+; choose", err
    )


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("some/model", "some/model: the hub has not answered for it: "),
        ("some/model", "; download it where there is network, with `hf download some/model` (after `hf auth login` if"),
        ("no/such/folder", "is neither a folder nor a hub id"),
        ("models/missing.gguf", "models/missing.gguf: there is no such file"),
    ],
)
def test_a_base_that_is_not_there_is_one_line_in_plan(call: Call, model: str, said: str) -> None:
    write_suite()
    code, _, err = call("plan", "tiny.yaml", "--model", model)
    assert (code, len(err.splitlines())) == (2, 1)
    assert said in err


def test_a_shipped_suite_whose_weights_are_missing_says_where_they_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NftbenchError, match="there is no such file") as error:
        execution.check_base(suites.read("smollm2-quick"))
    assert "`make run SUITE=smollm2-quick` fetches the weights" in str(error.value)


# ---------------------------------------------------------------------------------------------------------------- GGUF


def spoilt(value: float) -> Callable[[dict[str, Any]], object]:
    return lambda tensors: tensors["blk.0.ffn_up"].__setitem__((3, 5), value)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"change": spoilt(math.nan)}, "holds weights that are not finite: blk.0.ffn_up.weight"),
        ({"change": spoilt(-math.inf)}, "holds weights that are not finite: blk.0.ffn_up.weight"),
        ({"architecture": "martian"}, "transformers reads no GGUF of the architecture 'martian'; give a folder"),
        ({"with_tokenizer": False}, "holds no tokenizer; give a file that does"),
        ({"change": lambda tensors: tensors.clear()}, "holds no weights, only a tokenizer"),
        ({"general__type": "adapter"}, "holds a part of a model (adapter) and no model"),
        ({"split__count": 3}, "is one of 3 parts; join them with llama-gguf-split --merge"),
        (
            {"change": lambda tensors: tensors.update(token_embd=tensors["token_embd"][:200])},
            "its tokenizer has 300 words, and its model embeds 200",
        ),
    ],
)
def test_a_gguf_file_with_an_accident_is_one_line_in_plan(
    call: Call, tmp_path: Path, made: dict[str, Any], said: str
) -> None:
    write_suite()
    file = checkpoints.write_gguf(tmp_path / "base.gguf", **made)
    code, _, err = call("plan", "tiny.yaml", "--model", str(file))
    assert (code, len(err.splitlines())) == (2, 1)
    assert said in err
    assert str(file) in err


def test_a_gguf_file_of_an_unknown_quantization_is_one_line_in_plan(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gguf

    write_suite()
    file = checkpoints.write_gguf(tmp_path / "base.gguf")
    content = file.read_bytes()
    place = content.index(b"blk.0.ffn_up.weight") + len("blk.0.ffn_up.weight") + 4 + 2 * 8  # dimensions, then the kind
    kind = int(gguf.GGMLQuantizationType.I32)
    file.write_bytes(content[:place] + kind.to_bytes(4, "little") + content[place + 4 :])
    code, _, err = call("plan", "tiny.yaml", "--model", str(file))
    assert (code, len(err.splitlines())) == (2, 1)
    assert "cannot read the quantization I32; take a file of another one" in err


@pytest.mark.parametrize("length", [0, 20, 2000])
def test_a_cut_gguf_file_is_one_line_in_plan(call: Call, tmp_path: Path, length: int) -> None:
    write_suite()
    file = checkpoints.write_gguf(tmp_path / "base.gguf")
    file.write_bytes(file.read_bytes()[:length])
    code, _, err = call("plan", "tiny.yaml", "--model", str(file))
    assert (code, len(err.splitlines())) == (2, 1)
    assert "is no GGUF file that can be read, or a part of one; download it again" in err


def test_a_whole_gguf_file_is_planned_and_read_as_float32(call: Call, tmp_path: Path) -> None:
    write_suite()
    file = checkpoints.write_gguf(tmp_path / "base.gguf")
    code, _, err = call("plan", "tiny.yaml", "--model", str(file))
    assert (code, err) == (0, "")
    model = networks.load(file)
    assert {weight.dtype for weight in model.network.parameters()} == {torch.float32}
    networks.save(model, tmp_path / "saved")
    again = networks.load(tmp_path / "saved")
    assert again.network.config.model_type == "llama"
    assert again.tokenizer is not None
    assert again.tokenizer.decode(again.tokenizer("the long day").input_ids) == "the long day"


def test_plan_reads_a_gguf_file_once_for_each_thing_in_it(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reading takes 18 seconds where the tokenizer has 262,144 words."""
    import gguf

    read: list[Any] = []

    class Counted(gguf.GGUFReader):  # type: ignore[misc]
        def __init__(self, *args: Any) -> None:
            read.append(args)
            super().__init__(*args)

    write_suite()
    file = checkpoints.write_gguf(tmp_path / "base.gguf")
    monkeypatch.setattr(gguf, "GGUFReader", Counted)
    assert call("plan", "tiny.yaml", "--model", str(file))[::2] == (0, "")
    assert len(read) <= 4  # header, configuration, weights, tokenizer


def test_a_part_of_a_gguf_file_is_not_looked_for_on_the_hub(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its path may look like a hub id."""
    monkeypatch.chdir(tmp_path)
    write_suite()
    Path("models").mkdir()
    Path("models/base.gguf.part00").write_bytes(checkpoints.write_gguf(tmp_path / "base.gguf").read_bytes()[:2000])
    code, _, err = call("plan", "tiny.yaml", "--model", "models/base.gguf.part00")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "is a file whose name does not end in .gguf" in err


def test_another_pin_is_said_before_weights_are_read(call: Call, tmp_path: Path) -> None:
    write_suite()
    file = checkpoints.write_gguf(tmp_path / "base.gguf", change=spoilt(math.nan))
    code, _, err = call("plan", "tiny.yaml", "--model", str(file), "--set", f"model.sha256={'a' * 64}")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "and the suite asks for aaa" in err


def test_a_gguf_file_that_has_changed_is_read_again(tmp_path: Path) -> None:
    file = checkpoints.write_gguf(tmp_path / "base.gguf")
    assert gguf_files.config(file).vocab_size == 300
    gguf_files.config(file).vocab_size = 1
    assert gguf_files.config(file).vocab_size == 300
    checkpoints.write_gguf(file, general__type="adapter")
    with pytest.raises(NftbenchError, match="holds a part of a model"):
        gguf_files.config(file)


# -------------------------------------------------------------------------------------------------------------- the hub


def test_a_model_in_the_hubs_cache_is_planned_without_network(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its branch as by its commit. Its weights are looked at, since they are there."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    commit = checkpoints.write_to_hub_cache(tmp_path / "hub", "some/model", checkpoints.write_reader)
    write_suite()
    assert call("plan", "tiny.yaml", "--model", "some/model")[::2] == (0, "")
    assert call("plan", "tiny.yaml", "--set", f"model={{path: some/model, revision: {commit}}}")[::2] == (0, "")

    nan(tmp_path / "hub" / "models--some--model" / "snapshots" / commit)
    code, _, err = call("plan", "tiny.yaml", "--model", "some/model")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "some/model: holds weights that are not finite: model.norm.weight" in err

    (tmp_path / "hub" / "models--some--model" / "snapshots" / commit / checkpoints.WEIGHTS).unlink()
    code, _, err = call("plan", "tiny.yaml", "--model", "some/model")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "some/model: the hub has not answered for it: " in err


@pytest.mark.slow
def test_a_model_in_the_hubs_cache_is_run_without_network(tmp_path: Path) -> None:
    """In a process of its own, as a user has it: with HF_HOME and no network."""
    checkpoints.write_to_hub_cache(tmp_path / "home" / "hub", "some/model", checkpoints.write_reader)
    settings = tiny_suite().model_dump(mode="json", exclude_none=True)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    words = ["run", "tiny.yaml", "--model", "some/model", "--out", "found", "--jobs", "1", "--cache", "cache"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "nftbench", *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    records = [json.loads(path.read_text()) for path in (tmp_path / "found" / "records").iterdir()]
    assert {record["status"] for record in records} == {"ok"}


@pytest.mark.parametrize("template", ["{{ raise_exception('odd\\nroles') }}", "{% if %}"])
def test_a_chat_template_that_fails_is_one_line_in_plan(call: Call, base: Path, template: str) -> None:
    write_suite()
    (base / "chat_template.jinja").write_text(template)
    assert call("plan", "tiny.yaml", "--model", str(base))[::2] == (0, ""), "it is not asked for"
    code, _, err = call("plan", "tiny.yaml", "--set", f"model={{path: {base}, apply_chat_template: true}}")
    assert (code, len(err.splitlines())) == (2, 1)
    assert f"{base}: its chat template fails: " in err
