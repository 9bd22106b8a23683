"""The documents say what is so: every command, flag and exit code stands in them, and what they show is real."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from invoke.parser.argument import Argument
from invoke.parser.context import ParserContext

from tasks import ns
from ugro_tasks.cli.task import TaskFailed
from ugro_tasks.cluster.file import read_cluster_file
from ugro_tasks.errors import JobEnded, SeveralErrors, UgroError

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
ARCHITECTURE = (ROOT / "docs" / "ARCHITECTURE.md").read_text("utf-8")
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
TASKS: dict[str, Any] = {name: ns[name] for name in ns.task_names}
# Asked of a fresh interpreter: Invoke gives the help of a task only once.
ASK_FOR_HELP = """
import json
from tasks import ns
print(json.dumps({name: {a.name: a.help for a in ns[name].get_arguments()} for name in ns.task_names}))
"""
HELP: dict[str, dict[str, str]] = json.loads(
    subprocess.run([sys.executable, "-c", ASK_FOR_HELP], cwd=ROOT, check=True, capture_output=True).stdout
)
# In every picture that rich makes.
URL_HOSTS = {"www.w3.org", "www.textualize.io"}
KNOWN_FOLDERS = {"", "dev", "etc", "home", "proc", "root", "run", "tmp", "usr", "var"}


def kinds_of(error: type[UgroError]) -> list[type[UgroError]]:
    """The classes below one, without those that have the exit code of the error that they stand for."""
    kinds = [error, *(kind for child in error.__subclasses__() for kind in kinds_of(child))]
    return [kind for kind in kinds if kind not in {JobEnded, SeveralErrors, TaskFailed}]


def context_of(name: str) -> ParserContext:
    """What the parser knows of a task."""
    return ParserContext(name, args=TASKS[name].get_arguments())


def flags_of(name: str) -> dict[str, Argument]:
    """{--flag: argument} of a task, without what is given as a bare word."""
    return {
        flag: argument
        for flag, argument in context_of(name).flags.items()
        if flag.startswith("--") and not argument.positional
    }


def section(name: str) -> str:
    """What the README says of a command."""
    found = re.search(rf"^### {name}\n(.*?)(?=^##)", README, re.M | re.S)
    assert found, f"the README has no section `### {name}`"
    return found[1]


def code_lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.startswith("    ")]


def examples() -> list[str]:
    """Every command in the README that calls a task."""
    pattern = re.compile(r"(?:bin/ugro|ugro|inv) ([a-z][a-z-]*.*)")
    return [found[1] for line in code_lines(README) if (found := pattern.match(line))]


def anchor(heading: str) -> str:
    """As the usual viewers make it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def links() -> list[tuple[Path, str]]:
    pattern = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
    return [(path, target) for path in DOCUMENTS for target in pattern.findall(path.read_text("utf-8"))]


@pytest.mark.parametrize("name", TASKS)
def test_a_task_has_help(name: str) -> None:
    assert (TASKS[name].__doc__ or "").strip()


@pytest.mark.parametrize("name", TASKS)
def test_every_flag_of_a_task_has_help(name: str) -> None:
    assert [flag for flag, words in HELP[name].items() if not words] == []


@pytest.mark.parametrize("name", TASKS)
def test_a_task_stands_in_the_readme_with_an_example(name: str) -> None:
    assert any(re.match(rf"(bin/ugro|ugro|inv) {name}\b", line) for line in code_lines(section(name))), (
        f"no example of {name}"
    )


@pytest.mark.parametrize("name", TASKS)
def test_every_flag_of_a_task_stands_in_its_section(name: str) -> None:
    said = set(re.findall(r"--[a-z][a-z-]*", section(name)))
    assert [flag for flag in flags_of(name) if flag not in said and f"--no-{flag[2:]}" not in said] == []


@pytest.mark.parametrize("example", examples())
def test_an_example_uses_only_what_there_is(example: str) -> None:
    name, *words = re.sub(r'"[^"]*"', "text", example.split(" -- ")[0].split(" | ")[0]).split()
    used = {word for word in words if word.startswith("--")}
    assert used <= {*flags_of(name), *context_of(name).inverse_flags}


@pytest.mark.parametrize("error", kinds_of(UgroError), ids=lambda error: error.__name__)
def test_an_error_stands_in_the_readme_with_its_exit_code(error: type[UgroError]) -> None:
    assert re.search(rf"^\| {error.exit_code} \| `{error.__name__}` \| \S", README, re.M)


def test_the_readme_has_no_exit_code_that_no_error_has() -> None:
    said = set(re.findall(r"^\| (\d+) \| `(\w+)` \|", README, re.M))
    assert said == {(str(error.exit_code), error.__name__) for error in kinds_of(UgroError)}


@pytest.mark.parametrize("place", range(len(re.findall(r"^```yaml$", README, re.M))))
def test_a_cluster_file_in_the_readme_can_be_used(place: int, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(re.findall(r"^```yaml\n(.*?)^```$", README, re.M | re.S)[place])
    cluster = read_cluster_file(path, {"USER": "me", "HOME": str(tmp_path)})
    assert [(node.name, node.rank) for node in cluster.nodes] == [("gpu-master", 0), ("gpu1", 1), ("gpu2", 2)]


@pytest.mark.parametrize(("document", "target"), links(), ids=lambda value: getattr(value, "name", value))
def test_a_link_leads_somewhere(document: Path, target: str) -> None:
    path, _, heading = target.partition("#")
    there = (document.parent / path).resolve() if path else document
    assert there.is_relative_to(ROOT)
    assert there.exists()
    if heading:
        assert heading in {
            anchor(title) for title in re.findall(r"^#+ (.*)$", there.read_text("utf-8"), re.M)
        }


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([\w/]+\.py)`", ARCHITECTURE))))
def test_a_module_that_is_named_is_there(name: str) -> None:
    assert (ROOT / name).exists() or (ROOT / "ugro_tasks" / name).exists()


def test_every_room_stands_in_the_house() -> None:
    house = ARCHITECTURE.partition("## The house")[2].partition("\n## ")[0]
    rooms = {path.parent.name for path in (ROOT / "ugro_tasks").glob("*/__init__.py")}
    grounds = {path.stem for path in (ROOT / "ugro_tasks").glob("*.py")} - {"__init__"}
    assert {name for name in rooms | grounds if not re.search(rf"\b{name}\b", house)} == set()


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / "docs" / "run.svg"], ids=lambda path: path.name)
def test_a_document_names_no_address_in_the_internet(path: Path) -> None:
    assert set(re.findall(r"https?://([^/\s\"')]+)", path.read_text("utf-8"))) <= URL_HOSTS


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / "docs" / "run.svg"], ids=lambda path: path.name)
def test_a_document_names_only_folders_that_any_machine_has(path: Path) -> None:
    text = (
        re.sub(r"<[^>]*>", " ", path.read_text("utf-8")) if path.suffix == ".svg" else path.read_text("utf-8")
    )
    named = re.findall(r"(?:^|[\s\"'`=(:])/([a-z0-9_.-]+)(?=/)", text, re.M)
    assert {name for name in named if name not in KNOWN_FOLDERS} == set()
