"""The examples in the owner's two documents: each fact of their files, trees, help and output is tested or in a list.

Tested here is what needs no cluster at work; what one prints and leaves, in tests/launch/test_owners_examples.py. The
command lines are in cli/test_owners_commands.py. Whoever makes what OTHERWISE says is to come moves it to the tests.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.factories import make_cluster
from ugro_tasks import api
from ugro_tasks.cli.collection import ns
from ugro_tasks.cluster.file import load_cluster
from ugro_tasks.cluster.model import Environment
from ugro_tasks.errors import ClusterFileError
from ugro_tasks.launch.spec import spec_from

ROOT = Path(__file__).parents[2]
CLUSTERS = Path(__file__).parent / "clusters"  # his two cluster files
ENVIRON = {"USER": "ada", "HOME": "/home/ada"}

# His values of config/training_defaults.yaml.
TRAINING_DEFAULTS: dict[str, dict[str, Any]] = {
    "model": {
        "name": "unsloth/tinyllama-bnb-4bit",
        "max_seq_length": 2048,
        "dtype": "float16",
        "load_in_4bit": True,
    },
    "dataset": {
        "name": "wikitext",
        "split": "train",
        "cache_dir": "~/.cache/huggingface/datasets",
    },
    "training": {
        "num_epochs": 1,
        "learning_rate": 0.0002,
        "warmup_steps": 100,
        "weight_decay": 0.01,
        "batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 8,
        "max_grad_norm": 1.0,
        "save_strategy": "epoch",
        "evaluation_strategy": "epoch",
        "eval_steps": 100,
    },
    "optimizer": {"type": "adamw", "betas": [0.9, 0.999], "eps": 1e-8},
    "lora": {
        "enabled": True,
        "rank": 16,
        "alpha": 32,
        "dropout": 0.05,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
    },
    "quantization": {"enabled": True, "bits": 4, "compute_dtype": "float16"},
    "logging": {"log_level": "INFO", "steps": 10, "use_tensorboard": True},
}
# Files of his tree of the project that are where he has them.
FILES = [
    ".gitignore",
    "README.md",
    "pyproject.toml",
    "bin/ugro",
    "config/training_defaults.yaml",
    "config/logging.yaml",
    "scripts/train_production.py",
    "scripts/train_single_test.py",
    "scripts/requirements.txt",
    "docs/ARCHITECTURE.md",
    "docs/SETUP.md",
    "docs/API.md",
    "docs/TROUBLESHOOTING.md",
    "docs/examples",
    "tests",
]
TOOLS = {
    "init_cluster.sh": "init",
    "sync_envs.sh": "sync-envs",
    "health_check.sh": "health",
    "reset_cluster.sh": "reset",
}
CLUSTER_FILE_TESTS = "tests/unit/cluster/test_file.py"
SESSION = "tests/launch/test_owners_examples.py"
# Examples whose facts are tested in the tests of the part that they are about.
ELSEWHERE = {
    "the cluster file with `nodes`": (
        CLUSTER_FILE_TESTS,
        "test_form_by_name_promises_gpus_and_folders",
    ),
    "the cluster file with a master and workers": (
        CLUSTER_FILE_TESTS,
        "test_form_with_workers_fills_every_part",
    ),
    "the picture of the three machines: names, addresses, users, cards": (
        CLUSTER_FILE_TESTS,
        "test_repository_cluster_is_the_owners_three_hosts",
    ),
    "config/cluster.yaml, whose project is the folder above": (
        CLUSTER_FILE_TESTS,
        "test_the_project_is_above_a_folder_of_cluster_files",
    ),
    "the time that runs while a training does": (
        "tests/unit/cli/show/test_job_view.py",
        "test_on_a_terminal_the_last_line_says_how_far_it_is",
    ),
    "a training that was interrupted": (
        "tests/launch/test_launch.py",
        "test_ctrl_c_stops_everywhere_and_the_next_launch_works_at_once",
    ),
    "no job of that name": (
        "tests/unit/jobs/test_experiments.py",
        "test_an_unknown_name_is_answered_with_the_nearest",
    ),
    "several jobs of one name: the newest": (
        "tests/unit/jobs/test_experiments.py",
        "test_a_name_is_found_exactly_or_not_at_all",
    ),
    "health, all ready": (
        SESSION,
        "test_health_has_a_row_a_node_with_card_memory_and_readiness",
    ),
    "health, a node out of reach": (
        SESSION,
        "test_a_node_out_of_reach_is_told_apart_from_the_others",
    ),
    "health, the three checks of a node": (
        SESSION,
        "test_health_looks_at_the_login_the_card_and_torch",
    ),
    "the port of the master, asked from elsewhere": (
        SESSION,
        "test_health_looks_at_the_port_of_the_master_from_each_worker",
    ),
    "launch, what is launched": (
        SESSION,
        "test_a_launch_tells_what_it_launches_when_asked_for_every_command",
    ),
    "launch, each rank with its node, its address and its torchrun": (
        SESSION,
        "test_a_launch_tells_the_command_of_each_rank_and_its_place",
    ),
    "launch, from the check to the word of success": (
        SESSION,
        "test_a_launch_checks_then_starts_all_ranks_then_shows_them_then_says_what_next",
    ),
    "launch, refused where a node is not healthy": (
        SESSION,
        "test_a_launch_on_nodes_that_are_not_fit_is_refused_and_starts_nothing",
    ),
    "logs, all ranks, fifty lines of each": (
        SESSION,
        "test_logs_show_every_rank_under_the_name_of_its_file",
    ),
    "logs, one rank": (SESSION, "test_logs_of_one_rank_are_of_that_rank_alone"),
    "results: place, configuration, checkpoints with sizes, log files": (
        SESSION,
        "test_results_show_place_settings_nodes_checkpoints_and_logs",
    ),
    "status": (SESSION, "test_status_shows_the_jobs_and_the_ranks_of_one"),
    "the tree of an experiment, in both documents": (
        SESSION,
        "test_the_folder_of_an_experiment_is_called_after_it_and_has_each_part",
    ),
    "cluster_state.json and job_history.jsonl": (
        SESSION,
        "test_beside_the_experiments_are_the_state_of_the_cluster_and_all_jobs",
    ),
    "config.json of a job": (
        SESSION,
        "test_the_config_of_a_job_has_every_field_with_what_was_given",
    ),
    "metrics.jsonl": (SESSION, "test_the_metrics_are_a_line_a_step_and_the_loss_falls"),
    "the three logs of UGRO": (SESSION, "test_ugros_own_logs_are_three"),
    "the tree of a worker": (
        SESSION,
        "test_a_worker_holds_no_more_than_the_scripts_and_what_ran",
    ),
}
# What is not as it is printed there, and why.
OTHERWISE = {
    "launch begins with a table of its parameters": (
        "it begins with what happens; --verbose and --dry-run tell the whole command of each rank, and `results` has "
        "the table"
    ),
    "launch ends with the folder, `ugro logs` and `ugro results`": (
        "its last line names `results`, which names the folder and the logs"
    ),
    "--verbose shows the ssh command of each rank": (
        "there is none: a node is asked over one connection; shown is what the node runs"
    ),
    "torchrun with --rdzv_backend c10d, --rdzv_endpoint and --rdzv_id": (
        "a static rendezvous by --master-addr and --master-port, so that each rank stays on its host; c10d is accepted "
        "in the cluster file"
    ),
    "training_rank<n>.log in the folder of the experiment": (
        "the other document has them in logs/ there, and so they are"
    ),
    "a job has the fields name and created_at": (
        "the other document calls them job_name and started_at, and so they are"
    ),
    "health counts VRAM in GB and says Ready": (
        "it shows what the card says of itself, in MiB, and who holds the node"
    ),
    "a dictionary of health with healthy, message and checks": (
        "api.health returns typed values, and --json has the same"
    ),
    "data/ above experiments/, cluster_state.json and job_history.jsonl": (
        "they are in experiments/ of the project, and under data/ where paths.data says so"
    ),
    "config/cluster.yaml, found without a flag": (
        "./cluster.yaml is; one in config/ is read with --cluster"
    ),
    "src/ with a module a subject": "the package is ugro_tasks/, with a folder a subject",
    "tests/ with a file for ssh_utils, cluster and agent": (
        "tests/unit has a folder for each of the package's, and what needs hosts is beside it"
    ),
    "tools/ with four shell scripts": "each is a command; see TOOLS",
    "the workers' scripts/, synced from the master": (
        "each job brings the scripts as they were launched, so that a change while it runs changes nothing of it"
    ),
    "pixi.lock in .gitignore": (
        "the lock makes the same environment on every node, so it belongs into the repository"
    ),
    "editors' and operating systems' files in .gitignore": (
        "they belong into each user's own git configuration"
    ),
    "data/ in .gitignore": "nothing is written there unless paths.data says so",
    "click, paramiko, psutil and requests as dependencies": (
        "Invoke reads the command line, Fabric brings paramiko, a node tells of its processes from /proc, and nothing "
        "is fetched by HTTP"
    ),
    "setuptools and black": "hatchling builds, and ruff formats",
    "the extra `monitor` with flask and prometheus-client": "the dashboard is to come",
    "Python from 3.10 on": "from 3.11 on: the code uses typing.Self",
    "tensorboard_dir under data/experiments/{job_id}": (
        "null, which is tensorboard/ in the job's own folder; {job_id} is understood there"
    ),
    "environment with torch 2.1.0 and CUDA 12.1": (
        "his file is read so; the shipped one promises no release, and scripts/requirements.txt pins a newer one"
    ),
    "an installation with mkdir, touch, chmod, ln -s, pip install and git init": (
        "a checkout has the folders, and bin/ugro installs what it needs at its first call"
    ),
    "pixi init, pixi shell and imports tried by hand": (
        "`sync-envs` makes the environment and proves it by such imports"
    ),
    "ls, tree and cat of what was made; ssh, nvidia-smi and torchrun by hand": (
        "nothing of UGRO's; they are in docs/examples/first-test.md and one-machine.md"
    ),
    "ufw and telnet for port 29500": "`health` tries the port from each worker",
    "the layers Monitoring and Serving": (
        "comparison of experiments, dashboard, serving and its API are to come"
    ),
    "what the dashboard shows": (
        "to come; `status` has the running jobs, `results` the cards' use and the loss curve"
    ),
    "queue, sweep and serve": "to come; listed in cli/test_owners_commands.py",
    "listings of Python": "one way to make what is printed, and not printed themselves",
}


# Configuration


@pytest.mark.parametrize("section", TRAINING_DEFAULTS)
def test_the_training_defaults_have_his_values(section: str) -> None:
    text = (ROOT / "config" / "training_defaults.yaml").read_text("utf-8")
    shipped = yaml.safe_load(text)[section]
    his = TRAINING_DEFAULTS[section]
    assert {key: shipped[key] for key in his} == his


def test_the_flags_of_launch_have_his_defaults(tmp_path: Path) -> None:
    spec = spec_from(make_cluster(tmp_path))
    assert spec.model == "unsloth/tinyllama-bnb-4bit"
    assert spec.dataset == "wikitext"
    assert (spec.epochs, spec.learning_rate) == (1, 2e-4)


def test_a_loaded_cluster_has_a_name_a_master_and_workers() -> None:
    cluster = api.open_cluster(
        load_cluster(str(CLUSTERS / "master_and_workers.yaml"), environ=ENVIRON)
    )
    assert cluster.name == "Home AI Lab"
    assert cluster.master.hostname == "gpu-master"
    assert len(cluster.nodes) - 1 == 2


def test_his_logging_is_ours() -> None:
    cluster = load_cluster(str(CLUSTERS / "master_and_workers.yaml"), environ=ENVIRON)
    logging = cluster.logging
    assert (logging.level, logging.keep_days) == ("INFO", 7)
    assert logging.format == "[%(asctime)s] %(name)s - %(levelname)s - %(message)s"
    assert cluster.logs == Path("/home/ada/projects/UGRO/logs")


def test_smaller_batches_and_more_of_them_can_be_written(tmp_path: Path) -> None:
    text = (CLUSTERS / "by_name.yaml").read_text("utf-8")
    document = yaml.safe_load(text)
    document["training"] = {"batch_size_per_gpu": 1, "gradient_accumulation": 16}
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(document))
    training = load_cluster(environ=ENVIRON, cwd=tmp_path).training
    assert training.settings["training"] == {
        "batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 16,
    }


def test_a_missing_cluster_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ClusterFileError) as refused:
        load_cluster(environ=ENVIRON, cwd=tmp_path)
    assert str(tmp_path / "cluster.yaml") in refused.value.text
    assert "write one" in refused.value.text


# The project


@pytest.mark.parametrize("path", FILES)
def test_the_project_has_his_file(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize(("script", "command"), TOOLS.items())
def test_a_tool_of_his_is_a_command(script: str, command: str) -> None:
    assert command in ns.task_names
    setup = (ROOT / "docs" / "SETUP.md").read_text("utf-8")
    assert any(
        script in line and f"inv {command}`" in line for line in setup.splitlines()
    )


def test_the_package_is_called_ugro_and_has_a_program_of_that_name() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["name"] == "ugro"
    assert project["description"].startswith("Unified GPU Resource Orchestrator")
    assert "ugro" in project["scripts"]
    needed = " ".join(project["dependencies"])
    assert "pyyaml" in needed
    assert "pydantic" in needed


def test_git_ignores_what_is_made_of_the_project() -> None:
    ignored = (ROOT / ".gitignore").read_text("utf-8").splitlines()
    assert {"__pycache__/", "*.egg-info/", "build/", "dist/", ".pixi/"} <= {*ignored}
    assert {"experiments/*", "logs/"} <= {*ignored}


def test_pixi_has_its_environments_where_it_lists_them() -> None:
    environment = Environment(manager="pixi")
    folder = environment.folder("~/projects/UGRO")
    assert folder == "~/projects/UGRO/.pixi/envs/default"


# Help


@pytest.mark.parametrize("command", ["health", "launch", "status", "logs", "results"])
def test_the_help_names_each_command_of_his_quick_start(command: str) -> None:
    assert f"\n  {command} " in shown_help()


def test_the_help_of_launch_has_each_of_his_flags() -> None:
    said = shown_help("launch")
    flags = ["--name", "--model", "--dataset", "--epochs", "--lr", "--verbose"]
    assert [flag for flag in flags if flag not in said] == []
    assert "--rank" in shown_help("logs")


def shown_help(*command: str) -> str:
    """What `ugro --help` prints."""
    argv = [sys.executable, "-m", "ugro_tasks.cli.program", "--help", *command]
    done = subprocess.run(
        argv, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


# The lists


@pytest.mark.parametrize(("example", "test"), ELSEWHERE.items())
def test_what_is_tested_elsewhere_is_tested_there(
    example: str, test: tuple[str, str]
) -> None:
    path, name = test
    module = ast.parse((ROOT / path).read_text("utf-8"))
    functions = {part.name for part in module.body if isinstance(part, ast.FunctionDef)}
    assert name in functions, f"nothing tests {example}"


def test_nothing_is_both_tested_and_otherwise() -> None:
    assert ELSEWHERE.keys() & OTHERWISE.keys() == set()
    assert all(OTHERWISE.values())
