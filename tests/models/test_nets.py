from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advbench.data.base import Data
from advbench.errors import InputError
from advbench.models.nets import Grey, ImageConv2d, MaxPool, Normalize, SpatialTransformer, build, net_values
from advbench.registry import registry

NAMES = tuple(entry.name for entry in registry().entries("architecture") if not entry.is_family)
LEAST = {
    "small_cnn": 2,
    "bal_cnn": 4,
    "strided_cnn": 4,
    "vgg16": 32,
    "resnet20": 8,
    "resnet56": 8,
    "wrn": 8,
    "model_a": 80,
    "stn": 8,
    "apd_cnn": 12,
    "fcnn": 1,
    "fcnn1": 1,
    "fcnn2": 1,
}
SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 96, 96), (2, 29, 31), (3, 47, 33)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_every_architecture_takes_images_that_fit_and_refuses_others(name: str, shape: tuple[int, int, int]) -> None:
    data = random_data(shape, classes=7)
    if min(shape[1:]) < LEAST.get(name, 1):
        with pytest.raises(InputError, match=too_small(name, shape)):
            build(name, data, seed=0)
        return
    net = build(name, data, seed=0)
    with torch.no_grad():
        logits = net.eval()(data.batch(slice(2))[0])
    assert logits.shape == (2, 7)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    assert len(logits.unique()) == logits.numel()


@pytest.mark.parametrize("name", [name for name in NAMES if LEAST.get(name, 1) > 1])
def test_least_size_is_taken_and_one_pixel_less_is_refused(name: str) -> None:
    least = LEAST[name]
    data = random_data((1, least, least), count=4)
    assert forward(build(name, data, 0), data).shape == (4, 10)
    for height, width in ((least - 1, least), (least, least - 1)):
        with pytest.raises(InputError, match=too_small(name, (1, height, width))):
            build(name, random_data((1, height, width)), 0)


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_reaches_the_logits(name: str) -> None:
    data = fitting(name, count=4)
    net = build(name, data, 0).train()
    if name == "stn":  # which starts at the identity, deaf to the net that chooses the grid
        nn.init.normal_(net.get_parameter("1.0.affine.weight"), std=0.01)
    forward(net, data).square().sum().backward()
    unused = [name for name, weight in net.named_parameters() if weight.grad is None or not weight.grad.any()]
    # A bias before batch norm is subtracted again: its gradient is zero or rounding.
    before_norm = {f"1.{i}.bias" for i, layer in enumerate(inner(net)) if isinstance(layer, nn.Conv2d)}
    assert set(unused) <= before_norm


