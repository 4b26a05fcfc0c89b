"""TRAIN: the methods by name. A new one is one file and one entry here; a dotted path of a third party works too."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from efface.errors import UserError
from efface.registry import resolve

if TYPE_CHECKING:
    from efface.training.editor import PairEditor
    from efface.training.trainer import PairTrainer


@dataclass(frozen=True)
class Method:
    """Where a method lives, and what `efface methods` says of it."""

    path: str
    paper: str
    formula: str
    memory: str
    """What it keeps beside model, gradients and optimizer."""
    cost: float | None = None
    """Seconds of an optimizer step relative to SFT's (`benchmarks/results/methods.json`); None without such steps."""

    @property
    def cost_text(self) -> str:
        return "no steps" if self.cost is None else f"a step costs {self.cost:.2f} of SFT's"


METHODS = {
    "repo": Method(
        "efface.methods.repo:REPOTrainer",
        "Sepahvand et al. 2026, arXiv 2602.23391",
        "KL(f0 || f) on y+, and BCE(D(GRL(h)), toxic) on y+ and y-",
        "reference on disk, discriminators",
        1.18,
    ),
    "sft": Method("efface.methods.sft:SFTTrainer", "(control)", "-log f(y+)", "nothing", 1.04),
    "retain": Method(
        "efface.methods.retain:RetainTrainer",
        "(repo's ablation, w_erase = 0)",
        "KL(f0 || f) on y+",
        "reference on disk",
        0.95,
    ),
    "dpo": Method(
        "efface.methods.dpo:DPOTrainer",
        "Rafailov et al. 2023, arXiv 2305.18290",
        "-log sigmoid(beta (log f/f0(y+) - log f/f0(y-)))",
        "reference on disk",
        1.48,
    ),
    "npo": Method(
        "efface.methods.npo:NPOTrainer",
        "Zhang et al. 2024, arXiv 2404.05868",
        "-2/beta log sigmoid(-beta log f/f0(y-)), and KL(f0 || f) on y+",
        "reference on disk",
        1.57,
    ),
    "simnpo": Method(
        "efface.methods.simnpo:SimNPOTrainer",
        "Fan et al. 2024, arXiv 2410.07163",
        "-2/beta log sigmoid(-beta/|y-| log f(y-) - gamma), and -log f(y+)",
        "nothing",
        1.55,
    ),
    "graddiff": Method(
        "efface.methods.graddiff:GradDiffTrainer",
        "Liu et al. 2022, arXiv 2203.12817",
        "log f(y-), and -log f(y+)",
        "nothing",
        1.52,
    ),
    "rmu": Method(
        "efface.methods.rmu:RMUTrainer",
        "Li et al. 2024, arXiv 2403.03218",
        "||h - c u||^2 / d on y-, and ||h - h0||^2 / d on y+, at one layer",
        "reference in memory",
        0.26,
    ),
    "circuit_breakers": Method(
        "efface.methods.circuit_breakers:CircuitBreakersTrainer",
        "Zou et al. 2024, arXiv 2406.04313",
        "relu(cos(h, h0)) on y-, and ||h - h0|| / ||h0|| on y+",
        "nothing (the adapter is switched off)",
        1.00,
    ),
    "repnoise": Method(
        "efface.methods.repnoise:RepNoiseTrainer",
        "Rosati et al. 2024, arXiv 2405.14577",
        "beta MMD(h(y-), noise) - alpha log(1 - log f(y-)), and KL(f0 || f) on y+",
        "reference on disk, kernels of all layers",
        1.66,
    ),
    "task_vector": Method(
        "efface.methods.task_vector:TaskVectorEditor",
        "Ilharco et al. 2023, arXiv 2212.04089",
        "theta0 - scale (theta_toxic - theta0), the largest scale that keeps perplexity",
        "a toxic copy with its optimizer",
    ),
    "profs": Method(
        "efface.methods.profs:ProFSEditor",
        "Uppaal et al. 2024, arXiv 2405.13967",
        "(I - V V^T) W for MLP outputs, V from the SVD of centred toxic - benign states; no training",
        "two mean states a pair and block",
    ),
    "leace": Method(
        "efface.methods.leace:LeaceEditor",
        "Belrose et al. 2023, arXiv 2306.03819",
        "h - W^+ P W (h - mean) after a layer; no training",
        "nothing; a map of rank 1 beside the checkpoint",
    ),
    "steering": Method(
        "efface.methods.steering:SteeringEditor",
        "Turner et al. 2023, arXiv 2308.10248; Rimsky et al. 2023, arXiv 2312.06681",
        "h - strength (mean h of y- - mean h of y+) after a layer; no training",
        "nothing; a vector beside the checkpoint",
    ),
    "undo": Method(
        "efface.methods.undo:UNDOTrainer",
        "Lee et al. 2025, arXiv 2506.06278",
        "noise in the weights, then KL(f0 || f) on y+ and on passages (`efface robustify`)",
        "reference on disk",
        1.00,
    ),
}


def load_method(name: str) -> "type[PairTrainer] | type[PairEditor]":
    """The trainer class called `name`, or at the dotted path `package.module:Class`.

    Raises:
        UserError: if there is no such method.
    """
    paths = {name: method.path for name, method in METHODS.items()}
    found = resolve("method", name, paths, "package.module:Class")
    if not hasattr(found, "config_class"):
        raise UserError(
            f"method {name!r} is no trainer class of efface. Derive it from efface.training.trainer.PairTrainer."
        )
    return found
