"""SGLD samples replaced by draws from a fitted mixture of Gaussians."""

from __future__ import annotations

import warnings

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from advbench.models import Classifier, SamplePosterior
from advbench.training import Field, LangevinChains, SGLDParams, TrainContext, TrainState, derive
from advbench_defenses.apd import APD
from advbench_defenses.sgld import SGLD


class SGLDMixture(LangevinChains):
    """Draws from a mixture of Gaussians with diagonal covariances, fitted by EM to the samples of an SGLD chain.

    Wang et al. 2018, "Adversarial Distillation of Bayesian Neural Network Posteriors", section 5.5 and Figure 5: a
    comparison of simple distributions with its GAN (`apd`) and the samples themselves (`sgld`). With one component it
    is a fully factorised Gaussian.

    The classifier stores `draws` independent draws of the mixture in place of its means and variances, which are 2
    `components` numbers per weight. EM starts from samples chosen by k-means++ (scikit-learn's `GaussianMixture`).
    """

    version = "1"
    paper = APD.paper

    class Params(SGLDParams):
        """Hyperparameters of the mixture."""

        components: int = Field(default=10, ge=1, description="number of Gaussians N_c; APD Figure 5: up to 60")
        draws: int = Field(default=200, ge=1, description="number of draws of the mixture; APD section 5.2: 200")
        iterations: int = Field(default=100, ge=1, description="maximum number of EM iterations; not in the paper")
        samples: int = Field(
            default=2000, ge=1, description="number of samples kept, the latest of all chains; APD section 5.5: 2000"
        )

    presets = {**SGLD.presets, "paper": {**SGLD.presets["paper"], "samples": 2000, "draws": 200}}
    sources = {
        "section 5.2.1": "lr weight_decay batch_size burn_in interval draws",
        "section 5.5": "samples",
        "released code: 200,000 steps": "stages",
    }
    params: Params

    def begin(self, module: nn.Module, steps: int, count: int, context: TrainContext) -> TrainState:
        """Chains and samples, and the seed of the mixture."""
        state = super().begin(module, steps, count, context)
        state.tensors["seed"] = torch.tensor(derive(context.seed, "mixture"))
        return state

    def finish(self, state: TrainState) -> Classifier:
        """The classifier of draws of the mixture."""
        module, chain = state.clf.module, super().finish(state).posterior
        assert isinstance(chain, SamplePosterior), "chains return samples"
        return Classifier(module, SamplePosterior(module, self.draws(chain.samples, int(state.tensors["seed"]))))

    def draws(self, samples: Tensor, seed: int) -> Tensor:
        """Draws `(draws, size)` of the mixture fitted to samples `(count, size)`."""
        params = self.params
        fitted = GaussianMixture(
            min(params.components, len(samples)),
            covariance_type="diag",
            init_params="k-means++",
            reg_covar=1e-10,
            max_iter=params.iterations,
            random_state=seed % 2**32,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # at the limit, the last iteration counts
            fitted.fit(samples.double().cpu().numpy())
        shares, means, variances = (
            torch.from_numpy(each).to(samples) for each in (fitted.weights_, fitted.means_, fitted.covariances_)
        )
        generator = torch.Generator(samples.device).manual_seed(seed)
        chosen = torch.multinomial(shares, params.draws, replacement=True, generator=generator)
        noise = torch.empty((params.draws, samples.shape[1]), device=samples.device).normal_(generator=generator)
        return torch.addcmul(means[chosen], variances[chosen].sqrt(), noise)
