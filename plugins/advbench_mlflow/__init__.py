"""Tracks finished tasks as MLflow runs if MLFLOW_TRACKING_URI is set; otherwise imports nothing."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from advbench.errors import MissingExtraError
from advbench.registry import hookimpl

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from advbench.registry import FinishedTask

DEFAULTS = {  # defaults of MLflow's own variables
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # a down server costs 12 seconds per task, not 4 minutes
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output is for the tables
}
KEY = "advbench.key"
RUN_NAME_LENGTH = 250  # length of MLflow's column, enforced by servers on PostgreSQL
PLAIN = ("seed", "norm", "draws", "images", "batch_size", "budget", "precision", "threads")
UNMEASURED = {"classifier", "classes", "histograms", "retention"}  # parts of a result that are not scalar measurements

_missing: set[str] = set()


@hookimpl
def advbench_task_finished(task: FinishedTask, record: dict[str, Any]) -> None:
    """Track a task as a run.

    Raises:
        MissingExtraError: mlflow is not installed; raised once per process.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri or _missing:
        return
    for variable, value in DEFAULTS.items():
        os.environ.setdefault(variable, value)
    try:
        from mlflow import MlflowClient  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "mlflow":
            raise
        _missing.add(error.name)
        raise MissingExtraError("tracking with MLFLOW_TRACKING_URI", "mlflow", "mlflow") from error
    _track(MlflowClient(tracking_uri=uri), task, record)


def _track(client: MlflowClient, task: FinishedTask, record: Mapping[str, Any]) -> None:
    """Log a task, unless a finished run has its key; an unfinished run is completed.

    An evaluation repeats the filter parameters of the runs of its target and examples, if those were tracked.
    """
    from mlflow.entities import Metric, Param  # noqa: PLC0415
    from mlflow.utils import validation as limits  # noqa: PLC0415

    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "advbench"
    found = client.get_experiment_by_name(name)
    experiment = found.experiment_id if found else client.create_experiment(name)
    run = _run(client, experiment, task.key)
    if run and run.info.status == "FINISHED":
        return
    now = int(time.time() * 1000)
    run = run or client.create_run(
        experiment,
        start_time=now - int(record["seconds"] * 1000),
        tags=_tags(task, record),
        run_name=task.label[:RUN_NAME_LENGTH],
    )
    values: dict[str, Any] = {}
    for key in filter(None, (record["inputs"].get("target"), record["inputs"].get("examples"))):
        earlier = _run(client, experiment, key)
        values |= earlier.data.params if earlier else {}
    values |= _values(task, record["inputs"])
    size = limits.MAX_ENTITY_KEY_LENGTH
    texts = {_name(key)[:size]: _text(value, limits.MAX_PARAM_VAL_LENGTH) for key, value in values.items()}
    params = [Param(key, text) for key, text in texts.items()]
    measured = _numbers("", {"seconds": record["seconds"], **_measured(record["result"])})
    metrics = [Metric(key[:size], number, now, 0) for key, number in measured]
    for start in range(0, len(params), limits.MAX_PARAMS_TAGS_PER_BATCH):
        client.log_batch(run.info.run_id, params=params[start : start + limits.MAX_PARAMS_TAGS_PER_BATCH])
    for start in range(0, len(metrics), limits.MAX_METRICS_PER_BATCH):
        client.log_batch(run.info.run_id, metrics=metrics[start : start + limits.MAX_METRICS_PER_BATCH])
    client.set_terminated(run.info.run_id, end_time=now)


def _run(client: MlflowClient, experiment: str, key: str) -> Run | None:
    """Run of the task with a key, if any."""
    runs = client.search_runs([experiment], f"tags.`{KEY}` = '{key}'", max_results=1)
    return runs[0] if runs else None


def _tags(task: FinishedTask, record: Mapping[str, Any]) -> dict[str, str]:
    flags = record["result"].get("flags")
    return {"advbench.kind": task.kind, KEY: task.key, **({"advbench.flags": ",".join(flags)} if flags else {})}


def _values(task: FinishedTask, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters for filtering runs."""
    values = {
        "kind": task.kind,
        "dataset": inputs["data"]["name"],
        "architecture": inputs.get("architecture", {}).get("name"),
        **{name: inputs.get(name) for name in PLAIN},
        **{name: getattr(task, name) or None for name in ("defense", "source", "attack")},
        "eps": task.eps,
        "norm": inputs.get("within", inputs).get("norm"),
        "ood": inputs.get("foreign", {}).get("name"),
    }
    for plugin in filter(None, (inputs.get("defense"), inputs.get("attack"))):
        values |= {f"{plugin['name']}.{param}": value for param, value in plugin["params"].items()}
    return {name: value for name, value in values.items() if value is not None}


def _measured(result: Mapping[str, Any]) -> dict[str, Any]:
    """Measurements of a result: retention by its area, intervals as `_low` and `_high`."""
    values = {name: value for name, value in result.items() if name not in UNMEASURED}
    for name in [name for name in values if name.endswith("_interval")]:
        ends = zip(("low", "high"), values.pop(name), strict=True)
        values |= {f"{name.removesuffix('interval')}{end}": value for end, value in ends}
    if "retention" in result:  # only its area
        values["retention"] = result["retention"]["total"]["area"]
    return values


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """Finite numbers in nested values, by path."""
    if isinstance(value, Mapping | list):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            yield from _numbers(f"{name}/{_name(str(key))}".lstrip("/"), item)
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield name, float(value)


def _name(text: str) -> str:
    """A name in characters that MLflow accepts on any system."""
    return re.sub(r"[^\w.-]", "_", text)


def _text(value: Any, length: int) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= length else text[: length - 3] + "..."
