"""The form of a board's records, which may come from anybody."""

from __future__ import annotations

import math
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
import pydantic
from pydantic import Field

from advbench.errors import StoreError
from advbench.evaluation.summary import ENTROPIES
from advbench.evaluation.uncertainty import Uncertainty, retention_area
from advbench.grid.inputs import EvaluateInputs, Inputs, TrainInputs
from advbench.grid.plan import Task
from advbench.report.evaluations import DETAILS

CIRCUMSTANCES = ("memory", "ran")  # circumstances of a record: host, process, time of day
CLOSE = 1e-9  # tolerance for rounding of means
ROUNDED = 1e-5  # tolerance for means of float32 numbers
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


def _require_inside(value: float, interval: Sequence[float], what: str) -> None:
    low, high = interval
    _require(low - CLOSE <= value <= high + CLOSE, f"{what} inside its interval")


class _Setting(_Shape):
    axis: Text
    settings: dict[Text, Count]
    accuracy: Share
    interval: Interval
    forward_passes: Positive
    fall: float | None = None
    fall_high: float | None = None

    @pydantic.model_validator(mode="after")
    def _inside(self) -> Self:
        _require_inside(self.accuracy, self.interval, f"the accuracy at {self.axis}")
        return self


class _Control(_Shape):
    value: float
    high: float


class _Search(_Shape):
    settings: dict[Text, Count]
    path: Annotated[list[_Setting], Field(min_length=1, max_length=200)]
    unconverged: list[Text]
    control: _Control | None = None

    @pydantic.model_validator(mode="after")
    def _doubled(self) -> Self:
        known, axes, at = [step.settings for step in self.path], set[str](), self.path[0].settings
        for step in self.path[1:]:
            _require(step.settings.get(step.axis, 0) >= 2, "a value of each step's axis")
            half = {**step.settings, step.axis: step.settings[step.axis] // 2}
            _require(half in known and (bool(axes) or half == at), "steps that double a value of an earlier one")
            axes.add(step.axis)
        _require(self.settings in known, "the final settings among those of the search")
        return self


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
        same = same and len(self.intervals) in (0, len(self.fractions)) and bool(self.fractions)
        _require(same, "a fraction, count and accuracy for each point of retention")
        _require(self.fractions[-1] == 1 and sorted(self.fractions) == self.fractions, "fractions that rise to 1")
        _require(abs(retention_area(self.fractions, self.accuracies) - self.area) <= CLOSE, "the area of the curve")
        for accuracy, interval in zip(self.accuracies, self.intervals, strict=False):
            _require_inside(accuracy, interval, "each accuracy")
        if self.area_interval is not None:
            _require_inside(self.area, self.area_interval, "the area")
        return self


class _Calibration(_Shape):
    ece: Share
    nll: Annotated[float, Field(ge=-CLOSE, le=17.0)]  # probabilities are clipped
    brier: Annotated[float, Field(ge=-CLOSE, le=2.0 + CLOSE)]


class _Persistence(_Shape):
    tries: Annotated[int, Field(ge=1)]
    broken: Share
    interval: Interval

    @pydantic.model_validator(mode="after")
    def _inside(self) -> Self:
        _require_inside(self.broken, self.interval, f"the share broken in {self.tries} tries")
        return self


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
    nondeterministic: list[Text] = []

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
        for name, counted in self.histograms.items():
            edges = np.linspace(0.0, math.log(self.classes), len(counted) + 1)
            limits = [float(np.dot(counted, side)) / self.n_examples for side in (edges[:-1], edges[1:])]
            mean = self.uncertainty[name]
            _require(limits[0] - ROUNDED <= mean <= limits[1] + ROUNDED, f"the mean {name} that its histogram allows")
        parts = self.uncertainty["aleatoric"] + self.uncertainty["epistemic"]
        _require(abs(parts - self.uncertainty["total"]) <= ROUNDED, "a total that is aleatoric + epistemic")
        shares = [self.uncertainty[name] for name in ("variation_ratio", "model_variance")]
        _require(-ROUNDED <= min(shares) <= max(shares) <= 1, "measures of disagreement in [0, 1]")
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
    nondeterministic: list[Text] = []

    @pydantic.model_validator(mode="after")
    def _inside(self) -> Self:
        _require_inside(self.draw_accuracy, self.draw_accuracy_interval, "the accuracy of a draw")
        extremes = (self.draw_accuracy_min, self.draw_accuracy_max)
        _require(extremes[0] - CLOSE <= self.draw_accuracy <= extremes[1] + CLOSE, "a mean between the extreme draws")
        whole = [extreme * self.n_examples for extreme in extremes]
        _require(all(abs(each - round(each)) <= ROUNDED for each in whole), "whole images in the extreme draws")
        _require(self.draws > 1 or extremes[1] - extremes[0] <= CLOSE, "one accuracy for one draw")
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
        _require_inside(self.accuracy, self.accuracy_interval, "the accuracy")
        _require(self.draws > 1 or abs(self.draw_accuracy - self.accuracy) <= CLOSE, "the accuracy of the only draw")
        unconverged = bool(self.attack.converge and self.attack.converge.unconverged)
        _require(unconverged == ("unconverged" in self.flags), "the flag `unconverged` if and only if a search is")
        if self.uncertain:
            _require(set(self.retention) == set(ENTROPIES), f"curves of retention by {sorted(ENTROPIES)}")
            for name, curve in self.retention.items():
                counts = [max(1, round(fraction * images)) for fraction in curve.fractions]
                _require(curve.counts == counts, f"the images that retention by {name} keeps")
                # Sums over groups of images of equal uncertainty leave a rounding error.
                last = curve.accuracies[-1]
                _require(abs(last - self.accuracy) <= CLOSE, f"retention by {name} that ends at the accuracy")
            _require(self.calibration is not None, "a calibration")
            both = set(self.accepted_errors) == (set(ENTROPIES) if self.detection else set())
            _require(both, f"accepted errors by {sorted(ENTROPIES)} if and only if images were attacked")
            most = max(self.accepted_errors.values(), default=0.0)
            _require(most <= 1 - self.accuracy + CLOSE, "accepted errors among the errors")
            broken = [each.broken for each in self.persistence]
            _require(broken == sorted(broken), "a share of broken images that rises with the tries")
            once = [each.broken for each in self.persistence if each.tries == 1]
            _require(all(abs(each - 1 + self.draw_accuracy) <= CLOSE for each in once), "errors of a draw in one try")
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
    nondeterministic: list[Text] = []
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
