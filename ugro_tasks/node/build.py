"""The build of a training environment on this node, used only once it is complete.

FOLDER is the place of the environment (~/ugro/.venv, say). The work folder beside it has

    lock                 an flock: one build at a time
    builder.json         who made the last one
    users/               the jobs that use it, see `environment_users`
    log                  the output of pip, uv or pixi in the last build
    files/               the recipe's files
    store/               packages from the controller: wheels, a cache of uv's, or a pack of pixi's
    env-<digest>-<time>  an environment; FOLDER is a link to it
    replaced             the former FOLDER, for a moment

A stamp in the environment names its recipe. It is written last, so an environment without it is
incomplete. pixi makes its environments in place: there the stamp is removed first, and the next run
repairs an interrupted build.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from typing import Dict, Generator, Iterator, List, Optional

from .build_runner import Runner
from .environment import (
    LOOK_AT_TORCH,
    STAMP,
    base_python,
    environment,
    find_program,
    stamp_of,
    version_of,
)
from .environment_users import user_of_environment
from .files import Json, expand, write_json
from .installers import (
    PIP_OPTIONS,
    choice,
    has_hashes,
    newer_pip,
    own_variables,
    pinned,
    uv_sync,
    venv_steps,
    wanted,
)
from .lease import lease_holder, take_lease
from .processes import of_slot
from .programs import run_later
from .protocol import Refusal

# In environments made by UGRO's first releases, on the local machine only.
OLDER_STAMP = "made-from.sha256"
# The holder of a node's lease during a build.
JOB = "sync-envs"


def build_environment(request: Json, blob: bytes = b"") -> Iterator[Json]:
    """Yield {"progress": ...} repeatedly, then the new environment's facts.

    They are those of `environment`, with {made, seconds, bytes, kept}. `bytes` is the size of the
    new environment; in the progress, the bytes written so far.

    `blob` is the recipe's files one after the other, with their sizes in `files` ({name: bytes}).

    Refuses with "busy" if a job has the node: switching under a running job would break its late
    imports. Refuses with "failed" and {phase, tail, free_bytes, log} on failure; the old
    environment then stays in use.
    """
    build = Build(request, blob)
    try:
        yield from build.run()
    except OSError as error:
        raise build.failed(
            "writing", "%s: %s" % (error.filename or build.work, error.strerror)
        ) from error


class Build:
    """One build, from the lock to the switch."""

    def __init__(self, request: Json, blob: bytes) -> None:
        place = request["environment"]
        self.request = request
        self.blob = blob
        self.manager = place["manager"]
        self.name = place["name"]
        self.folder = expand(place["folder"])
        self.work = expand(place["work"])
        # The folder of pixi's project.
        self.workspace = expand(place.get("workspace", ""))
        self.files = os.path.join(self.work, "files")
        self.store: Optional[str] = None
        if request["offline"]:
            self.store = os.path.join(self.work, "store")
        self.log = os.path.join(self.work, "log")
        self.holder = {
            "token": request["token"],
            "job": JOB,
            "controller": request["controller"],
        }
        self.runner = Runner(self.log, request["token"], request["silence_seconds"])
        self.kept: Optional[str] = None

    def run(self) -> Iterator[Json]:
        """Yield the lines of `build_environment`."""
        os.makedirs(self.files, mode=0o700, exist_ok=True)
        made = False
        with open(os.path.join(self.work, "lock"), "w") as lock:
            yield from self.runner.take_lock(lock)
            # For whoever is refused meanwhile.
            with contextlib.suppress(OSError):
                write_json(os.path.join(self.work, "builder.json"), self.holder)
            yield from self._tidy()
            if not self._is_made():
                with self._holding_the_node():
                    yield from self._make()
                made = True
        size = size_of(os.path.realpath(self.folder)) if made else 0
        result = {
            "made": made,
            "seconds": time.monotonic() - self.runner.begun,
            "bytes": size,
            "kept": self.kept,
        }
        yield dict(environment(self.request), **result)

    def failed(self, phase: str, message: str) -> Refusal:
        """Make the refusal for a failure, with the facts needed for a remedy."""
        free_bytes: Optional[int] = None
        if os.path.isdir(self.work):
            free_bytes = shutil.disk_usage(self.work).free
        return Refusal(
            "failed",
            message,
            phase=phase,
            tail=self.runner.tail(),
            free_bytes=free_bytes,
            log=self.log,
        )

    def _is_made(self) -> bool:
        """Tell whether the wanted environment exists, perhaps from another build.

        `bad` of the request is the creation time of one found broken.
        """
        stamp = stamp_of(self.folder)
        if not stamp or stamp["digest"] != self.request["digest"]:
            return False
        is_bad: bool = stamp["made_at"] == self.request["bad"]
        return not is_bad

    @contextlib.contextmanager
    def _holding_the_node(self) -> Iterator[None]:
        """Hold the lease of each slot using this environment; refuses with "busy", here or where a job uses it."""
        with contextlib.ExitStack() as stack:
            for slot in self.request["slots"]:
                lease = take_lease(slot, self.holder)
                if lease is None:
                    other = lease_holder(slot) or {}
                    raise Refusal("busy", "the node is held", holder=other)
                stack.enter_context(lease)
                others = of_slot(slot)
                if others:
                    other = others[0].facts()
                    raise Refusal("busy", "the node is not free", holder=other)
            user = user_of_environment(self.work)
            if user is not None:
                words = "a job uses it on another machine, which shares the folder"
                raise Refusal("busy", words, holder=user)
            yield

    def _tidy(self) -> Iterator[Json]:
        """Clean up after an interrupted build, and remove environments out of use."""
        replaced = os.path.join(self.work, "replaced")
        if os.path.lexists(replaced):
            if os.path.lexists(self.folder):
                self._put_away(replaced)
            else:
                os.rename(replaced, self.folder)
        environment_in_use = os.path.realpath(self.folder)
        # An environment unpacked from a pack is one level deeper.
        in_use = (environment_in_use, os.path.dirname(environment_in_use))
        work = os.path.realpath(self.work)
        for name in os.listdir(work):
            path = os.path.join(work, name)
            if name.startswith("env-") and path not in in_use:
                yield from self._remove(path)

    def _remove(self, path: str) -> Iterator[Json]:
        """Remove a folder by a program: thousands of files take long, and progress must go on."""
        argv = ["rm", "-rf", "--", path]
        yield from self.runner.call("removing the old one", argv, dict(os.environ), "/")

    # ---- making it ----

    def _make(self) -> Iterator[Json]:
        """Make the environment, stamp it, and switch to it."""
        has_ugro = os.path.exists(os.path.join(self.folder, "bin", "ugro"))
        if has_ugro and not stamp_of(self.folder):
            raise self.failed("theirs", "%s is UGRO's own environment" % self.folder)
        self._lay_out()
        in_place = self.manager == "pixi" and not self.store
        name = "env-%s-%x" % (self.request["digest"][:12], time.time_ns())
        target = os.path.join(self.work, name)
        is_complete = False
        try:
            if in_place:
                place = self.folder
                yield from self._install_with_pixi()
            else:
                place = target
                if self.manager == "pixi":
                    place = os.path.join(target, self.name)
                yield from self._install_aside(target)
            yield self.runner.progress("looking at it")
            write_json(os.path.join(place, STAMP), self._stamp_for(place))
            if not in_place:
                self._switch_to(place)
            is_complete = True
        finally:
            if not is_complete:
                shutil.rmtree(target, ignore_errors=True)
        yield from self._tidy()
        if self.store and self.manager != "uv":
            # uv's store shares its files with the environment.
            yield from self._remove(self.store)

    def _lay_out(self) -> None:
        """Write the recipe's files, each atomically, and empty the log."""
        shutil.rmtree(self.files, ignore_errors=True)
        folder = self.workspace or self.files
        for path in (self.files, folder):
            os.makedirs(path, mode=0o700, exist_ok=True)
        begin = 0
        for name, size in self.request["files"].items():
            content = self.blob[begin : begin + size]
            begin += size
            path = os.path.join(folder, os.path.basename(name))
            if os.path.exists(path) and read_bytes(path) == content:
                # Left untouched: this node's project may be the controller's own.
                continue
            with open(path + ".new", "wb") as file:
                file.write(content)
            os.replace(path + ".new", path)
        with open(self.log, "w"):
            pass

    def _install_aside(self, target: str) -> Iterator[Json]:
        """Install into a new folder."""
        if self.manager == "pixi":
            os.makedirs(target)
            argv = [self._needed("pixi-unpack"), "--output-directory", target]
            argv += ["--env-name", self.name]
            argv.append(os.path.join(self.work, "store", "environment.tar"))
            yield from self._call("unpacking", argv)
        elif self.manager == "uv":
            yield from self._install_with_uv(target)
        else:
            yield from self._install_with_pip(target)

    def _install_with_uv(self, target: str) -> Iterator[Json]:
        argv = [self._needed("uv"), *uv_sync(self.name)]
        python = self.request.get("python")
        if python:
            argv += ["--python", expand(python)]
        variables = {"UV_PROJECT_ENVIRONMENT": target}
        if self.store:
            argv.append("--offline")
            variables.update(UV_CACHE_DIR=self.store, UV_PYTHON_DOWNLOADS="never")
        yield from self._call("installing", argv, variables)

    def _install_with_pip(self, target: str) -> Iterator[Json]:
        """Make a virtual environment and install into it, checking the hashes if there are any."""
        base = base_python(self.request.get("python"))
        if base["path"] is None:
            raise self.failed("no python", "there is no such Python")
        steps, pip = venv_steps(base["path"], target)
        if not steps:
            words = "%s cannot make an environment" % base["path"]
            raise self.failed("no ensurepip", words)
        for step in steps:
            yield from self._call("making it", step)
        source: List[str] = []
        if self.store:
            source = ["--no-index", "--find-links", self.store]
        install = [*pip, *PIP_OPTIONS]
        if not has_hashes(self.files):
            argv = [*install, *wanted(self.files), *source]
            yield from self._call("installing", argv)
            return
        for step in newer_pip(pip):
            yield from self._call("making it", [*step, *source])
        argv = [*install, *choice(self.files), *source]
        yield from self._call("choosing packages", argv)
        try:
            exactly = pinned(self.files)
        except ValueError as error:
            raise self.failed("not pinned", str(error)) from error
        yield from self._call("installing", [*install, *exactly, *source])

    def _install_with_pixi(self) -> Iterator[Json]:
        """Let pixi install in place."""
        pixi = self._needed("pixi")
        # A link leads to an environment made from a pack.
        if os.path.islink(self.folder):
            os.unlink(self.folder)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self.folder, STAMP))
        (manifest,) = [name for name in self.request["files"] if name.endswith(".toml")]
        argv = [pixi, "install", "--locked", "--environment", self.name]
        argv += ["--manifest-path", os.path.join(self.workspace, manifest)]
        yield from self._call("installing", argv)

    def _call(
        self, phase: str, argv: List[str], variables: Optional[Dict[str, str]] = None
    ) -> Generator[Json, None, None]:
        """Run an installer's program in the recipe's folder; refuses with "failed" if it fails."""
        environ = own_variables()
        environ.update(variables or {})
        folder = self.workspace or self.files
        code = yield from self.runner.call(phase, argv, environ, folder)
        if code:
            program = os.path.basename(argv[0])
            raise self.failed(phase, "%s ended with exit code %d" % (program, code))

    def _needed(self, program: str) -> str:
        """Return the path of a program; refuses with "failed" if it is missing."""
        path = find_program(program)
        if path is None:
            raise self.failed("no %s" % program, "%s was not found" % program)
        return path

    def _stamp_for(self, place: str) -> Json:
        """Make the stamp of a new environment; refuses with "failed" if its Python fails."""
        made_at = time.time()
        python = os.path.join(place, "bin", "python")
        answer = run_later([python, "-c", LOOK_AT_TORCH])()
        if answer["code"] != 0:
            raise self.failed("broken", answer["stderr"].strip())
        found = json.loads(answer["stdout"])
        program: Optional[str] = None
        if self.manager != "venv":
            program = find_program(self.manager)
        return {
            "manager": self.manager,
            "digest": self.request["digest"],
            "made_at": made_at,
            "python": found.get("python"),
            "torch": found.get("torch"),
            "cuda": found.get("cuda"),
            "version": version_of(program),
            "seconds": time.monotonic() - self.runner.begun,
        }

    def _switch_to(self, place: str) -> None:
        """Make FOLDER a link to `place`, and put the former FOLDER away."""
        parent = os.path.dirname(self.folder)
        link = os.path.join(self.work, "link")
        replaced = os.path.join(self.work, "replaced")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(link)
        os.makedirs(parent, exist_ok=True)
        os.symlink(os.path.relpath(place, parent), link)
        if os.path.isdir(self.folder) and not os.path.islink(self.folder):
            os.rename(self.folder, replaced)
        os.replace(link, self.folder)
        if os.path.lexists(replaced):
            self._put_away(replaced)

    def _put_away(self, replaced: str) -> None:
        """Remove a former environment of UGRO's; keep any other folder under another name."""
        has_older_stamp = os.path.exists(os.path.join(replaced, OLDER_STAMP))
        if has_older_stamp or stamp_of(replaced):
            # The next `_tidy` removes it.
            name = "env-old-%x" % time.time_ns()
            os.rename(replaced, os.path.join(self.work, name))
            return
        kept = "%s.before" % self.folder
        number = 0
        while os.path.lexists(kept):
            number += 1
            kept = "%s.before%d" % (self.folder, number)
        os.rename(replaced, kept)
        self.kept = kept


def size_of(folder: str) -> int:
    """Return the bytes of all files below a folder."""
    found = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                found += os.lstat(os.path.join(parent, name)).st_size
    return found


def read_bytes(path: str) -> bytes:
    """Read a whole file."""
    with open(path, "rb") as file:
        return file.read()
