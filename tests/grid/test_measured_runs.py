"""Runs whose trainings are measured on the way, or whose evaluations are recorded in detail."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import advbench
from advbench.boards.board import build
from advbench.boards.check import check
from advbench.data.datasets import limited
from advbench.evaluation import auroc_interval, detection
from advbench.grid import tasks
from advbench.grid.run import prepare
from advbench.grid.spec import make_spec, parse_toml
from advbench.keys import derive
from advbench.report.shape import CIRCUMSTANCES, flaw
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


def run(folder: Path, **changes: Any) -> advbench.Run:
    return advbench.run(
        "erm,sgld",
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
    whole = run(tmp_path / "whole", history=4).report.history
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
            run(tmp_path / "again", history=4)
    again = run(tmp_path / "again", history=4).report.history
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


def test_in_detail_a_run_has_each_draw_and_the_detection_of_what_fooled_the_draw_at_hand(tmp_path: Path) -> None:
    """APD Table 3: the adversary holds one draw of the source; what fools that draw is to be found out by all."""
    done = advbench.run(
        ["bnn", "mc_dropout"],
        ["gray_box"],
        out=str(tmp_path / "out"),
        store=str(tmp_path / "store"),
        execution={"executor": "inline", "device": "cpu"},
        progress=False,
        keep_examples=True,
        limit=60,
        draws=4,
        eps=[0.1],
        affinity=["gray_box"],
        ood=["gaussian"],
        details=True,
        set={"bnn": {"stages": [3]}, "mc_dropout": {"stages": [3]}, "gray_box": {"attack": "fgsm"}},
    )
    report = done.report
    each = report.draws.query("defense == 'bnn' and source == 'mc_dropout'").accuracy
    np.testing.assert_allclose(each, done.predictions("bnn", "gray_box", source="mc_dropout").draw_accuracies)
    x, y = limited(advbench.load_dataset("digits").test, 60).batch(slice(None))
    for source, target in itertools.product(["bnn", "mc_dropout"], repeat=2):
        held = done.classifier(source).frozen(derive(0, "gray box"))
        x_adv = done.examples(source, "gray_box")
        fooled = (held(x).argmax(1) == y) & (held(x_adv).argmax(1) != y)
        scores = done.detection_scores(target, "gray_box", "model_variance", source=source, fooled=fooled.numpy())
        rows = report.detection.query("attack == 'gray_box' and defense == @target and source == @source")
        rows = rows[rows.measure == "model_variance"]
        row = rows[rows.examples == "fooled"].iloc[0]
        assert (row.n_clean, row.n_others) == (60, int(fooled.sum()))
        assert row.auroc == pytest.approx(detection(*scores).auroc)
        assert (row.auroc_low, row.auroc_high) == pytest.approx(auroc_interval(*scores))
        assert rows[rows.examples == "all"].n_others.item() == 60
    noise = report.detection.query("attack == 'ood:gaussian' and measure == 'least_confidence' and defense == 'bnn'")
    assert noise.auroc.item() == pytest.approx(
        detection(*done.detection_scores("bnn", "ood:gaussian", "least_confidence")).auroc
    )
    kept = read_report(tmp_path / "out")
    for name in ("detection", "draws"):
        pd.testing.assert_frame_equal(getattr(kept, name), getattr(report, name), check_dtype=False)
    plan = prepare(make_spec(parse_toml(tmp_path / "out" / "spec.toml")))
    for task in plan.tasks.values():
        record = Store(str(tmp_path / "store")).read_record(task.key)
        if record and task.kind != "craft":
            assert flaw({name: each for name, each in record.items() if name not in CIRCUMSTANCES}, task.inputs) == ""
    assert plan.spec.details


@pytest.mark.parametrize("value", ["epoch", 500])
def test_the_option_is_an_epoch_or_a_number(value: Any) -> None:
    spec = make_spec({"defenses": ["erm"], "attacks": ["none"], "history": str(value)})
    assert spec.history == value
    plan = prepare(spec)
    (inputs,) = (task.inputs for task in plan.tasks.values() if task.kind == "train")
    assert inputs.history.every == (None if value == "epoch" else 500)  # type: ignore[union-attr]
