"""Runs whose trainings are measured on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import advbench
from advbench.boards.board import build
from advbench.boards.check import check
from advbench.grid import tasks
from advbench.grid.run import prepare
from advbench.grid.spec import make_spec
from advbench.report.tables import read_report
from advbench.store.records import Store

SPEC: dict[str, Any] = {
    "limit": 40,
    "draws": 3,
    "eps": [0.1],
    "ood": ["uniform"],
    "history": "epoch",
    "set": {"erm": {"stages": [2, 1]}, "sgld": {"stages": [3], "burn_in": 10, "samples": 4}},
}


def run(folder: Path, defenses: str = "erm,sgld", **changes: Any) -> advbench.Run:
    return advbench.run(
        defenses,
        "none",
        out=str(folder / "out"),
        store=str(folder / "store"),
        execution={"executor": "inline", "device": "cpu", "checkpoint_seconds": 0.0},
        progress=False,
        **{**SPEC, **changes},
    )


def test_a_run_measures_its_trainings_and_trains_as_one_that_does_not(tmp_path: Path) -> None:
    done = run(tmp_path)
    table = done.report.history
    assert sorted(table.defense.unique()) == ["erm", "sgld"]
    erm = table[table.defense == "erm"].pivot(index="step", columns="measure", values="value")
    steps = list(erm.index)
    assert len(steps) == 3
    assert steps[2] == 3 * steps[0]
    assert {"error", "draw_error_min", "auroc_total:uniform", "auroc_least_confidence:uniform"} <= set(erm)
    clean = done.results[done.results.attack == "none"].set_index("defense").accuracy
    for name, accuracy in clean.items():
        last = table[(table.defense == name) & (table.measure == "error")].iloc[-1]
        assert last.value == pytest.approx(1 - accuracy)
    ood = done.uncertainty[done.uncertainty.attack == "ood:uniform"].set_index("defense")
    assert erm["auroc_total:uniform"].iloc[-1] == pytest.approx(ood.auroc_total.erm)
    pd.testing.assert_frame_equal(read_report(tmp_path / "out").history, table, check_dtype=False)
    plain = run(tmp_path / "plain", history=None)
    assert not (tmp_path / "plain" / "out" / "history.csv").exists()
    for name in ("erm", "sgld"):
        x = advbench.load_dataset("digits").test.batch(slice(20))[0]
        assert (done.classifier(name).draws(x, 2) == plain.classifier(name).draws(x, 2)).all()
    assert set(done.models.key).isdisjoint(plain.models.key)
    board = tmp_path / "board"
    board.mkdir()
    for name in ("spec.toml", "data.json"):
        (board / name).write_bytes((tmp_path / "out" / name).read_bytes())
    build(board, Store(str(tmp_path / "store")))
    assert (board / "history.csv").read_bytes() == (tmp_path / "out" / "history.csv").read_bytes()
    assert list(check(board)[1].lines()) == []


def test_what_was_measured_before_an_interruption_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sgld: dict[str, Any] = {"defenses": "sgld", "history": 4, "set": {"sgld": SPEC["set"]["sgld"]}}
    whole = run(tmp_path / "whole", **sgld).report.history
    calls = []

    class Interrupting(tasks._StoreSlot):
        def save(self, *state: Any) -> None:
            super().save(*state)
            calls.append(state[1]["step"])
            if len(calls) in (9, 20):
                raise KeyboardInterrupt

    monkeypatch.setattr(tasks, "_StoreSlot", Interrupting)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "again", **sgld)
    again = run(tmp_path / "again", **sgld).report.history
    assert len(calls) > 20
    pd.testing.assert_frame_equal(again, whole)


def test_the_curve_of_active_learning_is_a_history(tmp_path: Path) -> None:
    inner = {"method": "bnn", "params": {"stages": [2], "batch_size": 64}, "rounds": 3, "per_class": 1, "batch": 5}
    labels = ["active@entropy", "active@random"]
    settings = {label: {**inner, "draws": 3, "acquisition": label.partition("@")[2]} for label in labels}
    done = advbench.run(
        labels,
        "none",
        out=str(tmp_path / "out"),
        store=str(tmp_path / "store"),
        execution={"executor": "inline", "device": "cpu"},
        progress=False,
        **{**SPEC, "ood": [], "set": settings},
    )
    errors = done.report.history.query("measure == 'error'")
    curves = [errors[errors.defense == label] for label in labels]
    assert [list(curve.step) for curve in curves] == [[10, 15, 20]] * 2
    first, second = (curve.value.tolist() for curve in curves)
    assert first[0] == second[0]  # the first images are the same, and so are the seeds of the net
    assert first[1:] != second[1:]
    clean = done.results.set_index("defense").accuracy
    assert [first[-1], second[-1]] == pytest.approx([1 - clean[label] for label in labels])


@pytest.mark.parametrize("value", ["epoch", 500])
def test_the_option_is_an_epoch_or_a_number(value: Any) -> None:
    spec = make_spec({"defenses": ["erm"], "attacks": ["none"], "history": str(value)})
    assert spec.history == value
    plan = prepare(spec)
    (inputs,) = (task.inputs for task in plan.tasks.values() if task.kind == "train")
    assert inputs.history.every == (None if value == "epoch" else 500)  # type: ignore[union-attr]
