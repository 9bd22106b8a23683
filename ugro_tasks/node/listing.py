"""The list of a transfer's files, as sent by the source: validated, counted, and limited."""

from __future__ import annotations

from typing import Dict, List, Optional, Sequence, Tuple

from .tree import Entry, Unfit, check_entry, is_excluded

ENTRIES_MOST = 2_000_000
# Of all paths together: a listing must not fill the memory.
CHARACTERS_MOST = 1 << 28


class Listing:
    """The entries of a source, by path.

    `only`, `files`, `exclude` and `never_links` are the choice given to the source; see `Source`. An
    entry outside that choice is refused: the folder may contain files from elsewhere.
    """

    def __init__(
        self,
        *,
        only: Optional[Sequence[str]] = None,
        files: Optional[Sequence[str]] = None,
        exclude: Sequence[str] = (),
        never_links: Sequence[str] = (),
    ) -> None:
        self.entries: Dict[str, Entry] = {}
        # Links that do not come, with the reason.
        self.left_out: List[str] = []
        # (link, what it leads to, bytes of that) of those that come as what they lead to.
        self.followed: List[Tuple[str, str, int]] = []
        self._only = None if only is None else frozenset(only)
        self._files = None if files is None else frozenset(files)
        self._exclude = exclude
        self._never_links = never_links
        self._told = 0
        self._characters = 0

    def take(self, told: object) -> List[str]:
        """Add entries; return a message for each file unreadable at the source.

        Raises Unfit for a malformed or unrequested entry.
        """
        if not isinstance(told, list):
            raise Unfit("no list of entries")
        unreadable = []
        for entry in told:
            check_entry(entry)
            self._count(entry)
            path = entry[1]
            if entry[0] == "e":
                name = path or "the folder itself"
                unreadable.append("%.200s: %.200s" % (name, entry[2]))
                continue
            if entry[0] == "o":
                self.left_out.append("%.200s: %.300s" % (path, entry[2]))
                continue
            if entry[0] == "t":
                self.followed.append((path, entry[2], entry[3]))
                continue
            is_no_folder = entry[0] != "d" and path in self._never_links
            if is_no_folder or not self._is_asked_for(path):
                raise Unfit("it was not asked for: %.200r" % path)
            self.entries[path] = entry
        return unreadable

    def is_file(self, path: str) -> bool:
        """Tell whether the source has a file of this path."""
        entry = self.entries.get(path)
        return entry is not None and entry[0] == "f"

    def _count(self, entry: Entry) -> None:
        """Count entries, repeated ones too; raises Unfit for an endless list."""
        self._told += 1
        for value in entry:
            if isinstance(value, str):
                self._characters += len(value)
        if self._told > ENTRIES_MOST or self._characters > CHARACTERS_MOST:
            raise Unfit("a list of files without end")

    def _is_asked_for(self, path: str) -> bool:
        if self._files is not None and path not in self._files:
            return False
        top_name = path.split("/", 1)[0]
        if self._only is not None and top_name not in self._only:
            return False
        return not is_excluded(path, self._exclude)
