"""The training settings: what counts over what, and what is said about a value that cannot be."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from msgspec.structs import replace

from tests.unit.factories import make_cluster
from ugro_tasks.cluster.file import read_cluster_file
from ugro_tasks.cluster.local import TRAINING_SCHEMA
from ugro_tasks.cluster.model import Cluster, TrainingDefaults
from ugro_tasks.errors import UsageError
from ugro_tasks.training.settings import FILE, resolve

SHIPPED = yaml.safe_load((Path(__file__).parents[3] / FILE).read_text())
NOTHING_WRITTEN = TrainingDefaults()
# What `--set` may say, and what comes of it; scripts/ reads the same by hand.
GOOD: list[tuple[str, Any]] = [
    ("training.warmup_steps=50", 50),
    ("training.learning_rate=1e-3", 0.001),
    ("training.learning_rate=1", 1.0),
    ("lora.enabled=off", False),
    ("lora.target_modules=[q_proj,v_proj, o_proj]", ["q_proj", "v_proj", "o_proj"]),
    ("optimizer.betas=[0, 1e-1]", [0.0, 0.1]),
    ("training.save_strategy=no", "no"),
    ("training.save_strategy='no'", "no"),
    ("dataset.name=007", "007"),
    ("dataset.name=a=b", "a=b"),
    ("training.max_steps=10", 10),
    ("training.max_steps=", None),
    ("training.save_total_limit=5", 5),
    ("training.batch_size_per_gpu=auto", "auto"),
    (
        "training.batch_size_per_gpu={gpu0: 3, gpu1: 2, gpu2: 2}",
        {"gpu0": 3, "gpu1": 2, "gpu2": 2},
    ),
    (" training.seed = 5", 5),
]
BAD = [
    # no setting
    ("training.warmup_steps", "use SECTION.KEY=VALUE"),
    ("warmup_steps=5", "use SECTION.KEY=VALUE"),
    (".seed=5", "use SECTION.KEY=VALUE"),
    ("", "use SECTION.KEY=VALUE"),
    (
        "traning.warmup_steps=5",
        "no section 'traning'; did you mean training.warmup_steps?",
    ),
    (
        "nothing.like_it=5",
        "no section 'nothing'; there is model, dataset, training",
    ),
    (
        "training.warmup=5",
        "training has no key 'warmup'; did you mean training.warmup_steps?",
    ),
    (
        "model.learning_rate=5",
        "model has no key 'learning_rate'; did you mean training.learning_rate?",
    ),
    # another kind
    (
        "training.seed=many",
        "must be a whole number, at least 0, at most 4,000,000,000, not 'many'",
    ),
    ("training.seed=1.5", "must be a whole number"),
    ("training.seed=true", "must be a whole number"),
    ("training.seed=", "must be a whole number"),
    ("training.seed=0x10", "must be a whole number"),
    ("training.seed=[1]", "must be a whole number"),
    (
        "training.learning_rate=fast",
        "must be a number, greater than 0, less than 1,000, not 'fast'",
    ),
    ("training.learning_rate=.nan", "must be a number"),
    ("training.learning_rate=inf", "must be a number"),
    ("training.learning_rate=1e400", "must be a number"),
    ("lora.enabled=1", "must be true or false, not '1'"),
    ("lora.enabled=", "must be true or false, not ''"),
    ("dataset.name=", "must be a name, not ''"),
    ("dataset.name=-x", "must be a name, not '-x'"),
    ("dataset.name={a: 1}", "must be a name, not {'a': '1'}"),
    ("dataset.split=", "must be one value, not ''"),
    (
        "lora.target_modules=q_proj",
        "must be a list of names like [a, b], not 'q_proj'",
    ),
    ("lora.target_modules=[]", "must be a list of names"),
    ("lora.target_modules=[[a]]", "must be a list of names"),
    (
        "optimizer.betas=[a, b]",
        "must be a list of 2 numbers, at least 0, less than 1, not ['a', 'b']",
    ),
    ("optimizer.betas=[0.9]", "must be a list of 2 numbers"),
    ("training.max_steps=[1]", "must be a whole number, at least 1"),
    ("training.max_steps=some", "at most 1,000,000,000, or null, not 'some'"),
    ("training.seed=[1", "is not YAML"),
    ("training.seed=!!python/name:os.system", "python/name:os.system"),
    ("training.batch_size_per_gpu=Auto", "must be a whole number, at least 1"),
    ("training.batch_size_per_gpu={gpu0: many}", "gpu0: must be a whole number"),
    # no choice
    (
        "training.lr_scheduler=foo",
        "must be one of linear, cosine, constant, not 'foo'",
    ),
    (
        "training.lr_scheduler=cosin",
        "must be one of linear, cosine, constant, not 'cosin'; did you mean cosine?",
    ),
    ("training.save_strategy=never", "must be one of epoch, steps, no"),
    ("training.evaluation_strategy=false", "must be one of epoch, steps, no"),
    ("model.dtype=float8", "must be one of float16, bfloat16, float32"),
    ("optimizer.type=adam", "did you mean adamw?"),
    ("lora.bias=maybe", "must be one of none, all, lora_only, not 'maybe'"),
    ("quantization.bits=5", "must be one of 4, 8, not '5'"),
    ("quantization.compute_dtype=int8", "must be one of float16"),
    ("logging.log_level=loud", "must be one of DEBUG, INFO, WARNING, ERROR"),
    # out of bounds
    ("training.learning_rate=-1", "must be a number, greater than 0"),
    ("training.learning_rate=0", "must be a number, greater than 0"),
    ("training.num_epochs=0", "must be a whole number, at least 1"),
    ("training.num_epochs=1000001", "at most 1,000,000, not '1000001'"),
    ("training.warmup_steps=-1", "must be a whole number, at least 0"),
    ("training.max_steps=0", "must be a whole number, at least 1"),
    ("training.batch_size_per_gpu=0", "must be a whole number, at least 1"),
    ("training.batch_size_per_gpu={gpu0: 0}", "gpu0: must be a whole number"),
    ("dataset.validation_fraction=1", "must be a number, at least 0, less than 1"),
    ("lora.dropout=1.0", "must be a number, at least 0, less than 1"),
    ("optimizer.betas=[0.9, 1]", "must be a list of 2 numbers"),
    ("optimizer.eps=0", "must be a number, greater than 0"),
]


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return make_cluster(tmp_path, training=NOTHING_WRITTEN)


def own_file(root: Path, text: str) -> None:
    (root / "config").mkdir()
    (root / FILE).write_text(text)


def said_of(cluster: Cluster, *sets: str) -> str:
    with pytest.raises(UsageError) as error:
        resolve(cluster, sets=sets)
    return error.value.text


def test_without_a_word_they_are_those_of_the_shipped_file(cluster: Cluster) -> None:
    assert resolve(cluster) == SHIPPED


def test_json_can_carry_them(cluster: Cluster) -> None:
    written = replace(
        cluster,
        training=TrainingDefaults(settings={"lora": {"target_modules": ["k_proj"]}}),
    )
    settings = resolve(
        written, sets=["training.batch_size_per_gpu={gpu0: 3, gpu1: 2, gpu2: 2}"]
    )
    assert json.loads(json.dumps(settings)) == settings


def test_each_source_counts_over_the_one_before(tmp_path: Path) -> None:
    keys = (
        "warmup_steps",
        "gradient_accumulation_steps",
        "learning_rate",
        "num_epochs",
    )
    own_file(tmp_path, "training:\n" + "".join(f"  {key}: 1\n" for key in keys))
    training = TrainingDefaults(
        settings={
            "training": {
                "gradient_accumulation_steps": 2,
                "learning_rate": 2,
                "num_epochs": 2,
            }
        }
    )
    cluster = make_cluster(tmp_path, training=training)
    settings = resolve(
        cluster, learning_rate=3.0, epochs=3, sets=["training.num_epochs=4"]
    )["training"]
    assert [settings[key] for key in keys] == [1, 2, 3, 4]
    assert settings["seed"] == SHIPPED["training"]["seed"]


def test_of_the_cluster_file_counts_only_what_is_written(tmp_path: Path) -> None:
    own_file(
        tmp_path,
        "model: {max_seq_length: 512}\nlora: {rank: 4, alpha: 4}\ntraining: {num_epochs: 7}\n",
    )
    path = tmp_path / "cluster.yaml"
    path.write_text(
        "cluster: {master: {ip: 10.0.0.1}}\nworkers: []\n"
        "training: {default_model: tiny, gradient_accumulation: 3, lora: {rank: 8}}\n"
    )
    settings = resolve(read_cluster_file(path, {"HOME": str(tmp_path)}))
    assert settings["model"] == SHIPPED["model"] | {
        "name": "tiny",
        "max_seq_length": 512,
    }
    assert settings["lora"] == SHIPPED["lora"] | {"rank": 8, "alpha": 4}
    assert (
        settings["training"]["num_epochs"],
        settings["training"]["gradient_accumulation_steps"],
    ) == (7, 3)


def test_a_job_that_goes_on_keeps_its_own(cluster: Cluster) -> None:
    before = resolve(cluster, learning_rate=0.5, sets=["training.seed=7"])
    other = replace(
        cluster,
        training=TrainingDefaults(settings={"training": {"learning_rate": 0.1}}),
    )
    after = resolve(other, base=before, epochs=9, sets=["lora.rank=2"])
    assert (after["training"]["learning_rate"], after["training"]["seed"]) == (0.5, 7)
    assert (after["training"]["num_epochs"], after["lora"]["rank"]) == (9, 2)


def test_a_file_of_ones_own_may_have_keys_of_its_own(tmp_path: Path) -> None:
    own_file(tmp_path, "mine: {depth: 3, name: deep, note: null}\n")
    settings = resolve(make_cluster(tmp_path), sets=["mine.depth=4", "mine.note=1.5"])
    assert settings["mine"] == {"depth": 4, "name": "deep", "note": 1.5}


@pytest.mark.parametrize(("pair", "value"), GOOD)
def test_set_reads_a_value_as_its_key_wants_it(
    cluster: Cluster, pair: str, value: Any
) -> None:
    section, _, key = pair.partition("=")[0].strip().partition(".")
    found = resolve(cluster, sets=[pair])[section][key]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(("pair", "said"), BAD)
def test_set_says_what_is_wrong_in_one_line(
    cluster: Cluster, pair: str, said: str
) -> None:
    message = said_of(cluster, pair)
    assert message.startswith(f"--set {pair}: ")
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("training:\n  seed: [1\n", "line 3: this is not YAML"),
        ("training:\n\tseed: 1\n", "line 2: a tab"),
        ("", "line 1: the file must hold `key: value` lines"),
        ("- 1\n", "line 1: the file must hold `key: value` lines"),
        ("training: 5\n", "line 1: training: must be a section"),
        ("training:\n  seed: 1\n  seed: 2\n", "line 3: training.seed: is given twice"),
        (
            "training:\n  seed: x\n",
            "line 2: training.seed: must be a whole number, at least 0",
        ),
        ("training:\n  seed:\n", "line 2: training.seed: must be a whole number"),
        (
            "training:\n  num_epochs: 2\n  lr_scheduler: liner\n",
            "line 3: training.lr_scheduler: must be one of linear, cosine, constant, not 'liner'; did you mean linear?",
        ),
        ("lora:\n  rank: {a: 1}\n", "line 2: lora.rank: must be a whole number"),
        ("mine:\n  depth: {a: 1}\n", "line 2: mine.depth: must be one value"),
        ("mine:\n  depth: [[1]]\n", "line 2: mine.depth: must be a list of values"),
        ("model: !!python/name:os.system\n", "line 1: model: the tag"),
        ("training: {<<: 1}\n", "line 1: `<<` is not understood here"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_line(
    tmp_path: Path, text: str, said: str
) -> None:
    own_file(tmp_path, text)
    message = said_of(make_cluster(tmp_path))
    assert message.startswith(f"{tmp_path / FILE}, {said}")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"model": "-x"}, "--model -x: must be a name, not '-x'"),
        ({"model": ""}, "--model : must be a name, not ''"),
        ({"dataset": "--evil"}, "--dataset --evil: must be a name"),
        ({"epochs": 0}, "--epochs 0: must be a whole number, at least 1"),
        ({"epochs": 1.5}, "--epochs 1.5: must be a whole number"),
        ({"epochs": "three"}, "--epochs three: must be a whole number"),
        ({"epochs": 10**7}, "--epochs 10000000: must be a whole number"),
        ({"learning_rate": -1e-4}, "--lr -0.0001: must be a number, greater than 0"),
        ({"learning_rate": float("nan")}, "--lr nan: must be a number"),
        ({"learning_rate": "1000"}, "--lr 1000: must be a number"),
    ],
)
def test_a_flag_says_what_is_wrong(
    cluster: Cluster, flags: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError) as error:
        resolve(cluster, **flags)
    assert error.value.text.startswith(said)


def test_every_fault_comes_at_once_with_where_it_was_said(tmp_path: Path) -> None:
    own_file(
        tmp_path,
        "training:\n  seed: -1\n  warmup_steps: 1\noptimizer:\n  type: adam\n",
    )
    cluster = make_cluster(tmp_path)
    with pytest.raises(UsageError) as error:
        resolve(
            cluster,
            epochs=0,
            learning_rate="fast",
            sets=["training.lr_scheduler=foo", "trainig.seed=1", "lora.bias=maybe"],
        )
    first, *lines = error.value.text.splitlines()
    assert first == "the training settings cannot be used: 7 faults"
    assert [line.split(": ")[0] for line in lines] == [
        f"  {tmp_path / FILE}, line 2",
        f"  {tmp_path / FILE}, line 5",
        "  --epochs 0",
        "  --lr fast",
        "  --set training.lr_scheduler=foo",
        "  --set trainig.seed=1",
        "  --set lora.bias=maybe",
    ]


# ---- between keys ----


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (
            ["training.save_steps=5"],
            "--set training.save_steps=5 has no effect: training.save_strategy is epoch; "
            "add --set training.save_strategy=steps",
        ),
        (
            ["training.eval_steps=5", "training.evaluation_strategy=no"],
            "--set training.eval_steps=5 has no effect: training.evaluation_strategy is no; ",
        ),
        (
            ["lora.rank=8", "lora.enabled=false"],
            "--set lora.rank=8 has no effect: lora.enabled is false; add --set lora.enabled=true",
        ),
        (
            ["quantization.bits=4", "model.load_in_4bit=false"],
            "--set quantization.bits=4 has no effect: model.load_in_4bit is false; ",
        ),
        (
            ["quantization.bits=8", "quantization.enabled=off"],
            "--set quantization.bits=8 has no effect: quantization.enabled is false; ",
        ),
        (
            ["model.load_in_4bit=true", "quantization.enabled=no"],
            "--set model.load_in_4bit=true has no effect: quantization.enabled is false; ",
        ),
        (
            ["logging.tensorboard_dir=/x", "logging.use_tensorboard=no"],
            "--set logging.tensorboard_dir=/x has no effect: logging.use_tensorboard is false; ",
        ),
        (
            ["training.batch_size_per_gpu={gpu0: 1, gpu1: 1}"],
            "training.batch_size_per_gpu: no number for gpu2",
        ),
    ],
)
def test_what_another_setting_takes_the_effect_of_is_refused(
    cluster: Cluster, sets: list[str], said: str
) -> None:
    assert said_of(cluster, *sets).startswith(said)


@pytest.mark.parametrize(
    "sets",
    [
        ["training.save_steps=5", "training.save_strategy=steps"],
        ["model.load_in_4bit=false"],
        ["quantization.enabled=false"],
        ["quantization.enabled=false", "model.load_in_4bit=false"],
        ["quantization.bits=8", "model.load_in_4bit=false"],
        ["lora.enabled=false"],
        ["training.save_strategy=no", "training.evaluation_strategy=no"],
    ],
)
def test_what_goes_together_is_taken(cluster: Cluster, sets: list[str]) -> None:
    resolve(cluster, sets=sets)


def test_what_no_launch_asks_for_may_be_without_effect(tmp_path: Path) -> None:
    own_file(tmp_path, "lora: {enabled: false, rank: 8}\ntraining: {save_steps: 7}\n")
    assert resolve(make_cluster(tmp_path))["training"]["save_steps"] == 7


# ---- the schema of a project, and scripts of one's own ----


def own_schema(root: Path, text: str) -> None:
    (root / "config").mkdir(exist_ok=True)
    (root / TRAINING_SCHEMA).write_text(text)


def test_a_project_may_say_what_its_own_script_takes(tmp_path: Path) -> None:
    own_schema(
        tmp_path,
        "optimizer: {type: {kind: text, choices: [lion, adamw]}}\n"
        "mine: {depth: {kind: whole number, most: 9}}\n",
    )
    cluster = make_cluster(tmp_path)
    settings = resolve(cluster, sets=["optimizer.type=lion", "mine.depth=3"])
    assert (settings["optimizer"]["type"], settings["mine"]) == ("lion", {"depth": 3})
    assert "must be one of lion, adamw" in said_of(cluster, "optimizer.type=sgd")
    assert "at most 9, not '10'" in said_of(cluster, "mine.depth=10")
    assert "must be one of linear" in said_of(cluster, "training.lr_scheduler=foo")


def test_the_cluster_file_is_held_against_the_schema_of_the_project(
    tmp_path: Path,
) -> None:
    own_schema(
        tmp_path, "training: {num_epochs: {kind: whole number, least: 1, most: 2}}\n"
    )
    path = tmp_path / "cluster.yaml"
    path.write_text(
        "cluster: {master: {ip: 10.0.0.1}}\ntraining:\n  default_epochs: 3\n"
    )
    said = said_of(read_cluster_file(path, {"HOME": str(tmp_path)}))
    assert said == (
        f"{path}, line 3: training.default_epochs: "
        "must be a whole number, at least 1, at most 2, not 3"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mine:\n  a: 1\n", "line 2: mine.a: must be a section with a `kind`"),
        (
            "mine:\n  a: {choices: [b]}\n",
            "line 2: mine.a: its kind must be one of text",
        ),
        ("mine:\n  a: {kind: nmber}\n", "did you mean number?"),
        (
            "mine:\n  a: {kind: number, lest: 1}\n",
            "a rule has no part 'lest'; did you mean least?",
        ),
        ("mine:\n  a: {kind: number, least: few}\n", "could not convert"),
        ("mine:\n  a: {kind: text, least: 1}\n", "least: only a number has limits"),
        ("mine:\n  a: {kind: text, choices: b}\n", "'b' must be a list"),
        ("mine:\n  a: {kind: text, needs: b}\n", "'b' must be a section of settings"),
        ("mine: 5\n", "line 1: mine: must be a section"),
    ],
)
def test_a_schema_that_cannot_be_used_is_named_with_the_line(
    tmp_path: Path, text: str, said: str
) -> None:
    own_schema(tmp_path, text)
    message = said_of(make_cluster(tmp_path))
    assert message.startswith(f"{tmp_path / TRAINING_SCHEMA}, line ")
    assert said in message


@pytest.mark.parametrize("needs", ["other.key: 1", "lora.enabled: maybe"])
def test_a_schema_that_needs_what_cannot_be_is_refused(
    tmp_path: Path, needs: str
) -> None:
    own_schema(tmp_path, f"mine: {{a: {{kind: text, needs: {{{needs}}}}}}}\n")
    said = f"mine.a needs {needs.replace(': ', '=')}, which cannot be"
    assert said in said_of(make_cluster(tmp_path))


def test_without_a_schema_another_script_takes_what_is_of_the_defaults_kind(
    tmp_path: Path,
) -> None:
    own_file(tmp_path, "training: {lr_scheduler: polynomial}\nmine: {depth: 3}\n")
    cluster = make_cluster(tmp_path)
    sets = ["optimizer.type=lion", "mine.depth=-4", "training.save_steps=7"]
    sets += ["quantization.bits=4", "model.load_in_4bit=false"]
    settings = resolve(cluster, script="mine.py", sets=sets)
    assert settings["training"]["lr_scheduler"] == "polynomial"
    assert (settings["optimizer"]["type"], settings["mine"]["depth"]) == ("lion", -4)
    for sets, said in (
        (["mine.depth=deep"], "must be a whole number, not 'deep'"),
        (["trainig.seed=1"], "did you mean training.seed?"),
        (["training.num_epochs=0"], "must be a whole number, at least 1"),
    ):
        with pytest.raises(UsageError, match=re.escape(said)):
            resolve(cluster, script="mine.py", sets=sets)
    with pytest.raises(UsageError, match="must be one of linear"):
        resolve(cluster, script="train_production.py")


@pytest.mark.parametrize(
    ("default", "pair", "value"),
    [
        ("3", "4", 4),
        ("3.5", "4", 4.0),
        ("1e-8", "1e-9", 1e-9),
        ("no", "on", True),
        ("'no'", "on", "on"),
        ("'3'", "4", "4"),
        ("''", "4", "4"),
        ("null", "4", 4),
        ("~", "'4'", "4"),
        ("", "no", False),
        ("[1, 2]", "[3]", [3]),
        ("[1, a]", "[b, 3]", ["b", 3]),
        ("[]", "[b, 3]", ["b", 3]),
        ("2026-01-20", "2026-01-21", "2026-01-21"),
    ],
)
def test_a_key_of_ones_own_is_of_its_defaults_kind(
    tmp_path: Path, default: str, pair: str, value: Any
) -> None:
    own_file(tmp_path, f"mine: {{key: {default}}}\n")
    cluster = make_cluster(tmp_path)
    found = resolve(cluster, sets=[f"mine.key={pair}"])["mine"]["key"]
    assert (found, type(found)) == (value, type(value))


# ---- files ----


def test_a_file_that_is_no_text_says_so(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / FILE).write_bytes(b"\xff\xfe")
    assert said_of(make_cluster(tmp_path)) == f"{tmp_path / FILE}: it is not UTF-8"


def test_a_plain_no_is_a_word_where_a_word_belongs(tmp_path: Path) -> None:
    own_file(
        tmp_path,
        "training: {save_strategy: no, learning_rate: 1e-3}\nquantization: {enabled: no}\n",
    )
    settings = resolve(make_cluster(tmp_path))
    assert settings["training"]["save_strategy"] == "no"
    assert settings["training"]["learning_rate"] == 0.001
    assert settings["quantization"]["enabled"] is False
