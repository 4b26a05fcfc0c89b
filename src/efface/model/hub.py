"""Does the Hugging Face hub have that, and can it be asked? Found out at once, by one request.

transformers asks for each of several files, and each time again and again: without a network a minute goes by before a
misspelt directory is one.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from efface.errors import UserError, reason_of

SECONDS = 10.0
"""That a first answer may take."""
OFFLINE = "HF_HUB_OFFLINE"
VARIABLES = {OFFLINE: "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "WANDB_MODE": "offline"}
"""What libraries read when they are imported; the last is of a tracker."""
FORBIDDEN = "EFFACE_OFFLINE"
"""Set while nothing may be fetched, not even by pip."""


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Inside, nothing is asked of a network: the hub's libraries take what they have, pip is not called."""
    before = {name: os.environ.get(name) for name in (*VARIABLES, FORBIDDEN)}
    os.environ.update(VARIABLES | {FORBIDDEN: "1"})
    constants = sys.modules.get("huggingface_hub.constants")  # imported before, it has read its variable
    hub = getattr(constants, OFFLINE, None)
    try:
        if constants is not None:
            setattr(constants, OFFLINE, True)
        yield
    finally:
        if constants is not None:
            setattr(constants, OFFLINE, hub)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def ask_hub(name: str, revision: str | None, what: str, hint: str, telling: Sequence[str] = ("config.json",)) -> bool:
    """Whether what `name` is on the hub can only be taken from the cache, since the hub cannot be reached.

    Args:
        name: of the repository.
        revision: of it; None is the newest.
        what: it is, for the error: "model 'a/b'".
        hint: what to do instead.
        telling: files of which one is in the cache if that has anything of use.

    Raises:
        UserError: if there is no such repository, it is not open to this user, or the hub cannot be reached and the
            cache has nothing of it.
    """
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"{what} is no directory here, and "
    try:
        cached = any(isinstance(try_to_load_from_cache(name, file, revision=revision), str) for file in telling)
        if constants.HF_HUB_OFFLINE:
            if cached:
                return True
            raise UserError(f"{where}{OFFLINE} is set and the cache has nothing of it. {hint}")
        HfApi().model_info(name, revision=revision, timeout=SECONDS)
    except HFValidationError as error:
        raise UserError(f"{where}no name that the Hugging Face hub could have ({reason_of(error)}). {hint}") from error
    except GatedRepoError as error:
        raise UserError(
            f"{what} is gated on the Hugging Face hub: accept its terms there, and set HF_TOKEN to a token of yours."
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{what} has no revision {revision!r} on the Hugging Face hub. Pass another.") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{where}the Hugging Face hub has none either, or it is private: set HF_TOKEN to a token that may read "
            f"it. {hint}"
        ) from error
    except HfHubHTTPError:
        return False  # it answers, if not this: transformers' own requests say what is the matter
    except UserError:
        raise
    except Exception as error:  # no route, no name, no answer in time: of every library underneath another one
        if cached:
            return True
        raise UserError(
            f"{where}the Hugging Face hub cannot be reached ({reason_of(error)}), nor is it in the cache. {hint}"
        ) from error
    return False


def file_on_hub(name: str, file: str, revision: str | None) -> Path | None:
    """A file of a repository; None if it has none, or where nothing may be asked, if the cache has none.

    Raises:
        OSError: if the hub does not say.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, file, revision=revision))
    except LocalEntryNotFoundError:  # of a hub that is busy or out of reach as well
        if not constants.HF_HUB_OFFLINE:
            raise
    except EntryNotFoundError:
        pass
    return None


def fetched(name: str, revision: str | None, folder: str, patterns: Sequence[str], also: Sequence[str] = ()) -> Path:
    """Where a repository lies in the cache with all files of one of its folders that match, not of those below it.

    Args:
        name: of the repository.
        revision: of it; None is the newest.
        folder: the one, "" for the repository's own.
        patterns: of names of files in it.
        also: files of other folders.

    Raises:
        OSError: if the hub fails.
    """
    from huggingface_hub import snapshot_download

    inside = f"{folder}/" if folder else ""
    wanted, not_wanted = [*(inside + pattern for pattern in patterns), *also], [f"{inside}*/*"]
    found = snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=not_wanted)
    return Path(str(found))


@contextlib.contextmanager
def from_cache(alone: bool) -> Iterator[None]:
    """With `alone`, huggingface_hub asks nobody inside: not even whether a cached file is the newest."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    try:
        constants.HF_HUB_OFFLINE = before or alone
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
