"""Boards with other distributions' plugins: rows state their versions, and keys are those of what rows state."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json

import pandas as pd
import pytest

from advbench.boards import plans
from advbench.boards.findings import Findings
from advbench.boards.plans import lay_out, plan_as_made, versions_of
from advbench.boards.rows import check_rows
from advbench.grid.identity import DataIdentity, Identity
from advbench.grid.plan import Plan
from advbench.grid.spec import Choice, RunSpec, make_spec, resolve
from advbench.report.tables import planned

SPEC = make_spec({"defenses": ["erm", "bnn"], "attacks": ["fgsm"], "eps": [0.1]})
IDENTITY = Identity(DataIdentity("digits", "0" * 64, 1294, 359))


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if `bnn` came of a distribution of its own, version 2.0, built on a library."""

    def with_theirs(spec: RunSpec) -> tuple[tuple[Choice, ...], tuple[Choice, ...]]:
        defenses, attacks = resolve(spec)
        entry = dataclasses.replace(defenses[-1].entry, distribution="their-plugin", version="2.0")
        return (
            *defenses[:-1],
            defenses[-1]._replace(entry=entry, version="2.0", built_on={"their-library": "7"}),
        ), attacks

    monkeypatch.setattr(plans, "resolve", with_theirs)


def keys(plan: Plan) -> list[str]:
    return [cell.key for cell in plan.cells]


def rows(plan: Plan, **versions: str) -> pd.DataFrame:
    """Its rows, as if versions had made them."""
    ours = {"advbench": plans.installed_version(), "torch": "2", "numpy": "2", "device": "x"}
    of_bnn = {name.replace("_", "-"): version for name, version in versions.items()}
    frame = planned(plan)
    stated = [json.dumps(ours | (of_bnn if name == "bnn" else {}), sort_keys=True) for name in frame.defense]
    return frame.assign(versions=stated)


@pytest.mark.usefixtures("theirs")
def test_keys_are_those_of_the_versions_that_rows_state() -> None:
    now, before = lay_out(SPEC, IDENTITY), lay_out(SPEC, IDENTITY, {"their-plugin": "1.0"})
    other_library = lay_out(SPEC, IDENTITY, {"their-library": "6"})
    for plan in (before, other_library):
        changed = [one != other for one, other in zip(keys(now), keys(plan), strict=True)]
        assert changed == ["bnn" in (cell.defense.label, cell.source.label) for cell in now.cells]
    assert versions_of(before) == {**versions_of(now), "their-plugin": "1.0"}
    assert versions_of(now)["their-library"] == "7"
    made = plan_as_made(SPEC, IDENTITY, rows(before, their_plugin="1.0", their_library="7"))
    assert keys(made) == keys(before)
    assert keys(plan_as_made(SPEC, IDENTITY, rows(now))) == keys(now)


@pytest.mark.usefixtures("theirs")
def test_a_plugin_of_another_version_than_the_rows_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version
    installed = {"their-plugin": "2.0", "their-library": "7"}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: installed.get(name) or real(name))
    for stated, found in (("1.0", True), ("2.0", False), ("2.0+checkout", False)):
        plan = lay_out(SPEC, IDENTITY, {"their-plugin": stated})
        findings, models = Findings(), pd.DataFrame({"defense": [], "seed": [], "posterior": []})
        check_rows(rows(plan, their_plugin=stated, their_library="7"), models, plan, findings)
        named = [line for line in findings.lines() if "their-plugin" in line]
        assert named == (["rows were made by their-plugin 1.0, and 2.0 is installed"] if found else [])
        assert not any("their-library" in line or "the key is not" in line for line in findings.lines())
