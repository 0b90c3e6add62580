"""PGD with expectation over transformation."""

from __future__ import annotations

from advbench.attacks import Field
from advbench_attacks.pgd import PGD


class EOTPGD(PGD):
    """PGD whose gradient at each step is the mean over several fresh draws of the weights.

    Athalye et al. 2018, "Obfuscated gradients give a false sense of security"; hierarchical variational
    inference uses 10 samples and steps of eps / steps. On a deterministic classifier all draws are one and
    it is PGD.
    """

    version = "1"

    class Params(PGD.Params):
        """Hyperparameters of EOT-PGD."""

        samples: int = Field(default=10, ge=1, description="draws of the weights per gradient; hierarchical_vi: 10")

    params: Params

    @property
    def samples(self) -> int:
        """Draws of the weights averaged in one gradient."""
        return self.params.samples
