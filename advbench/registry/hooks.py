"""The hooks that a plugin can implement, and the marker for its implementations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:
    from advbench.registry.plugins import Registrar

PROJECT = "advbench"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class FinishedTask(Protocol):
    """A finished task, as a tracker sees it; the record beside it holds its inputs.

    Attributes:
        kind: `"train"`, `"craft"` or `"evaluate"`.
        key: name of its record in the store.
        label: description for people.
        defense: label of the defense that was trained or evaluated; empty for `"craft"`.
        source: label of the defense that examples were crafted on; empty for trainings and clean images.
        attack: label of the attack; `none` for clean images, empty for trainings and out-of-distribution images.
        eps: the radius; 0 for clean images, None if there is none.
        seed: seed of the training, attack or evaluation.
    """

    kind: str
    key: str
    label: str
    defense: str
    source: str
    attack: str
    eps: float | None
    seed: int


@hookspec
def advbench_register(register: Registrar) -> None:
    """Declare the names that this plugin offers.

    Called once when the registry is built. Each name has a `"module:attribute"` target and a one-line
    summary; do not import the target (or torch) here, so that listing plugins stays fast.

    Args:
        register: has one method per kind: `defense`, `attack`, `architecture`, `dataset`, `paper`, and, for new
            kinds of classifiers, `posterior` and `noise`; each `(name, target, summary)`.
    """


@hookspec
def advbench_task_finished(task: FinishedTask, record: dict[str, Any]) -> None:
    """Track a task; called in the driver's process after each task that finished.

    Args:
        task: its defense, attack, source, eps and seed.
        record: its record in the store: inputs, result, versions, seconds.
    """
