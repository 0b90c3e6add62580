"""Registered network architectures: images in [0, 1] of any suitable size in, logits out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import suppress
from inspect import Parameter
from typing import Annotated, Any, get_type_hints

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advbench.data.base import Data
from advbench.errors import InputError
from advbench.keys import isolated_rng
from advbench.registry import files, registry
from advbench.registry.params import Field, Params, bare_parameters, resolved

SMALLEST = 2  # pixels; side of the smallest images of small_cnn


class Normalize(nn.Module):
    """(x - mean) / std for each channel: normalisation inside the module, so attacks see [0, 1] images."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float().view(1, -1, 1, 1))
        self.register_buffer("std", std.float().view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise images `(batch, channels, height, width)`."""
        return (x - self.mean) / self.std


class MaxPool(nn.Module):
    """Maximum of each 2x2 block; an odd last row or column is dropped.

    Same values as `nn.MaxPool2d(2)`, which takes up to half of a small net's forward pass on the CPU, because torch's
    kernel is not vectorised there. Without gradients, strided views are compared instead.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Pool `(batch, channels, height, width)`."""
        height, width = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
        if x.device.type != "cpu" or 0 in (height, width) or (torch.is_grad_enabled() and x.requires_grad):
            return F.max_pool2d(x, 2)
        a, b, c, d = (x[..., row:height:2, column:width:2] for row in (0, 1) for column in (0, 1))
        return torch.maximum(torch.maximum(a, b), torch.maximum(c, d))


class ImageConv2d(nn.Conv2d):
    """Convolution of images whose input gradient is quick on the CPU too.

    Values and gradients equal those of `nn.Conv2d` up to rounding. For one channel, torch's kernel of the input
    gradient takes up to 40 times as long as the forward pass; the columns of the output gradient, summed by pixel, take
    an eighth of that.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, channels, height, width)` to `(batch, outputs, *smaller)`."""
        plain = self.groups == 1 and self.dilation == (1, 1) and self.padding_mode == "zeros"
        quick = x.requires_grad and torch.is_grad_enabled() and x.device.type == "cpu" and x.dtype == torch.float32
        if not (plain and quick) or isinstance(self.padding, str):
            return super().forward(x)
        result: Tensor = _ImageConvolution.apply(x, self.weight, self.bias, self.stride, self.padding)
        return result


class _ImageConvolution(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(x, weight)
        ctx.biases = None if bias is None else list(bias.shape)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        of_weight = of_bias = None
        columns = weight.flatten(1).t() @ slope.flatten(2)
        of_x = F.fold(columns, x.shape[2:], weight.shape[2:], padding=ctx.padding, stride=ctx.stride)
        wanted = [False, ctx.needs_input_grad[1], ctx.needs_input_grad[2]]
        if any(wanted):
            _, of_weight, of_bias = torch.ops.aten.convolution_backward(
                slope, x, weight, ctx.biases, ctx.stride, ctx.padding, [1, 1], False, [0, 0], 1, wanted
            )
        return of_x, of_weight, of_bias, None, None


def build(name: str, data: Data, seed: int, params: Mapping[str, Any] | None = None) -> nn.Module:
    """A registered architecture for the images of `data`, initialised by `seed`, normalising inside.

    A function that builds a net which normalises by itself has an attribute `normalizes` that is True.

    Args:
        name: a registered architecture, or `path/to/my.py:NAME`, a function in a file.
        data: the training data; determines shape, classes, and the mean and standard deviation of each channel.
        seed: seed of the initial weights.
        params: hyperparameters of the net that differ from its defaults.

    Raises:
        InputError: unknown name or hyperparameter, or images of an unsuitable size.
    """
    name = files.kept_name(name)
    make = registry().load("architecture", name)
    values = net_values(make, params or {}) or {}
    with files.running(name, "makes its net"), isolated_rng(seed, "cpu", everywhere=True):
        net: nn.Module = make(*data.shape, data.classes, **values)
    if not isinstance(net, nn.Module):
        raise InputError(
            f"architecture {make.__name__!r}", expected="an nn.Module", got=f"an object of type {type(net).__name__}"
        )
    if getattr(make, "normalizes", False):
        return net
    return nn.Sequential(Normalize(*_channel_statistics(data)), net)


def net_params(make: Any) -> type[Params]:
    """Hyperparameters of a net: the arguments of its function after (channels, height, width, classes).

    Their annotations may describe them: `depth: Annotated[int, Field(ge=10, description="...")] = 28`.
    """
    own = vars(make).get("__init__", make) if isinstance(make, type) else make
    taken = _own_parameters(make)
    hints: dict[str, Any] = {}
    with suppress(NameError):  # annotations that only a type checker resolves
        hints = get_type_hints(own, include_extras=True) if taken else {}
    fields: dict[str, Any] = {
        each.name: (hints.get(each.name, Any if each.default is None else type(each.default)), each.default)
        for each in taken
    }
    found: type[Params] = pydantic.create_model("Params", __base__=Params, **fields)
    return found


def _own_parameters(make: Any) -> list[Parameter]:
    """Parameters of a net's function after (channels, height, width, classes).

    Raises:
        InputError: the first four parameters are not free for these, or another one has no default.
    """
    signature = inspect.signature(make)
    parameters = list(signature.parameters.values())
    positional = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    anything = any(each.kind is each.VAR_POSITIONAL for each in parameters)
    own = positional[4:] + [each for each in parameters if each.kind is each.KEYWORD_ONLY]
    is_free = (len(positional) >= 4 or anything) and all(each.default is each.empty for each in positional[:4])
    if is_free and all(each.default is not each.empty for each in own):
        return own
    expected = "the parameters (channels, height, width, classes, ...) first"
    remedy = "its own hyperparameters come after them, with defaults"
    raise InputError(_shown(make), expected=expected, got=bare_parameters(make), remedy=remedy)


def _shown(make: Any) -> str:
    """Function of a net for messages: `file my.py, build`, or its registered name."""
    name = getattr(make, "__name__", type(make).__name__)
    digest = files.digest_of(files.origin(make) or "")
    return f"file {files.known(digest, name).shown()}, {name}" if digest else f"architecture {name!r}"


def net_values(make: Any, given: Mapping[str, Any]) -> dict[str, Any] | None:
    """All hyperparameters of a net; None if all have their defaults.

    Raises:
        InputError: an unknown hyperparameter, a value of the wrong type or range, or a function with other parameters.
    """
    _own_parameters(make)
    if not given:
        return None
    kind = net_params(make)
    defaults = kind()
    values = resolved(kind, given, f"architecture {make.__name__}")
    return None if values == defaults else values.model_dump(mode="json")


def _channel_statistics(data: Data) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel in [0, 1], over at most 10,000 images."""
    images, _ = data.batch(slice(10_000))
    flat = images.double().transpose(0, 1).flatten(1)
    # Of a single pixel, as the blank image that stands for toy data has, there is no deviation.
    std = flat.std(1) if flat.shape[1] > 1 else torch.ones(len(flat))
    return flat.mean(1), std.clamp_min(1e-3)


def _require_size(name: str, height: int, width: int, least: int) -> None:
    if min(height, width) < least:
        raise InputError(
            f"architecture {name!r}",
            expected=f"images of at least {least}x{least}",
            got=f"{height}x{width}",
            remedy=f"choose {'fcnn1' if min(height, width) < SMALLEST else 'small_cnn or fcnn1'}, or larger images",
        )


def _conv(inputs: int, outputs: int, stride: int = 1, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias)


def small_cnn(channels: int, height: int, width: int, classes: int) -> nn.Module:
    """Two convolutions, a pooling layer, two linear layers; 38,000 weights on 8x8 images."""
    _require_size("small_cnn", height, width, SMALLEST)
    return nn.Sequential(
        _conv(channels, 16),
        nn.ReLU(),
        _conv(16, 32),
        nn.ReLU(),
        MaxPool(),
        nn.Flatten(),
        nn.Linear(32 * (height // 2) * (width // 2), 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )


def strided_cnn(channels: int, height: int, width: int, classes: int) -> nn.Module:
    """Two convolutions of 4x4 pixels with stride 2, two linear layers (Wong and Kolter 2018, MNIST).

    On 28x28 images, an input gradient takes a tenth of that of `small_cnn` and an eighth of that of `bal_cnn`, which
    convolve at full resolution. PGD training from random weights ended at a constant at eps 0.2 and 0.3, also with
    learning rate 3e-4; from those of plain training (`init_from=erm`), at 0.2, it reaches a robust training accuracy of
    0.94.
    """
    _require_size("strided_cnn", height, width, 4)
    return nn.Sequential(
        ImageConv2d(channels, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), 100),
        nn.ReLU(),
        nn.Linear(100, classes),
    )


def _fully_connected(inputs: int, hidden: list[int], classes: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, classes))


def fcnn1(channels: int, height: int, width: int, classes: int) -> nn.Module:
    """One hidden layer of 100 units (APD section 5.1)."""
    return _fully_connected(channels * height * width, [100], classes)


def fcnn2(channels: int, height: int, width: int, classes: int) -> nn.Module:
    """Two hidden layers of 400 units (APD section 5.1)."""
    return _fully_connected(channels * height * width, [400, 400], classes)


def fcnn(
    channels: int,
    height: int,
    width: int,
    classes: int,
    *,
    hidden: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...],
        Field(min_length=1, description="widths of the hidden ReLU layers; APD section 5.1, toy data: 10, 10"),
    ] = (10, 10),
) -> nn.Module:
    """Fully connected, with hidden layers of any widths (APD section 5.1)."""
    return _fully_connected(channels * height * width, list(hidden), classes)


def apd_cnn(
    channels: int,
    height: int,
    width: int,
    classes: int,
    *,
    widen: Annotated[float, Field(gt=0, description="factor on Springenberg's 96 and 192 channels; APD: 0.5")] = 0.5,
) -> nn.Module:
    """The net of active learning in APD: nine convolutions without a linear layer, mean over the last one's pixels.

    Springenberg et al. 2014 with leaky ReLUs (slope 0.2) and half the channels (APD section 5.3). Batch norm, pools in
    place of strides, and dropout of 0.2, 0.2 and 0.3 in training are those of the released code, whose clamp of the
    logits at 1e-10 is left out.
    """
    _require_size("apd_cnn", height, width, 12)
    first, second = max(1, round(96 * widen)), max(1, round(192 * widen))
    layers: list[nn.Module] = []
    inputs = channels
    for dropout, outputs in ((0.2, first), (0.2, second)):
        layers.append(nn.Dropout(dropout))
        for _ in range(3):
            layers += [_conv(inputs, outputs), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)]
            inputs = outputs
        layers += [MaxPool(), nn.BatchNorm2d(outputs)]
    layers += [nn.Dropout(0.3), nn.Conv2d(second, second, 3), nn.BatchNorm2d(second), nn.LeakyReLU(0.2)]
    layers += [nn.Conv2d(second, second, 1), nn.BatchNorm2d(second), nn.LeakyReLU(0.2)]
    layers += [nn.Conv2d(second, classes, 1), nn.BatchNorm2d(classes), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def bal_cnn(channels: int, height: int, width: int, classes: int) -> nn.Module:
    """conv32-pool-conv32-pool-dropout-fc64-fc (BAL section 5.1); dropout rate 0.5, not stated in the paper."""
    _require_size("bal_cnn", height, width, 4)
    return nn.Sequential(
        _conv(channels, 32),
        nn.ReLU(),
        MaxPool(),
        _conv(32, 32),
        nn.ReLU(),
        MaxPool(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )


def vgg16(channels: int, height: int, width: int, classes: int) -> nn.Module:
    """VGG16 (configuration D) with batch norm and one linear layer on pooled features (Adv-BNN, CIFAR-10)."""
    _require_size("vgg16", height, width, 32)
    layers: list[nn.Module] = []
    inputs = channels
    for outputs, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers += [_conv(inputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
        layers.append(MaxPool())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


class ResidualBlock(nn.Module):
    """Two convolutions with batch norm, and a subsampled, zero-padded identity shortcut (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(inputs, outputs, stride, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            _conv(outputs, outputs, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.stride = stride
        self.added = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, inputs, height, width)` to `(batch, outputs, height / stride, width / stride)`."""
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.added:
            shortcut = nn.functional.pad(shortcut, (0, 0, 0, 0, 0, self.added))
        return torch.relu(self.body(x) + shortcut)


def _resnet(blocks: int, channels: int, classes: int) -> nn.Module:
    layers: list[nn.Module] = [_conv(channels, 16, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    inputs = 16
    for outputs in (16, 32, 64):
        for block in range(blocks):
            layers.append(ResidualBlock(inputs, outputs, 2 if block == 0 and outputs > 16 else 1))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def resnet20(channels: int, height: int, width: int, classes: int) -> nn.Module:
    """ResNet-20 for small images with identity shortcuts (He et al. 2016, section 4.2)."""
    _require_size("resnet20", height, width, 8)
    return _resnet(3, channels, classes)


def resnet56(channels: int, height: int, width: int, classes: int) -> nn.Module:
    """ResNet-56 for small images with identity shortcuts (He et al. 2016, section 4.2)."""
    _require_size("resnet56", height, width, 8)
    return _resnet(9, channels, classes)


class WideBlock(nn.Module):
    """Two convolutions, each after batch norm and ReLU, and a shortcut (Zagoruyko and Komodakis 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.body = nn.Sequential(
            _conv(inputs, outputs, stride, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            _conv(outputs, outputs, bias=False),
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, inputs, height, width)` to `(batch, outputs, height / stride, width / stride)`."""
        ready = self.before(x)
        beside = x if self.shortcut is None else self.shortcut(ready)
        out: Tensor = self.body(ready) + beside
        return out


def _wide_resnet(depth: int, widen: int, channels: int, classes: int) -> nn.Module:
    layers: list[nn.Module] = [_conv(channels, 16, bias=False)]
    inputs = 16
    for group in range(3):
        outputs = 16 * widen * 2**group
        for block in range((depth - 4) // 6):
            layers.append(WideBlock(inputs, outputs, 2 if block == 0 and group > 0 else 1))
            inputs = outputs
    layers += [nn.BatchNorm2d(inputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(inputs, classes))


def wrn(
    channels: int,
    height: int,
    width: int,
    classes: int,
    *,
    depth: Annotated[
        int, Field(ge=10, description="number of layers, 6n + 4; hierarchical VI's released code: 16")
    ] = 28,
    widen: Annotated[int, Field(ge=1, description="widening factor; hierarchical VI's released code: 8")] = 10,
) -> nn.Module:
    """Wide residual network without dropout, WRN-28-10 (Zagoruyko and Komodakis 2016).

    The paper of hierarchical VI does not state depth and width; its released code has WRN-16-8.
    """
    _require_size("wrn", height, width, 8)
    if (depth - 4) % 6:
        raise InputError("depth of architecture 'wrn'", expected="6n + 4, such as 10, 16, 22 or 28", got=depth)
    return _wide_resnet(depth, widen, channels, classes)


def model_a(
    channels: int,
    height: int,
    width: int,
    classes: int,
    *,
    released: Annotated[
        bool,
        Field(
            description="variant of Adv-BNN's released code: 32, 64, 128, 256, 256, 512 channels, batch norm with "
            "affine parameters, and mean in place of max pooling at the end"
        ),
    ] = False,
) -> nn.Module:
    """Model A: convolutions of 32, 64, 128, 128, 256, 256 channels and a linear layer (Adv-BNN section 4, STL-10).

    Batch norm without affine parameters follows each convolution; the last two are not padded. This is the net that
    Adv-BNN's footnote 1 links to; its released code has a different one.
    """
    _require_size("model_a", height, width, 80)
    sizes = (32, 64, 128, 256, 256, 512) if released else (32, 64, 128, 128, 256, 256)
    layers: list[nn.Module] = []
    inputs = channels
    for index, outputs in enumerate(sizes):
        padded = index < 4
        norm = nn.BatchNorm2d(outputs, affine=released)
        layers += [nn.Conv2d(inputs, outputs, 3, padding=int(padded)), norm, nn.ReLU()]
        layers += [MaxPool()] * padded
        inputs = outputs
    pool = nn.AdaptiveAvgPool2d(1) if released else nn.AdaptiveMaxPool2d(1)
    return nn.Sequential(*layers, pool, nn.Flatten(), nn.Linear(inputs, classes))


class SpatialTransformer(nn.Module):
    """Resamples images on an affine grid that a small net predicts for each (Jaderberg et al. 2015).

    Starts at the identity.

    Args:
        channels: number of channels of the images.
        height: height of the images, in pixels.
        width: width of the images, in pixels.
        released: predict the grid with the small net of BAL's released code.
    """

    def __init__(self, channels: int, height: int, width: int, *, released: bool = False) -> None:
        super().__init__()
        cells = (height // 4) * (width // 4)
        if released:
            first = [nn.Conv2d(channels, 10, 7, padding=3), nn.LeakyReLU(), MaxPool(), nn.Dropout2d()]
            second = [nn.Conv2d(10, 10, 5, padding=2), nn.LeakyReLU(), MaxPool(), nn.Dropout2d()]
            last = [nn.Flatten(), nn.Linear(10 * cells, 10), nn.LeakyReLU(), nn.Dropout()]
        else:
            first = [_conv(channels, 16), nn.ReLU(), MaxPool()]
            second = [_conv(16, 32), nn.ReLU(), MaxPool()]
            last = [nn.Flatten(), nn.Linear(32 * cells, 32), nn.ReLU()]
        self.localise = nn.Sequential(*first, *second, *last)
        self.affine = nn.Linear(10 if released else 32, 6)
        with torch.no_grad():
            self.affine.weight.zero_()
            self.affine.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        """Map images `(batch, channels, height, width)` to resampled ones of the same shape."""
        theta = self.affine(self.localise(x)).view(-1, 2, 3)
        grid = nn.functional.affine_grid(theta, list(x.shape), align_corners=False).to(x.dtype)
        return nn.functional.grid_sample(x, grid, align_corners=False)


class Grey(nn.Module):
    """Luma of colour images (ITU-R BT.601, as in PIL and OpenCV); single-channel images are unchanged."""

    def forward(self, x: Tensor) -> Tensor:
        """Map images `(batch, channels, height, width)` to `(batch, 1, height, width)`."""
        if x.shape[1] == 1:
            return x
        return 0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]


def stn(
    channels: int,
    height: int,
    width: int,
    classes: int,
    *,
    kernels: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...],
        Field(min_length=3, max_length=3, description="kernel sizes; BAL's released code: 5, 3, 1"),
    ] = (3, 3, 3),
    grey: Annotated[bool, Field(description="conversion of colour images to grey (BAL section 5.2)")] = False,
    released: Annotated[
        bool,
        Field(
            description="variant of BAL's released code: convolutions without padding, leaky ReLU, batch norm after "
            "each pool, dropout 0.5, and another transformer; its kernels are 5, 3, 1"
        ),
    ] = False,
) -> nn.Module:
    """A spatial transformer before convolutions of 50, 100, 150 channels and a linear layer of 350 (BAL section 5.2).

    Kernels, pooling and the net of the transformer are not stated in the paper; they follow its released code.
    """
    _require_size("stn", height, width, 8)
    if grey and channels not in (1, 3):
        raise InputError("architecture 'stn' with grey", expected="images of 1 or 3 channels", got=channels)
    inputs = 1 if grey else channels
    layers: list[nn.Module] = [Grey()] * grey
    layers.append(SpatialTransformer(inputs, height, width, released=released))
    for outputs, kernel in zip((50, 100, 150), kernels, strict=True):
        padding = 0 if released else kernel // 2
        layers.append(nn.Conv2d(inputs, outputs, kernel, padding=padding))
        if released:
            layers += [nn.LeakyReLU(), MaxPool(), nn.BatchNorm2d(outputs), nn.Dropout2d()]
        else:
            layers += [nn.ReLU(), MaxPool()]
        height, width = ((size + 2 * padding - kernel + 1) // 2 for size in (height, width))
        if min(height, width) < 1:
            raise InputError("architecture 'stn'", expected="larger images or smaller kernels", got=list(kernels))
        inputs = outputs
    layers += [nn.Flatten(), nn.Linear(inputs * height * width, 350)]
    layers += [nn.LeakyReLU(), nn.Dropout()] if released else [nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(350, classes))
