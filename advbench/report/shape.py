"""The form of a board's records, which may come from anybody."""

from __future__ import annotations

from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
import pydantic
from pydantic import Field

from advbench.errors import StoreError
from advbench.evaluation.summary import ENTROPIES
from advbench.evaluation.uncertainty import Uncertainty
from advbench.grid.inputs import EvaluateInputs, Inputs, TrainInputs
from advbench.grid.plan import Task
from advbench.report.evaluations import DETAILS

CIRCUMSTANCES = ("memory", "ran")  # circumstances of a record: host, process, time of day
CLOSE = 1e-9  # tolerance for rounding of means
Share = Annotated[float, Field(ge=-CLOSE, le=1.0 + CLOSE)]
Interval = Annotated[list[Share], Field(min_length=2, max_length=2)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(ge=-CLOSE)]
Text = Annotated[str, Field(max_length=300)]
Sentence = Annotated[str, Field(max_length=2000)]


class _Shape(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"expected {what}")


class _Setting(_Shape):
    axis: Text
    settings: dict[Text, Count]
    accuracy: Share
    interval: Interval
    forward_passes: Positive
    fall: float | None = None
    fall_high: float | None = None


class _Control(_Shape):
    value: float
    high: float


class _Search(_Shape):
    settings: dict[Text, Count]
    path: Annotated[list[_Setting], Field(min_length=1, max_length=200)]
    unconverged: list[Text]
    control: _Control | None = None


class _Attack(_Shape):
    forward_passes: Positive
    backward_passes: Positive
    seconds: Positive
    random: bool = False
    vanished_gradients: Share = 0.0
    stopped_early: bool = False
    converge: _Search | None = None
    no_gradient: bool = False


class _Finding(_Shape):
    check: Text
    verdict: Literal["ok", "warning", "failed", "not checked"]
    sentence: Sentence
    means: Sentence
    next: Sentence
    about: Literal["defense", "attack"]
    passes: Positive
    p: Share | None
    counts: bool
    rejected: Literal["ok", "warning", "failed", "not checked"]


class _Retention(_Shape):
    fractions: list[Share]
    counts: list[Count]
    accuracies: list[Share]
    area: Share
    intervals: list[Interval] = []
    area_interval: Interval | None = None

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Self:
        same = len(self.fractions) == len(self.counts) == len(self.accuracies)
        same = same and len(self.intervals) in (0, len(self.fractions))
        _require(same, "a fraction, count and accuracy for each point of retention")
        return self


class _Calibration(_Shape):
    ece: Positive
    nll: Positive
    brier: Positive


class _Persistence(_Shape):
    tries: Annotated[int, Field(ge=1)]
    broken: Share
    interval: Interval


class _Detection(_Shape):
    auroc: Share
    aupr_positive: Share
    aupr_negative: Share


class _Found(_Shape):
    """Result of an evaluation on any images."""

    n_examples: Annotated[int, Field(ge=1)]
    classes: Annotated[int, Field(ge=2)]
    draws: Annotated[int, Field(ge=1)]
    enumerated: bool = False
    uncertainty: dict[str, float] = {}
    histograms: dict[str, list[Count]] = {}
    detection: dict[str, _Detection] | None = None
    attack: _Attack | None = None

    @property
    def uncertain(self) -> bool:
        """True if it includes measures of uncertainty."""
        return True

    @pydantic.model_validator(mode="after")
    def _measured(self) -> Self:
        if not self.uncertain:
            found = self.model_fields_set.intersection(DETAILS)
            _require(not found, f"no {', '.join(sorted(found))} for examples that stopped early")
            return self
        measures = set(Uncertainty._fields)
        _require(set(self.uncertainty) == measures, f"the measures of uncertainty {sorted(measures)}")
        _require(self.detection is None or set(self.detection) == measures, f"detection by {sorted(measures)}")
        _require(set(self.histograms) == set(ENTROPIES), f"histograms of {sorted(ENTROPIES)}")
        counts = {sum(histogram) for histogram in self.histograms.values()}
        _require(counts == {self.n_examples}, "histograms of all images")
        return self


