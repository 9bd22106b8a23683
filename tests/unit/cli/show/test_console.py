"""Lines on a terminal and elsewhere: their colours, and text that is never more than text."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.unit.factories import Terminal
from ugro_tasks.cli.show.console import CODES, Console, Printer, Style, plain, style
from ugro_tasks.cli.show.format import columns
from ugro_tasks.cli.show.live import LiveConsole
from ugro_tasks.text import UNSHOWN

SGR = re.compile(r"\x1b\[[0-9;]*m")
RAW = re.compile(f"[{UNSHOWN}]")
TRICKS = [
    "[bold]",
    "[red]",
    "[/]",
    "[",
    "]",
    "\\",
    ":boom:",
    "{0}",
    "\x1b[31m",
    "\x1b]0;",
    "\x9b",
    "\r",
    "\n",
    "é",
]
CONSOLES = [Console, LiveConsole]
Opened = Callable[[io.StringIO], Printer]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    return Terminal()


@pytest.mark.parametrize("opened", CONSOLES)
@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_colours_where_they_are_not_wanted(
    terminal: Terminal,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    opened: Opened,
) -> None:
    monkeypatch.setenv(variable, value)
    console = opened(terminal)
    console.print(style("a", "red"), "b")
    console.print_lines([("gpu0", "cyan", "c")], 4)
    assert terminal.getvalue() == "ab\ngpu0 │ c\n"


@pytest.mark.parametrize("opened", CONSOLES)
def test_no_colours_where_nobody_looks(opened: Opened) -> None:
    stream = io.StringIO()
    console = opened(stream)
    console.print(style("a", "bold"), "b", style("c", "green"))
    assert (stream.getvalue(), console.width, console.is_terminal) == (
        "abc\n",
        200,
        False,
    )


def test_a_colour_ends_where_its_text_ends(terminal: Terminal) -> None:
    Console(terminal).print(style("a", "bold"), style("b", "red"), "c")
    assert terminal.getvalue() == "\x1b[0;1ma\x1b[0m\x1b[0;31mb\x1b[0mc\n"


def test_every_style_has_its_code_and_rich_knows_it(terminal: Terminal) -> None:
    assert set(CODES) == set(get_args(Style))
    for name, code in CODES.items():
        LiveConsole(terminal).print(style("x", name))
        assert terminal.getvalue().endswith(f"\x1b[{code}mx\x1b[0m\n")


@pytest.mark.parametrize("opened", CONSOLES)
@given(
    words=st.lists(st.sampled_from(TRICKS) | st.text(max_size=3), max_size=8).map(
        "".join
    )
)
@example(words="\x1b]0;no end of it")
@example(words="[/]\\")
def test_a_text_is_only_a_text_and_changes_nothing_around_it(
    words: str, opened: Opened
) -> None:
    stream = io.StringIO()
    opened(stream).print(
        "before ", words, style(words, "bold"), f"in {words} between", " after"
    )
    text = RAW.sub("", words).replace("\t", " ")
    got = re.sub("\t| {2,8}", " ", stream.getvalue())
    assert not RAW.search(got)
    expected = f"before {text}{text}in {text} between after\n"
    assert got == re.sub(" {2,8}", " ", expected)


@pytest.mark.parametrize("opened", CONSOLES)
def test_many_lines_come_behind_their_names(terminal: Terminal, opened: Opened) -> None:
    opened(terminal).print_lines(
        [("gpu0", "cyan", "[red]a[/] \x1b[2J:boom:"), ("a", "magenta", "10%\r20%")],
        width=6,
    )
    assert (
        SGR.sub("", terminal.getvalue()) == "gpu0   │ [red]a[/] :boom:\na      │ 20%\n"
    )
    assert re.findall(r"3[56](?=m)", terminal.getvalue()) == ["36", "35"]


def test_a_table_has_bold_heads_and_its_states_their_colours(
    terminal: Terminal,
) -> None:
    rows = [["", "job", "failed"], ["✓", "a", "running"], ["x", "long", ""]]
    columns(Console(terminal), rows, indent=" ")
    assert terminal.getvalue() == (
        "\x1b[0;1m    job   failed\x1b[0m\n \x1b[0;32m✓\x1b[0m  a     \x1b[0;36mrunning\x1b[0m\n x  long\n"
    )


def test_the_pieces_of_a_line_without_their_colours() -> None:
    assert plain(["a", style("b", "red"), "c"]) == "abc"
