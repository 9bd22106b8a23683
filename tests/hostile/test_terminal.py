"""Whatever a node, a script or a file says, no control sequence of it reaches the terminal, in any command."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.hostile.profiles import examples
from tests.hostile.running import RAW
from tests.hostile.strategies import text, tricky
from tests.unit.cli.show.test_format import SHOWS
from tests.unit.factories import Terminal, make_cluster, make_node_plan, make_plan_of
from ugro_tasks.cli.show.bars import BuildLines, Percentages
from ugro_tasks.cli.show.console import open_console, style
from ugro_tasks.cli.show.format import columns, show_json, waiting
from ugro_tasks.cli.show.launch import show_plan
from ugro_tasks.cli.show.live import LiveConsole
from ugro_tasks.environments.sync import Progress
from ugro_tasks.errors import HostError, JobEnded, NodeFault
from ugro_tasks.jobs.log import open_log
from ugro_tasks.text import printable, printable_lines

# All that must not come through, in one text; the word is there to see that the text was shown at all.
WHOLE = (
    "evil\x1b[2J\x1b]0;owned\x07\x9b31m\x90q\x9c\x08\x7f\u202e\u2066\u200f\u061c\u2028\udcff\x85\x00"
    "[red]x[/red]:boom:"
)


@examples(150)
@given(words=text | st.text(st.characters(), max_size=30))
def test_nothing_raw_is_printable(words: str) -> None:
    for made in (printable(words), printable_lines(words)):
        assert not RAW.search(made)
        made.encode()
    assert "\n" not in printable(words) or "\n" in words
    assert printable(printable(words)) == printable(words)


@examples(50)
@given(words=st.text(st.characters(exclude_categories=("Cc", "Cs", "Cf", "Zl", "Zp"))))
def test_what_plays_no_tricks_is_printed_as_it_is(words: str) -> None:
    assert printable(words) == words


@examples(80)
@given(words=tricky | text, between=st.sampled_from(["", "x", "[bold]a[/]"]))
@example(words="\\", between="")
@example(words="a\\\\\\", between="[bold]a[/]")
@example(words=":smile: [b]", between="x")
def test_markup_and_emoji_in_a_text_are_only_text(words: str, between: str) -> None:
    safe = printable_lines(words)
    for console in (open_console, LiveConsole):
        stream = io.StringIO()
        console(stream).print(safe, between, style(safe, "green"), safe)
        assert stream.getvalue() == f"{safe}{between}{safe}{safe}\n" or "\t" in words


@examples(80)
@given(words=tricky | text)
@example(words="\x1b]0;no end of it")
def test_nothing_raw_is_printed_even_where_it_was_not_made_safe(words: str) -> None:
    for console in (open_console, LiveConsole):
        stream = io.StringIO()
        console(stream).print("before ", words, style(words, "red"), f" {words} after")
        assert not RAW.search(stream.getvalue())
        assert stream.getvalue().startswith("before ")
        assert stream.getvalue().endswith(" after\n")


@examples(50)
@given(cells=st.lists(tricky | text, min_size=2, max_size=4))
def test_a_cell_is_one_line_and_cannot_pretend_to_be_another(cells: list[str]) -> None:
    stream = io.StringIO()
    columns(open_console(stream), [["head"] * len(cells), cells])
    assert stream.getvalue().count("\n") == 2
    assert not RAW.search(stream.getvalue())


@examples(50)
@given(words=tricky | text)
def test_an_error_is_raised_with_plain_words(words: str) -> None:
    for error in (
        NodeFault(words, words, words),
        HostError(words, words),
        JobEnded(words, 7),
    ):
        assert not RAW.search(error.text)
        error.text.encode()


@examples(50)
@given(value=st.dictionaries(st.text(max_size=5), tricky | text, max_size=3))
def test_json_for_machines_is_harmless_on_a_terminal_and_says_the_same(
    value: dict[str, str],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stream = io.StringIO()
        patch.setattr("sys.stdout", stream)
        show_json({"value": value})
    assert not RAW.search(stream.getvalue())
    whole = json.loads(json.dumps(value).encode("utf-8", "replace"))
    told = json.loads(stream.getvalue())["value"]
    assert told == whole or _has_surrogates(value)


def _has_surrogates(value: Any) -> bool:
    return bool(re.search("[\ud800-\udfff]", json.dumps(value, ensure_ascii=False)))


@examples(15)
@given(words=st.lists(tricky | text, min_size=1, max_size=3))
def test_a_command_is_shown_without_tricks_and_as_it_runs(words: list[str]) -> None:
    words = [
        word.replace("\0", "").encode("utf-8", "replace").decode() for word in words
    ]
    plan = make_plan_of(
        (make_node_plan(0, argv=("echo", *words), env={"A": words[0]}, folder="/x"),)
    )
    with pytest.MonkeyPatch.context() as patch:
        stream = io.StringIO()
        patch.setattr("sys.stdout", stream)
        show_plan(plan)
    assert not RAW.search(stream.getvalue())
    command = stream.getvalue().split("\n")[-2].strip()
    code = 'printf "%s\\0" "$A" "$@"'
    script = command.replace(" echo ", f" bash -c {shlex.quote(code)} bash ", 1)
    ran = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        check=True,
        env={"LC_ALL": "C.UTF-8"},
    ).stdout
    assert ran.decode().split("\0")[:-1] == [words[0], *words]


@pytest.mark.parametrize("show", SHOWS)
def test_no_view_shows_anything_raw(
    show: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("tests.unit.cli.show.test_format.HOSTILE", WHOLE)
    show(tmp_path)
    captured = capsys.readouterr()
    assert "evil" in captured.out + captured.err
    assert RAW.findall(captured.out + captured.err) == []


def test_the_logs_of_ugro_itself_hold_nothing_raw(tmp_path: Path) -> None:
    cluster = make_cluster(tmp_path)
    log = open_log("hostile-test", cluster)
    log.warning("%s says %s", "gpu1", WHOLE)
    for handler in log.handlers:
        handler.close()
    written = (cluster.logs / "hostile-test.log").read_text()
    assert "evil" in written
    assert not RAW.search(written)
    assert written.count("\n") == 1


def show_percentages() -> None:
    with Percentages() as bars:
        bars.update(WHOLE, 50)


def show_builds() -> None:
    progress = Progress(phase=WHOLE, seconds=3.0, bytes=7, line=WHOLE)
    with BuildLines() as lines:
        lines.update(WHOLE, progress)


def show_a_spinner() -> None:
    with waiting(WHOLE):
        pass


@pytest.mark.parametrize("show", [show_percentages, show_builds, show_a_spinner])
def test_what_is_redrawn_shows_nothing_raw(
    monkeypatch: pytest.MonkeyPatch, show: Callable[[], None]
) -> None:
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "400")
    show()
    # What moves the cursor is rich's own: it only goes up a line, clears it, and hides and shows itself.
    others = re.sub(r"\x1b\[(\?25[lh]|2K|1A|0?m)|\r", "", stream.getvalue())
    assert "evil" in others
    assert "[red]x[/red]:boom:" in others
    assert not RAW.search(others)
