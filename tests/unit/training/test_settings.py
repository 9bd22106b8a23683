"""The training settings: what counts over what, and what is said about a value that cannot be."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from msgspec.structs import replace

from tests.unit.factories import make_cluster
from ugro_tasks.cluster.file import read_cluster_file
from ugro_tasks.cluster.model import Cluster, TrainingDefaults
from ugro_tasks.errors import UsageError
from ugro_tasks.training.settings import FILE, resolve

SHIPPED = yaml.safe_load((Path(__file__).parents[3] / FILE).read_text())
NOTHING_WRITTEN = TrainingDefaults()


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
        cluster, training=TrainingDefaults.given(lora={"target_modules": ("k_proj",)})
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
    training = TrainingDefaults.given(
        gradient_accumulation_steps=2, learning_rate=2, epochs=2
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
    other = replace(cluster, training=TrainingDefaults.given(learning_rate=0.1))
    after = resolve(other, base=before, epochs=9, sets=["lora.rank=2"])
    assert (after["training"]["learning_rate"], after["training"]["seed"]) == (0.5, 7)
    assert (after["training"]["num_epochs"], after["lora"]["rank"]) == (9, 2)


def test_a_file_of_ones_own_may_have_keys_of_its_own(tmp_path: Path) -> None:
    own_file(tmp_path, "mine: {depth: 3, name: deep, note: null}\n")
    settings = resolve(make_cluster(tmp_path), sets=["mine.depth=4", "mine.note=1.5"])
    assert settings["mine"] == {"depth": 4, "name": "deep", "note": 1.5}


@pytest.mark.parametrize(
    ("pair", "value"),
    [
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
    ],
)
def test_set_reads_a_value_as_its_key_wants_it(
    cluster: Cluster, pair: str, value: Any
) -> None:
    section, _, key = pair.partition("=")[0].strip().partition(".")
    found = resolve(cluster, sets=[pair])[section][key]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("pair", "said"),
    [
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
        ("training.seed=many", "must be a whole number, not 'many'"),
        ("training.seed=1.5", "must be a whole number"),
        ("training.seed=true", "must be a whole number"),
        ("training.seed=", "must be a whole number"),
        ("training.learning_rate=fast", "must be a number, not 'fast'"),
        ("training.learning_rate=.nan", "must be a number"),
        ("lora.enabled=1", "must be true or false"),
        ("dataset.name=", "must be one value"),
        ("dataset.name={a: 1}", "must be one value or a list of values"),
        ("lora.target_modules=q_proj", "must be a list like [q_proj, v_proj]"),
        ("lora.target_modules=[]", "must be a list like"),
        ("optimizer.betas=[a, b]", "must be a number, not 'a'"),
        ("training.max_steps=[1]", "must be one value"),
        ("training.seed=[1", "is not YAML"),
        ("training.seed=!!python/name:os.system", "is not YAML"),
        ("training.batch_size_per_gpu=0", "is no batch size"),
    ],
)
def test_set_says_what_is_wrong_in_one_line(
    cluster: Cluster, pair: str, said: str
) -> None:
    message = said_of(cluster, pair)
    assert message.startswith("--set")
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("training:\n  seed: [1\n", "line 3: this is not YAML"),
        ("training:\n\tseed: 1\n", "line 2: a tab"),
        ("", "line 1: the file must hold `key: value` lines"),
        ("- 1\n", "line 1: the file must hold `key: value` lines"),
        ("training: 5\n", "line 1: training must be a section"),
        ("training:\n  seed: 1\n  seed: 2\n", "line 3: training.seed: is given twice"),
        (
            "training:\n  seed: x\n",
            "line 2: training.seed: must be a whole number, not 'x'",
        ),
        (
            "lora:\n  rank: {a: 1}\n",
            "line 2: lora.rank: must be one value or a list of values",
        ),
        (
            "training:\n  seed: 1\nlogging: {on: 1}\n",
            "line 3: the key True is no text; put it in quotes",
        ),
        ("1: {a: 1}\n", "line 1: the key 1 is no text"),
        ("model: !!python/name:os.system\n", "line 1: model: the tag"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_line(
    tmp_path: Path, text: str, said: str
) -> None:
    own_file(tmp_path, text)
    message = said_of(make_cluster(tmp_path))
    assert message.startswith(f"{tmp_path / FILE}, {said}")


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
