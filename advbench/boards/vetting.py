"""Whether a submission fits a board, and whether its records say what its predictions show."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from advbench.boards.board import LIBRARIES, Board, stated_versions
from advbench.boards.findings import Findings
from advbench.boards.parcel import Parcel
from advbench.boards.possible import contradictions
from advbench.data.datasets import Dataset, limited
from advbench.errors import AdvbenchError
from advbench.evaluation import RESAMPLES, Predictions
from advbench.evaluation.summary import summary
from advbench.grid.identity import Identity
from advbench.grid.plan import Plan, Task
from advbench.grid.spec import Choice, resolve
from advbench.grid.tasks import VANISHED, read_predictions
from advbench.store.records import Store

# Settings in which a submission differs from its board; of data sets, whose path may differ, the identity counts.
FREE = ("defenses", "set", "dataset", "ood")
PRECISE = 1e-7
# What a record says of images that belong to no class.
OF_FOREIGN = ("n_examples", "classes", "draws", "uncertainty", "histograms", "detection")
MEASURED = ("forward_passes", "backward_passes", "seconds")

Record = Mapping[str, Any]


def check_settings(board: Board, parcel: Parcel, identity: Identity, findings: Findings) -> None:
    """Note where a submission was computed under other settings than its board.

    Args:
        board: the board.
        parcel: the submission.
        identity: of the board's data.
        findings: where it is noted.
    """
    for name in type(board.spec).model_fields:
        ours, theirs = getattr(board.spec, name), getattr(parcel.spec, name)
        if name not in FREE and ours != theirs:
            findings.add(f"setting '{name}' is not the board's", f"{theirs} in place of {ours}")
    if parcel.identity[:2] != identity[:2]:
        given = [each[:2] for each in (parcel.identity.data, *parcel.identity.ood)]
        findings.add("the data is not the board's", ", ".join(f"{name} of SHA-256 {digest}" for name, digest in given))
    _, ours_made = resolve(board.spec)
    _, theirs_made = resolve(parcel.spec)
    made = {choice.label: _essence(choice) for choice in ours_made}
    for choice in theirs_made:
        if _essence(choice) != made.get(choice.label):
            findings.add("an attack has other hyperparameters than the board's", choice.label)


def _essence(choice: Choice) -> tuple[Any, ...]:
    """What makes an attack the same, the defense on which it is made included."""
    return choice.component, choice.net, choice.init and _essence(choice.init)


def check_records(parcel: Parcel, plan: Plan, board: Board, dataset: Dataset | None, findings: Findings) -> None:
    """Note where records are missing, or say something else than their plan, versions and predictions.

    Args:
        parcel: the submission.
        plan: its plan, with the keys of the board's version.
        board: the board.
        dataset: where it is at hand: its labels are those that predictions were judged by.
        findings: where it is noted.
    """
    records = {key: parcel.store.read_record(key) for key in plan.tasks}
    there = {name.rpartition("/")[2].removesuffix(".json") for name in parcel.store.storage.names("records")}
    for key in sorted(there - records.keys()):
        findings.add("a record that the spec does not lead to", key)
    libraries = _libraries(board)
    for key, record in records.items():
        task = plan.tasks[key]
        if record is None:
            findings.add("a record is not there, or was made by another version or under other settings", task.label)
            continue
        for problem in _odd(record, task, libraries):
            findings.add(problem, task.label)
    if not findings:
        for key, task in plan.tasks.items():
            if task.kind == "evaluate":
                for problem in _contradictions(key, plan, records, parcel.store, dataset):
                    findings.add(problem, task.label)


def _libraries(board: Board) -> dict[str, str]:
    """The versions that made a board's results; of none, if they state several."""
    stated = [stated_versions(text) for text in board.results.versions.unique() if text]
    return {name: found.pop() for name in LIBRARIES if len(found := {row.get(name, "") for row in stated}) == 1}


def _odd(record: Record, task: Task, libraries: Mapping[str, str]) -> Iterator[str]:
    """What of a record is not as a run under the board's settings writes it."""
    if record.get("kind") != task.kind or record.get("inputs") != task.inputs.to_json():
        yield "a record is of another task than its key says"
    versions = record.get("versions")
    if not isinstance(versions, dict) or set(versions) != {*LIBRARIES, "python", "device"}:
        yield "a record does not state its versions"
        return
    for name, stated in versions.items():
        if not isinstance(stated, str) or not re.fullmatch(r"[\w .,+()/@-]{1,100}", stated, re.ASCII):
            yield f"a record states no version of {name}"
        elif stated != libraries.get(name, stated):
            yield f"a record was made by {name} {stated}, the board by {libraries[name]}"
    if not _number(record.get("seconds")) or not isinstance(record.get("result"), dict):
        yield "a record has no result or no time"
    elif task.kind == "train":
        posterior = (record["result"].get("classifier") or {}).get("posterior")
        if not isinstance(posterior, str) or not re.fullmatch(r"\w{1,40}", posterior, re.ASCII):
            yield "a training's record does not say what it found"


