"""config/logging.yaml: it counts where the cluster file says nothing, and its faults are told as that one's are."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ugro_tasks.cluster.content import LOGGING_FILE, MAX_BYTES
from ugro_tasks.cluster.file import load_cluster
from ugro_tasks.cluster.model import Cluster, Logging
from ugro_tasks.cluster.schema import LoggingSection
from ugro_tasks.errors import ClusterFileError

REPOSITORY = Path(__file__).parents[3]
MASTER = "cluster: {master: {hostname: m, ip: 10.0.0.1}}\n"


class Project:
    """A project with a cluster file and, once it is written, a config/logging.yaml."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environ = {"HOME": str(root / "home")}
        self.cluster_file(MASTER)

    def cluster_file(self, text: str) -> None:
        (self.root / "cluster.yaml").write_text(text)

    def logging_file(self, text: str | bytes) -> Path:
        path = self.root / LOGGING_FILE
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def load(self, choice: str | None = None) -> Cluster:
        return load_cluster(choice, environ=self.environ, cwd=self.root)

    def refusal(self, choice: str | None = None) -> str:
        with pytest.raises(ClusterFileError) as refused:
            self.load(choice)
        return refused.value.text


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


BOTH = pytest.mark.parametrize("choice", [None, "local"])


@BOTH
def test_it_says_how_the_logs_are_written_and_where(
    project: Project, choice: str | None
) -> None:
    project.logging_file(
        "level: debug\nformat: '%(message)s'\nkeep_days: 3\nfile: elsewhere/agent.log\n"
    )
    cluster = project.load(choice)
    assert cluster.logging == Logging(level="DEBUG", format="%(message)s", keep_days=3)
    assert cluster.logs == project.root / "elsewhere"


@BOTH
@pytest.mark.parametrize("text", [None, "", "\n  # level: DEBUG\n#\n", "level:\n"])
def test_without_it_and_where_it_says_nothing_the_defaults_count(
    project: Project, choice: str | None, text: str | None
) -> None:
    if text is not None:
        project.logging_file(text)
    cluster = project.load(choice)
    assert (cluster.logging, cluster.logs) == (Logging(), project.root / "logs")


def test_the_cluster_file_counts_key_by_key(project: Project) -> None:
    project.cluster_file(MASTER + "logging: {level: INFO, keep_days: }\n")
    project.logging_file("level: DEBUG\nkeep_days: 3\n")
    assert project.load().logging == Logging(level="INFO", keep_days=3)


@pytest.mark.parametrize(
    "section", ["paths: {logs: mine}", "logging: {file: mine/agent.log}"]
)
def test_the_cluster_file_says_where_the_logs_lie(
    project: Project, section: str
) -> None:
    project.cluster_file(f"{MASTER}{section}\n")
    project.logging_file("file: elsewhere/agent.log\n")
    assert project.load().logs == project.root / "mine"


def test_it_is_looked_for_in_the_project_wherever_the_cluster_file_lies(
    project: Project,
) -> None:
    project.logging_file("level: DEBUG\n")
    (project.root / "config" / "lab.yaml").write_text(MASTER)
    assert project.load("config/lab.yaml").logging.level == "DEBUG"
    away = project.root / "away"
    away.mkdir()
    (away / "lab.yaml").write_text(f"{MASTER}paths: {{project_root: {project.root}}}\n")
    assert project.load("away/lab.yaml").logging.level == "DEBUG"


def test_its_variables_and_home_are_those_of_this_machine(project: Project) -> None:
    project.environ["LEVEL"] = "ERROR"
    project.logging_file("level: ${LEVEL}\nfile: ~/ugro/agent.log\n")
    cluster = project.load()
    assert cluster.logging.level == "ERROR"
    assert cluster.logs == project.root / "home" / "ugro"


@BOTH
def test_every_fault_is_told_with_file_line_key_and_what_may_stand_there(
    project: Project, choice: str | None
) -> None:
    path = project.logging_file(
        "levle: INFO\nkeep_days: 0\n\nformat: '%(nonsense)s'\nfile: ${NOWHERE}/x\n"
    )
    assert project.refusal(choice).splitlines() == [
        f"{path} cannot be used: 4 faults",
        "  line 1: levle: unknown key; did you mean level?",
        "  line 2: keep_days: 0 cannot be; it must be at least 1",
        "  line 4: format: '%(nonsense)s' is not a log format of Python's logging; "
        "a good one is '%(asctime)s %(levelname)s %(message)s'",
        "  line 5: file: ${NOWHERE} is not set here; `export NOWHERE=...` or write the value out",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "level: INF\n",
            "line 1: level: 'INF' is not one of: DEBUG, INFO, WARNING, ERROR, CRITICAL; did you mean INFO?",
        ),
        (
            "logging: {level: INFO}\n",
            "line 1: logging: unknown key; known here are: level, format, keep_days, file",
        ),
        ("- level\n", "line 1: the file must hold `key: value` lines"),
        ("level: a: b\n", "line 1: this is not YAML: "),
        (b"level: \xff\n", "line 1: byte 0xff is not UTF-8"),
        (b"#" * (MAX_BYTES + 1), "is over 1 MiB"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_cannot_be_used_is_explained(
    project: Project, text: str | bytes, said: str
) -> None:
    path = project.logging_file(text)
    refused = project.refusal()
    assert refused.startswith(f"{path} ")
    assert said in refused


def test_a_file_for_pythons_own_logging_belongs_to_another_program(
    project: Project,
) -> None:
    project.logging_file("version: 1\nlevel: DEBUG\nroot:\n  level: ${UNSET}\n")
    assert project.load().logging == Logging()


def test_the_shipped_file_has_every_key_with_its_default(project: Project) -> None:
    text = (REPOSITORY / LOGGING_FILE).read_text("utf-8")
    said = yaml.safe_load(text)
    assert said == LoggingSection().model_dump(exclude={"file"})
    as_commented = yaml.safe_load(text.replace("# file:", "file:"))
    assert list(as_commented) == list(LoggingSection.model_fields)
    project.logging_file(text.replace("# file:", "file:"))
    assert project.load().logs == project.root / "logs"
