"""Runs with attacks on the uncertainty, on out-of-distribution images and on known draws."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers import some_inputs
from rich.console import Console

import advbench
from advbench.cli.display import Display
from advbench.data.datasets import limited, load_dataset
from advbench.errors import InputError
from advbench.grid.execution import Execution
from advbench.grid.inputs import CraftInputs
from advbench.grid.plan import Plan
from advbench.grid.run import Settings, carry_out, prepare
from advbench.grid.scheduler import outstanding
from advbench.grid.spec import make_spec
from advbench.models.nets import build
from advbench.models.saving import load_classifier, read_tensors
from advbench.report import views
from advbench.report.markdown import render
from advbench.report.page import render_page
from advbench.report.shape import flaw
from advbench.report.tables import Report, collect
from advbench.store.records import Store

STEPS = {"steps": 3, "samples": 2}
PLAIN: dict[str, Any] = {
    "defenses": ["erm", "sgld"],
    "attacks": ["pgd"],
    "eps": [0.05, 0.1],
    "limit": 30,
    "draws": 4,
    "affinity": ["pgd"],
    "set": {
        "erm": {"stages": [3]},
        "sgld": {"stages": [8], "burn_in": 40, "interval": 5, "samples": 5},
        "pgd": {"steps": 3},
    },
}
SPEC: dict[str, Any] = {
    **PLAIN,
    "attacks": ["pgd", "certain", "doubt", "ood", "known_draw"],
    "set": {
        **PLAIN["set"],
        "certain": STEPS,
        "doubt": STEPS,
        "ood": STEPS,
        "known_draw": {"params": {"steps": 3}, "draws": 3},
    },
}


@dataclass
class Run:
    plan: Plan
    store: Store
    report: Report


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data set of noise, which looks like nothing that the classifiers know."""
    path = tmp_path_factory.mktemp("data") / "noise.npz"
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    labels = np.arange(40) % 10
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    return f"npz:{path}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, noise: str) -> Run:
    plan = prepare(make_spec({**SPEC, "ood": [noise]}))
    store = Store(str(tmp_path_factory.mktemp("store")))
    finish(plan, store, noise)
    return Run(plan, store, collect(plan, store))


def finish(plan: Plan, store: Store, noise: str) -> int:
    """Carry out what is to be done; how many tasks that was."""
    execution = Execution(store.url, executor="inline", device="cpu")
    waiting = outstanding(plan, store)
    runtime = execution.runtime("digits", 1, (noise,))
    display = Display(plan.tasks, waiting, Console(quiet=True))
    outcome = carry_out(plan, waiting, store, lambda: execution.start(runtime), display, Settings(keep_examples=True))
    assert outcome.failed == {}
    return len(waiting)


def test_the_same_command_again_has_nothing_to_do(run: Run, noise: str) -> None:
    assert finish(run.plan, run.store, noise) == 0


def test_other_attacks_leave_the_keys_of_a_run_alone(run: Run) -> None:
    plain = prepare(make_spec(PLAIN))
    assert set(plain.tasks) < set(run.plan.tasks)
    inputs = some_inputs("craft")
    assert isinstance(inputs, CraftInputs)
    assert inputs.to_json().keys().isdisjoint({"ood", "known"})
    assert "known" not in some_inputs("evaluate").to_json()


def test_every_record_is_one_that_its_task_can_have(run: Run) -> None:
    for task in run.plan.tasks.values():
        if task.kind != "craft":
            record = run.store.read_record(task.key)
            assert record is not None
            assert flaw({name: record[name] for name in record if name not in ("memory", "ran")}, task.inputs) == ""


