"""Does the cache say what the live reference says, and is what is stale or damaged made anew?

Of: training/reference_cache.py, training/reference_setup.py
"""

import json
import logging
import os
import pickle
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from forwards import RAGGED, batch_of
from peft import LoraConfig
from safetensors.torch import save_file
from tiny import FAMILIES, tiny_model
from trained import Build, assert_same, build, weights

from efface.data.batch import Item, predicting_positions
from efface.errors import RunError, UserError
from efface.files import io as files
from efface.files.results import cache_dir
from efface.model.fingerprint import fingerprint_of
from efface.model.forward import Head
from efface.training import reference_cache as module
from efface.training.reference import LiveReference
from efface.training.reference_cache import INDEX, ReferenceCache, open_cache

__all__ = ["build"]  # the fixture


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "cache"))


def items(n: int = 12, seed: int = 0) -> list[Item]:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 9, (n, 2), generator=generator).tolist()
    return [tuple(torch.randint(3, 300, (k,), generator=generator).tolist() for k in size) for size in sizes]  # type: ignore[misc]


def opened(model: Any, sequences: list[Item], layers: tuple[int, ...] = (0, 1), **settings: Any) -> ReferenceCache:
    settings.setdefault("fingerprint", fingerprint_of(model))
    return open_cache(LiveReference(model, False), Head.of(model), sequences, layers, **settings)


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
    states = LiveReference(model, adapter_off=False).states(batch, project, [1])
    assert seen == [n + 1]  # the rejected rows are not among them
    assert len(states["hidden"]) == project.sum() and not states["hidden"].requires_grad
    assert states["norms"].shape == (int(batch["continuation_mask"][:n].sum()), 1)


def test_a_second_opening_computes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sequences = tiny_model("gpt2"), items()
    first = opened(model, sequences)[3]
    monkeypatch.setattr(module, "compute_states", None)
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
    compute = module.compute_states
    monkeypatch.setattr(module, "compute_states", lambda *args: (computed.append(args[2]), compute(*args))[1])
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
    compute = module.compute_states
    computed: list[range] = []

    def interrupted(*args: Any) -> Any:
        computed.append(args[2])
        if len(computed) == 2:
            raise KeyboardInterrupt
        return compute(*args)

    monkeypatch.setattr(module, "compute_states", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opened(model, sequences)
    opened(model, sequences)
    assert computed[1] == computed[2] and len({numbers.start for numbers in computed}) == len(computed) - 1


def test_half_precision_states_its_error(caplog: pytest.LogCaptureFixture) -> None:
    model, sequences = tiny_model("llama"), items()
    with caplog.at_level(logging.INFO, logger="efface.training.reference_cache"):
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
    closed = pickle.dumps(cache)
    before = cache[2]["hidden"]
    assert pickle.dumps(cache) == closed  # what it has opened stays here
    assert torch.equal(pickle.loads(closed)[2]["hidden"], before)


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(RunError, match="states-00000.safetensors was not written: No space left on device"):
        opened(tiny_model("llama"), items())
    assert [file for folder in folders() for file in folder.iterdir()] == []


@pytest.mark.parametrize("files", [None, [], "x", 3])
def test_an_index_of_another_shape(files: Any) -> None:
    model = tiny_model("llama")
    before = opened(model, items())[0]["hidden"].clone()
    [folder] = folders()
    (folder / INDEX).write_text(json.dumps({"schema": 1, "files": files}))
    assert torch.equal(opened(model, items())[0]["hidden"], before)


def test_another_users_file_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sequences = tiny_model("llama"), items()
    opened(model, sequences)
    (file,) = (path for path in folders()[0].iterdir() if path.suffix == ".safetensors")
    assert file.stat().st_mode & 0o044 == 0o044 & ~_umask()  # others may read what the umask lets them
    read = module.file_digest

    def denied(path: Path) -> str:
        monkeypatch.setattr(module, "file_digest", read)
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "file_digest", denied)
    assert len(opened(model, sequences)) == len(sequences)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_states_of_another_shape_are_made_again() -> None:
    model, sequences = tiny_model("llama"), items()
    right = opened(model, sequences)[0]["hidden"]
    (file,) = folders()[0].glob("*.safetensors")
    save_file({"hidden": torch.zeros(2, 3), "norms": torch.zeros(2, 2)}, file)
    index = json.loads((folders()[0] / INDEX).read_text())
    index["files"][file.name] = module.file_digest(file)  # as if it were ours
    (folders()[0] / INDEX).write_text(json.dumps(index))
    assert torch.equal(opened(model, sequences)[0]["hidden"], right)


def test_a_disk_that_is_full_is_a_run_error() -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        with pytest.raises(RunError, match="states-00000.safetensors was not written: File too large"):
            opened(tiny_model("llama"), items())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_cache_that_cannot_be_written_does_not_end_a_run_that_needs_none(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "file" / "cache"))  # not even root can write there
    settings: dict[str, Any] = {"per_device_train_batch_size": 8, "optim": "sgd"}  # every pair is seen
    with pytest.raises(RunError, match="was not written: Not a directory.*EFFACE_CACHE.*precompute_reference=off"):
        build(precompute_reference="on", **settings)
    live = build(precompute_reference="off", **settings)
    live.train()
    with caplog.at_level(logging.WARNING):
        found = build(precompute_reference="auto", **settings)
    assert "the reference runs live instead" in caplog.text
    found.train()
    assert_same(weights(found.model), weights(live.model), rtol=0, atol=0)


@pytest.mark.parametrize("start", ["pissa", "olora"])
@pytest.mark.parametrize("kept", ["on", "off"])
def test_a_base_that_its_adapter_has_changed_is_no_reference(start: Any, kept: str, build: Build) -> None:
    """With such an adapter off the model is another one than before it."""
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=start)
    with pytest.raises(UserError, match="peft_config changes weights of the base.*Pass ref_model"):
        build(peft_config=config, precompute_reference=kept)
    assert not (cache_dir() / "reference").exists()
    given = build(peft_config=config, precompute_reference=kept, ref_model=tiny_model("llama"))
    assert given.reference.kept_in == ("float32" if kept == "on" else None)
    usual = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights="gaussian")
    build(peft_config=usual, precompute_reference=kept)
