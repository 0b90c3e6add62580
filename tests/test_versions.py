"""Versions in keys are raised with the results that they stand for; see versions.py."""

from __future__ import annotations

import json

import pytest
import torch
from versions import PATH, Results, differing, measured


def test_results_and_versions_change_together() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = differing(json.loads(PATH.read_text()), measured())
    finally:
        torch.set_num_threads(threads)
    assert found == {}, "raise SCHEMA or the class's version, then record both: python tests/versions.py"


KNOWN: Results = {"attack a": {"version": "3/1", "results": [0.5, 12.0]}}


@pytest.mark.parametrize(
    ("version", "results", "said"),
    [
        ("3/1", [0.5, 12.0], {}),
        ("3/1", [0.5004, 12.0], {}),
        ("3/1", [0.51, 12.0], {"attack a": "results changed, version did not"}),
        ("3/1", [0.5], {"attack a": "results changed, version did not"}),
        ("3/2", [0.5, 12.0], {"attack a": "version changed, results did not"}),
        ("3/2", [0.51, 12.0], {"attack a": "both changed"}),
        ("4/1", [0.5, 12.0], {"attack a": "version changed, results did not"}),
        ("4/1", [0.5000001, 12.0], {"attack a": "schema changed"}),
        ("4/2", [0.5000001, 12.0], {"attack a": "version changed, results did not"}),
    ],
)
def test_one_without_the_other_is_found(version: str, results: list[float], said: dict[str, str]) -> None:
    assert differing(KNOWN, {"attack a": {"version": version, "results": results}}) == said


def test_what_is_new_or_gone_is_found() -> None:
    assert differing(KNOWN, {}) == {"attack a": "recorded"}
    assert differing({}, KNOWN) == {"attack a": "not recorded"}


def test_a_schema_serves_plugins_whose_results_stayed() -> None:
    known = {**KNOWN, "attack b": {"version": "3/1", "results": [1.0]}}
    now = {"attack a": {"version": "4/1", "results": [0.6, 12.0]}, "attack b": {"version": "4/1", "results": [1.0]}}
    assert differing(known, now) == {"attack a": "both changed", "attack b": "schema changed"}
