"""Bad input: text that plays tricks, JSON that is not what it should be, bytes that were damaged."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

# Clears the screen, sets the title, answers back, moves up, comes as C1 bytes, reverses, is markup, is a link.
TRICKS = [
    "\x1b[2J", "\x1b]0;owned\x07", "\x1b[6n", "\x1b[1A", "\x9b31m", "\x90q\x9c", "\x08", "\x7f", "\r", "\x00",
    "\u202e", "\u2066", "\u200f", "\u061c", "\u2028", "\x85", "\ufeff", "\U000e0041", "[red]", "[/]",
    "[link=http://x]", "\\[", "\\", ":boom:", "{0}", "%s", "%n", "\n", "\t", "\x1b", "\x1b\\",
]  # fmt: skip
INJECTIONS = [
    "$(touch {mark})", "`touch {mark}`", "; touch {mark};", "| touch {mark}", "&& touch {mark} #", "\ntouch {mark}\n",
    "' touch {mark} '", '" ; touch {mark} ; "', "-oProxyCommand=touch {mark}", "${{IFS}}touch${{IFS}}{mark}",
    "--rsh=touch {mark}", "-e touch {mark}", "%(touch {mark})", "*", "~root", "a b", "../../x", "/proc/version",
]  # fmt: skip

tricky = st.lists(st.sampled_from(TRICKS) | st.text(max_size=5), max_size=6).map(
    "".join
)
text = tricky | st.text(max_size=30) | st.sampled_from(INJECTIONS)


def _as_argument(content: bytes) -> str:
    return os.fsdecode(content.replace(b"\0", b""))


# What a shell can hand to a program: any bytes but NUL. Not the help, which ends this process by an exec.
arguments = (
    (text.map(lambda words: words.replace("\0", "")) | st.binary(max_size=12).map(_as_argument))
    .filter(lambda word: word not in {"-h", "--help"})
)  # fmt: skip

HUGE = 10**400
numbers = st.sampled_from(
    [
        0,
        -1,
        1,
        2**31,
        2**63,
        2**64,
        -(2**63),
        HUGE,
        1e308,
        -1e308,
        5e-324,
        0.5,
        float("nan"),
        float("inf"),
    ]
) | st.integers(-10, 10**6)
scalars = st.none() | st.booleans() | numbers | text
_nested: dict[str, Any] = {"a": {"b": [[{}]]}}
json_values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3)
    ),
    max_leaves=6,
) | st.sampled_from(
    [[], {}, "", "x" * 10_000, _nested, json.loads("[" * 200 + "]" * 200)]
).map(copy.deepcopy)


@st.composite
def changed(draw: st.DrawFn, value: Any, times: int = 2) -> Any:
    """The JSON value with something in it replaced, removed or added, a few times."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, times))):
        places = list(_places(value, ()))
        if not places:
            return draw(json_values)
        place = draw(st.sampled_from(places))
        parent = value
        for part in place[:-1]:
            parent = parent[part]
        match draw(st.sampled_from(["replace", "replace", "remove", "add"])):
            case "replace":
                parent[place[-1]] = draw(json_values)
            case "remove":
                del parent[place[-1]]
            case _ if isinstance(parent, dict):
                parent[draw(text)] = draw(json_values)
            case _:
                parent.append(draw(json_values))
    return value


def _places(value: Any, place: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [
        found
        for key, inner in items
        for found in [(*place, key), *_places(inner, (*place, key))]
    ]


Damage = Callable[[bytes], bytes]


@st.composite
def damages(draw: st.DrawFn) -> Damage:
    """What happens to a file: cut short, bits flipped, a piece lost, doubled, moved, or overwritten."""
    kind = draw(
        st.sampled_from(
            ["cut", "flip", "lose", "double", "zero", "junk", "swap", "number", "all"]
        )
    )
    at, length = draw(st.floats(0, 1)), draw(st.integers(1, 40))
    bit, junk = draw(st.integers(0, 7)), draw(st.binary(max_size=20))
    number = draw(
        st.sampled_from(
            [
                b"9" * 400,
                b"9" * 5000,
                b"1e999",
                b"NaN",
                b"-1",
                b"[" * 5000,
                b"null",
                b'""',
            ]
        )
    )

    def damage(content: bytes) -> bytes:
        begin = int(at * len(content))
        end = min(len(content), begin + length)
        before, piece, after = content[:begin], content[begin:end], content[end:]
        match kind:
            case "cut":
                return before
            case "flip":
                return (
                    before
                    + bytes(byte ^ (1 << bit) for byte in piece[:1])
                    + piece[1:]
                    + after
                )
            case "lose":
                return before + after
            case "double":
                return before + piece + piece + after
            case "zero":
                return before + bytes(len(piece)) + after
            case "junk":
                return before + junk + after
            case "swap":
                return after + piece + before
            case "number":
                digits = next(
                    (
                        i
                        for i in range(begin, len(content))
                        if content[i : i + 1].isdigit()
                    ),
                    begin,
                )
                return (
                    content[:digits] + number + content[digits:].lstrip(b"0123456789.")
                )
        return junk

    return damage


def dumped(value: Any) -> bytes:
    """JSON as Python writes it: NaN, huge numbers and lone surrogates included."""
    return json.dumps(value).encode()
