"""Hooks that a plugin can implement, and the marker for implementations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:
    from advbench.registry.plugins import Registrar

PROJECT = "advbench"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class FinishedTask(Protocol):
    """A finished task as passed to trackers; its inputs are in the record.

    Attributes:
        kind: `"train"`, `"craft"` or `"evaluate"`.
        key: key of its record in the store.
        label: human-readable description.
        defense: label of the defense that was trained or evaluated; empty for `"craft"`.
        source: label of the defense that examples were crafted on; empty for trainings and clean images.
        attack: label of the attack; `none` for clean images, empty for trainings and out-of-distribution images.
        eps: radius; 0 for clean images, None for trainings.
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
        register: registrar with one method per kind: `defense`, `attack`, `architecture`, `dataset`, `paper`, and, for
            new kinds of classifiers, `posterior` and `noise`; each `(name, target, summary)`.
    """


@hookspec
def advbench_task_finished(task: FinishedTask, record: dict[str, Any]) -> None:
    """Track a finished task; called in the driver's process.

    Args:
        task: defense, attack, source, eps and seed of the task.
        record: record of the task: inputs, result, versions, seconds.
    """
