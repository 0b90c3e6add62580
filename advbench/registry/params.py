"""Hyperparameters of attacks and training methods: described, checked, with presets."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, ClassVar, Self, get_args, get_origin

import pydantic
from pydantic import Field as Field  # noqa: PLC0414 - re-exported for plugins
from pydantic.fields import FieldInfo

from advbench.errors import InputError, unknown_name


class Params(pydantic.BaseModel):
    """Hyperparameters: keyword-only, frozen, without unknown names. Describe each field with its unit and source."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _as_written(cls, values: Any) -> Any:
        """Take what people write for a value: a fraction, one value for a list of one, numpy's and torch's numbers."""
        if not isinstance(values, dict):
            return values
        return {name: _plain(value, cls.model_fields.get(name)) for name, value in values.items()}


def _plain(value: Any, field: FieldInfo | None) -> Any:
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    kinds = [get_origin(kind) or kind for kind in get_args(field.annotation) or [field.annotation]] if field else []
    if field is not None and get_origin(field.annotation) is tuple:
        return (value,) if isinstance(value, str | int | float) else value
    if isinstance(value, str) and float in kinds and str not in kinds and value.count("/") == 1:
        with suppress(ValueError, ZeroDivisionError):
            above, below = map(float, value.split("/"))
            return above / below
    return value


def _integers(value: Any) -> Iterator[int]:
    if isinstance(value, int):
        yield value
    elif isinstance(value, list | tuple):
        yield from itertools.chain.from_iterable(map(_integers, value))


def resolved(
    kind: type[Params], given: Mapping[str, Any], owner: str, below: Mapping[str, Any] | None = None
) -> Params:
    """Hyperparameters as they are given, on top of others, on top of the defaults.

    Raises:
        InputError: an unknown hyperparameter, or a value of the wrong type or range.
    """
    for name, value in given.items():
        if name not in kind.model_fields:
            raise unknown_name(f"hyperparameter of {owner}", name, kind.model_fields)
        annotation = kind.model_fields[name].annotation
        if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
            raise InputError(f"hyperparameter {name!r} of {owner}", expected="no boolean", got=value)
        if any(abs(each) >= 2**63 for each in _integers(value)):
            expected = "integers of 64 bits"
            raise InputError(f"hyperparameter {name!r} of {owner}", expected=expected, got="one beyond them")
    try:
        return kind(**{**(below or {}), **given})
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "values"
        raise InputError(
            f"hyperparameter {name!r} of {owner}",
            expected=first["msg"][0].lower() + first["msg"][1:],
            got=repr(first["input"]),
        ) from error


_Params = Params  # within Configurable the name means the subclass's own


class Paper(pydantic.BaseModel):
    """Where a method is from."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    title: str = Field(min_length=1, max_length=300)
    authors: str = Field(min_length=1, max_length=300, description="family names, comma-separated")
    year: int = Field(ge=1900, le=2100)
    link: str = Field(max_length=300, pattern=r"^https://[\w./:?=&%#~+-]+$")

    def __str__(self) -> str:
        return f"{self.authors} ({self.year}). {self.title}."


class Configurable:
    """A class with `Params`, whose instances are made from keyword arguments.

    Attributes:
        presets: named sets of hyperparameters. One named like a data set holds the defaults for it;
            `preset="paper"` among the keyword arguments chooses one.
        sources: where the values of the preset `paper` are from: sources, each with the hyperparameters, as one line.
        built_on: distributions that the class wraps, whose versions results depend on.
        paper: where the method is from; a subclass states its own.
        version: to be raised when the class computes something else from the same hyperparameters, so that earlier
            results are not reused. A class without one has its distribution's version.
    """

    Params: ClassVar[type[Params]] = Params
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    sources: ClassVar[Mapping[str, str]] = {}
    built_on: ClassVar[tuple[str, ...]] = ()
    version: ClassVar[str] = ""
    paper: ClassVar[Paper | None] = None
    params: Any

    def __init__(self, **values: Any) -> None:
        self._given = values
        self.params = self.resolve(values)

    @classmethod
    def resolve(cls, values: Mapping[str, Any], dataset: str = "") -> _Params:
        """The hyperparameters that `values` give on top of the preset's, on top of the defaults.

        Raises:
            InputError: an unknown hyperparameter or preset, or a value of the wrong type or range.
        """
        given, owner = dict(values), cls.__name__
        preset = given.pop("preset", dataset if dataset in cls.presets else None)
        if preset is not None and (not isinstance(preset, str) or preset not in cls.presets):
            raise unknown_name(f"preset of {owner}", str(preset), cls.presets)
        return resolved(cls.Params, given, owner, cls.presets.get(preset or "", {}))

    def for_dataset(self, name: str) -> Self:
        """A copy with the defaults for that data set, below the values that were given explicitly."""
        return type(self)(**self.resolve(self._given, name).model_dump())

    def __repr__(self) -> str:
        values = ", ".join(f"{k}={v!r}" for k, v in self._given.items())
        return f"{type(self).__name__}({values})"
