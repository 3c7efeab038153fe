"""nftbench and its plugins are installed and nothing else; modules import only from rooms below them."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests import layers

ROOT = layers.ROOT
HEAVY = ("torch", "transformers", "datasets", "peft", "lm_eval", "numpy", "scipy", "pandas")


def settings() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def packages() -> dict[str, Path]:
    """Every folder with Python files, by the name under which it is installed."""
    homes = {"nftbench": ROOT / "nftbench", **{f"nftbench.{kind}": ROOT / kind for kind in layers.PLUGINS}}
    return {
        ".".join([package, *file.parent.relative_to(home).parts]): file.parent
        for package, home in homes.items()
        for file in home.rglob("*.py")
    }


def test_every_folder_is_in_packages() -> None:
    """A folder that is missing there would work in a checkout and not in a wheel."""
    assert set(settings()["tool"]["setuptools"]["packages"]) == packages().keys()


def test_every_data_file_is_in_package_data() -> None:
    data = settings()["tool"]["setuptools"]["package-data"]
    for package, home in packages().items():
        packed = {file for pattern in data.get(package, ()) for file in home.glob(pattern)}
        left_out = {file.name for file in home.iterdir() if file.is_file() and file.suffix != ".py"}
        assert left_out <= {file.name for file in packed}, package


def test_the_core_keeps_no_module_where_plugins_are_installed() -> None:
    for kind in layers.PLUGINS:
        assert not (ROOT / "nftbench" / kind).exists()
        assert not (ROOT / "nftbench" / f"{kind}.py").exists()


def test_constraints_pin_every_dependency() -> None:
    pins = [line.partition("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"]
    project = settings()["project"]
    asked = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    names = {name.partition(">=")[0].lower().replace("_", "-") for name in asked if not name.startswith("nftbench[")}
    assert names <= {name for name, _, _ in pins}
    assert all(version and "+" not in version for _, _, version in pins)


def test_imports_point_down() -> None:
    # In a process of its own: import-linter would take the nftbench that is imported here for the one laid out.
    found = subprocess.run([sys.executable, "-P", layers.__file__], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(
    "statement",
    [
        "import nftbench",
        "import nftbench.cli, nftbench.planning.plan, nftbench.scoring, nftbench.report.terminal",
        "from nftbench.planning import registry; [registry.available(kind) for kind in registry.KINDS]",
    ],
)
def test_light_modules_load_nothing_heavy(statement: str) -> None:
    code = f"import sys\n{statement}\nprint(*(name for name in {HEAVY!r} if name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == ""


def test_what_plugins_are_built_of_loads_no_data_sets() -> None:
    """Every plan imports plugins, also one that finds nothing left to run."""
    names = "{'lm_eval', 'datasets', 'pandas', 'sklearn', 'peft'}"
    code = f"import sys, nftbench.methods; print(*({names} & sys.modules.keys()))"
    loaded = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == ""


@pytest.mark.slow
def test_the_wheel_holds_nftbench_alone(tmp_path: Path) -> None:
    source = tmp_path / "source"  # building in the checkout would leave build/ and an egg-info there
    for name in ("nftbench", *layers.PLUGINS):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.split("/", 1)[0] for name in names} == {"nftbench", f"{wheel.name.split('-py3')[0]}.dist-info"}
    for package, home in packages().items():
        files = {file.name for file in home.iterdir() if file.suffix in (".py", ".yaml", ".typed")}
        assert {f"{package.replace('.', '/')}/{file}" for file in files} <= names
