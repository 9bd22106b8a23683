"""What came of a job: curves, cards, checkpoints, and how they are shown, from files that anything may stand in."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.ended import store
from tests.unit.factories import (
    make_cluster,
    make_node_plan,
    make_plan_of,
    make_record,
    make_scripts,
)
from ugro_tasks.cli.show.chart import chart
from ugro_tasks.cli.show.console import plain, style
from ugro_tasks.cli.show.picture import draw
from ugro_tasks.cli.show.results import show_results
from ugro_tasks.errors import RecordError, ToolMissing, UsageError
from ugro_tasks.jobs.experiment import Experiment
from ugro_tasks.jobs.experiments import Experiments
from ugro_tasks.jobs.gpu_use import card_use
from ugro_tasks.jobs.metrics import Metrics, Point, measure
from ugro_tasks.jobs.spec import Resume
from ugro_tasks.jobs.state import Attempt, Cause
from ugro_tasks.reports.results import Results, results


@pytest.fixture
def job(tmp_path: Path) -> Experiment:
    """Three ranks, whose shares of a batch are 3, 2 and 2."""
    experiments = Experiments(tmp_path / "experiments")
    made = experiments.create(
        make_record(make_cluster(tmp_path)), make_scripts(tmp_path / "scripts")
    )
    plans = tuple(
        make_node_plan(rank, batch_size=batch) for rank, batch in enumerate((3, 2, 2))
    )
    made.save_record(msgspec.structs.replace(made.record(), plan=make_plan_of(plans)))
    return made


def log(job: Experiment, *lines: dict[str, Any] | str) -> Metrics:
    """metrics.jsonl with these lines, in figures."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    job.metrics.path.write_text("".join(f"{text}\n" for text in texts))
    return measure(job.metrics)


# ---- metrics ----


def test_a_job_that_left_nothing_has_results_all_the_same(job: Experiment) -> None:
    found = results(job)
    assert (found.metrics.train, found.metrics.last, found.checkpoints, found.logs) == (
        [],
        {},
        [],
        {},
    )
    assert [(node.node, node.rank, node.cards) for node in found.nodes] == [
        ("gpu0", 0, []), ("gpu1", 1, []), ("gpu2", 2, []),
    ]  # fmt: skip


def test_the_last_metrics_are_the_last_word_on_each(job: Experiment) -> None:
    found = log(
        job,
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": 1.5},
        {"step": 2, "eval_loss": 1.7},
    )
    assert found.last == {"step": 2, "loss": 1.5, "eval_loss": 1.7}


def test_the_best_is_where_a_loss_was_lowest(job: Experiment) -> None:
    lines = [
        {"step": step, "loss": loss} for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0))
    ]
    found = log(
        job, *lines, {"step": 2, "eval_loss": 5.0}, {"step": 3, "eval_loss": 4.0}
    )
    assert found.best == {"loss": Point(2, 1.0), "eval_loss": Point(3, 4.0)}


def test_of_a_step_that_came_twice_the_last_line_counts(job: Experiment) -> None:
    """A restart from step 2."""
    steps = ((1, 3.0), (2, 2.0), (3, 0.1), (2, 2.5), (3, 2.4), (4, 2.3))
    found = log(job, *({"step": step, "loss": loss} for step, loss in steps))
    assert found.train == [Point(1, 3.0), Point(2, 2.5), Point(3, 2.4), Point(4, 2.3)]
    assert found.best["loss"] == Point(4, 2.3)


def test_lines_without_steps_are_counted(job: Experiment) -> None:
    assert log(job, {"loss": 2.0}, {"loss": 1.0}).train == [
        Point(1, 2.0),
        Point(2, 1.0),
    ]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_a_loss_that_is_not_finite_is_told_and_is_no_best(
    job: Experiment, value: str
) -> None:
    """As Python's json writes it, and so most training scripts."""
    found = log(
        job,
        {"step": 1, "loss": 2.0},
        f'{{"step": 2, "loss": {value}}}',
        {"step": 3, "loss": 3.0},
    )
    assert found.train == [Point(1, 2.0), Point(3, 3.0)]
    assert found.best["loss"] == Point(1, 2.0)
    first = found.first_nonfinite
    assert first
    assert (first.step, math.isfinite(first.value)) == (2, False)


