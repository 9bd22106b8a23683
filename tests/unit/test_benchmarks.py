"""The benchmarks are not run here, but they must not fall behind what they measure."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import benchmarks

FOLDER = Path(benchmarks.__file__).parent
LISTED = re.findall(r"python -m benchmarks\.(\w+)", benchmarks.__doc__ or "")
# count_memory runs in the training environment, which has torch.
MODULES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in {"__init__", "count_memory"})


@pytest.mark.parametrize("name", MODULES)
def test_a_benchmark_can_be_loaded(name: str) -> None:
    assert importlib.import_module(f"benchmarks.{name}").__doc__


@pytest.mark.parametrize("name", LISTED)
def test_what_is_listed_is_there_and_has_its_figures(name: str) -> None:
    assert name in MODULES
    assert f"python -m benchmarks.{name}" in (FOLDER.parent / "docs" / "benchmarks.md").read_text()
