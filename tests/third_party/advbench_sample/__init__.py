"""Hooks only, so that listing plugins imports neither torch nor the classes."""

from advbench.registry import hookimpl


@hookimpl
def advbench_register(register):
    register.attack("corner", "advbench_sample.corner:Corner", "every pixel to the far end of its interval")
    register.defense("smooth", "advbench_sample.smooth:Smooth", "plain training with smoothed labels")
