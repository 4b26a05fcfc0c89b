"""Is `python -m efface` the same as `efface`? Yes, also where no script was installed.

Short: one call.
"""

import sys

from efface.cli import entry

if __name__ == "__main__":
    sys.exit(entry())
