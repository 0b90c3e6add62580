"""Comparisons among the cells of a finished run, from its stored predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from advbench.audit.findings import About, Finding
from advbench.audit.subject import LITTLE, Table, stronger

Kind = Literal["gradient", "one step", "black box", "mixed"]


class Cell(NamedTuple):
    """Result of one attack of a run on the audited classifier.

    Attributes:
        attack: label of the attack.
        kind: type of the attack: gradient-based with many steps or one, black-box (including transfer), or mixed, for
            attacks with components of both types such as `worst_case`, which count as neither.
        parts: labels of its component attacks.
        right: mask of correct predictions, `(draws, images)`; all cells share the draws.
    """

    attack: str
    kind: Kind
    parts: frozenset[str]
    right: Table


def check_cells(cells: Sequence[Cell]) -> list[Finding]:
    """Compare black-box with gradient attacks, one step with many, and components with composite attacks."""
    found = []

    def compare(name: str, other: Cell, one: Cell, means: str, then: str, about: About = "defense") -> None:
        low, high = float(other.right.mean()), float(one.right.mean())
        said = f"{other.attack} leaves an accuracy of {low:.3f}, {one.attack} {high:.3f} (cells of the run)."
        p = stronger(one.right, other.right)
        found.append(Finding(f"run: {name}", "ok", said, means, then, about, p=p, counts=high - low > LITTLE))

    white = [each for each in cells if each.kind == "gradient"]
    best = min(white, key=lambda each: float(each.right.mean()), default=None)
    bound = "Accuracy under gradient attacks is an upper bound for this defense."
    for each in cells:
        if best is not None and each.kind == "black box":
            means = f"An attack without gradients is stronger. {bound}"
            compare(f"{each.attack} against gradients", each, best, means, "run worst_case and report the minimum")
        if best is not None and each.kind == "one step":
            means = f"One step is stronger than many. {bound}"
            compare(
                f"{each.attack} against many steps", each, best, means, "run attacks with more steps and other losses"
            )
        for part in cells if each.parts else ():
            if part.attack.partition("@")[0] in each.parts:
                means = f"{each.attack} is weaker than one of its components: it has not converged."
                compare(
                    f"{part.attack} against {each.attack}", part, each, means, "raise its draws and steps", "attack"
                )
    if cells and not white:
        reason = "the run has no gradient attack to compare with; add eot_pgd"
        found.append(Finding.skipped("run: black box against gradients", reason))
    return found
