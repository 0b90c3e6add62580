"""What the result of a task depends on: one frozen model a kind, whose canonical JSON is hashed into the task's key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, NamedTuple

from advbench.attacks.base import Norm
from advbench.keys import SCHEMA, content_key
from advbench.training.base import Precision

TaskKind = Literal["train", "craft", "evaluate"]


@dataclass(frozen=True, slots=True)
class Component:
    """Code that a result depends on: a plugin with its resolved hyperparameters, or a net.

    Attributes:
        name: the registered name.
        distribution: where it comes from.
        version: its own where it has one, else that of the distribution.
        params: a plugin's resolved hyperparameters, JSON values; None of a net.
        built_on: versions of the libraries that it wraps, by distribution.
        parts: versions of the attacks that an attack is made of, by name.
    """

    name: str
    distribution: str
    version: str
    params: Mapping[str, Any] | None = None
    built_on: Mapping[str, str] | None = None
    parts: Mapping[str, str] | None = None

    @property
    def versions(self) -> dict[str, str]:
        """Versions of all the code that it is, by what each is called."""
        parts = {f"attack {name}": version for name, version in (self.parts or {}).items()}
        return {f"{self.distribution} {self.name}": self.version, **(self.built_on or {}), **parts}

    def to_json(self) -> dict[str, Any]:
        """The component as JSON values."""
        params = {} if self.params is None else {"params": dict(self.params)}
        versions = {"built_on": self.built_on, "parts": self.parts}
        return {
            "name": self.name,
            "distribution": self.distribution,
            "version": self.version,
            **params,
            **{name: dict(value) for name, value in versions.items() if value},
        }


class DataRef(NamedTuple):
    """A data set: its registered name, without path, and the SHA-256 of its content."""

    name: str
    sha256: str


class OodRef(NamedTuple):
    """An out-of-distribution data set, and the factor on its pixel values."""

    name: str
    sha256: str
    scale: float


class Sweep(NamedTuple):
    """The step of a sweep before this one: the key of its examples, None before the first, and its eps, then 0."""

    after: str | None
    eps: float


class Ball(NamedTuple):
    """The ball that examples of a minimal-norm attack are brought into before they are evaluated."""

    norm: Norm
    eps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What the results of all kinds depend on.

    Attributes:
        data: the data set.
        seed: of training, attack or evaluation.
        threads: CPU threads of a task.
        checkout: digest of advbench's sources where it is installed from a checkout, whose code may change under its
            version; None of a release.
    """

    kind: ClassVar[TaskKind]
    data: DataRef
    seed: int
    threads: int
    checkout: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The inputs as JSON values."""
        values: dict[str, Any] = {"kind": self.kind, "schema": SCHEMA[self.kind]}
        for each in fields(self):
            value = getattr(self, each.name)
            if value is None and each.name not in REQUIRED:
                continue
            if isinstance(value, Component):
                value = value.to_json()
            elif isinstance(value, tuple):
                value = value._asdict()  # type: ignore[attr-defined]
            values[each.name] = value
        return values

    @property
    def key(self) -> str:
        """The name of the result in the store."""
        return content_key(self.to_json())


REQUIRED = ("eps", "examples")  # None is said, not left out


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainInputs(Inputs):
    """Inputs of a training.

    Attributes:
        defense: the training method.
        architecture: the net.
        precision: of the passes.
        init: key of the training whose weights are the start, if any.
    """

    kind: ClassVar[TaskKind] = "train"
    defense: Component
    architecture: Component
    precision: Precision
    init: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CraftInputs(Inputs):
    """Inputs of crafting examples.

    Attributes:
        attack: the attack.
        source: key of the training of the classifier under attack.
        norm: of the threat.
        eps: of the threat, in pixels in [0, 1]; None for a minimal-norm attack, which ignores it.
        images: how many test images are attacked.
        batch_size: images that are attacked together.
        budget: the most forward passes of an image.
        sweep: the step of a sweep before this one, if this is one.
    """

    kind: ClassVar[TaskKind] = "craft"
    attack: Component
    source: str
    norm: Norm
    eps: float | None
    images: int
    batch_size: int
    budget: int | None = None
    sweep: Sweep | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateInputs(Inputs):
    """Inputs of an evaluation.

    Attributes:
        target: key of the training of the classifier that is evaluated.
        examples: key of the adversarial examples; None for clean and for out-of-distribution images.
        draws: number of draws K.
        images: how many images are evaluated.
        batch_size: images that pass the net together.
        within: the ball that examples of a minimal-norm attack are brought into.
        foreign: the data set of out-of-distribution images, if these are evaluated.
    """

    kind: ClassVar[TaskKind] = "evaluate"
    target: str
    examples: str | None
    draws: int
    images: int
    batch_size: int
    within: Ball | None = None
    foreign: OodRef | None = None


TaskInputs = TrainInputs | CraftInputs | EvaluateInputs
_KINDS: dict[str, type[TrainInputs | CraftInputs | EvaluateInputs]] = {
    each.kind: each for each in (TrainInputs, CraftInputs, EvaluateInputs)
}
_PARTS: dict[str, type[Any]] = {
    "data": DataRef,
    "sweep": Sweep,
    "within": Ball,
    "foreign": OodRef,
    "defense": Component,
    "attack": Component,
    "architecture": Component,
}


def read_inputs(values: Mapping[str, Any]) -> TaskInputs:
    """The inputs that `to_json` described, as a record keeps them.

    Raises:
        TypeError: they lack something, or have what inputs of this version lack.
        KeyError: they are of no kind.
    """
    given = {name: value for name, value in values.items() if name not in ("kind", "schema")}
    parts = {name: _PARTS[name](**value) for name, value in given.items() if name in _PARTS and value is not None}
    return _KINDS[values["kind"]](**{**given, **parts})
