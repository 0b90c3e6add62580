"""Transfer attack from another net."""

from __future__ import annotations

from advbench.attacks import Field
from advbench_attacks._inner import InnerAttack, InnerParams


class Transfer(InnerAttack):
    """Any attack on the classifier of another defense: an adversary without access to the evaluated one.

    In a run, the source is trained like any other defense, with its own settings, and its examples are evaluated on all
    defenses. Called from Python, the given model is the source; evaluate the examples on another model. (The examples
    of the attacks in `--affinity` are also evaluated on all defenses of a run: the affinity matrix. `transfer` is meant
    for a source that should not appear on the leaderboard.)
    """

    version = "1"

    class Params(InnerParams):
        """Hyperparameters of the transfer attack."""

        source: str = Field(
            default="erm", min_length=1, description="label of the defense whose classifier is the source"
        )

    params: Params

    @property
    def source(self) -> str:
        """Label of the source defense."""
        return self.params.source
