"""The command lines that UGRO was asked for at its beginning: each parses, or stands in a list with the reason.

What they print, and commands of other programs: ../test_owners_examples.py.
"""

from __future__ import annotations

from typing import Any

import pytest
from invoke.parser import Parser

from ugro_tasks.cli.collection import ns
from ugro_tasks.cli.command_line import reading

LINES: list[tuple[str, str, dict[str, Any]]] = [
    ("health", "health", {}),
    ("sync-envs", "sync-envs", {}),
    # Called after its script: tests/unit/test_api.py.
    ("launch", "launch", {"name": None}),
    ("launch --name exp1", "launch", {"name": "exp1"}),
    ("launch --name exp1 --epochs 3", "launch", {"name": "exp1", "epochs": "3"}),
    (
        "launch --name quick_test --epochs 1",
        "launch",
        {"name": "quick_test", "epochs": "1"},
    ),
    ("launch --name first_test", "launch", {"name": "first_test"}),
    ("launch --name test1", "launch", {"name": "test1"}),
    (
        "launch --name exp1 --model llama-7b --epochs 3",
        "launch",
        {"name": "exp1", "model": "llama-7b", "epochs": "3"},
    ),
    (
        "launch --model llama-7b --dataset wikitext --name exp1",
        "launch",
        {"name": "exp1", "model": "llama-7b", "dataset": "wikitext"},
    ),
    (
        "launch --name llama_exp --model meta-llama/Llama-2-7b-hf --dataset wikitext --epochs 3 --lr 1e-4",
        "launch",
        {
            "name": "llama_exp",
            "model": "meta-llama/Llama-2-7b-hf",
            "epochs": "3",
            "lr": "1e-4",
        },
    ),
    ("launch --name exp1 --verbose", "launch", {"name": "exp1", "verbose": True}),
    ("status", "status", {"name": None}),
    ("status exp1", "status", {"name": "exp1"}),
    ("logs exp1", "logs", {"name": "exp1", "rank": None}),
    ("logs exp1 --rank 0", "logs", {"name": "exp1", "rank": "0"}),
    ("logs first_test", "logs", {"name": "first_test", "rank": None}),
    ("logs quick_test", "logs", {"name": "quick_test", "rank": None}),
    ("logs llama_exp", "logs", {"name": "llama_exp", "rank": None}),
    ("logs llama_exp --rank 0", "logs", {"name": "llama_exp", "rank": "0"}),
    ("results exp1", "results", {"name": "exp1"}),
    ("results llama_exp", "results", {"name": "llama_exp"}),
    ("results quick_test", "results", {"name": "quick_test"}),
    ("results first_test", "results", {"name": "first_test"}),
]
# How they are typed is settled in test_command_line.py where Invoke would not understand them.
NOT_YET = {
    "queue exp1 exp2 exp3": "the queue is to come",
    "sweep --param learning_rate 1e-5,2e-5,5e-5 --param epochs 1,2": "sweeps are to come",
    "serve exp1": "serving is to come",
    "dashboard": "the dashboard is to come",
}


@pytest.mark.parametrize(("line", "task", "values"), LINES)
def test_a_line_that_was_asked_for_parses(
    line: str, task: str, values: dict[str, Any]
) -> None:
    words = line.split()
    with reading("ugro", words):
        parsed = Parser(ns.to_contexts()).parse_argv(words)
    (context,) = [context for context in parsed if context.name]
    assert context.name == task
    assert {name: context.as_kwargs[name] for name in values} == values


@pytest.mark.parametrize("line", NOT_YET)
def test_a_command_that_is_to_come_is_not_there_yet(line: str) -> None:
    """Whoever makes it moves it to the lines above."""
    assert line.split()[0] not in ns.task_names
