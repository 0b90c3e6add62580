"""Adam and SGD with torch's own step functions and a plain state, bit-identical to `torch.optim`.

Classes of `torch.optim` are not used because creating one imports torch's compiler, which takes longer than a small
training.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd


class Optimizer(Protocol):
    """Interface of optimisers; those of `torch.optim` satisfy it."""

    param_groups: list[dict[str, Any]]

    def zero_grad(self) -> None:
        """Set the gradients to None."""

    def step(self) -> Any:
        """Update the parameters."""

    def state_dict(self) -> dict[str, Any]:
        """State in torch's format: `state` by parameter index, and `param_groups`."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Load the result of `state_dict`."""


class _Optimizer(ABC):
    """Groups of parameters with their settings. The state of a parameter is created at its first gradient."""

    def __init__(self, groups: list[dict[str, Any]], **settings: Any) -> None:
        self.param_groups = [settings | group for group in groups]
        self._params: list[Tensor] = [parameter for group in groups for parameter in group["params"]]
        self._states: dict[int, dict[str, Tensor]] = {}

    def zero_grad(self) -> None:
        """Set the gradients to None."""
        for parameter in self._params:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Update the parameters that have a gradient."""
        index = {id(parameter): index for index, parameter in enumerate(self._params)}
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            states = [self._states.setdefault(index[id(parameter)], {}) for parameter in moved]
            self._move(moved, [parameter.grad for parameter in moved], states, group)

    @abstractmethod
    def _move(
        self, params: list[Tensor], gradients: list[Tensor], states: list[dict[str, Tensor]], settings: dict[str, Any]
    ) -> None:
        """Update the parameters of a group and their states, in place."""

    def state_dict(self) -> dict[str, Any]:
        """State in torch's format: `state` by parameter index, and `param_groups`."""
        return {"state": self._states, "param_groups": self.param_groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of a `state_dict`."""
        self._states = {
            index: {name: tensor.to(self._params[index].device, copy=True) for name, tensor in state.items()}
            for index, state in state_dict["state"].items()
        }


class Adam(_Optimizer):
    """Adam (Kingma and Ba 2015); `weight_decay * w` is added to the gradient.

    Args:
        groups: dicts of `params` and of settings that differ from those below.
        lr: learning rate.
        betas: decay rates of the running means of gradients and of squared gradients.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        super().__init__(groups, lr=lr, betas=betas, weight_decay=0.0)

    def _move(
        self, params: list[Tensor], gradients: list[Tensor], states: list[dict[str, Tensor]], settings: dict[str, Any]
    ) -> None:
        for parameter, state in zip(params, states, strict=True):
            if not state:
                state["step"] = torch.zeros((), device=parameter.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        means, squares, steps = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step"))
        adam(
            params,
            gradients,
            means,
            squares,
            [],
            steps,
            amsgrad=False,
            beta1=settings["betas"][0],
            beta2=settings["betas"][1],
            lr=settings["lr"],
            weight_decay=settings["weight_decay"],
            eps=1e-8,
            maximize=False,
            fused=True,
        )


class SGD(_Optimizer):
    """Stochastic gradient descent with momentum; `weight_decay * w` is added to the gradient.

    Args:
        groups: dicts of `params` and of settings that differ from those below.
        lr: learning rate.
        momentum: decay rate of the running sum of gradients.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, momentum: float = 0.0) -> None:
        super().__init__(groups, lr=lr, momentum=momentum, weight_decay=0.0)

    def _move(
        self, params: list[Tensor], gradients: list[Tensor], states: list[dict[str, Tensor]], settings: dict[str, Any]
    ) -> None:
        buffers = [state.get("momentum_buffer") for state in states]
        sgd(
            params,
            gradients,
            buffers,
            weight_decay=settings["weight_decay"],
            momentum=settings["momentum"],
            lr=settings["lr"],
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        for state, buffer in zip(states, buffers, strict=True):
            if buffer is not None:
                state["momentum_buffer"] = buffer
