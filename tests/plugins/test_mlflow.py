"""The tracker: finished tasks as runs of a real MLflow with its SQLite back end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import advbench_mlflow
import pandas as pd
import pytest
from conftest import Cli

from advbench.grid.inputs import Component, DataRef, TrainInputs
from advbench.grid.plan import Task

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read on import; tests report to nobody
mlflow = pytest.importorskip("mlflow")

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

SMALL = "--eps 0.1 --limit 40 --draws 4 --set erm.stages=[1]".split()
ERM = ["run", "--defense", "erm", "--attack", "fgsm", *SMALL]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database; making its tables takes longer than copying it."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def client(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The client of a database of its own, which this test's tasks are tracked in."""
    uri = f"sqlite:///{shutil.copy(database, tmp_path / 'mlflow.db')}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return mlflow.MlflowClient(tracking_uri=uri)


def tracked(client: Any, experiment: str = "advbench") -> dict[str, Any]:
    """The runs of an experiment by the key of their task."""
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    runs = {run.data.tags["advbench.key"]: run for run in found}
    assert len(runs) == len(found)
    return runs


def train_task(name: str = "erm", **params: Any) -> Task:
    inputs = TrainInputs(
        defense=Component(name, "advbench", "1", params),
        architecture=Component("small_cnn", "advbench", "1"),
        data=DataRef("digits", "d" * 64),
        precision="float32",
        seed=3,
        threads=1,
    )
    return Task(inputs, "a" * 64, defense=f"{name}@mine")


def train_record(task: Task, **result: Any) -> dict[str, Any]:
    return {
        "inputs": task.inputs.to_json(),
        "result": {"classifier": {"width": 1}, "training": {}, "statistics": {}, **result},
        "seconds": 2.5,
    }


def finished(task: Task, record: dict[str, Any]) -> None:
    advbench_mlflow.advbench_task_finished(task=task, record=record)


def test_every_task_of_a_run_is_a_run_with_its_numbers_and_no_repetition_doubles_it(
    cli: Cli, client: Any, tmp_path: Path
) -> None:
    command = ["run", "--defense", "erm,bnn@small", "--attack", "fgsm,fmn", "--affinity", "fgsm,fmn", *SMALL]
    options = ["--set", "bnn@small.stages=[1]", "--set", "fmn.steps=4"]
    done = cli(*command, *options)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    runs = tracked(client)
    kinds = [run.data.tags["advbench.kind"] for run in runs.values()]
    assert sorted(kinds) == ["craft"] * 4 + ["evaluate"] * 10 + ["train"] * 2
    assert {run.info.status for run in runs.values()} == {"FINISHED"}

    frame = pd.read_csv(tmp_path / "results" / "results.csv", dtype={"draws": int})
    assert len(frame) == 10
    for _, row in frame.iterrows():
        metrics, params = runs[row.key].data.metrics, runs[row.key].data.params
        names = ["accuracy", "accuracy_low", "accuracy_high", "draw_accuracy_low", "draw_accuracy_high"]
        names += ["draw_accuracy_min", "draw_accuracy_max", "draws", "n_examples"]
        assert [metrics[name] for name in names] == pytest.approx([row[name] for name in names], abs=1e-9)
        assert metrics["draw_accuracy"] == pytest.approx(row.draw_accuracy_mean)
        assert metrics["attack/forward_passes"] == pytest.approx(row.forward_passes)
        assert metrics["attack/backward_passes"] == pytest.approx(row.backward_passes)
        assert 0 <= metrics["retention"] <= 1
        assert metrics["uncertainty/total"] > 0
        assert (params["kind"], params["dataset"], params["architecture"]) == ("evaluate", "digits", "small_cnn")
        assert (params["defense"], params["attack"], float(params["eps"])) == (row.defense, row.attack, row.eps)
        assert (params["seed"], params["images"], params["draws"]) == ("0", "40", "4")
        if row.attack == "none":
            assert "source" not in params
            assert runs[row.key].info.run_name == f"evaluate {row.defense} on clean, seed 0"
        else:
            assert (params["source"], params["norm"]) == (row.source, "linf")
        assert ("fgsm.loss" in params) == (row.attack == "fgsm")
        assert params.get("fmn.steps") == ("4" if row.attack == "fmn" else None)
        assert ("bnn.prior_std" in params) == (row.defense == "bnn@small")

    (trained,) = [run for run in runs.values() if run.info.run_name == "train bnn@small, seed 0"]
    assert trained.data.params["bnn.stages"] == "[1]"
    assert {"seconds", "training/loss", "statistics/kld", "statistics/tensors/3/std"} <= set(trained.data.metrics)
    assert not {name for name in trained.data.metrics if "classifier" in name}
    (crafted,) = [run for run in runs.values() if run.info.run_name == "craft fgsm 0.1 on erm, seed 0"]
    assert crafted.data.metrics["forward_passes"] == 1
    assert (crafted.data.params["source"], crafted.data.params["eps"]) == ("erm", "0.1")

    assert cli(*command, *options, "--store", "another").returncode == 0
    again = tracked(client)
    assert {run.info.run_id for run in again.values()} == {run.info.run_id for run in runs.values()}
    assert all(again[key].data.metrics == run.data.metrics for key, run in runs.items())


