"""Ratios against floors measured in the same run: `tox -e bench`. A floor is the bare passes that are needed."""

from __future__ import annotations

import copy
import functools
import itertools
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pretend import DEVICE, Counts, pretended
from rich.console import Console
from torch import Tensor

import advbench
from advbench.attacks.base import Threat
from advbench.attacks.craft import Earlier, craft
from advbench.attacks.losses import cross_entropy
from advbench.cli.display import Display
from advbench.data.base import Data
from advbench.grid.execution import Execution
from advbench.grid.run import carry_out, prepare
from advbench.grid.scheduler import outstanding
from advbench.grid.spec import make_spec
from advbench.models.classifier import Classifier
from advbench.models.nets import ImageConv2d, MaxPool, build
from advbench.models.posterior import GaussianPosterior, perceptron
from advbench.testing import small_data, small_net
from advbench.training.base import Resources, TrainContext

pytestmark = pytest.mark.bench
DATA = Data(torch.rand((256, 1, 28, 28), generator=torch.Generator().manual_seed(0)), torch.arange(256) % 10, 10)


def ratio(
    benchmark: Any,
    subject: Callable[[], object],
    floor: Callable[[], object],
    rounds: int = 9,
    clock: Callable[[], float] = time.process_time,
) -> float:
    """Median over pairs of (subject / floor), the two in turn and in either order; kept with the benchmark's record.

    In seconds of this process on its cores, which others on the machine disturb less than those on the wall.
    """
    subject()
    floor()
    pairs = []
    for index in range(rounds):
        first = seconds(floor if index % 2 else subject, clock)
        second = seconds(subject if index % 2 else floor, clock)
        pairs.append((second, first) if index % 2 else (first, second))
    benchmark.pedantic(subject, rounds=1)
    value = statistics.median(a / b for a, b in pairs)
    benchmark.extra_info["ratio to floor"] = round(value, 3)
    sys.stdout.write(f"\n{benchmark.name}: {value:.3f} of its floor\n")
    return value


def seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    started = clock()
    work()
    return clock() - started


def bare_passes(net: torch.nn.Module, x: Tensor, y: Tensor, count: int) -> None:
    for _ in range(count):
        leaf = x.detach().requires_grad_(True)
        torch.autograd.grad(F.cross_entropy(net(leaf), y, reduction="sum"), leaf)


def passes_at(net: torch.nn.Module, points: list[Tensor], y: Tensor) -> None:
    """A bare pass at each of an attack's own points: how fast a kernel is depends on the signs that it meets."""
    for x in points:
        bare_passes(net, x, y, 1)


def points_of(attack: Any, clf: Classifier, x: Tensor, y: Tensor, threat: Threat) -> list[Tensor]:
    """The images at which an attack asks for gradients."""
    points: list[Tensor] = []
    handle = clf.module.register_forward_pre_hook(lambda module, args: points.append(args[0].detach().clone()))
    attack(clf, x, y, threat)
    handle.remove()
    return [point for point in points if point.shape == x.shape]


def test_pgd_20_on_a_deterministic_net(benchmark: Any) -> None:
    net = build("bal_cnn", DATA, 0).eval().requires_grad_(False)
    x, y = DATA.batch(slice(None))
    attack, clf, threat = advbench.get_attack("pgd"), Classifier(net), Threat("linf", 0.1)
    points = points_of(attack, clf, x, y, threat)
    assert len(points) == 20
    found = ratio(benchmark, lambda: attack(clf, x, y, threat), lambda: passes_at(net, points, y))
    assert found < 1.3


def test_eot_pgd_20_x_10_on_a_random_net(benchmark: Any) -> None:
    net = build("bal_cnn", DATA, 0).eval()
    clf = Classifier(net, GaussianPosterior(net)).requires_grad_(False)
    x, y = DATA.batch(slice(None))
    attack, threat = advbench.get_attack("eot_pgd"), Threat("linf", 0.1)
    points = points_of(attack, clf, x, y, threat)
    assert len(points) == 200
    found = ratio(benchmark, lambda: attack(clf, x, y, threat), lambda: passes_at(net, points, y), rounds=5)
    assert found < 1.3


