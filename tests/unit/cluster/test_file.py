"""The cluster file: what it gives, and what it says about itself when it is wrong."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from ugro_tasks.cluster.file import load_cluster
from ugro_tasks.cluster.local import local_cluster
from ugro_tasks.cluster.model import Cluster, Environment, Node, TrainingDefaults
from ugro_tasks.errors import ClusterFileError, UsageError

REPOSITORY = Path(__file__).parents[3]
CLUSTERS = Path(__file__).parents[1] / "clusters"
BAD = sorted((CLUSTERS / "bad").glob("*.yaml"))
ENVIRON = {"USER": "ada", "HOME": "/home/ada"}
MASTER = "cluster: {master: {hostname: m, ip: 10.0.0.1}}\n"


def load(text: str | bytes, folder: Path, environ: dict[str, str] = ENVIRON) -> Cluster:
    path = folder / "cluster.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_cluster(environ=environ, cwd=folder)


def refusal(text: str | bytes, folder: Path) -> str:
    with pytest.raises(ClusterFileError) as refused:
        load(text, folder)
    assert refused.value.exit_code == 3
    return refused.value.text


def sample(name: str) -> Cluster:
    return load_cluster(str(CLUSTERS / name), environ=ENVIRON)


# Both forms


def test_both_forms_give_the_same_machines() -> None:
    def machines(cluster: Cluster) -> list[tuple[object, ...]]:
        return [
            (n.name, n.rank, n.address, n.hostname, n.user, n.transport)
            for n in cluster.nodes
        ]

    expected = [
        ("gpu-master", 0, "192.168.1.100", "gpu-master", "ada", "ssh"),
        ("gpu1", 1, "192.168.1.101", "gpu1", "ob", "ssh"),
        ("gpu2", 2, "192.168.1.102", "gpu2", "ollie", "ssh"),
    ]
    assert machines(sample("by_name.yaml")) == expected
    assert machines(sample("master_and_workers.yaml")) == expected


def test_both_forms_can_say_all_the_same(tmp_path: Path) -> None:
    node = "ip: 10.0.0.{}, user: me, ssh_port: 2200, hardware: {{gpu_model: T4, vram_gb: 16}}"
    sections = "environment: {manager: uv}\ntimeouts: {connect_seconds: 1}\n"
    one = (
        f"cluster: {{name: lab, master: {{hostname: a, {node.format(1)}}}}}\n"
        f"workers: [{{name: b, {node.format(2)}}}]\n{sections}"
    )
    other = (
        f"cluster: {{name: lab}}\nnodes: {{a: {{hostname: a, {node.format(1)}}}, "
        f"b: {{{node.format(2)}}}}}\n{sections}"
    )
    assert load(one, tmp_path) == load(other, tmp_path)


def test_form_by_name_promises_gpus_and_folders() -> None:
    cluster = sample("by_name.yaml")
    assert [(node.gpu_model, node.vram_gb) for node in cluster.nodes] == [
        ("RTX 5070 Ti", 12),
        ("RTX 4070", 8),
        ("RTX 3070 Ti", 8),
    ]
    assert {node.project for node in cluster.nodes} == {"~/ai-cluster"}
    assert cluster.experiments == Path("/home/ada/ugro/data/experiments")
    assert cluster.scripts == Path("/home/ada/ai-cluster/scripts")
    assert cluster.training.settings["training"]["gradient_accumulation_steps"] == 8
    assert cluster.environment.interpreter("~/x") == "python3"


def test_form_with_workers_fills_every_part() -> None:
    cluster = sample("master_and_workers.yaml")
    assert (cluster.name, cluster.location) == ("Home AI Lab", "Trondheim, Norway")
    assert [node.project for node in cluster.nodes] == [
        "~/projects/UGRO",
        "/home/ob/projects/UGRO",
        "/home/ollie/projects/UGRO",
    ]
    assert [node.ssh_port for node in cluster.nodes] == [22, 22, 22]
    assert cluster.root == Path("/home/ada/projects/UGRO")
    assert cluster.experiments == cluster.root / "data" / "experiments"
    assert cluster.logs == cluster.root / "logs"
    assert cluster.training.settings["lora"]["target_modules"] == ["q_proj", "v_proj"]
    assert cluster.timeouts.rendezvous_seconds == 300
    environment = cluster.nodes[1].environment
    assert (environment.manager, environment.torch_version) == ("pixi", "2.1.0")
    assert environment.interpreter("/p") == "/p/.pixi/envs/main/bin/python"


# What the file says


def test_repository_cluster_is_the_owners_three_hosts() -> None:
    cluster = load_cluster(environ=ENVIRON, cwd=REPOSITORY)
    assert [
        (n.name, n.address, n.user, n.gpu_model, n.vram_gb) for n in cluster.nodes
    ] == [
        ("gpu-master", "192.168.1.100", "ada", "RTX 5070 Ti", 12),
        ("gpu1", "192.168.1.101", "ob", "RTX 4070", 8),
        ("gpu2", "192.168.1.102", "ollie", "RTX 3070 Ti", 8),
    ]
    assert (cluster.root, cluster.source) == (
        REPOSITORY,
        str(REPOSITORY / "cluster.yaml"),
    )


def test_one_machine_is_a_cluster(tmp_path: Path) -> None:
    cluster = load(MASTER, tmp_path)
    assert cluster.nodes == (cluster.master,)
    assert (cluster.root, cluster.experiments) == (tmp_path, tmp_path / "experiments")


def test_plain_values_stay_what_was_written(tmp_path: Path) -> None:
    cluster = load(
        "cluster: {name: 007, location: no, master: {name: yes, ip: 10.0.0.1, user: off}}\n"
        "environment: {python_version: 3.10}\n"
        "training: {default_learning_rate: 2e-4}\n"
        "paths: {experiments: ~}\n",
        tmp_path,
    )
    assert (cluster.name, cluster.location) == ("007", "no")
    assert (cluster.master.name, cluster.master.user) == ("yes", "off")
    assert cluster.environment.python_version == "3.10"
    assert cluster.training.settings == {"training": {"learning_rate": 2e-4}}
    assert cluster.experiments == Path("/home/ada")


def test_a_record_of_an_older_version_can_be_read(tmp_path: Path) -> None:
    plain = load(MASTER, tmp_path).as_json()
    plain["training"] = {"script": "mine.py", "epochs": 3, "written": ["epochs"]}
    assert Cluster.from_json(plain).training == TrainingDefaults(script="mine.py")


def test_a_key_without_a_value_counts_as_not_given(tmp_path: Path) -> None:
    cluster = load(f"{MASTER}workers:\ntraining:\n  default_epochs:\n", tmp_path)
    assert cluster.training.settings == {}


def test_workers_without_ranks_are_ranked_in_their_order(tmp_path: Path) -> None:
    cluster = load(
        f"{MASTER}workers: [{{name: b, ip: 10.0.0.2}}, {{name: a, ip: 10.0.0.3}}]",
        tmp_path,
    )
    assert [(node.name, node.rank) for node in cluster.nodes] == [
        ("m", 0),
        ("b", 1),
        ("a", 2),
    ]


def test_nodes_are_sorted_by_rank(tmp_path: Path) -> None:
    cluster = load(
        "nodes: {a: {ip: '::2', rank: 1}, b: {ip: '0::1', rank: 0}}", tmp_path
    )
    assert [node.name for node in cluster.nodes] == ["b", "a"]
    assert cluster.master.address == "::1"


def test_user_is_known_where_the_environment_does_not_say(tmp_path: Path) -> None:
    cluster = load(
        "cluster: {master: {ip: 10.0.0.1, user: '${USER}'}}", tmp_path, {"HOME": "/"}
    )
    assert cluster.master.user == Path("/proc/self").owner()


def test_a_node_may_differ_from_the_clusters_environment(tmp_path: Path) -> None:
    cluster = load(
        f"{MASTER}environment: {{manager: venv, path: /data/env, torch_version: 2.13}}\n"
        "workers:\n"
        "  - {name: a, ip: 10.0.0.2, environment: {path: ~/env}}\n"
        "  - {name: b, ip: 10.0.0.3, environment: {manager: existing}}\n",
        tmp_path,
    )
    interpreters = [
        node.environment.interpreter(node.project) for node in cluster.nodes
    ]
    assert interpreters == ["/data/env/bin/python", "~/env/bin/python", "python3"]
    assert {node.environment.torch_version for node in cluster.nodes} == {"2.13"}


def test_local_nodes_may_share_an_address_and_then_have_a_slot_each(
    tmp_path: Path,
) -> None:
    local = "ip: 127.0.0.1, transport: local"
    cluster = load(
        f"cluster: {{master: {{name: m, {local}}}}}\n"
        f"workers: [{{name: a, {local}}}, {{name: b, ip: 10.0.0.2}}]",
        tmp_path,
    )
    assert [node.slot for node in cluster.nodes] == ["m", "a", "node"]


@pytest.mark.parametrize(
    ("written", "meant"),
    [("4", 4), ("auto", "auto"), ("{m: 3, a: 2}", {"m": 3, "a": 2})],
)
def test_a_batch_size_for_all_for_each_or_from_the_cards(
    tmp_path: Path, written: str, meant: object
) -> None:
    cluster = load(
        f"{MASTER}workers: [{{name: a, ip: 10.0.0.2}}]\ntraining: {{batch_size_per_gpu: {written}}}",
        tmp_path,
    )
    assert cluster.training.settings == {"training": {"batch_size_per_gpu": meant}}
    assert Cluster.from_json(cluster.as_json()) == cluster


@pytest.mark.parametrize(
    "written", ["0", "-1", "1.5", "Auto", "[3, 2]", "9999999", "gpu"]
)
def test_no_batch_size(tmp_path: Path, written: str) -> None:
    said = refusal(f"{MASTER}training: {{batch_size_per_gpu: {written}}}", tmp_path)
    assert "line 2: training.batch_size_per_gpu: " in said
    assert "or auto, or one for each node: {gpu-master: 3, gpu1: 2}" in said


def test_a_node_without_its_batch_size_is_named(tmp_path: Path) -> None:
    said = refusal(
        f"{MASTER}workers: [{{name: a, ip: 10.0.0.2}}]\ntraining: {{batch_size_per_gpu: {{m: 1}}}}",
        tmp_path,
    )
    assert "training.batch_size_per_gpu: a is missing" in said


@pytest.mark.parametrize("folder", ["config", "clusters"])
def test_the_project_is_above_a_folder_of_cluster_files(
    tmp_path: Path, folder: str
) -> None:
    (tmp_path / folder).mkdir()
    assert load(MASTER, tmp_path / folder).root == tmp_path


def test_scripts_that_came_with_ugro_stand_in_for_a_missing_folder(
    tmp_path: Path,
) -> None:
    assert load(MASTER, tmp_path).scripts == REPOSITORY / "scripts"
    (tmp_path / "scripts").mkdir()
    assert load(MASTER, tmp_path).scripts == tmp_path / "scripts"


@pytest.mark.parametrize(
    "source",
    ["local", *(str(path) for path in CLUSTERS.glob("*.yaml")), str(REPOSITORY)],
)
def test_a_cluster_survives_json(source: str) -> None:
    choice = source if source != str(REPOSITORY) else str(REPOSITORY / "cluster.yaml")
    cluster = load_cluster(choice, environ=ENVIRON)
    assert Cluster.from_json(cluster.as_json()) == cluster


# Which file


def test_local_is_built_in(tmp_path: Path) -> None:
    cluster = load_cluster("local", cwd=tmp_path)
    assert [(n.name, n.rank, n.slot) for n in cluster.nodes] == [
        ("local0", 0, "local0"),
        ("local1", 1, "local1"),
        ("local2", 2, "local2"),
    ]
    assert {(n.transport, n.address, n.gpu_model) for n in cluster.nodes} == {
        ("local", "127.0.0.1", None)
    }
    interpreter = cluster.master.environment.interpreter(cluster.master.project)
    assert interpreter == f"{tmp_path}/.ugro/env/bin/python"
    assert cluster.master.project == f"{tmp_path}/.ugro/nodes/local0"
    assert cluster.training.script == "train_single_test.py"
    assert (cluster.root, cluster.source) == (tmp_path, "local")


@pytest.mark.parametrize(
    ("file", "choice"),
    [
        ("lab.yaml", "lab"),
        ("clusters/lab.yaml", "lab"),
        ("lab", "lab"),
        ("deep/down/lab.yml", "deep/down/lab.yml"),
        ("local.yaml", "./local.yaml"),
        ("home/lab.yaml", "~/lab.yaml"),
    ],
)
def test_a_choice_is_a_name_or_a_path(tmp_path: Path, file: str, choice: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(MASTER)
    environ = {"HOME": str(tmp_path / "home"), "UGRO_CLUSTER": "elsewhere"}
    assert load_cluster(choice, environ=environ, cwd=tmp_path).source == str(path)


def test_the_environment_chooses_where_no_flag_does(tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text(MASTER)
    assert load_cluster(environ={"UGRO_CLUSTER": "lab"}, cwd=tmp_path).name == "lab"


@pytest.mark.parametrize(
    ("choice", "environ", "said"),
    [
        (None, {}, "cluster.yaml. Name one with --cluster PATH"),
        ("lab", {}, "/clusters/lab.yaml, "),
        (None, {"UGRO_CLUSTER": "lab"}, "for UGRO_CLUSTER 'lab'"),
        ("", {}, "--cluster '' is no cluster's name"),
        ("a\0b", {}, "is no cluster's name"),
        ("a" * 300, {}, "File name too long"),
        ("/dev/zero", {}, "/dev/zero is not a regular file"),
        ("folder", {}, "folder is a folder, not a cluster file; try "),
        ("../..", {}, "is a folder, not a cluster file."),
    ],
)
def test_a_choice_that_is_no_file_is_explained(
    tmp_path: Path, choice: str | None, environ: dict[str, str], said: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "cluster.yaml").write_text(MASTER)
    with pytest.raises(ClusterFileError) as refused:
        load_cluster(choice, environ=environ, cwd=tmp_path)
    assert said in refused.value.text
    assert "\n" not in refused.value.text


def test_a_file_that_fails_to_be_read_is_explained() -> None:
    with pytest.raises(
        ClusterFileError, match="/proc/self/mem cannot be read: Input/output error"
    ):
        load_cluster("/proc/self/mem")


# Faults


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_every_fault_is_reported_at_once_with_its_line(path: Path) -> None:
    """A bad file begins with what has to be said about it, as `#!` lines."""
    expected = [
        line[3:] for line in path.read_text().splitlines() if line.startswith("#!")
    ]
    with pytest.raises(ClusterFileError) as refused:
        load_cluster(str(path), environ=ENVIRON)
    header, *faults = refused.value.text.splitlines()
    assert [fault.removeprefix("  ") for fault in faults] == expected
    count = "1 fault" if len(expected) == 1 else f"{len(expected)} faults"
    assert header == f"{path} cannot be used: {count}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"cluster:\n", "line 1: the file says nothing"),
        (
            "cluster:\n  name: Tromsø\n".encode("latin-1"),
            "line 2: byte 0xf8 is not UTF-8",
        ),
        (MASTER.encode("utf-16"), "line 1: byte 0xff is not UTF-8"),
        (
            b"cluster:\n  name: lab: two\n",
            "line 2: this is not YAML: mapping values are not",
        ),
        (b"cluster: {name: lab\n", "this is not YAML: "),
        (b"cluster: *nobody\n", "line 1: this is not YAML: found undefined alias"),
        (b"cluster: '" + b"x" * (1 << 20) + b"'", "is over 1 MiB"),
        (b"[" * 500_000, "line 1: too much: "),
        (b"- x\n" * 200_000, "too much: at most 10000 values"),
        (b"cluster: {name: x}\n" * 3000, "and 2950 more"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_file_that_cannot_be_read_is_explained(
    tmp_path: Path, text: bytes, said: str
) -> None:
    assert said in refusal(text, tmp_path)


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    assert load(b"\xef\xbb\xbf" + MASTER.encode(), tmp_path).master.name == "m"


GOOD = (CLUSTERS / "master_and_workers.yaml").read_text()
PIECES = st.sampled_from(
    ["[", "}", ":", "\n", "- ", "  ", "&a ", "*a", "!x ", "~", "''", "9" * 5000]
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, len(GOOD)), st.integers(0, 20), PIECES), max_size=5
    )
)
def test_no_damage_gives_anything_but_a_clear_refusal(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, int, str]]
) -> None:
    text = GOOD
    for start, length, piece in damage:
        text = text[:start] + piece + text[start + length :]
    said = ""
    try:
        load(text, tmp_path_factory.getbasetemp())
    except ClusterFileError as refused:
        said = refused.text
    assert "Input should" not in said


# Select


def test_select_ranks_anew_in_the_order_of_the_file() -> None:
    cluster = sample("master_and_workers.yaml")
    chosen = cluster.select("gpu2, gpu1")
    assert [(node.name, node.rank) for node in chosen.nodes] == [
        ("gpu1", 0),
        ("gpu2", 1),
    ]
    assert chosen.master.address == "192.168.1.101"
    assert cluster.select(None) is cluster
    assert cluster.select(name for name in ["gpu2", "gpu1"]) == chosen


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("gpu3", "Did you mean gpu2? The nodes are: gpu-master, gpu1, gpu2."),
        ("gpu1,gpu1", "gpu1 is given 2 times"),
        ("", "a name is empty"),
        ("gpu1,,gpu2", "a name is empty"),
        ("gpu1;reboot", "there is no node 'gpu1;reboot'"),
        (["gpu1,gpu2"], "there is no node 'gpu1,gpu2'"),
        ([], "no node is named"),
    ],
)
def test_select_explains_what_it_cannot_use(names: str | list[str], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        sample("master_and_workers.yaml").select(names)
    assert said in refused.value.text
    assert refused.value.exit_code == 2


def test_a_subset_is_ranked_anew_in_the_order_of_the_file() -> None:
    chosen = sample("master_and_workers.yaml").subset({"gpu2", "gpu1"})
    assert [(node.name, node.rank) for node in chosen.nodes] == [
        ("gpu1", 0),
        ("gpu2", 1),
    ]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["gpu1", "gpu1,gpu2"],
            "no node is called 'gpu1,gpu2'. The nodes are: gpu-master, gpu1, gpu2.",
        ),
        ([], "no node is named"),
    ],
)
def test_a_subset_has_at_least_one_node_and_only_known_ones(
    names: list[str], said: str
) -> None:
    with pytest.raises(UsageError) as refused:
        sample("master_and_workers.yaml").subset(names)
    assert said in refused.value.text


def test_a_cluster_cannot_be_made_with_a_gap_in_its_ranks() -> None:
    environment = Environment(manager="existing")
    node = Node(name="a", rank=1, address="10.0.0.1", environment=environment)
    cluster = local_cluster(Path("/"))
    with pytest.raises(ValueError, match="without gaps"):
        replace(cluster, nodes=(node,))


HEAVY = {"fabric", "paramiko", "pydantic", "pydantic_core", "rich", "torch", "yaml"}


def test_reading_a_cluster_loads_nothing_heavy() -> None:
    assert all(importlib.util.find_spec(name) for name in HEAVY - {"torch"})
    code = f"import sys, ugro_tasks.cluster.file; sys.exit(str({HEAVY} & set(sys.modules) or '') or 0)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY, timeout=60)
