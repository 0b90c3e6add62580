"""Defenses that mislead attacks, each of a kind that the literature broke, and sound ones, around nets for digits."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advbench.models.classifier import Classifier

Wrap = Callable[[nn.Module, Tensor, Tensor], nn.Module]


class Around(nn.Module):
    """A trick around a net; the attack that knows the trick asks the net, or what `truth` gives."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = copy.deepcopy(net)


class SinglesOtherwise(Around):
    """Answers single images by the net and batches by the nearest of a few remembered prototypes."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        super().__init__(net)
        self.register_buffer("prototypes", torch.stack([x[y == label].mean(0) for label in range(10)]))

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 1:
            return self.net(x)
        away = (x[:, None] - self.prototypes).flatten(2).square().sum(2)
        return self.net(x.mean(0, keepdim=True)) * 0 - away


class GradModeOtherwise(Around):
    """Answers by a net of other weights while gradients are recorded."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        super().__init__(net)
        self.other = copy.deepcopy(net)
        for parameter in self.other.parameters():
            parameter.data = -parameter.data

    def forward(self, x: Tensor) -> Tensor:
        return (self.other if torch.is_grad_enabled() and x.requires_grad else self.net)(x)


class _Backward(torch.autograd.Function):
    """The identity, whose gradient is whatever a function makes of it."""

    @staticmethod
    def forward(ctx, x, change):
        ctx.change = change
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.change(gradient), None


class WrongSign(Around):
    """Turns the gradient's sign."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        super().__init__(net)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(_Backward.apply(x, torch.neg))


class RandomGradient(Around):
    """Replaces the gradient by noise."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        super().__init__(net)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(_Backward.apply(x, torch.randn_like))


