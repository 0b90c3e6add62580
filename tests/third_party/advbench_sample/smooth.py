"""A training method on the core's loop: it overrides the loss alone."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from advbench.models import Classifier
from advbench.training import Field, GradientDefense, Terms, TrainParams


class Smooth(GradientDefense):
    """Cross-entropy with smoothed labels."""

    class Params(TrainParams):
        """Hyperparameters of training with smoothed labels."""

        smoothing: float = Field(default=0.1, ge=0, lt=1, description="share of the label spread, a fraction")

    params: Params

    def loss(self, clf: Classifier, x: Tensor, y: Tensor, count: int) -> tuple[Terms, Tensor]:
        """Mean smoothed cross-entropy, in nats."""
        logits = clf(x)
        return {"loss": F.cross_entropy(logits.float(), y, label_smoothing=self.params.smoothing)}, logits
