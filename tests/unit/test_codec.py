"""Many threads may decode a type at once, also where none has done so before; and nobody decodes elsewhere."""

import ast
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Struct

from ugro_tasks import codec

PACKAGE = Path(codec.__file__).parent
# What finds out at a type's first use what it consists of.
RESOLVES = {"convert", "decode", "Decoder"}

# In a process of its own: it may end by a segmentation fault, and only the first use of a type shows it.
PROGRAM = """
import sys, threading
from tests.hostile.nodes import WHOLE
from ugro_tasks.hosts import answers
at_once = threading.Barrier(24)
def decode():
    at_once.wait()
    answers.checked("probe", WHOLE["probe"])
sys.setswitchinterval(1e-6)
threads = [threading.Thread(target=decode) for _ in range(24)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


class Pair(Struct, frozen=True):
    a: int
    b: str = ""


class Whole(Struct, frozen=True):
    pair: Pair


@pytest.mark.parametrize("_", range(5))
def test_threads_that_begin_together_decode(_: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_types_are_prepared_one_at_a_time_and_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[object] = []
    inside: list[object] = []
    most_inside = []
    real = msgspec.json.Decoder

    def slow(kind: Any) -> Any:
        inside.append(kind)
        most_inside.append(len(inside))
        time.sleep(0.02)  # long enough for every other thread to come to the same place
        inside.pop()
        made.append(kind)
        return real(kind)

    monkeypatch.setattr(msgspec.json, "Decoder", slow)
    monkeypatch.setattr(codec, "_decoders", {})
    at_once = threading.Barrier(12)
    value = {"a": 1, "pair": {"a": 1}}

    def use(kind: type) -> None:
        at_once.wait()
        codec.convert(kind, value)

    kinds = [Pair, Whole, dict[str, object]] * 4
    threads = [threading.Thread(target=use, args=(kind,)) for kind in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most_inside) == 1
    assert sorted(map(str, made)) == sorted(map(str, [Pair, Whole, dict[str, object]]))


def test_values_come_typed() -> None:
    assert codec.decode(Pair, '{"a": 1}') == Pair(1)
    assert codec.decode(object, b"[1]") == [1]
    assert codec.decode_lines(Pair, b'{"a": 1}\n{"a": 2, "b": "x"}\n') == [
        Pair(1),
        Pair(2, "x"),
    ]
    assert codec.convert(Whole, {"pair": {"a": 3}}) == Whole(Pair(3))
    assert codec.convert(
        dict[str, Path], {"a": "/b"}, hook=lambda kind, value: kind(value)
    ) == {"a": Path("/b")}


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b'{"a": "1"}', b'{"a": 1, "b": "\xff"}', b"[" * 100_000]
)
def test_damage_is_one_of_unreadable(raw: bytes) -> None:
    with pytest.raises(codec.UNREADABLE):
        codec.decode(Pair, raw)


def direct_uses(source: str) -> Iterator[str]:
    """What of msgspec in the source resolves types beside `codec`."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(attr=name) if name in RESOLVES:
                root = node.value
                while isinstance(root, ast.Attribute):
                    root = root.value
                if isinstance(root, ast.Name) and root.id == "msgspec":
                    yield ast.unparse(node)
            case ast.ImportFrom(module=str(module)) if (
                module.split(".")[0] == "msgspec"
            ):
                if module != "msgspec":
                    yield ast.unparse(node)
                yield from (
                    alias.name
                    for alias in node.names
                    if alias.name in {*RESOLVES, "json", "msgpack"}
                )
            case ast.Import():
                for alias in node.names:
                    if alias.name.split(".")[0] == "msgspec" and (
                        alias.asname or alias.name != "msgspec"
                    ):
                        yield ast.unparse(node)


@pytest.mark.parametrize(
    "source",
    [
        "import msgspec\nmsgspec.json.decode(b'')",
        "import msgspec\nmsgspec.convert({}, dict)",
        "import msgspec\nd = msgspec.msgpack.Decoder",
        "from msgspec import convert",
        "from msgspec import json",
        "from msgspec.json import decode",
        "import msgspec as m",
        "import msgspec.json",
    ],
)
def test_a_direct_use_is_seen(source: str) -> None:
    assert list(direct_uses(source))


def test_only_codec_lets_msgspec_resolve_types() -> None:
    sources = {
        path.relative_to(PACKAGE): path.read_text() for path in PACKAGE.rglob("*.py")
    }
    found = {str(path): list(direct_uses(source)) for path, source in sources.items()}
    assert found.pop("codec.py")
    assert {path: uses for path, uses in found.items() if uses} == {}
