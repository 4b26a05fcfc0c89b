"""efface: erase toxicity from the hidden representations of open-weight language models; attack and explain it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # `as` the same name: a type checker then takes it for public
    from efface.analysis.conditional import conditional_layers as conditional_layers
    from efface.analysis.marked import load_marked as load_marked
    from efface.analysis.marked import marked_states as marked_states
    from efface.attacks import load_attack as load_attack
    from efface.attacks.result import AttackResult as AttackResult
    from efface.attacks.target import Target as Target
    from efface.audit.run import audit_models as audit_models
    from efface.data.batch import PairCollator as PairCollator
    from efface.data.pairs import Pairs as Pairs
    from efface.data.pairs import load_pairs as load_pairs
    from efface.errors import RunError as RunError
    from efface.errors import UserError as UserError
    from efface.evaluation.budget import UtilityBounds as UtilityBounds
    from efface.evaluation.divergence import kl_to_reference as kl_to_reference
    from efface.evaluation.measure import evaluate as evaluate
    from efface.evaluation.prompt_sets import load_prompts as load_prompts
    from efface.evaluation.result import Evaluation as Evaluation
    from efface.evaluation.settings import OrdinaryText as OrdinaryText
    from efface.evaluation.settings import PromptSet as PromptSet
    from efface.evaluation.settings import RunSettings as RunSettings
    from efface.evaluation.settings import UtilityTasks as UtilityTasks
    from efface.evaluation.toxicity import ToxicitySummary as ToxicitySummary
    from efface.generation.decoding import Decoding as Decoding
    from efface.generation.generate import Continuation as Continuation
    from efface.generation.generate import generate as generate
    from efface.generation.generate import generate_ids as generate_ids
    from efface.jobs.analyze import analyze as analyze
    from efface.jobs.detox import detox as detox
    from efface.jobs.detox_settings import DetoxSettings as DetoxSettings
    from efface.jobs.scale import scale as scale
    from efface.methods import load_method as load_method
    from efface.methods.circuit_breakers import CircuitBreakersConfig as CircuitBreakersConfig
    from efface.methods.circuit_breakers import CircuitBreakersTrainer as CircuitBreakersTrainer
    from efface.methods.dpo import DPOConfig as DPOConfig
    from efface.methods.dpo import DPOTrainer as DPOTrainer
    from efface.methods.gptq import GPTQConfig as GPTQConfig
    from efface.methods.gptq import GPTQEditor as GPTQEditor
    from efface.methods.graddiff import GradDiffConfig as GradDiffConfig
    from efface.methods.graddiff import GradDiffTrainer as GradDiffTrainer
    from efface.methods.leace import LeaceConfig as LeaceConfig
    from efface.methods.leace import LeaceEditor as LeaceEditor
    from efface.methods.lox import LoxConfig as LoxConfig
    from efface.methods.lox import LoxEditor as LoxEditor
    from efface.methods.npo import NPOConfig as NPOConfig
    from efface.methods.npo import NPOTrainer as NPOTrainer
    from efface.methods.profs import ProFSConfig as ProFSConfig
    from efface.methods.profs import ProFSEditor as ProFSEditor
    from efface.methods.repnoise import RepNoiseConfig as RepNoiseConfig
    from efface.methods.repnoise import RepNoiseTrainer as RepNoiseTrainer
    from efface.methods.repo import REPOConfig as REPOConfig
    from efface.methods.repo import REPOTrainer as REPOTrainer
    from efface.methods.repselect import RepSelectConfig as RepSelectConfig
    from efface.methods.repselect import RepSelectEditor as RepSelectEditor
    from efface.methods.retain import RetainConfig as RetainConfig
    from efface.methods.retain import RetainTrainer as RetainTrainer
    from efface.methods.rmu import RMUConfig as RMUConfig
    from efface.methods.rmu import RMUTrainer as RMUTrainer
    from efface.methods.sft import SFTConfig as SFTConfig
    from efface.methods.sft import SFTTrainer as SFTTrainer
    from efface.methods.simnpo import SimNPOConfig as SimNPOConfig
    from efface.methods.simnpo import SimNPOTrainer as SimNPOTrainer
    from efface.methods.steering import SteeringConfig as SteeringConfig
    from efface.methods.steering import SteeringEditor as SteeringEditor
    from efface.methods.task_vector import TaskVectorConfig as TaskVectorConfig
    from efface.methods.task_vector import TaskVectorEditor as TaskVectorEditor
    from efface.methods.undo import UNDOConfig as UNDOConfig
    from efface.methods.undo import UNDOTrainer as UNDOTrainer
    from efface.model.load import load_model as load_model
    from efface.model.save import save_model as save_model
    from efface.pairs import load_source as load_source
    from efface.pairs.builder import build_pairs as build_pairs
    from efface.pairs.config import BuilderConfig as BuilderConfig
    from efface.pairs.prompts import prompts_from_text as prompts_from_text
    from efface.pairs.report import BuildReport as BuildReport
    from efface.pairs.sources.antiexpert import AntiexpertSource as AntiexpertSource
    from efface.pairs.sources.corpus import CorpusSource as CorpusSource
    from efface.pairs.sources.dexperts import DExpertsSource as DExpertsSource
    from efface.pairs.sources.pplm import PPLMSource as PPLMSource
    from efface.pairs.sources.sample import SampleSource as SampleSource
    from efface.scoring import load_scorer as load_scorer
    from efface.scoring.scorer import NamedScorer as NamedScorer
    from efface.scoring.scorer import Scorer as Scorer
    from efface.scoring.scorer import score as score
    from efface.training.run import train as train

# Public name -> the module that it is in. Resolved on first use: importing efface costs nothing.
_EXPORTS = {
    "analyze": "efface.jobs.analyze",
    "AntiexpertSource": "efface.pairs.sources.antiexpert",
    "AttackResult": "efface.attacks.result",
    "audit_models": "efface.audit.run",
    "build_pairs": "efface.pairs.builder",
    "BuilderConfig": "efface.pairs.config",
    "BuildReport": "efface.pairs.report",
    "CircuitBreakersConfig": "efface.methods.circuit_breakers",
    "CircuitBreakersTrainer": "efface.methods.circuit_breakers",
    "conditional_layers": "efface.analysis.conditional",
    "Continuation": "efface.generation.generate",
    "CorpusSource": "efface.pairs.sources.corpus",
    "Decoding": "efface.generation.decoding",
    "detox": "efface.jobs.detox",
    "DetoxSettings": "efface.jobs.detox_settings",
    "DExpertsSource": "efface.pairs.sources.dexperts",
    "DPOConfig": "efface.methods.dpo",
    "DPOTrainer": "efface.methods.dpo",
    "evaluate": "efface.evaluation.measure",
    "Evaluation": "efface.evaluation.result",
    "generate": "efface.generation.generate",
    "generate_ids": "efface.generation.generate",
    "GPTQConfig": "efface.methods.gptq",
    "GPTQEditor": "efface.methods.gptq",
    "GradDiffConfig": "efface.methods.graddiff",
    "GradDiffTrainer": "efface.methods.graddiff",
    "kl_to_reference": "efface.evaluation.divergence",
    "LeaceConfig": "efface.methods.leace",
    "LeaceEditor": "efface.methods.leace",
    "load_attack": "efface.attacks",
    "load_marked": "efface.analysis.marked",
    "load_method": "efface.methods",
    "load_model": "efface.model.load",
    "load_pairs": "efface.data.pairs",
    "load_prompts": "efface.evaluation.prompt_sets",
    "load_scorer": "efface.scoring",
    "load_source": "efface.pairs",
    "LoxConfig": "efface.methods.lox",
    "LoxEditor": "efface.methods.lox",
    "marked_states": "efface.analysis.marked",
    "NamedScorer": "efface.scoring.scorer",
    "NPOConfig": "efface.methods.npo",
    "NPOTrainer": "efface.methods.npo",
    "OrdinaryText": "efface.evaluation.settings",
    "PairCollator": "efface.data.batch",
    "Pairs": "efface.data.pairs",
    "PPLMSource": "efface.pairs.sources.pplm",
    "ProFSConfig": "efface.methods.profs",
    "ProFSEditor": "efface.methods.profs",
    "prompts_from_text": "efface.pairs.prompts",
    "PromptSet": "efface.evaluation.settings",
    "RepNoiseConfig": "efface.methods.repnoise",
    "RepNoiseTrainer": "efface.methods.repnoise",
    "REPOConfig": "efface.methods.repo",
    "REPOTrainer": "efface.methods.repo",
    "RepSelectConfig": "efface.methods.repselect",
    "RepSelectEditor": "efface.methods.repselect",
    "RetainConfig": "efface.methods.retain",
    "RetainTrainer": "efface.methods.retain",
    "RMUConfig": "efface.methods.rmu",
    "RMUTrainer": "efface.methods.rmu",
    "RunError": "efface.errors",
    "RunSettings": "efface.evaluation.settings",
    "SampleSource": "efface.pairs.sources.sample",
    "save_model": "efface.model.save",
    "scale": "efface.jobs.scale",
    "score": "efface.scoring.scorer",
    "Scorer": "efface.scoring.scorer",
    "SFTConfig": "efface.methods.sft",
    "SFTTrainer": "efface.methods.sft",
    "SimNPOConfig": "efface.methods.simnpo",
    "SimNPOTrainer": "efface.methods.simnpo",
    "SteeringConfig": "efface.methods.steering",
    "SteeringEditor": "efface.methods.steering",
    "Target": "efface.attacks.target",
    "TaskVectorConfig": "efface.methods.task_vector",
    "TaskVectorEditor": "efface.methods.task_vector",
    "ToxicitySummary": "efface.evaluation.toxicity",
    "train": "efface.training.run",
    "UNDOConfig": "efface.methods.undo",
    "UNDOTrainer": "efface.methods.undo",
    "UserError": "efface.errors",
    "UtilityBounds": "efface.evaluation.budget",
    "UtilityTasks": "efface.evaluation.settings",
}

if not TYPE_CHECKING:  # a checker would take any name for public, or none
    __all__ = list(_EXPORTS)

    def __getattr__(name: str) -> Any:
        if name not in _EXPORTS:
            raise AttributeError(f"module 'efface' has no attribute {name!r}")
        return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
