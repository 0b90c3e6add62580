"""Nets, distributions over their weights, noise inside them: classifiers whose randomness nothing switches off."""

from advbench.models.classifier import Classifier as Classifier
from advbench.models.classifier import Draw as Draw
from advbench.models.classifier import ExampleLoss as ExampleLoss
from advbench.models.classifier import Gradient as Gradient
from advbench.models.classifier import SlopedLoss as SlopedLoss
from advbench.models.guard import check_effect as check_effect
from advbench.models.mixture import MixturePosterior as MixturePosterior
from advbench.models.mixture import mixture as mixture
from advbench.models.noise import DropoutNoise as DropoutNoise
from advbench.models.noise import GaussianNoise as GaussianNoise
from advbench.models.noise import Noise as Noise
from advbench.models.posterior import FlatLayout as FlatLayout
from advbench.models.posterior import GaussianPosterior as GaussianPosterior
from advbench.models.posterior import GeneratorPosterior as GeneratorPosterior
from advbench.models.posterior import PointPosterior as PointPosterior
from advbench.models.posterior import Posterior as Posterior
from advbench.models.posterior import SamplePosterior as SamplePosterior
from advbench.models.posterior import Weights as Weights
from advbench.models.posterior import matched_divergence as matched_divergence
from advbench.models.posterior import perceptron as perceptron
from advbench.models.posterior import prior_divergence as prior_divergence
from advbench.models.saving import export_classifier as export_classifier
