"""advbench: how robust is this defence, really? A benchmark for randomised and Bayesian defences."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from advbench.errors import AdvbenchError as AdvbenchError
from advbench.errors import InputError as InputError
from advbench.errors import PluginError as PluginError

if TYPE_CHECKING:
    from advbench.attacks.base import Attack as Attack
    from advbench.attacks.base import Threat as Threat
    from advbench.attacks.craft import craft as craft
    from advbench.audit.run import audit as audit
    from advbench.data.base import Data as Data
    from advbench.data.datasets import load_dataset as load_dataset
    from advbench.evaluation import Predictions as Predictions
    from advbench.evaluation.evaluate import evaluate as evaluate
    from advbench.grid.convergence import converge as converge
    from advbench.grid.inputs import Converge as Converge
    from advbench.models.classifier import Classifier as Classifier
    from advbench.models.nets import build as build_architecture
    from advbench.training.base import Defense as Defense
    from advbench.training.base import Resources as Resources
    from advbench.training.base import TrainContext as TrainContext

# Loaded at first use: `import advbench` must not import torch.
_LAZY = {
    "Attack": "advbench.attacks:Attack",
    "Classifier": "advbench.models:Classifier",
    "Converge": "advbench.grid.inputs:Converge",
    "Data": "advbench.data:Data",
    "Defense": "advbench.training:Defense",
    "Predictions": "advbench.evaluation:Predictions",
    "Resources": "advbench.training:Resources",
    "Threat": "advbench.attacks:Threat",
    "TrainContext": "advbench.training:TrainContext",
    "audit": "advbench.audit.run:audit",
    "build_architecture": "advbench.models.nets:build",
    "converge": "advbench.grid.convergence:converge",
    "craft": "advbench.attacks:craft",
    "evaluate": "advbench.evaluation.evaluate:evaluate",
    "load_dataset": "advbench.data.datasets:load_dataset",
}

__all__ = [
    "AdvbenchError",
    "Attack",
    "Classifier",
    "Converge",
    "Data",
    "Defense",
    "InputError",
    "PluginError",
    "Predictions",
    "Resources",
    "Threat",
    "TrainContext",
    "audit",
    "build_architecture",
    "converge",
    "craft",
    "evaluate",
    "get_attack",
    "get_defense",
    "load_dataset",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'advbench' has no attribute {name!r}")
    module, _, attribute = _LAZY[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def get_attack(name: str, **params: Any) -> Attack:
    """A registered attack with the given hyperparameters; call it as `attack(model, x, y, threat, seed=0)`.

    Raises:
        InputError: an unknown name, or an unknown or invalid hyperparameter.
    """
    from advbench.registry import registry

    attack: Attack = registry().load("attack", name)(**params)
    return attack


def get_defense(name: str, **params: Any) -> Defense:
    """A registered training method with the given hyperparameters; call `.fit(module, data)` on it.

    Raises:
        InputError: an unknown name, or an unknown or invalid hyperparameter.
    """
    from advbench.registry import registry

    defense: Defense = registry().load("defense", name)(**params)
    return defense
