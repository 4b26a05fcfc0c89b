"""efface: erase toxicity from the hidden representations of open-weight language models; attack and explain it."""

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from efface.attacks import load_attack
    from efface.attacks.result import AttackResult
    from efface.attacks.target import Target
    from efface.audit.run import audit as audit_models
    from efface.data.batch import PairCollator
    from efface.data.pairs import load_pairs
    from efface.errors import RunError, UserError
    from efface.evaluation.measure import evaluate
    from efface.evaluation.result import Evaluation
    from efface.generation.decoding import Decoding
    from efface.generation.generate import generate
    from efface.methods import load_method
    from efface.methods.circuit_breakers import CircuitBreakersConfig, CircuitBreakersTrainer
    from efface.methods.dpo import DPOConfig, DPOTrainer
    from efface.methods.gptq import GPTQConfig, GPTQEditor
    from efface.methods.graddiff import GradDiffConfig, GradDiffTrainer
    from efface.methods.leace import LeaceConfig, LeaceEditor
    from efface.methods.lox import LoxConfig, LoxEditor
    from efface.methods.npo import NPOConfig, NPOTrainer
    from efface.methods.profs import ProFSConfig, ProFSEditor
    from efface.methods.repnoise import RepNoiseConfig, RepNoiseTrainer
    from efface.methods.repo import REPOConfig, REPOTrainer
    from efface.methods.repselect import RepSelectConfig, RepSelectEditor
    from efface.methods.retain import RetainConfig, RetainTrainer
    from efface.methods.rmu import RMUConfig, RMUTrainer
    from efface.methods.sft import SFTConfig, SFTTrainer
    from efface.methods.simnpo import SimNPOConfig, SimNPOTrainer
    from efface.methods.steering import SteeringConfig, SteeringEditor
    from efface.methods.task_vector import TaskVectorConfig, TaskVectorEditor
    from efface.methods.undo import UNDOConfig, UNDOTrainer
    from efface.model.load import load_model
    from efface.model.save import save_model
    from efface.pairs import load_source
    from efface.pairs.builder import build_pairs
    from efface.pairs.config import BuilderConfig
    from efface.pairs.prompts import prompts_from_text
    from efface.pairs.report import BuildReport
    from efface.pairs.sources.antiexpert import AntiexpertSource
    from efface.pairs.sources.corpus import CorpusSource
    from efface.pairs.sources.dexperts import DExpertsSource
    from efface.pairs.sources.pplm import PPLMSource
    from efface.pairs.sources.sample import SampleSource
    from efface.scoring import load_scorer
    from efface.training.run import train

__version__ = "0.1.0"

