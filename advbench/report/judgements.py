"""What a store's records say of a plan's cells, cut down to what tables need."""

from __future__ import annotations

import json
from array import array
from binascii import a2b_base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from advbench.evaluation import Bools
from advbench.grid.plan import Cell, OodCell, Plan

Record = Mapping[str, Any]


class RecordSource(Protocol):
    """Where records are: a store, or a board's file."""

    def read_record(self, key: str) -> dict[str, Any] | None:
        """The record of a task, or None where there is none."""

    def read_records(self, keys: Sequence[str]) -> Iterator[dict[str, Any] | None]:
        """The records of several tasks, in their order."""


Texts = dict[tuple[tuple[str, str], ...], str]


@dataclass(frozen=True, slots=True)
class Judgement:
    """How a cell was judged.

    Attributes:
        numbers: what `NUMBERS` names, columns of `results.csv`.
        classes: of the classifier.
        flags: raised by the cell itself.
        versions: as one line of JSON.
        right: whether the ensemble is right on each image, as bits; None where the record is too old to say.
        draw_variance: variance of the accuracy from the choice of draws.
        details: what a record says of uncertainty: `retention`, `histograms`, `calibration`, `uncertainty`,
            `detection`; None for transfers.
    """

    numbers: array[float]
    classes: int
    flags: tuple[str, ...]
    versions: str
    right: bytes | None
    draw_variance: float
    details: Mapping[str, Any] | None

    @property
    def interval(self) -> tuple[float, float]:
        """Of the ensemble's accuracy."""
        return self.numbers[3], self.numbers[4]


def correct(judged: Sequence[Judgement]) -> Bools:
    """Whether each cell's ensemble is right on each image, `(cells, N)`; all of them need `right`."""
    bits = np.frombuffer(b"".join(a2b_base64(each.right or b"") for each in judged), np.uint8)
    result: Bools = np.unpackbits(bits.reshape(len(judged), -1), 1, int(judged[0].numbers[0])).view(np.bool_)
    return result


DETAILS = ("retention", "histograms", "calibration", "uncertainty", "detection")
NUMBERS = (
    "n_examples draws accuracy accuracy_low accuracy_high draw_accuracy_mean draw_accuracy_low draw_accuracy_high "
    "draw_accuracy_min draw_accuracy_max forward_passes backward_passes seconds"
).split()


def judgements(plan: Plan, store: RecordSource) -> Iterator[Judgement | None]:
    """One for each cell of the plan, in its order; None where there is no record."""
    own = {cell.key: is_own(cell) for cell in plan.cells}
    known: Texts = {}

    keys = [cell.key for cell in plan.cells]
    for key, record in zip(keys, store.read_records(keys), strict=True):
        yield None if record is None else judgement_of(record, known, with_details=own[key])


def found_out(plan: Plan, store: RecordSource) -> Iterator[tuple[OodCell, int, Mapping[str, Any]]]:
    """What records say of out-of-distribution images: cell, classes, details; 0 and none where one is missing."""
    for cell in plan.ood:
        record = store.read_record(cell.key)
        result = record["result"] if record else {}
        yield cell, result.get("classes", 0), result


def is_own(cell: Cell) -> bool:
    """Whether a cell says how its defense stands up to an attack: crafted on itself, or on the attack's one source."""
    return cell.source.label == cell.defense.label or (cell.attack is not None and cell.attack.init is not None)


def judgement_of(record: Record, known: Texts | None = None, *, with_details: bool = True) -> Judgement:
    """What a record says of a cell.

    Args:
        record: of an evaluation.
        known: texts that are kept once, however many cells have them.
        with_details: whether what it says of uncertainty is kept.
    """
    known = {} if known is None else known
    result = record["result"]
    attack = result["attack"]
    said = tuple(record["versions"].items())
    versions = known.get(said) or json.dumps(record["versions"], sort_keys=True)
    right = result.get("right")
    return Judgement(
        numbers=array(
            "d",
            (
                result["n_examples"],
                result["draws"],
                result["accuracy"],
                *result["accuracy_interval"],
                result["draw_accuracy"],
                *result["draw_accuracy_interval"],
                result["draw_accuracy_min"],
                result["draw_accuracy_max"],
                attack["forward_passes"],
                attack["backward_passes"],
                round(record["seconds"] + attack["seconds"], 3),
            ),
        ),
        classes=result["classes"],
        flags=tuple(result.get("flags", ())),
        versions=known.setdefault(said, versions),
        right=None if right is None else right.encode(),
        draw_variance=result.get("draw_variance", 0.0),
        details={name: result[name] for name in DETAILS if name in result} if with_details else None,
    )
