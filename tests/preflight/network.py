"""Misfortunes of the network: names, interfaces, firewalls, ports, packets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from lab.tools import wait_until
from tests.chaos.nodes import listening
from tests.hosts.helpers import background, covered
from tests.preflight.stage import (
    LOCALHOST,
    TORCHRUN,
    Misfortune,
    Named,
    Stage,
    afterwards,
)

MASTER_PORT = 29500


# Of two ranks gloo lets the one with the lower address listen. So one host that gives 127.0.1.1 may do no harm by luck,
# and of two with such names one has to connect to the other.


@contextmanager
def own_names_are_loopback(stage: Stage) -> Iterator[None]:
    with ExitStack() as undo:
        for host in stage.hosts[:2]:
            undo.enter_context(
                covered(host, "/etc/hosts", f"{LOCALHOST}127.0.1.1 {host.name}\n")
            )
        yield


@contextmanager
def own_names_are_unknown(stage: Stage) -> Iterator[None]:
    silent = f"nameserver {stage.hosts[1].address}\noptions timeout:1 attempts:1\n"
    with ExitStack() as undo:
        for host in (stage.hosts[0], stage.hosts[2]):
            undo.enter_context(covered(host, "/etc/hosts", LOCALHOST))
            undo.enter_context(covered(host, "/etc/resolv.conf", silent))
            undo.enter_context(afterwards(host, "iptables -F OUTPUT"))
            host.run(
                ["iptables", "-A", "OUTPUT", "-p", "udp", "--dport", "53", "-j", "DROP"]
            )
        yield


@contextmanager
def second_interface(stage: Stage) -> Iterator[None]:
    """As a VPN makes it."""
    host = stage.hosts[1]
    with (
        covered(host, "/etc/hosts", f"{LOCALHOST}10.8.0.5 lab1\n"),
        afterwards(host, "ip link del tun0"),
    ):
        for words in (
            "link add tun0 type veth peer name tun0-far",
            "address add 10.8.0.5/24 dev tun0",
            "link set tun0-far up",
            "link set tun0 up",
            "route add default via 10.8.0.1 dev tun0",
        ):
            host.run(["ip", *words.split()])
        yield


@contextmanager
def second_address(stage: Stage) -> Iterator[None]:
    host = stage.hosts[1]
    own, other = (
        f"{address}/24 dev {host.interface}" for address in (host.address, "10.7.7.5")
    )
    with afterwards(host, f"ip address del {other}"):
        for words in (f"del {own}", f"add {other}", f"add {own}"):
            host.run(["ip", "address", *words.split()])
        yield


@contextmanager
def master_port_firewalled(stage: Stage) -> Iterator[None]:
    with afterwards(stage.hosts[0], "iptables -F INPUT"):
        stage.hosts[0].firewall(MASTER_PORT)
        yield


@contextmanager
def only_known_ports_let_in(stage: Stage) -> Iterator[None]:
    host = stage.hosts[1]
    with afterwards(host, "iptables -F INPUT"):
        for words in (
            "-m conntrack --ctstate ESTABLISHED -j ACCEPT",
            "-p tcp --dport 22 -j ACCEPT",
            f"-p tcp --dport {MASTER_PORT} -j ACCEPT",
            "-p tcp -j DROP",
        ):
            host.run(["iptables", "-A", "INPUT", *words.split()])
        yield


@contextmanager
def stale_torchrun(stage: Stage) -> Iterator[None]:
    """It waits for workers that never come, and holds the port meanwhile."""
    host = stage.hosts[0]
    words = f"--nnodes 2 --node-rank 0 --master-addr {host.address} --master-port {MASTER_PORT} --no-python sleep 60"
    with background(host, f"{TORCHRUN} {words}"):
        wait_until(
            lambda: MASTER_PORT in listening(host), "the stale torchrun to listen", 60
        )
        yield


@contextmanager
def other_mtu(stage: Stage) -> Iterator[None]:
    with mtu_of(stage, "1400", 1):
        yield


@contextmanager
def jumbo_frames_that_the_switch_drops(stage: Stage) -> Iterator[None]:
    with mtu_of(stage, "9000", 0, 1, 2), ExitStack() as undo:
        for host in stage.hosts:
            undo.enter_context(afterwards(host, "iptables -F INPUT"))
            for other in stage.hosts:
                long = ["-m", "length", "--length", "1501:65535", "-j", "DROP"]
                host.run(["iptables", "-A", "INPUT", "-s", other.address, *long])
        yield


@contextmanager
def mtu_of(stage: Stage, mtu: str, *indices: int) -> Iterator[None]:
    """These hosts' interfaces have another MTU."""
    with ExitStack() as undo:
        for index in indices:
            host = stage.hosts[index]
            link = f"ip link set dev {host.interface} mtu"
            undo.enter_context(afterwards(host, f"{link} 1500"))
            host.run([*link.split(), mtu])
        yield


@contextmanager
def one_machine_twice(stage: Stage) -> Iterator[None]:
    """The cluster file has lab1 a second time, by another of its addresses."""
    host = stage.hosts[1]
    other = stage.lab.subnet.replace(".0/24", ".77")
    known = stage.lab.known_hosts
    known.write_text(f"{known.read_text()}{other} {host.public_key}\n")
    stage.nodes[2]["ip"] = other
    with afterwards(host, f"ip address del {other}/24 dev {host.interface}"):
        host.run(f"ip address add {other}/24 dev {host.interface}".split())
        yield


# In this order: where several are made at once, each has a host of its own in the end.
NETWORK = [
    Misfortune(
        key="name-unknown",
        words="hosts do not resolve their own names, and no DNS server answers",
        make=own_names_are_unknown,
    ),
    Misfortune(
        key="name-127",
        words="hosts' own names are 127.0.1.1, as Debian has it",
        make=own_names_are_loopback,
    ),
    Misfortune(
        key="second-interface",
        words="a VPN has the default route, and the host's name",
        make=second_interface,
    ),
    Misfortune(
        key="second-address",
        words="an interface has another address before the node's",
        make=second_address,
        named=Named("lab1", "address", "10.7.7.5 comes first", "sudo ip address del"),
    ),
    Misfortune(
        key="port-firewalled",
        words="a firewall on the master drops what comes for the rendezvous port",
        make=master_port_firewalled,
        named=Named(
            "lab1", "master port", ":29500 does not: timed out", "sudo ufw allow from"
        ),
    ),
    Misfortune(
        key="ports-firewalled",
        words="a firewall on a worker lets in SSH and the rendezvous port, nothing else",
        make=only_known_ports_let_in,
        named=Named(
            "cluster", "peers", "lab0 does not reach lab1", "sudo ufw allow from"
        ),
    ),
    Misfortune(
        key="stale-torchrun",
        words="a torchrun of yesterday has the rendezvous port",
        make=stale_torchrun,
    ),
    Misfortune(
        key="mtu",
        words="one host has another MTU than the others",
        make=other_mtu,
        named=Named("cluster", "same MTU", "lab1 1400", "mtu 1500"),
    ),
    Misfortune(
        key="jumbo",
        words="all hosts have jumbo frames, and the switch drops them",
        make=jumbo_frames_that_the_switch_drops,
        named=Named(
            "cluster",
            "peers",
            "large packets between lab0 and lab1 are lost",
            "mtu 1500",
        ),
    ),
    Misfortune(
        key="twice",
        words="two nodes of the cluster file are one machine",
        make=one_machine_twice,
        named=Named(
            "cluster", "machines", "lab1 and lab2 are the same machine", "take it out"
        ),
        not_bare="a mistake in the cluster file",
    ),
]
