"""Does an edit survive rounding once it is settled on its base's grid?"""

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import on_grid_
from tiny import tiny_model, tiny_tokenizer
from trained import PASSAGES, ROWS

from efface.errors import UserError
from efface.files.results import write_jsonl
from efface.methods.gptq import GPTQConfig, GPTQEditor, gram_matrices
from efface.model.projections import linear_maps, output_weight
from efface.model.rounding import rounded
from efface.model.save import save_model


def edited_model(family: str, size: float = 0.05) -> Any:
    """An edit of rank 1 in each map, a fifth of a cell or so, and one of each norm."""
    model = on_grid_(tiny_model(family))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in linear_maps(model).values():
            weight = output_weight(module).data
            ends = (torch.randn(n, 1, generator=generator) for n in weight.shape)
            weight.add_(size * weight.std() * next(ends) @ next(ends).T)
        for parameter in (parameter for parameter in model.parameters() if parameter.ndim == 1):
            parameter.mul_(1 + size)
    return model


def editor(folder: Path, family: str = "llama", model: Any = None, **settings: Any) -> GPTQEditor:
    write_jsonl(folder / "passages.jsonl", [{"text": text} for text in PASSAGES])
    save_model(on_grid_(tiny_model(family)), tiny_tokenizer(), folder / "base")
    defaults = {"base": str(folder / "base"), "retain_text": str(folder / "passages.jsonl")}
    config = GPTQConfig(str(folder / "out"), use_cpu=True, disable_tqdm=True, **defaults | settings)
    return GPTQEditor(edited_model(family) if model is None else model, config, ROWS, tiny_tokenizer())


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # gpt2 stores its maps turned
def test_a_settled_edit_stays_when_it_is_rounded(family: str, tmp_path: Path) -> None:
    base, edited = on_grid_(tiny_model(family)), edited_model(family)
    found = editor(tmp_path, family)
    found.train()

    maps = {name: output_weight(module).data.clone() for name, module in linear_maps(found.model).items()}
    for name, module in linear_maps(base).items():
        start = output_weight(module).data
        assert torch.equal(maps[name].amax(1), start.amax(1)) and not torch.equal(maps[name], start)
        torch.testing.assert_close(rounded(maps[name], 4, 32, "asymmetric"), maps[name], rtol=0, atol=1e-6)
    assert 0 < found.found["crossed"] < 0.1 and 0.6 < found.found["kept"] < 1.1 and found.found["error"] < 0.9
    for name, parameter in found.model.named_parameters():
        if parameter.ndim == 1 and "weight" in name:  # norms are not rounded, and keep their edit
            assert torch.equal(parameter, edited.get_parameter(name))


def test_a_multiple_of_the_edit_may_be_settled(tmp_path: Path) -> None:
    twice, once = editor(tmp_path / "a", strength=2.0), editor(tmp_path / "b")
    twice.train()
    once.train()
    assert twice.found["crossed"] > once.found["crossed"]


def test_the_inputs_that_are_read_are_those_of_real_tokens() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    sequences = [tokenizer("the cat sat on the mat").input_ids, tokenizer("a dog").input_ids]
    maps = {"0.self_attn.q_proj": linear_maps(model)["0.self_attn.q_proj"]}
    (gram,) = gram_matrices(model, maps, sequences, pad=0).values()
    alone = [gram_matrices(model, maps, [one], pad=0)["0.self_attn.q_proj"] for one in sequences]
    torch.testing.assert_close(gram, alone[0] + alone[1])
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_base_that_lies_on_no_such_grid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="do not lie on the grid of 3 bits"):
        editor(tmp_path, bits=3)
    with pytest.raises(UserError, match="keeps its experts in stacks of matrices, which gptq does not reach"):
        editor(tmp_path, "mixtral")
    with pytest.raises(UserError, match="bits=9"):
        GPTQConfig("out", bits=9)
