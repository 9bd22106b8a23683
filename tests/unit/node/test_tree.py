"""The entries of a folder: what a source may send, and what a path or a pattern means."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ugro_tasks.node.tree import (
    PARTIAL_FOLDER,
    Unfit,
    check_entry,
    is_excluded,
    leads_inside,
)

OUTSIDE = [
    ["f", "../x", 0, 0, 1], ["f", "/etc/x", 0, 0, 1], ["f", "a/../../x", 0, 0, 1], ["f", "", 0, 0, 1],
    ["f", "a//b", 0, 0, 1], ["f", ".", 0, 0, 1], ["f", "a\0b", 0, 0, 1], ["d", "..", 0, 0], ["l", "../x", "y"],
    ["f", f"{PARTIAL_FOLDER}/x", 0, 0, 1], ["f", "x" * 5000, 0, 0, 1],
]  # fmt: skip
NO_ENTRY = [
    None, 1, "f", [], ["f"], ["x", "a"], ["f", "a", 0, 0], ["f", "a", 0, 0, -1], ["f", "a", 0, 0, True],
    ["f", "a", "0", 0, 0], ["f", "a", 0, 0o4755, 1], ["d", 7, 0, 0], ["l", "a", ""], ["l", "a", "b\0c"],
    ["f", "a", 0, 0, 1 << 70], ["f", "a", 0.5, 0, 1], ["e", "a", None], [["f"], "a", 0, 0, 1],
]  # fmt: skip


@pytest.mark.parametrize("entry", [*OUTSIDE, *NO_ENTRY], ids=repr)
def test_an_entry_that_is_none_is_refused(entry: object) -> None:
    with pytest.raises(Unfit):
        check_entry(entry)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=6)
    )
)
def test_whatever_stands_for_an_entry_is_one_or_unfit(entry: object) -> None:
    with contextlib.suppress(Unfit):
        check_entry(entry)
        assert isinstance(entry, list)
        assert ".." not in entry[1].split("/")


@pytest.mark.parametrize(
    ("path", "target", "inside"),
    [
        ("a", "b", True), ("a", "b/../c", True), ("d/a", "../b", True), ("d/e/a", "../../b", True),
        ("a", "../b", False), ("d/a", "../../b", False), ("a", "/b", False), ("a", "b/../../c", False),
        ("a", ".", True),
        ("d/a", "..", True), ("a", "..", False),
    ],
)  # fmt: skip
def test_where_a_link_leads(path: str, target: str, inside: bool) -> None:
    assert leads_inside(path, target) is inside


@pytest.mark.parametrize(
    ("path", "pattern", "excluded"),
    [
        ("a/b", "/a", True), ("a/b", "/b", False), ("b/a", "a", True), ("ab", "a*", True), ("a/b/c", "/a/*", True),
        ("a/x/c", "/a/*/c", True), ("a/x/y/c", "/a/*/c", False), ("A", "a", False), ("a[b]", "/a[[]b]", True),
    ],
)  # fmt: skip
def test_what_a_pattern_fits(path: str, pattern: str, excluded: bool) -> None:
    assert is_excluded(path, [pattern]) is excluded
