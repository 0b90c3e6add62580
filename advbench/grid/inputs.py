"""Inputs of tasks: one frozen class per kind, whose canonical JSON is hashed into the task's key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any, ClassVar, Literal

import pydantic

from advbench.attacks.base import Norm, Threat
from advbench.keys import SCHEMA, content_key
from advbench.registry.files import FILE
from advbench.training.base import Precision

TaskKind = Literal["train", "craft", "evaluate"]
CPU = "cpu"  # kind of device: the CPU
STATED = (
    "eps",
    "examples",
    "after",
)  # fields in which None is meaningful; other fields with None are omitted from the JSON


@cache
def _fields(kind: type) -> tuple[str, ...]:
    return tuple(each.name for each in fields(kind)) if is_dataclass(kind) else ()


def as_json(value: Any) -> Any:
    """Convert a dataclass and nested ones to JSON values."""
    if isinstance(value, tuple):
        return [as_json(each) for each in value]
    names = _fields(type(value))  # type: ignore[arg-type]  # mypy: classes are hashable
    if not names:
        return value
    found = {name: as_json(getattr(value, name)) for name in names}
    return {name: each for name, each in found.items() if each is not None or name in STATED}


@dataclass(frozen=True, slots=True)
class Component:
    """Code that a result depends on: a plugin with its resolved hyperparameters, or a net."""

    name: str  # registered name, or name in its file
    distribution: str
    version: str  # own version, or that of the distribution
    params: Mapping[str, Any] | None = None  # JSON values; for a net, None if all are defaults
    built_on: Mapping[str, str] | None = None  # versions of wrapped libraries, by distribution
    parts: Mapping[str, str] | None = None  # versions of component plugins, by name
    file: str | None = None  # SHA-256 of its file with imports from the same folder

    @property
    def loaded_as(self) -> str:
        """Name for the registry, in any process that has its file."""
        return f"{FILE}:{self.file}:{self.name}" if self.file else self.name

    @property
    def versions(self) -> dict[str, str]:
        """Versions of all of its code, by name."""
        parts = {f"part {name}": version for name, version in (self.parts or {}).items()}
        return {f"{self.distribution} {self.name}": self.version, **(self.built_on or {}), **parts}


@dataclass(frozen=True, slots=True)
class DataRef:
    """A data set: its registered name, without path, and the SHA-256 of its content."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class OodRef:
    """An out-of-distribution data set, and the factor on its pixel values, which lie in [-1, 1] if `signed`."""

    name: str
    sha256: str
    scale: float
    signed: bool | None = None


@dataclass(frozen=True, slots=True)
class History:
    """Schedule and data of measurements during a training."""

    images: int  # number of test images
    draws: int
    every: int | None = None  # interval in steps; None for epochs
    ood: tuple[OodRef, ...] = ()


@dataclass(frozen=True, slots=True)
class Checks:
    """Cheap checks of an audit, and their threat."""

    threat: Threat
    schema: int = SCHEMA["audit"]


@dataclass(frozen=True, slots=True)
class Sweep:
    """Previous step of a sweep: key of its examples (None before the first) and its eps (then 0)."""

    after: str | None = None
    eps: float = 0.0


@dataclass(frozen=True, slots=True)
class Converge:
    """Criterion of convergence of an attack, and limits of the search.

    Along each axis (steps, then samples for a random classifier, then restarts), the hyperparameter is doubled until,
    in two consecutive doublings, the estimated paired fall in accuracy is below `fall` and its upper 95 % limit is
    below `fall` or `images` / N on N images, whichever is larger. The axis then returns to its value before these two
    doublings. If a limit is reached first, the attack is unconverged on that axis and keeps its strongest setting.

    Attributes:
        limit: maximum factor on the initial value of an axis.
        passes: maximum factor on the initial number of passes, over all axes.
        fall: threshold on the fall in accuracy, as a fraction.
        images: the same threshold as a number of images, for small N.
        draws: number of draws per prediction of a random classifier, as in evaluations; expected accuracy is estimated
            from enough predictions for 100 draws.
    """

    limit: int = 16
    passes: int = 64
    fall: float = 0.01
    images: int = 8
    draws: int = 20

    def margin(self, count: int) -> float:
        """Largest upper limit of a fall that counts as small, on `count` images."""
        return max(self.fall, self.images / count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Inputs shared by all kinds of tasks."""

    kind: ClassVar[TaskKind]
    data: DataRef
    seed: int
    threads: int  # CPU threads of a task
    checkout: str | None = None  # digest of advbench's sources in a checkout

    def to_json(self) -> dict[str, Any]:
        """Return the inputs as JSON values."""
        return {"kind": self.kind, "schema": SCHEMA[self.kind], **as_json(self)}

    @property
    def key(self) -> str:
        """Key of the result in the store."""
        return content_key(self.to_json())


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainInputs(Inputs):
    """Inputs of a training.

    Only trainings contain the kind of device: most draw on the device and all amplify its rounding. Crafting and
    evaluation include the key of the classifier's training, and so the same kind of device.
    """

    kind: ClassVar[TaskKind] = "train"
    defense: Component
    architecture: Component
    precision: Precision
    device: str | None = None  # model of a GPU, whose random numbers differ from the CPU's; None for the CPU
    init: str | None = None  # key of the training that provides the initial weights
    history: History | None = None  # measurements during the training, if any


@dataclass(frozen=True, slots=True, kw_only=True)
class CraftInputs(Inputs):
    """Inputs of crafting examples."""

    kind: ClassVar[TaskKind] = "craft"
    attack: Component
    source: str  # key of the training of the classifier under attack
    norm: Norm
    eps: float | None  # for pixels in [0, 1]; None for a minimal-norm attack, which serves all radii
    images: int  # number of attacked test images
    batch_size: int  # number of images attacked together
    budget: int | None = None  # maximum number of forward passes per image
    sweep: Sweep | None = None
    ood: OodRef | None = None  # data set of the attacked images, if not the test images
    converge: Converge | None = None  # criterion, if the attack is run to convergence
    stop_early: bool | None = None  # True if images stop once they certainly reached the goal; otherwise None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateInputs(Inputs):
    """Inputs of an evaluation."""

    kind: ClassVar[TaskKind] = "evaluate"
    target: str  # key of the training of the evaluated classifier
    examples: str | None  # key of the adversarial examples; None for unperturbed images
    draws: int
    images: int
    batch_size: int  # number of images per forward pass
    within: Threat | None = None  # ball onto which examples of a minimal-norm attack are projected
    audit: Checks | None = None  # cheap checks of an audit run with it, for clean images
    foreign: OodRef | None = None  # data set of evaluated out-of-distribution images
    known: bool | None = None  # True if each draw is evaluated on the examples crafted on it


TaskInputs = TrainInputs | CraftInputs | EvaluateInputs
_TRAIN = pydantic.TypeAdapter(TrainInputs)
_CRAFT = pydantic.TypeAdapter(CraftInputs)


def read_training(record: Mapping[str, Any]) -> TrainInputs:
    """Parse the inputs in the record of a training.

    Raises:
        pydantic.ValidationError: it is not the record of a training.
    """
    return _TRAIN.validate_python(record["inputs"])


def read_crafting(record: Mapping[str, Any]) -> CraftInputs:
    """Parse the inputs in the record of crafted examples.

    Raises:
        pydantic.ValidationError: it is not such a record.
    """
    return _CRAFT.validate_python(record["inputs"])
