"""What the result of a task depends on: one frozen class a kind, whose canonical JSON is hashed into the task's key."""

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
CPU = "cpu"  # the kind of device that needs no other name
STATED = ("eps", "examples", "after")  # fields in which None says something; elsewhere None is left out of the JSON


@cache
def _fields(kind: type) -> tuple[str, ...]:
    return tuple(each.name for each in fields(kind)) if is_dataclass(kind) else ()


def as_json(value: Any) -> Any:
    """A dataclass, with those that it holds, as JSON values."""
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

    name: str  # as it is registered, or as it is called in its file
    distribution: str
    version: str  # its own where it has one, else that of the distribution
    params: Mapping[str, Any] | None = None  # JSON values: a plugin's; a net's where they are not its defaults
    built_on: Mapping[str, str] | None = None  # versions of the libraries that it wraps, by distribution
    parts: Mapping[str, str] | None = None  # versions of the plugins that it is made of, by name
    file: str | None = None  # SHA-256 of the file that it is from, with all that the file imports beside it

    @property
    def loaded_as(self) -> str:
        """The name by which the registry finds it in any process that has its file."""
        return f"{FILE}:{self.file}:{self.name}" if self.file else self.name

    @property
    def versions(self) -> dict[str, str]:
        """Versions of all the code that it is, by what each is called."""
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
    """When a training is measured on its way, and on what."""

    images: int  # number of test images
    draws: int
    every: int | None = None  # steps; None for those of an epoch
    ood: tuple[OodRef, ...] = ()


@dataclass(frozen=True, slots=True)
class Checks:
    """The cheap checks of an audit, and the threat under which they are made."""

    threat: Threat
    schema: int = SCHEMA["audit"]


@dataclass(frozen=True, slots=True)
class Sweep:
    """The step of a sweep before this one: the key of its examples, None before the first, and its eps, then 0."""

    after: str | None = None
    eps: float = 0.0


@dataclass(frozen=True, slots=True)
class Converge:
    """When an attack counts as converged, and how far it is taken.

    Along each axis (steps, then samples of a random classifier, then restarts) the hyperparameter is doubled until
    twice one after another the paired fall in accuracy is estimated below `fall`, and its upper 95 % limit below
    `fall` or `images` / N on N images, whichever is larger. The axis then goes back to where the first of the two
    doublings began. Where a limit comes first, the attack is unconverged along that axis and stays at its strongest.

    Attributes:
        limit: the largest factor on the start of an axis.
        passes: the largest factor on the passes of the start, all axes together.
        fall: in accuracy, as a fraction.
        images: that fall where N is small.
        draws: of one prediction of a random classifier, as where it is evaluated; its expected accuracy is taken over
            as many such predictions as make 100 draws.
    """

    limit: int = 16
    passes: int = 64
    fall: float = 0.01
    images: int = 8
    draws: int = 20

    def margin(self, count: int) -> float:
        """The largest upper limit of a fall that counts as small, on so many images."""
        return max(self.fall, self.images / count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What the results of all kinds depend on."""

    kind: ClassVar[TaskKind]
    data: DataRef
    seed: int
    threads: int  # CPU threads of a task
    checkout: str | None = None  # digest of advbench's sources in a checkout, whose code may change under its version

    def to_json(self) -> dict[str, Any]:
        """The inputs as JSON values."""
        return {"kind": self.kind, "schema": SCHEMA[self.kind], **as_json(self)}

    @property
    def key(self) -> str:
        """The name of the result in the store."""
        return content_key(self.to_json())


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainInputs(Inputs):
    """Inputs of a training.

    The kind of device stands here alone: most trainings draw on the device and all amplify its rounding, and what is
    crafted or evaluated has the key of its classifier's training among its inputs, so it is of the same kind.
    """

    kind: ClassVar[TaskKind] = "train"
    defense: Component
    architecture: Component
    precision: Precision
    device: str | None = None  # the model of a GPU, whose random numbers are not the CPU's; None of the CPU
    init: str | None = None  # key of the training whose weights are the start
    history: History | None = None  # where it is measured on its way


@dataclass(frozen=True, slots=True, kw_only=True)
class CraftInputs(Inputs):
    """Inputs of crafting examples."""

    kind: ClassVar[TaskKind] = "craft"
    attack: Component
    source: str  # key of the training of the classifier under attack
    norm: Norm
    eps: float | None  # in pixels in [0, 1]; None for a minimal-norm attack that serves all
    images: int  # how many test images are attacked
    batch_size: int  # images that are attacked together
    budget: int | None = None  # the most forward passes of an image
    sweep: Sweep | None = None
    ood: OodRef | None = None  # the data set whose images are attacked, if not the test images
    converge: Converge | None = None  # the rule, where the attack is the start of a search and not what is run
    stop_early: bool | None = None  # whether images are left alone that certainly reached the goal; None where not


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateInputs(Inputs):
    """Inputs of an evaluation."""

    kind: ClassVar[TaskKind] = "evaluate"
    target: str  # key of the training of the classifier that is evaluated
    examples: str | None  # key of the adversarial examples; None for images as they are
    draws: int
    images: int
    batch_size: int  # images that pass the net together
    within: Threat | None = None  # the ball that examples of a minimal-norm attack are brought into
    audit: Checks | None = None  # the cheap checks of an audit that are made beside it; of clean images
    foreign: OodRef | None = None  # the data set of out-of-distribution images, if these are evaluated
    known: bool | None = None  # true where each draw is evaluated by itself, on the examples crafted on it


TaskInputs = TrainInputs | CraftInputs | EvaluateInputs
_TRAIN = pydantic.TypeAdapter(TrainInputs)


def read_training(record: Mapping[str, Any]) -> TrainInputs:
    """The inputs of the training that a record is of.

    Raises:
        pydantic.ValidationError: it is of no training.
    """
    return _TRAIN.validate_python(record["inputs"])
