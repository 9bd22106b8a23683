"""The documents say what is so: every command, flag and exit code stands in them, and what they show is real."""

import ast
import importlib
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from invoke.parser.argument import Argument
from invoke.parser.context import ParserContext

from dev import pages
from tasks import ns
from ugro_tasks import api
from ugro_tasks.cli.task import TaskFailed
from ugro_tasks.cluster.file import read_cluster_file
from ugro_tasks.errors import JobEnded, SeveralErrors, UgroError

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
COMMANDS = DOCS / "commands"
README = (ROOT / "README.md").read_text("utf-8")
README_LINES_MAX = 150
EXIT_CODES = (DOCS / "exit-codes.md").read_text("utf-8")
ARCHITECTURE = (DOCS / "ARCHITECTURE.md").read_text("utf-8")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
# What they tell was so on its day, and so are the commands in them.
LOGS = {DOCS / "decisions.md"}
TASKS: dict[str, Any] = {name: ns[name] for name in ns.task_names}
HELP = {
    name: {argument.name: argument.help for argument in task.get_arguments()}
    for name, task in TASKS.items()
}
# In every picture that rich makes.
URL_HOSTS = {"www.w3.org", "www.textualize.io"}
KNOWN_FOLDERS = {"", "dev", "etc", "home", "proc", "root", "run", "tmp", "usr", "var"}
PROGRAM = r"(?:\.venv/bin/|bin/)?(?:ugro|inv) "
# Flags of Invoke's own: those that come before a task, and those that come instead of one.
BEFORE_A_TASK = {"--dry", "--echo"}
INSTEAD_OF_A_TASK = {
    "--help",
    "--hide",
    "--list",
    "--print-completion-script",
    "--version",
    *BEFORE_A_TASK,
}


def kinds_of(error: type[UgroError]) -> list[type[UgroError]]:
    """The classes below one, without those that have the exit code of the error that they stand for."""
    kinds = [
        error,
        *(kind for child in error.__subclasses__() for kind in kinds_of(child)),
    ]
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


def page_of(name: str) -> str:
    """The page of a command."""
    return (COMMANDS / f"{name}.md").read_text("utf-8")


def code_lines(text: str) -> list[str]:
    """The lines of the code blocks, a command that goes on in the next line as one."""
    whole = re.sub(r"\\\n\s*", " ", text)
    fenced = re.findall(r"^```\w*\n(.*?)^```$", whole, re.M | re.S)
    indented = [line for line in whole.splitlines() if line.startswith("    ")]
    return [line.strip() for line in [*indented, *"".join(fenced).splitlines()]]


def examples() -> list[Any]:
    """Every command in the documents that calls a task: in a block of code, or in the midst of a sentence."""
    found = []
    for path in DOCUMENTS:
        if path in LOGS:
            continue
        text = path.read_text("utf-8")
        lines = [line.removeprefix("$ ") for line in code_lines(text)]
        sentences = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
        lines += [
            " ".join(code.split())
            for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", sentences)
        ]
        commands = [
            match[1] for line in lines if (match := re.match(PROGRAM + "(.+)", line))
        ]
        found += [
            pytest.param(command, id=f"{path.stem}: {command}")
            for command in dict.fromkeys(commands)
        ]
    return found


