"""Files between this machine and a host: by rsync and over the connection, with the same outcome."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import Lab, LabHost
from tests.hosts.helpers import error_of, login_runs, rsync_says, ssh_config
from ugro_tasks.errors import HostUnreachable, NodeFault
from ugro_tasks.hosts.copy import Copy
from ugro_tasks.hosts.host import Host
from ugro_tasks.hosts.rsync import Rsync, RsyncUnusable, rsync_fault_here
from ugro_tasks.hosts.transfer import Transfer

Login = Callable[..., Host]
Way = type[Rsync] | type[Copy]

NAMES = [
    "a b",
    "it's",
    'say "hi"',
    "$(touch injected)",
    "-delete",
    "blåbær",
    "two\nlines",
    "*",
    "a\\b",
    "#x",
]


@pytest.fixture(params=[pytest.param(Rsync, marks=pytest.mark.needs("rsync")), Copy])
def way(request: pytest.FixtureRequest) -> Way:
    chosen: Way = request.param
    return chosen


@pytest.fixture
def folder(hosts: list[LabHost]) -> str:
    """An empty folder on lab0 whose name needs care."""
    path = f"{hosts[0].home}/my $files; here"
    hosts[0].remove(path)
    hosts[0].run(["mkdir", path])
    return path


def test_push_brings_every_name(
    way: Way, login: Login, hosts: list[LabHost], folder: str, tmp_path: Path
) -> None:
    for name in NAMES:
        (tmp_path / name).write_text(name)
    way(login()).push(f"{tmp_path}/", folder)
    there = hosts[0].path(Path(folder).name)
    assert sorted(path.name for path in there.iterdir()) == sorted(NAMES)
    assert all((there / name).read_text() == name for name in NAMES)


def test_pull_brings_every_name(
    way: Way, login: Login, hosts: list[LabHost], folder: str, tmp_path: Path
) -> None:
    for name in NAMES:
        hosts[0].run(["tee", f"{folder}/{name}"], input=name)
    way(login()).pull(f"{folder}/", str(tmp_path / "my results"))
    assert sorted(path.name for path in (tmp_path / "my results").iterdir()) == sorted(
        NAMES
    )


def test_push_with_delete_removes_what_is_not_here(
    way: Way, login: Login, hosts: list[LabHost], folder: str, tmp_path: Path
) -> None:
    (tmp_path / "new").touch()
    hosts[0].run(["touch", f"{folder}/old", f"{folder}/kept"])
    way(login()).push(f"{tmp_path}/", folder, exclude=["kept"], delete=True)
    assert sorted(path.name for path in hosts[0].path(Path(folder).name).iterdir()) == [
        "kept",
        "new",
    ]


def test_pull_leaves_out_what_is_excluded(
    way: Way, login: Login, hosts: list[LabHost], folder: str, tmp_path: Path
) -> None:
    hosts[0].run(["touch", f"{folder}/wanted", f"{folder}/secret file"])
    way(login()).pull(f"{folder}/", str(tmp_path / "here"), exclude=["secret *"])
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["wanted"]


def test_pull_does_not_bring_links_that_lead_outside(
    way: Way, login: Login, hosts: list[LabHost], folder: str, tmp_path: Path
) -> None:
    hosts[0].run(
        [
            "sh",
            "-c",
            'cd "$1"; touch file; ln -s file in; ln -s ../../etc out',
            "sh",
            folder,
        ]
    )
    hosts[0].run(["ln", "-s", "/proc/version", f"{folder}/absolute"])
    hosts[0].run(["mkfifo", f"{folder}/pipe"])
    way(login()).pull(f"{folder}/", str(tmp_path / "here"))
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["file", "in"]


def test_pull_tells_how_far_it_is(
    way: Way, login: Login, hosts: list[LabHost], folder: str, tmp_path: Path
) -> None:
    hosts[0].run(["dd", "if=/dev/urandom", f"of={folder}/big", "bs=1M", "count=20"])
    told: list[int] = []
    way(login()).pull(f"{folder}/", str(tmp_path / "here"), progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 100


def test_pull_keeps_modes_and_times(
    way: Way, login: Login, hosts: list[LabHost], folder: str, tmp_path: Path
) -> None:
    hosts[0].run(
        [
            "sh",
            "-c",
            'cd "$1"; mkdir -m 750 deep; echo x > deep/file; chmod 640 deep/file',
            "sh",
            folder,
        ]
    )
    hosts[0].run(
        ["touch", "-d", "2020-01-02 03:04:05", f"{folder}/deep/file", f"{folder}/deep"]
    )
    way(login()).pull(f"{folder}/", str(tmp_path / "here"))
    there = hosts[0].path(Path(folder).name)
    for name in ("deep", "deep/file"):
        ours, theirs = (tmp_path / "here" / name).stat(), (there / name).stat()
        assert (ours.st_mode, ours.st_mtime_ns) == (theirs.st_mode, theirs.st_mtime_ns)


def test_a_slow_login_may_be_slower_than_a_look_at_the_disk(
    way: Way, login: Login, hosts: list[LabHost], folder: str, tmp_path: Path
) -> None:
    """The folder here is made only when the other side has answered."""
    (hosts[0].path(Path(folder).name) / "file").write_text("x")
    with login_runs(hosts[0], "sleep 1.5"):
        way(login()).pull(f"{folder}/", str(tmp_path / "here"))
    assert (tmp_path / "here" / "file").read_text() == "x"


@pytest.mark.needs("rsync")
def test_what_one_way_brought_the_other_does_not_bring_again(
    login: Login, hosts: list[LabHost], folder: str, tmp_path: Path
) -> None:
    hosts[0].run(
        [
            "sh",
            "-c",
            'cd "$1"; mkdir deep; head -c 3000000 /dev/urandom > deep/file',
            "sh",
            folder,
        ]
    )
    host, here = login(), str(tmp_path / "here")
    assert Copy(host).bytes_to_come(f"{folder}/", here) == 3_000_000
    assert Rsync(host).bytes_to_come(f"{folder}/", here) == 3_000_000
    Rsync(host).pull(f"{folder}/", here)
    assert Copy(host).bytes_to_come(f"{folder}/", here) == 0
    shutil.rmtree(here)
    Copy(host).pull(f"{folder}/", here)
    assert Rsync(host).bytes_to_come(f"{folder}/", here) == 0


UNUSABLE = {
    "no rsync": "#!/bin/sh\nexit 127\n",
    "one that may not be run": "#!/nowhere\n",
    "openrsync": "#!/bin/sh\necho \"rsync: unrecognized option '--server'\" >&2; exit 1\n",
    "2.6.9": "#!/bin/sh\necho 'rsync: -s: unknown option' >&2; exit 1\n",
    "another protocol": "#!/bin/sh\necho hello\n",
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_without_an_rsync_that_serves_on_the_node_files_travel_all_the_same(
    login: Login, hosts: list[LabHost], folder: str, tmp_path: Path, kind: str
) -> None:
    hosts[0].run(["sh", "-c", 'head -c 1000000 /dev/urandom > "$1/file"', "sh", folder])
    host, there, here = login(), hosts[0].path(Path(folder).name), tmp_path / "here"
    here.mkdir()
    with rsync_says(hosts[0], UNUSABLE[kind]):
        with pytest.raises((RsyncUnusable, HostUnreachable)):
            Rsync(host).pull(f"{folder}/", str(here))
        Transfer(host).pull(f"{folder}/", str(here))
        Transfer(host).push(f"{here}/", f"{folder}/back")
    assert (here / "file").read_bytes() == (there / "file").read_bytes()
    assert (there / "back" / "file").read_bytes() == (there / "file").read_bytes()


def test_through_a_shell_that_talks_files_travel_all_the_same(
    login: Login, hosts: list[LabHost], folder: str, tmp_path: Path
) -> None:
    hosts[0].run(["tee", f"{folder}/file"], input="content")
    (tmp_path / "here").mkdir()
    with login_runs(hosts[0], "echo Welcome to lab0!"):
        Transfer(login()).pull(f"{folder}/", str(tmp_path / "here"))
    assert (tmp_path / "here" / "file").read_text() == "content"


SSH_CONFIGS = {
    "a remote command": ["RemoteCommand tmux new -A -s main", "RequestTTY yes"],
    "a terminal": ["RequestTTY force"],
    "a local command": ["PermitLocalCommand yes", "LocalCommand echo connected to %h"],
    "a port that is taken": [
        "LocalForward {taken} localhost:6006",
        "ExitOnForwardFailure yes",
    ],
}


@pytest.mark.parametrize("kind", SSH_CONFIGS)
def test_what_a_users_ssh_does_beside_keeps_no_file_away(
    login: Login,
    home: Lab,
    hosts: list[LabHost],
    folder: str,
    tmp_path: Path,
    kind: str,
) -> None:
    hosts[0].run(["tee", f"{folder}/file"], input="content")
    (tmp_path / "here").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = str(listener.getsockname()[1])
        lines = [line.replace("{taken}", taken) for line in SSH_CONFIGS[kind]]
        ssh_config(home, "Host 10.*", *lines)
        Transfer(login()).pull(f"{folder}/", str(tmp_path / "here"))
    assert (tmp_path / "here" / "file").read_text() == "content"


OPENRSYNC = "openrsync: protocol version 29\nrsync version 2.6.9 compatible\n"
TOO_OLD = "rsync  version 3.0.9  protocol version 30\nCopyright (C) 1996-2011\n"


@pytest.mark.parametrize(
    ("says", "fault"),
    [
        (None, "not installed"),
        (OPENRSYNC, "openrsync"),
        (TOO_OLD, "too old (3.0)"),
        ("hello\n", "another program"),
    ],
)
def test_without_an_rsync_that_serves_here_files_travel_all_the_same(
    login: Login,
    hosts: list[LabHost],
    folder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    says: str | None,
    fault: str,
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    if says:
        (programs / "rsync").write_text(f"#!/bin/sh\nprintf '{says}'\n")
        (programs / "rsync").chmod(0o755)
    for program in ("ssh", "ssh-keygen"):
        found = shutil.which(program)
        assert found
        (programs / program).symlink_to(found)
    monkeypatch.setenv("PATH", str(programs))
    assert fault in (rsync_fault_here() or "")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("content")
    Transfer(login()).push(f"{tmp_path}/out/", f"{folder}/in")
    Transfer(login()).pull(f"{folder}/", str(tmp_path / "here"))
    assert (tmp_path / "here" / "in" / "file").read_text() == "content"


def test_a_transfer_that_broke_off_goes_on_where_it_did(
    login: Login, hosts: list[LabHost], folder: str, tmp_path: Path
) -> None:
    size = 40 << 20
    hosts[0].run(["sh", "-c", f'head -c {size} /dev/urandom > "$1/big"', "sh", folder])
    host = login()

    def cut(percent: int) -> None:
        if percent > 30:
            host.close()

    error = error_of(
        lambda: Copy(host).pull(f"{folder}/", str(tmp_path / "here"), progress=cut)
    )
    assert isinstance(error, HostUnreachable | NodeFault)
    came = (tmp_path / "here" / ".ugro-partial" / "big").stat().st_size
    assert 0 < came < size
    assert not (tmp_path / "here" / "big").exists()
    assert Copy(host).bytes_to_come(f"{folder}/", str(tmp_path / "here")) == size - came
    Copy(host).pull(f"{folder}/", str(tmp_path / "here"))
    assert (tmp_path / "here" / "big").read_bytes() == hosts[0].path(
        f"{Path(folder).name}/big"
    ).read_bytes()
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["big"]


def test_a_folder_that_is_not_there_is_the_nodes_fault(
    way: Way, login: Login, tmp_path: Path
) -> None:
    error = error_of(lambda: way(login()).pull("/no/such/folder/", str(tmp_path)))
    assert isinstance(error, NodeFault)
    assert "/no/such/folder" in error.text


def test_rsync_to_a_host_that_refuses_is_unreachable(
    way: Way, login: Login, hosts: list[LabHost], tmp_path: Path
) -> None:
    hosts[0].stop_sshd()
    error = error_of(lambda: way(login()).push(f"{tmp_path}/", "/tmp/x"))
    assert isinstance(error, HostUnreachable)
    assert "refused" in error.text


def test_rsync_verifies_the_host_key(
    way: Way, login: Login, home: Lab, hosts: list[LabHost], tmp_path: Path
) -> None:
    home.known_hosts.write_text(f"{hosts[0].address} {hosts[1].public_key}\n")
    (tmp_path / "file").touch()
    assert error_of(lambda: way(login()).push(f"{tmp_path}/", "/tmp/unverified"))
    hosts[0].run(["test", "!", "-e", "/tmp/unverified"])


@pytest.mark.needs("rsync")
def test_a_pull_that_is_broken_off_leaves_no_process_at_work(
    login: Login, hosts: list[LabHost], folder: str, tmp_path: Path
) -> None:
    """rsync receives in a second process, which would make folders after all is cleaned up."""
    hosts[0].run(["truncate", "--size", "400M", f"{folder}/large"])
    target = tmp_path / "target"

    def interrupt(percent: int) -> None:
        if percent > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Rsync(login()).pull(f"{folder}/", str(target), progress=interrupt)
    words = [file.read_bytes() for file in Path("/proc").glob("[0-9]*/cmdline")]
    assert [word for word in words if bytes(target) in word] == []
