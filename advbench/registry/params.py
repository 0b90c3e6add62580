"""Hyperparameters of attacks and training methods, with descriptions, validation and presets."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import FunctionType
from typing import Any, ClassVar, Self, get_args, get_origin

import pydantic
from pydantic import Field as Field  # noqa: PLC0414 - re-exported for plugins
from pydantic.fields import FieldInfo

from advbench.errors import InputError, expected_in, unknown_name
from advbench.registry import files


class Params(pydantic.BaseModel):
    """Base class of hyperparameters: keyword-only, frozen, no unknown names. Fields describe unit and source."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _as_written(cls, values: Any) -> Any:
        """Accept common notations: fractions, one value for a list of one, scalars of numpy and torch."""
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
    """Create hyperparameters from given values, then base values, then defaults.

    Raises:
        InputError: a hyperparameter is unknown, or its type or range is wrong.
    """
    for name in {**(below or {}), **given}:
        if name not in kind.model_fields:
            where = owner if name in given else f"{owner} in its presets"
            raise unknown_name(f"hyperparameter of {where}", name, kind.model_fields)
    for name, value in given.items():
        annotation = kind.model_fields[name].annotation
        if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
            raise InputError(f"hyperparameter {name!r} of {owner}", expected="a value that is not a boolean", got=value)
        if any(abs(each) >= 2**63 for each in _integers(value)):
            expected = "64-bit integers"
            raise InputError(f"hyperparameter {name!r} of {owner}", expected=expected, got="a larger one")
    try:
        return kind(**{**(below or {}), **given})
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "values"
        if first["type"] == "extra_forbidden":  # in a nested model
            raise InputError(f"unknown hyperparameter {name!r} of {owner}", remedy="remove it") from error
        if first["type"] == "missing":
            remedy = f"use --set {owner if files.origin(kind) else 'LABEL'}.{name}=..."
            raise InputError(
                f"hyperparameter {name!r} of {owner}", expected="a value", got="none", remedy=remedy
            ) from error
        raise InputError(
            f"hyperparameter {name!r} of {owner}",
            expected=expected_in(first["msg"]),
            got=repr(first["input"]),
        ) from error


_Params = Params  # inside Configurable, `Params` is the subclass's own


class Paper(pydantic.BaseModel):
    """Bibliographic reference of a method."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    title: str = Field(min_length=1, max_length=300)
    authors: str = Field(min_length=1, max_length=300, description="family names, comma-separated")
    year: int = Field(ge=1900, le=2100)
    link: str = Field(max_length=300, pattern=r"^https://[\w./:?=&%#~+-]+$")

    def __str__(self) -> str:
        return f"{self.authors} ({self.year}). {self.title}."


class Configurable:
    """Base class of plugins with `Params`, created from keyword arguments.

    Attributes:
        presets: named sets of hyperparameters. A preset named after a data set has the defaults for it; the keyword
            argument `preset="paper"` selects a preset.
        sources: sources of the values of the preset `paper`, each with a line of hyperparameters.
        built_on: wrapped distributions, whose versions affect results.
        paper: reference of the method; not inherited by subclasses.
        version: version of the class's results; raise it when results change for the same hyperparameters, so that
            earlier results are not reused. By default the version of the distribution.
    """

    Params: ClassVar[type[Params]] = Params
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    sources: ClassVar[Mapping[str, str]] = {}
    built_on: ClassVar[tuple[str, ...]] = ()
    version: ClassVar[str] = ""
    paper: ClassVar[Paper | None] = None
    params: Any

    def __init__(self, **values: Any) -> None:
        check_methods(type(self))
        self._given = values
        self.params = self.resolve(values)

    @classmethod
    def resolve(cls, values: Mapping[str, Any], dataset: str = "") -> _Params:
        """Create hyperparameters from `values`, then the preset, then the defaults.

        Raises:
            InputError: a hyperparameter or preset is unknown, or the type or range of a value is wrong.
        """
        given, owner = dict(values), cls.__name__
        preset = given.pop("preset", dataset if dataset in cls.presets else None)
        if preset is not None and (not isinstance(preset, str) or preset not in cls.presets):
            raise unknown_name(f"preset of {owner}", str(preset), cls.presets)
        return resolved(cls.Params, given, owner, cls.presets.get(preset or "", {}))

    def for_dataset(self, name: str) -> Self:
        """A copy with the defaults for a data set; values given explicitly are kept."""
        return type(self)(**self.resolve(self._given, name).model_dump())

    def __repr__(self) -> str:
        values = ", ".join(f"{k}={v!r}" for k, v in self._given.items())
        return f"{type(self).__name__}({values})"


def check_methods(cls: type) -> None:
    """Refuse a method that cannot be called with the arguments of the base class's method.

    Raises:
        InputError: there is such a method; the message has the base class's parameters.
    """
    for name in dir(cls):
        found = [vars(each)[name] for each in cls.__mro__ if name in vars(each)]
        due, own = found[-1], found[0]
        if name.startswith("_") or own is due or not isinstance(due, FunctionType):
            continue
        if not isinstance(own, FunctionType | classmethod | staticmethod):
            if not callable(own):
                place, got = files.place_of_method(cls, name), f"an object of type {type(own).__name__}"
                raise InputError(place, expected="a method", got=got, remedy=f"write: def {name}{bare_parameters(due)}")
            continue
        parameters = inspect.signature(due).parameters.values()
        keywords = {each.name: None for each in parameters if each.kind is each.KEYWORD_ONLY}
        positional = [None for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
        called = own if isinstance(own, FunctionType) else getattr(cls, name)
        try:
            inspect.signature(called).bind(*positional[called is not own :], **keywords)
        except TypeError as error:
            place, remedy = files.place_of_method(cls, name), f"write: def {name}{bare_parameters(due)}"
            expected = f"the parameters {bare_parameters(due)}"
            raise InputError(place, expected=expected, got=bare_parameters(called), remedy=remedy) from error


def bare_parameters(function: Any) -> str:
    """Parameters of a function without their annotations."""
    signature = inspect.signature(function)
    bare = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))
