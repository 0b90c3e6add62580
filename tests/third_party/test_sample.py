"""What a plugin author writes: inherit the conformance suites and supply a fixture."""

import pytest
from advbench_sample.corner import Corner
from advbench_sample.smooth import Smooth

from advbench.testing import AttackConformance, DefenseConformance


class TestCorner(AttackConformance):
    @pytest.fixture
    def attack(self):
        return Corner(share=0.5)


class TestSmooth(DefenseConformance):
    @pytest.fixture
    def defense(self):
        return Smooth(stages=(2,), batch_size=16)
