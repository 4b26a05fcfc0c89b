"""Which model do the jobs work on, and how many pairs do they probe?"""

import pytest
from tiny import tiny_model, tiny_tokenizer

from efface.analysis.rounds import PARTS
from efface.jobs import erasure as job


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_model("gpt2").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def few_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As few as a probe takes."""
    monkeypatch.setattr(job, "N_PAIRS", PARTS)
