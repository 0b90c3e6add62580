"""Whole runs: the same bytes twice, after kills, after damage; only what is new is computed."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from rich.console import Console

from advbench.cli.app import main
from advbench.cli.display import Display
from advbench.grid.estimates import Measurements
from advbench.grid.execution import Execution
from advbench.grid.queue import Backlog
from advbench.grid.run import carry_out, prepare
from advbench.grid.scheduler import Outcome, outstanding
from advbench.grid.spec import make_spec
from advbench.models.saving import load_classifier
from advbench.registry import registry
from advbench.report.output import write_out
from advbench.report.tables import RESULT_COLUMNS, Report
from advbench.store.leases import Leases
from advbench.store.records import Store
from advbench.store.storage import StoreWarning

SPEC: dict[str, Any] = {
    "defenses": ["erm", "adv_bnn"],
    "attacks": ["fgsm", "eot_pgd"],
    "eps": [0.05, 0.15],
    "limit": 40,
    "draws": 4,
    "set": {
        "erm": {"stages": [2]},
        "adv_bnn": {"stages": [2], "steps": 2},
        "eot_pgd": {"steps": 3, "samples": 2},
    },
}
OPTIONS = (
    "--defense erm,adv_bnn --attack fgsm,eot_pgd --affinity fgsm,eot_pgd --eps 0.05,0.15 --limit 40 --draws 4 "
    "--set erm.stages=[2] "
    "--set adv_bnn.stages=[2] --set adv_bnn.steps=2 --set eot_pgd.steps=3 --set eot_pgd.samples=2"
).split()


@dataclass
class Finished:
    """What a run left."""

    outcome: Outcome
    report: Report


def run(folder: Path, store: str | None = None, chunk: int | None = None, **changes: Any) -> Finished:
    """Run the spec with changes, in this process."""
    values: dict[str, Any] = {**SPEC, **changes}
    values.setdefault("affinity", [name for name in values["attacks"] if name != "none"])
    used = {*values["defenses"], *values["attacks"]}
    values["set"] = {name: params for name, params in values["set"].items() if name in used}
    spec = make_spec(values)
    execution = Execution(store or str(folder / "store"), executor="inline", device="cpu", chunk=chunk)
    opened = execution.open_store()
    plan = prepare(spec)
    waiting = outstanding(plan, opened)
    display = Display(plan.tasks, waiting, Console(quiet=True))
    runtime = execution.runtime(spec.dataset, spec.threads)
    outcome = carry_out(plan, waiting, opened, lambda: execution.start(runtime), display)
    return Finished(outcome, write_out(plan, opened, outcome, folder / "out")[0])


def results(folder: Path) -> str:
    """results.csv without the seconds."""
    frame = pd.read_csv(folder / "results.csv", dtype=str)
    return frame.drop(columns="seconds").to_csv(index=False)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an uninterrupted run."""
    folder = tmp_path_factory.mktemp("reference")
    run(folder)
    return folder


def test_a_run_writes_the_promised_files_and_columns(reference: Path) -> None:
    out = reference / "out"
    names = {"spec.toml", "results.csv", "leaderboard.csv", "leaderboard.md", "affinity.csv", "retention.csv"}
    more = {"data.json", "methods.csv", "models.csv", "uncertainty.csv", "histograms.csv", "leaderboard.html"}
    more |= {"persistence.csv", "adversaries.csv", "areas.csv", "differences.csv", "attacks.csv"}
    assert {path.name for path in out.iterdir()} == names | more
    frame = pd.read_csv(out / "results.csv")
    assert list(frame.columns) == RESULT_COLUMNS
    assert list(frame.columns) == [
        "dataset",
        "architecture",
        "defense",
        "attack",
        "source",
        "norm",
        "eps",
        "seed",
        "n_examples",
        "draws",
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "draw_accuracy_mean",
        "draw_accuracy_low",
        "draw_accuracy_high",
        "draw_accuracy_min",
        "draw_accuracy_max",
        "forward_passes",
        "backward_passes",
        "seconds",
        "flags",
        "key",
    ]
    assert len(frame) == 2 + 2 * 2 * 4
    clean = frame[frame.attack == "none"]
    assert (clean.source == clean.defense).all()
    assert (clean.eps == 0).all()
    assert (frame.accuracy_low <= frame.accuracy).all()
    assert (frame.accuracy <= frame.accuracy_high).all()
    assert frame.key.is_unique
    assert dict(zip(frame.defense, frame.draws, strict=True)) == {"erm": 1, "adv_bnn": 4}


