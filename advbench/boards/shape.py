"""What a record of a board must look like before tables are made of it, as it may come from anybody."""

from __future__ import annotations

from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Mapping
from typing import Annotated, Any, Self

import numpy as np
import pydantic
from pydantic import Field

from advbench.evaluation.summary import ENTROPIES
from advbench.evaluation.uncertainty import Uncertainty
from advbench.grid.inputs import EvaluateInputs, Inputs, TrainInputs

CLOSE = 1e-9  # by which a mean may differ from the mean of what it was made of
Share = Annotated[float, Field(ge=-CLOSE, le=1.0 + CLOSE)]
Interval = Annotated[list[Share], Field(min_length=2, max_length=2)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(ge=-CLOSE)]
Text = Annotated[str, Field(max_length=300)]


class _Shape(pydantic.BaseModel):
    """Known fields alone, of the types that they state, and finite numbers."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Attack(_Shape):
    forward_passes: Positive
    backward_passes: Positive
    seconds: Positive
    random: bool = False
    vanished_gradients: Share = 0.0


class _Retention(_Shape):
    fractions: list[Share]
    counts: list[Count]
    accuracies: list[Share]
    area: Share

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Self:
        if not len(self.fractions) == len(self.counts) == len(self.accuracies):
            raise ValueError("a point of retention without a share, count or accuracy")
        return self


class _Calibration(_Shape):
    ece: Positive
    nll: Positive
    brier: Positive


class _Detection(_Shape):
    auroc: Share
    aupr_positive: Share
    aupr_negative: Share


class _Found(_Shape):
    """What was found of any images."""

    n_examples: Annotated[int, Field(ge=1)]
    classes: Annotated[int, Field(ge=2)]
    draws: Annotated[int, Field(ge=1)]
    uncertainty: dict[str, float]
    histograms: dict[str, list[Count]]
    detection: dict[str, _Detection] | None = None

    @pydantic.model_validator(mode="after")
    def _measured(self) -> Self:
        if set(self.uncertainty) != set(Uncertainty._fields) or set(self.histograms) != set(ENTROPIES):
            raise ValueError("other measures of uncertainty")
        if self.detection is not None and set(self.detection) != set(Uncertainty._fields):
            raise ValueError("other measures of detection")
        if any(sum(counts) != self.n_examples for counts in self.histograms.values()):
            raise ValueError("a histogram of other images")
        return self


class _Evaluation(_Found):
    accuracy: Share
    accuracy_interval: Interval
    draw_accuracy: Share
    draw_accuracy_interval: Interval
    draw_accuracy_min: Share
    draw_accuracy_max: Share
    draw_variance: Positive
    right: str
    retention: dict[str, _Retention]
    calibration: _Calibration
    attack: _Attack
    flags: list[Text]

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        try:
            bits = np.unpackbits(np.frombuffer(a2b_base64(self.right), np.uint8))
        except Base64Error as error:
            raise ValueError("bits that are none") from error
        images = self.n_examples
        if len(bits) != -(-images // 8) * 8 or bits[images:].any():
            raise ValueError("bits of other images than were evaluated")
        if abs(bits.sum() / images - self.accuracy) > CLOSE:
            raise ValueError("an accuracy that is not that of its bits")
        within = [
            (*self.accuracy_interval, self.accuracy),
            (*self.draw_accuracy_interval, self.draw_accuracy),
            (self.draw_accuracy_min, self.draw_accuracy_max, self.draw_accuracy),
        ]
        if not all(low - CLOSE <= value <= high + CLOSE for low, high, value in within):
            raise ValueError("an accuracy outside its interval")
        if set(self.retention) != set(ENTROPIES):
            raise ValueError("other curves of retention")
        return self


class _Classifier(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)
    posterior: Text = ""


class _Training(_Shape):
    classifier: _Classifier
    statistics: dict[str, Any]
    training: dict[str, Any]


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
    """What of a record is not as a task of these inputs leaves it; empty where all of it is.

    That a record is possible does not make it true: see `rerun`.
    """
    try:
        _Record.model_validate(record)
        if isinstance(inputs, TrainInputs):
            _Training.model_validate(record["result"])
            return ""
        assert isinstance(inputs, EvaluateInputs), "boards keep no examples"
        found = (_Found if inputs.foreign else _Evaluation).model_validate(record["result"])
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        return f"{where}: {first['msg']}" if where else str(first["msg"]).removeprefix("Value error, ")
    return _other_settings(found, inputs)


def _other_settings(found: _Found, inputs: EvaluateInputs) -> str:
    if found.n_examples != inputs.images:
        return f"{found.n_examples} images, not {inputs.images}"
    return "" if found.draws in (1, inputs.draws) else f"{found.draws} draws, not {inputs.draws}"
