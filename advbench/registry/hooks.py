"""The hooks that a plugin can implement, and the marker that it implements them with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:
    from advbench.registry.plugins import Registrar

PROJECT = "advbench"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class FinishedTask(Protocol):
    """What a tracker is told of a task."""

    @property
    def kind(self) -> str:
        """One of `"train"`, `"craft"` and `"evaluate"`."""

    @property
    def key(self) -> str:
        """The name of its record in the store."""

    @property
    def inputs(self) -> Mapping[str, Any]:
        """Everything that its result depends on, as JSON values."""

    @property
    def label(self) -> str:
        """What people are shown."""


@hookspec
def advbench_register(register: Registrar) -> None:
    """Declare what this plugin offers.

    Called once when the registry is built. Give names with a `"module:attribute"` target and a one-line
    summary; do not import the target (or torch) here, so that listing plugins stays fast.

    Args:
        register: has one method a kind: `defense`, `attack`, `architecture`, `dataset`, and for classifiers of
            a make that advbench lacks `posterior` and `noise`; each `(name, target, summary)`.
    """


@hookspec
def advbench_task_finished(task: FinishedTask, record: dict[str, Any]) -> None:
    """Called in the driver's process after each task that ran to its end, for trackers.

    Args:
        task: the task: its kind, key and inputs.
        record: what the store keeps of it: inputs, result, versions, seconds.
    """
