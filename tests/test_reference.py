"""Does the cache say what the live reference says, and is what is stale or damaged made anew?"""

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from test_layout import RAGGED, batch_of
from tiny import FAMILIES, tiny_model

from efface import results
from efface.data import Item
from efface.errors import RunError, UserError
from efface.fingerprint import fingerprint_of
from efface.forward import Head
from efface.functional import predicting_positions
from efface.methods import reference as module
from efface.methods.reference import INDEX, Reference, ReferenceCache, open_cache
from efface.sources import cache_dir


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "cache"))


def items(n: int = 12, seed: int = 0) -> list[Item]:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 9, (n, 2), generator=generator).tolist()
    return [tuple(torch.randint(3, 300, (k,), generator=generator).tolist() for k in size) for size in sizes]  # type: ignore[misc]


def opened(model: Any, sequences: list[Item], layers: tuple[int, ...] = (0, 1), **settings: Any) -> ReferenceCache:
    settings.setdefault("fingerprint", fingerprint_of(model))
    return open_cache(Reference(model, False), Head.of(model), sequences, layers, **settings)


def folders() -> list[Path]:
    return sorted((cache_dir() / "reference").iterdir())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_holds_what_a_plain_forward_gives(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FILE_BYTES", 2000)  # several files
    model, sequences = tiny_model(family), items()
    cache = opened(model, sequences)
    assert len(cache) == len(sequences) and len(cache.bounds) > 2
    head = Head.of(model)
    for number, (context, continuation) in enumerate(sequences):
        ids = torch.tensor([context + continuation])
        with torch.no_grad():
            output = model(input_ids=ids, output_hidden_states=True)
        states = cache[number]
        predicting = slice(len(context) - 1, ids.shape[1] - 1)
        torch.testing.assert_close(head(states["hidden"]), output.logits[0, predicting], rtol=1e-4, atol=1e-4)
        norms = output.hidden_states[1][0, len(context) :].norm(dim=-1)
        torch.testing.assert_close(states["norms"][:, 0], norms, rtol=1e-4, atol=1e-4)


def test_live_states_are_those_of_the_rows_that_are_asked() -> None:
    model, batch = tiny_model("llama"), batch_of(RAGGED, [6])
    project, n = predicting_positions(batch["continuation_mask"]), batch["n_pairs"]
    project[n : 2 * n] = False
    seen: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    states = Reference(model, adapter_off=False)(batch, project, [1])
    assert seen == [n + 1]  # the rejected rows are not among them
    assert len(states["hidden"]) == project.sum() and not states["hidden"].requires_grad
    assert states["norms"].shape == (int(batch["continuation_mask"][:n].sum()), 1)


def test_a_second_opening_computes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sequences = tiny_model("gpt2"), items()
    first = opened(model, sequences)[3]
    monkeypatch.setattr(module, "_compute", None)
    again = opened(model, sequences)[3]
    assert torch.equal(first["hidden"], again["hidden"]) and torch.equal(first["norms"], again["norms"])


def test_what_is_of_another_model_or_other_pairs_is_not_taken() -> None:
    model, sequences = tiny_model("llama"), items()
    opened(model, sequences)
    opened(model, sequences, layers=(1,))
    opened(model, sequences, dtype="bfloat16")
    opened(model, [*sequences[:-1], ([5], [6])])
    opened(
        model,
        [(context + continuation[:1], continuation[1:]) for context, continuation in sequences if continuation[1:]],
    )
    assert len(folders()) == 5
    before = fingerprint_of(model)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    assert fingerprint_of(model) != before
    opened(model, sequences)
    assert len(folders()) == 6


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "index"])
def test_a_damaged_cache_is_made_anew(
    damage: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "FILE_BYTES", 2000)
    model, sequences = tiny_model("llama"), items()
    whole = opened(model, sequences)
    expected = [whole[i]["hidden"].clone() for i in range(len(sequences))]
    del whole
    (folder,) = folders()
    file = folder / "states-00001.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:-10])
    elif damage == "remove":
        file.unlink()
    else:
        (folder / INDEX).write_text("{")
    computed: list[range] = []
    compute = module._compute
    monkeypatch.setattr(module, "_compute", lambda *args: (computed.append(args[2]), compute(*args))[1])
    with caplog.at_level(logging.WARNING):
        again = opened(model, sequences)
    if damage == "index":
        assert len(computed) == len(again.bounds)
    else:
        assert len(computed) == 1 and "1 of" in caplog.text and "missing or damaged: made again" in caplog.text
    assert all(torch.equal(again[i]["hidden"], states) for i, states in enumerate(expected))


def test_an_interrupted_cache_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FILE_BYTES", 2000)
    model, sequences = tiny_model("llama"), items()
    compute = module._compute
    computed: list[range] = []

    def interrupted(*args: Any) -> Any:
        computed.append(args[2])
        if len(computed) == 2:
            raise KeyboardInterrupt
        return compute(*args)

    monkeypatch.setattr(module, "_compute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opened(model, sequences)
    opened(model, sequences)
    assert computed[1] == computed[2] and len({numbers.start for numbers in computed}) == len(computed) - 1


def test_half_precision_states_its_error(caplog: pytest.LogCaptureFixture) -> None:
    model, sequences = tiny_model("llama"), items()
    with caplog.at_level(logging.INFO, logger="efface.methods.reference"):
        cache = opened(model, sequences, dtype="bfloat16")
    exact = opened(model, sequences)
    assert cache[0]["hidden"].dtype == torch.bfloat16
    torch.testing.assert_close(cache[0]["hidden"].float(), exact[0]["hidden"], rtol=1e-2, atol=1e-2)
    error = json.loads((cache.directory / INDEX).read_text())["rounding_kl"]
    assert 0 < error < 1e-2 and f"rounding costs {error:.1e} nats a token" in caplog.text
    with pytest.raises(UserError, match="reference_dtype='int8' is unknown. Choose one of float32, bfloat16, float16"):
        opened(model, sequences, dtype="int8")


def test_a_worker_opens_files_of_its_own() -> None:
    cache = opened(tiny_model("llama"), items())
    before = cache[2]["hidden"]
    copy = pickle.loads(pickle.dumps(cache))
    assert not copy._open and torch.equal(copy[2]["hidden"], before)


@pytest.mark.parametrize("by", ["the system", "safetensors"])
def test_a_full_disk(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        text = "No space left on device"
        raise OSError(28, text) if by == "the system" else SafetensorError(f"I/O error: {text} (os error 28)")

    monkeypatch.setattr(*((results.os, "replace") if by == "the system" else (module, "save_file")), full)
    with pytest.raises(RunError, match=r"cannot be written to '.*' \(.*No space left on device.*\). Free some"):
        opened(tiny_model("llama"), items())
    assert [file for folder in folders() for file in folder.iterdir()] == []


def test_a_folder_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_CACHE", "/proc/no-such-cache")
    with pytest.raises(RunError, match=r"to '/proc/no-such-cache/.*set EFFACE_CACHE to a folder .* --precompute_re"):
        opened(tiny_model("llama"), items())


@pytest.mark.parametrize("files", [None, [], "x", 3])
def test_an_index_of_another_shape(files: Any) -> None:
    model = tiny_model("llama")
    before = opened(model, items())[0]["hidden"].clone()
    [folder] = folders()
    (folder / INDEX).write_text(json.dumps({"schema": 1, "files": files}))
    assert torch.equal(opened(model, items())[0]["hidden"], before)
