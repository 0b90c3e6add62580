"""Conformance suites for plugin authors: inherit one and supply a fixture to test every contract.

    from advbench.testing import AttackConformance

    class TestMyAttack(AttackConformance):
        @pytest.fixture
        def attack(self):
            return MyAttack(steps=3)

They need pytest, which is not a dependency of advbench itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advbench.attacks.ball import distances
from advbench.attacks.base import Attack, Threat
from advbench.attacks.craft import craft
from advbench.attacks.losses import entropy
from advbench.audit.run import audit
from advbench.data.base import Data
from advbench.errors import InputError
from advbench.models.classifier import Classifier
from advbench.models.posterior import GaussianPosterior
from advbench.models.saving import export_classifier, load_classifier, read_tensors, tensor_bytes
from advbench.training.base import Defense, Resources, TrainContext

TOLERANCE = 1e-6


def small_net(classes: int = 3, channels: int = 1, height: int = 6, width: int = 6) -> nn.Sequential:
    """Build a net with one of each common layer and fixed weights, by default for 6x6 images."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(channels, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Flatten(),
            nn.Linear(4 * height * width, classes),
        )


class _Scale(nn.Module):
    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        return x.sub_(0.1).div_(0.5) if self.in_place else (x - 0.1) / 0.5


def _scaling(net: nn.Module, *, in_place: bool) -> nn.Module:
    """A copy of a net that scales its input first, as `InPlace` does, with the same submodules and names of weights."""
    copied = copy.deepcopy(net)
    copied.register_forward_pre_hook(partial(_scale, in_place))
    return copied


