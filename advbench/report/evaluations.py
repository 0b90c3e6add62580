"""Evaluations of a plan's cells from records, reduced to the values that tables need."""

from __future__ import annotations

import json
from array import array
from binascii import a2b_base64
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np

from advbench.errors import StoreError
from advbench.evaluation import Bools
from advbench.grid.plan import Cell, Plan

NUMBERS = (
    "n_examples draws accuracy accuracy_low accuracy_high draw_accuracy_mean draw_accuracy_low draw_accuracy_high "
    "draw_accuracy_min draw_accuracy_max forward_passes backward_passes seconds"
).split()
DETAILS = tuple("retention histograms calibration uncertainty detection persistence accepted_errors".split())


class RecordSource(Protocol):
    """Source of records: a store, or a board's file."""

    def read_record(self, key: str) -> dict[str, Any] | None:
        """Return the record of a task, or None if there is none."""

    def read_records(self, keys: Sequence[str]) -> Iterator[dict[str, Any] | None]:
        """Return the records of several tasks, in order."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of a cell."""

    numbers: array[float]  # values of `NUMBERS`, columns of `results.csv`
    classes: int  # number of classes
    flags: tuple[str, ...]  # flags raised by the cell itself
    versions: str  # one line of JSON
    right: bytes | None  # mask of correct predictions of the ensemble, as bits; None in old records
    draw_variance: float  # variance of the accuracy due to draws

    @property
    def interval(self) -> tuple[float, float]:
        """Interval of the ensemble's accuracy."""
        return self.numbers[3], self.numbers[4]


def read_evaluations(
    plan: Plan, store: RecordSource
) -> Iterator[tuple[Evaluation, dict[str, Any]] | tuple[None, None]]:
    """One for each cell of the plan, in its order, with `DETAILS` on uncertainty; None where there is no record.

    Of transfers there are no details.
    """
    for cell, record in zip(plan.cells, store.read_records([cell.key for cell in plan.cells]), strict=True):
        if record is None:
            yield None, None
            continue
        with reading(cell.key):
            result = record["result"]
            details = {name: result[name] for name in DETAILS if name in result} if is_own(cell) else {}
            found = evaluation_of(record), details
        yield found


@contextmanager
def reading(key: str) -> Iterator[None]:
    """Run a block that takes a record apart, which an import may have brought from anybody.

    Raises:
        StoreError: the record is of another form than a task's.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(
            f"record {key[:12]} of the store",
            expected="one that a task leaves",
            got=f"{type(error).__name__}: {error}",
            remedy="remove it, or use a store that holds nothing from others",
        ) from error


def is_own(cell: Cell) -> bool:
    """True if examples of a cell are crafted on its defense itself, or on the attack's fixed source."""
    return cell.source.label == cell.defense.label or (cell.attack is not None and cell.attack.init is not None)


@cache
def _versions(items: tuple[tuple[str, str], ...]) -> str:
    """Versions as one line of JSON, shared in memory by all cells."""
    return json.dumps(dict(items), sort_keys=True)


def versions_line(record: Mapping[str, Any]) -> str:
    """Versions that computed a record, as one line of JSON."""
    return _versions(tuple(record["versions"].items()))


def evaluation_of(record: Mapping[str, Any]) -> Evaluation:
    """The result in the record of an evaluation, without what it says of uncertainty."""
    result = record["result"]
    attack = result["attack"]
    right = result.get("right")
    numbers = (
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
    )
    return Evaluation(
        numbers=array("d", numbers),
        classes=result["classes"],
        flags=tuple(result.get("flags", ())),
        versions=versions_line(record),
        right=None if right is None else right.encode(),
        draw_variance=result.get("draw_variance", 0.0),
    )


def correct(found: Sequence[Evaluation]) -> Bools:
    """Mask of correct predictions of each ensemble, `(evaluations, N)`; all need `right`."""
    return unpacked([each.right or b"" for each in found], int(found[0].numbers[0]))


def unpacked(found: Sequence[str | bytes], images: int) -> Bools:
    """Masks `(evaluations, N)` from the bits in base64 of records of N images each."""
    bits = np.frombuffer(b"".join(map(a2b_base64, found)), np.uint8)
    masks: Bools = np.unpackbits(bits.reshape(len(found), -1), 1, images).view(np.bool_)
    return masks
