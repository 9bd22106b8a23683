"""train_production.py, run by real ranks over gloo on a tiny Llama that the tests make themselves."""

import hashlib
import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.ports import reserved_port
from tests.training.ranks import (
    DEADLINE_SECONDS,
    SCRIPTS,
    Ended,
    Nursery,
    Rank,
    clean_environment,
)
from tests.unit.factories import make_cluster
from ugro_tasks.training.settings import resolve

# torch and transformers are imported once for all of them, in the time of whichever test is the first.
pytestmark = [
    pytest.mark.xdist_group("training"),
    pytest.mark.timeout(2 * DEADLINE_SECONDS),
]

SCRIPT = str(SCRIPTS / "train_production.py")
EVALUATE = Path(__file__).parent / "evaluate_and_train.py"
FIT_A_CARD = Path(__file__).parent / "fit_a_card.py"
COMPUTED = ("loss", "eval_loss", "grad_norm", "learning_rate")
# Steps of 16 sequences of uneven length; no dropout, which on two ranks is another than on one.
SAME_ON_ANY_RANKS = {
    "model.max_seq_length": 32,
    "dataset.packing": False,
    "training.gradient_accumulation_steps": 2,
    "training.learning_rate": 0.01,
    "training.warmup_steps": 5,
    "lora.dropout": 0,
    "logging.steps": 1,
}
EPOCHS = 5


def arguments(
    inputs: Path, model: str = "llama", data: str = "texts.jsonl", **sets: Any
) -> list[str]:
    """The script and its flags; `sets` has __ for the dot in a setting's name."""
    argv = [
        SCRIPT,
        "--model-name",
        str(inputs / model),
        "--dataset-name",
        str(inputs / data),
    ]
    settings = SAME_ON_ANY_RANKS | {
        name.replace("__", "."): value for name, value in sets.items()
    }
    return [
        *argv,
        *(
            word
            for name, value in settings.items()
            for word in ("--set", f"{name}={value}")
        ),
    ]


def run(
    nursery: Nursery,
    argv: list[str],
    output: Path,
    size: int = 1,
    *,
    one_node: bool = False,
    **environment: str,
) -> list[Ended]:
    """Start the ranks of a run, and return how they ended."""
    ranks = nursery.gang(argv, output, size, one_node=one_node, **environment)
    return [rank.end() for rank in ranks]


def lines(output: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for line in (output / "0" / "metrics.jsonl").read_text().splitlines()
    ]


def steps(output: Path) -> dict[int, dict[str, Any]]:
    """The training lines by step; the last one of a step counts."""
    return {line["step"]: line for line in lines(output) if "loss" in line}


