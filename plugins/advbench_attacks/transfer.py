"""An attack through another net."""

from __future__ import annotations

from advbench.attacks import Field
from advbench_attacks._inner import InnerAttack, InnerParams


class Transfer(InnerAttack):
    """Any attack on another defense's classifier: what an adversary can do who has no access to the one judged.

    In a run the source is trained like any other defense, with its own settings, and its examples are judged on all
    defenses. Called from Python, the model given is the source; evaluate what comes back on another. (The examples
    of the attacks named by `--affinity` are evaluated on all defenses of a run, too: that is the affinity matrix.
    `transfer` is for a source that is not to be on the board.)
    """

    version = "1"

    class Params(InnerParams):
        """Hyperparameters of the transfer attack."""

        source: str = Field(
            default="erm", min_length=1, description="the defense whose classifier is attacked, by its label"
        )

    params: Params

    @property
    def source(self) -> str:
        """The defense whose classifier is attacked."""
        return self.params.source
