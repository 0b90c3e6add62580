"""Ratios against floors measured in the same run: `tox -e bench`. A floor is the bare passes that are needed."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import advbench
from advbench.api import Data, Threat, TrainContext
from advbench.architectures import build
from advbench.classifier import Classifier
from advbench.posterior import GaussianPosterior

pytestmark = pytest.mark.bench
DATA = Data(torch.rand((256, 1, 28, 28), generator=torch.Generator().manual_seed(0)), torch.arange(256) % 10, 10)


def ratio(benchmark: Any, subject: Callable[[], object], floor: Callable[[], object], rounds: int = 9) -> float:
    """Median over pairs of (subject / floor), the two in turn; kept with the benchmark's record."""
    subject()
    floor()
    pairs = [(seconds(subject), seconds(floor)) for _ in range(rounds)]
    benchmark.pedantic(subject, rounds=1)
    value = statistics.median(a / b for a, b in pairs)
    benchmark.extra_info["ratio to floor"] = round(value, 3)
    sys.stdout.write(f"\n{benchmark.name}: {value:.3f} of its floor\n")
    return value


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def bare_passes(net: torch.nn.Module, x: Tensor, y: Tensor, count: int) -> None:
    for _ in range(count):
        leaf = x.detach().requires_grad_(True)
        torch.autograd.grad(F.cross_entropy(net(leaf), y, reduction="sum"), leaf)


def test_pgd_20_on_a_deterministic_net(benchmark: Any) -> None:
    net = build("bal_cnn", DATA, 0).eval().requires_grad_(False)
    x, y = DATA.batch(slice(None))
    attack, clf, threat = advbench.get_attack("pgd"), Classifier(net), Threat("linf", 0.1)
    found = ratio(benchmark, lambda: attack(clf, x, y, threat), lambda: bare_passes(net, x, y, 20))
    assert found < 1.3


def test_eot_pgd_20_x_10_on_a_random_net(benchmark: Any) -> None:
    net = build("bal_cnn", DATA, 0).eval()
    clf = Classifier(net, GaussianPosterior(net)).requires_grad_(False)
    x, y = DATA.batch(slice(64))
    attack, threat = advbench.get_attack("eot_pgd"), Threat("linf", 0.1)
    found = ratio(benchmark, lambda: attack(clf, x, y, threat), lambda: bare_passes(net, x, y, 200), rounds=5)
    assert found < 1.5


@pytest.mark.parametrize(("name", "passes"), [("erm", 0), ("pgd_at", 10), ("bnn", 0), ("adv_bnn", 10)])
def test_an_epoch_of_training(benchmark: Any, name: str, passes: int) -> None:
    net = build("bal_cnn", DATA, 0)
    defense = advbench.get_defense(name, stages=(1,), batch_size=128)
    optimizer = torch.optim.Adam(net.parameters())

    def floor() -> None:
        for rows in (slice(128), slice(128, 256)):
            x, y = DATA.batch(rows)
            bare_passes(net.eval(), x, y, passes)
            optimizer.zero_grad()
            F.cross_entropy(net.train()(x), y).backward()
            optimizer.step()

    assert ratio(benchmark, lambda: defense.fit(net, DATA, TrainContext()), floor) < 1.5


@pytest.mark.parametrize("command", ["--help", "plugins"])
def test_listing_against_starting_python(benchmark: Any, command: str) -> None:
    def run(*arguments: str) -> None:
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)

    assert ratio(benchmark, lambda: run("-m", "advbench", command), lambda: run("-c", "pass"), rounds=5) < 40
