"""What a source says that it has: each entry checked, counted, and held against what was asked of it."""

from __future__ import annotations

from typing import Dict, List, Optional, Sequence

from .tree import Entry, Unfit, check_entry, is_excluded

ENTRIES_MOST = 2_000_000
CHARACTERS_MOST = 1 << 28  # of all paths together: a listing must not fill the memory


class Listing:
    """The entries of a source, by path.

    `only`, `files` and `exclude` are what the source was told; see `Source`. One that sends something else is not to be
    trusted with a name in this folder: beside it lies what is not the source's.
    """

    def __init__(
        self,
        *,
        only: Optional[Sequence[str]] = None,
        files: Optional[Sequence[str]] = None,
        exclude: Sequence[str] = (),
    ) -> None:
        self.entries: Dict[str, Entry] = {}
        self._only = None if only is None else frozenset(only)
        self._files = None if files is None else frozenset(files)
        self._exclude = exclude
        self._told = 0
        self._characters = 0

    def take(self, told: object) -> List[str]:
        """Take note of entries; gives words for each that the source cannot read. Raises Unfit for what is none."""
        if not isinstance(told, list):
            raise Unfit("no list of entries")
        unreadable = []
        for entry in told:
            check_entry(entry)
            self._count(entry)
            path = entry[1]
            if entry[0] == "e":
                unreadable.append(
                    "%.200s: %.200s" % (path or "the folder itself", entry[2])
                )
                continue
            if not self._is_asked_for(path):
                raise Unfit("it was not asked for: %.200r" % path)
            self.entries[path] = entry
        return unreadable

    def is_file(self, path: str) -> bool:
        """Tell whether the source has a file of this path."""
        entry = self.entries.get(path)
        return entry is not None and entry[0] == "f"

    def _count(self, entry: Entry) -> None:
        """Count what is told, also what is told again; raises Unfit for a list that does not end."""
        self._told += 1
        self._characters += sum(len(word) for word in entry if isinstance(word, str))
        if self._told > ENTRIES_MOST or self._characters > CHARACTERS_MOST:
            raise Unfit("a list of files without end")

    def _is_asked_for(self, path: str) -> bool:
        if self._files is not None and path not in self._files:
            return False
        if self._only is not None and path.split("/", 1)[0] not in self._only:
            return False
        return not is_excluded(path, self._exclude)
