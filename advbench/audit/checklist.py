"""Published lists of evaluation failures, and the checks that cover them."""

from __future__ import annotations

# Pintor et al. 2022, "Indicators of attack failure", section 3.
INDICATORS = {
    "unavailable gradients": "gradient: zeros",
    "unstable predictions": "gradient: uphill and finite differences (at fixed draws: noise is no instability)",
    "silent success": "not checked; advbench's own attacks return the best iterate on deterministic models",
    "incomplete optimization": "convergence: steps and restarts",
    "transfer failure": "surrogate: stand-in, evaluated on the classifier itself",
    "unconstrained attack failure": "search: radius at chance",
}
# Carlini et al. 2019, "On evaluating adversarial robustness", section 5 and appendix.
CHECKLIST = {
    "a threat model is stated": "the run's norm and eps, in every table",
    "adaptive attacks are run": "surrogate: stand-in, if given; attacks specific to the defense are not automated",
    "the models are available, clean accuracy is reported": "not checked here: stored with every run",
    "iterative attacks do better than one step": "paired: one step",
    "larger radii break more": "flag rises_with_eps of a run",
    "unbounded attacks reach chance": "search: radius at chance",
    "adversarial examples outside the radius exist": "search: radius at chance",
    "gradient-free attacks are no stronger": "paired: square, and search: random points",
    "transfer attacks are no stronger": "paired: transfer",
    "random noise breaks little": "search: random points",
    "attacks have converged": "convergence: steps, restarts and samples",
    "several losses are tried": "paired: margin loss and targeted attack",
    "the loss is not masked by saturation or rounding": "outputs: saturation, ties and plateaus",
    "expectation over randomness": "convergence: samples; consistency: noise off the data",
    "non-differentiable parts are bridged": "gradient: zeros, and surrogate: stand-in",
    "the attack sees the model that is evaluated": "consistency: all",
    "per-example success of all attacks together": "not checked here: worst_case",
    "human study of the perturbations": "not checked",
    "other norms than the run's": "not checked: audit them with --norm",
    "provable bounds, if they exist": "not checked",
    "comparison with earlier defenses, ablations": "not checked",
    "other domains than images": "not checked",
}


def checklist() -> str:
    """Both lists as Markdown."""
    parts = ["## What is covered"]
    for title, points in (
        ("Indicators of attack failure (Pintor et al. 2022)", INDICATORS),
        ("Evaluation checklist (Carlini et al. 2019)", CHECKLIST),
    ):
        rows = [f"| {point} | {check} |" for point, check in points.items()]
        parts.append("\n".join([f"| {title} | check |", "| --- | --- |", *rows]))
    return "\n\n".join(parts)
