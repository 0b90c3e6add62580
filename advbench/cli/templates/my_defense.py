"""One-line description of this defense."""

from __future__ import annotations

from advbench.models import GaussianNoise, Noise
from advbench.training import ErmLoss, Field, TrainParams


class MyDefense(ErmLoss):
    """Plain training with Gaussian noise on the images, which stays on at prediction.

    Describe your defense, its source, and departures from it; `advbench show` prints this text.
    """

    # Epochs, batch size, learning rate and optimiser are hyperparameters of TrainParams. Add your own here; each is set
    # by --set MyDefense.NAME=VALUE, validated, and part of the keys of results.
    class Params(TrainParams):
        """Hyperparameters of the defense."""

        sigma: float = Field(default=0.1, ge=0, description="standard deviation of the noise, for pixels in [0, 1]")

    # Defaults by data set, and presets for --set MyDefense.preset=paper.
    presets = {"digits": {"stages": (40, 10), "batch_size": 64}}
    params: Params

    # Override what differs from plain training, and delete this method if nothing is random. Other methods to
    # override, with a suitable base class:
    #
    # - perturb(clf, x, y, generator): images to train on in place of x, as in adversarial training (PgdPerturbation)
    # - loss(clf, x, y, count): the terms of the loss, which are summed (GradientDefense)
    # - posterior(module): a distribution over the weights (ElboLoss; ChainDefense for Markov chains)
    #
    # For noise around a trained net, without training: subclass Wrapper. For your own training: subclass Defense and
    # write fit(module, data, context), which returns a Classifier.
    def noise(self) -> Noise:
        """Gaussian noise on the images."""
        return GaussianNoise(first=self.params.sigma, inner=0.0)