@pytest.mark.parametrize("name", NAMES)
def test_seed_decides_the_weights_and_leaves_the_global_random_state(name: str) -> None:
    data = fitting(name)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build(name, data, 0).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    same, other = build(name, data, 0).state_dict(), build(name, data, 1).state_dict()
    assert first.keys() == same.keys() == other.keys()
    assert all(torch.equal(first[key], same[key]) for key in first)
    weights = [key for key in first if first[key].ndim > 1 and not key.startswith("0.") and "affine" not in key]
    assert weights
    assert not any(torch.equal(first[key], other[key]) for key in weights)


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "padding", "bias"),
    [(1, 4, 2, 1, True), (1, 3, 1, 1, True), (3, 5, 2, 0, False), (2, (3, 2), (1, 2), (0, 1), True)],
)
def test_convolution_of_images_is_torchs(channels: int, kernel: Any, stride: Any, padding: Any, bias: bool) -> None:
    torch.manual_seed(0)
    ours = ImageConv2d(channels, 5, kernel, stride=stride, padding=padding, bias=bias)
    theirs = nn.Conv2d(channels, 5, kernel, stride=stride, padding=padding, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, channels, 11, 8, requires_grad=True)
    weights = torch.randn(theirs(x).shape)
    for images, parameters in ((True, False), (False, True), (True, True)):
        gradients = []
        for layer in (ours, theirs):
            wanted = [x] * images + list(layer.parameters()) * parameters
            gradients.append(torch.autograd.grad((layer(x) * weights).sum(), wanted))
        for found, known in zip(*gradients, strict=True):
            torch.testing.assert_close(found, known)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize(
    "options",
    [{"dilation": 2}, {"groups": 2}, {"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}],
    ids=lambda options: next(iter(options)),
)
def test_convolution_of_images_with_other_options_is_torchs_too(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    ours, theirs = (cls(2, 4, 3, **options) for cls in (ImageConv2d, nn.Conv2d))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 2, 9, 7, requires_grad=True)
    found, known = (torch.autograd.grad(layer(x).square().sum(), x)[0] for layer in (ours, theirs))
    torch.testing.assert_close(found, known)


def test_convolution_of_images_has_second_derivatives_and_takes_transforms_of_torch() -> None:
    torch.manual_seed(0)
    layer = ImageConv2d(1, 3, 3, stride=2, padding=1).double()
    layer.weight.data, layer.bias = layer.weight.data.float(), None
    x = torch.randn(2, 1, 6, 6, requires_grad=True)
    slope = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)[0]
    again = torch.autograd.grad(slope.square().sum(), x)[0]
    linear = F.conv2d(torch.eye(36).view(36, 1, 6, 6), layer.weight, None, 2, 1).flatten(1).T
    twice = 2 * linear.T @ linear
    torch.testing.assert_close(slope.flatten(1), x.flatten(1) @ twice)
    torch.testing.assert_close(again.flatten(1), 2 * x.flatten(1) @ twice @ twice)
    weights = torch.randn(4, *layer.weight.shape)
    by_draw = torch.func.vmap(lambda w: torch.func.functional_call(layer, {"weight": w}, (x,)))(weights)
    torch.testing.assert_close(by_draw, torch.stack([F.conv2d(x, w, None, 2, 1) for w in weights]))


def test_normalisation_by_the_training_images_is_inside_the_module() -> None:
    images = (
        torch.rand(50, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 0.5, 0.1])[:, None, None]
    )
    net = build("fcnn1", Data(images, torch.zeros(50, dtype=torch.int64), 10), 0)
    normalise = first_layer(net)
    flat = images.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(normalise.mean.flatten().double(), flat.mean(1))
    torch.testing.assert_close(normalise.std.flatten().double(), flat.std(1))
    out = normalise(images).transpose(0, 1).flatten(1)
    torch.testing.assert_close(out.mean(1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(1), torch.ones(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(net(images), inner(net)(normalise(images)))
    assert not [name for name, _ in net.named_parameters() if name.startswith("0.")]
    assert {"0.mean", "0.std"} <= net.state_dict().keys()


def test_bytes_and_floats_of_the_same_images_are_normalised_alike() -> None:
    data = random_data((3, 8, 8))
    as_float = Data(data.images.float() / 255, data.labels, data.classes)
    of_bytes, of_floats = (first_layer(build("fcnn1", d, 0)) for d in (data, as_float))
    assert torch.equal(of_bytes.mean, of_floats.mean)
    assert torch.equal(of_bytes.std, of_floats.std)


def test_channel_that_never_varies_gives_finite_logits() -> None:
    data = Data(torch.zeros(20, 1, 8, 8), torch.zeros(20, dtype=torch.int64), 10)
    net = build("small_cnn", data, 0)
    assert forward(net, data).isfinite().all()
    assert net(torch.ones(1, 1, 8, 8)).isfinite().all()


@pytest.mark.parametrize(
    ("name", "shape", "classes", "low", "high"),
    [
        ("fcnn1", (1, 28, 28), 10, 79_510, 79_510),
        ("fcnn2", (1, 28, 28), 10, 478_410, 478_410),
        ("resnet20", (3, 32, 32), 10, 265_000, 275_000),
        ("vgg16", (3, 32, 32), 10, 14_650_000, 14_750_000),
        ("resnet56", (3, 32, 32), 10, 850_000, 860_000),
        ("wrn", (3, 32, 32), 10, 36_470_000, 36_490_000),
        ("small_cnn", (1, 8, 8), 10, 38_282, 38_282),
        ("bal_cnn", (1, 28, 28), 10, 110_634, 110_634),
        ("strided_cnn", (1, 28, 28), 10, 166_406, 166_406),
        ("apd_cnn", (1, 28, 28), 10, 344_574, 344_574),
        ("fcnn", (2, 1, 1), 2, 162, 162),
    ],
)
def test_number_of_weights(name: str, shape: tuple[int, int, int], classes: int, low: int, high: int) -> None:
    net = build(name, random_data(shape, classes), 0)
    assert low <= sum(weight.numel() for weight in net.parameters()) <= high


def test_last_layer_of_vgg16_has_the_weights_whose_kl_the_released_code_counts() -> None:
    last = inner(build("vgg16", random_data((3, 32, 32)), 0))[-1]
    assert isinstance(last, nn.Linear)
    assert sum(weight.numel() for weight in last.parameters()) == 5_130


@pytest.mark.parametrize("depth", [20, 56])
def test_resnet_has_as_many_layers_of_weights_as_its_name_says_and_shortcuts_without(depth: int) -> None:
    net = build(f"resnet{depth}", random_data((3, 32, 32)), 0)
    layers = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth
    assert all(layer.kernel_size == (3, 3) for layer in layers[:-1])


def test_wide_resnet_has_28_layers_of_weights_on_its_longest_path() -> None:
    net = build("wrn", random_data((3, 32, 32)), 0)
    layers = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len([layer for layer in layers if getattr(layer, "kernel_size", (3, 3)) == (3, 3)]) == 26
    assert len(layers) == 26 + 3  # three shortcuts of 1x1


def test_spatial_transformer_starts_at_the_identity() -> None:
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(SpatialTransformer(3, 16, 16)(x), x)


def test_spatial_transformer_shifts_by_the_grid_that_it_is_told() -> None:
    x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    layer = SpatialTransformer(1, 8, 8)
    with torch.no_grad():
        layer.affine.bias[2] = 2 / 8  # one pixel of eight, in units of half the width
    torch.testing.assert_close(layer(x)[..., :-1], x[..., 1:])


def test_unknown_architecture_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(
        InputError, match=r"^unknown architecture 'vgg61': expected one of [^\n]*did you mean 'vgg16'\?$"
    ):
        build("vgg61", random_data((3, 32, 32)), 0)


def too_small(name: str, shape: tuple[int, int, int]) -> str:
    least = LEAST[name]
    return (
        rf"^architecture '{name}': expected images of at least {least}x{least}, "
        rf"got {shape[1]}x{shape[2]}; choose [^\n]+$"
    )


def fitting(name: str, count: int = 20) -> Data:
    """Colour images that the net can take, 32x32 where it can."""
    size = max(32, LEAST.get(name, 1))
    return random_data((3, size, size), count=count)


def random_data(shape: tuple[int, int, int], classes: int = 10, count: int = 20) -> Data:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)
    return Data(images, torch.arange(count) % classes, classes)


def forward(net: nn.Module, data: Data) -> Tensor:
    logits: Tensor = net(data.batch(slice(None))[0])
    return logits


def first_layer(net: nn.Module) -> Normalize:
    layer = net.get_submodule("0")
    assert isinstance(layer, Normalize)
    return layer


def inner(net: nn.Module) -> nn.Sequential:
    layers = net.get_submodule("1")
    assert isinstance(layers, nn.Sequential)
    return layers


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (2, 3)])
def test_pooling_is_torchs_to_the_bit(dtype: torch.dtype, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, *size).relu().mul(4).round().to(dtype)  # with many ties
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    pooled, expected = MaxPool()(ours), torch.nn.functional.max_pool2d(theirs, 2)
    weight = torch.randn(expected.shape).to(dtype)
    pooled.backward(weight)
    expected.backward(weight)
    assert torch.equal(pooled, expected)
    assert torch.equal(MaxPool()(x), expected)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize(
    ("name", "params", "shape", "weights"),
    [
        ("wrn", {"depth": 16, "widen": 8}, (3, 32, 32), 10_961_370),  # WRN-16-8 has 11.0 M (Zagoruyko 2016, Table 4)
        ("wrn", {"depth": 28, "widen": 10}, (3, 32, 32), 36_479_194),  # its default
        ("model_a", {"released": True}, (3, 96, 96), 2_166_282),
        ("stn", {"released": True, "kernels": (5, 3, 1)}, (1, 32, 32), 547_996),
        ("stn", {"grey": True}, (3, 32, 32), 1_095_176),
        ("stn", {}, (1, 32, 32), 1_095_176),
    ],
)
def test_hyperparameters_of_nets(name: str, params: dict[str, Any], shape: tuple[int, int, int], weights: int) -> None:
    data = random_data(shape, count=4)
    net = build(name, data, 0, params)
    assert forward(net, data).shape == (4, 10)
    assert sum(weight.numel() for weight in net.parameters()) == weights


