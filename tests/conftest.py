"""Fixtures that several test modules share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

# What does not ask where tasks run runs them in its own process, which is quicker; tests of executors name one.
os.environ["ADVBENCH_EXECUTOR"] = "inline"

Cli = Callable[..., subprocess.CompletedProcess[str]]

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Run the command line in a process of its own, in an empty folder."""

    def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "advbench", *arguments],
            check=False,
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "200", **(env or {})},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.fixture(scope="session")
def mnist_root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data root that holds MNIST; tests that need one are skipped where there is none beside the checkout."""
    if not (SHARED / "mnist.tar.xz").exists():
        pytest.skip(f"there is no mnist.tar.xz in {SHARED}")
    root = str(tmp_path_factory.mktemp("mnist"))
    subprocess.run([sys.executable, str(SHARED / "unpack.py"), root, "mnist"], check=True, capture_output=True)
    return root


class Linear(nn.Module):
    """Logits W x + b on flattened images, for closed forms."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())
        self.bias = nn.Parameter(torch.zeros(len(weight)) if bias is None else bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


@pytest.fixture
def linear() -> Callable[..., Linear]:
    """A linear model of given or random weights, for `pixels` pixels."""

    def make(classes: int = 2, pixels: int = 16, seed: int = 0) -> Linear:
        generator = torch.Generator().manual_seed(seed)
        return Linear(torch.randn(classes, pixels, generator=generator), torch.randn(classes, generator=generator) / 10)

    return make
