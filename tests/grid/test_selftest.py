"""The checks of `doctor --gpu`, those that need no GPU on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import Cli

from advbench.errors import InputError
from advbench.grid import devices, selftest


def test_without_a_gpu_it_is_one_line(cli: Cli) -> None:
    done = cli("doctor", "--gpu")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --device: expected devices that torch can use here")
    assert len(done.stderr.splitlines()) == 1
    with pytest.raises(InputError, match="expected a GPU, such as"):
        next(selftest.selftest("cpu"))


@pytest.mark.parametrize("name", ["erm", "adv_bnn", "bal", "apd", "sgld", "rse"])
def test_trainings_are_repeated_and_resumed(name: str) -> None:
    passed, found = selftest._training(name, "cpu")
    assert passed, found
    assert found.startswith("0 of ")


@pytest.mark.parametrize("name", ["pgd", "fmn", "square", pytest.param("worst_case", marks=pytest.mark.slow)])
def test_attacks_are_repeated(name: str) -> None:
    assert selftest._attack(name, "cpu") == (True, "reproducible, inside the ball")


def test_a_training_that_cannot_be_repeated_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    defense = selftest._short("defense", "erm")
    fit = type(defense).fit
    fits: list[int] = []

    def unsteady(self: Any, *given: Any) -> Any:
        clf = fit(self, *given)
        fits.append(1)
        if len(fits) == 2:
            with torch.no_grad():
                next(iter(clf.module.parameters())).add_(1e-7)
        return clf

    monkeypatch.setattr(type(defense), "fit", unsteady)
    passed, found = selftest._training("erm", "cpu")
    assert not passed
    assert found.startswith("1 of ")


def test_precision_and_pixels_of_the_cpu() -> None:
    with devices.numerics(1):
        assert selftest._float32("cpu")[0]
    assert selftest._pixels("cpu") == (True, "0 of 256 grey values differ from the CPU's")


def test_an_error_is_a_verdict() -> None:
    def fails() -> tuple[bool, str]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    passed, line = selftest._guarded("memory", fails)
    assert not passed
    assert line.startswith("memory: RuntimeError: CUDA error: an illegal memory access was encountered (")


def test_every_method_and_attack_is_among_the_checks() -> None:
    assert {"adv_bnn", "apd", "bal", "erm"} <= set(selftest._usable("defense"))
    assert {"apgd", "cw", "square", "worst_case"} <= set(selftest._usable("attack"))
