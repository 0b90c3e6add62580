"""Base class of training methods, and the context of a training run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from advbench.data.base import Data
from advbench.keys import derive
from advbench.models.classifier import Classifier
from advbench.models.posterior import GaussianPosterior, gaussian_statistics
from advbench.progress import OnProgress
from advbench.registry.params import Configurable

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Resources:
    """Compute resources of a task. Only the kind of device (the CPU, or the model of a GPU) enters keys of results.

    Devices of the same kind give the same results; another kind draws other random numbers. The chunk size changes
    results by rounding only.

    Attributes:
        device: torch device, such as `"cpu"` or `"cuda:0"`.
        threads: number of CPU threads of a task; fixed, because sums over threads round differently.
        chunk: maximum number of images per forward pass; None for the whole batch. Training batches are split only if
            memory runs out.
    """

    device: str = "cpu"
    threads: int = 1
    chunk: int | None = None


class CheckpointSlot(Protocol):
    """Storage for the state of a training, from which an interrupted run resumes."""

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the tensors and JSON values saved last, or None."""

    def save(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Save a state, replacing the previous one."""


@dataclass(frozen=True)
class TrainContext:
    """Context of a training: everything other than module and data.

    Attributes:
        seed: seed of all random choices of the training.
        precision: precision of the forward and backward passes; weights and their updates are always float32.
        resources: device, threads and chunk size.
        progress: callback with the progress of the training.
        checkpoint: storage for the state, or None.
        checkpoint_seconds: minimum time between two saved states, in seconds.
        init: the trained classifier of the hyperparameter `init_from`; None if it has to be trained first.
        fresh: function from a seed to an untrained net like `module`; None if not available.
        watch: callback with the steps done and the classifier at that moment, which it must leave as it is (`history`).
        watch_every: steps between two of its calls; None for those of an epoch. The last call is after the last step.
        net: name of the module for messages.
    """

    seed: int = 0
    precision: Precision = "float32"
    resources: Resources = field(default_factory=Resources)
    progress: OnProgress = lambda _: None
    checkpoint: CheckpointSlot | None = None
    checkpoint_seconds: float = 30.0
    init: Classifier | None = None
    fresh: Callable[[int], nn.Module] | None = None
    watch: Callable[[int, Classifier], None] | None = None
    watch_every: int | None = None
    net: str = "the net"

    def generator(self, *labels: object) -> torch.Generator:
        """A generator on the training's device, seeded by `seed` and the labels only: no state has to be saved."""
        device = self.resources.device
        return torch.Generator(device).manual_seed(derive(self.seed, "train", *labels))


class Defense(Configurable, ABC):
    """Base class of training methods: from a module and data to a classifier.

    Attributes:
        watches: True, stated by the class that writes `fit`, if it calls `context.watch` with the classifier that it
            would return at that moment. Classes that override that `fit` state it again.
    """

    watches: ClassVar[bool] = False

    @property
    def architecture(self) -> str | None:
        """Registered architecture that the method requires; None for the run's architecture."""
        return None

    @property
    def parts(self) -> Mapping[str, Defense]:
        """Training methods that it runs, by name; keys of results include their versions."""
        return {}

    def passes_per_image(self) -> float | None:
        """Upper estimate of the number of forward-and-backward passes per image, over all epochs and steps.

        Used for planning and progress only. None if the author gives none.
        """
        return None

    @abstractmethod
    def fit(self, module: nn.Module, data: Data, context: TrainContext | None = None) -> Classifier:
        """Train a copy of a module on data.

        Must return the same classifier for the same seed, also after an interruption and resumption from
        `context.checkpoint`, and must not change `module`.

        Args:
            module: any module of torch.nn layers: images in [0, 1] in, logits `(batch, classes)` out. Its weights are
                the starting point; all of them are trained, including those with `requires_grad` False.
            data: the training images.
            context: seed, device, precision, progress and checkpoints; by default seed 0 on the CPU.

        Returns:
            The classifier, on the context's device.
        """

    def statistics(self, clf: Classifier) -> Mapping[str, Any]:
        """Statistics of a trained classifier for its record, as JSON values.

        Args:
            clf: the classifier returned by `fit`.

        Returns:
            By default those of a Gaussian posterior, `mean` (of mu) and `std` (of sigma): means over all weights but
            biases; and `tensors`, with the two values of each tensor, its `name` and number of `weights`. Empty for
            other posteriors.
        """
        return gaussian_statistics(clf.posterior) if isinstance(clf.posterior, GaussianPosterior) else {}
