"""Markup on a console of our own: what rich makes of it."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ugro_tasks.cli.show.console import Console
from ugro_tasks.cli.show.format import shown
from ugro_tasks.cli.show.live import live_console

PIECES = ["[bold]", "[red]", "[/]", "[none]", "[/none]", "\\", "[", "]", "x", "[x y]", "a", "/", "é"]


class Terminal(io.StringIO):
    """A stream that somebody looks at."""

    def isatty(self) -> bool:
        return True


@settings(max_examples=300, deadline=None)
@given(words=st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_a_text_is_shown_as_rich_shows_it(words: str) -> None:
    ours, theirs = io.StringIO(), io.StringIO()
    markup = f"[bold]{shown(words)}[/] {shown(words)}"
    Console(ours).print(markup)
    live_console(theirs).print(markup)
    assert ours.getvalue() == theirs.getvalue() == f"{words} {words}\n"


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_colours_where_they_are_not_wanted(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    stream = Terminal()
    Console(stream).print("[bold]a[/]")
    assert stream.getvalue() == "a\n"


def test_colours_begin_end_and_lie_within_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    Console(stream).print("[bold]a[red]b[/]c[/]d")
    assert stream.getvalue() == "\x1b[0;1ma\x1b[0;1;31mb\x1b[0;1mc\x1b[0md\n"
    assert re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()) == "abcd\n"
