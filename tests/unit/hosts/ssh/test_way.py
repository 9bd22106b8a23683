"""What `ssh -G` is asked; the programs here are stand-ins, the lab has the real one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.factories import make_node
from ugro_tasks.errors import HostUnreachable
from ugro_tasks.hosts.ssh import way as ssh_way
from ugro_tasks.hosts.ssh.way import way_to

NODE = make_node(address="10.0.0.1", name="gpu1", hostname="gpu1.lan")
# It answers with the Host sections of a file: HOST KEYWORD VALUE in each line, * for all hosts.
SSH = """#!/bin/sh
echo "$*" >> "$0.asked"
for host; do :; done
host=${host#ssh://}
user=; [ "${host#*@}" = "$host" ] || user=${host%%@*}
host=${host#*@}
name=$(sed -n "s/^$host hostname //p" "$0.hosts")
printf 'host %s\\nhostname %s\\nport 22\\nuser %s\\n' "$host" "${name:-$host}" "${user:-me}"
sed -n -e "/^$host hostname /d" -e "s/^$host //p" -e "s/^[*] //p" "$0.hosts" | sed "s/%h/$host/g"
"""


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for ssh that knows no host yet; what it is asked stands in `ssh.asked`."""
    program = tmp_path / "ssh"
    program.write_text(SSH)
    program.chmod(0o755)
    (tmp_path / "ssh.hosts").touch()
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(ssh_way, "_NOBODY", ssh_way._Nobody())
    return program


def knows(ssh: Path, *lines: str) -> None:
    ssh.with_name("ssh.hosts").write_text("".join(f"{line}\n" for line in lines))


def word_of(**changes: Any) -> str:
    """What ssh would be asked for last."""
    (config,) = way_to(make_node(**{"address": "10.0.0.1", "name": "gpu1"} | changes))
    return config.words[-1]


def test_a_name_that_is_nowhere_is_not_asked_for(ssh: Path) -> None:
    assert word_of(hostname="gpu1.lan") == "10.0.0.1"


@pytest.mark.parametrize(
    "line",
    [
        "gpu1.lan hostname 192.0.2.7",
        "gpu1.lan port 2222",
        "gpu1.lan proxyjump way",
        "gpu1.lan identityfile ~/.ssh/lab",
    ],
)
def test_a_hostname_that_ssh_knows_is_asked_for(ssh: Path, line: str) -> None:
    if "proxyjump" in line:
        knows(ssh, line)
        way = way_to(make_node(address="10.0.0.1", name="gpu1", hostname="gpu1.lan"))
        assert [config.words[-1] for config in way] == ["way", "gpu1.lan"]
        return
    knows(ssh, line)
    assert word_of(hostname="gpu1.lan") == "gpu1.lan"


def test_the_nodes_own_name_is_asked_for_where_the_hostname_is_nowhere(
    ssh: Path,
) -> None:
    knows(ssh, "gpu1 hostname 10.0.0.1")
    assert word_of(hostname="gpu1.lan") == "gpu1"


def test_another_machine_of_the_nodes_name_is_left_alone(ssh: Path) -> None:
    """What a node is called here is no promise about a name in the configuration."""
    knows(ssh, "gpu1 hostname 192.0.2.7")
    assert word_of(hostname="gpu1.lan") == "10.0.0.1"


def test_a_name_that_ssh_refuses_keeps_nobody_from_the_address(ssh: Path) -> None:
    """As `CanonicalizeFallbackLocal no` has it."""
    refusing = "case $* in *gpu1*|*no-host*) echo no such name >&2; exit 255; esac\n"
    ssh.write_text(SSH.replace("for host", f"{refusing}for host", 1))
    assert word_of(hostname="gpu1.lan") == "10.0.0.1"


@pytest.mark.parametrize(
    "line",
    [
        "* identityagent ~/.agents/%h.sock",
        "* controlpath ~/.ssh/%h-0123456789abcdef",
        "* user somebody",
    ],
)
def test_what_is_said_of_all_hosts_is_not_said_of_one(ssh: Path, line: str) -> None:
    knows(ssh, line)
    assert word_of(hostname="gpu1.lan") == "10.0.0.1"


def test_a_short_name_is_no_part_of_other_words(ssh: Path) -> None:
    knows(ssh, "* identityfile ~/.ssh/a/any")
    assert word_of(hostname="a") == "10.0.0.1"


def test_the_word_of_the_cluster_file_is_asked_for_alone(ssh: Path) -> None:
    assert word_of(ssh="jdoe@lab@front", user=None) == "jdoe@lab@front"
    asked = ssh.with_name("ssh.asked").read_text().splitlines()
    assert asked == ["-G -T jdoe@lab@front"]


def test_user_port_and_jump_host_of_the_cluster_file_go_before_the_word(
    ssh: Path,
) -> None:
    way = way_to(
        make_node(
            address="10.0.0.1",
            name="gpu1",
            user="LAB\\jdoe",
            ssh_port=2222,
            jump="me@way:22",
        )
    )
    assert way[-1].words == (
        "-l", "LAB\\jdoe", "-p", "2222", "-J", "me@way:22", "10.0.0.1",
    )  # fmt: skip


def test_nobody_is_asked_for_once_for_many_nodes(ssh: Path) -> None:
    for number in range(4):
        way_to(make_node(address=f"10.0.0.{number}", name=f"gpu{number}"))
    asked = ssh.with_name("ssh.asked").read_text()
    assert asked.count(ssh_way.NO_HOST) == 1


@pytest.mark.parametrize(
    ("jump", "words"),
    [
        ("way", ["way"]),
        ("me@way:2200", ["-l", "me", "-p", "2200", "way"]),
        ("jdoe@lab@[2001:db8::1]:22", ["-l", "jdoe@lab", "-p", "22", "2001:db8::1"]),
        ("LAB\\jdoe@way", ["-l", "LAB\\jdoe", "way"]),
        ("ssh://me%40lab@way:2200/", ["-l", "me@lab", "-p", "2200", "way"]),
    ],
)
def test_a_jump_host_is_asked_for_by_its_parts(jump: str, words: list[str]) -> None:
    assert ssh_way._jump_words(jump) == words


def test_jump_hosts_in_a_circle_end(ssh: Path) -> None:
    knows(ssh, "* proxyjump way")
    with pytest.raises(HostUnreachable, match="circle"):
        way_to(NODE)


def test_a_machine_without_ssh_is_told_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostUnreachable, match="ssh is not installed") as error:
        way_to(NODE)
    assert "openssh-client" in error.value.fix


def test_an_answer_that_does_not_come_is_not_waited_for(
    ssh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_way, "ASK_SECONDS", 0.2)
    ssh.write_text("#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(HostUnreachable, match="did not end"):
        way_to(NODE)


def test_a_refusal_of_ssh_is_told_in_its_words(ssh: Path) -> None:
    ssh.write_text("#!/bin/sh\necho line 3: bad option >&2; exit 255\n")
    with pytest.raises(HostUnreachable, match="line 3: bad option"):
        way_to(NODE)