# Public name -> where it lives. Resolved on first use: importing efface costs nothing.
_EXPORTS = {
    "AntiexpertSource": "efface.pairs.sources.antiexpert:AntiexpertSource",
    "AttackResult": "efface.attacks.result:AttackResult",
    "BuildReport": "efface.pairs.report:BuildReport",
    "BuilderConfig": "efface.pairs.config:BuilderConfig",
    "CircuitBreakersConfig": "efface.methods.circuit_breakers:CircuitBreakersConfig",
    "CircuitBreakersTrainer": "efface.methods.circuit_breakers:CircuitBreakersTrainer",
    "CorpusSource": "efface.pairs.sources.corpus:CorpusSource",
    "DExpertsSource": "efface.pairs.sources.dexperts:DExpertsSource",
    "DPOConfig": "efface.methods.dpo:DPOConfig",
    "DPOTrainer": "efface.methods.dpo:DPOTrainer",
    "Decoding": "efface.generation.decoding:Decoding",
    "Evaluation": "efface.evaluation.result:Evaluation",
    "GPTQConfig": "efface.methods.gptq:GPTQConfig",
    "GPTQEditor": "efface.methods.gptq:GPTQEditor",
    "GradDiffConfig": "efface.methods.graddiff:GradDiffConfig",
    "GradDiffTrainer": "efface.methods.graddiff:GradDiffTrainer",
    "LeaceConfig": "efface.methods.leace:LeaceConfig",
    "LeaceEditor": "efface.methods.leace:LeaceEditor",
    "LoxConfig": "efface.methods.lox:LoxConfig",
    "LoxEditor": "efface.methods.lox:LoxEditor",
    "NPOConfig": "efface.methods.npo:NPOConfig",
    "NPOTrainer": "efface.methods.npo:NPOTrainer",
    "PPLMSource": "efface.pairs.sources.pplm:PPLMSource",
    "PairCollator": "efface.data.batch:PairCollator",
    "ProFSConfig": "efface.methods.profs:ProFSConfig",
    "ProFSEditor": "efface.methods.profs:ProFSEditor",
    "REPOConfig": "efface.methods.repo:REPOConfig",
    "REPOTrainer": "efface.methods.repo:REPOTrainer",
    "RepSelectConfig": "efface.methods.repselect:RepSelectConfig",
    "RepSelectEditor": "efface.methods.repselect:RepSelectEditor",
    "RMUConfig": "efface.methods.rmu:RMUConfig",
    "RMUTrainer": "efface.methods.rmu:RMUTrainer",
    "RepNoiseConfig": "efface.methods.repnoise:RepNoiseConfig",
    "RepNoiseTrainer": "efface.methods.repnoise:RepNoiseTrainer",
    "RetainConfig": "efface.methods.retain:RetainConfig",
    "RetainTrainer": "efface.methods.retain:RetainTrainer",
    "RunError": "efface.errors:RunError",
    "SFTConfig": "efface.methods.sft:SFTConfig",
    "SFTTrainer": "efface.methods.sft:SFTTrainer",
    "SampleSource": "efface.pairs.sources.sample:SampleSource",
    "SimNPOConfig": "efface.methods.simnpo:SimNPOConfig",
    "SimNPOTrainer": "efface.methods.simnpo:SimNPOTrainer",
    "SteeringConfig": "efface.methods.steering:SteeringConfig",
    "SteeringEditor": "efface.methods.steering:SteeringEditor",
    "Target": "efface.attacks.target:Target",
    "TaskVectorConfig": "efface.methods.task_vector:TaskVectorConfig",
    "TaskVectorEditor": "efface.methods.task_vector:TaskVectorEditor",
    "UNDOConfig": "efface.methods.undo:UNDOConfig",
    "UNDOTrainer": "efface.methods.undo:UNDOTrainer",
    "UserError": "efface.errors:UserError",
    "audit_models": "efface.audit.run:audit",
    "build_pairs": "efface.pairs.builder:build_pairs",
    "evaluate": "efface.evaluation.measure:evaluate",
    "generate": "efface.generation.generate:generate",
    "load_attack": "efface.attacks:load_attack",
    "load_method": "efface.methods:load_method",
    "load_model": "efface.model.load:load_model",
    "load_pairs": "efface.data.pairs:load_pairs",
    "load_scorer": "efface.scoring:load_scorer",
    "load_source": "efface.pairs:load_source",
    "prompts_from_text": "efface.pairs.prompts:prompts_from_text",
    "save_model": "efface.model.save:save_model",
    "train": "efface.training.run:train",
}
__all__ = [
    "AntiexpertSource",
    "AttackResult",
    "BuildReport",
    "BuilderConfig",
    "CircuitBreakersConfig",
    "CircuitBreakersTrainer",
    "CorpusSource",
    "DExpertsSource",
    "DPOConfig",
    "DPOTrainer",
    "Decoding",
    "Evaluation",
    "GPTQConfig",
    "GPTQEditor",
    "GradDiffConfig",
    "GradDiffTrainer",
    "LeaceConfig",
    "LeaceEditor",
    "LoxConfig",
    "LoxEditor",
    "NPOConfig",
    "NPOTrainer",
    "PPLMSource",
    "PairCollator",
    "ProFSConfig",
    "ProFSEditor",
    "REPOConfig",
    "REPOTrainer",
    "RepSelectConfig",
    "RepSelectEditor",
    "RMUConfig",
    "RMUTrainer",
    "RepNoiseConfig",
    "RepNoiseTrainer",
    "RetainConfig",
    "RetainTrainer",
    "RunError",
    "SFTConfig",
    "SFTTrainer",
    "SampleSource",
    "SimNPOConfig",
    "SimNPOTrainer",
    "SteeringConfig",
    "SteeringEditor",
    "Target",
    "TaskVectorConfig",
    "TaskVectorEditor",
    "UNDOConfig",
    "UNDOTrainer",
    "UserError",
    "audit_models",
    "build_pairs",
    "evaluate",
    "generate",
    "load_attack",
    "load_method",
    "load_model",
    "load_pairs",
    "load_scorer",
    "load_source",
    "prompts_from_text",
    "save_model",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'efface' has no attribute {name!r}")
    return resolve_name(_EXPORTS[name])


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