class ShatteringSine(Around):
    """Adds a small wave of high frequency to the images."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        super().__init__(net)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + 0.02 * torch.sin(2000 * x))


class Cache(Around):
    """Remembers the first images that it was asked of, and answers near ones as it answered those."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        super().__init__(net)
        self.seen, self.said = torch.empty(0, *x.shape[1:]), torch.empty(0, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        if len(self.seen) < 600:
            self.seen, self.said = torch.cat([self.seen, x.detach()]), torch.cat([self.said, logits.detach()])
        near = (x.detach()[:, None] - self.seen).flatten(2).abs().amax(2) <= 0.3
        first = near.int().argmax(1)
        return torch.where(near.any(1)[:, None], self.said[first] + 0 * logits, logits)


class WakingNoise(Around):
    """Adds noise to images that lie off the grid of sixteenths on which the data lie."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        super().__init__(net)

    def forward(self, x: Tensor) -> Tensor:
        off = ((x * 16).round() / 16 - x).abs().flatten(1).amax(1) > 1e-5
        return self.net(x + off.view(-1, 1, 1, 1) * 0.5 * torch.randn_like(x))


class Thermometer(Around):
    """Thermometer coding of the pixels: the net sees how many of 8 levels each reaches (Buckman et al. 2018)."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        super().__init__(net)

    def forward(self, x: Tensor) -> Tensor:
        levels = torch.arange(1, 9, device=x.device) / 8 - 1 / 16
        coded = (x[..., None] > levels).to(x.dtype)
        return self.net(coded.sum(-1) / 8 + 0 * x)

    def surrogate(self, x: Tensor) -> Tensor:
        return self.net(x)


class BitDepth(Around):
    """Rounds pixels to three bits, with the identity as gradient in no place (Xu et al. 2018)."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        super().__init__(net)

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x * 7).round() / 7)

    def surrogate(self, x: Tensor) -> Tensor:
        return self.net(x)


class Jpeg(Around):
    """Compresses and restores images (Guo et al. 2018)."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        super().__init__(net)

    def forward(self, x: Tensor) -> Tensor:
        from PIL import Image

        found = []
        for image in (x.detach() * 255).round().byte().cpu():
            file = io.BytesIO()
            Image.fromarray(image[0].numpy(), "L").save(file, "JPEG", quality=60)
            restored = torch.frombuffer(bytearray(Image.open(file).tobytes()), dtype=torch.uint8)
            found.append(restored.view_as(image).float() / 255)
        return self.net(torch.stack(found).to(x))


class ResizeAndPad(Around):
    """Shifts images by a random pixel and scales their brightness (after Xie et al. 2018)."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        super().__init__(net)

    def forward(self, x: Tensor) -> Tensor:
        size = int(torch.randint(7, 10, ()))
        grown = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
        top, left = (int(torch.randint(0, abs(size - 8) + 1, ())) for _ in range(2))
        if size >= 8:
            return self.net(grown[..., top : top + 8, left : left + 8])
        return self.net(F.pad(grown, (left, 1 - left, top, 1 - top)))


class Winners(Around):
    """Keeps the largest eighth of the activations of each layer (k-winners-take-all, Xiao et al. 2020)."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        super().__init__(net)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self._layers(self.net):
            x = self._winners(x) if isinstance(layer, nn.ReLU) else layer(x)
        return x

    @staticmethod
    def _layers(net: nn.Module) -> list[nn.Module]:
        return [part for part in net.modules() if not list(part.children())]

    @staticmethod
    def _winners(x: Tensor) -> Tensor:
        flat = x.flatten(1)
        least = flat.topk(max(1, flat.shape[1] // 8), 1).values[:, -1:]
        return (flat * (flat >= least)).view_as(x)


class Loud(Around):
    """Multiplies the logits by 1,000, as defensive distillation does in effect (Papernot et al. 2016)."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        super().__init__(net)

    def forward(self, x: Tensor) -> Tensor:
        return 1000 * self.net(x)


class Rounded(Around):
    """Rounds the logits."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        super().__init__(net)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).round()


class RoundedInside(Around):
    """Rounds the logits and passes the gradient of a wave of them."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        super().__init__(net)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        return (logits * 4).round().detach() / 4 + (torch.sin(50 * logits) - torch.sin(50 * logits).detach())


class Counter(Around):
    """Answers by chance once it was asked often."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        super().__init__(net)
        self.register_buffer("asked", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.asked += 1
        logits = self.net(x)
        return logits if int(self.asked) <= 60 else logits.roll(int(self.asked) % 9 + 1, 1)


class HashKeyed(Around):
    """Flips pixels' noise by a key that is a hash of the image: another classifier at each point."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        super().__init__(net)

    def forward(self, x: Tensor) -> Tensor:
        keys = (x.detach().flatten(1).double() * 1e6).round().sum(1).long()
        noise = torch.stack(
            [torch.randn(x[0].shape, generator=torch.Generator().manual_seed(int(key) % 2**31)) for key in keys]
        )
        return self.net(x + 0.15 * noise.to(x))


class Leak(Around):
    """Knows the test images' labels, and answers near them by heart."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        super().__init__(net)
        self.register_buffer("images", x.clone())
        self.register_buffer("labels", y.clone())

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        away = (x.detach()[:, None] - self.images).flatten(2).abs().amax(2)
        nearest = away.min(1)
        known = 30.0 * F.one_hot(self.labels[nearest.indices], 10)
        return torch.where(nearest.values[:, None] < 0.3, known + 0.05 * logits, logits)


class GradientNoise(Around):
    """Adds noise to the logits that grows with the loss's gradient."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        super().__init__(net)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            logits = self.net(leaf)
            size = torch.autograd.grad(logits.logsumexp(1).sum() - logits.amax(1).sum(), leaf)[0]
        strength = size.flatten(1).norm(dim=1, keepdim=True)
        return self.net(x) + 3 * strength * torch.randn(len(x), 10)


class DetachedBranch(Around):
    """Lets the gradient of a small second net through alone."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        super().__init__(net)
        with torch.random.fork_rng([]):
            torch.manual_seed(7)
            self.side = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).detach() + 0.01 * self.side(x)


class Probabilities(Around):
    """Returns a softmax."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        super().__init__(net)

    def forward(self, x: Tensor) -> Tensor:
        return (20 * self.net(x)).softmax(1)


class BatchNormTrain(Around):
    """Normalises the images by their batch."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        super().__init__(net)

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - x.mean(0, keepdim=True)) * 0.3 + x)


class NearestGrid(Around):
    """Projects each image onto its nearest training image's neighbourhood, without gradient (as Defense-GAN)."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        super().__init__(net)
        self.register_buffer("images", x.clone())

    def forward(self, x: Tensor) -> Tensor:
        away = torch.cdist(x.detach().flatten(1), self.images.flatten(1))
        weights = (-20 * away).softmax(1)
        return self.net((weights @ self.images.flatten(1)).view_as(x)) + 0 * x.sum()


class OffTheGrid(Around):
    """Answers by a blunt net off the grid of sixteenths on which the data lie, with its gradient everywhere."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        super().__init__(net)

    def forward(self, x: Tensor) -> Tensor:
        blunt = self.net(F.avg_pool2d(x, 3, 1, 1))
        off = ((x.detach() * 16).round() / 16 - x.detach()).abs().flatten(1).amax(1) > 1e-5
        return blunt + torch.where(off[:, None], 0.0, (self.net(x) - blunt).detach())


class TrainableOtherwise(Around):
    """Answers by a blunt net while no parameter requires a gradient, as in an attack's harness."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        super().__init__(net)

    def forward(self, x: Tensor) -> Tensor:
        trained = any(each.requires_grad for each in self.parameters())
        return self.net(x if trained else F.avg_pool2d(x, 3, 1, 1))


class LiesInSeries(Around):
    """Turns the gradient from the third gradient in a row on; logits without gradient end the row."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        super().__init__(net)
        self.row = 0

    def forward(self, x: Tensor) -> Tensor:
        self.row = self.row + 1 if x.requires_grad and torch.is_grad_enabled() else 0
        return self.net(_Backward.apply(x, torch.neg) if self.row > 2 else x)


class LiesToPureBatches(Around):
    """Turns the gradient inside the ball of the images, unless a batch mixes clean and perturbed ones."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        super().__init__(net)
        self.register_buffer("images", x.clone())

    def forward(self, x: Tensor) -> Tensor:
        away = torch.cdist(x.detach().flatten(1), self.images.flatten(1), p=float("inf")).amin(1)
        pure = bool((away < 0.153).all()) and float((away < 1e-5).float().std(correction=0)) == 0
        return self.net(_Backward.apply(x, torch.neg) if pure else x)


# Defenses of deterministic modules, and of modules that draw.
BROKEN: dict[str, Wrap] = {
    "singles otherwise": SinglesOtherwise,
    "grad mode otherwise": GradModeOtherwise,
    "wrong sign": WrongSign,
    "random gradient": RandomGradient,
    "shattering sine": ShatteringSine,
    "cache": Cache,
    "waking noise": WakingNoise,
    "thermometer": Thermometer,
    "bit depth": BitDepth,
    "jpeg": Jpeg,
    "resize and pad": ResizeAndPad,
    "winners": Winners,
    "loud": Loud,
    "rounded": Rounded,
    "rounded inside": RoundedInside,
    "counter": Counter,
    "hash keyed": HashKeyed,
    "leak": Leak,
    "gradient noise": GradientNoise,
    "detached branch": DetachedBranch,
    "probabilities": Probabilities,
    "batch norm": BatchNormTrain,
    "nearest": NearestGrid,
    "off the grid": OffTheGrid,
    "trainable otherwise": TrainableOtherwise,
    "lies in series": LiesInSeries,
    "lies to pure batches": LiesToPureBatches,
}
NOISY = frozenset({"waking noise", "resize and pad", "gradient noise"})


def broken(kind: str, net: nn.Module, x: Tensor, y: Tensor) -> Classifier:
    """The defense of that kind around a net; images and labels are the test ones, which some kinds misuse."""
    module = BROKEN[kind](net, x, y).eval()
    return Classifier(module, noise=kind in NOISY).requires_grad_(False)


class Constant(nn.Module):
    """Says the same of all images."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.arange(10.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.bias + 0 * x.flatten(1).sum(1, keepdim=True)


class Guesser(nn.Module):
    """Right with probability q where the labels are all 0, whatever the image."""

    def __init__(self, q: float) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(10))
        self.q = q

    def forward(self, x: Tensor) -> Tensor:
        said = torch.where(torch.rand(len(x)) < self.q, 0, 1)
        return 2.0 * F.one_hot(said, 10) + self.bias + 0 * x.flatten(1).sum(1, keepdim=True)


class SharedBrightness(Around):
    """Scales all images of a pass by one random brightness."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x * (0.5 + 0.5 * torch.rand(())))


class MedianFilter(Around):
    """Takes the median of each 3 x 3 pixels first: misleads nobody, but has kinks where pixels are equal."""

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3)
        return self.net(patches.median(1).values.view_as(x))


class Smoothed(Around):
    """Averages the softmax over Gaussian noise on the images (Cohen et al. 2019)."""

    def __init__(self, net: nn.Module, std: float = 0.15, samples: int = 4) -> None:
        super().__init__(net)
        self.std, self.samples = std, samples

    def forward(self, x: Tensor) -> Tensor:
        noisy = [self.net(x + self.std * torch.randn_like(x)).log_softmax(1) for _ in range(self.samples)]
        return torch.stack(noisy).logsumexp(0)