JUNK = [
    "{", "[1]", "null", "\0", "hello", "", '{"a": ' + "[" * 100_000,
    '{"loss": "2.0"}', '{"loss": null}', '{"loss": true}',
    '{"loss": [1]}', '{"loss": 1' + "0" * 5000 + "}", '{"loss": 1' + "0" * 400 + "}", '"' + "x" * (3 << 20) + '"',
]  # fmt: skip


@pytest.mark.parametrize("junk", JUNK, ids=range(len(JUNK)))
def test_junk_among_the_metrics_is_no_point_and_no_harm(
    job: Experiment, junk: str
) -> None:
    found = log(job, {"step": 1, "loss": 2.0}, junk, {"step": 2, "loss": 1.0})
    assert found.train == [Point(1, 2.0), Point(2, 1.0)]
    show_results(results(job), as_json=True)
    show_results(results(job), as_json=False)


def test_a_line_that_is_no_text_is_no_harm(job: Experiment) -> None:
    job.metrics.path.write_bytes(
        b'\xff\xfe\n{"step": 1, "loss": 2.0, "note": "\xff"}\n{"step": 2, "loss": 1.0}\n{"st'
    )
    assert measure(job.metrics).train == [Point(2, 1.0)]


@pytest.mark.parametrize(
    "half", [r'{"\ud800": 1}', r'{"note": "\ud800"}', r'{"note": ["\udc00"]}']
)
def test_half_a_character_can_be_shown(
    job: Experiment, half: str, capsys: pytest.CaptureFixture[str]
) -> None:
    log(job, half)
    show_results(results(job), as_json=True)
    assert json.loads(capsys.readouterr().out)["metrics"]["last"]
    show_results(results(job), as_json=False)
    assert "metrics" in capsys.readouterr().out


def test_the_throughput_is_the_median_and_each_nodes_part_its_share_of_the_batch(
    job: Experiment,
) -> None:
    log(
        job,
        *(
            {"step": step, "tokens_per_second": rate}
            for step, rate in ((1, 7.0), (2, 700.0), (3, 710.0))
        ),
    )
    found = results(job)
    assert found.metrics.tokens_per_second == 700.0
    assert [node.tokens_per_second for node in found.nodes] == [300.0, 200.0, 200.0]


# ---- cards ----


def sample(node: str, **changes: str) -> str:
    """A line as the supervisor on a node writes it."""
    told = {
        "index": "0", "name": "NVIDIA GeForce RTX 4070", "uuid": "GPU-1", "memory.total": "8188",
        "memory.used": "7000", "utilization.gpu": "90", "temperature.gpu": "70", "power.draw": "100.00", "node": node,
    }  # fmt: skip
    return json.dumps({**told, **changes, "time": 1.0}) + "\n"


def test_the_use_of_a_card_in_figures(job: Experiment) -> None:
    busier = {
        "utilization.gpu": "100",
        "memory.used": "7500",
        "power.draw": "200.00",
        "temperature.gpu": "81",
    }
    job.gpu.path.write_text(sample("gpu1") + sample("gpu0") + sample("gpu1", **busier))
    first, card = card_use(job.gpu)
    assert (first.node, card.node, card.samples) == ("gpu0", "gpu1", 2)
    assert (card.utilization_mean_percent, card.utilization_max_percent) == (
        95.0,
        100.0,
    )
    assert (card.memory_peak_mib, card.memory_total_mib) == (7500.0, 8188.0)
    assert (card.power_mean_watts, card.power_max_watts) == (150.0, 200.0)
    assert card.temperature_max_celsius == 81.0


def test_what_a_card_does_not_tell_is_none(job: Experiment) -> None:
    job.gpu.path.write_text(
        sample("gpu0", **{"power.draw": "[N/A]", "utilization.gpu": "[Not Supported]"})
    )
    [card] = card_use(job.gpu)
    assert (
        card.power_mean_watts,
        card.power_max_watts,
        card.utilization_mean_percent,
    ) == (None, None, None)