def test_twice_gives_the_same_bytes(reference: Path, tmp_path: Path) -> None:
    torch.manual_seed(4711)
    run(tmp_path)
    assert results(tmp_path / "out") == results(reference / "out")


def test_running_again_does_nothing_and_adding_an_attack_runs_only_that(reference: Path, tmp_path: Path) -> None:
    store = str(reference / "store")
    again = run(tmp_path, store)
    assert again.outcome.run == []
    added = run(tmp_path, store, attacks=["fgsm", "eot_pgd", "pgd"], set={**SPEC["set"], "pgd": {"steps": 2}})
    kinds = [Store(store).read_record(key)["kind"] for key in added.outcome.run]  # type: ignore[index]
    assert sorted(kinds) == ["craft"] * 4 + ["evaluate"] * 8


def test_another_chunk_changes_accuracies_by_rounding_alone(reference: Path, tmp_path: Path) -> None:
    run(tmp_path, chunk=7)
    frames = [pd.read_csv(folder / "out" / "results.csv") for folder in (tmp_path, reference)]
    assert (frames[0].key == frames[1].key).all()
    assert (frames[0].accuracy - frames[1].accuracy).abs().max() <= 0.005 + 1 / 40
    assert (frames[0].draw_accuracy_mean - frames[1].draw_accuracy_mean).abs().max() <= 0.005


def test_another_seed_gives_other_models(tmp_path: Path) -> None:
    finished = run(tmp_path, seeds=[0, 1], attacks=["fgsm"], eps=[0.15])
    frame = finished.report.results
    assert frame.groupby(["defense", "source", "attack"]).draw_accuracy_mean.nunique().max() == 2
    board = finished.report.leaderboard
    assert (board.seeds == 2).all()
    assert "fgsm@0.15_sd" in board.columns


