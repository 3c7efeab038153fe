"""The linear model and its tabular tasks: reading files, splits and scores."""

from __future__ import annotations

import lzma
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score
from torch import Tensor
from transformers import AutoModel

from nftbench.contract import Model
from nftbench.errors import NftbenchError
from nftbench.methods import conditioning, tabular
from nftbench.methods.tabular import Pair, Regression, Rows, TableSplit
from nftbench.models.architectures import linear
from nftbench.models.architectures.linear import LinearConfig, LinearModel
from nftbench.models.networks import seeded
from nftbench.planning import registry
from nftbench.records.spec import Spec
from nftbench.testing import tiny_suite

DATA = Path("/work/shared/data")
WIDTHS = {"diabetes": 10, "digits_pair": 64, "house_price": 79, "mnist_pair": 784}
OFFLINE = ["diabetes", "diabetes[part=first,target=bmi]", "digits_pair", "digits_pair[first=0,second=9]"]


def _network(width: int, outputs: int = 1, dtype: torch.dtype = torch.float64) -> LinearModel:
    return LinearModel(LinearConfig(input_dim=width, output_dim=outputs)).to(dtype)


def _load(text: str, *, width: int | None = None, seed: int = 0, limit: int | None = None, **changes: Any) -> Any:
    task = registry.create("tasks", text)
    budget = {"max_train_documents": None, "max_validation_documents": None, "max_test_documents": None}
    context: Any = SimpleNamespace(
        model=Model(_network(width or WIDTHS[Spec.parse(text).name])),
        seed=seed,
        suite=tiny_suite(budget={**budget, **changes}),
        data=DATA if DATA.is_dir() else None,
        limit=limit,
    )
    return task.load(context)


def _split(inputs: Tensor, targets: Tensor) -> TableSplit:
    return TableSplit(Rows(inputs.double(), targets.double()))


needs_data = pytest.mark.skipif(not (DATA / "house_price").is_dir(), reason="needs the shared data")

# -------------------------------------------------------------------------------------------------------------- family


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_model_saves_and_loads_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    linear.register()
    network = _network(5, 2, dtype)
    assert torch.equal(network.theta, torch.eye(5, dtype=dtype))
    assert not network.head.weight.any()
    with torch.no_grad(), seeded(0):
        network.extractor.weight.normal_()
        network.head.weight.normal_()
    network.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, dtype="auto", use_safetensors=True, local_files_only=True)
    assert type(again) is LinearModel
    assert again.config.to_dict()["input_dim"] == 5
    for name, weight in network.state_dict().items():
        assert weight.dtype == again.state_dict()[name].dtype == dtype
        assert torch.equal(weight, again.state_dict()[name])


def test_the_linear_model_computes_the_equation_of_the_paper() -> None:
    network = _network(4, 2)
    generator = torch.Generator().manual_seed(0)
    theta, probe, inputs = (torch.randn(*shape, generator=generator).double() for shape in ((4, 4), (4, 2), (7, 4)))
    with torch.no_grad():
        network.extractor.weight.copy_(theta.mT)
        network.head.weight.copy_(probe.mT)
    found = network(inputs=inputs.float())
    assert torch.allclose(found.features, inputs @ theta, atol=1e-6)
    assert torch.allclose(found.outputs, inputs @ theta @ probe, atol=1e-6)
    assert torch.equal(network.theta, theta)
    assert found.outputs.dtype == torch.float64
    assert network.get_output_embeddings() is network.head


# --------------------------------------------------------------------------------------------------------------- tasks


@pytest.mark.parametrize("text", OFFLINE)
def test_offline_tasks_keep_their_promises(text: str) -> None:
    task, again, other = _load(text), _load(text), _load(text, seed=1)
    network = _network(WIDTHS[Spec.parse(text).name])
    for name in ("train", "validation", "test"):
        split = task.split(name)
        assert torch.equal(split.rows.inputs, again.split(name).rows.inputs)
        assert not torch.equal(split.rows.inputs, other.split(name).rows.inputs)
        assert split.rows.targets.shape == (len(split), 1)
        assert bool(split.rows.inputs.isfinite().all())
        untrained = task.evaluate(network, split)
        assert untrained.value <= untrained.floor + 5 * untrained.stderr
        assert untrained.count == len(split)
    batch = task.split("train").batch(range(8))
    loss = task.loss(network, batch)
    loss.backward()
    assert bool(network.head.weight.grad.any())
    assert torch.equal(task.features(network, batch), batch.inputs)


@pytest.mark.parametrize(("text", "least"), [("diabetes", 0.3), ("digits_pair", 0.95)])
def test_probing_by_least_squares_learns_the_task(text: str, least: float) -> None:
    task = _load(text)
    network = _network(WIDTHS[text])
    rows = task.split("train").rows
    with torch.no_grad():
        ridge = torch.eye(rows.inputs.shape[1], dtype=torch.float64)
        covariance = conditioning.covariance(rows.inputs) + ridge
        network.head.weight.copy_(torch.linalg.solve(covariance, rows.inputs.mT @ task.targets(network, rows)).mT)
    assert task.evaluate(network, task.split("test")).value > least


