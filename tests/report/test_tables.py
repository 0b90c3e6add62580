"""Tables made from records that are known."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import some_identity
from reports import made_report

from advbench.evaluation import Predictions, uncertainty
from advbench.evaluation.summary import summary
from advbench.grid.inputs import Component
from advbench.grid.plan import Plan, make_plan
from advbench.grid.spec import Choice, make_spec
from advbench.report import Report, collect
from advbench.report.markdown import render
from advbench.report.output import contents
from advbench.report.texts import format_eps
from advbench.store.records import Store, record_name

IMAGES = 20


def choice(label: str) -> Choice:
    component = Component(label, "dist", "1", {"a": label})
    return Choice(label, component, 1.0, net=Component("net", "dist", "1"))


def lay_out(defenses: list[str], attacks: list[str], **settings: object) -> Plan:
    spec = make_spec({"defenses": defenses, "attacks": attacks, "eps": [0.1, 8 / 255]} | settings)
    chosen = tuple(map(choice, defenses)), tuple(choice(name) for name in attacks if name != "none")
    return make_plan(spec, *chosen, some_identity(IMAGES), "1")


def predictions(right: int) -> Predictions:
    labels = np.zeros(IMAGES, np.int64)
    probs = np.tile(np.array([[0.1, 0.9]], np.float32), (2, IMAGES, 1))
    probs[:, :right] = [0.95, 0.05]
    return Predictions.from_probs(probs, labels)


def files_of(report: Report) -> dict[str, str]:
    return {name: raw.decode() for name, raw in contents(report, ("csv", "md"))}


def fill(plan: Plan, store: Store, right: dict[tuple[str, str, str], int], skip: tuple[str, ...] = ()) -> None:
    """Records with the given number of right images by (source, target, attack)."""
    for cell in plan.cells:
        attack = cell.attack.label if cell.attack else "none"
        if attack in skip:
            continue
        clean = predictions(right[(cell.defense.label, cell.defense.label, "none")]) if cell.attack else None
        result = summary(predictions(right[(cell.source.label, cell.defense.label, attack)]), clean)
        costs = {"forward_passes": 3.0, "backward_passes": 2.0, "seconds": 0.5}
        record = {
            "kind": "evaluate",
            "inputs": {},
            "result": {**result, "attack": costs},
            "seconds": 1.0,
            "versions": {},
        }
        store.write_record(cell.key, record)


RIGHT = {
    ("a", "a", "none"): 18,
    ("b", "b", "none"): 16,
    ("a", "a", "fgsm"): 10,
    ("a", "b", "fgsm"): 14,
    ("b", "a", "fgsm"): 16,
    ("b", "b", "fgsm"): 16,
}


@pytest.fixture
def report(tmp_path: Path) -> Report:
    plan, store = lay_out(["a", "b"], ["fgsm"]), Store(str(tmp_path))
    fill(plan, store, RIGHT)
    return collect(plan, store)


def test_affinity_is_that_of_the_constructed_accuracies(report: Report) -> None:
    rho = report.affinity[report.affinity.eps == 0.1].set_index(["source", "target"])
    assert rho.affinity["a", "a"] == pytest.approx(1.0)
    assert rho.affinity["b", "a"] == pytest.approx((18 - 16) / (18 - 10))
    assert math.isnan(rho.affinity["a", "b"])
    assert rho.reason["a", "b"] == "the attack on the target itself does not lower its accuracy"


def test_leaderboard_ranks_by_the_lowest_accuracy_at_the_headline_eps(report: Report) -> None:
    board = report.leaderboard
    assert list(board.defense) == ["b", "a"]
    assert list(board.worst) == [0.8, 0.5]
    assert list(board.clean) == [0.8, 0.9]


def test_retention_is_that_of_the_constructed_predictions(report: Report) -> None:
    curve = report.retention[(report.retention.defense == "a") & (report.retention.attack == "fgsm")]
    curve = curve[(curve.eps == 0.1) & (curve.measure == "total")].set_index("kept")
    # 10 of 20 are right, and surer (0.95 against 0.9).
    assert curve.accuracy.to_dict() == pytest.approx({0.2: 1.0, 0.4: 1.0, 0.6: 10 / 12, 0.8: 10 / 16, 1.0: 0.5})
    assert set(curve.n_kept) == {4, 8, 12, 16, 20}


def test_seconds_and_passes_are_the_attacks_and_the_evaluations(report: Report) -> None:
    row = report.results.iloc[-1]
    assert (row.seconds, row.forward_passes, row.backward_passes) == (1.5, 3.0, 2.0)


def test_failed_and_missing_cells_are_visible_everywhere(tmp_path: Path) -> None:
    plan, store = lay_out(["a", "b"], ["fgsm", "pgd"]), Store(str(tmp_path))
    right = RIGHT | {(s, t, "pgd"): 5 for s in "ab" for t in "ab"}
    fill(plan, store, right, skip=("pgd",))
    failed = {cell.key: "PluginError: <b>bad</b> | worse" for cell in plan.cells if cell.attack and cell.eps == 0.1}
    report = collect(plan, store, failed)
    flags = report.results.set_index(["attack", "eps"])["flags"]
    assert set(flags["pgd", 0.1]) == {"failed: PluginError: <b>bad</b> | worse"}
    assert set(flags["pgd", 8 / 255]) == {"missing"}
    assert list(report.leaderboard.failed_cells) == [2, 2]
    assert report.leaderboard.worst.isna().all()
    text = render(report)
    assert "<b>" not in text
    assert "4 cells failed: PluginError" in text
    assert "4 cells missing" in text
    assert report.affinity[report.affinity.attack == "pgd"].reason.eq("an accuracy is missing").all()


def test_several_seeds_give_mean_and_deviation(tmp_path: Path) -> None:
    plan, store = lay_out(["a"], ["fgsm"], seeds=[0, 1]), Store(str(tmp_path))
    for cell in plan.cells:
        result = summary(predictions(10 + 4 * cell.seed))
        costs = {"forward_passes": 0.0, "backward_passes": 0.0, "seconds": 0.0}
        body = {"kind": "evaluate", "inputs": {}, "result": {**result, "attack": costs}, "seconds": 1.0, "versions": {}}
        store.write_record(cell.key, body)
    board = collect(plan, store).leaderboard.iloc[0]
    assert board["fgsm@0.1"] == pytest.approx(0.6)
    assert board["fgsm@0.1_sd"] == pytest.approx(np.std([0.5, 0.7], ddof=1))
    assert board["fgsm@0.1_low"] < 0.6 < board["fgsm@0.1_high"]


def test_csv_files_read_back_as_they_were(report: Report, tmp_path: Path) -> None:
    for name, text in files_of(report).items():
        (tmp_path / name).write_text(text)
    back = pd.read_csv(tmp_path / "results.csv", keep_default_na=False)
    assert (back.accuracy.astype(float).to_numpy() == report.results.accuracy.to_numpy()).all()
    assert "| b " in (tmp_path / "leaderboard.md").read_text()


def test_a_run_without_attacks_has_a_leaderboard_of_clean_accuracies(tmp_path: Path) -> None:
    plan, store = lay_out(["a", "b"], ["none"], eps=[0.0]), Store(str(tmp_path))
    fill(plan, store, RIGHT)
    report = collect(plan, store)
    assert list(report.leaderboard.defense) == ["a", "b"]
    assert "0.900 [" in render(report)
    assert report.affinity.empty


def test_affinities_have_intervals_that_hold_them(report: Report) -> None:
    rho = report.affinity[report.affinity.eps == 0.1].set_index(["source", "target"])
    value, low, high = rho.loc[("b", "a"), ["affinity", "affinity_low", "affinity_high"]]
    assert low <= value <= high
    assert low < high
    assert (rho.affinity_low["a", "a"], rho.affinity_high["a", "a"]) == (1.0, 1.0)
    assert math.isnan(rho.affinity_low["a", "b"])


@pytest.mark.parametrize(
    ("eps", "text"), [(8 / 255, "8/255"), (0.1, "0.1"), (8 / 256, "0.03125"), (1.0, "1"), (0.2, "0.2"), (0.0, "0")]
)
def test_radii_are_written_as_people_write_them(eps: float, text: str) -> None:
    assert format_eps(eps) == text


def test_a_table_never_shows_the_mean_of_some_seeds_alone(tmp_path: Path) -> None:
    plan, store = lay_out(["a", "b"], ["fgsm"], seeds=[0, 1]), Store(str(tmp_path))
    fill(plan, store, RIGHT)
    for cell in plan.cells:
        if cell.defense.label == "a" and cell.seed == 1:
            store.storage.remove(record_name(cell.key))
    report = collect(plan, store)
    text = render(report)
    rows = [line for line in text.splitlines() if line.startswith("| a ")]
    # After the main table and the eps table: calibration (2), detection, retention (2), affinity.
    assert len(rows) >= 6
    for row in rows:
        cells = [cell.strip() for cell in row.split("|")[2:-1]]
        measured = [cell for cell in cells if re.match(r"\d\.\d{3}", cell)]
        assert measured == [], row
    assert report.leaderboard.set_index("defense")["rank"].isna()["a"]


def test_draws_that_agree_have_no_epistemic_uncertainty() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(1, 300, 10)) * 4
    probs = (np.exp(logits) / np.exp(logits).sum(2, keepdims=True)).astype(np.float32)
    for draws in (1, 20):
        found = uncertainty(Predictions.from_probs(np.repeat(probs, draws, 0), np.zeros(300, np.int64)))
        assert (found.epistemic == 0).all()
        assert (found.model_variance == 0).all()
        assert (found.aleatoric == found.total).all()


def test_a_defense_whose_attacks_failed_has_no_rank(tmp_path: Path) -> None:
    plan, store = lay_out(["a", "b"], ["fgsm"]), Store(str(tmp_path))
    fill(plan, store, RIGHT, skip=("fgsm",))
    report = collect(plan, store)
    assert report.leaderboard["rank"].isna().all()
    assert "Ranked by the area under the lowest accuracies" in render(report)


def test_several_seeds_leave_an_affinity_undefined_if_one_does(tmp_path: Path) -> None:
    plan, store = lay_out(["a", "b"], ["fgsm"], seeds=[0, 1], eps=[0.1]), Store(str(tmp_path))
    fill(plan, store, RIGHT)
    cells = {(c.source.label, c.defense.label, c.seed): c.key for c in plan.cells if c.attack}
    record = store.read_record(cells["b", "b", 0])
    assert record is not None
    record["result"] |= summary(predictions(10))  # now defined for seed 0, still not for seed 1
    store.write_record(cells["b", "b", 0], record)
    report = collect(plan, store)
    values = report.affinity[(report.affinity.source == "a") & (report.affinity.target == "b")].affinity
    assert values.isna().tolist() == [False, True]
    table = render(report).partition("## Affinity")[2]
    assert re.search(r"\| a +\| 1\.000 +\| n/a +\|", table)


def test_what_misleads_attacks_stands_below_without_a_rank() -> None:
    report = made_report(names=("best", "next", "last"), attacks=("pgd",), seeds=(0, 1, 2))
    results = report.results.assign(flags="")
    for seeds, rank in (((0,), 1), ((0, 2), None)):
        misled = (results.defense == "best") & results.seed.isin(seeds) & (results.attack == "none")
        flagged = replace(report, results=results.assign(flags=np.where(misled, "misleads_attacks", "")))
        places = {one.defense: (place, one.rank) for place, one in enumerate(flagged.standings)}
        assert places["best"] == ((0, 1) if rank else (2, None))
        assert places["next"][1] == (2 if rank else 1)
        assert ("Without a rank, below the others: best" in render(flagged)) == (rank is None)


def test_a_run_of_gradient_attacks_alone_says_so(tmp_path: Path) -> None:
    def said(plan: Plan) -> bool:
        return "All attacks of this run use the defense's gradient" in render(collect(plan, Store(str(tmp_path))))

    alone = lay_out(["one"], ["pgd"])
    square = tuple(
        cell._replace(attack=cell.attack._replace(traits=frozenset({"black_box"}))) if cell.attack else cell
        for cell in alone.cells
    )
    assert said(alone)
    assert not said(replace(alone, cells=square))
    assert not said(lay_out(["one", "other"], ["pgd"], affinity=["pgd"]))


def test_halves_are_rounded_away_from_zero() -> None:
    from advbench.report.texts import rounded

    shown = [rounded(value) for value in (0.7775, 0.8275, -0.0005, -0.0004, 1 / 3, math.nan, math.inf)]
    assert shown == ["0.778", "0.828", "-0.001", "0.000", "0.333", "nan", "inf"]
    assert all(rounded((2 * count + 1) / 2000) == f"0.{count + 1:03}" for count in range(999))
