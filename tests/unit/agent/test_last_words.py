"""What the end of a log says: the exception that ended a script, in the words that Python prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from ugro_tasks.agent.last_words import MESSAGE_LINES, exception_in, last_words
from ugro_tasks.files import File

FRAMES = """Traceback (most recent call last):
  File "train.py", line 9, in <module>
    main()
  File "train.py", line 4, in main
    raise error
          ^^^^^
"""
OOM = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.79 GiB "
    "of which 1.20 GiB is free. Process 4711 has 6.5 GiB memory in use."
)
GROUP = """  + Exception Group Traceback (most recent call last):
  |   File "train.py", line 3, in <module>
  |     raise ExceptionGroup("several", errors)
  | ExceptionGroup: several (2 sub-exceptions)
  +-+---------------- 1 ----------------
    | Traceback (most recent call last):
    |   File "train.py", line 1, in <module>
    | ValueError: the first
    +---------------- 2 ----------------
    | TypeError: the second
    +------------------------------------
"""
WORKER = f"""{FRAMES}RuntimeError: Caught ValueError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "worker.py", line 351, in _worker_loop
    data = fetcher.fetch(index)
ValueError: row 7 has no label
"""
CAUSED = "\nThe above exception was the direct cause of the following exception:\n\n"
DURING = "\nDuring handling of the above exception, another exception occurred:\n\n"
UNPARSED = """  File "/home/ada/ugro/train.py", line 3
    def main(
            ^
SyntaxError: '(' was never closed
"""
CRASH = """Fatal Python error: Segmentation fault

Current thread 0x00007f2a (most recent call first):
  File "train.py", line 4 in main
"""


@pytest.mark.parametrize(
    ("text", "exception"),
    [
        (FRAMES + "ValueError: the loss is nan\n", "ValueError: the loss is nan"),
        (FRAMES + "KeyError: 'text: a'\n", "KeyError: 'text: a'"),
        (FRAMES + "StopIteration\n", "StopIteration"),
        (FRAMES + OOM + "\n", OOM),
        (FRAMES + "my.own.Failure: a\n  b\nc\n", "my.own.Failure: a"),
        (FRAMES + "KeyError: 1\n" + DURING + FRAMES + "OSError: 2\n", "OSError: 2"),
        (FRAMES + "OSError: 1\n" + CAUSED + FRAMES + "JobError: 2\n", "JobError: 2"),
        (GROUP, "ExceptionGroup: several (2 sub-exceptions)"),
        (WORKER, "ValueError: row 7 has no label"),
        (UNPARSED, "SyntaxError: '(' was never closed"),
        (CRASH, "Fatal Python error: Segmentation fault"),
        (FRAMES + "KeyboardInterrupt\n", "KeyboardInterrupt"),
        ("epoch 1\nno data in /data\n", None),
        ("", None),
        (FRAMES, None),
        ("Traceback (most recent call last):", None),
    ],
)
def test_the_exception_is_the_line_with_its_class_and_message(
    text: str, exception: str | None
) -> None:
    lines = [line for line in text.split("\n") if line.strip()]
    assert exception_in(lines) == exception
    if exception:
        prefixed = [f"[rank1]: {line}" for line in lines]
        assert exception_in(prefixed) == exception
        assert exception_in([*lines, "[rank1]:[W1126] destroy_process_group"])


def test_an_exception_that_was_caught_long_before_did_not_end_the_script() -> None:
    lines = (FRAMES + "OSError: retried").split("\n")
    steps = [f"step {number}" for number in range(MESSAGE_LINES)]
    assert exception_in([*lines, *steps]) is None


def test_only_what_was_said_between_the_offsets_counts(tmp_path: Path) -> None:
    """Before the first is an earlier attempt, behind the last what a script says when it is stopped."""
    earlier = FRAMES + "ValueError: of the attempt before\n"
    own = "step 1\nstep 2\n"
    after = FRAMES + "SystemExit: 143\n"
    log = tmp_path / "log"
    log.write_text(earlier + own + after)
    begin = len(earlier)
    words = last_words(File(tmp_path, "log"), begin, begin + len(own))
    assert words.lines == ("step 1", "step 2")
    assert words.exception is None
    assert last_words(File(tmp_path, "log"), begin).exception == "SystemExit: 143"


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\0", b"x" * 1_000_000, b"\x1b]0;own\x07"]
)
def test_a_log_may_hold_anything(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "log").write_bytes(content)
    assert last_words(File(tmp_path, "log")).exception is None
    assert last_words(File(tmp_path, "missing")).lines == ()