def test_grey_is_the_luma() -> None:
    x = torch.rand(2, 3, 8, 8)
    grey = Grey()(x)
    assert grey.shape == (2, 1, 8, 8)
    torch.testing.assert_close(Grey()(torch.ones(1, 3, 4, 4)), torch.ones(1, 1, 4, 4))
    assert torch.equal(Grey()(grey), grey)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("wrn", {"depth": 17}, r"depth of architecture 'wrn': expected 6n \+ 4, such as 10, 16, 22 or 28, got 17"),
        ("wrn", {"width": 4}, "unknown hyperparameter of architecture wrn 'width': expected one of depth, widen"),
        ("wrn", {"widen": 0}, "hyperparameter 'widen' of architecture wrn: expected .*greater than or equal to 1"),
        ("stn", {"kernels": [5, 3]}, "hyperparameter 'kernels' of architecture stn"),
        ("stn", {"kernels": [31, 3, 1], "released": True}, "expected larger images or smaller kernels"),
        ("vgg16", {"depth": 19}, "unknown hyperparameter of architecture vgg16 'depth'"),
    ],
)
def test_bad_hyperparameters_of_nets_are_one_line(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(name, random_data((3, 32, 32)), 0, params)


def test_default_values_are_none_in_a_key() -> None:
    make = registry().load("architecture", "wrn")
    assert net_values(make, {}) is None
    assert net_values(make, {"depth": 28}) is None
    assert net_values(make, {"depth": 16}) == {"depth": 16, "widen": 10}


def test_a_function_may_take_any_shape(tmp_path: Path) -> None:
    text = "from torch import nn\nclass Any(nn.Sequential):\n    def __init__(self, *shape, depth=2):\n"
    text += "        super().__init__(nn.Flatten(), nn.Linear(depth * 18, shape[3]))\n"
    (tmp_path / "own.py").write_text(text)
    net = build(f"{tmp_path}/own.py:Any", Data(torch.rand(4, 1, 6, 6), torch.arange(4) % 3, 3, "x"), 0, {"depth": 2})
    assert net(torch.rand(2, 1, 6, 6)).shape == (2, 3)