@pytest.mark.parametrize(
    "junk", ["{\n", "[]\n", '{"node": 7}\n', '{"node": "gpu0", "index": "x"}\n', "\0\n"]
)
def test_junk_among_the_samples_is_passed_over(job: Experiment, junk: str) -> None:
    job.gpu.path.write_text(
        sample("gpu0") + junk + sample("gpu0", **{"memory.used": "nan"})
    )
    [card] = card_use(job.gpu)
    assert (card.samples, card.memory_peak_mib) == (2, 7000.0)


def test_a_node_with_two_cards_has_a_line_for_each(
    job: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    job.gpu.path.write_text(
        sample("gpu0") + sample("gpu0", index="1", name="NVIDIA GeForce RTX 3070 Ti")
    )
    show_results(results(job), as_json=False)
    out = capsys.readouterr().out
    assert "RTX 4070" in out
    assert "RTX 3070 Ti" in out


# ---- checkpoints ----


def test_a_checkpoint_is_whole_when_all_its_ranks_have_come(job: Experiment) -> None:
    for rank in (0, 1, 2):
        own = {
            f"rng_{rank}": b"x" * 10,
            **({"adapter": b"y" * 1000} if rank == 0 else {}),
        }
        store(job, "checkpoint-50", 50, rank, (0, 1, 2), **own)
    [line] = results(job).checkpoints
    assert (line.whole, line.missing, line.step, line.epoch, line.bytes) == (
        True,
        None,
        50,
        5.0,
        1030,
    )
    assert (line.ranks, line.nodes) == ([0, 1, 2], ["gpu0", "gpu1", "gpu2"])
    assert line.path == "outputs/0/checkpoints/checkpoint-50"


def test_a_checkpoint_that_lacks_a_rank_says_so(job: Experiment) -> None:
    store(job, "checkpoint-50", 50, 0, (0, 1), adapter=b"y")
    [line] = results(job).checkpoints
    assert (line.whole, line.ranks, line.nodes) == (False, [0], ["gpu0"])
    assert "rank 1" in (line.missing or "")


def test_a_checkpoint_that_only_another_rank_has_is_not_whole(job: Experiment) -> None:
    store(job, "checkpoint-50", 50, 1, (0, 1), rng=b"y")
    [line] = results(job).checkpoints
    assert (line.whole, line.missing) == (False, "the part of rank 0 has not come")


def test_without_manifests_nobody_can_tell_and_the_oldest_comes_first(
    job: Experiment,
) -> None:
    for number, name in enumerate(("later", "sooner")):
        folder = job.outputs.checkpoints(0).path / name
        (folder / "deep").mkdir(parents=True)
        (folder / "a").write_bytes(b"12345")
        (folder / "deep" / "b").write_bytes(b"123")
        os.utime(folder, (2000 - number, 2000 - number))
    job.outputs.checkpoints(2).path.mkdir(parents=True)
    (job.outputs.checkpoints(2).path / "later").write_bytes(b"1")
    store(job, "checkpoint-1", 1, 0, (0,), adapter=b"y")
    found = [
        (line.name, line.bytes, line.whole, line.ranks)
        for line in results(job).checkpoints
    ]
    assert found == [
        ("sooner", 8, None, [0]),
        ("later", 9, None, [0, 2]),
        ("checkpoint-1", 1, True, [0]),
    ]


@pytest.mark.parametrize("target", ["nowhere", "latest"], ids=["dangling", "a loop"])
def test_a_link_that_leads_nowhere_is_no_harm_to_the_results(
    job: Experiment, target: str
) -> None:
    job.outputs.checkpoints(0).path.mkdir(parents=True)
    (job.outputs.checkpoints(0).path / "epoch_1.pt").write_bytes(b"123")
    (job.outputs.checkpoints(0).path / "latest").symlink_to(target)
    assert {line.name: line.bytes for line in results(job).checkpoints} == {
        "epoch_1.pt": 3,
        "latest": 0,
    }


# ---- as it is shown ----


def test_a_restart_is_told_with_its_cause(
    job: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = Cause(message="rank 1 on gpu1: killed by SIGKILL\nmore")
    first = Attempt(
        number=1,
        nodes=("gpu0", "gpu1"),
        began_at=100.0,
        bases={},
        ended_at=160.0,
        cause=lost,
    )
    resume = Resume(job_id=job.job_id, checkpoint="checkpoint-50", step=50)
    second = Attempt(number=2, nodes=("gpu0",), began_at=170.0, bases={}, resume=resume)
    job.save_state(msgspec.structs.replace(job.state(), attempts=(first, second)))
    show_results(results(job), as_json=False)
    out = capsys.readouterr().out
    assert "1:00" in out
    assert "rank 1 on gpu1: killed by SIGKILL" in out
    assert "from checkpoint-50" in out


def points(*values: float) -> list[Point]:
    return [Point(step, value) for step, value in enumerate(values, 1)]


def test_a_falling_loss_falls_from_the_top_left_to_the_bottom_right() -> None:
    rows = [plain(row) for row in chart(points(3.0, 2.0, 1.0), [], width=23, height=4)]
    drawn = [row.partition("┤")[2] or row.partition("│")[2] for row in rows]
    assert drawn[0].startswith("⠉⠒")
    assert len(drawn[3]) == 20  # to the very end
    assert drawn[3].startswith("   ")
    assert [row.split()[0] for row in (rows[0], rows[3])] == ["3", "1"]
    assert rows[-1].split() == ["1", "step", "3"]


def test_an_evaluation_is_a_diamond() -> None:
    rows = chart(points(2.0, 1.0), [Point(2, 1.5)], width=40)
    assert [piece for row in rows for piece in row if "◆" in plain([piece])] == [
        style("◆", "magenta")
    ]


def test_a_steep_beginning_makes_the_scale_logarithmic() -> None:
    assert "logarithmic" in plain(chart(points(1000.0, 10.0, 1.0), [], width=80)[-1])
    assert "logarithmic" not in plain(
        chart(points(1000.0, 10.0, 0.0), [], width=80)[-1]
    )


@given(
    st.lists(
        st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 2), max_size=30
    ),
    st.integers(1, 200),
)
def test_any_curve_can_be_drawn_within_its_width(
    curve: list[tuple[float, float]], width: int
) -> None:
    line = [Point(*point) for point in sorted(curve)]
    for row in chart(line, line[:3], width=width)[:-1]:
        # The last one has the steps, in full.
        assert len(plain(row)) <= max(width, 24)


def test_nothing_to_draw_is_no_chart() -> None:
    assert chart([], [], width=80) == []


# ---- as a picture ----


@pytest.fixture
def found(job: Experiment) -> Results:
    log(
        job,
        *(
            {"step": step, "loss": 2.0 / step, "eval_loss": 3.0 / step}
            for step in range(1, 20)
        ),
    )
    return results(job)


@pytest.mark.parametrize(
    ("name", "magic"), [("out.png", b"\x89PNG"), ("out.SVG", b"<?xml")]
)
def test_the_curve_as_a_picture_needs_no_display(
    found: Results,
    name: str,
    magic: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    path = draw(found, str(tmp_path / name))
    assert path.read_bytes().startswith(magic)
    assert path.stat().st_size > 5000


@pytest.mark.parametrize("name", ["out.gif", "out", ".svg", "no/such/folder/out.svg"])
def test_a_picture_that_cannot_be_made_is_a_usage_error(
    found: Results, name: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="--plot"):
        draw(found, str(tmp_path / name))


def test_without_a_loss_there_is_nothing_to_draw(
    job: Experiment, tmp_path: Path
) -> None:
    with pytest.raises(RecordError, match="no loss"):
        draw(results(job), str(tmp_path / "out.svg"))


def test_without_matplotlib_it_says_how_to_get_it(
    found: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ToolMissing, match="-m pip install matplotlib"):
        draw(found, str(tmp_path / "out.svg"))


def test_results_that_draw_nothing_do_not_load_matplotlib() -> None:
    loaded = "import sys, ugro_tasks.cli.show.results, ugro_tasks.reports.results; print('matplotlib' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", loaded], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
