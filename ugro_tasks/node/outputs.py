"""A rank's outputs as the source of a transfer, with what their links lead to.

A link to a path in the outputs comes as a link. One in `checkpoints` or `artifacts` that leads to
files of the rank's own user comes as those files. Any other is left out, and named with the reason.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Callable, Iterable, Iterator, List, NamedTuple, Optional, Tuple

from .source import Source
from .tree import Entry, entry_of, leads_inside, stats_in

FOLLOWED_IN = ("checkpoints", "artifacts")
# Of links to folders with links to folders.
DEPTH_MOST = 8
# Root owns files there, too.
SYSTEM = (
    "/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr",
)  # fmt: skip
# In the home folder.
PRIVATE = (".ugro", ".ssh", ".gnupg", ".local/state/ugro")


class Place(NamedTuple):
    """A folder in the listing: its path there, its real one, and the trees that it is in.

    `trees` are (path in the listing, real path): the outputs, then what each followed link leads to.
    """

    path: str
    real: str
    trees: Tuple[Tuple[str, str], ...]


class Outputs(Source):
    """A rank's folder of outputs.

    `always_followed` are names in the top folder that come as folders, never as links. With
    `leave_links` no link is followed.
    """

    def __init__(
        self,
        folder: str,
        *,
        exclude: Iterable[str] = (),
        always_followed: Iterable[str] = (),
        leave_links: bool = False,
    ) -> None:
        super().__init__(folder, exclude=exclude)
        self.always_followed = list(always_followed)
        self.leave_links = leave_links
        self.real = os.path.realpath(self.folder)
        self.private = private_folders(self.real)

    def entries(self, alive: Callable[[], None]) -> Iterator[Entry]:
        """Yield every entry, a folder before its content, calling `alive` all along.

        Raises OSError if the folder itself cannot be read.
        """
        os.listdir(self.folder)
        waiting = [Place("", self.real, (("", self.real),))]
        while waiting:
            place = waiting.pop()
            try:
                names = sorted(os.listdir(place.real))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                yield ["e", place.path, str(error.strerror)]
                continue
            for name in names:
                alive()
                path = os.path.join(place.path, name)
                if self._is_chosen(place.path, name, path):
                    real = os.path.join(place.real, name)
                    yield from self._look(place, path, real, waiting, alive)

    def _look(
        self,
        place: Place,
        path: str,
        real: str,
        waiting: List[Place],
        alive: Callable[[], None],
    ) -> Iterator[Entry]:
        """Yield the entries of one name; a folder joins those that are waiting."""
        try:
            facts = os.lstat(real)
            if stat.S_ISLNK(facts.st_mode):
                yield from self._link(place, path, real, waiting, alive)
            elif len(place.trees) > 1 and facts.st_uid != os.geteuid():
                yield ["o", path, "it belongs to another user"]
            elif stat.S_ISDIR(facts.st_mode):
                yield entry_of(path, facts)
                waiting.append(Place(path, real, place.trees))
            elif stat.S_ISREG(facts.st_mode):
                yield entry_of(path, facts)
        except FileNotFoundError:
            return
        except OSError as error:
            yield ["e", path, str(error.strerror)]

    def _link(
        self,
        place: Place,
        path: str,
        real: str,
        waiting: List[Place],
        alive: Callable[[], None],
    ) -> Iterator[Entry]:
        target = os.readlink(real)
        leads_to = os.path.realpath(real)
        top, real_top = place.trees[-1]
        if is_below(leads_to, real_top) and path not in self.always_followed:
            inside = os.path.relpath(path, top or ".")
            if not leads_inside(inside, target):
                # Absolute, say, or by way of a link.
                target = os.path.relpath(leads_to, place.real)
            yield ["l", path, target]
            return
        if is_below(leads_to, self.real) and not self._has_own(leads_to):
            return
        refusal = self._refusal(place, path, leads_to)
        if refusal:
            yield ["o", path, "it leads to %s: %s" % (target, refusal)]
            return
        facts = os.stat(leads_to)
        yield ["t", path, leads_to, size_of(leads_to, alive)]
        yield entry_of(path, facts)
        if stat.S_ISDIR(facts.st_mode):
            waiting.append(Place(path, leads_to, (*place.trees, (path, leads_to))))

    def _refusal(self, place: Place, path: str, leads_to: str) -> Optional[str]:
        """Return why what a link leads to does not come; None if it does."""
        if path.split("/", 1)[0] not in FOLLOWED_IN:
            return "followed are only links in checkpoints and artifacts"
        if self.leave_links:
            return "left out as asked"
        try:
            facts = os.stat(leads_to)
        except FileNotFoundError:
            return "nothing is there"
        except OSError as error:
            return "a loop" if error.errno == errno.ELOOP else str(error.strerror)
        # The outputs are a tree that may be in itself: as the folder behind `checkpoints`.
        trees = [tree for _, tree in place.trees if tree != self.real]
        if is_below(self.real, leads_to) or any(
            is_below(leads_to, tree) or is_below(tree, leads_to) for tree in trees
        ):
            return "a loop"
        if len(place.trees) > DEPTH_MOST:
            return "too many links in what links lead to"
        if not is_below(leads_to, self.real) and self._is_private(leads_to):
            return "folders of the system, of UGRO and of keys stay where they are"
        if not (stat.S_ISDIR(facts.st_mode) or stat.S_ISREG(facts.st_mode)):
            return "neither a file nor a folder"
        if facts.st_uid != os.geteuid():
            return "it belongs to another user"
        if not os.access(leads_to, os.R_OK):
            return "it may not be read"
        return None

    def _has_own(self, path: str) -> bool:
        """Tell whether a path in the outputs has something that does not come by another name."""
        return path != self.real and os.path.exists(path)

    def _is_private(self, path: str) -> bool:
        return any(
            is_below(path, private) or is_below(private, path)
            for private in self.private
        )

    def _open(self, path: str) -> int:
        """Open a file, by way of links; raises OSError if that leads to what may not come."""
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(os.path.join(self.folder, path), flags)
        real = os.readlink("/proc/self/fd/%d" % descriptor)
        if is_below(real, self.real):
            return descriptor
        is_own = os.fstat(descriptor).st_uid == os.geteuid()
        is_followed = path.split("/", 1)[0] in FOLLOWED_IN and not self.leave_links
        if is_own and is_followed and not self._is_private(real):
            return descriptor
        os.close(descriptor)
        raise OSError(errno.EPERM, "it leads elsewhere by now", path)


def private_folders(outputs: str) -> List[str]:
    """Return the real paths of folders that do not come, whatever leads there.

    Of jobs these are all in the project of these outputs.
    """
    jobs = os.path.dirname(os.path.dirname(outputs))
    home = os.path.expanduser("~")
    kept = [os.path.join(home, name) for name in PRIVATE]
    return [os.path.realpath(folder) for folder in (*SYSTEM, *kept, jobs)]


def is_below(path: str, folder: str) -> bool:
    """Tell whether a real path is a folder's own or of something in it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def size_of(path: str, alive: Callable[[], None]) -> int:
    """Return the bytes of a file, or of all files in a folder; links count as 0."""
    total = 0
    for facts in stats_in(path):
        alive()
        if stat.S_ISREG(facts.st_mode):
            total += facts.st_size
    return total