def _contradictions(
    key: str, plan: Plan, records: Mapping[str, Record | None], store: Store, dataset: Dataset | None
) -> Iterator[str]:
    """What an evaluation's record says that its predictions and its examples' record do not."""
    task, result = plan.tasks[key], (records[key] or {})["result"]
    inputs = task.inputs.to_json()
    foreign = "foreign" in inputs
    if not foreign and not _costs_agree(result, records.get(inputs["examples"] or ""), inputs):
        yield "what an attack cost is not what its own record says"
        return
    others = [need for need in task.needs if need not in (inputs["target"], inputs["examples"])]
    try:
        predictions = _predictions(store, task, dataset)
        clean = _predictions(store, plan.tasks[others[0]], dataset) if others else None
        if clean is not None and not foreign and not np.array_equal(clean.labels, predictions.labels):
            raise ValueError("its labels are not those of the clean images")
        due = json.loads(json.dumps(summary(predictions, clean)))
    except (AdvbenchError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        yield f"stored predictions are none ({' '.join(str(error).split())[:100]})"
        return
    said = {name: value for name, value in result.items() if name not in ("attack", "flags")}
    if not _alike(said, {name: due[name] for name in due if name in OF_FOREIGN or not foreign}):
        yield "a record is not what its stored predictions give"
    if foreign:
        if "attack" in result or "flags" in result:
            yield "a record says of foreign images what nobody can know"
        return
    flags = ["one_draw"] if predictions.draws == 1 and "one_draw" in (result.get("flags") or ()) else []
    if result["attack"].get("vanished_gradients", 0.0) > VANISHED:
        flags.append("vanished_gradients")
    if result.get("flags") != flags:
        yield "a record's flags are not those that its numbers raise"


def _costs_agree(result: Record, crafted: Record | None, inputs: Mapping[str, Any]) -> bool:
    attack = result.get("attack")
    if not isinstance(attack, dict) or not all(_number(attack.get(name)) for name in MEASURED):
        return False
    if inputs["examples"] is None:
        return attack == dict.fromkeys(MEASURED, 0.0)
    if crafted is None:
        return False
    # How long it took is not compared: examples that were dropped are made again.
    return bool({name: value for name, value in attack.items() if name != "seconds"} == crafted["result"])


def _predictions(store: Store, task: Task, dataset: Dataset | None) -> Predictions:
    """Predictions that can be such.

    Raises:
        ValueError: they cannot; TypeError, KeyError, AttributeError and IndexError likewise.
    """
    found, foreign = read_predictions(store, task.key), "foreign" in task.inputs.to_json()
    images, draws, classes = len(found.labels), len(found.correct), found.mean_probs.shape[-1]
    shapes = {
        "labels": (images,),
        "mean_probs": (images, classes),
        "mean_entropy": (images,),
        "mean_square": (images,),
        "votes": (images, classes),
        "correct": (draws, images),
        "resampled_share": (images,),
        "resampled_accuracy": (RESAMPLES,),
    }
    if images != task.inputs.to_json()["images"] or draws not in (1, task.inputs.to_json()["draws"]) or classes < 2:
        raise ValueError("of other images or draws than the task's")
    kinds = {"labels": "i", "votes": "i", "correct": "b"}
    for name, array in found.arrays().items():
        if array.dtype.kind != kinds.get(name, "f"):
            raise ValueError(f"{name} of type {array.dtype}")
        least = -1.0 if foreign and name == "labels" else -PRECISE
        if name in shapes and array.shape != shapes[name]:
            raise ValueError(f"{name} of shape {array.shape}")
        if not np.isfinite(array.astype(np.float64)).all() or (array.astype(np.float64) < least).any():
            raise ValueError(f"{name} with numbers that cannot be")
    if odd := contradictions(found):
        raise ValueError(f"{', '.join(odd)} contradict the rest")
    if dataset is not None and not foreign:
        labels = limited(dataset.test, images).labels.numpy()
        if classes != dataset.test.classes or not np.array_equal(found.labels, labels):
            raise ValueError("its labels are not the data set's")
    return found


def _alike(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same but for rounding."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    if _number(one) and _number(other):
        return math.isclose(one, other, rel_tol=PRECISE, abs_tol=PRECISE)
    return type(one) is type(other) and one == other


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
