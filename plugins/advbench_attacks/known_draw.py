"""An attack by an adversary who knows the weights that will answer."""

from __future__ import annotations

from advbench.attacks import Field
from advbench.models import Classifier
from advbench_attacks._inner import InnerAttack, InnerParams


class KnownDraw(InnerAttack):
    """Any attack on the very draw of the weights that answers: what randomness is worth to whom it is no secret.

    In a run each of several draws is attacked and evaluated by itself: mean, lowest and highest accuracy over the
    draws. Posteriors of few members are enumerated. (Without attack these are the numbers of Zhang et al. 2022,
    "Adversarial sampling", which evaluates 100 frozen draws.) Called from Python on a random classifier it attacks one
    draw; give it `clf.frozen(seed)`, and evaluate that. A deterministic classifier has one draw.
    """

    version = "1"

    class Params(InnerParams):
        """Hyperparameters of the attack on a known draw."""

        draws: int = Field(default=10, ge=1, description="draws that are attacked and evaluated, one by one")

    knows = "the_draw"
    params: Params

    def sees_random(self, random: bool) -> bool:
        """A draw is not random."""
        return False

    def attacked(self, clf: Classifier) -> Classifier:
        """A draw."""
        return clf.frozen(0) if clf.stochastic else clf

    def cost(self, random: bool) -> int | None:
        """That of the inner attack at each draw."""
        cost = super().cost(random)
        return None if cost is None else cost * (self.params.draws if random else 1)
