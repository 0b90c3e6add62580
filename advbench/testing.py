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


def small_net(classes: int = 3, channels: int = 1) -> nn.Sequential:
    """Build a net for 6x6 images with one of each common layer and fixed weights."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(channels, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Flatten(),
            nn.Linear(144, classes),
        )


class _Scale(nn.Module):
    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        return x.sub_(0.1).div_(0.5) if self.in_place else (x - 0.1) / 0.5


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

    @pytest.fixture(params=["deterministic", "random"])
    def clf(self, request: pytest.FixtureRequest) -> Classifier:
        """The classifier to attack."""
        net = small_net(self.classes, self.channels).eval()
        if request.param == "deterministic":
            return Classifier(net).requires_grad_(False)
        return Classifier(net, GaussianPosterior(net, std=0.05)).requires_grad_(False)

    @pytest.fixture(params=["linf", "l2"])
    def threat(self, request: pytest.FixtureRequest, attack: Attack) -> Threat:
        """A threat in each norm that the attack supports."""
        if request.param not in attack.norms:
            pytest.skip(f"the attack does not support {request.param}")
        return Threat(request.param, 0.1 if request.param == "linf" else 0.5)

    @pytest.mark.parametrize("count", [1, 3, 8])
    def test_stays_in_ball_and_box(self, attack: Attack, clf: Classifier, threat: Threat, count: int) -> None:
        """Examples stay in the ball and in [0, 1], also for pixels at 1 and for batches of 1, 3 and 8."""
        x, y = small_data(classes=self.classes, channels=self.channels).batch(slice(count))
        x = torch.where(x > 0.6, torch.ones_like(x), x)
        x_adv = attack(clf, x, y, threat)
        assert x_adv.shape == x.shape
        assert x_adv.dtype == x.dtype
        assert float(x_adv.min()) >= -TOLERANCE
        assert float(x_adv.max()) <= 1 + TOLERANCE
        assert float(distances(x_adv, x, threat).max()) <= threat.eps + TOLERANCE

    def test_same_seed_same_examples(self, attack: Attack, clf: Classifier, threat: Threat) -> None:
        """Examples depend on the seed, not on the global random state or on earlier draws."""
        x, y = small_data(classes=self.classes, channels=self.channels).batch(slice(8))
        first = attack(clf, x, y, threat, seed=5)
        torch.manual_seed(99)
        clf(x)
        assert torch.equal(first, attack(clf, x, y, threat, seed=5))

    def test_reaches_what_it_aims_at(self, attack: Attack, threat: Threat) -> None:
        """On a deterministic classifier, no example of an uncertainty attack scores worse than the image itself."""
        if attack.aim == "error":
            pytest.skip("the attack aims at errors only")
        x, y = small_data(classes=self.classes, channels=self.channels).batch(slice(8))
        clf = Classifier(small_net(self.classes, self.channels).eval()).requires_grad_(False)
        found = attack(clf, x, y, threat)
        with torch.no_grad():
            before, after = clf(x), clf(found)
        rise = entropy(after.log_softmax(1)) - entropy(before.log_softmax(1))
        wrong = before.argmax(1) != y
        if attack.aim == "doubt":
            assert torch.equal(before.argmax(1), after.argmax(1))
            assert float(rise.min()) >= -TOLERANCE
        elif attack.aim == "certainty":
            assert float(rise.max()) <= TOLERANCE
        else:
            assert bool((after.argmax(1) != y)[wrong].all())
            assert float(rise[wrong].clamp_min(0).sum()) <= TOLERANCE

    def test_leaves_everything_as_it_was(self, attack: Attack, threat: Threat) -> None:
        """An attack leaves images, modes, parameters, gradients and the global random state unchanged."""
        x, y = small_data(classes=self.classes, channels=self.channels).batch(slice(8))
        given = x.clone()
        net = small_net(self.classes, self.channels)
        net[0].requires_grad_(False)
        net[3].train()
        net[1].eval()
        modes = {name: module.training for name, module in net.named_modules()}
        needs = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
        values = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        state = torch.get_rng_state()
        attack(net, x, y, threat)
        assert torch.equal(x, given)
        assert modes == {name: module.training for name, module in net.named_modules()}
        assert needs == {name: parameter.requires_grad for name, parameter in net.named_parameters()}
        assert all(parameter.grad is None for parameter in net.parameters())
        assert all(torch.equal(values[name], tensor) for name, tensor in net.state_dict().items())
        assert torch.equal(state, torch.get_rng_state())

    def test_eps_zero_gives_the_images(self, attack: Attack, clf: Classifier, threat: Threat) -> None:
        """At eps 0 an attack returns the images."""
        x, y = small_data(classes=self.classes, channels=self.channels).batch(slice(3))
        assert torch.equal(attack(clf, x, y, Threat(threat.norm, 0.0)), x)

    def test_batches_are_independent(self, attack: Attack, clf: Classifier, threat: Threat) -> None:
        """The examples of a batch do not depend on later batches."""
        x, y = small_data(classes=self.classes, channels=self.channels).batch(slice(8))
        both = craft(attack, clf, x, y, threat, batch_size=4).images
        assert torch.equal(both[:4], craft(attack, clf, x[:4], y[:4], threat, batch_size=4).images)

    def test_models_that_work_in_place(self, attack: Attack, threat: Threat) -> None:
        """Models that work in place receive copies: same examples, and the caller's images are unchanged."""
        x, y = small_data(classes=self.classes, channels=self.channels).batch(slice(8))
        given, net = x.clone(), small_net(self.classes, self.channels).eval()
        found = attack(InPlace(net), x, y, threat)
        assert torch.equal(x, given)
        assert torch.equal(found, attack(InPlace(net, in_place=False), x, y, threat))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_models_of_another_precision(self, attack: Attack, threat: Threat, dtype: torch.dtype) -> None:
        """The dtype of the examples is that of the images, whatever the dtype of the logits."""
        x, y = small_data(classes=self.classes, channels=self.channels).batch(slice(8))
        net = _Cast(small_net(self.classes, self.channels).eval(), dtype)
        for posterior in (None, GaussianPosterior(net, std=0.05)):
            assert attack(Classifier(net, posterior), x, y, threat).dtype == x.dtype

    def test_stops_early_only_what_may(self, attack: Attack, clf: Classifier, threat: Threat) -> None:
        """Early stopping costs no more passes than declared; without support for it, examples are the same."""
        x, y = small_data(classes=self.classes, channels=self.channels).batch(slice(8))
        whole = craft(attack, clf, x, y, threat)
        early = craft(attack, clf, x, y, threat, stop_early=True)
        said = attack.cost(clf.stochastic)
        assert said is None or early.forward_passes <= said
        if not attack.stops_early:
            assert torch.equal(early.images, whole.images)
            assert early.forward_passes == whole.forward_passes

    def test_tabular_images(self, attack: Attack, threat: Threat) -> None:
        """Vectors in place of images are attacked, or refused with a one-line error that names the images."""
        generator = torch.Generator().manual_seed(0)
        x, y = torch.rand((4, 6), generator=generator), torch.arange(4) % self.classes
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            net = nn.Linear(6, self.classes)
        try:
            assert attack(net, x, y, threat).shape == x.shape
        except InputError as error:
            assert str(error).startswith("images given to ")  # noqa: PT017

    def test_chunks_change_by_rounding_alone(self, attack: Attack, clf: Classifier, threat: Threat) -> None:
        """Chunks of a batch use the same draws: nearly all pixels agree."""
        x, y = small_data(classes=self.classes, channels=self.channels).batch(slice(8))
        whole = attack(clf, x, y, threat)
        clf.chunk = 3
        # A minimal-norm search ends with a bisection, where rounding may choose the other half.
        cut = attack(clf, x, y, threat)
        same = float(torch.isclose(cut, whole, atol=1e-5).float().mean())
        assert same > (0.7 if attack.minimal_norm else 0.97)
        close = torch.isclose(cut, whole, atol=5e-3 if attack.minimal_norm else 1e-5)
        assert float(close.float().mean()) > 0.97


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
    def module(self) -> nn.Module:
        """The net to train, in training mode; by default `small_net()`."""
        return small_net()

    @pytest.fixture
    def data(self) -> Data:
        """The training images; by default `small_data()`."""
        return small_data()

    def test_gives_a_classifier(self, defense: Defense, module: nn.Module, data: Data) -> None:
        """`fit` returns a classifier with finite logits of the right shape."""
        clf = defense.fit(module, data)
        x, _ = data.batch(slice(5))
        assert isinstance(clf, Classifier)
        assert clf.draws(x, 2).shape == (2, len(x), data.classes)
        assert bool(clf(x).isfinite().all())

    def test_same_seed_same_classifier(self, defense: Defense, module: nn.Module, data: Data) -> None:
        """Weights depend on the seed, not on the global random state, which stays unchanged."""
        first = defense.fit(copy.deepcopy(module), data, TrainContext(seed=3))
        torch.manual_seed(99)
        state = torch.get_rng_state()
        second = defense.fit(copy.deepcopy(module), data, TrainContext(seed=3))
        assert torch.equal(state, torch.get_rng_state())
        assert same_weights(first, second)

    def test_another_seed_another_classifier(self, defense: Defense, module: nn.Module, data: Data) -> None:
        """Training depends on the seed, unless `passes_per_image` is 0: nothing is trained."""
        found = [defense.fit(copy.deepcopy(module), data, TrainContext(seed=seed)) for seed in (3, 4)]
        if defense.passes_per_image() == 0 and same_weights(*found):
            pytest.skip("nothing is trained")
        assert not same_weights(*found), "equal weights; where nothing is trained, passes_per_image returns 0"

    def test_leaves_the_module_as_it_was(self, defense: Defense, module: nn.Module, data: Data) -> None:
        """`fit` leaves the weights and modes of the module unchanged."""
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        modes = [part.training for part in module.modules()]
        defense.fit(module, data)
        assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
        assert modes == [part.training for part in module.modules()]

    def test_modules_that_work_in_place(self, defense: Defense, module: nn.Module, data: Data) -> None:
        """Models that work in place train to the same weights, and the data are unchanged."""
        given, twin = data.images.clone(), InPlace(copy.deepcopy(module), in_place=False)
        found = defense.fit(InPlace(copy.deepcopy(module)), data, TrainContext(seed=3))
        assert torch.equal(data.images, given)
        assert same_weights(found, defense.fit(twin, data, TrainContext(seed=3)))

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
        assert same_weights(whole, resumed)

    def test_is_stored_without_pickle(self, defense: Defense, module: nn.Module, data: Data) -> None:
        """Exported tensors and JSON values restore the same classifier."""
        clf = defense.fit(copy.deepcopy(module), data)
        tensors, values = export_classifier(clf)
        again = load_classifier(copy.deepcopy(module), read_tensors(tensor_bytes(tensors)), values)
        x, _ = data.batch(slice(5))
        assert torch.equal(clf.reseed(1).draws(x, 3), again.reseed(1).draws(x, 3))

    def test_draws_differ_and_frozen_draws_do_not(self, defense: Defense, module: nn.Module, data: Data) -> None:
        """Draws of a random classifier differ, also after `.eval()`; those of a frozen one are equal."""
        clf = defense.fit(module, data).eval()
        x, _ = data.batch(slice(8))
        draws = clf.draws(x, 16)  # two draws from a few samples may be equal
        assert all(torch.equal(draw, draws[0]) for draw in draws) != clf.stochastic
        frozen = clf.frozen(7)
        assert not frozen.stochastic
        assert torch.equal(frozen(x), frozen(x))
        assert torch.equal(frozen(x), clf.frozen(7)(x))
        assert all(torch.equal(frozen(x), clf.frozen(seed)(x)) for seed in range(16)) != clf.stochastic

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
        assert clf(x).dtype == torch.float32
        assert bool(clf(x).isfinite().all())