# Small nets, on which what surrounds a pass costs most.


def small(name: str) -> tuple[torch.nn.Module, Tensor, Tensor]:
    """The digits' net, or one on 28x28 images; and 256 images for it."""
    data = advbench.load_dataset("digits").test if name == "digits" else DATA
    net = build("small_cnn" if name == "digits" else name, data, 0).eval().requires_grad_(False)
    return net, *data.batch(slice(256))


def random_small(name: str) -> tuple[torch.nn.Module, Classifier, Tensor, Tensor]:
    net, x, y = small(name)
    return net, Classifier(net, GaussianPosterior(net)).requires_grad_(False), x, y


def test_pgd_20_on_the_digits_net(benchmark: Any) -> None:
    net, x, y = small("digits")
    attack, clf, threat = advbench.get_attack("pgd"), Classifier(net), Threat("linf", 0.1)
    points = points_of(attack, clf, x, y, threat)
    found = ratio(benchmark, lambda: attack(clf, x, y, threat), lambda: passes_at(net, points, y), rounds=31)
    assert found < 1.1


@pytest.mark.parametrize(("name", "most"), [("digits", 1.15), ("fcnn2", 1.4)])
def test_eot_on_small_gaussian_nets(benchmark: Any, name: str, most: float) -> None:
    net, clf, x, y = random_small(name)
    attack, threat = advbench.get_attack("eot_pgd"), Threat("linf", 0.1)
    points = points_of(attack, clf, x, y, threat)
    assert len(points) == 200
    assert ratio(benchmark, lambda: attack(clf, x, y, threat), lambda: passes_at(net, points, y), rounds=7) < most


@pytest.mark.parametrize(("name", "count", "most"), [("digits", 1, 1.15), ("fcnn2", 4, 1.4)])
def test_evaluation_of_small_gaussian_nets(benchmark: Any, name: str, count: int, most: float) -> None:
    net, clf, x, y = random_small(name)
    images, labels = x.repeat(count, 1, 1, 1), y.repeat(count)

    @torch.no_grad()
    def floor() -> None:
        for _ in range(20):
            for part in images.split(256):
                net(part)

    assert ratio(benchmark, lambda: advbench.evaluate(clf, images, labels, draws=20), floor, rounds=21) < most