def wait_for_step(output: Path, step: int, ranks: list[Rank]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    metrics = output / "0" / "metrics.jsonl"
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < step:
        assert time.monotonic() < deadline, ranks[0].log.read_text()
        time.sleep(0.01)


def vouched(output: Path, rank: int, checkpoint: str) -> dict[str, Any]:
    """The manifest of a rank's part, all of whose files have been found as it says."""
    folder = output / str(rank) / "checkpoints"
    manifest: dict[str, Any] = json.loads(
        (folder / f"{checkpoint}.manifest.json").read_text()
    )
    for name, part in manifest["files"].items():
        content = (folder / name).read_bytes()
        assert part == {
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    return manifest


@pytest.fixture(scope="module")
def whole(
    nursery: Nursery, inputs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """One process with micro-batches of 8, from beginning to end."""
    output = tmp_path_factory.mktemp("whole")
    (ended,) = run(
        nursery,
        arguments(inputs, training__num_epochs=EPOCHS),
        output,
        UGRO_BATCH_SIZES="8",
    )
    assert ended.code == 0, ended.said
    return output


@pytest.fixture(scope="module")
def stopped(
    nursery: Nursery, inputs: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Ended]]:
    """Two ranks with 6 and 2, of which the second was told to stop in the midst."""
    output = tmp_path_factory.mktemp("stopped")
    argv = arguments(inputs, training__num_epochs=EPOCHS, training__save_strategy="no")
    ranks = nursery.gang(argv, output, 2, UGRO_BATCH_SIZES="6,2")
    wait_for_step(output, 20, ranks)
    ranks[1].signal(signal.SIGTERM)
    return output, [rank.end() for rank in ranks]


@pytest.fixture(scope="module")
def resumed(
    nursery: Nursery,
    inputs: Path,
    stopped: tuple[Path, list[Ended]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The same two ranks from there to the end, each with its own part of the checkpoint."""
    before, _ = stopped
    name = checkpoint_of(before).name
    output = tmp_path_factory.mktemp("resumed")
    argv = arguments(inputs, training__num_epochs=EPOCHS)
    parts = str(before / "{rank}" / "checkpoints" / name)
    for ended in run(
        nursery, argv, output, 2, UGRO_BATCH_SIZES="6,2", UGRO_RESUME=parts
    ):
        assert ended.code == 0, ended.said
    return output


def checkpoint_of(output: Path) -> Path:
    (only,) = (
        path for path in (output / "0" / "checkpoints").iterdir() if path.is_dir()
    )
    return only


# ---- uneven cards, stop, resume ----


def test_six_and_two_equal_eight_over_a_stop_and_a_resume(
    whole: Path, stopped: tuple[Path, list[Ended]], resumed: Path
) -> None:
    expected, first, second = steps(whole), steps(stopped[0]), steps(resumed)
    assert max(first) + 1 == min(second)
    assert set(first) | set(second) == set(expected)
    for step, line in {**first, **second}.items():
        assert line["loss"] == pytest.approx(expected[step]["loss"], rel=1e-5)
        assert line["grad_norm"] == pytest.approx(expected[step]["grad_norm"], rel=1e-5)
        assert line["learning_rate"] == expected[step]["learning_rate"]


def test_the_validation_loss_is_the_same_on_uneven_ranks(
    whole: Path, resumed: Path
) -> None:
    def evaluated(output: Path) -> dict[int, float]:
        return {
            line["step"]: line["eval_loss"]
            for line in lines(output)
            if "eval_loss" in line
        }

    here = evaluated(resumed)
    assert here
    assert here == pytest.approx(
        {step: loss for step, loss in evaluated(whole).items() if step in here},
        rel=1e-5,
    )


def test_term_on_one_rank_saves_on_all_and_ends_them_with_143(
    stopped: tuple[Path, list[Ended]],
) -> None:
    output, ended = stopped
    assert [rank.code for rank in ended] == [143, 143]
    name = checkpoint_of(output).name
    for rank in range(2):
        manifest = vouched(output, rank, name)
        assert (manifest["rank"], manifest["ranks"], manifest["world_size"]) == (
            rank,
            [0, 1],
            2,
        )
        assert manifest["checkpoint"] == f"checkpoint-{manifest['step']}" == name
        assert f"{name}/rng_state_{rank}.pth" in manifest["files"]


def test_an_epoch_broken_off_by_term_is_not_evaluated(
    stopped: tuple[Path, list[Ended]],
) -> None:
    output, _ = stopped
    last = lines(output)[-1]
    assert "loss" in last
    assert checkpoint_of(output).name == f"checkpoint-{last['step']}"


def test_a_line_of_metrics_says_all_that_is_shown(whole: Path) -> None:
    line = lines(whole)[0]
    assert set(line) == {
        "step",
        "total_steps",
        "epoch",
        "total_epochs",
        "loss",
        "learning_rate",
        "grad_norm",
        "tokens_per_second",
        "samples_per_second",
        "elapsed_seconds",
        "time",
    }
    evaluated = next(line for line in lines(whole) if "eval_loss" in line)
    assert {"step", "total_steps", "epoch", "total_epochs", "eval_loss", "time"} <= set(
        evaluated
    )


def test_something_is_learnt(whole: Path) -> None:
    logged = list(steps(whole).values())
    assert logged[0]["loss"] > 5.5  # ln(320 tokens) is 5.8
    assert logged[-1]["loss"] < 5.2


def test_the_adapter_comes_with_a_card_and_anyone_may_read_it(whole: Path) -> None:
    folder = whole / "0" / "artifacts" / "adapter"
    card = (folder / "README.md").read_text()
    assert "| lora.rank | 16 |" in card
    assert "| training.learning_rate | 0.01 |" in card
    assert {path.name for path in folder.iterdir()} >= {
        "adapter_model.safetensors",
        "adapter_config.json",
    }
    assert all(path.stat().st_mode & 0o044 for path in folder.iterdir())
    assert list((whole / "0" / "tensorboard").glob("events.*"))


def test_old_checkpoints_make_room_and_their_manifests_go_with_them(
    whole: Path,
) -> None:
    folder = whole / "0" / "checkpoints"
    names = {path.name for path in folder.iterdir()}
    kept = {name for name in names if not name.endswith(".manifest.json")}
    assert len(kept) == 3
    assert names == kept | {f"{name}.manifest.json" for name in kept}


def test_only_rank_0_talks_of_steps(stopped: tuple[Path, list[Ended]]) -> None:
    _, (first, second) = stopped
    assert "step 3/" in first.said
    assert "step 3/" not in second.said
    assert len(second.said.splitlines()) < 8


def test_term_ends_a_rank_whose_peer_is_frozen(
    nursery: Nursery, inputs: Path, tmp_path: Path
) -> None:
    # So much time to save in that it cannot be what ends the rank.
    patience = "1000"
    argv = arguments(inputs, training__num_epochs=1000)
    ranks = nursery.gang(
        argv,
        tmp_path,
        2,
        UGRO_BATCH_SIZES="6,2",
        TORCH_ELASTIC_SHUTDOWN_TIMEOUT=patience,
    )
    wait_for_step(tmp_path, 3, ranks)
    ranks[1].signal(signal.SIGSTOP)
    ranks[0].signal(signal.SIGTERM)
    ended = ranks[0].end()
    ranks[1].signal(signal.SIGKILL)
    ranks[1].end()
    assert ended.code == 143
    assert "no step in common" in ended.said


# ---- nf4 under torchrun; resume in other circumstances ----

NF4: dict[str, Any] = {
    "training__num_epochs": 3,
    "training__save_strategy": "steps",
    "training__save_steps": 4,
    "training__save_total_limit": "null",
    "lora__dropout": 0.1,
    "logging__steps": 3,
}


@pytest.fixture(scope="module")
def nf4(
    training_python: str, inputs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Two ranks of one node under torchrun: a quantised model, with dropout, on a folder that `datasets` saved."""
    output = tmp_path_factory.mktemp("nf4")
    command = [training_python, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    with reserved_port() as port:
        command += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
        command += ["--log-dir", str(output / "torchrun")]
        done = subprocess.run(
            [*command, *arguments(inputs, "nf4", "saved", **NF4)],
            env=clean_environment(
                UGRO_OUTPUT_DIR=str(output / "0"), UGRO_BATCH_SIZES="5,3"
            ),
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    (output / "said").write_text(done.stdout + done.stderr)
    return output


@pytest.fixture(scope="module")
def uninterrupted(
    nursery: Nursery, inputs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same, by ranks that are started as those are that resume it: only a resume may be the difference."""
    output = tmp_path_factory.mktemp("uninterrupted")
    argv = arguments(inputs, "nf4", "saved", **NF4)
    for ended in run(nursery, argv, output, 2, one_node=True, UGRO_BATCH_SIZES="5,3"):
        assert ended.code == 0, ended.said
    return output


def test_a_quantised_model_trains_under_torchrun(
    nf4: Path, uninterrupted: Path
) -> None:
    logged = steps(nf4)
    assert logged[39]["loss"] < logged[1]["loss"] - 0.5
    assert "weights 4 bits" in (nf4 / "said").read_text()
    # To the last digit only what is started in one way is the same.
    for step, line in steps(uninterrupted).items():
        assert logged[step]["loss"] == pytest.approx(line["loss"], rel=1e-5)


def test_every_step_has_gradients_after_an_evaluation_too(uninterrupted: Path) -> None:
    assert {
        step: line["grad_norm"]
        for step, line in steps(uninterrupted).items()
        if line["grad_norm"] < 0.01
    } == {}


@pytest.mark.parametrize("fast_inference", ["True", "False"])
def test_an_evaluation_leaves_quantised_weights_as_they_are(
    nursery: Nursery, inputs: Path, fast_inference: str
) -> None:
    """Whether or not bitsandbytes has a layout of its own for inference on this CPU."""
    ended = nursery.start([str(EVALUATE), str(inputs / "nf4"), fast_inference]).end()
    assert ended.code == 0, ended.said


def test_ranks_that_share_a_folder_have_one_manifest(nf4: Path) -> None:
    manifest = vouched(nf4, 0, "checkpoint-4")
    assert (manifest["ranks"], manifest["world_size"]) == ([0], 2)
    assert {"checkpoint-4/rng_state_0.pth", "checkpoint-4/rng_state_1.pth"} <= set(
        manifest["files"]
    )


# Within the first epoch, and within the second, after an evaluation. Each is in the midst of a line of metrics.
@pytest.mark.parametrize(("checkpoint", "first_line"), [(4, 6), (16, 18)])
def test_a_resumed_run_has_the_same_losses_to_the_last_digit(
    nursery: Nursery,
    inputs: Path,
    uninterrupted: Path,
    tmp_path: Path,
    checkpoint: int,
    first_line: int,
) -> None:
    """Dropout and all; and a line that averages over steps before the checkpoint and after it."""
    (tmp_path / "resume").symlink_to(
        uninterrupted / "0" / "checkpoints" / f"checkpoint-{checkpoint}"
    )
    argv = arguments(inputs, "nf4", "saved", **NF4)
    resume = str(tmp_path / "resume")
    for ended in run(
        nursery,
        argv,
        tmp_path,
        2,
        one_node=True,
        UGRO_BATCH_SIZES="5,3",
        UGRO_RESUME=resume,
    ):
        assert ended.code == 0, ended.said
    expected = {
        step: values
        for step, values in computed(uninterrupted).items()
        if step > checkpoint
    }
    assert min(expected) == first_line
    assert computed(tmp_path) == expected


def computed(output: Path) -> dict[int, dict[str, float]]:
    """Collect what a run logged of its numbers, by step: losses, norms of gradients and learning rates."""
    found: dict[int, dict[str, float]] = {}
    for line in lines(output):
        values = {name: line[name] for name in COMPUTED if name in line}
        found.setdefault(line["step"], {}).update(values)
    return found


def test_fewer_ranks_go_on_at_the_same_part_of_the_epoch(
    nursery: Nursery, inputs: Path, nf4: Path, tmp_path: Path
) -> None:
    before = steps(nf4)
    argv = arguments(inputs, "nf4", "saved", **NF4)
    resume = str(nf4 / "0" / "checkpoints" / "checkpoint-16")
    (ended,) = run(nursery, argv, tmp_path, UGRO_BATCH_SIZES="4", UGRO_RESUME=resume)
    assert ended.code == 0, ended.said
    # 200 sequences are 25 micro-batches of 8, so 13 steps; or 50 of 4, so 25 steps.
    assert (before[1]["total_steps"], lines(tmp_path)[0]["total_steps"]) == (39, 75)
    assert (
        "other batch sizes: step 16 of the checkpoint is step 30 of this run"
        in ended.said
    )
    first = next(iter(steps(tmp_path).values()))
    assert (first["step"], first["epoch"]) == (33, 1.32)


def test_all_weights_can_be_trained_and_resumed_with_another_learning_rate(
    nursery: Nursery, inputs: Path, tmp_path: Path
) -> None:
    few: dict[str, Any] = {
        "training__save_strategy": "steps",
        "training__save_steps": 2,
        "dataset__packing": True,
    }
    argv = arguments(
        inputs, data="texts.txt", lora__enabled=False, training__max_steps=2, **few
    )
    (first,) = run(nursery, argv, tmp_path / "a")
    assert first.code == 0, first.said
    assert "training 115,008 of 115,008 parameters; weights 32 bits" in first.said
    model = tmp_path / "a" / "0" / "artifacts" / "model"
    assert {path.name for path in model.iterdir()} >= {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
    }
    other = {
        "training__learning_rate": 0.5,
        "training__lr_scheduler": "constant",
        "training__warmup_steps": 0,
    }
    argv = arguments(
        inputs,
        data="texts.txt",
        lora__enabled=False,
        training__max_steps=4,
        **(few | other),
    )
    argv += ["--resume", str(tmp_path / "a" / "0" / "checkpoints" / "checkpoint-2")]
    (second,) = run(nursery, argv, tmp_path / "b")
    assert second.code == 0, second.said
    assert {
        step: line["learning_rate"] for step, line in steps(tmp_path / "b").items()
    } == {3: 0.5, 4: 0.5}


# ---- as UGRO starts it ----


def sent_by_ugro(root: Path, *sets: str) -> str:
    """UGRO_SETTINGS of a launch."""
    return json.dumps(resolve(make_cluster(root), sets=sets))


def test_a_launch_sends_all_that_a_run_needs(
    nursery: Nursery, inputs: Path, tmp_path: Path
) -> None:
    """The flags are those of the contract; the settings say the same. On a CPU an estimate for a card says nothing."""
    sets = {**SAME_ON_ANY_RANKS, "training.max_steps": 2}
    sent = sent_by_ugro(
        tmp_path,
        f"model.name={inputs / 'llama'}",
        f"dataset.name={inputs / 'texts.jsonl'}",
        *(f"{name}={value}" for name, value in sets.items()),
    )
    flags = ["--model-name", "as in the settings", "--num-epochs", "1"]
    (ended,) = run(
        nursery,
        [SCRIPT, *flags, "--job-id", "exp1_20260120_120000"],
        tmp_path,
        UGRO_SETTINGS=sent,
        UGRO_BATCH_SIZES="4",
        UGRO_MEMORY_MIB=str(1 << 40),
    )
    assert ended.code == 0, ended.said
    assert max(steps(tmp_path)) == 2
    card = (tmp_path / "0" / "artifacts" / "adapter" / "README.md").read_text()
    assert "# exp1_20260120_120000" in card
    assert "| training.max_steps | 2 |" in card


def test_a_rank_compares_the_estimate_with_what_is_free_on_its_card(
    training_python: str, tmp_path: Path
) -> None:
    plain = sent_by_ugro(tmp_path)
    quiet = sent_by_ugro(
        tmp_path, "training.gradient_checkpointing=true", "quantization.enabled=false"
    )
    whole = sent_by_ugro(tmp_path, "lora.enabled=false")
    lacks = "Fault: not enough GPU memory (RTX) on gpu1: about"
    less = (
        "see what has the rest (nvidia-smi), or need less: a smaller model.max_seq_length (it is 2048), "
        "a smaller training.batch_size_per_gpu (it is 2 here), "
    )
    cases = [
        (
            ("cuda", 4000, 7000, plain),
            "GPU memory (RTX): about 3.9 GiB are needed, 6.8 of 8.0 are free",
        ),
        # What is tight before the start goes on: meanwhile CUDA has taken its part of the estimate.
        (
            ("cuda", 9400, 7600, plain),
            "GPU memory (RTX): about 9.2 GiB are needed, 7.4 of 8.0 are free",
        ),
        (
            ("cuda", 4000, 2500, plain),
            f"{lacks} 3.9 GiB are needed, 2.4 of 8.0 are free; {less}training.gradient_checkpointing=true",
        ),
        (
            ("cuda", 4000, 100, quiet),
            f"{lacks} 3.9 GiB are needed, 0.1 of 8.0 are free; {less}quantization.enabled=true",
        ),
        (
            ("cuda", 4000, 100, whole),
            f"{lacks} 3.9 GiB are needed, 0.1 of 8.0 are free; {less}"
            "training.gradient_checkpointing=true, lora.enabled=true",
        ),
        (("cuda", None, 0, plain), "None"),
        (("cpu", 4000, 0, plain), "None"),
    ]
    done = subprocess.run(
        [training_python, str(FIT_A_CARD)],
        input="".join(json.dumps(case) + "\n" for case, _ in cases),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [said for _, said in cases]


# ---- what cannot be used ----


@pytest.mark.parametrize(
    ("model", "data", "sets", "said"),
    [
        ("no_end", "texts.txt", {}, "neither a pad token nor an end-of-text token"),
        ("empty", "texts.txt", {}, "empty: "),
        (
            "llama",
            "texts.txt",
            {"training__batch_size_per_gpu": 999},
            "one micro-step of all ranks takes 999",
        ),
        ("llama", "broken.jsonl", {}, "broken.jsonl, line 2: it is no JSON"),
        (
            "llama",
            "texts.txt",
            {"lora__target_modules": "[query]"},
            "the model has no query; it has q_proj, k_proj",
        ),
    ],
)
def test_what_is_found_after_the_imports_is_one_line_and_exit_2(
    nursery: Nursery,
    inputs: Path,
    tmp_path: Path,
    model: str,
    data: str,
    sets: dict[str, Any],
    said: str,
) -> None:
    (ended,) = run(nursery, arguments(inputs, model, data, **sets), tmp_path)
    faults = [
        line
        for line in ended.said.splitlines()
        if line.startswith("train_production: ") and "rank 0" not in line
    ]
    assert ended.code == 2, ended.said
    assert len(faults) == 1
    assert said in faults[0]
    assert "Traceback" not in ended.said


def test_a_fault_of_one_rank_ends_all(
    nursery: Nursery, inputs: Path, tmp_path: Path
) -> None:
    """The second rank has another data set under the same name."""
    for rank, text in enumerate(("one two three\n" * 200, "four five six\n" * 200)):
        (tmp_path / str(rank)).mkdir()
        (tmp_path / str(rank) / "data.txt").write_text(text)
    data = f"dataset.name={tmp_path}/{{rank}}/data.txt"
    sent = sent_by_ugro(
        tmp_path, f"model.name={inputs / 'llama'}", data, "dataset.packing=false"
    )
    ended = run(nursery, [SCRIPT], tmp_path, 2, UGRO_SETTINGS=sent)
    assert [rank.code for rank in ended] == [2, 2]
    for each in ended:
        assert "of rank 1 (" in each.said
        assert "is another than that of rank 0" in each.said


@pytest.mark.parametrize(
    ("flags", "environment", "said"),
    [
        (
            ["--model-name", "/nowhere/llama"],
            {},
            "model /nowhere/llama: there is no such folder on this node",
        ),
        (["--model-name", "."], {}, "has no config.json"),
        (["--model-name", "nobody/nothing"], {}, "HF_HUB_OFFLINE forbids to fetch it"),
        (
            ["--dataset-name", "/nowhere.txt"],
            {},
            "data set /nowhere.txt: there is no such file on this node",
        ),
        (["--dataset-name", "{here}/empty.txt"], {}, "the file is empty"),
        (
            ["--dataset-name", "{here}/rows.jsonl"],
            {},
            "the column 'text' is missing; there is 'body', 'title'",
        ),
        (
            ["--dataset-name", "{here}/words.jsonl"],
            {},
            "its first line is no JSON object",
        ),
        (
            ["--dataset-name", "{here}"],
            {},
            "the folder is none that `save_to_disk` of datasets wrote",
        ),
        (
            ["--set", "trainin.seed=1"],
            {},
            "there is no setting trainin.seed; did you mean training.seed?",
        ),
        (["--set", "seed"], {}, "write SECTION.KEY=VALUE"),
        (
            ["--learning-rate", "fast"],
            {},
            "--learning-rate: training.learning_rate must be a number, greater than 0",
        ),
        (["--config", "{here}/broken.yaml"], {}, "broken.yaml, line 2: not YAML"),
        (
            ["--config", "{here}/typo.yaml"],
            {},
            "no setting training.sed; did you mean training.seed?",
        ),
        (["--resume", "latest"], {}, "there is no whole checkpoint in"),
        (
            [],
            {"UGRO_RESUME": "/nowhere"},
            "cannot resume from /nowhere: there is no such folder",
        ),
        (
            [],
            {"UGRO_RESUME": "{here}/other"},
            "its adapter has rank 8 on k_proj, but the settings say rank 16 on",
        ),
        (
            [],
            {"UGRO_RESUME": "{here}/full"},
            "it holds a whole model, but lora.enabled is true",
        ),
        (
            [],
            {"UGRO_BATCH_SIZES": "3,2"},
            "UGRO_BATCH_SIZES '3,2' has 2 numbers for 1 ranks",
        ),
        ([], {"UGRO_BATCH_SIZES": "some"}, "write a whole number for each rank"),
        (
            ["--set", "training.batch_size_per_gpu=auto"],
            {},
            "only UGRO can resolve that",
        ),
        ([], {"UGRO_SETTINGS": "{"}, "UGRO_SETTINGS is not JSON"),
        ([], {"UGRO_SETTINGS": "{}"}, "UGRO_SETTINGS has no"),
        ([], {"UGRO_MEMORY_MIB": "much"}, "write a whole number of MiB"),
        (
            ["--model-name", "{here}/quantized", "--set", "lora.enabled=false"],
            {},
            "its weights are quantised",
        ),
        (["--what"], {}, "unrecognized arguments: --what"),
    ],
)
def test_what_is_found_before_the_imports_is_one_line_and_exit_2(
    nursery: Nursery,
    unusable: Path,
    flags: list[str],
    environment: dict[str, str],
    said: str,
) -> None:
    """Nothing else is said, so nothing was imported for it: the first line of a run comes before the imports."""

    def here(text: str) -> str:
        return text.replace("{here}", str(unusable))

    argv = [
        SCRIPT,
        "--model-name",
        here("{here}/model"),
        "--dataset-name",
        here("{here}/words.txt"),
        *map(here, flags),
    ]
    variables: dict[str, Any] = {
        name: here(value) for name, value in environment.items()
    }
    (ended,) = run(nursery, argv, unusable, 1, **variables)
    assert ended.code == 2
    assert ended.said.startswith("train_production: ")
    assert said in ended.said
    assert ended.said.count("\n") == 1


@pytest.fixture(scope="module")
def unusable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, checkpoints and data sets of which each has a fault, and one of each that has none at first sight."""
    folder = tmp_path_factory.mktemp("unusable")
    files = {
        "model/config.json": "{}",
        "words.txt": "one two\n",
        "empty.txt": " \n",
        "rows.jsonl": '{"body": "x", "title": "y"}\n',
        "words.jsonl": "one two\n",
        "broken.yaml": "training:\n  seed: ]\n",
        "typo.yaml": "training:\n  sed: 1\n",
        "other/adapter_model.safetensors": "",
        "other/adapter_config.json": '{"r": 8, "target_modules": ["k_proj"]}',
        "full/model.safetensors": "",
        "quantized/config.json": '{"quantization_config": {"quant_method": "bitsandbytes"}}',
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    return folder
