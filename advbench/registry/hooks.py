"""The hooks that a plugin can implement, and the marker that it implements them with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:
    from advbench.registry.plugins import Registrar

PROJECT = "advbench"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class FinishedTask(Protocol):
    """What a tracker is given of a task; the record beside it holds its inputs."""

    @property
    def kind(self) -> str:
        """One of `"train"`, `"craft"` and `"evaluate"`."""

    @property
    def key(self) -> str:
        """The name of its record in the store."""

    @property
    def label(self) -> str:
        """The task in words."""

    @property
    def defense(self) -> str:
        """Label of the defense that was trained or evaluated; empty where examples were crafted."""

    @property
    def source(self) -> str:
        """Label of the defense that examples were crafted on; empty of clean images and of a training."""

    @property
    def attack(self) -> str:
        """Label of the attack; `none` of clean images, empty of a training and of out-of-distribution images."""

    @property
    def eps(self) -> float | None:
        """The radius; 0 of clean images; None where there is none."""

    @property
    def seed(self) -> int:
        """The seed of training, attack or evaluation."""


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
        task: which defense, attack, source, eps and seed it was about.
        record: what the store keeps of it: inputs, result, versions, seconds.
    """
