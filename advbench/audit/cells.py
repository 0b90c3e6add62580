"""Pairs among the cells of a finished run: they are read, not computed again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from advbench.audit.findings import About, Finding
from advbench.audit.subject import LITTLE, Table, stronger

Kind = Literal["gradient", "one step", "black box", "mixed"]


class Cell(NamedTuple):
    """What a run found by one attack on the classifier that is audited.

    Attributes:
        attack: its label.
        kind: whether it follows gradients, in one step or many; sees none, as what is transferred; or has parts of
            both kinds, as `worst_case`, and so counts as neither.
        parts: labels of the attacks that it is made of.
        right: whether each draw is right on each image, `(draws, images)`; the draws are those of all cells.
    """

    attack: str
    kind: Kind
    parts: frozenset[str]
    right: Table


def check_cells(cells: Sequence[Cell]) -> list[Finding]:
    """Black boxes against the best gradient attack, one step against many, parts against the whole."""
    found = []

    def compare(name: str, other: Cell, one: Cell, means: str, then: str, about: About = "defense") -> None:
        low, high = float(other.right.mean()), float(one.right.mean())
        said = f"{other.attack} leaves an accuracy of {low:.3f}, {one.attack} {high:.3f} (cells of the run)."
        p = stronger(one.right, other.right)
        found.append(Finding(f"run: {name}", "ok", said, means, then, about, p=p, counts=high - low > LITTLE))

    white = [each for each in cells if each.kind == "gradient"]
    best = min(white, key=lambda each: float(each.right.mean()), default=None)
    bound = "What gradient attacks say of this defense is an upper bound."
    for each in cells:
        if best is not None and each.kind == "black box":
            means = f"An attack that sees no gradient does more harm. {bound}"
            compare(f"{each.attack} against gradients", each, best, means, "run worst_case, and let the lowest count")
        if best is not None and each.kind == "one step":
            means = f"One step does more harm than many. {bound}"
            compare(
                f"{each.attack} against many steps", each, best, means, "run attacks of more steps and other losses"
            )
        for part in cells if each.parts else ():
            if part.attack.partition("@")[0] in each.parts:
                means = f"{each.attack} is weaker than one of its parts: it has not converged."
                compare(
                    f"{part.attack} against {each.attack}", part, each, means, "raise its draws and steps", "attack"
                )
    if cells and not white:
        reason = "the run has no attack that follows gradients alone to compare with; add eot_pgd"
        found.append(Finding.skipped("run: black box against gradients", reason))
    return found
