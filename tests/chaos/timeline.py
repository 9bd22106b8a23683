"""What happened in a round and when, from all who wrote it down: for whoever has to find out why it failed."""

from __future__ import annotations

import json
import re
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

LINE_CHARACTERS = 400
STAMP = re.compile(r"^\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3})\] ")


class Note(NamedTuple):
    """Something that happened, and who says so."""

    time: float
    who: str
    words: str


class Timeline:
    """The suite's own notes of one round, and those of UGRO between them. Any thread may note."""

    def __init__(self) -> None:
        self.begun = time.time()
        self.notes: list[Note] = []
        self._noting = threading.Lock()

    def note(self, who: str, words: str) -> None:
        """It happens now."""
        with self._noting:
            self.notes.append(Note(time.time(), who, words))

    def add_events(self, path: Path, who: str) -> None:
        """The lines of an events.jsonl."""
        for line in _lines(path):
            try:
                event = json.loads(line)
                where = f"{event['node']}: " if event.get("node") else ""
                self.notes.append(Note(event["time"], who, where + event["message"]))
            except (ValueError, KeyError):
                self.notes.append(Note(self.begun, who, f"NOT AN EVENT: {line!r}"))

    def add_log(self, path: Path, who: str) -> None:
        """The lines that this round added to one of UGRO's own logs."""
        at = 0.0
        for line in _lines(path):
            if stamp := STAMP.match(line):
                at = (
                    datetime.strptime(stamp[1], "%Y-%m-%d %H:%M:%S").timestamp()
                    + int(stamp[2]) / 1000
                )
            if at >= self.begun:
                self.notes.append(Note(at, who, STAMP.sub("", line)))

    def lines(self) -> list[str]:
        """All of it in the order of time, in seconds from the beginning of the round."""
        ordered = sorted(self.notes, key=lambda note: note.time)
        return [
            f"  {note.time - self.begun:7.3f}  {note.who:8}  {line[:LINE_CHARACTERS]}"
            for note in ordered
            for line in note.words.splitlines() or [""]
        ]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