def test_out_of_distribution_images_stay_in_the_ball_and_look_certain(run: Run, noise: str) -> None:
    test = load_dataset(noise).test
    (images, _), found = limited(test, 30).batch(slice(None)), run.report.uncertainty
    crafted = [task for task in run.plan.tasks.values() if task.kind == "craft" and task.ood]
    assert len(crafted) == 4  # two defenses, two radii
    for task in crafted:
        artifact = run.store.read_artifact(task.key)
        assert artifact is not None
        moved = read_tensors(artifact)["images"]
        assert float((moved - images).abs().max()) <= (task.eps or 0) + 1e-6
        assert 0 <= float(moved.min()) <= float(moved.max()) <= 1
    for defense in ("erm", "sgld"):
        mine = found[found.defense == defense].set_index(["images", "eps"])
        as_is, attacked = mine.loc[("ood", 0.0)], mine.loc[("attacked_ood", 0.1)]
        assert attacked.attack == as_is.attack == "ood:npz"
        assert attacked.total < as_is.total
        assert attacked.auroc_total < as_is.auroc_total
    assert not run.report.results.attack.isin(["ood", "known_draw"]).any()
    assert {"ood", "known_draw"} < set(run.report.methods.label)


def test_known_draws_of_few_members_are_all_attacked_and_evaluated(run: Run) -> None:
    cell = next(cell for cell in run.plan.known if cell.defense.label == "sgld" and cell.eps == 0.1)
    record, training = (run.store.read_record(key) for key in (cell.key, run.plan.trained["sgld", 0]))
    assert record is not None
    assert training is not None
    assert record["result"]["draws"] == 5  # of which a run asks for 3
    assert record["result"]["enumerated"] is True
    data = load_dataset("digits")
    weights = run.store.read_artifact(run.plan.trained["sgld", 0])
    assert weights is not None
    clf = load_classifier(build("small_cnn", data.train, 0), read_tensors(weights), training["result"]["classifier"])
    x, y = limited(data.test, 30).batch(slice(None))
    threat, accuracies = advbench.Threat("linf", 0.1), []
    for draw in clf.frozen_draws(3, 0):
        found = advbench.get_attack("pgd", steps=3)(draw, x, y, threat, seed=7)
        accuracies.append(float((draw(found).argmax(1) == y).float().mean()))
    assert record["result"]["draw_accuracy"] == pytest.approx(np.mean(accuracies), abs=0.1)
    (row,) = run.report.adversaries.query("defense == 'sgld' and knows == 'the_draw' and eps == 0.1").itertuples()
    assert row.accuracy == record["result"]["draw_accuracy"]
    assert row.draw_accuracy_min <= row.accuracy <= row.draw_accuracy_max


def test_who_knows_more_is_no_weaker_and_the_tables_say_so(run: Run) -> None:
    table = run.report.adversaries
    own = run.report.results.query("source == defense and (attack == 'pgd' or attack == 'certain')")
    for (defense, eps), rows in own.groupby(["defense", "eps"]):
        found = table[(table.defense == defense) & (table.eps == eps) & (table.knows == "posterior")]
        assert found.accuracy.tolist() == [rows.accuracy.min()]
    text, page = render(run.report), render_page(run.report)
    for heading in ("Uncertainty under attack", "Persistent adversary", "Adversaries by what they know"):
        assert f"## {heading}" in text
        assert f"<h2>{heading}</h2>" in page
    headings = views.adversaries_table(run.report).headings
    known = ["no attack", "another classifier", "all draws", "the draw that answers"]
    assert headings == ["defense", *known, "lowest draw", "highest draw"]


def test_the_loss_by_an_attack_on_the_uncertainty_is_named(run: Run) -> None:
    table = views.under_attack_table(run.report)
    rows = {(row[0], row[1]): row[2:] for row in table.rows}
    assert table.headings == ["defense", "measure", "unperturbed", "accuracy attacked", "uncertainty attacked", "loss"]
    areas = run.report.retention.query("measure == 'total' and defense == 'sgld' and kept == 1").set_index(
        ["attack", "eps"]
    )
    places = [("none", 0.0), ("pgd", 0.1), ("certain", 0.1)]
    values = [each.value for each in rows["sgld", "retention"]]  # type: ignore[union-attr]
    assert values[:3] == [areas.area[place] for place in places]
    assert values[3] == pytest.approx(values[1] - values[2])
    scores = run.report.uncertainty.query("defense == 'sgld'").set_index(["images", "eps"]).auroc_total
    shown = [each.value for each in rows["sgld", "AUROC of npz"]]  # type: ignore[union-attr]
    assert (shown[0], shown[2]) == (scores["ood", 0.0], scores["attacked_ood", 0.1])
    assert np.isnan(shown[1])


