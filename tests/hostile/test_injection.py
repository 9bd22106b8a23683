"""No string that a user writes or a node says is ever run by a shell: over real SSH, with a mark that would be left."""

from __future__ import annotations

import contextlib
import os
import shlex
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
import yaml

from lab import Lab, LabHost
from lab.ugro import Ugro
from ugro_tasks.cluster.model import Cluster
from ugro_tasks.errors import HostError
from ugro_tasks.hosts.fleet import connect
from ugro_tasks.hosts.operations import MakeFolder
from ugro_tasks.hosts.requests import ask
from ugro_tasks.hosts.rsync import Rsync

WORDS = [
    "$(touch {mark})",
    "`touch {mark}`",
    "; touch {mark} #",
    "&& touch {mark}",
    "| touch {mark}",
    "' ; touch {mark} ; '",
    '" ; touch {mark} ; "',
    "\\$(touch {mark})",
    "\n touch {mark}\n",
    "${{IFS}}",
    "a b",
    "*",
    "~",
    "!x",
    "%s",
    "\t",
    "é\u202e",
]


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that must not appear, neither here nor on a host: the tests' folder is the same on all."""
    return tmp_path / "owned"


def test_every_word_of_a_command_arrives_as_it_is(cluster: Cluster, mark: Path) -> None:
    words = [word.format(mark=mark) for word in WORDS]
    with closing(connect(cluster.nodes[0], 1.0)) as host:
        said = host.run(["printf", "%s\\0", *words])
    assert said.decode().split("\0")[:-1] == words
    assert not mark.exists()


# In the name of a folder a slash would be no part of the name.
NAME = """pro ject'"$(touch owned)`touch owned`;|&*?[x]~!\\%s{a,b}#"""


@pytest.mark.needs("rsync")
def test_a_folder_called_a_command_is_only_a_folder(
    cluster: Cluster, tmp_path: Path, hosts: list[LabHost]
) -> None:
    """A project's folder, and with it all that rsync is told, both ways."""
    node = msgspec.structs.replace(cluster.nodes[0], project=f"~/{NAME}")
    for name in ("out", "back"):
        (tmp_path / name).mkdir()
    (tmp_path / "out" / "file").write_text("x")
    with closing(connect(node, 1.0)) as host:
        ask(host, MakeFolder(project=f"{node.project}/to"))
        Rsync(host).push(
            f"{tmp_path}/out/",
            f"{node.project}/to/",
            link_from=[f"../{NAME}"],
            files=["file"],
        )
        Rsync(host).pull(f"{node.project}/to/", f"{tmp_path}/back/", gently=True)
    assert (tmp_path / "back" / "file").read_text() == "x"
    assert hosts[0].path(f"{NAME}/to/file").exists()
    for folder in (Path.cwd(), hosts[0].path(""), hosts[0].path(f"{NAME}/to")):
        assert "owned" not in os.listdir(folder)


@pytest.mark.needs("rsync")
@pytest.mark.parametrize("key", ["user", "jump"])
def test_what_a_node_is_reached_by_is_never_a_command(
    cluster: Cluster, mark: Path, key: str
) -> None:
    """Even where nobody has checked it: in a record that somebody else wrote, say."""
    for word in ("-oProxyCommand=touch {mark}", "$(touch {mark})"):
        node = msgspec.structs.replace(
            cluster.nodes[0], **{key: word.format(mark=mark)}
        )
        with (
            contextlib.suppress(HostError, ValueError),
            closing(connect(node, 0.5)) as host,
        ):
            Rsync(host).pull("/nowhere/", f"{mark.parent}/")
        with (
            contextlib.suppress(HostError, ValueError),
            closing(connect(node, 0.5)) as host,
        ):
            host.run(["true"])
        assert not mark.exists(), word


def test_a_launch_hands_every_word_to_the_script_and_to_no_shell(
    lab: Lab, hosts: list[LabHost], tmp_path: Path, mark: Path
) -> None:
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "tell.py").write_text(
        "import json, os, sys\n"
        "told = {'argv': sys.argv[1:], 'env': {k: os.environ.get(k) for k in ('A', 'B')}, 'cwd': os.getcwd()}\n"
        "open(os.path.join(os.environ['UGRO_OUTPUT_DIR'], 'told.json'), 'w').write(json.dumps(told))\n"
        "os.makedirs(os.path.join(os.environ['UGRO_OUTPUT_DIR'], 'checkpoints'))\n"
        "sys.stdout.flush(); os._exit(0)\n"
    )
    ugro = Ugro(lab, tmp_path, scripts, hosts=1)
    document = yaml.safe_load(ugro.cluster_file.read_text())
    document["cluster"]["master"]["paths"] = {"project": f"~/{NAME}"}
    python = Path(document["environment"]["python"])
    odd = tmp_path / "py'thon $(touch owned)"
    odd.mkdir()
    (odd / "run me").write_text(f'#!/bin/sh\nexec {shlex.quote(str(python))} "$@"\n')
    (odd / "run me").chmod(0o755)
    document["environment"]["python"] = str(odd / "run me")
    document["training"] = {"default_script": "tell.py"}
    ugro.cluster_file.write_text(yaml.safe_dump(document))
    words = [word.format(mark=mark) for word in WORDS]
    model = f"m $(touch {mark})"
    done = ugro.run(
        "launch",
        "--name",
        "n",
        "--model",
        model,
        "--dataset",
        f"d;touch {mark}",
        "--args",
        shlex.join(words),
        f"--env=A={words[0]}",
        f"--env=B={words[8]}",
        "--force",
    )
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        told = yaml.safe_load(
            (ugro.job("n").folder / "outputs/0/told.json").read_text()
        )
        assert told["argv"][-len(words) :] == words
        assert model in told["argv"]
        assert told["env"] == {"A": words[0], "B": words[8]}
        assert f"/{NAME}/" in told["cwd"]
    finally:
        ugro.close()
    assert not mark.exists()
    for folder in (
        Path.cwd(),
        tmp_path,
        lab.home,
        hosts[0].path(""),
        hosts[0].path(NAME),
    ):
        assert "owned" not in os.listdir(folder)
