"""TRAIN: the methods by name. A new one is one file and one entry here; a dotted path of a third party works too."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from efface.errors import UserError
from efface.registry import Entry, check_name, resolve
from efface.training import DEFAULT_STEPS

if TYPE_CHECKING:
    from efface.training.editor import PairEditor
    from efface.training.trainer import PairTrainer


@dataclass(frozen=True)
class Method(Entry):
    """`what` is its formula."""

    memory: str = ""
    """What it keeps beside model, gradients and optimizer."""
    cost: float | None = None
    """Seconds of an optimizer step relative to SFT's (`benchmarks/results/methods.json`); None if it was not measured,
    as of a method that takes none."""

    @property
    def cost_text(self) -> str:
        if self.cost is not None:
            return f"a step costs {self.cost:.2f} of SFT's"
        return "no steps" if self.path.endswith("Editor") else "cost not measured"


METHODS = {
    "repo": Method(
        "efface.methods.repo:REPOTrainer",
        "KL(f0 || f) on y+, and BCE(D(GRL(h)), toxic) on y+ and y-",
        "Sepahvand et al. 2026, arXiv 2602.23391",
        "reference on disk, discriminators",
        1.18,
    ),
    "sft": Method("efface.methods.sft:SFTTrainer", "-log f(y+)", "(control)", "nothing", 1.04),
    "retain": Method(
        "efface.methods.retain:RetainTrainer",
        "KL(f0 || f) on y+",
        "(repo's ablation, w_erase = 0)",
        "reference on disk",
        0.95,
    ),
    "dpo": Method(
        "efface.methods.dpo:DPOTrainer",
        "-log sigmoid(beta (log f/f0(y+) - log f/f0(y-)))",
        "Rafailov et al. 2023, arXiv 2305.18290",
        "reference on disk",
        1.48,
    ),
    "npo": Method(
        "efface.methods.npo:NPOTrainer",
        "-2/beta log sigmoid(-beta log f/f0(y-)), and KL(f0 || f) on y+",
        "Zhang et al. 2024, arXiv 2404.05868",
        "reference on disk",
        1.57,
    ),
    "simnpo": Method(
        "efface.methods.simnpo:SimNPOTrainer",
        "-2/beta log sigmoid(-beta/|y-| log f(y-) - gamma), and -log f(y+)",
        "Fan et al. 2024, arXiv 2410.07163",
        "nothing",
        1.55,
    ),
    "graddiff": Method(
        "efface.methods.graddiff:GradDiffTrainer",
        "log f(y-), and -log f(y+)",
        "Liu et al. 2022, arXiv 2203.12817",
        "nothing",
        1.52,
    ),
    "rmu": Method(
        "efface.methods.rmu:RMUTrainer",
        "||h - c u||^2 / d on y-, and ||h - h0||^2 / d on y+, at one layer",
        "Li et al. 2024, arXiv 2403.03218",
        "reference in memory",
        0.26,
    ),
    "circuit_breakers": Method(
        "efface.methods.circuit_breakers:CircuitBreakersTrainer",
        "relu(cos(h, h0)) on y-, and ||h - h0|| / ||h0|| on y+",
        "Zou et al. 2024, arXiv 2406.04313",
        "nothing (the adapter is switched off)",
        1.00,
    ),
    "repnoise": Method(
        "efface.methods.repnoise:RepNoiseTrainer",
        "beta MMD(h(y-), noise) - alpha log(1 - log f(y-)), and KL(f0 || f) on y+",
        "Rosati et al. 2024, arXiv 2405.14577",
        "reference on disk, kernels of all layers",
        1.66,
    ),
    "repselect": Method(
        "efface.methods.repselect:RepSelectEditor",
        "W - a P(d log f(y-) / dW) for MLP matrices, a toxic adapter on, P damps the top components, a by a KL budget",
        "Sondej et al. 2026, arXiv 2606.17168",
        "two copies of the model, one with a toxic adapter; a gradient of its MLPs",
    ),
    "task_vector": Method(
        "efface.methods.task_vector:TaskVectorEditor",
        "theta0 - scale (theta_toxic - theta0), the largest scale that keeps perplexity",
        "Ilharco et al. 2023, arXiv 2212.04089",
        "a toxic copy with its optimizer",
    ),
    "lox": Method(
        "efface.methods.lox:LoxEditor",
        "theta + strength Proj_k(theta - theta0), of an edited theta; no training",
        "Perin et al. 2025, arXiv 2506.15606",
        "the base, a copy of the model and the part that is added",
    ),
    "gptq": Method(
        "efface.methods.gptq:GPTQEditor",
        "an edited theta on the grid of theta0, column by column with errors made up for; no training",
        "Frantar et al. 2022, arXiv 2210.17323",
        "the base, and X^T X of some blocks' maps",
    ),
    "profs": Method(
        "efface.methods.profs:ProFSEditor",
        "(I - V V^T) W for MLP outputs, V from the SVD of centred toxic - benign states; no training",
        "Uppaal et al. 2024, arXiv 2405.13967",
        "two mean states a pair and block",
    ),
    "leace": Method(
        "efface.methods.leace:LeaceEditor",
        "h - W^+ P W (h - mean) after a layer; no training",
        "Belrose et al. 2023, arXiv 2306.03819",
        "nothing; a map of rank 1 beside the checkpoint",
    ),
    "steering": Method(
        "efface.methods.steering:SteeringEditor",
        "h - strength (mean h of y- - mean h of y+) after a layer; no training",
        "Turner et al. 2023, arXiv 2308.10248; Rimsky et al. 2023, arXiv 2312.06681",
        "nothing; a vector beside the checkpoint",
    ),
    "undo": Method(
        "efface.methods.undo:UNDOTrainer",
        "noise in the weights, then KL(f0 || f) on y+ and on passages (`efface robustify`)",
        "Lee et al. 2025, arXiv 2506.06278",
        "reference on disk",
        1.00,
    ),
}


PLAIN: dict[str, Any] = {"max_steps": DEFAULT_STEPS, "withstand": "none", "npo_weight": 0.0, "w_retain_text": 20.0}
"""Settings of `repo` that leave the erasure of the paper alone, whatever its defaults are: those of the demo, and of a
quick `efface detox`."""
FORM = "package.module:Class"


def check_method(name: str) -> None:
    """Raise a `UserError` if there is no such method, as far as that is seen without importing it."""
    check_name("method", name, METHODS, FORM)


def load_method(name: str) -> "type[PairTrainer] | type[PairEditor]":
    """The trainer class called `name`, or at the dotted path `package.module:Class`.

    Raises:
        UserError: if there is no such method.
    """
    found = resolve("method", name, METHODS, FORM)
    if not hasattr(found, "config_class"):
        raise UserError(
            f"method {name!r} is no trainer class of efface. Derive it from efface.training.trainer.PairTrainer."
        )
    return found
