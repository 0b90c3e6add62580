"""Built-in training methods. Hooks only: the module of a method loads on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from advbench.registry import hookimpl

if TYPE_CHECKING:
    from advbench.registry import Registrar


@hookimpl
def advbench_register(register: Registrar) -> None:
    """Declare the training methods."""
    for name, target, summary in (
        ("erm", "erm:ERM", "plain training: empirical risk minimisation"),
        ("fgsm_at", "fgsm_at:FGSMAT", "adversarial training on FGSM (Goodfellow et al. 2015)"),
        ("ifgsm_at", "ifgsm_at:IFGSMAT", "adversarial training on iterated FGSM (Kurakin et al. 2017)"),
        ("pgd_at", "pgd_at:PGDAT", "adversarial training on PGD (Madry et al. 2018)"),
        ("trades", "trades:TRADES", "clean loss with a robustness regulariser (Zhang et al. 2019)"),
        ("wrm", "wrm:WRM", "Wasserstein robust training (Sinha et al. 2018)"),
        ("rse", "rse:RSE", "Gaussian noise before every convolution (Liu et al. 2018)"),
        ("mc_dropout", "mc_dropout:MCDropout", "dropout at prediction (Gal and Ghahramani 2016)"),
        ("deep_ensemble", "deep_ensemble:DeepEnsemble", "independently trained nets (Lakshminarayanan et al. 2017)"),
        ("bnn", "bnn:BNN", "Bayes by backprop on clean images (Blundell et al. 2015)"),
        ("sgld", "sgld:SGLD", "Langevin dynamics (Welling and Teh 2011)"),
        ("sgld_mixture", "sgld_mixture:SGLDMixture", "mixture of Gaussians fitted to SGLD samples (Wang et al. 2018)"),
        ("bnn_sgadald", "bnn_sgadald:BNNSGAdaLD", "adaptive Langevin dynamics on clean images (Ye and Zhu 2018)"),
        ("adv_bnn", "adv_bnn:AdvBNN", "adversarially trained BNN (Liu et al. 2019)"),
        (
            "hierarchical_vi",
            "hierarchical_vi:HierarchicalVI",
            "Adv-BNN with an enhanced regulariser (ICLR 2021 submission)",
        ),
        (
            "adversarial_sampling",
            "adversarial_sampling:AdversarialSampling",
            "BNN trained on adversarial draws (Zhang et al. 2022)",
        ),
        ("bal", "bal:BAL", "Bayesian adversarial learning (Ye and Zhu 2018)"),
        ("apd", "apd:APD", "SGLD samples distilled by a GAN (Wang et al. 2018)"),
        ("active", "active:Active", "active learning: trained on images that it chooses (Gal et al. 2017)"),
        ("pretrained", "pretrained:Pretrained", "weights from files: a net, an ensemble or a Gaussian posterior"),
    ):
        register.defense(name, f"advbench_defenses.{target}", summary)
