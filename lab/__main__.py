"""The lab by hand: python -m lab up|down|status."""

import argparse
import shlex
import sys
from pathlib import Path

from lab.lab import Lab
from lab.registry import STATE, LabStatus, default_folder, labs, remove, status
from lab.tools import LabError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m lab", description=Lab.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="bring up a lab and print how to use it")
    up.add_argument(
        "--hosts", type=int, default=3, metavar="N", help="how many (default: 3)"
    )
    up.add_argument(
        "--gpus", action="store_true", help="give each host a stand-in nvidia-smi"
    )
    down = commands.add_parser("down", help="end a lab and remove its folder")
    down.add_argument("--all", action="store_true", help="every lab of this machine")
    commands.add_parser("status", help="every lab of this machine")
    for command in (up, down):
        command.add_argument("--folder", type=Path, help=f"default: {default_folder()}")
    options = parser.parse_args()
    try:
        match options.command:
            case "up":
                show_use(bring_up(options))
            case "down":
                take_down(options)
            case "status":
                show_status(labs())
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    return 0


def bring_up(options: argparse.Namespace) -> Lab:
    if not 1 <= options.hosts <= 200:
        raise LabError(f"--hosts {options.hosts}: from 1 to 200")
    return Lab.up(options.folder or default_folder(), options.hosts, gpus=options.gpus)


def show_use(lab: Lab) -> None:
    for host in lab.hosts:
        print(f"# {host.name}  {host.address}  process 1: {host.pid}")
    print(f"# logs and keys: {lab.folder}")
    print(f"# a shell on a host: ssh -F {lab.ssh_config} {lab.hosts[0].address}")
    for name, value in lab.exports.items():
        print(f"export {name}={shlex.quote(value)}")
    print("unset SSH_AUTH_SOCK")


def take_down(options: argparse.Namespace) -> None:
    if options.all:
        for lab in labs():
            remove(lab.folder)
        return
    folder = (options.folder or default_folder()).resolve()
    found = status(folder)
    if found.number is None and not found.processes and not (folder / STATE).exists():
        raise LabError(f"no lab in {folder}; `python -m lab status` lists all")
    remove(folder)


def show_status(found: list[LabStatus]) -> None:
    for lab in found:
        state = (
            f"{len(lab.processes)} processes"
            if lab.processes
            else "left over, no process"
        )
        print(f"{lab.folder}  10.87.{lab.number}.0/24  {state}")
    if not found:
        print("no lab is up")


if __name__ == "__main__":
    sys.exit(main())
