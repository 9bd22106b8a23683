"""What environments are made from, and where: pure, but for the project's files."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from msgspec import convert
from msgspec.structs import replace

from tests.unit.factories import make_cluster, make_node
from ugro_tasks.cluster.file import read_cluster_file
from ugro_tasks.cluster.model import Cluster, Environment
from ugro_tasks.environments.recipe import (
    Recipe,
    activation_of,
    missing_lock,
    place_of,
    recipe_of,
)
from ugro_tasks.errors import EnvironmentFault
from ugro_tasks.hosts.answers import Built
from ugro_tasks.node.installers import has_hashes, hashes_of, pinned, wanted

ROOT = Path(__file__).parents[3]
UV = '[project]\nname = "x"\nversion = "1"\ndependencies = ["torch"]\n[tool.ruff]\nline-length = 100\n'
PIXI = '[tool.pixi.workspace]\nchannels = ["conda-forge"]\nplatforms = ["linux-64"]\n[tool.ruff]\nline-length = 100\n'
MASTER = "cluster:\n  master: {ip: 10.0.0.1, hostname: a}\n"


def cluster_with(root: Path, environment: Environment, **files: str) -> Cluster:
    """A cluster in `root` whose one node has this environment; `files` by their names, . as _."""
    (root / "scripts").mkdir(exist_ok=True)
    places = {
        "requirements_txt": "scripts/requirements.txt",
        "constraints_txt": "scripts/constraints.txt",
    }
    for name, text in files.items():
        (root / places.get(name, name.replace("_", "."))).write_text(text)
    return make_cluster(root, (make_node(environment=environment),))


def recipe(root: Path, manager: str, **files: str) -> Recipe:
    environment = convert({"manager": manager, "name": "main"}, Environment)
    cluster = cluster_with(root, environment, **files)
    made = recipe_of(cluster, cluster.master)
    assert made
    return made


@pytest.mark.parametrize(
    ("manager", "files", "changes", "other"),
    [
        (
            "venv",
            {"requirements_txt": "torch==1"},
            {"requirements_txt": "# why\n\ntorch==1\n"},
            False,
        ),
        (
            "venv",
            {"requirements_txt": "torch==1"},
            {"requirements_txt": "torch==2"},
            True,
        ),
        (
            "venv",
            {"requirements_txt": "torch==1"},
            {"constraints_txt": "numpy==2"},
            True,
        ),
        (
            "uv",
            {"pyproject_toml": UV, "uv_lock": "a"},
            {"pyproject_toml": UV.replace("100", "88")},
            False,
        ),
        (
            "uv",
            {"pyproject_toml": UV, "uv_lock": "a"},
            {"pyproject_toml": UV.replace("torch", "jax")},
            True,
        ),
        ("uv", {"pyproject_toml": UV, "uv_lock": "a"}, {"uv_lock": "b"}, True),
        (
            "pixi",
            {"pyproject_toml": PIXI, "pixi_lock": "a"},
            {"pyproject_toml": PIXI.replace("100", "88")},
            False,
        ),
        (
            "pixi",
            {"pyproject_toml": PIXI, "pixi_lock": "a"},
            {"pyproject_toml": PIXI.replace("-64", "-32")},
            True,
        ),
        ("pixi", {"pyproject_toml": PIXI, "pixi_lock": "a"}, {"pixi_lock": "b"}, True),
    ],
)
def test_a_digest_changes_with_what_decides(
    tmp_path: Path,
    manager: str,
    files: dict[str, str],
    changes: dict[str, str],
    other: bool,
) -> None:
    before = recipe(tmp_path, manager, **files)
    after = recipe(tmp_path, manager, **changes)
    assert (before.digest != after.digest) == other


@pytest.mark.parametrize(
    ("environment", "files", "words"),
    [
        (
            {"manager": "venv"},
            {},
            "requirements.txt is missing: the environment is to be made from it",
        ),
        ({"manager": "uv"}, {}, "pyproject.toml is missing"),
        ({"manager": "uv"}, {"pyproject_toml": UV}, "uv.lock is missing"),
        ({"manager": "pixi"}, {"pyproject_toml": PIXI}, "make it: inv sync-envs"),
        (
            {"manager": "pixi"},
            {"pyproject_toml": UV, "pixi_lock": ""},
            "neither a pixi.toml nor [tool.pixi]",
        ),
        ({"manager": "uv"}, {"pyproject_toml": "[", "uv_lock": ""}, "cannot be read"),
        ({"manager": "pixi", "path": "/opt/env"}, {}, "leave environment.path out"),
    ],
)
def test_what_is_missing_is_said(
    tmp_path: Path, environment: dict[str, str], files: dict[str, str], words: str
) -> None:
    cluster = cluster_with(tmp_path, convert(environment, Environment), **files)
    with pytest.raises(EnvironmentFault, match=re.escape(words)):
        recipe_of(cluster, cluster.master)


def test_nobody_makes_an_existing_environment(tmp_path: Path) -> None:
    cluster = cluster_with(tmp_path, Environment(manager="existing"))
    assert recipe_of(cluster, cluster.master) is None
    assert missing_lock(cluster, cluster.master) is None
    assert place_of(cluster.master) == {"manager": "existing"}


@pytest.mark.parametrize(
    ("environment", "folder", "work"),
    [
        ({"manager": "venv"}, "~/ugro/.venv", "~/ugro/.venv.sync"),
        ({"manager": "uv", "path": "/data/env/"}, "/data/env", "/data/env.sync"),
        (
            {"manager": "pixi", "name": "main"},
            "~/ugro/.pixi/envs/main",
            "~/ugro/.pixi/ugro-main",
        ),
        (
            {"manager": "pixi", "path": "~/p/.pixi/envs/default"},
            "~/p/.pixi/envs/default",
            "~/p/.pixi/ugro-default",
        ),
    ],
)
def test_an_environment_has_its_place(
    environment: dict[str, str], folder: str, work: str
) -> None:
    place = place_of(make_node(environment=convert(environment, Environment)))
    assert (place["folder"], place["work"]) == (folder, work)


# ---- which manager ----


@pytest.mark.parametrize(
    ("files", "section", "manager"),
    [
        ([], "", "existing"),
        (["uv.lock"], "", "uv"),
        (["uv.lock", "pixi.lock"], "", "pixi"),
        (["scripts/constraints.txt"], "", "venv"),
        (["scripts/requirements.txt"], "", "existing"),
        (["uv.lock"], "environment: {python: /opt/env/bin/python}\n", "existing"),
        (["uv.lock"], "environment: {conda_env: main}\n", "pixi"),
        (["uv.lock"], "environment: {manager: venv}\n", "venv"),
        (["uv.lock"], "environment: {torch_version: 2.13}\n", "uv"),
    ],
)
def test_the_lock_in_the_project_chooses_where_the_file_does_not(
    tmp_path: Path, files: list[str], section: str, manager: str
) -> None:
    (tmp_path / "scripts").mkdir()
    for name in files:
        (tmp_path / name).touch()
    (tmp_path / "cluster.yaml").write_text(f"{MASTER}{section}")
    cluster = read_cluster_file(
        tmp_path / "cluster.yaml", {"HOME": str(tmp_path), "USER": "ada"}
    )
    assert {cluster.environment.manager, cluster.master.environment.manager} == {
        manager
    }


# ---- activation ----


def test_an_environment_of_pixis_is_activated_by_its_own_words() -> None:
    node = make_node(environment=Environment(manager="pixi", name="main"))
    built = Built(
        there=True,
        stamp=None,
        program="/home/ada/.pixi/bin/pixi",
        manifest="/home/ada/ugro/pixi.toml",
    )
    assert activation_of(node, built) == (
        "/home/ada/.pixi/bin/pixi", "shell-hook", "--json", "--frozen", "--no-install", "--environment", "main",
        "--manifest-path", "/home/ada/ugro/pixi.toml",
    )  # fmt: skip
    unpacked = activation_of(node, replace(built, activate="/home/ada/activate.sh"))
    assert unpacked[:2] == ("bash", "-c")
    assert "/home/ada/activate.sh" in unpacked


@pytest.mark.parametrize("built", [None, Built(), Built(there=True, stamp=None)])
def test_what_cannot_be_activated_is_not(built: Built | None) -> None:
    assert (
        activation_of(make_node(environment=Environment(manager="pixi")), built) == ()
    )
    assert activation_of(make_node(environment=Environment(manager="uv")), built) == ()


# ---- what pip may install ----

A, B, C = (character * 64 for character in "abc")
CONSTRAINTS = (
    f"# head\ntorch==2.13.0 \\\n    --hash=sha256:{A} \\\n    --hash=sha256:{B}\n"
    f"# why\nTyping_Extensions==4.1 ; python_version < '4' --hash=sha256:{C}\n"
)


def chosen(folder: Path, *packages: tuple[str, str, str]) -> None:
    """Let pip have chosen these."""
    install = [
        {
            "metadata": {"name": n, "version": v},
            "download_info": {"archive_info": {"hashes": {"sha256": h}}},
        }
        for n, v, h in packages
    ]
    (folder / "report.json").write_text(json.dumps({"install": install}))
    (folder / "constraints.txt").write_text(CONSTRAINTS)
    (folder / "requirements.txt").write_text(
        "--find-links /wheels\ntorch==2.13.0\n-r other.txt\n"
    )


def test_versions_choose_and_hashes_pin(tmp_path: Path) -> None:
    chosen(tmp_path, ("torch", "2.13.0+cpu", A), ("typing-extensions", "4.1", C))
    assert has_hashes(str(tmp_path))
    wanted(str(tmp_path))
    assert (tmp_path / "versions.txt").read_text().splitlines()[1::2] == [
        "torch==2.13.0", "Typing_Extensions==4.1 ; python_version < '4'",
    ]  # fmt: skip
    assert pinned(str(tmp_path))[:2] == ["--no-deps", "--require-hashes"]
    assert (tmp_path / "exact.txt").read_text().splitlines() == [
        "--find-links /wheels",
        f"torch==2.13.0+cpu --hash=sha256:{A}",
        f"typing-extensions==4.1 --hash=sha256:{C}",
    ]


@pytest.mark.parametrize(
    ("package", "words"),
    [
        (("torch", "2.13.0", C), "torch 2.13.0 with sha256 c"),
        (("numpy", "2.4", A), "numpy 2.4 is not in constraints"),
    ],
)
def test_what_is_not_pinned_is_not_installed(
    tmp_path: Path, package: tuple[str, str, str], words: str
) -> None:
    chosen(tmp_path, package)
    with pytest.raises(ValueError, match=words):
        pinned(str(tmp_path))


# ---- what the repository ships ----


def test_the_shipped_constraints_pin_what_is_required() -> None:
    text = (ROOT / "scripts" / "constraints.txt").read_text()
    allowed = hashes_of(text)
    assert all(allowed.values())
    assert sum(len(hashes) for hashes in allowed.values()) == text.count(
        "--hash=sha256:"
    )
    for line in required():
        assert f"\n{line} \\\n" in text
    assert "://" not in text


def required() -> list[str]:
    lines = (ROOT / "scripts" / "requirements.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_the_managers_bring_the_same() -> None:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert sorted(document["dependency-groups"]["main"]) == sorted(required())
    pixi = document["tool"]["pixi"]
    assert pixi["environments"]["main"] == {
        "features": ["train"],
        "no-default-feature": True,
    }
    train = pixi["feature"]["train"]
    from_pypi = {
        f"{name}{version}" for name, version in train["pypi-dependencies"].items()
    }
    from_conda = {
        line.partition("==")[0]: line.partition("==")[2]
        for line in required()
        if line not in from_pypi
    }
    conda = {
        name.replace("pytorch", "torch"): version
        for name, version in train["dependencies"].items()
    }
    assert from_pypi <= set(required())
    assert conda.pop("python") == "3.11.*"
    assert conda == {
        name: f"{version.rpartition('.')[0]}.*" for name, version in from_conda.items()
    }


def test_the_shipped_workspace_has_a_platform_with_and_one_without_cuda() -> None:
    workspace = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pixi"][
        "workspace"
    ]
    first, second = workspace["platforms"]
    assert ("cuda" in first, "cuda" in second) == (True, False)
    assert first["platform"] == second["platform"] == "linux-64"
    assert not any("/" in channel for channel in workspace["channels"])
