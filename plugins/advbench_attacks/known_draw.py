"""Attack by an adversary who knows the evaluated draw of the weights."""

from __future__ import annotations

from advbench.attacks import Field
from advbench.models import Classifier
from advbench_attacks._inner import InnerAttack, InnerParams


class KnownDraw(InnerAttack):
    """Any attack on the very draw of the weights that is evaluated: randomness that is no secret.

    In a run, several draws are attacked and evaluated separately, which gives mean, minimum and maximum accuracy over
    the draws. Posteriors with few members are enumerated. (Without an attack, these are the figures of Zhang et al.
    2022, "Adversarial sampling", for 100 frozen draws.) Called from Python on a random classifier, it attacks one draw;
    pass `clf.frozen(seed)` instead, and evaluate that. A deterministic classifier has one draw.
    """

    version = "1"

    class Params(InnerParams):
        """Hyperparameters of the attack on a known draw."""

        draws: int = Field(default=10, ge=1, description="number of draws to attack and evaluate separately")

    knows = "the_draw"
    params: Params

    def sees_random(self, random: bool) -> bool:
        """Return False: a frozen draw is deterministic."""
        return False

    def attacked(self, clf: Classifier) -> Classifier:
        """A frozen draw."""
        return clf.frozen(0) if clf.stochastic else clf

    def cost(self, random: bool) -> int | None:
        """Cost of the inner attack at each draw."""
        cost = super().cost(random)
        return None if cost is None else cost * (self.params.draws if random else 1)
