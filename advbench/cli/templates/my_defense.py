"""Write in one line what this defense is."""

from __future__ import annotations

from advbench.models import GaussianNoise, Noise
from advbench.training import ErmLoss, Field, TrainParams


class MyDefense(ErmLoss):
    """Plain training under Gaussian noise on the images, which stays on at prediction.

    Write here what your defense does, where it is from, and where you depart from that: `advbench show` prints it.
    """

    # Epochs, batch size, learning rate and optimiser are hyperparameters of TrainParams. Add your own here; each is set
    # by --set MyDefense.NAME=VALUE, checked, and part of the key of what is computed.
    class Params(TrainParams):
        """Hyperparameters of the defense."""

        sigma: float = Field(default=0.1, ge=0, description="standard deviation of the noise, in pixels in [0, 1]")

    # Defaults for a data set, by its name; and presets that --set MyDefense.preset=paper chooses.
    presets = {"digits": {"stages": (40, 10), "batch_size": 64}}
    params: Params

    # Override what differs from plain training, and delete this method if nothing is random. Others that you may
    # override, with the base class that helps:
    #   perturb(clf, x, y, generator)   images to train on in place of x, as adversarial training does (PgdPerturbation)
    #   loss(clf, x, y, count)          the terms whose sum is descended (GradientDefense)
    #   posterior(module)               a distribution over the weights (ElboLoss; or ChainDefense for Markov chains)
    # A trained net with noise around it, without training of your own: subclass Wrapper.
    # A training of your own: subclass Defense and write fit(module, data, context), which returns a Classifier.
    def noise(self) -> Noise:
        """Gaussian noise on the images."""
        return GaussianNoise(first=self.params.sigma, inner=0.0)