def test_without_the_variable_mlflow_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    code = (
        "import sys; from advbench.cli.app import main; sys.exit(main(sys.argv[1:]) or 9 * ('mlflow' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code, *ERM], cwd=tmp_path, check=False).returncode == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    finished(task := train_task(), train_record(task))


def test_a_missing_mlflow_is_said_once_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    code = "import sys; sys.modules['mlflow'] = None; from advbench.cli.app import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *ERM]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    said = [line for line in done.stderr.splitlines() if "mlflow" in line]
    assert said == [
        "warning: a tracker failed on train erm, seed 0: MissingExtraError: tracking with MLFLOW_TRACKING_URI "
        "needs mlflow, which is not installed; pip install 'advbench[mlflow]'"
    ]
    assert len(pd.read_csv(tmp_path / "results" / "results.csv")) == 2


def test_a_library_that_mlflow_misses_is_not_taken_for_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mlflow.py").write_text("import its_own_need\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="its_own_need"):
            finished(task := train_task(), train_record(task))


def test_a_server_that_cannot_be_reached_is_a_warning(cli: Cli, tmp_path: Path) -> None:
    nowhere = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    done = cli(*ERM, env=nowhere)
    assert done.returncode == 0
    assert "warning: a tracker failed on train erm, seed 0: MlflowException: API request to" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(pd.read_csv(tmp_path / "results" / "results.csv")) == 2


def test_a_run_that_was_left_unfinished_is_completed(client: Any) -> None:
    experiment = client.create_experiment("advbench")
    left = client.create_run(experiment, tags={"advbench.key": "a" * 64})
    finished(task := train_task(lr=0.1), train_record(task, training={"loss": 0.5}))
    finished(task := train_task(lr=0.1), train_record(task, training={"loss": 0.7}))
    (run,) = tracked(client).values()
    assert (run.info.run_id, run.info.status) == (left.info.run_id, "FINISHED")
    assert (run.data.params["erm.lr"], run.data.metrics["training/loss"]) == ("0.1", 0.5)
    assert len(client.get_metric_history(run.info.run_id, "training/loss")) == 1


def test_the_run_takes_as_long_as_the_task_and_says_what_flags_it(client: Any) -> None:
    finished(task := train_task(), train_record(task, flags=["one_draw", "vanished_gradients"]))
    (run,) = tracked(client).values()
    assert run.info.end_time - run.info.start_time == 2500
    assert run.data.metrics["seconds"] == 2.5
    assert run.data.tags["advbench.flags"] == "one_draw,vanished_gradients"


def test_the_experiment_is_the_one_that_mlflows_variable_names(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    finished(task := train_task(), train_record(task))
    assert len(tracked(client, "mine")) == 1
    assert client.get_experiment_by_name("advbench") is None


def test_what_mlflow_would_refuse_is_cut_renamed_or_left_out(client: Any) -> None:
    name = "library:sets/A+B"
    params = {f"p{i}": i for i in range(150)}
    task = train_task(name, none=None, text="x" * 7000, nested={"a": [1, 2]}, flag=True, **params)
    odd = {"nan": float("nan"), "inf": float("inf"), "none": None, "yes": True, "text": "1", "ünï cøde %": 1}
    numbers = list(range(1200))
    finished(task, train_record(task, training=odd, statistics={"rows": numbers, "k" * 300: 1}))
    (run,) = tracked(client).values()
    assert run.info.run_name == f"train {name}@mine, seed 3"
    prefix = "library_sets_A_B."
    given = {k.removeprefix(prefix): v for k, v in run.data.params.items() if k.startswith(prefix)}
    assert given.pop("text") == "x" * 5997 + "..."
    assert given == {"nested": '{"a": [1, 2]}', "flag": "true", **{name: str(i) for name, i in params.items()}}
    assert run.data.params["defense"] == f"{name}@mine"
    metrics = run.data.metrics
    assert {k for k in metrics if k.startswith("training")} == {"training/ünï_cøde__"}
    assert [metrics[f"statistics/rows/{i}"] for i in numbers] == numbers
    assert max(map(len, metrics)) == 250


def test_an_active_run_of_the_callers_own_is_left_alone(client: Any) -> None:
    with mlflow.start_run() as active:
        finished(task := train_task(), train_record(task, training={"loss": 0.5}))
        assert mlflow.active_run().info.run_id == active.info.run_id
    assert client.get_run(active.info.run_id).data.metrics == {}
    assert len(tracked(client)) == 1


@pytest.mark.filterwarnings("ignore:starlette.middleware.wsgi is deprecated")
def test_a_real_server_is_told_and_its_links_do_not_mix_with_the_tables(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", os.environ["MLFLOW_TRACKING_URI"])
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", str(tmp_path / "artifacts"))
    monkeypatch.delenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", raising=False)
    from mlflow.server import app
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, app)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.port}")
    try:
        finished(task := train_task(lr=0.1), train_record(task, training={"loss": 0.5}))
        finished(task := train_task(lr=0.1), train_record(task, training={"loss": 0.7}))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert capsys.readouterr().out == ""
    (run,) = tracked(client).values()
    assert (run.info.status, run.data.params["erm.lr"]) == ("FINISHED", "0.1")
    assert run.data.metrics["training/loss"] == 0.5
