"""Hyperparameters: described, checked, with presets; what attacks and training methods have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import pydantic
from pydantic import Field as Field  # noqa: PLC0414 - re-exported for plugins

from advbench.errors import InputError, unknown_name


class Params(pydantic.BaseModel):
    """Hyperparameters: keyword-only, frozen, unknown names refused. Describe each field: unit and source."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


_Params = Params  # within Configurable the name means the subclass's own


class Configurable:
    """A class with `Params`, an instance of which is made from keyword arguments.

    Attributes:
        presets: named sets of hyperparameters. One named like a data set holds the defaults for it;
            `preset="paper"` among the keyword arguments picks one by hand.
        built_on: distributions that the class wraps, whose versions results depend on.
        version: raised by whoever changes what the class computes without changing its hyperparameters; results of
            another version are not taken for those of this one. Where a class has none of its own, its
            distribution's version counts.
    """

    Params: ClassVar[type[Params]] = Params
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    built_on: ClassVar[tuple[str, ...]] = ()
    version: ClassVar[str] = ""
    params: Any

    def __init__(self, **values: Any) -> None:
        self._given = values
        self.params = self.resolve(values)

    @classmethod
    def resolve(cls, values: Mapping[str, Any], dataset: str = "") -> _Params:
        """The hyperparameters that `values` stand for: defaults, then the preset's, then `values`.

        Raises:
            InputError: an unknown hyperparameter or preset, or a value of the wrong type or range.
        """
        given = dict(values)
        preset = given.pop("preset", dataset if dataset in cls.presets else None)
        if preset is not None and (not isinstance(preset, str) or preset not in cls.presets):
            raise unknown_name(f"preset of {cls.__name__}", str(preset), cls.presets)
        owner = cls.__name__
        for name, value in given.items():
            if name not in cls.Params.model_fields:
                raise unknown_name(f"hyperparameter of {owner}", name, cls.Params.model_fields)
            if isinstance(value, bool) and cls.Params.model_fields[name].annotation is not bool:
                raise InputError(f"hyperparameter {name!r} of {owner}", expected="anything but a boolean", got=value)
        try:
            return cls.Params(**{**cls.presets.get(preset or "", {}), **given})
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"])) or "values"
            raise InputError(
                f"hyperparameter {name!r} of {cls.__name__}",
                expected=first["msg"][0].lower() + first["msg"][1:],
                got=repr(first["input"]),
            ) from error

    def for_dataset(self, name: str) -> Self:
        """The same with the defaults for that data set under what was given by hand."""
        return type(self)(**self.resolve(self._given, name).model_dump())

    def __repr__(self) -> str:
        values = ", ".join(f"{k}={v!r}" for k, v in self._given.items())
        return f"{type(self).__name__}({values})"
