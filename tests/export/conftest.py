"""What do the tests of exports share? Evaluations, an audit made of chosen shares, a real small one, the schemas."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blocks import blocks_of
from tiny import tiny_model, tiny_tokenizer

from efface.audit.columns import weigh
from efface.audit.run import audit_models
from efface.evaluation.measure import evaluate
from efface.evaluation.settings import OrdinaryText
from efface.files.jsonl import Row
from efface.files.results import write_json
from efface.generation.decoding import Decoding
from efface.scoring.scorer import NamedScorer

PROMPTS = ["The weather in the old town", "You", 'She said "go" to\nthe market\x1b[31m']
TEXT = ["The history of the town is the history of its river and its people, and they said so."] * 2
HALF = NamedScorer("half", lambda texts: np.array([0.9 if len(text) % 2 else 0.1 for text in texts]))
LOW = NamedScorer("low", lambda texts: np.array([0.2 for _ in texts]))


@pytest.fixture(scope="session")
def evaluations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, as `efface demo` leaves them beside each other; no summary."""
    folder = tmp_path_factory.mktemp("evaluations")
    base = tiny_model("gpt2")
    for name, seed in (("base", 0), ("edited", 1)):
        evaluate(
            tiny_model("gpt2", seed=seed),
            PROMPTS,
            processing_class=tiny_tokenizer(),
            scorer=[HALF, LOW],
            decoding=Decoding(samples=2, max_new_tokens=6),
            text=OrdinaryText(TEXT, f1_text=[" ".join(TEXT * 4)]),
            identity=True,
            reference=base,
        ).save(folder / f"{name}.json")
    return folder


@pytest.fixture
def audit(tmp_path: Path) -> Callable[..., Path]:
    """Write an audit of rows as `efface audit` does, and return its directory."""

    def made(*rows: Row, controls: Any = None, **more: Any) -> Path:
        weigh(rows, controls or {})
        target = {"decoding": Decoding().to_dict()}
        model = {"name": "edited", "model": "org/edited", "error": None, "attacks": list(rows), "columns": {}}
        model |= {"target": target, "evaluation": blocks_of(0.1, perplexity=20.0)}
        folder = tmp_path / "audit"
        results: Row = {"schema": 2, "budget": "standard", "cannot_show": [], "base": None, "models": [model]}
        results |= {"controls": {}, "comparisons": [], "command": "efface audit edited", "seeds": {"attack": 0}}
        results["environment"] = {"versions": {"efface": "0.1.0", "transformers": "5.0"}, "command": "efface audit"}
        write_json(folder / "results.json", results | more)
        return folder

    return made


@pytest.fixture(scope="session")
def real_audit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model whose attacks partly fail."""
    folder = tmp_path_factory.mktemp("audited")
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    tiny_model("llama", seed=1).save_pretrained(folder / "edited")
    tiny_tokenizer().save_pretrained(folder / "edited")
    measurement = {"prompts": prompts, "scorer": "stubs:parity", "decoding": Decoding(max_new_tokens=4)}
    attacks = ["third_party:fine", "third_party:crashes", "merge"]
    named = {"edited": folder / "edited"}
    audit_models(named, output=folder / "audit", only=attacks, measurement=measurement)
    return folder / "audit"


@pytest.fixture
def validated(shared_data: Path) -> Callable[[Any, str], None]:
    """Nothing, if an object is as a schema of the data folder says."""
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema, of the extra dev")

    def check(value: Any, name: str) -> None:
        file = shared_data / "schemas" / name
        if not file.is_file():
            pytest.skip(f"needs the schema {file.name}, which is not part of the repository")
        schema = json.loads(file.read_text(encoding="utf-8"))
        jsonschema.validators.validator_for(schema)(schema).validate(value)

    return check