def test_rows_of_the_splits_are_all_different() -> None:
    splits = [_load("diabetes").split(name).rows.inputs for name in ("train", "validation", "test")]
    assert [len(split) for split in splits] == [265, 88, 89]
    assert len({tuple(row) for split in splits for row in split.tolist()}) == 442


def test_budget_and_limit_cut_the_splits() -> None:
    task = _load("diabetes", max_train_documents=50, max_test_documents=20, limit=30)
    assert [len(task.split(name)) for name in ("train", "validation", "test")] == [30, 30, 20]
    assert torch.equal(task.split("test").rows.inputs, _load("diabetes").split("test").rows.inputs[:20])


def test_diabetes_predicts_a_measurement_from_the_others() -> None:
    rows = _load("diabetes[target=bmi]").split("train").rows
    assert not rows.inputs[:, 2].any()
    assert bool(rows.inputs[:, 3].any())


def test_targets_and_models_that_do_not_fit_are_refused() -> None:
    with pytest.raises(NftbenchError, match="no target 'height'"):
        _load("diabetes[target=height]")
    with pytest.raises(NftbenchError, match=r"set model\.input_dim to 10"):
        _load("diabetes", width=9)
    with pytest.raises(NftbenchError, match="load the task before its train split"):
        registry.create("tasks", "diabetes").split("train")


def test_outputs_of_another_width_are_refused() -> None:
    task = _load("diabetes")
    with pytest.raises(NftbenchError, match=r"outputs \(8, 2\) for targets \(8, 1\)"):
        task.loss(_network(10, 2), task.split("train").batch(range(8)))


def test_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(NftbenchError, match="--data"):
        tabular.file(None, "mnist", "x")
    with pytest.raises(NftbenchError, match="no such file"):
        tabular.file(tmp_path, "mnist", "x")
    folder = tmp_path / "mnist"
    folder.mkdir()
    for name in ("train-images-idx3-ubyte.xz", "train-labels-idx1-ubyte.xz"):
        (folder / name).write_bytes(lzma.compress(b"\0\0\x0d\x01" + bytes(8)))
    task = registry.create("tasks", "mnist_pair")
    context: Any = SimpleNamespace(model=Model(_network(784)), seed=0, suite=tiny_suite(), data=tmp_path, limit=None)
    with pytest.raises(NftbenchError, match=r"train-images-idx3-ubyte\.xz: cannot be read"):
        task.load(context)
    before = task.fingerprint(tmp_path)
    (folder / "train-images-idx3-ubyte.xz").write_bytes(lzma.compress(b"another"))
    assert task.fingerprint(tmp_path) != before
    with pytest.raises(NftbenchError, match="--data"):
        task.fingerprint(None)


def test_idx_files_are_read(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (40, 28, 28), dtype=np.uint8)
    labels = np.arange(40, dtype=np.uint8) % 4
    (tmp_path / "mnist").mkdir()
    for name, array in (("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", labels)):
        head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
        (tmp_path / "mnist" / f"{name}.xz").write_bytes(lzma.compress(head + array.tobytes()))
    budget = {"max_train_documents": None, "max_validation_documents": None, "max_test_documents": None}
    suite = tiny_suite(budget=budget)
    context: Any = SimpleNamespace(model=Model(_network(784)), seed=0, suite=suite, data=tmp_path, limit=None)
    task = registry.create("tasks", "mnist_pair[first=1,second=3]").load(context)
    rows = [task.split(name).rows for name in ("train", "validation", "test")]
    assert [len(part.inputs) for part in rows] == [12, 4, 4]
    found = {tuple(row.tolist()): float(goal) for part in rows for row, goal in zip(*part, strict=True)}
    for image, label in zip(images, labels, strict=True):
        pixels = (torch.from_numpy(image).double().flatten() / 255 - 0.1307) / 0.3081
        assert found.get(tuple(pixels.tolist())) == {1: -1.0, 3: 1.0}.get(int(label))


# -------------------------------------------------------------------------------------------------------- measurements


def test_r_squared_against_scikit_learn_and_a_plain_jackknife() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, noise = (torch.randn(60, width, generator=generator).double() for width in (3, 1))
    network = _network(3)
    with torch.no_grad():
        network.head.weight.copy_(torch.tensor([[1.0, -2.0, 0.5]]))
    targets = network(inputs=inputs).outputs.detach() + noise + 0.3
    found = tabular.r_squared(network, _split(inputs, targets))
    outputs = network(inputs=inputs).outputs.detach().numpy().clip(targets.min().item(), targets.max().item())
    assert found.value == pytest.approx(r2_score(targets.numpy(), outputs), rel=1e-12)
    left_out = [r2_score(np.delete(targets.numpy(), row, 0), np.delete(outputs, row, 0)) for row in range(60)]
    error = math.sqrt(59 / 60 * float(np.square(np.array(left_out) - np.mean(left_out)).sum()))
    assert found.stderr == pytest.approx(error, rel=1e-9)
    assert found.loss == pytest.approx(float(((targets.numpy() - outputs) ** 2).mean()) / 2)
    assert (found.metric, found.floor, found.count, found.higher_is_better) == ("r2", 0.0, 60, True)
    far = torch.cat([inputs, torch.tensor([[1e9, 0.0, 0.0]]).double()])
    outlier = tabular.r_squared(network, _split(far, torch.cat([targets, targets.max()[None, None]])))
    assert outlier.value == pytest.approx(found.value, abs=0.05), "one row cannot outweigh the others"
    with pytest.raises(NftbenchError, match="targets that differ"):
        tabular.r_squared(network, _split(inputs, torch.ones(60, 1)))


