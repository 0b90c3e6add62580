"""Base class of methods that train nets by another method."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from advbench import training
from advbench.errors import InputError
from advbench.registry import registry
from advbench.training import Defense, Field, isolated_rng


class InnerParams(training.Params):
    """Inner method and its hyperparameters."""

    method: str = Field(default="erm", description="name of the training method of each net")
    params: dict[str, Any] = Field(
        default={}, description="hyperparameters of that method that differ from its defaults, or its `preset`"
    )


class InnerDefense(Defense):
    """Base class of methods that train nets by another method, which must not be of the same class.

    Attributes:
        accepted: the accepted methods and a remedy, for the error message on others.
    """

    accepted: ClassVar[tuple[str, str]]
    params: InnerParams

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self.inner = self.method(self.params.method)(**self.params.params)

    @classmethod
    def resolve(cls, values: Mapping[str, Any], dataset: str = "") -> training.Params:
        """The hyperparameters, with those of the inner method resolved as well.

        Raises:
            InputError: a hyperparameter, or one of the inner method, is invalid.
        """
        own = super().resolve(values, dataset)
        assert isinstance(own, InnerParams), "Params of a subclass derive from InnerParams"
        try:
            resolved = cls.method(own.method).resolve(own.params, dataset).model_dump(mode="json")
        except InputError as error:
            raise InputError(f"params of {cls.__name__}: {error}") from error
        return own.model_copy(update={"params": resolved})

    @property
    def parts(self) -> Mapping[str, Defense]:
        """The inner method."""
        return {self.params.method: self.inner}

    @classmethod
    def method(cls, name: str) -> type[Defense]:
        """Class of an inner method.

        Raises:
            InputError: the name is unknown, or the method is not accepted.
        """
        found: type[Defense] = registry().load("defense", name)
        own = next(base for base in cls.__mro__ if "accepted" in vars(base))  # an author's class may derive from it
        if issubclass(found, own):
            expected, remedy = cls.accepted
            raise InputError(f"method of {cls.__name__}", expected=expected, got=name, remedy=remedy)
        return found


class Reset:
    """Builds nets like a module, with newly initialised layers.

    Raises:
        InputError: a layer with weights cannot be reset.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __call__(self, seed: int) -> nn.Module:
        net = copy.deepcopy(self._module)
        with isolated_rng(seed, "cpu", everywhere=True):
            for name, layer in reversed(list(net.named_modules())):  # containers are reset after their layers
                reset = getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)
                if reset is not None:
                    reset()
                elif next(layer.parameters(recurse=False), None) is not None:
                    raise InputError(
                        f"layer {name or '(top level)'} of the net ({type(layer).__name__})",
                        expected="a method reset_parameters, for different initial weights of each member",
                        remedy="add one, or pass TrainContext(fresh=...), a function from a seed to a net",
                    )
        return net
