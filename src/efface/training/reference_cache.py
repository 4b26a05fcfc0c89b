"""How do the states of a reference lie on disk? Computed once, memory-mapped, checked by hash when they are opened.

They are its final hidden states (tokens x d, after the final norm: small); the model is then needed no more. A cache
lies under `EFFACE_CACHE/reference/KEY`; KEY is a hash of the model, of all token ids, of what is stored and of what
computed it (libraries, kind of device, precision), so a cache of something else is never found. What is missing or
damaged is computed again.
"""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from efface.data.batch import Item, ReferenceStates, collate_rows, predicting_positions
from efface.errors import UserError
from efface.files.digests import file_digest
from efface.files.environment import versions
from efface.files.io import is_regular_file, renamed_when_whole
from efface.files.results import cache_dir, read_json, write_json
from efface.files.shapes import Each
from efface.model.forward import Head
from efface.model.layout import plain_layout
from efface.model.padding import batches_by_length, most_columns
from efface.terminal.progress import track
from efface.training.reference import LiveReference, mean_kl, norms_of

logger = logging.getLogger(__name__)

INDEX = "index.json"
FILE_BYTES = 2**26  # states in one file, about; also what an interruption can lose
FILE_ITEMS = 4096  # at most, for short items of a small model
DTYPES = ("float32", "bfloat16", "float16")


class ReferenceCache(Sequence[ReferenceStates]):
    """States on disk, an entry for each item: what predicts its continuation, and the norms of its residuals."""

    def __init__(self, directory: Path, lengths: np.ndarray, bounds: list[int]):
        self.directory, self.bounds = directory, bounds
        self.ends = np.cumsum(lengths)
        self._open: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: Any) -> Any:
        file = int(np.searchsorted(self.bounds, number, side="right")) - 1
        if file not in self._open:
            self._open[file] = safe_open(self.directory / _file_name(file), "pt")
        before = self.ends[self.bounds[file] - 1] if self.bounds[file] else 0
        start = (self.ends[number - 1] if number else 0) - before
        rows = slice(int(start), int(self.ends[number] - before))
        hidden, norms = (self._open[file].get_slice(name)[rows] for name in ("hidden", "norms"))
        return ReferenceStates(hidden=hidden, norms=norms)

    @property
    def nbytes(self) -> int:
        """On disk."""
        return sum(file.stat().st_size for file in self.directory.glob(_file_name(0).replace("00000", "*")))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # a worker process opens its own


def open_cache(
    reference: LiveReference,
    head: Head,
    items: Sequence[Item],
    layers: Sequence[int],
    *,
    fingerprint: str,
    dtype: str = "float32",
    autocast: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 16,
    progress: bool = False,
    anew: bool = False,
) -> ReferenceCache:
    """The cache of the reference's states for `items`, computed as far as it is not there.

    Args:
        head: of the reference; with a half-precision `dtype` it tells what rounding costs, in the log and in
            `index.json` (`rounding_kl`, nats a token).
        fingerprint: of the reference, see `fingerprint_of`.
        dtype: of the stored states; those of the computation are the model's.
        autocast: under which the reference computes (`LiveReference.autocast`), if under any.
        anew: compute all of it, whatever is there.

    Raises:
        UserError: for an unknown dtype.
        RunError: if the cache cannot be written: the disk is full, the folder is not ours.
    """
    if dtype not in DTYPES:
        raise UserError(f"reference_dtype={dtype!r} is unknown. Choose one of {', '.join(DTYPES)}.")
    lengths = np.array([len(continuation) for _, continuation in items], dtype=np.int64)
    key = _key(fingerprint, items, layers, dtype, f"{autocast} {torch.device(device).type}")
    directory = cache_dir() / "reference" / key
    width = reference.model.config.get_text_config(decoder=True).hidden_size  # type: ignore[union-attr,operator]
    bounds = _bounds(lengths, 4 * width)
    index = _read_index(directory)
    digests: dict[str, str] = {} if anew else index.get("files", {})
    ends = [*bounds[1:], len(items)]
    shapes = [(int(lengths[start:end].sum()), width) for start, end in zip(bounds, ends, strict=True)]
    todo = [
        i
        for i in range(len(bounds))
        if not _is_whole(directory / _file_name(i), digests.get(_file_name(i)), shapes[i], len(layers))
    ]
    if digests and todo:
        logger.warning(
            "%d of %d files of the reference cache are missing or damaged: made again", len(todo), len(bounds)
        )
    for i in track(todo, "reference states", show=progress):
        numbers = range(bounds[i], ends[i])
        states = compute_states(reference, items, numbers, layers, device, batch_size)
        if dtype != "float32" and "rounding_kl" not in index:
            index["rounding_kl"] = _rounding(states["hidden"][:1024], head, dtype)
            logger.info("reference states in %s: rounding costs %.1e nats a token", dtype, index["rounding_kl"])
        states["hidden"] = states["hidden"].to(getattr(torch, dtype))
        path = directory / _file_name(i)
        with renamed_when_whole(path) as temporary:
            # save_file would make it readable for its owner alone, and has an error of its own for a full disk.
            temporary.write_bytes(save(states))
        digests[path.name] = file_digest(path)
        write_json(directory / INDEX, index | {"schema": 1, "dtype": dtype, "layers": list(layers), "files": digests})
    return ReferenceCache(directory, lengths, bounds)


