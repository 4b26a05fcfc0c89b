"""Who may read a file that a library has written? Whoever may read what efface itself writes: as the umask says.

safetensors and `tempfile` make files for their owner alone, torch and json for everybody: of one checkpoint another
user of the machine could then read the text and not the weights. Here all of a run, and all of the cache, has the mode
that the umask gives; who wants it private says `umask 077`. A file that is replaced keeps the mode that it had.
"""

import os
import stat
import tempfile
from pathlib import Path

PRIVATE = 0o600


def usual_mode(folder: Path) -> int:
    """What the umask gives to a new file; asked with a file, since asking the process would change it for a moment."""
    temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".mode-"))
    try:
        file = temporary / "new"
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        mode = stat.S_IMODE(file.stat().st_mode)
        file.unlink()
        return mode
    finally:
        temporary.rmdir()


def share_(folder: Path) -> None:
    """Give every file in `folder`, and in the folders below, that is its owner's alone the usual mode."""
    mode = usual_mode(folder)
    for file in folder.rglob("*"):
        status = file.lstat()
        if stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) == PRIVATE:
            file.chmod(mode)


def keep_mode_(new: Path, old: Path) -> None:
    """Before `new` replaces `old`: give it the mode of that, if it is there and a regular file."""
    if old.exists() and not old.is_symlink() and stat.S_ISREG(old.stat().st_mode):
        new.chmod(stat.S_IMODE(old.stat().st_mode))
