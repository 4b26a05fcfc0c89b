"""What stands where vLLM would in the tests? A module with the part of its interface that efface calls, and no GPU.

Names, defaults and refusals are those of vLLM's documentation and source; an argument that is not listed here is an
error. It reads the checkpoint that it is given with transformers, and takes tokens one after another by whole
forwards, without a cache: nothing of efface's decoder has a part in it.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM

ENGINES: list["LLM"] = []
"""All that were started, in their order."""


@dataclass
class SamplingParams:
    """How one request is answered."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop_token_ids: list[int] = field(default_factory=list)
    ignore_eos: bool = False
    max_tokens: int | None = 16
    detokenize: bool = True
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 2.0 or not 0.0 < self.top_p <= 1.0 or self.top_k < -1:
            raise ValueError(f"temperature {self.temperature}, top_p {self.top_p}, top_k {self.top_k}")
        if self.temperature < 1e-5 and self.n > 1:
            raise ValueError(f"n must be 1 when using greedy sampling, got {self.n}.")


class LLM:
    """An engine."""

    def __init__(
        self,
        model: str,
        *,
        tokenizer: str | None = None,
        dtype: str = "auto",
        max_model_len: int | None = None,
        seed: int = 0,
        gpu_memory_utilization: float = 0.92,
        trust_remote_code: bool = False,
        load_format: str = "auto",
        generation_config: str = "auto",
    ):
        assert not trust_remote_code and load_format == "safetensors" and 0 < gpu_memory_utilization <= 1
        assert os.environ.get("VLLM_NO_USAGE_STATS") == "1"
        self.given = {"model": model, "dtype": dtype, "max_model_len": max_model_len, "seed": seed}
        self.max_model_len = max_model_len or 10**9
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            model, dtype=getattr(torch, dtype), trust_remote_code=False
        )
        defaults = self.model.generation_config if generation_config == "auto" else SimpleNamespace(eos_token_id=None)
        self.eos = defaults.eos_token_id
        self.params: list[SamplingParams] = []
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=self._shutdown))
        ENGINES.append(self)

    def _shutdown(self) -> None:
        self.model = None

    def generate(
        self, prompts: Sequence[dict[str, list[int]]], sampling_params: Sequence[SamplingParams], *, use_tqdm: bool
    ) -> list[Any]:
        """Served from the last to the first; given back in the order of the prompts."""
        self.params = list(sampling_params)
        assert len(prompts) == len(self.params)
        found = {}
        for place in reversed(range(len(prompts))):
            ids, params = prompts[place]["prompt_token_ids"], self.params[place]
            assert 0 < len(ids) < self.max_model_len
            written = [self._continued(ids, params, number) for number in range(params.n)]
            found[place] = SimpleNamespace(
                prompt_token_ids=ids,
                outputs=[SimpleNamespace(index=number, token_ids=new, text="") for number, new in enumerate(written)],
            )
        return [found[place] for place in range(len(prompts))]

    @torch.no_grad()
    def _continued(self, ids: list[int], params: SamplingParams, number: int) -> list[int]:
        draws = torch.Generator()
        if params.seed is not None:
            draws.manual_seed(params.seed + number)
        new: list[int] = []
        while len(new) < (params.max_tokens or 10**9) and len(ids) + len(new) < self.max_model_len:
            logits = self.model(input_ids=torch.tensor([ids + new])).logits[0, -1].float()  # (V,)
            if params.temperature < 1e-5:
                new.append(int(logits.argmax()))
            else:
                new.append(self._drawn(logits / params.temperature, params, draws))
            if new[-1] in params.stop_token_ids or (not params.ignore_eos and new[-1] == self.eos):
                break
        return new

    def _drawn(self, logits: torch.Tensor, params: SamplingParams, draws: torch.Generator) -> int:
        values, order = logits.sort(descending=True)
        if params.top_k > 0:
            values = values[: params.top_k]
        mass = values.softmax(-1)
        kept = mass[: int((mass.cumsum(-1) < params.top_p).sum()) + 1]
        return int(order[torch.multinomial(kept, 1, generator=draws)])


def installed(monkeypatch: Any) -> list[LLM]:
    """Put this module where `import vllm` looks, and give the list of the engines that will be started."""
    ENGINES.clear()
    monkeypatch.setitem(sys.modules, "vllm", sys.modules[__name__])
    return ENGINES