@pytest.mark.parametrize("name", ["adv_bnn", "bnn"])
def test_an_epoch_on_digits(benchmark: Any, name: str) -> None:
    data = advbench.load_dataset("digits").train
    net = build("small_cnn", data, 0)
    images, epochs = (10, 2) if name == "adv_bnn" else (0, 8)
    defense = advbench.get_defense(name, stages=(epochs,), batch_size=64)

    def floor() -> None:
        bare = copy.deepcopy(net)
        optimizer = torch.optim.Adam(bare.parameters())
        for _ in range(epochs):
            for rows in torch.randperm(len(data)).tensor_split(-(-len(data) // 64)):
                x, y = data.batch(rows)
                bare_passes(bare.eval(), x, y, images)
                optimizer.zero_grad()
                F.cross_entropy(bare.train()(x), y).backward()
                optimizer.step()

    assert ratio(benchmark, lambda: defense.fit(net, data, TrainContext()), floor, rounds=7) < 1.3


@pytest.mark.parametrize("what", ["attacks", "evaluation"])
def test_a_grid_on_digits_against_torchattacks(benchmark: Any, what: str) -> None:
    """Three defenses, attacks and radii: sweeps of ours against a loop of theirs, on the same weights and images."""
    theirs = pytest.importorskip("torchattacks")
    digits = advbench.load_dataset("digits")
    x, y = digits.test.batch(slice(None))
    nets = [
        advbench.get_defense(name, stages=(2,)).fit(build("small_cnn", digits.train, 0), digits.train).module
        for name in ("erm", "fgsm_at", "pgd_at")
    ]
    radii, batches = (0.05, 0.1, 0.2), [(x[rows], y[rows]) for rows in (slice(256), slice(256, None))]

    def ours() -> list[tuple[torch.nn.Module, Tensor]]:
        found = []
        for net in nets:
            for name in ("fgsm", "pgd", "apgd"):
                attack = advbench.get_attack(name, **({"steps": 20} if name == "apgd" else {}))
                earlier = Earlier(x, 0.0)
                for eps in radii:
                    crafted = craft(attack, Classifier(net), x, y, Threat("linf", eps), earlier=earlier)
                    earlier = Earlier(crafted.images, eps)
                    found.append((net, crafted.images))
        return found

    def loop() -> None:
        for net in nets:
            for eps in radii:
                fgsm = theirs.FGSM(net, eps=eps)
                pgd = theirs.PGD(net, eps=eps, alpha=2.5 / 20 * eps, steps=20)
                apgd = theirs.APGD(net, eps=eps, steps=20, loss="ce")
                for attack in (fgsm, pgd, apgd):
                    for images, labels in batches:
                        attack(images, labels)

    examples = ours()

    def evaluated() -> list[float]:
        return [advbench.evaluate(Classifier(net), images, y).accuracy for net, images in examples]

    @torch.no_grad()
    def bare() -> list[float]:
        right = [[(net(images[:256]), y[:256]), (net(images[256:]), y[256:])] for net, images in examples]
        return [sum(int((z.argmax(1) == labels).sum()) for z, labels in parts) / len(y) for parts in right]

    assert evaluated() == pytest.approx(bare())
    if what == "attacks":
        assert ratio(benchmark, ours, loop, rounds=5) < 1.2
    else:
        assert ratio(benchmark, evaluated, bare) < 1.5


# For each method the bare passes that a minibatch needs: for gradients of the images, of the weights alone, and
# of the weights with an optimiser's step. A chain's step takes a gradient of the weights.
PASSES: dict[str, tuple[int, int, int]] = {
    "erm": (0, 0, 1),
    "fgsm_at": (1, 0, 1),
    "ifgsm_at": (15, 0, 1),
    "pgd_at": (10, 0, 1),
    "wrm": (15, 0, 1),
    "rse": (0, 0, 1),
    "mc_dropout": (0, 0, 1),
    "bnn": (0, 0, 1),
    "adv_bnn": (10, 0, 1),
    "hierarchical_vi": (10, 0, 1),
    "adversarial_sampling": (0, 5, 2),
    "sgld": (0, 1, 0),
    "bnn_sgadald": (0, 5, 0),
    "bal": (15 * 5, 5, 0),
}


TRAININGS = [("erm", 2.8), ("pgd_at", 1.7), ("bnn", 5.0), ("adv_bnn", 2.0), ("sgld", 3.1), ("bal", 1.4)]
STEPS = [("pgd", "steps", 1, 3.0), ("eot_pgd", "steps", 5, 2.6), ("apgd", "steps", 5, 3.6), ("fmn", "steps", 5, 6.0)]


@pytest.mark.parametrize(("name", "effort", "samples", "most"), STEPS)
def test_kernels_of_a_step_on_a_device(benchmark: Any, name: str, effort: str, samples: int, most: float) -> None:
    """Kernels that a step launches on a (pretended) device, against those of its bare passes; and its waits."""

    def launched(steps: int) -> Counts:
        params = {} if samples == 1 else {"samples": samples}
        attack = advbench.get_attack(name, **{effort: steps}, **params)
        net = small_net().eval().to(DEVICE)
        posterior = None if samples == 1 else GaussianPosterior(net, 0.05)
        x, y = small_data().to(DEVICE).batch(slice(8))
        with pretended() as counts:
            attack(Classifier(net, posterior).requires_grad_(False), x, y, advbench.Threat("linf", 1e-6))
        return counts

    with pretended():
        few, many = launched(4), launched(12)
        x, y = small_data().to(DEVICE).batch(slice(8))
        net = small_net().eval().to(DEVICE).requires_grad_(False)
        with pretended() as bare:
            bare_passes(net, x, y, 1)
    kernels, waits = (many.kernels - few.kernels) / 8, (many.waits - few.waits) / 8
    value = kernels / (samples * bare.kernels)
    benchmark.pedantic(lambda: None)
    benchmark.extra_info["ratio to floor"] = round(value, 3)
    sys.stdout.write(f"\n{benchmark.name}: {kernels:.1f} kernels and {waits:.2f} waits, {value:.3f} of its floor\n")
    assert value <= most


@pytest.mark.parametrize(("name", "most"), TRAININGS)
def test_kernels_of_a_training_step_on_a_device(benchmark: Any, name: str, most: float) -> None:
    """Kernels that a minibatch launches on a (pretended) device, with the optimiser, against its bare passes."""
    chain = {"burn_in": 0, "interval": 1, "samples": 1} if name == "sgld" else {}

    def launched(epochs: int) -> Counts:
        defense = advbench.get_defense(name, stages=(epochs,), batch_size=4, **chain)
        with pretended() as counts:
            defense.fit(small_net(), small_data(), TrainContext(resources=Resources(device=DEVICE)))
        return counts

    few, many = launched(1), launched(3)
    minibatches = 2 * -(-len(small_data()) // 4)
    kernels, waits = (many.kernels - few.kernels) / minibatches, (many.waits - few.waits) / minibatches
    with pretended() as bare:
        x, y = small_data().to(DEVICE).batch(slice(4))
        bare_passes(small_net().to(DEVICE).requires_grad_(False), x, y, 1)
    value = kernels / (sum(PASSES[name]) * bare.kernels)
    benchmark.pedantic(lambda: None)
    benchmark.extra_info["ratio to floor"] = round(value, 3)
    sys.stdout.write(f"\n{benchmark.name}: {kernels:.1f} kernels and {waits:.2f} waits, {value:.3f} of its floor\n")
    assert value <= most
    assert waits == 0


@pytest.mark.parametrize("name", PASSES)
def test_an_epoch_of_training(benchmark: Any, name: str) -> None:
    net = build("bal_cnn", DATA, 0)
    images, gradients, steps = PASSES[name]
    epochs = 1 if images + gradients + steps > 8 else 8  # so that a step counts, not the start
    chain = {"burn_in": 0, "interval": 1, "samples": 1} if name == "sgld" else {}
    defense = advbench.get_defense(name, stages=(epochs,), batch_size=128, **chain)

    def floor() -> None:
        bare = copy.deepcopy(net)  # the same start: what a kernel takes depends on the signs that it meets
        optimizer = torch.optim.Adam(bare.parameters())
        for rows in (slice(128), slice(128, 256)) * epochs:
            x, y = DATA.batch(rows)
            bare_passes(bare.eval(), x, y, images)
            bare.train()
            for _ in range(gradients):
                torch.autograd.grad(F.cross_entropy(bare(x), y), list(bare.parameters()))
            for _ in range(steps):
                optimizer.zero_grad()
                F.cross_entropy(bare(x), y).backward()
                optimizer.step()

    rounds = 9 if sum(PASSES[name]) < 50 else 3
    assert ratio(benchmark, lambda: defense.fit(net, DATA, TrainContext()), floor, rounds) < 1.5


def test_a_step_of_distillation(benchmark: Any) -> None:
    """APD's G and critic on samples of fcnn1, against the same losses of bare nets."""
    net = build("fcnn1", DATA, 0)
    defense: Any = advbench.get_defense("apd", gan_steps=1, burn_in=0, interval=1, samples=2, stages=(1,))
    state = defense.begin(net, 4, len(DATA), TrainContext())
    samples = torch.randn(200, state.layout.size) * 0.05
    state.tensors["bank"] = samples
    size = state.layout.size
    g = perceptron((32, 100, 100, 100, size))
    d = perceptron((size, 100, 100, 100, 1))
    adams = [torch.optim.Adam(part.parameters(), lr=1e-4, betas=(0.5, 0.9)) for part in (g, d)]

    def floor() -> None:
        for _ in range(5):
            real, fake = samples[torch.randint(200, (100,))], g(torch.randn(100, 32)).detach()
            mix = torch.lerp(real, fake, torch.rand(100, 1)).requires_grad_(True)
            (slope,) = torch.autograd.grad(d(mix).sum(), mix, create_graph=True)
            loss = d(fake).mean() - d(real).mean() + 10 * (slope.norm(dim=1) - 1).square().mean()
            adams[1].zero_grad()
            loss.backward()
            adams[1].step()
        adams[0].zero_grad()
        (-d(g(torch.randn(100, 32))).mean()).backward()
        adams[0].step()

    def subject() -> None:
        defense.distil(state, 200, 1, first=False, context=TrainContext())

    assert ratio(benchmark, subject, floor, rounds=5) < 1.5


# Starting, and settings of the whole process


def run_python(*arguments: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *arguments], capture_output=True, check=True, env=environment)


def child_seconds() -> float:
    """Seconds on a core of the processes started so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("command", ["--help", "plugins"])
def test_listing_against_starting_python(benchmark: Any, command: str) -> None:
    def subject() -> None:
        run_python("-m", "advbench", command)

    assert ratio(benchmark, subject, lambda: run_python("-c", "pass"), 5, time.perf_counter) < 40


SMALLEST = "run --defense erm --attack fgsm --limit 20 --set erm.stages=[1] --executor inline".split()


def test_the_smallest_run_against_importing_torch(benchmark: Any, tmp_path: Path) -> None:
    places = (["--out", str(tmp_path / f"out{n}"), "--store", str(tmp_path / f"store{n}")] for n in itertools.count())

    def subject() -> None:
        run_python("-m", "advbench", *SMALLEST, *next(places))

    assert ratio(benchmark, subject, lambda: run_python("-c", "import torch"), 5, child_seconds) < 2.1


@pytest.fixture
def report_of_a_small_run(tmp_path: Path) -> list[str]:
    out, store = str(tmp_path / "out"), ["--store", str(tmp_path / "store")]
    run_python("-m", "advbench", *SMALLEST, "--out", out, *store)
    return ["report", out, *store]


def test_a_report_against_importing_torch(benchmark: Any, report_of_a_small_run: list[str]) -> None:
    def subject() -> None:
        run_python("-m", "advbench", *report_of_a_small_run)

    assert ratio(benchmark, subject, lambda: run_python("-c", "import torch"), 5, child_seconds) < 1.4


COLLECTING = """
import contextlib, gc, sys
from advbench.cli import app
app.collecting = lambda enabled: contextlib.nullcontext()
sys.exit(app.main(sys.argv[1:]))
"""


def test_a_report_without_garbage_collection(benchmark: Any, report_of_a_small_run: list[str]) -> None:
    """Against the same with it, to the end of the process."""

    def subject() -> None:
        run_python("-m", "advbench", *report_of_a_small_run)

    def floor() -> None:
        run_python("-c", COLLECTING, *report_of_a_small_run)

    assert ratio(benchmark, subject, floor, 5, child_seconds) < 0.9


KEEPING = """
import sys, time, torch, advbench
from advbench.models import classifier
from advbench.models.posterior import GaussianPosterior

how, name, work = sys.argv[1:]
if how == "leave":
    classifier.keep = lambda: None
x, y = torch.rand((1000, 1, 28, 28), generator=torch.Generator().manual_seed(0)), torch.arange(1000) % 10
net = advbench.build_architecture(name, advbench.Data(x, y, 10), seed=0).eval()
clf = classifier.Classifier(net, GaussianPosterior(net)).requires_grad_(False)
attack, threat = advbench.get_attack("pgd", steps=5), advbench.Threat("linf", 0.1)
for _ in range(2):
    started = time.process_time()
    if work == "evaluate":
        advbench.evaluate(clf, x, y, draws=10)
    else:
        attack(clf, x[:250], y[:250], threat)
print(time.process_time() - started)
"""


@pytest.mark.parametrize(
    ("net", "work", "most"),
    [("fcnn2", "evaluate", 1.1), ("fcnn2", "attack", 1.1), ("bal_cnn", "evaluate", 0.8), ("bal_cnn", "attack", 1.0)],
)
def test_memory_that_is_kept(benchmark: Any, net: str, work: str, most: float) -> None:
    """Against memory that goes back to the kernel, each in a process of its own."""
    spent = [0.0]

    def passes(how: str) -> None:
        command = [sys.executable, "-c", KEEPING, how, net, work]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        spent[0] += float(subprocess.run(command, capture_output=True, check=True, env=environment).stdout)

    assert ratio(benchmark, lambda: passes("keep"), lambda: passes("leave"), 3, lambda: spent[0]) < most


def test_pools_without_gradient(benchmark: Any) -> None:
    """An evaluation of a net with pools of its own, against one with torch's."""
    own = build("bal_cnn", DATA, 0).eval()
    torchs = copy.deepcopy(own)
    for part in torchs.modules():
        if isinstance(part, MaxPool):
            part.forward = lambda x: F.max_pool2d(x, 2)  # type: ignore[method-assign]
    x, y = DATA.batch(slice(None))

    def evaluated(net: torch.nn.Module) -> Any:
        return advbench.evaluate(Classifier(net), x, y)

    assert (evaluated(own).mean_probs == evaluated(torchs).mean_probs).all()
    assert ratio(benchmark, lambda: evaluated(own), lambda: evaluated(torchs)) < 0.9


def test_convolution_of_images(benchmark: Any) -> None:
    """PGD on a net whose first convolution has an input gradient of its own, against one with torch's."""
    own = build("strided_cnn", DATA, 0).eval()
    torchs = copy.deepcopy(own)
    for part in torchs.modules():
        if isinstance(part, ImageConv2d):
            part.__class__ = torch.nn.Conv2d
    x, y = DATA.batch(slice(None))
    attack, threat = advbench.get_attack("pgd"), Threat("linf", 0.1)

    def attacked(net: torch.nn.Module) -> Tensor:
        found: Tensor = attack(Classifier(net), x, y, threat)
        return found

    assert ratio(benchmark, lambda: attacked(own), lambda: attacked(torchs)) < 0.85


@pytest.fixture(scope="module")
def digits_net() -> tuple[torch.nn.Module, Tensor, Tensor]:
    """bal_cnn on digits at 28x28, and images of which 24 % are labelled so that the net is wrong."""
    digits = advbench.load_dataset("digits")
    parts = []
    for part in (digits.train, digits.test):
        images, labels = part.batch(slice(None))
        parts.append(Data(F.interpolate(images, (28, 28), mode="bilinear"), labels, 10))
    net = (
        advbench.get_defense("pgd_at", stages=(3,), eps=0.1, steps=3)
        .fit(build("bal_cnn", parts[0], 0), parts[0])
        .module
    )
    x, y = parts[1].batch(slice(None))
    x, y = x.repeat(3, 1, 1, 1), net(x).argmax(1).repeat(3)
    wrong = torch.rand(len(y), generator=torch.Generator().manual_seed(0)) < 0.24
    return net, x, torch.where(wrong, (y + 1) % 10, y)


@pytest.mark.parametrize("left", [0.6, 0.15])
def test_pgd_20_for_robust_accuracy(benchmark: Any, digits_net: Any, left: float) -> None:
    """Early stop, where the full run leaves that share right, against 20 passes at the full run's points."""
    net, x, y = digits_net
    clf, full = Classifier(net), advbench.get_attack("pgd")
    early = functools.partial(full, stop_early=True)

    def robust(attack: Any, eps: float) -> float:
        return advbench.evaluate(clf, attack(clf, x, y, Threat("linf", eps)), y).accuracy

    low, high = 0.0, 0.5
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (middle, high) if robust(full, middle) > left else (low, middle)
    threat = Threat("linf", high)
    batches = [(x[rows], y[rows]) for rows in (slice(s, s + 256) for s in range(0, len(x), 256))]
    points = [(point, labels) for images, labels in batches for point in points_of(full, clf, images, labels, threat)]

    def floor() -> None:
        for point, labels in points:
            bare_passes(net, point, labels, 1)

    found = ratio(benchmark, lambda: early(clf, x, y, threat), floor, rounds=3)
    accuracies = robust(full, high), robust(early, high)
    sys.stdout.write(f"clean {advbench.evaluate(clf, x, y).accuracy:.3f}, left by 20 steps {accuracies[0]:.3f}, ")
    sys.stdout.write(f"with early stop {accuracies[1]:.3f}\n")
    assert accuracies[1] <= accuracies[0]
    assert found < 0.8


def peer(name: str, net: torch.nn.Module, x: Tensor, y: Tensor, eps: float, step: float) -> Callable[[], object]:
    """PGD-20 of another library, as its users call it."""
    if name == "torchattacks":
        library = pytest.importorskip("torchattacks")
        attack = library.PGD(net, eps=eps, alpha=step, steps=20, random_start=True)
        return lambda: attack(x, y)
    if name == "foolbox":
        library = pytest.importorskip("foolbox")
        model = library.PyTorchModel(net, bounds=(0, 1), device="cpu")
        attack = library.attacks.LinfPGD(abs_stepsize=step, steps=20, random_start=True)
        return lambda: attack(model, x, y, epsilons=eps)
    attacks = pytest.importorskip("art.attacks.evasion")
    from art.estimators.classification import PyTorchClassifier

    loss = torch.nn.CrossEntropyLoss()
    model = PyTorchClassifier(net, loss, input_shape=tuple(x.shape[1:]), nb_classes=10, clip_values=(0.0, 1.0))
    settings = {"eps": eps, "eps_step": step, "max_iter": 20, "num_random_init": 1, "batch_size": len(x)}
    attack = attacks.ProjectedGradientDescentPyTorch(model, **settings, verbose=False)
    images, labels = x.numpy(), y.numpy()
    return lambda: attack.generate(images, labels)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["torchattacks", "foolbox", "art"])
def test_pgd_20_of_other_libraries(benchmark: Any, name: str) -> None:
    """Ours against theirs: same net, images and settings."""
    net = build("bal_cnn", DATA, 0).eval().requires_grad_(False)
    x, y = DATA.batch(slice(None))
    eps, step = 0.1, 0.1 * 2.5 / 20
    theirs = peer(name, net, x, y, eps, step)
    attack, clf = advbench.get_attack("pgd"), Classifier(net)
    assert ratio(benchmark, lambda: attack(clf, x, y, Threat("linf", eps)), theirs, rounds=5) < 1.3


@pytest.mark.parametrize("radii", [(0.05, 0.1, 0.15), (0.03, 0.06, 0.09, 0.12, 0.15)])
def test_a_sweep_against_its_cells_run_apart(benchmark: Any, digits_net: Any, radii: tuple[float, ...]) -> None:
    net, x, y = digits_net
    clf, attack = Classifier(net), advbench.get_attack("pgd")

    def apart() -> list[Tensor]:
        return [attack(clf, x, y, Threat("linf", eps)) for eps in radii]

    def sweep() -> list[Tensor]:
        earlier, found = Earlier(x, 0.0), []
        for eps in radii:
            found.append(craft(attack, clf, x, y, Threat("linf", eps), earlier=earlier).images)
            earlier = Earlier(found[-1], eps)
        return found

    accuracies = [[advbench.evaluate(clf, images, y).accuracy for images in found] for found in (apart(), sweep())]
    found = ratio(benchmark, sweep, apart, rounds=3)
    sys.stdout.write(f"apart {[round(a, 4) for a in accuracies[0]]}, sweep {[round(a, 4) for a in accuracies[1]]}\n")
    assert all(after <= before for before, after in zip(*accuracies, strict=True))
    assert found < 0.7


@pytest.mark.parametrize("net_name", ["bal_cnn", "fcnn1"])
def test_draws_one_after_another_against_draws_batched(benchmark: Any, net_name: str) -> None:
    """The gradient over ten draws as it is taken, against torch.func's vmap over the draws."""
    net = build(net_name, DATA, 0).eval()
    clf = Classifier(net, GaussianPosterior(net)).requires_grad_(False)
    x, y = DATA.batch(slice(None))

    def batched() -> Tensor:
        drawn = [clf.draw() for _ in range(10)]
        weights = {name: torch.stack([draw.weights[name] for draw in drawn]) for name in drawn[0].weights}
        leaf = x.detach().requires_grad_(True)
        logits = torch.func.vmap(lambda w: torch.func.functional_call(net, w, (leaf,)))(weights)
        loss = F.cross_entropy(logits.flatten(0, 1), y.repeat(10), reduction="sum")
        return torch.autograd.grad(loss, leaf)[0]

    one_by_one = clf.reseed(0).input_gradient(x, y, cross_entropy, 10).value
    clf.reseed(0)
    torch.testing.assert_close(batched() / 10, one_by_one, atol=1e-5, rtol=1e-3)
    ratio(benchmark, lambda: clf.input_gradient(x, y, cross_entropy, 10), batched, rounds=5)


# The grid


def grid(folder: Path, workers: int, **values: Any) -> tuple[float, list[dict[str, Any]]]:
    """Carry out a run with worker processes; wall-clock seconds from the first task's start to the end, and records."""
    spec = make_spec({"attacks": ["fgsm"], "eps": [0.1], **values})
    execution = Execution(str(folder), executor="local", workers=workers, device="cpu")
    store, plan = execution.open_store(), prepare(spec)
    waiting = outstanding(plan, store)
    display = Display(plan.tasks, waiting, Console(quiet=True))
    runtime = execution.runtime(spec.dataset, spec.threads)
    outcome = carry_out(plan, waiting, store, lambda: execution.start(runtime), display)
    ended = time.time()
    records = [store.read_record(key) or {} for key in outcome.run]
    return ended - min(record["ran"]["started"] for record in records), records


def test_two_workers_on_two_cores(benchmark: Any, tmp_path: Path) -> None:
    """At least 0.9 of twice the throughput of one: trainings of one thread each, which no data set's load precedes."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    trainings = {"defenses": ["erm"], "limit": 10, "set": {"erm": {"stages": [60]}}}
    pairs = []
    for index in range(3):
        one, _ = grid(tmp_path / f"one{index}", 1, seeds=list(range(10 * index, 10 * index + 8)), **trainings)
        two, _ = grid(tmp_path / f"two{index}", 2, seeds=list(range(10 * index, 10 * index + 8)), **trainings)
        pairs.append(one / two)
    value = statistics.median(pairs)
    benchmark.pedantic(lambda: None, rounds=1)
    benchmark.extra_info["throughput of two workers by that of one"] = round(value, 3)
    sys.stdout.write(
        f"\ntwo workers: {value:.3f} times the throughput of one ({', '.join(f'{p:.3f}' for p in pairs)})\n"
    )
    assert value >= 1.8


def test_what_the_grid_adds_to_its_tasks(benchmark: Any, tmp_path: Path) -> None:
    """At most 50 ms a task, from choosing it to its record, over small tasks of one worker."""
    seeds, eps = [0, 1], [round(0.01 * step, 2) for step in range(1, 13)]
    small = {"defenses": ["erm", "bnn"], "limit": 20, "draws": 2, "seeds": seeds, "eps": eps}
    wall, records = grid(tmp_path, 1, **small, set={"erm": {"stages": [1]}, "bnn": {"stages": [1]}})
    value = (wall - sum(record["seconds"] for record in records)) / len(records)
    benchmark.pedantic(lambda: None, rounds=1)
    benchmark.extra_info["seconds a task"] = round(value, 4)
    sys.stdout.write(f"\nthe grid adds {1000 * value:.1f} ms to each of {len(records)} tasks\n")
    assert value <= 0.05
