"""Any bytes at all as a cluster file: a Cluster, or one ClusterFileError that names lines; and never a long wait."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.hostile.profiles import examples
from tests.hostile.running import RAW, ugro
from tests.hostile.strategies import (
    INJECTIONS,
    Damage,
    changed,
    damages,
    json_values,
    text,
)
from ugro_tasks.cluster.file import load_cluster
from ugro_tasks.cluster.model import Cluster
from ugro_tasks.errors import ClusterFileError

SAMPLES = [
    path.read_bytes()
    for path in sorted((Path(__file__).parents[1] / "unit" / "clusters").glob("*.yaml"))
]
SAMPLES += [(Path(__file__).parents[2] / "cluster.yaml").read_bytes()]
ENVIRON = {"USER": "ada", "HOME": "/home/ada"}
PATIENCE_SECONDS = 10.0  # for one file on a busy machine; a hang is far longer
HAS_A_LINE = re.compile(r"^  line \d+: ", re.M)


def loaded(content: bytes, folder: Path) -> Cluster | None:
    """The cluster; None where the file was refused, as it has to be."""
    path = folder / "cluster.yaml"
    path.write_bytes(content)
    begun = time.monotonic()
    try:
        cluster = load_cluster(str(path), environ=ENVIRON)
    except ClusterFileError as refused:
        assert (
            HAS_A_LINE.search(refused.text)
            or "is empty" in refused.text
            or "over 1 MiB" in refused.text
        )
        assert not RAW.search(refused.text)
        assert len(refused.text) < 20_000
        return None
    finally:
        assert time.monotonic() - begun < PATIENCE_SECONDS
    return cluster


def is_usable(cluster: Cluster) -> None:
    """What the file gave can be stored, read again, and holds nothing that plays tricks."""
    stored = json.loads(json.dumps(cluster.as_json()))
    assert Cluster.from_json(stored) == cluster
    for node in cluster.nodes:
        for word in (
            node.name,
            node.address,
            node.user or "",
            node.hostname or "",
            node.jump or "",
            node.slot,
        ):
            assert re.fullmatch(r"[\w.:@\[\]+-]*", word), word
        for word in (
            node.project,
            node.python,
            node.environment.interpreter(node.project),
            node.gpu_model or "",
        ):
            assert not RAW.search(word), word


@examples(25)
@given(
    sample=st.sampled_from(SAMPLES), hurt=st.lists(damages(), min_size=1, max_size=3)
)
def test_a_file_damaged_anywhere_is_a_cluster_or_a_refusal(
    tmp_path: Path, sample: bytes, hurt: list[Damage]
) -> None:
    for damage in hurt:
        sample = damage(sample)
    if cluster := loaded(sample, tmp_path):
        is_usable(cluster)


@examples(50)
@given(data=st.data())
def test_a_file_with_other_values_is_a_cluster_or_a_refusal(
    tmp_path: Path, data: st.DataObject
) -> None:
    sample = yaml.safe_load(data.draw(st.sampled_from(SAMPLES)))
    content = yaml.safe_dump(data.draw(changed(sample)), allow_unicode=True).encode(
        "utf-8", "replace"
    )
    if cluster := loaded(content, tmp_path):
        is_usable(cluster)


# Indicators, tags, anchors, and what a human may paste.
PIECES = [
    "cluster:", "workers:", "nodes:", "- ", "  ", "\n", "\t", "{", "}", "[", "]", ": ", ", ", "&a ", "*a", "<<: ", "!!",
    "!!python/object/apply:os.system ", "!!int ", "!!binary ", "!!timestamp ", "!!bool ", "!!float ", "!!set ", "? ",
    "| ", "> ", "'", '"', "%YAML 1.1\n", "---\n", "...\n", "~", "null", "# ", "@", "`", "${HOME}", "${", "}", "\\",
    "\ufeff", "\u2028", "\x85", "é", "\U0001f600", "10.0.0.1", "master", "ip", "hostname", "-1", "0x10", "1_0", ".inf",
    "1:1:1", "2001-99-99", "=",
]  # fmt: skip


@examples(50)
@given(pieces=st.lists(st.sampled_from(PIECES) | text, max_size=25))
def test_any_yaml_is_a_cluster_or_a_refusal(tmp_path: Path, pieces: list[str]) -> None:
    if cluster := loaded("".join(pieces).encode("utf-8", "replace"), tmp_path):
        is_usable(cluster)


@examples(20)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_a_cluster_or_a_refusal(tmp_path: Path, content: bytes) -> None:
    assert loaded(content, tmp_path) is None


LAUGHS = "a0: &a0 x\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 20)
)
GOOD = b"cluster: {master: {hostname: m, ip: 10.0.0.1}}\n"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(LAUGHS.encode(), id="a billion laughs"),
        pytest.param(b"a: &a [*a, *a]\n", id="an anchor inside itself"),
        pytest.param(b"[" * 500_000, id="deep lists"),
        pytest.param(b"{a: " * 200_000, id="deep sections"),
        pytest.param(b"- " * 500_000, id="deep block lists"),
        pytest.param(b"? " * 500_000, id="deep keys"),
        pytest.param(b"a: '" + b"x" * 1_000_000 + b"'", id="a huge value"),
        pytest.param(b"x" * 1_000_000 + b": 1", id="a huge key"),
        pytest.param(
            b"cluster: {master: {ip: '" + b"9" * 1_000_000 + b"'}}", id="a huge address"
        ),
        pytest.param(
            GOOD + b"training: {default_epochs: " + b"9" * 1_000_000 + b"}",
            id="a huge number",
        ),
        pytest.param(
            GOOD + b"timeouts: {connect_seconds: " + b"9" * 1_000_000 + b"}",
            id="a huge time",
        ),
        pytest.param(GOOD + b"a: 1\n" * 100_000, id="a key doubled many times"),
        pytest.param(
            GOOD + b"".join(b"k%d: 1\n" % n for n in range(9_000)),
            id="many unknown keys",
        ),
        pytest.param(
            GOOD + b"workers: [" + b"{name: a, ip: 10.0.0.2}," * 3_000 + b"]",
            id="many twins",
        ),
        pytest.param(b"&a " * 100_000, id="many anchors"),
        pytest.param(b"a: " + b"!x" * 100_000, id="a huge tag"),
        pytest.param(b"a: " + b"${HOME}" * 100_000, id="many variables"),
        pytest.param(b"a: " + b"${" * 300_000, id="variables without an end"),
        pytest.param(
            b"%TAG ! tag:x,2000:" + b"y" * 100_000 + b"\n--- !a b",
            id="a huge directive",
        ),
        pytest.param(b"a: |\n" + b" \n" * 300_000, id="an endless block"),
        pytest.param(b"# " * 500_000, id="a huge comment"),
        pytest.param(b"\r" * 1_000_000 + b"a", id="a million lines"),
        pytest.param(b"a: \xed\xa0\x80", id="half a surrogate pair"),
        pytest.param("\ufeff\ufeffa: 1".encode(), id="two byte order marks"),
    ],
)
def test_a_file_made_to_cost_is_refused_soon(tmp_path: Path, content: bytes) -> None:
    assert loaded(content, tmp_path) is None


@pytest.mark.parametrize(
    "value",
    [
        *INJECTIONS,
        "fe80::1%eth0",
        "::1%$(id)",
        "a@b",
        "a:22",
        "[::1]",
        "10.0.0.1 -oX",
        "ⅷ",
    ],
)
@pytest.mark.parametrize(
    "key",
    ["ip", "hostname", "user", "ssh", "jump", "ssh_port", "name", "rank", "transport"],
)
def test_what_a_node_is_reached_by_cannot_be_a_command(
    tmp_path: Path, key: str, value: str
) -> None:
    document: dict[str, Any] = yaml.safe_load(GOOD) | {
        "workers": [{"name": "w", "ip": "10.0.0.2", key: value}]
    }
    cluster = loaded(yaml.safe_dump(document).encode(), tmp_path)
    if cluster:
        is_usable(cluster)
        # Who logs in and the jump host may be such words; nothing else may.
        assert (key, value) in {
            ("user", "a@b"),
            ("ssh", "a@b"),
            ("jump", "a@b"),
            ("jump", "a:22"),
            ("jump", "[::1]"),
        }


@examples(25)
@given(
    section=st.sampled_from(
        ["timeouts", "logging", "training", "paths", "environment"]
    ),
    data=st.data(),
)
def test_what_loads_can_be_used(
    tmp_path: Path, section: str, data: st.DataObject
) -> None:
    keys = {
        "timeouts": [
            "connect_seconds",
            "start_seconds",
            "rendezvous_seconds",
            "agent_linger_seconds",
        ],
        "logging": ["level", "format", "keep_days", "file"],
        "training": [
            "default_script",
            "default_model",
            "default_epochs",
            "batch_size_per_gpu",
            "max_seq_length",
        ],
        "paths": ["project_root", "scripts", "experiments", "logs", "data"],
        "environment": ["manager", "name", "path", "python", "python_version"],
    }[section]
    document = yaml.safe_load(GOOD)
    formats = st.sampled_from(
        [
            "%(message)s",
            "%(nonsense)s",
            "%(message)999999999s",
            "%(asctime)d",
            "%(levelno)x %s",
        ]
    )
    values = (
        json_values
        | text
        | formats
        | st.sampled_from(["1e300", "1e-300", str(10**100)])
    )
    document[section] = {data.draw(st.sampled_from(keys)): data.draw(values)}
    cluster = loaded(
        yaml.safe_dump(document, allow_unicode=True).encode("utf-8", "replace"),
        tmp_path,
    )
    if cluster:
        is_usable(cluster)
        waits = msgspec.structs.asdict(cluster.timeouts).values()
        assert max(waits) <= 10_000_000  # a wait that the operating system can count
        import logging

        record = logging.LogRecord("x", logging.INFO, "x", 1, "message", None, None)
        assert len(logging.Formatter(cluster.logging.format).format(record)) < 10_000


@pytest.mark.parametrize(
    "text",
    [
        "nodes: {}",
        "nodes: {a: }",
        "nodes: {a: {ip: 10.0.0.1, rank: 0}, b: {ip: 10.0.0.2, rank: +5}}",
        "nodes: {a: {ip: 10.0.0.1, rank: 0}, b: {ip: 10.0.0.2, rank: 5.0}}",
        "nodes: {a: {ip: 10.0.0.1, rank: 0}, b: {ip: 10.0.0.2, rank: 1_0}}",
        "nodes: {a: {ip: 10.0.0.1, rank: 0}, b: {ip: 10.0.0.2, rank: 9999999999999}}",
        "cluster: {master: {hostname: m, ip: 10.0.0.1}}\nworkers: [{name: w, ip: 10.0.0.2, rank: ' 0'}]",
        f"cluster: {{master: {{hostname: {'m' * 64}, ip: 10.0.0.1}}}}",
    ],
)
def test_what_only_the_whole_file_shows_to_be_wrong_is_refused_by_its_line(
    tmp_path: Path, text: str
) -> None:
    assert loaded(text.encode(), tmp_path) is None


@examples(25)
@given(damage=damages())
def test_a_cluster_that_is_remembered_and_damaged_is_read_anew(
    tmp_path: Path, damage: Damage
) -> None:
    environ = {
        **ENVIRON,
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    (tmp_path / "cluster.yaml").write_bytes(SAMPLES[0])
    cluster = load_cluster(str(tmp_path / "cluster.yaml"), environ=environ)
    (entry,) = (tmp_path / "cache").rglob("*.json")
    entry.write_bytes(damage(entry.read_bytes()))
    assert load_cluster(str(tmp_path / "cluster.yaml"), environ=environ) == cluster


def test_a_bad_file_ends_the_program_with_its_code(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_bytes(
        b'cluster: {master: {hostname: "\\e[31m", ip: 1}}\n'
    )
    done = ugro("status", folder=tmp_path)
    assert done.code == 3
    assert "line 1" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["cluster.yaml"]
