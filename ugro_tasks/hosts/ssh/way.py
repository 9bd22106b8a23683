"""The way to a node, jump hosts first: `ssh -G` is asked, and no configuration is read here."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from urllib.parse import unquote

from ...cluster.model import Node
from ...errors import HostUnreachable
from ..host import LAST_WORDS_CHARACTERS
from .config import SshConfig
from .errors import not_started

# A Match exec may ask something, and CanonicalizeHostname the name server.
ASK_SECONDS = 15.0
# The jump hosts on a way. More are a circle.
HOPS_AT_MOST = 8
# For nodes asked for together.
SAME_MOMENT_SECONDS = 1.0
# A name in no configuration, to tell what is said of a host from what is said of all.
NO_HOST = "no-host-of-any-ssh-config"

Answer = SshConfig | HostUnreachable


def way_to(node: Node) -> list[SshConfig]:
    """Ask OpenSSH for the way to a node: its jump hosts in order, and the node itself.

    Raises HostUnreachable if OpenSSH has no answer.
    """
    return list(_hops(node, _config_of(node)))


def _config_of(node: Node) -> SshConfig:
    """Ask for the node under the name that one would type.

    That is its `ssh`, else its hostname or name if OpenSSH knows more of it than of any name, else
    its address.
    """
    options = []
    given = set()
    if node.user:
        options += ["-l", node.user]
        given.add("user")
    if node.ssh_port:
        options += ["-p", str(node.ssh_port)]
        given.add("port")
    if node.jump:
        options += ["-J", node.jump]
        given |= {"proxyjump", "proxycommand"}
    if node.ssh:
        return _ask(node, [*options, node.ssh])
    names = dict.fromkeys(name for name in (node.hostname, node.name) if name)
    names[node.address] = None
    *by_name, by_address = _ask_all(node, [[*options, name] for name in names])
    nobody = _NOBODY.answer(node)
    if isinstance(nobody, HostUnreachable):
        return _answered(by_address)
    for config in by_name:
        if isinstance(config, HostUnreachable):
            continue
        # The node's own name is UGRO's; in the configuration it may be another machine.
        leads_there = config.words[-1] == node.hostname or config.host == node.address
        if leads_there and config.says_more_than(nobody, given):
            return config
    return _answered(by_address)


class _Nobody:
    """OpenSSH's answer for a name in no configuration, which is asked for once for many nodes."""

    def __init__(self) -> None:
        self._asking = threading.Lock()
        self._answer: Answer | None = None
        self._asked_at = 0.0

    def answer(self, node: Node) -> Answer:
        """Return the answer, asked anew if it is older than SAME_MOMENT_SECONDS."""
        with self._asking:
            age = time.monotonic() - self._asked_at
            if self._answer is None or age > SAME_MOMENT_SECONDS:
                (self._answer,) = _ask_all(node, [[NO_HOST]])
                self._asked_at = time.monotonic()
            return self._answer


_NOBODY = _Nobody()


def _hops(node: Node, config: SshConfig, depth: int = 0) -> Iterator[SshConfig]:
    """Yield the jump hosts before a host, and the host."""
    jumps = config.proxy_jump
    if depth > HOPS_AT_MOST:
        what = f"more than {HOPS_AT_MOST} jump hosts; the last one is {jumps}"
        raise HostUnreachable(node.name, what, "ProxyJump leads in a circle?")
    if jumps:
        before, _, last = jumps.rpartition(",")
        options = ["-J", before] if before else []
        jump_host = _ask(node, [*options, *_jump_words(last)])
        yield from _hops(node, jump_host, depth + 1)
    yield config


def _jump_words(jump: str) -> list[str]:
    """Return ssh's arguments for a jump host: [user@]host[:port], an IPv6 address in brackets, or a URI."""
    user, _, place = jump.removeprefix("ssh://").rstrip("/").rpartition("@")
    if jump.startswith("ssh://"):
        user = unquote(user)
    if place.startswith("["):
        host, _, port = place[1:].partition("]")
        port = port.removeprefix(":")
    else:
        host, _, port = place.partition(":")
    words = []
    if user:
        words += ["-l", user]
    if port:
        words += ["-p", port]
    return [*words, host]


def _ask(node: Node, words: Sequence[str]) -> SshConfig:
    """Ask `ssh -G`; raises HostUnreachable with its own words."""
    (answer,) = _ask_all(node, [words])
    return _answered(answer)


def _answered(answer: Answer) -> SshConfig:
    if isinstance(answer, HostUnreachable):
        raise answer
    return answer


def _ask_all(node: Node, questions: Sequence[Sequence[str]]) -> list[Answer]:
    """Ask `ssh -G` all questions at once; raises HostUnreachable if it cannot be asked."""
    with contextlib.ExitStack() as stack:
        asked = []
        for words in questions:
            process = stack.enter_context(_asking(node, words))
            asked.append((words, process))
        return [_answer(node, words, process) for words, process in asked]


@contextlib.contextmanager
def _asking(node: Node, words: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run `ssh -G` within the context."""
    try:
        process = subprocess.Popen(
            ["ssh", "-G", "-T", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except FileNotFoundError as error:
        what = "ssh is not installed on this machine"
        fix = "apt-get install openssh-client"
        raise HostUnreachable(node.name, what, fix) from error
    except OSError as error:
        raise not_started(node.name, error) from error
    with process:
        try:
            yield process
        finally:
            process.kill()


def _answer(
    node: Node, words: Sequence[str], process: subprocess.Popen[bytes]
) -> Answer:
    """Read the answer; a refusal or silence is an answer, too."""
    try:
        out, complaint = process.communicate(timeout=ASK_SECONDS)
    except subprocess.TimeoutExpired:
        what = f"ssh -G {words[-1]} did not end within {ASK_SECONDS:g} s"
        fix = "does a Match exec of your ssh configuration hang?"
        return HostUnreachable(node.name, what, fix)
    if process.returncode != 0:
        said = complaint.decode("utf-8", "replace").strip().splitlines()
        what = "; ".join(said)[:LAST_WORDS_CHARACTERS] or "no reason given"
        fix = f"your ssh configuration must be mended: ssh -G {words[-1]}"
        return HostUnreachable(node.name, f"ssh: {what}", fix)
    settings: dict[str, list[str]] = {}
    for line in out.decode("utf-8", "replace").splitlines():
        keyword, _, value = line.partition(" ")
        settings.setdefault(keyword.lower(), []).append(value)
    return SshConfig(words=tuple(words), settings=settings)
