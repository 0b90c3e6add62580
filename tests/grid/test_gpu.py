"""What only a GPU shows: memory that runs out, and workers that share it. Skipped where there is none."""

from __future__ import annotations

import pytest
import torch

from advbench.grid import selftest

GPU = "cuda:0"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_gpu
def test_a_task_that_does_not_fit_is_done_in_parts() -> None:
    passed, found = selftest._out_of_memory(GPU)
    assert passed, found


@pytest.mark.parametrize("device", [pytest.param(GPU, marks=needs_gpu), pytest.param("cpu", marks=pytest.mark.slow)])
def test_packed_trainings_give_the_same_bytes(device: str) -> None:
    passed, found = selftest._packing(device)
    assert passed, found


@needs_gpu
def test_all_checks_of_a_gpu_pass() -> None:
    checks = list(selftest.selftest(GPU))
    assert not [line for passed, line in checks if not passed]