class _Draws(_Shape):
    """Result on single draws, the whole result if the adversary knows the draw."""

    n_examples: Annotated[int, Field(ge=1)]
    classes: Annotated[int, Field(ge=2)]
    draws: Annotated[int, Field(ge=1)]
    enumerated: bool = False
    draw_accuracy: Share
    draw_accuracy_interval: Interval
    draw_accuracy_min: Share
    draw_accuracy_max: Share
    attack: _Attack
    flags: list[Text]
    audit: Annotated[list[_Finding], Field(max_length=100)] | None = None

    @pydantic.model_validator(mode="after")
    def _inside(self) -> Self:
        low, high = self.draw_accuracy_interval
        _require(low - CLOSE <= self.draw_accuracy <= high + CLOSE, "accuracies inside their intervals")
        extremes = (self.draw_accuracy_min, self.draw_accuracy_max)
        _require(extremes[0] - CLOSE <= self.draw_accuracy <= extremes[1] + CLOSE, "accuracies inside their intervals")
        return self


class _Evaluation(_Draws, _Found):
    """Result of an evaluation on clean or adversarial images."""

    accuracy: Share
    accuracy_interval: Interval
    draw_variance: Positive
    right: str
    retention: dict[str, _Retention] = {}
    calibration: _Calibration | None = None
    attack: _Attack
    persistence: list[_Persistence] = []
    accepted_errors: dict[str, Share] = {}

    @property
    def uncertain(self) -> bool:
        """False for examples that stopped early."""
        return not self.attack.stopped_early

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        try:
            bits = np.unpackbits(np.frombuffer(a2b_base64(self.right), np.uint8))
        except Base64Error as error:
            raise ValueError("expected bits in base64") from error
        images = self.n_examples
        _require(len(bits) == -(-images // 8) * 8 and not bits[images:].any(), "one bit per image")
        _require(abs(bits.sum() / images - self.accuracy) <= CLOSE, "the accuracy that the bits give")
        low, high = self.accuracy_interval
        _require(low - CLOSE <= self.accuracy <= high + CLOSE, "accuracies inside their intervals")
        unconverged = bool(self.attack.converge and self.attack.converge.unconverged)
        _require(unconverged == ("unconverged" in self.flags), "the flag `unconverged` if and only if a search is")
        if self.uncertain:
            _require(set(self.retention) == set(ENTROPIES), f"curves of retention by {sorted(ENTROPIES)}")
            _require(self.calibration is not None, "a calibration")
        return self


class _Classifier(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)
    posterior: Text = ""


class _Moment(_Shape):
    step: Count
    values: dict[Text, Share]


class _Training(_Shape):
    classifier: _Classifier
    statistics: dict[str, Any]
    training: dict[str, Any]
    history: Annotated[list[_Moment], Field(max_length=100_000)] = []


class _Record(_Shape):
    key: str
    kind: str
    schema_: Annotated[int, Field(alias="schema")]
    artifact: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None
    inputs: dict[str, Any]
    result: dict[str, Any]
    seconds: Positive
    versions: dict[Text, Text]


def flaw(record: Mapping[str, Any], inputs: Inputs) -> str:
    """First reason why a record is impossible for a task with given inputs; empty if it is possible.

    A possible record is not necessarily true; see `rerun`.
    """
    try:
        _Record.model_validate(record)
        if isinstance(inputs, TrainInputs):
            _Training.model_validate(record["result"])
            return ""
        assert isinstance(inputs, EvaluateInputs), "boards do not contain examples"
        form = _Found if inputs.foreign else _Draws if inputs.known else _Evaluation
        found = form.model_validate(record["result"])
        _require(found.n_examples == inputs.images, f"{inputs.images} images, got {found.n_examples}")
        expected = found.draws <= 2 * inputs.draws if found.enumerated else found.draws in (1, inputs.draws)
        _require(expected, f"{inputs.draws} draws, got {found.draws}")
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        return f"{where}: {first['msg']}" if where else str(first["msg"]).removeprefix("Value error, ")
    except ValueError as error:
        return str(error)
    return ""


def check_record(record: Mapping[str, Any], task: Task, where: str) -> None:
    """Refuse an impossible record of a training or an evaluation.

    Raises:
        StoreError: the record is impossible; the message names the defect.
    """
    found = flaw({name: value for name, value in record.items() if name not in CIRCUMSTANCES}, task.inputs)
    if found:
        raise StoreError(
            f"record {task.key[:12]} ({task.label}) of {where}",
            expected="a record that such a task can produce",
            got=found,
            remedy="remove it, or use a store without records from others",
        )
