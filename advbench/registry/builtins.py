"""The core's own plugin: declares data sets, nets, posteriors and noise without importing them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from advbench.registry.hooks import hookimpl

if TYPE_CHECKING:
    from advbench.registry.plugins import Registrar


@hookimpl
def advbench_register(register: Registrar) -> None:
    """Declare the data sets, architectures, posteriors and noise of the core."""
    for name, summary in {
        "digits": "scikit-learn's handwritten digits, 8x8 grey, 10 classes; embedded, no download",
        "mnist": "MNIST, 28x28 grey, 10 classes",
        "notmnist": "notMNIST, letters as 28x28 grey, 10 classes; no download",
        "fashion_mnist": "Fashion-MNIST, 28x28 grey, 10 classes",
        "cifar10": "CIFAR-10, 32x32 colour, 10 classes",
        "cifar100": "CIFAR-100, 32x32 colour, 100 classes",
        "stl10": "STL-10, 96x96 colour, 10 classes",
        "svhn": "SVHN, 32x32 colour, 10 classes",
        "gtsrb": "German traffic signs, resized to 32x32 colour, 43 classes",
        "toy2d": "two clusters of points in the plane (APD), 1x1 with 2 channels, 2 classes; no download",
        "imagefolder": "imagefolder:PATH, a folder with train/ and test/, each with one folder per class",
        "npz": "npz:PATH, a file with arrays x_train, y_train, x_test, y_test",
    }.items():
        register.dataset(name, f"advbench.data.loaders:load_{name}", summary)
    for name, summary in {
        "small_cnn": "2 convolutions (16, 32) and 2 linear layers (64): the default, fast on two cores",
        "strided_cnn": "2 strided convolutions (16, 32), linear 100: MNIST on a CPU (Wong and Kolter 2018)",
        "fcnn1": "fully connected, one hidden layer of 100 units (APD)",
        "fcnn2": "fully connected, two hidden layers of 400 units (APD)",
        "fcnn": "fully connected, hidden layers of any widths (APD, toy data: 10, 10)",
        "apd_cnn": "9 convolutions (48, 96), batch norm, leaky ReLU, 0.34 M weights (APD, active learning)",
        "bal_cnn": "2 convolutions of 32 channels, dropout, linear 64 (BAL, MNIST)",
        "vgg16": "VGG16 with batch norm and one linear layer, 14.7 M weights (Adv-BNN, CIFAR-10)",
        "resnet20": "ResNet-20 for small images, 0.27 M weights (adversarial sampling, CIFAR-10)",
        "resnet56": "ResNet-56 for small images, 0.85 M weights (adversarial sampling, CIFAR-10)",
        "wrn": "wide residual network 28-10, 36.5 M weights (hierarchical VI, CIFAR-10)",
        "model_a": "six convolutions and one linear layer for 96x96 images, 1.1 M weights (Adv-BNN, STL-10)",
        "stn": "spatial transformer, 3 convolutions (50, 100, 150), linear 350, 1.1 M weights (BAL, traffic signs)",
    }.items():
        register.architecture(name, f"advbench.models.nets:{name}", summary)
    for name, target, summary in (
        ("point", "posterior:PointPosterior", "point mass: a deterministic net"),
        ("gaussian", "posterior:GaussianPosterior", "mean-field Gaussian over every weight"),
        ("samples", "posterior:SamplePosterior", "equally likely samples, such as those of a Markov chain"),
        ("generator", "posterior:GeneratorPosterior", "weights generated from noise by a net"),
        ("mixture", "mixture:MixturePosterior", "uniform mixture of posteriors: an ensemble"),
    ):
        register.posterior(name, f"advbench.models.{target}", summary)
    register.noise("dropout", "advbench.models.noise:DropoutNoise", "dropout in training and prediction")
    register.noise("gaussian", "advbench.models.noise:GaussianNoise", "Gaussian noise before convolutions")
