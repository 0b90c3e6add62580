"""A defense that starts from another's weights: planned once, shared, resumed, and refused where it cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from advbench.errors import InputError
from advbench.grid.plan import Plan
from advbench.grid.run import prepare
from advbench.grid.scheduler import outstanding
from advbench.grid.spec import make_spec, resolve
from advbench.grid.tasks import Runner, Runtime
from advbench.store.records import Store
from advbench.training.base import Resources

SHORT = {"stages": [1], "batch_size": 256}


def spec_values(*defenses: str, **settings: dict[str, Any]) -> dict[str, Any]:
    return {"defenses": list(defenses), "attacks": ["none"], "limit": 20, "draws": 2, "set": settings}


def plan(*defenses: str, **settings: dict[str, Any]) -> Plan:
    return prepare(make_spec(spec_values(*defenses, **settings)))


def trainings(laid_out: Plan) -> list[str]:
    return [task.label for task in laid_out.tasks.values() if task.kind == "train"]


def test_the_start_is_planned_as_a_training_that_the_heir_needs() -> None:
    laid_out = plan("pgd_at", pgd_at={"init_from": "erm"})
    assert trainings(laid_out) == ["train erm, seed 0", "train pgd_at, seed 0"]
    first, second = (task for task in laid_out.tasks.values() if task.kind == "train")
    assert second.needs == (first.key,)
    assert second.inputs.to_json()["init"] == first.key
    assert "init" not in first.inputs.to_json()


def test_a_start_that_the_run_trains_anyway_is_trained_once() -> None:
    together = plan("erm", "pgd_at", "bal", pgd_at={"init_from": "erm"}, erm=SHORT)
    assert sorted(trainings(together)) == ["train bal, seed 0", "train erm, seed 0", "train pgd_at, seed 0"]
    alone = plan("pgd_at", pgd_at={"init_from": "erm"}, erm=SHORT)
    assert trainings(alone) == ["train erm, seed 0", "train pgd_at, seed 0"]
    keys = {task.label: task.key for task in together.tasks.values()}
    assert all(keys[task.label] == task.key for task in alone.tasks.values() if task.kind == "train")


def test_settings_of_the_start_change_the_heirs_key_and_each_seed_has_its_own() -> None:
    heir = "train pgd_at, seed 0"
    keys = [
        {t.label: t.key for t in plan("pgd_at", pgd_at={"init_from": "erm"}, **more).tasks.values()}[heir]
        for more in ({}, {"erm": {"stages": [3]}})
    ]
    assert keys[0] != keys[1]
    seeds = prepare(make_spec({**spec_values("pgd_at", pgd_at={"init_from": "erm"}), "seeds": [0, 1]}))
    assert len(trainings(seeds)) == 4


def test_a_label_starts_from_another_setting_of_the_same_method() -> None:
    values = spec_values("erm@fine", **{"erm@fine": {"init_from": "erm"}, "erm": SHORT})
    (fine,), _ = resolve(make_spec(values))
    assert fine.init is not None
    assert fine.init.label == "erm"
    assert fine.init.params["stages"] == [1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"erm": {"init_from": "erm"}},
            r"init_from of 'erm': expected a defense that does not start from it, got 'erm'",
        ),
        (
            {"erm": {"init_from": "pgd_at"}, "pgd_at": {"init_from": "erm"}},
            r"defense 'erm' starts from 'pgd_at': init_from of 'pgd_at': expected a defense that does not start "
            r"from it, got 'erm'",
        ),
        ({"erm": {"init_from": "emr"}}, r"defense 'erm' starts from 'emr': unknown defense 'emr'.*"),
        ({"erm": {}, "bnn": {"lr": 0.1}}, r"unknown label in --set 'bnn'.*"),
    ],
)
def test_what_cannot_be_a_start_is_refused_in_one_line(settings: dict[str, dict[str, Any]], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}$"):
        resolve(make_spec(spec_values("erm", **settings)))


def test_an_empty_name_starts_from_the_initial_weights() -> None:
    assert trainings(plan("bal", bal={"init_from": ""})) == ["train bal, seed 0"]


def run_tasks(laid_out: Plan, store: Path) -> dict[str, dict[str, Any]]:
    runner = Runner(Runtime(str(store), "digits", None, Resources()))
    return {task.label: runner.run(task) for task in outstanding(laid_out, Store(str(store))).values()}


def test_a_run_hands_the_trained_start_to_its_heirs(tmp_path: Path) -> None:
    settings = {"pgd_at": {**SHORT, "init_from": "erm", "lr": 1e-12}, "erm": SHORT}
    records = run_tasks(plan("pgd_at", **settings), tmp_path)
    keys = {task.label: task.key for task in plan("pgd_at", **settings).tasks.values()}
    runner = Runner(Runtime(str(tmp_path), "digits", None, Resources()))
    start, heir = (runner._tensors(keys[f"train {name}, seed 0"]) for name in ("erm", "pgd_at"))
    assert all(torch.allclose(start[name], heir[name], atol=1e-8) for name in start)
    assert records["train pgd_at, seed 0"]["inputs"]["init"] == keys["train erm, seed 0"]
    assert not outstanding(plan("erm", erm=SHORT), Store(str(tmp_path))).keys() & {keys["train erm, seed 0"]}


def test_a_random_start_fails_its_heir_alone_and_says_why(tmp_path: Path) -> None:
    laid_out = plan("pgd_at", pgd_at={**SHORT, "init_from": "bnn"}, bnn=SHORT)
    runner = Runner(Runtime(str(tmp_path), "digits", None, Resources()))
    first, second = (task for task in laid_out.tasks.values() if task.kind == "train")
    runner.run(first)
    with pytest.raises(
        InputError, match="init_from: expected a deterministic defense, such as 'erm', got a random one"
    ):
        runner.run(second)


@pytest.mark.parametrize("name", ["bnn", "hierarchical_vi", "adversarial_sampling", "adv_bnn"])
def test_a_variational_methods_record_has_its_posteriors_statistics(name: str, tmp_path: Path) -> None:
    record = run_tasks(plan(name, **{name: SHORT}), tmp_path)[f"train {name}, seed 0"]
    found = record["result"]["statistics"]
    assert [row["name"] for row in found["tensors"]] == [f"1.{layer}.weight" for layer in (0, 2, 6, 8)]
    assert found["kld"] == pytest.approx(sum(row["kld"] for row in found["tensors"]) / 4)
    assert found["kld"] > 0


@pytest.mark.parametrize("name", ["rse", "mc_dropout", "sgld", "bal", "bnn_sgadald", "apd"])
def test_random_classifiers_of_every_make_are_stored_and_judged(name: str, tmp_path: Path) -> None:
    settings: dict[str, dict[str, Any]] = {name: dict(SHORT)}
    if name in ("sgld", "apd"):
        settings[name] |= {"burn_in": 1, "interval": 1, "samples": 4}
    if name == "apd":
        settings[name] |= {"gan_steps": 2, "hidden": [4, 4]}
    if name == "bal":
        settings |= {"erm": SHORT}
        settings[name] |= {"image_steps": 2}
    records = run_tasks(plan(name, **settings), tmp_path)
    assert 0 <= records[f"evaluate {name} on clean, seed 0"]["result"]["accuracy"] <= 1
