"""Studies of the five papers: what their tables and figures show, as runs, and the numbers that they print.

Each paper is a folder here, and each item in it has `paper.toml`, often `small.toml`, and `published.csv` if the paper
prints numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from advbench.registry import hookimpl

if TYPE_CHECKING:
    from advbench.registry import Registrar

HERE = Path(__file__).parent
ADVERSARIAL_SAMPLING = HERE / "adversarial_sampling"
ADV_BNN = HERE / "adv_bnn"
APD = HERE / "apd"
BAL = HERE / "bal"
HIERARCHICAL_VI = HERE / "hierarchical_vi"


@hookimpl
def advbench_register(register: Registrar) -> None:
    """Declare the papers."""
    for name, target, summary in (
        ("adversarial_sampling", "ADVERSARIAL_SAMPLING", "studies of adversarial sampling (Zhang et al. 2022)"),
        ("adv_bnn", "ADV_BNN", "studies of Adv-BNN (Liu et al. 2019)"),
        ("apd", "APD", "studies of adversarial posterior distillation (Wang et al. 2018)"),
        ("bal", "BAL", "studies of Bayesian adversarial learning (Ye and Zhu 2018)"),
        ("hierarchical_vi", "HIERARCHICAL_VI", "studies of hierarchical variational inference (Lee et al. 2021)"),
    ):
        register.paper(name, f"advbench_papers:{target}", summary)