@pytest.mark.parametrize("damage", ["truncate", "foreign", "empty", "pickle"])
def test_damage_in_the_store_is_noticed_and_mended(damage: str, tmp_path: Path) -> None:
    run(tmp_path, attacks=["fgsm"])
    before = results(tmp_path / "out")
    for path in sorted((tmp_path / "store").rglob("*.*")):
        raw = path.read_bytes()
        garbage = {"truncate": raw[: len(raw) // 2], "foreign": b'{"a": 1}', "empty": b"", "pickle": b"\x80\x04N."}
        path.write_bytes(garbage[damage])
    with pytest.warns(StoreWarning, match="damaged or unknown"):
        finished = run(tmp_path, attacks=["fgsm"])
    assert not finished.outcome.failed
    assert results(tmp_path / "out") == before


def test_a_damaged_checkpoint_of_a_model_is_trained_again_when_an_attack_is_added(tmp_path: Path) -> None:
    run(tmp_path, attacks=["fgsm"], defenses=["erm"])
    for path in (tmp_path / "store" / "artifacts").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.warns(StoreWarning, match="artifact"):
        finished = run(tmp_path, attacks=["fgsm", "pgd"], defenses=["erm"], set={**SPEC["set"], "pgd": {"steps": 2}})
    assert not finished.outcome.failed
    assert len(finished.outcome.run) == 1 + 1 + 2 + 2  # what it makes of the clean images, too


def test_examples_are_dropped_after_their_last_use_unless_kept(tmp_path: Path) -> None:
    finished = run(tmp_path, attacks=["fgsm"])
    store = Store(str(tmp_path / "store"))
    crafts = [k for k in finished.outcome.run if (store.read_record(k) or {})["kind"] == "craft"]
    assert len(crafts) == 4
    assert all(store.read_artifact(key) is None for key in crafts)


def test_trackers_are_told_of_every_task(tmp_path: Path) -> None:
    from advbench.registry import hookimpl

    told: list[tuple[str, str]] = []

    class Tracker:
        @hookimpl
        def advbench_task_finished(self, task, record) -> None:  # type: ignore[no-untyped-def]
            told.append((task.key, record["kind"]))

    tracker = Tracker()
    registry().manager.register(tracker)
    try:
        finished = run(tmp_path, attacks=["fgsm"], defenses=["erm"])
    finally:
        registry().manager.unregister(tracker)
    assert [key for key, _ in told] == finished.outcome.run
    assert [kind for _, kind in told][:2] == ["train", "evaluate"]


def test_a_failing_tracker_is_a_warning(tmp_path: Path) -> None:
    from advbench.registry import hookimpl

    class Tracker:
        @hookimpl
        def advbench_task_finished(self) -> None:
            raise RuntimeError("server down")

    tracker = Tracker()
    registry().manager.register(tracker)
    try:
        with pytest.warns(UserWarning, match="a tracker failed on .*: RuntimeError: server down"):
            finished = run(tmp_path, attacks=["fgsm"], defenses=["erm"])
    finally:
        registry().manager.unregister(tracker)
    assert not finished.outcome.failed


def test_a_single_draw_of_a_random_defense_is_flagged(tmp_path: Path) -> None:
    frame = run(tmp_path, draws=1, attacks=["fgsm"], eps=[0.1]).report.results
    assert set(frame[frame.defense == "adv_bnn"]["flags"]) == {"one_draw"}
    assert set(frame[frame.defense == "erm"]["flags"]) == {""}


def start(folder: Path, options: list[str] = OPTIONS) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "advbench", "run", *options, "--store", "store", "--out", "out"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def count(folder: Path, pattern: str) -> int:
    return len(list((folder / "store").glob(pattern)))


def saved_states(folder: Path) -> int:
    """Saved states of trainings, not the probe that shows that the store can be written."""
    return len([path for path in (folder / "store" / "partial").glob("*.safetensors") if "probe" not in path.stem])


def test_kills_lose_nothing_and_change_nothing(reference: Path, tmp_path: Path) -> None:
    moments = random.Random(0)
    for _ in range(3):
        process = start(tmp_path)
        already = count(tmp_path, "records/*/*.json")
        while process.poll() is None and count(tmp_path, "records/*/*.json") < already + 2:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.2))
        done = {path: path.read_bytes() for path in (tmp_path / "store" / "records").rglob("*.json")}
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert all(path.read_bytes() == raw for path, raw in done.items())
    assert start(tmp_path).wait() == 0
    assert all(path.read_bytes() == raw for path, raw in done.items())
    assert results(tmp_path / "out") == results(reference / "out")


CHAIN = "--set {0}.burn_in=2 --set {0}.interval=3 --set {0}.samples=8 --set {0}.stages=[6]"
KILLED = {
    "adv_bnn": "--set adv_bnn.stages=[6] --set adv_bnn.steps=2",
    "mc_dropout": "--set mc_dropout.stages=[10]",
    "sgld": CHAIN.format("sgld"),
    "bal": "--set bal.stages=[2] --set bal.image_steps=3 --set bal.init_from=''",
    "apd": f"{CHAIN.format('apd')} --set apd.gan_steps=30 --set apd.hidden=[8,8]",
}


SOON = ("adv_bnn", "sgld")  # a gradient method and a chain; the others in the slow suite