def _key(fingerprint: str, items: Iterable[Item], layers: Sequence[int], dtype: str, computed: str) -> str:
    libraries = {name: version for name, version in versions().items() if name in ("torch", "transformers")}
    content = f"2 {fingerprint} {list(layers)} {dtype} {computed} {libraries}"
    digest = hashlib.blake2b(content.encode(), digest_size=16)
    for context, continuation in items:
        digest.update(np.array([len(context), *context, *continuation], dtype=np.int64).tobytes())
    return digest.hexdigest()


def _bounds(lengths: np.ndarray, token_bytes: int) -> list[int]:
    """The first item of each file."""
    bounds, size = [0], 0
    for i, length in enumerate(lengths.tolist()):
        if size and (size + length * token_bytes > FILE_BYTES or i - bounds[-1] == FILE_ITEMS):
            bounds.append(i)
            size = 0
        size += length * token_bytes
    return bounds


def compute_states(
    reference: LiveReference,
    items: Sequence[Item],
    numbers: range,
    layers: Sequence[int],
    device: torch.device | str,
    batch_size: int,
) -> dict[str, Tensor]:
    """hidden (tokens, d) and norms (tokens, layers) of some of the items, in their order; batched by length."""
    found: dict[int, ReferenceStates] = {}
    for chunk in batches_by_length(numbers, lambda i: sum(map(len, items[i])), batch_size, longest_first=False):
        input_ids, attention_mask, continuation = (
            tensor.to(device) for tensor in collate_rows([items[i] for i in chunk], pad_token_id=0)
        )
        layout = plain_layout(input_ids, attention_mask, masked=True, widest=most_columns(reference.model))
        states = reference.forward(layout, predicting_positions(continuation), layers, continuation)
        sizes = continuation.sum(1).tolist()
        norms = norms_of(states, layers, sum(sizes))
        parts = zip(chunk, states.hidden.cpu().split(sizes), norms.cpu().split(sizes), strict=True)
        found |= {i: ReferenceStates(hidden=hidden, norms=norms) for i, hidden, norms in parts}
    return {
        "hidden": torch.cat([found[i]["hidden"] for i in numbers]),
        "norms": torch.cat([found[i]["norms"] for i in numbers]),
    }


def _rounding(hidden: Tensor, head: Head, dtype: str) -> float:
    """Mean KL of the reference from itself when its states are rounded, in nats a token."""
    hidden = hidden.to(head.weight.device, head.weight.dtype)
    rounded = hidden.to(getattr(torch, dtype)).to(hidden.dtype)
    return mean_kl(rounded, head, hidden, head)


def _file_name(number: int) -> str:
    return f"states-{number:05d}.safetensors"


def _read_index(directory: Path) -> dict[str, Any]:
    try:
        return read_json(directory / INDEX, {"files": Each(str)})
    except UserError:  # not there yet, or damaged: then nothing is known of the files
        return {}


def _is_whole(path: Path, digest: str | None, shape: tuple[int, int], n_layers: int) -> bool:
    """Whether the file is the one that was written, and holds `shape` states and as many norms for each layer."""
    if digest is None or not is_regular_file(path):
        return False
    try:
        if file_digest(path) != digest:
            return False
        with safe_open(path, "pt") as file:
            found = [tuple(file.get_slice(name).get_shape()) for name in ("hidden", "norms")]
    except (OSError, SafetensorError):  # another user's, or not of this make
        return False
    return found == [shape, (shape[0], n_layers)]
