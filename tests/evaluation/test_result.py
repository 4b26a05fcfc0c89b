"""Is what a result file says the same once it has been read as objects and written again?"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny_model, tiny_tokenizer

from efface.errors import UserError
from efface.evaluation.measure import evaluate
from efface.evaluation.result import Evaluation, Figures
from efface.evaluation.settings import OrdinaryText
from efface.files.results import read_json
from efface.scoring.scorer import NamedScorer

PROMPTS = ["The weather in the old town", "You", "She went to the market"]
TEXT = ["The history of the town is the history of its river and its people, and they said so."] * 2
HALF = NamedScorer("half", lambda texts: np.array([0.9 if len(text) % 2 else 0.1 for text in texts]))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models with everything measured that needs no extra; the second against the first."""
    folder = tmp_path_factory.mktemp("results")
    base = tiny_model("gpt2")
    for name, seed, baseline in (("base", 0, None), ("edited", 1, folder / "base.json")):
        model = tiny_model("gpt2", seed=seed)
        run: dict[str, Any] = {"processing_class": tiny_tokenizer(), "scorer": HALF, "reference": base}
        found = evaluate(model, PROMPTS, text=OrdinaryText(TEXT), identity=True, baseline=baseline, **run)
        found.save(folder / f"{name}.json")
    return folder


def test_an_evaluation_survives_its_file(saved: Path) -> None:
    for name in ("base", "edited"):
        content = read_json(saved / f"{name}.json")
        found = Evaluation.from_dict(content)
        assert found.to_dict(content["generations"]) == content
        assert list(found.to_dict()) == list(content)
    assert found.versus_baseline is not None
    assert found.versus_baseline.judges["half"]["share"].base == read_json(saved / "base.json")["toxicity"]["share"]


def test_figures_of_a_point_and_of_an_older_file(saved: Path) -> None:
    content = read_json(saved / "base.json")
    blocks = {name: content[name] for name in ("toxicity", "judges", "perplexity", "degeneration")}
    found = Figures.from_dict({"steps": 10, **blocks})
    assert found.toxicity.to_dict() == content["toxicity"] and list(found.judges) == ["half"]
    assert found.perplexity is not None and found.perplexity.value == content["perplexity"]["value"]
    assert found.degeneration.to_dict() == content["degeneration"]
    older = Figures.from_dict({"toxicity": blocks["toxicity"], "degeneration": blocks["degeneration"]})
    assert older.judges == found.judges and older.perplexity is None


def test_what_is_no_evaluation_is_refused(saved: Path) -> None:
    content = read_json(saved / "edited.json")
    with pytest.raises(UserError, match="the evaluation: 'toxicity' has no 'share'"):
        Evaluation.from_dict(content | {"toxicity": {k: v for k, v in content["toxicity"].items() if k != "share"}})
    with pytest.raises(UserError, match="the block 'versus_baseline': it has no 'judges'"):
        Evaluation.from_dict(content | {"versus_baseline": {}})
    with pytest.raises(UserError, match="the block 'identity': it has no 'control'"):
        Evaluation.from_dict(content | {"identity": {"identity": content["identity"]["identity"]}})