def test_persistence_is_that_of_the_predictions(run: Run) -> None:
    table = run.report.persistence.set_index(["defense", "attack", "eps", "tries"]).broken
    single = run.report.results.query("source == defense").set_index(["defense", "attack", "eps"]).draw_accuracy_mean
    for defense, attack, eps, tries in table.index:
        assert table[defense, attack, eps, tries] >= table[defense, attack, eps, 1] - 1e-12
    assert table["sgld", "pgd", 0.1, 1] == pytest.approx(1 - single["sgld", "pgd", 0.1])
    assert table["erm", "pgd", 0.1, 20] == table["erm", "pgd", 0.1, 1]  # deterministic
    assert table["sgld", "pgd", 0.1, 20] > table["sgld", "pgd", 0.1, 1]  # five members, enumerated


class _Older:
    """A store whose records lack what was added to them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def read_record(self, key: str) -> dict[str, Any] | None:
        record = self._store.read_record(key)
        if record and record["kind"] == "evaluate":
            for name in ("persistence", "accepted_errors"):
                record["result"].pop(name, None)
            for curve in record["result"].get("retention", {}).values():
                del curve["intervals"], curve["area_interval"]
        return record

    def read_records(self, keys: Sequence[str]) -> Iterator[dict[str, Any] | None]:
        return map(self.read_record, keys)


def test_older_records_leave_cells_empty(run: Run) -> None:
    report = collect(run.plan, _Older(run.store))
    assert report.persistence.empty
    assert report.retention.area_low.isna().all()
    assert report.uncertainty.accepted_errors_total.isna().all()
    pd.testing.assert_series_equal(report.retention.area, run.report.retention.area)
    assert "Persistent adversary" not in render(report)
    render_page(report)


def test_scaled_images_are_left_alone_and_the_report_says_so(noise: str) -> None:
    plan = prepare(make_spec({**SPEC, "ood": [noise], "ood_scale": 5.0}))
    assert plan.left_alone == ("npz",)
    assert all(each.attack is None for each in plan.ood)
    assert not any(task.ood and task.kind == "craft" for task in plan.tasks.values())
    report = collect(plan, Store("memory://unc"))
    assert "may leave [0, 1]: npz" in views.detection_note(report)


def test_an_attack_on_out_of_distribution_images_needs_some() -> None:
    with pytest.raises(InputError, match=r"attack 'ood': expected out-of-distribution images, got none.*--ood"):
        prepare(make_spec(SPEC))


@pytest.mark.parametrize("name", ["doubt", "known_draw"])
def test_what_means_nothing_to_other_defenses_is_not_transferred(name: str) -> None:
    attacks = [name, "eot_pgd"]
    values = {**PLAIN, "attacks": attacks, "set": {key: PLAIN["set"][key] for key in ("erm", "sgld")}}
    assert make_spec({key: value for key, value in values.items() if key != "affinity"}).affinity == ("eot_pgd",)
    with pytest.raises(InputError, match=rf"--affinity: expected attacks .*, got '{name}'"):
        prepare(make_spec({**values, "affinity": [name]}))


def test_no_sweep_leaves_alone_what_an_error_alone_broke(noise: str) -> None:
    plan = prepare(make_spec({**SPEC, "ood": [noise], "sweep": True, "affinity": []}))
    swept = {task.attack for task in plan.tasks.values() if isinstance(task.inputs, CraftInputs) and task.inputs.sweep}
    assert swept == {"pgd"}