@pytest.mark.parametrize("name", [n if n in SOON else pytest.param(n, marks=pytest.mark.slow) for n in KILLED])
def test_a_training_killed_in_the_middle_goes_on_from_its_checkpoint(name: str, tmp_path: Path) -> None:
    options = f"--defense {name} --attack fgsm --eps 0.1 --limit 20 {KILLED[name]}"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    assert start(whole, options.split()).wait() == 0
    process = start(killed, [*options.split(), "--checkpoint-seconds", "0"])
    while process.poll() is None and not saved_states(killed):
        time.sleep(0.005)
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert saved_states(killed) == 1
    assert count(killed, "records/*/*.json") == 0
    assert start(killed, options.split()).wait() == 0
    assert saved_states(killed) == 0
    assert results(killed / "out") == results(whole / "out")


def test_an_interrupt_ends_with_130_and_a_resumable_state(tmp_path: Path) -> None:
    # A shell's background jobs are born deaf to the keyboard's interrupt; this one must hear it.
    hearing = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"{hearing}from advbench.cli.app import script; script()",
            "run",
            *OPTIONS,
            "--store",
            "store",
        ],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not count(tmp_path, "records/*/*.json"):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err.strip().splitlines()[-1] == "interrupted; run the same command again to resume"
    assert "Traceback" not in err
    (beat,) = (json.loads(path.read_text()) for path in (tmp_path / "store/runs").glob("*.json"))
    assert beat["state"] == "interrupted"
    assert beat["tasks"]["running"] == 0
    assert beat["running"] == []
    assert beat["tasks"]["done"] == count(tmp_path, "records/*/*.json")
    assert beat["tasks"]["done"] + beat["tasks"]["waiting"] == beat["tasks"]["planned"]
    shown = subprocess.run([sys.executable, "-m", "advbench", "report", "--store", "store"], cwd=tmp_path, check=False)
    assert shown.returncode in (1, 2)  # 2 if no evaluation had ended
    assert (tmp_path / "results/spec.toml").exists()


@pytest.mark.parametrize(
    ("part", "method"), [(Measurements, "add"), (Backlog, "take"), (Leases, "acquire")], ids=["add", "take", "acquire"]
)
def test_an_interrupt_between_two_lists_of_tasks_loses_none(
    part: type, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, left = getattr(part, method), [4]

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        done = original(*args, **kwargs)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return done

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(part, method, interrupted)
    assert main(["run", *OPTIONS, "--store", "store", "--executor", "inline"]) == 130
    (beat,) = (json.loads(path.read_text()) for path in (tmp_path / "store/runs").glob("*.json"))
    assert beat["tasks"]["done"] == count(tmp_path, "records/*/*.json") > 0
    assert beat["tasks"]["done"] + beat["tasks"]["waiting"] == beat["tasks"]["planned"]


def test_the_same_store_serves_the_python_interface(reference: Path) -> None:
    import safetensors.torch

    import advbench

    frame = pd.read_csv(reference / "out" / "results.csv")
    row = frame[(frame.defense == "adv_bnn") & (frame.attack == "none")].iloc[0]
    store = Store(str(reference / "store"))
    record = store.read_record(row.key)
    assert record is not None
    trained = record["inputs"]["target"]
    data = advbench.load_dataset("digits")
    raw = store.read_artifact(trained)
    assert raw is not None
    clf = load_classifier(
        advbench.build_architecture("small_cnn", data.train, 0),
        safetensors.torch.load(raw),
        store.read_record(trained)["result"]["classifier"],  # type: ignore[index]
    )
    from advbench.data.datasets import limited

    predictions = advbench.evaluate(clf, *limited(data.test, 40).batch(slice(None)), draws=4)
    assert predictions.accuracy == row.accuracy


def test_cells_that_left_the_store_are_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from advbench.cli.app import main
    from advbench.report import output

    real = output.write_out

    def late(plan: Any, store: Any, outcome: Any, out: Path) -> Any:
        next((tmp_path / "store" / "records").rglob(f"{plan.cells[-1].key}.json")).unlink()
        return real(plan, store, outcome, out)

    monkeypatch.setattr(output, "write_out", late)
    monkeypatch.chdir(tmp_path)
    assert main(["run", *OPTIONS, "--store", "store"]) == 1
    assert "1 cells were removed from the store after their evaluation; run the same" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main(["run", *OPTIONS, "--store", "store"]) == 0