def anchor(heading: str) -> str:
    """As the usual viewers make it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def links() -> list[tuple[Path, str]]:
    pattern = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
    fenced = re.compile(r"^```.*?^```$", re.M | re.S)
    return [
        (path, target)
        for path in DOCUMENTS
        for target in pattern.findall(fenced.sub("", path.read_text("utf-8")))
    ]


def programs() -> list[Any]:
    """Every block of Python in the documents."""
    return [
        pytest.param(text, id=f"{path.stem}-{place}")
        for path in DOCUMENTS
        for place, text in enumerate(
            re.findall(r"^```python\n(.*?)^```$", path.read_text("utf-8"), re.M | re.S)
        )
    ]


def cluster_files() -> list[Any]:
    """Every cluster file in the documents: those in blocks of YAML, and those in files of their own."""
    found = [
        pytest.param(text, id=f"{path.stem}-{place}")
        for path in DOCUMENTS
        for place, text in enumerate(
            re.findall(r"^```yaml\n(.*?)^```$", path.read_text("utf-8"), re.M | re.S)
        )
    ]
    files = sorted((DOCS / "examples").glob("*.yaml"))
    return [
        *found,
        *(pytest.param(path.read_text("utf-8"), id=path.name) for path in files),
    ]


@pytest.mark.parametrize("name", TASKS)
def test_a_task_has_help(name: str) -> None:
    assert (TASKS[name].__doc__ or "").strip()


@pytest.mark.parametrize("name", TASKS)
def test_every_flag_of_a_task_has_help(name: str) -> None:
    assert [flag for flag, words in HELP[name].items() if not words] == []


@pytest.mark.parametrize("name", TASKS)
def test_a_task_has_a_page_with_an_example(name: str) -> None:
    assert any(
        re.match(rf"{PROGRAM}{name}\b", line) for line in code_lines(page_of(name))
    ), f"no example of {name}"


@pytest.mark.parametrize("name", TASKS)
def test_every_flag_of_a_task_stands_in_its_page(name: str) -> None:
    said = set(re.findall(r"--[a-z][a-z-]*", page_of(name)))
    assert [
        flag
        for flag in flags_of(name)
        if flag not in said and f"--no-{flag[2:]}" not in said
    ] == []


def test_a_page_of_a_command_is_of_one_that_there_is() -> None:
    assert {path.stem for path in COMMANDS.glob("*.md")} == {*TASKS, "index"}


def test_what_is_generated_in_the_pages_is_as_it_would_be_generated() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dev.pages", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_page_that_is_not_as_generated_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        f"# A page\n\nBefore.\n\n{pages.BEGIN}\nold\n{pages.END}\n\nAfter.\n"
    )
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    monkeypatch.setattr(pages, "pages", lambda: {page: pages.with_block(page, "new\n")})
    assert pages.main(["--check"]) == 1
    assert "old" in page.read_text()
    assert pages.main([]) == 0
    assert (
        page.read_text()
        == f"# A page\n\nBefore.\n\n{pages.BEGIN}\n\nnew\n\n{pages.END}\n\nAfter.\n"
    )
    assert pages.main(["--check"]) == 0


def test_a_page_without_its_marks_is_not_overwritten(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("by hand\n")
    with pytest.raises(ValueError, match="lost the marks"):
        pages.with_block(page, "new\n")


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= README_LINES_MAX


def test_every_page_is_linked_from_another() -> None:
    targets = {
        (path.parent / target.partition("#")[0]).resolve() for path, target in links()
    }
    assert {
        path for path in DOCUMENTS if path.is_relative_to(DOCS) and path not in targets
    } == set()


@pytest.mark.parametrize("example", examples())
def test_an_example_uses_only_what_there_is(example: str) -> None:
    # Without a comment or a column of figures, and what the shell does with its output.
    name, *words = shlex.split(
        re.split(r" {3,}| #| (?:--|\||\|\||&&) |[;)]", example)[0]
    )
    while name in BEFORE_A_TASK and words:
        name, *words = words
    if name.startswith("-"):
        assert name in INSTEAD_OF_A_TASK
        assert name != "--help" or set(words) <= TASKS.keys()
        return
    if name not in TASKS:
        name = name.rpartition(".")[2]  # in somebody's own collection: gpu.status
    context = context_of(name)
    bare = []
    rest = iter(words)
    for word in rest:
        flag, equals, _ = word.partition("=")
        if not word.startswith("-"):
            bare.append(word)
        elif flag not in context.inverse_flags:
            assert flag in context.flags
            if context.flags[flag].takes_value and not equals:
                next(rest)
    takes_name = "name" in HELP[name]
    assert len([word for word in bare if word != "…"]) <= takes_name


@pytest.mark.parametrize("text", programs())
def test_a_program_in_the_documents_uses_only_what_there_is(text: str) -> None:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            assert [
                alias.name for alias in node.names if not hasattr(module, alias.name)
            ] == []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called = node.func
            if isinstance(called.value, ast.Name) and called.value.id == "api":
                call = {word.arg: None for word in node.keywords if word.arg}
                inspect.signature(getattr(api, called.attr)).bind(*node.args, **call)


@pytest.mark.parametrize("error", kinds_of(UgroError), ids=lambda error: error.__name__)
def test_an_error_stands_in_the_exit_codes(error: type[UgroError]) -> None:
    assert re.search(
        rf"^\| {error.exit_code} \| `{error.__name__}` \| \S", EXIT_CODES, re.M
    )


def test_there_is_no_exit_code_that_no_error_has() -> None:
    said = set(re.findall(r"^\| (\d+) \| `(\w+)` \|", EXIT_CODES, re.M))
    assert said == {
        (str(error.exit_code), error.__name__) for error in kinds_of(UgroError)
    }


@pytest.mark.parametrize("text", cluster_files())
def test_a_cluster_file_in_the_documents_can_be_used(text: str, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    cluster = read_cluster_file(path, {"USER": "me", "HOME": str(tmp_path)})
    assert [(node.name, node.rank) for node in cluster.nodes] == [
        ("gpu-master", 0),
        ("gpu1", 1),
        ("gpu2", 2),
    ]


@pytest.mark.parametrize(
    ("document", "target"), links(), ids=lambda value: getattr(value, "name", value)
)
def test_a_link_leads_somewhere(document: Path, target: str) -> None:
    path, _, heading = target.partition("#")
    there = (document.parent / path).resolve() if path else document
    assert there.is_relative_to(ROOT)
    assert there.exists()
    if heading:
        assert heading in {
            anchor(title)
            for title in re.findall(r"^#+ (.*)$", there.read_text("utf-8"), re.M)
        }


@pytest.mark.parametrize(
    "name", sorted(set(re.findall(r"`([\w/]+\.py)`", ARCHITECTURE)))
)
def test_a_module_that_is_named_is_there(name: str) -> None:
    assert (ROOT / name).exists() or (ROOT / "ugro_tasks" / name).exists()


def test_every_room_stands_in_the_house() -> None:
    house = ARCHITECTURE.partition("## The house")[2].partition("\n## ")[0]
    rooms = {path.parent.name for path in (ROOT / "ugro_tasks").glob("*/__init__.py")}
    grounds = {path.stem for path in (ROOT / "ugro_tasks").glob("*.py")} - {"__init__"}
    assert {
        name for name in rooms | grounds if not re.search(rf"\b{name}\b", house)
    } == set()


@pytest.mark.parametrize(
    "path", [*DOCUMENTS, ROOT / "docs" / "run.svg"], ids=lambda path: path.name
)
def test_a_document_names_no_address_in_the_internet(path: Path) -> None:
    assert (
        set(re.findall(r"https?://([^/\s\"')]+)", path.read_text("utf-8"))) <= URL_HOSTS
    )


@pytest.mark.parametrize(
    "path", [*DOCUMENTS, ROOT / "docs" / "run.svg"], ids=lambda path: path.name
)
def test_a_document_names_only_folders_that_any_machine_has(path: Path) -> None:
    text = (
        re.sub(r"<[^>]*>", " ", path.read_text("utf-8"))
        if path.suffix == ".svg"
        else path.read_text("utf-8")
    )
    named = re.findall(r"(?:^|[\s\"'`=(:])/([a-z0-9_.-]+)(?=/)", text, re.M)
    assert {name for name in named if name not in KNOWN_FOLDERS} == set()