def _scale(in_place: bool, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    x = args[0]
    return (x.sub_(0.1).div_(0.5) if in_place else (x - 0.1) / 0.5, *args[1:])


class InPlace(nn.Sequential):
    """A net that may change its input in place, like nets that normalise by `x.sub_(mean).div_(std)`.

    Args:
        net: net applied to the normalised images.
        in_place: True to change the input in place.
    """

    def __init__(self, net: nn.Module, *, in_place: bool = True) -> None:
        super().__init__(_Scale(in_place=in_place), net)


class _Cast(nn.Module):
    def __init__(self, net: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.net = net
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x).to(self.dtype)
        return logits


def small_data(count: int = 48, classes: int = 3, channels: int = 1) -> Data:
    """Build images of 6x6 pixels in which a bright band of rows marks the class."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % classes
    images = 0.4 * torch.rand((count, channels, 6, 6), generator=generator)
    for label in range(classes):
        images[labels == label, :, 2 * label : 2 * label + 2] += 0.5
    return Data(images, labels, classes, "small")


def net_for(data: Data) -> nn.Sequential:
    """`small_net` for the images of `data`."""
    return small_net(data.classes, *data.shape)


UNSEEDED = "draw random numbers from the given generator or seed only, not from torch's global state"
COPY = "work on a copy, x = x.clone()"
FLOAT32 = "logits must be finite float32 numbers of shape (batch, classes)"


class AttackConformance:
    """Tests of an attack on a deterministic and on a random classifier.

    Attributes:
        classes: number of the classifier's classes.
        channels: number of the images' channels.
    """

    classes = 3
    channels = 1

    @pytest.fixture
    def attack(self) -> Attack:
        """The attack under test, with cheap hyperparameters."""
        raise NotImplementedError("supply the fixture 'attack'")

    @pytest.fixture
    def data(self) -> Data:
        """The images to attack; by default `small_data()` with `classes` and `channels`."""
        return small_data(classes=self.classes, channels=self.channels)

    @pytest.fixture(params=["deterministic", "random"])
    def clf(self, request: pytest.FixtureRequest, data: Data) -> Classifier:
        """The classifier to attack."""
        net = net_for(data).eval()
        if request.param == "deterministic":
            return Classifier(net).requires_grad_(False)
        return Classifier(net, GaussianPosterior(net, std=0.05)).requires_grad_(False)

    @pytest.fixture(params=["linf", "l2"])
    def threat(self, request: pytest.FixtureRequest, attack: Attack) -> Threat:
        """A threat in each norm that the attack supports."""
        if request.param not in attack.norms:
            pytest.skip(f"the attack does not support {request.param}")
        return Threat(request.param, 0.1 if request.param == "linf" else 0.5)

    def test_presets_are_valid(self, attack: Attack) -> None:
        """Every preset has known hyperparameters and valid values; one named after a data set is its default."""
        for name in type(attack).presets:
            type(attack).resolve({"preset": name})

    @pytest.mark.parametrize("count", [1, 3, 8])
    def test_stays_in_ball_and_box(
        self, attack: Attack, clf: Classifier, threat: Threat, count: int, data: Data
    ) -> None:
        """Examples stay in the ball and in [0, 1], also for pixels at 1 and for batches of 1, 3 and 8."""
        x, y = data.batch(slice(count))
        x = torch.where(x > 0.6, torch.ones_like(x), x)
        x_adv = attack(clf, x, y, threat)
        assert x_adv.shape == x.shape, "run returned images of another shape; return examples shaped as x"
        assert x_adv.dtype == x.dtype, "run returned another dtype; return examples with the dtype of x"
        inside = float(x_adv.min()) >= -TOLERANCE and float(x_adv.max()) <= 1 + TOLERANCE
        assert inside, "examples leave [0, 1]; project them with advbench.attacks.project"
        farthest = float(distances(x_adv, x, threat).max())
        assert farthest <= threat.eps + TOLERANCE, "examples leave the ball; project them with advbench.attacks.project"

    def test_same_seed_same_examples(self, attack: Attack, clf: Classifier, threat: Threat, data: Data) -> None:
        """Examples depend on the seed, not on the global random state or on earlier draws."""
        x, y = data.batch(slice(8))
        first = attack(clf, x, y, threat, seed=5)
        torch.manual_seed(99)
        clf(x)
        assert torch.equal(first, attack(clf, x, y, threat, seed=5)), f"the same seed gives other examples; {UNSEEDED}"

    def test_reaches_what_it_aims_at(self, attack: Attack, threat: Threat, data: Data) -> None:
        """On a deterministic classifier, no example of an uncertainty attack scores worse than the image itself."""
        if attack.aim == "error":
            pytest.skip("the attack aims at errors only")
        x, y = data.batch(slice(8))
        clf = Classifier(net_for(data).eval()).requires_grad_(False)
        found = attack(clf, x, y, threat)
        with torch.no_grad():
            before, after = clf(x), clf(found)
        rise = entropy(after.log_softmax(1)) - entropy(before.log_softmax(1))
        wrong = before.argmax(1) != y
        if attack.aim == "doubt":
            same = torch.equal(before.argmax(1), after.argmax(1))
            assert same, "aim 'doubt' changed predictions; keep the last point at which the prediction is unchanged"
            assert float(rise.min()) >= -TOLERANCE, (
                "aim 'doubt' lowered the entropy; return the best point, or the image"
            )
        elif attack.aim == "certainty":
            assert float(rise.max()) <= TOLERANCE, (
                "aim 'certainty' raised the entropy; return the best point, or the image"
            )
        else:
            still = bool((after.argmax(1) != y)[wrong].all())
            assert still, "images that were wrong became right; return the best point, or the image"
            raised = float(rise[wrong].clamp_min(0).sum())
            assert raised <= TOLERANCE, "errors became less certain; return the best point, or the image"

    def test_leaves_everything_as_it_was(self, attack: Attack, threat: Threat, data: Data) -> None:
        """An attack leaves images, modes, parameters, gradients and the global random state unchanged."""
        x, y = data.batch(slice(8))
        given = x.clone()
        net = net_for(data)
        net[0].requires_grad_(False)
        net[3].train()
        net[1].eval()
        modes = {name: module.training for name, module in net.named_modules()}
        needs = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
        values = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        state = torch.get_rng_state()
        attack(net, x, y, threat)
        assert torch.equal(x, given), f"run changed the images that it was given; {COPY}"
        modes_after = {name: module.training for name, module in net.named_modules()}
        assert modes == modes_after, "run changed the modes of the net; do not call train() or eval()"
        needs_after = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
        assert needs == needs_after, "run changed requires_grad of weights; use clf.input_gradient"
        clean = all(parameter.grad is None for parameter in net.parameters())
        assert clean, "run left gradients on the weights; use clf.input_gradient in place of backward()"
        kept = all(torch.equal(values[name], tensor) for name, tensor in net.state_dict().items())
        assert kept, "run changed weights or buffers of the net; attack a copy if it has to change"
        assert torch.equal(state, torch.get_rng_state()), f"run changed the global random state; {UNSEEDED}"

    def test_eps_zero_gives_the_images(self, attack: Attack, clf: Classifier, threat: Threat, data: Data) -> None:
        """At eps 0 an attack returns the images."""
        x, y = data.batch(slice(3))
        found = attack(clf, x, y, Threat(threat.norm, 0.0))
        assert torch.equal(found, x), "examples at eps 0 differ from the images; scale every step and start by eps"

    def test_batches_are_independent(self, attack: Attack, clf: Classifier, threat: Threat, data: Data) -> None:
        """The examples of a batch do not depend on later batches."""
        x, y = data.batch(slice(8))
        both = craft(attack, clf, x, y, threat, batch_size=4).images
        alone = craft(attack, clf, x[:4], y[:4], threat, batch_size=4).images
        assert torch.equal(both[:4], alone), (
            "a later batch changed earlier examples; keep no state between calls of run"
        )

    def test_models_that_work_in_place(self, attack: Attack, threat: Threat, data: Data) -> None:
        """Models that work in place receive copies: same examples, and the caller's images are unchanged."""
        x, y = data.batch(slice(8))
        given, net = x.clone(), net_for(data).eval()
        found = attack(InPlace(net), x, y, threat)
        assert torch.equal(x, given), f"run changed the images that it was given; {COPY}"
        expected = attack(InPlace(net, in_place=False), x, y, threat)
        assert torch.equal(found, expected), (
            "a net that works in place gives other examples; call it on copies of x_adv"
        )

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_models_of_another_precision(self, attack: Attack, threat: Threat, dtype: torch.dtype, data: Data) -> None:
        """The dtype of the examples is that of the images, whatever the dtype of the logits."""
        x, y = data.batch(slice(8))
        net = _Cast(net_for(data).eval(), dtype)
        for posterior in (None, GaussianPosterior(net, std=0.05)):
            found = attack(Classifier(net, posterior), x, y, threat)
            assert found.dtype == x.dtype, f"logits in {dtype} give examples in {found.dtype}; keep the dtype of x"

    def test_stops_early_only_what_may(self, attack: Attack, clf: Classifier, threat: Threat, data: Data) -> None:
        """Early stopping costs no more passes than declared; without support for it, examples are the same."""
        x, y = data.batch(slice(8))
        whole = craft(attack, clf, x, y, threat)
        early = craft(attack, clf, x, y, threat, stop_early=True)
        said = attack.cost(clf.stochastic)
        made = f"{early.forward_passes:g} forward passes per image, cost() declares {said}"
        assert said is None or early.forward_passes <= said, f"{made}; raise cost, an upper bound"
        if not attack.stops_early:
            same = torch.equal(early.images, whole.images) and early.forward_passes == whole.forward_passes
            assert same, "the attack stops early without declaring it; set stops_early = True"

    def test_tabular_images(self, attack: Attack, threat: Threat) -> None:
        """Vectors in place of images are attacked, or refused with a one-line error that names the images."""
        generator = torch.Generator().manual_seed(0)
        x, y = torch.rand((4, 6), generator=generator), torch.arange(4) % self.classes
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            net = nn.Linear(6, self.classes)
        try:
            found = attack(net, x, y, threat)
            assert found.shape == x.shape, "run returned another shape; return examples shaped as x"
        except InputError as error:
            named = str(error).startswith("images given to ")
            assert named, f"expected a message that begins with 'images given to', got: {error}"  # noqa: PT017

    def test_chunks_change_by_rounding_alone(self, attack: Attack, clf: Classifier, threat: Threat, data: Data) -> None:
        """Chunks of a batch use the same draws: nearly all pixels agree."""
        x, y = data.batch(slice(8))
        whole = attack(clf, x, y, threat)
        clf.chunk = 3
        # A minimal-norm search ends with a bisection, where rounding may choose the other half.
        cut = attack(clf, x, y, threat)
        same = float(torch.isclose(cut, whole, atol=1e-5).float().mean())
        chunks = "examples depend on the chunks of a batch; pass goal.rows to the classifier and its gradients"
        assert same > (0.7 if attack.minimal_norm else 0.97), chunks
        close = torch.isclose(cut, whole, atol=5e-3 if attack.minimal_norm else 1e-5)
        assert float(close.float().mean()) > 0.97, chunks


class _InterruptionError(Exception):
    pass


class _InterruptingSlot:
    """A checkpoint slot in memory that interrupts the training at its n-th save."""

    def __init__(self, saves: int) -> None:
        self.left = saves
        self._saved: tuple[bytes, dict[str, Any]] | None = None

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        if self._saved is None:
            return None
        return read_tensors(self._saved[0]), self._saved[1]

    def save(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self._saved = tensor_bytes(tensors), dict(values)
        self.left -= 1
        if self.left == 0:
            raise _InterruptionError


def same_weights(one: Classifier, other: Classifier) -> bool:
    """True if two classifiers have bit-identical tensors."""
    first, second = export_classifier(one)[0], export_classifier(other)[0]
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class DefenseConformance:
    """Tests of a training method; fast if its hyperparameters train for a few steps only."""

    @pytest.fixture
    def defense(self) -> Defense:
        """The training method under test, with cheap hyperparameters."""
        raise NotImplementedError("supply the fixture 'defense'")

    @pytest.fixture
    def module(self, data: Data) -> nn.Module:
        """The net to train, in training mode; by default `small_net` for the images of `data`."""
        return net_for(data)

    @pytest.fixture
    def data(self) -> Data:
        """The training images; by default `small_data()`."""
        return small_data()

    def test_presets_are_valid(self, defense: Defense) -> None:
        """Every preset has known hyperparameters and valid values; one named after a data set is its default."""
        for name in type(defense).presets:
            type(defense).resolve({"preset": name})

    def test_gives_a_classifier(self, defense: Defense, module: nn.Module, data: Data) -> None:
        """`fit` returns a classifier with finite logits of the right shape."""
        clf = defense.fit(module, data)
        x, _ = data.batch(slice(5))
        assert isinstance(clf, Classifier), f"fit returned a {type(clf).__name__}; return Classifier(module)"
        assert clf.draws(x, 2).shape == (2, len(x), data.classes), f"fit's classifier: {FLOAT32}"
        assert bool(clf(x).isfinite().all()), f"fit's classifier: {FLOAT32}; lower lr if training diverges"

    def test_same_seed_same_classifier(self, defense: Defense, module: nn.Module, data: Data) -> None:
        """Weights depend on the seed, not on the global random state, which stays unchanged."""
        first = defense.fit(copy.deepcopy(module), data, TrainContext(seed=3))
        torch.manual_seed(99)
        state = torch.get_rng_state()
        second = defense.fit(copy.deepcopy(module), data, TrainContext(seed=3))
        seeded = "seed random numbers by context.generator(...), or draw them in advbench.training.isolated_rng"
        assert torch.equal(state, torch.get_rng_state()), f"fit changed the global random state; {seeded}"
        assert same_weights(first, second), f"fit gives other weights for the same seed; {seeded}"

    def test_another_seed_another_classifier(self, defense: Defense, module: nn.Module, data: Data) -> None:
        """Training depends on the seed, unless `passes_per_image` is 0: nothing is trained."""
        found = [defense.fit(copy.deepcopy(module), data, TrainContext(seed=seed)) for seed in (3, 4)]
        if defense.passes_per_image() == 0 and same_weights(*found):
            pytest.skip("nothing is trained")
        assert not same_weights(*found), "equal weights; where nothing is trained, passes_per_image returns 0"

    def test_leaves_module_and_data(self, defense: Defense, module: nn.Module, data: Data) -> None:
        """`fit` leaves the weights and modes of the module, and the training images and labels, unchanged."""
        images, labels = data.images.clone(), data.labels.clone()
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        modes = [part.training for part in module.modules()]
        defense.fit(module, data)
        same = torch.equal(data.images, images) and torch.equal(data.labels, labels)
        assert same, "fit changed the training images; train on copies, x.clone()"
        copied = "train a copy, copy.deepcopy(module)"
        kept = all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
        assert kept, f"fit changed weights or buffers of the module that it was given; {copied}"
        assert modes == [part.training for part in module.modules()], f"fit changed modes of the module; {copied}"

    def test_modules_that_work_in_place(self, defense: Defense, module: nn.Module, data: Data) -> None:
        """Models that work in place train to the same weights, and the data are unchanged."""
        given = data.images.clone()
        found = defense.fit(_scaling(module, in_place=True), data, TrainContext(seed=3))
        copied = "pass copies to the net, x.clone()"
        assert torch.equal(data.images, given), (
            f"fit changed the training images, by a net that works in place; {copied}"
        )
        same = same_weights(found, defense.fit(_scaling(module, in_place=False), data, TrainContext(seed=3)))
        assert same, f"a net that works in place trains to other weights; {copied}"

    @pytest.mark.parametrize("saves", [1, 2, 4])
    def test_resumes_bit_for_bit(self, defense: Defense, module: nn.Module, data: Data, saves: int) -> None:
        """A training interrupted at its n-th checkpoint ends with the weights of an uninterrupted one."""
        whole = defense.fit(copy.deepcopy(module), data, TrainContext(seed=3))
        slot = _InterruptingSlot(saves)
        context = TrainContext(seed=3, checkpoint=slot, checkpoint_seconds=0.0)
        try:
            resumed = defense.fit(copy.deepcopy(module), data, context)
        except _InterruptionError:
            slot.left = -1
            resumed = defense.fit(copy.deepcopy(module), data, context)
        remedy = "save all state in context.checkpoint, and seed each step by its number"
        assert same_weights(whole, resumed), f"a resumed training ends with other weights; {remedy}"

    def test_is_stored_without_pickle(self, defense: Defense, module: nn.Module, data: Data) -> None:
        """Exported tensors and JSON values restore the same classifier."""
        clf = defense.fit(copy.deepcopy(module), data)
        tensors, values = export_classifier(clf)
        again = load_classifier(copy.deepcopy(module), read_tensors(tensor_bytes(tensors)), values)
        x, _ = data.batch(slice(5))
        same = torch.equal(clf.reseed(1).draws(x, 3), again.reseed(1).draws(x, 3))
        remedy = "keep its state in weights, buffers, the posterior's export or the noise's values"
        assert same, f"a stored classifier gives other logits when loaded; {remedy}"

    def test_draws_differ_and_frozen_draws_do_not(self, defense: Defense, module: nn.Module, data: Data) -> None:
        """Draws of a random classifier differ, also after `.eval()`; those of a frozen one are equal."""
        clf = defense.fit(module, data).eval()
        x, _ = data.batch(slice(8))
        draws = clf.draws(x, 16)  # two draws from a few samples may be equal
        alike = all(torch.equal(draw, draws[0]) for draw in draws)
        stated = f"the classifier states stochastic = {clf.stochastic}, but 16 draws {'agree' if alike else 'differ'}"
        remedy = (
            "a random classifier needs noise > 0 or a posterior whose draws differ, a deterministic one none of them"
        )
        assert alike != clf.stochastic, f"{stated}; {remedy}; hyperparameters that turn the randomness off need a bound"
        frozen = clf.frozen(7)
        assert not frozen.stochastic, "a frozen classifier is random; its posterior must be fixed by a draw"
        fixed = torch.equal(frozen(x), frozen(x)) and torch.equal(frozen(x), clf.frozen(7)(x))
        assert fixed, "a frozen classifier gives other logits in a second call; draw from the seeded generator only"
        alike = all(torch.equal(frozen(x), clf.frozen(seed)(x)) for seed in range(16))
        assert alike != clf.stochastic, f"classifiers frozen at 16 seeds {'agree' if alike else 'differ'}; {remedy}"

    def test_answers_alike_however_it_is_asked(self, defense: Defense, module: nn.Module, data: Data) -> None:
        """The exact checks of an audit: a draw gives the same logits with gradients, in other batches and orders."""
        x, y = data.batch(slice(24))
        found = audit(defense.fit(module, data), x, y, Threat("linf", 0.1), quick=True)
        failed = [each for each in found.failed if each.p is None]
        assert not failed, failed[0].sentence

    def test_trains_in_bfloat16(self, defense: Defense, module: nn.Module, data: Data) -> None:
        """Training in bfloat16 gives a classifier with finite float32 logits."""
        context = TrainContext(precision="bfloat16", resources=Resources(threads=1))
        clf = defense.fit(module, data, context)
        x, _ = data.batch(slice(4))
        assert clf(x).dtype == torch.float32, f"after training in bfloat16: {FLOAT32}; keep weights and losses float32"
        assert bool(clf(x).isfinite().all()), f"after training in bfloat16: {FLOAT32}; compute losses in float32"


class ArchitectureConformance:
    """Tests of a function that builds a net."""

    @pytest.fixture
    def make(self) -> Callable[[], nn.Module]:
        """Function that builds the net for the images of `data`, with the same weights each time."""
        raise NotImplementedError("supply the fixture 'make'")

    @pytest.fixture
    def data(self) -> Data:
        """Images for the net; by default `small_data()`."""
        return small_data()

    def test_gives_finite_logits(self, make: Callable[[], nn.Module], data: Data) -> None:
        """Logits `(batch, classes)` in float32, for a batch of one as well."""
        for count in (1, 5):
            x, _ = data.batch(slice(count))
            logits = make().eval()(x)
            got = f"{tuple(logits.shape)}, {logits.dtype}"
            assert logits.shape == (count, data.classes), f"{FLOAT32}, here ({count}, {data.classes}); got {got}"
            assert logits.dtype == torch.float32, f"{FLOAT32}; got {got}"
            assert bool(logits.isfinite().all()), f"{FLOAT32}; got NaN or infinity"

    def test_same_weights_each_time(self, make: Callable[[], nn.Module]) -> None:
        """Weights depend on the seed only."""
        first = make().state_dict()
        torch.manual_seed(99)
        second = make().state_dict()
        same = first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
        assert same, "a second net has other weights; draw them from torch's generator only, not numpy's or random's"

    def test_gradients_reach_images_and_weights(self, make: Callable[[], nn.Module], data: Data) -> None:
        """Gradients are non-zero at the images, for attacks, and at the weights, for training."""
        x, y = data.batch(slice(8))
        net = make().train()
        x.requires_grad_()
        nn.functional.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
        reached = x.grad is not None and bool((x.grad != 0).any())
        assert reached, "no gradient reaches the images; remove detach(), no_grad(), rounding or argmax from forward"
        unused = [name for name, weight in net.named_parameters() if weight.grad is None]
        assert not unused, f"no gradient reaches {', '.join(unused)}; use these weights in forward, or remove them"

    def test_deterministic_in_evaluation(self, make: Callable[[], nn.Module], data: Data) -> None:
        """The net is deterministic in evaluation mode; randomness belongs to the `noise` of a defense."""
        x, _ = data.batch(slice(5))
        net = make().eval()
        remedy = "randomness belongs to the `noise` of a defense"
        assert torch.equal(net(x), net(x)), f"two passes in evaluation mode differ; {remedy}"

    def test_images_do_not_depend_on_their_batch(self, make: Callable[[], nn.Module], data: Data) -> None:
        """Logits of an image in evaluation mode do not depend on the batch."""
        x, _ = data.batch(slice(5))
        net = make().eval()
        if not torch.equal(net(x), net(x)):
            pytest.skip("the net is random by itself, as another test says")
        alike = torch.allclose(net(x)[:2], net(x[:2]), atol=1e-5)
        assert alike, "logits depend on other images of the batch; use no batch statistics in evaluation mode"