class PretrainedConformance(DefenseConformance):
    """Tests of a pretrained defence, or one with a net of its own; supply `module` and `data` as well.

    `module` is the argument of `fit`, and `data` are images of the classifier's classes.
    """

    @pytest.fixture
    def module(self) -> nn.Module:
        """The net to pass to `fit`."""
        raise NotImplementedError("supply the fixture 'module'")

    @pytest.fixture
    def data(self) -> Data:
        """Images of the classifier's classes."""
        raise NotImplementedError("supply the fixture 'data'")

    @pytest.mark.skip(reason="nothing is trained")
    def test_another_seed_another_classifier(self, defense: Defense, module: nn.Module, data: Data) -> None:
        """Does not apply: nothing is trained."""

    @pytest.mark.skip(reason="nothing is trained")
    def test_modules_that_work_in_place(self, defense: Defense, module: nn.Module, data: Data) -> None:
        """Does not apply: nothing is trained."""

    def test_knows_its_data(self, defense: Defense, module: nn.Module, data: Data) -> None:
        """Accuracy is above chance: weights are loaded, and images in [0, 1] are its expected input."""
        x, y = data.batch(slice(256))
        right = float((defense.fit(module, data).draws(x, 5).softmax(-1).mean(0).argmax(1) == y).float().mean())
        assert right > 1 / data.classes


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
            assert logits.shape == (count, data.classes)
            assert logits.dtype == torch.float32
            assert bool(logits.isfinite().all())

    def test_same_weights_each_time(self, make: Callable[[], nn.Module]) -> None:
        """Weights depend on the seed only."""
        first = make().state_dict()
        torch.manual_seed(99)
        second = make().state_dict()
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_gradients_reach_images_and_weights(self, make: Callable[[], nn.Module], data: Data) -> None:
        """Gradients are non-zero at the images, for attacks, and at the weights, for training."""
        x, y = data.batch(slice(8))
        net = make().train()
        x.requires_grad_()
        nn.functional.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
        assert x.grad is not None
        assert bool((x.grad != 0).any())
        assert [name for name, weight in net.named_parameters() if weight.grad is None] == []

    def test_deterministic_in_evaluation(self, make: Callable[[], nn.Module], data: Data) -> None:
        """The net is deterministic in evaluation mode; randomness belongs to the `noise` of a defence."""
        x, _ = data.batch(slice(5))
        net = make().eval()
        assert torch.equal(net(x), net(x))

    def test_images_do_not_depend_on_their_batch(self, make: Callable[[], nn.Module], data: Data) -> None:
        """Logits of an image in evaluation mode do not depend on the batch."""
        x, _ = data.batch(slice(5))
        net = make().eval()
        assert torch.allclose(net(x)[:2], net(x[:2]), atol=1e-5)