def test_accuracy_and_the_losses() -> None:
    network = _network(1)
    with torch.no_grad():
        network.head.weight.fill_(2.0)
    batch = Rows(
        torch.tensor([[1.0], [-1.0], [0.0], [3.0]]).double(), torch.tensor([[1.0], [-1.0], [-1.0], [-1.0]]).double()
    )
    found = tabular.accuracy(network, TableSplit(batch))
    assert (found.value, found.floor, found.metric) == (0.75, 0.5, "acc")
    expected = np.mean([np.log1p(np.exp(-margin)) for margin in (2.0, 2.0, 0.0, -6.0)])
    assert found.loss == pytest.approx(expected)
    pair, regression = registry.create("tasks", "digits_pair"), registry.create("tasks", "diabetes")
    assert isinstance(pair, Pair)
    assert isinstance(regression, Regression)
    assert pair.loss(network, batch).item() == pytest.approx(expected)
    assert regression.loss(network, batch).item() == pytest.approx(np.mean([1.0, 1.0, 1.0, 49.0]) / 2)


# ----------------------------------------------------------------------------------------------------------- real data


@needs_data
@pytest.mark.parametrize(("part", "published"), [("primary", 1795161651.06), ("harmful", 2009611173.20)])
def test_house_prices_have_the_condition_numbers_that_the_authors_logged(part: str, published: float) -> None:
    """`X1 condition` and `X2 condition` of wandb/run-20250608_031141-b400gz2b in the authors' repository."""
    rows = _load(f"house_price[part={part},order=file]").split("train").rows
    assert rows.inputs.shape == (200, 79)
    assert conditioning.ridge_condition_number(rows.inputs) == pytest.approx(published, rel=1e-6)


@needs_data
@pytest.mark.parametrize(("part", "kappa"), [("primary", 7732.42), ("harmful", 208019.2)])
def test_house_prices_lack_full_rank(part: str, kappa: float) -> None:
    """So what the authors logged is the largest eigenvalue over their ridge of 1e-6, and no condition number."""
    inputs = _load(f"house_price[part={part},order=file]").split("train").rows.inputs
    assert conditioning.feature_rank(inputs) == 74 < inputs.shape[1] == 79
    assert conditioning.condition_number(inputs) == pytest.approx(kappa, rel=1e-5)
    largest = float(np.linalg.norm(inputs.numpy(), 2)) ** 2
    assert conditioning.ridge_condition_number(inputs) == pytest.approx(largest / 1e-6, rel=1e-6)


@needs_data
def test_house_prices_are_divided_by_the_seed() -> None:
    sizes = [
        [len(_load(f"house_price[part={part}]").split(name)) for name in ("train", "validation", "test")]
        for part in ("primary", "harmful")
    ]
    assert sizes == [[200, 54, 55], [200, 475, 476]]
    drawn, first = (
        _load(f"house_price[{order}]").split("train").rows.inputs for order in ("order=seeded", "order=file")
    )
    again = [
        _load(f"house_price[{order}]", seed=1).split("train").rows.inputs for order in ("order=seeded", "order=file")
    ]
    assert not torch.equal(drawn, again[0])
    assert torch.equal(first, again[1])


@needs_data
def test_house_prices_have_two_targets_and_neither_is_an_input() -> None:
    price, area = (_load(f"house_price[target={target}]").split("train").rows for target in ("SalePrice", "LotArea"))
    assert torch.equal(price.inputs, area.inputs)
    assert not torch.equal(price.targets, area.targets)
    assert torch.equal(price.targets, _load("house_price").split("train").rows.targets)
    with pytest.raises(NftbenchError, match="target"):
        registry.create("tasks", "house_price[target=Street]")


@needs_data
def test_mnist_pairs() -> None:
    task = _load("mnist_pair[first=3,second=7]", max_train_documents=300, max_test_documents=200)
    rows = task.split("train").rows
    assert rows.inputs.shape == (300, 784)
    assert set(rows.targets.flatten().tolist()) == {-1.0, 1.0}
    alone = _load("mnist_pair[first=3,alone=true]", limit=100).split("train").rows
    assert set(alone.targets.flatten().tolist()) == {-1.0}
