"""advbench: how robust is this defense, really? A benchmark for randomised and Bayesian defenses."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
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
    from advbench.models.nets import build as build_architecture  # noqa: F401
    from advbench.report.opened import Run as Run
    from advbench.report.opened import open_run as open_run
    from advbench.training.active import active_learning as active_learning
    from advbench.training.base import Defense as Defense
    from advbench.training.base import Resources as Resources
    from advbench.training.base import TrainContext as TrainContext
    from advbench.training.history import history as history

# Loaded at first use: `import advbench` must not import torch.
_LAZY = {
    "Attack": "advbench.attacks:Attack",
    "Classifier": "advbench.models:Classifier",
    "Converge": "advbench.grid.inputs:Converge",
    "Data": "advbench.data:Data",
    "Defense": "advbench.training:Defense",
    "Predictions": "advbench.evaluation:Predictions",
    "Resources": "advbench.training:Resources",
    "Run": "advbench.report.opened:Run",
    "Threat": "advbench.attacks:Threat",
    "TrainContext": "advbench.training:TrainContext",
    "active_learning": "advbench.training.active:active_learning",
    "audit": "advbench.audit.run:audit",
    "build_architecture": "advbench.models.nets:build",
    "converge": "advbench.grid.convergence:converge",
    "craft": "advbench.attacks:craft",
    "evaluate": "advbench.evaluation.evaluate:evaluate",
    "history": "advbench.training.history:history",
    "load_dataset": "advbench.data.datasets:load_dataset",
    "open_run": "advbench.report.opened:open_run",
}

__all__ = ["AdvbenchError", "InputError", "PluginError", "get_attack", "get_defense", "run"]
__all__ += list(_LAZY)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'advbench' has no attribute {name!r}")
    module, _, attribute = _LAZY[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def get_attack(name: str, **params: Any) -> Attack:
    """Create an attack with the given hyperparameters; call it as `attack(model, x, y, threat, seed=0)`.

    Args:
        name: registered name, or `path/to/my.py:Class`.
        params: hyperparameters that differ from the defaults.

    Raises:
        InputError: the name is unknown, or a hyperparameter is unknown or invalid.
    """
    from advbench.registry import registry

    attack: Attack = registry().load("attack", name)(**params)
    return attack


def get_defense(name: str, **params: Any) -> Defense:
    """Create a training method with the given hyperparameters; train with `.fit(module, data)`.

    Args:
        name: registered name, or `path/to/my.py:Class`.
        params: hyperparameters that differ from the defaults.

    Raises:
        InputError: the name is unknown, or a hyperparameter is unknown or invalid.
    """
    from advbench.registry import registry

    defense: Defense = registry().load("defense", name)(**params)
    return defense


def run(
    defenses: str | Sequence[str],
    attacks: str | Sequence[str],
    *,
    out: str = "results",
    store: str | None = None,
    keep_examples: bool = False,
    retry_failed: bool = False,
    progress: bool = True,
    execution: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Run:
    """Train, attack and evaluate defenses, like `advbench run`; results in the store are reused.

    A failed task affects its own cells only: `results["flags"]` gives the reasons, and a warning the number of failed
    cells.

    Args:
        defenses: names of defenses, also comma-separated; `name@label`, or `path/to/my.py:Class`.
        attacks: names of attacks, in the same form.
        out: output folder for spec, tables and leaderboard.
        store: store of results, a folder or fsspec URL; by default ADVBENCH_STORE, or .advbench/store.
        keep_examples: keep adversarial examples in the store.
        retry_failed: retry tasks that failed in a previous run.
        progress: show progress on standard error.
        execution: options of the execution, fields of `advbench.grid.execution.Execution`: `executor`, `workers`,
            `device`, `data_root`, ...
        settings: other fields of the spec, such as `dataset`, `architecture`, `eps`, `seeds`, `draws`, `limit`, and
            `set`, the hyperparameters by label.

    Raises:
        InputError: a name is unknown, or a value invalid.
        StoreError: the store or folder cannot be written.
    """
    import io
    import os
    import warnings

    from rich.console import Console

    from advbench.cli.display import Display
    from advbench.errors import unknown_name
    from advbench.grid.execution import Execution
    from advbench.grid.run import Settings, carry_out, prepare
    from advbench.grid.scheduler import outstanding
    from advbench.grid.spec import make_spec
    from advbench.report.opened import DEFAULT_STORE, open_run
    from advbench.report.output import check_no_board, check_writable, write_inputs, write_out

    url = store or os.environ.get("ADVBENCH_STORE") or DEFAULT_STORE
    how = dict(execution or {})
    for name in how:
        if name not in Execution.__dataclass_fields__ or name == "store":
            raise unknown_name("execution option", name, set(Execution.__dataclass_fields__) - {"store"})
    chosen = Execution(url, **how)
    named = {"defenses": _names(defenses), "attacks": _names(attacks), **settings}
    plan = prepare(chosen.placed(make_spec(named)), chosen.data_root)
    folder = Path(out)
    check_no_board(folder)
    check_writable(folder)
    place = chosen.open_store()
    place.check_writable()
    write_inputs(plan, folder)
    waiting, runtime = outstanding(plan, place), chosen.runtime(plan.spec.dataset, plan.spec.threads, plan.spec.ood)
    console = None if progress else Console(file=io.StringIO())
    with Display(plan.tasks, waiting, console) as display:
        how_done = Settings(keep_examples, retry_failed)
        outcome = carry_out(plan, waiting, place, lambda: chosen.start(runtime), display, how_done)
    write_out(plan, place, outcome, folder)
    if outcome.failed:
        warnings.warn("; ".join(outcome.why(plan.tasks)), stacklevel=2)
    return open_run(folder, url)


def _names(given: str | Sequence[str]) -> list[str]:
    found = [given] if isinstance(given, str) else list(given)
    return [name.strip() for each in found for name in each.split(",") if name.strip()]
