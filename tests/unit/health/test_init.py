"""The first time on a cluster, as it is told beforehand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.unit.factories import make_cluster
from ugro_tasks.cluster.model import Node
from ugro_tasks.errors import HostUnreachable
from ugro_tasks.health import init
from ugro_tasks.health.init import FirstTime, first_time


def test_each_node_is_told_with_its_new_key_or_why_it_was_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key_of(node: Node, _seconds: float) -> SimpleNamespace | None:
        if node.name == "gpu2":
            raise HostUnreachable("gpu2", "no route", "plug it in")
        new = SimpleNamespace(name="10.0.0.2", fingerprint="SHA256:abc")
        return new if node.name == "gpu1" else None

    monkeypatch.setattr(init, "new_key_of", key_of)
    key, away = "10.0.0.2 SHA256:abc", "gpu2: no route\n    plug it in"
    assert first_time(make_cluster(tmp_path)) == [
        FirstTime(node="gpu0", project="~/ugro", new_key=None),
        FirstTime(node="gpu1", project="~/ugro", new_key=key),
        FirstTime(node="gpu2", project="~/ugro", new_key=None, unreached=away),
    ]
