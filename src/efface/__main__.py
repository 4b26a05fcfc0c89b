"""Is `python -m efface` the same as `efface`? Yes, also where no script was installed.

Short: one call.
"""

import sys

from efface.cli import main

if __name__ == "__main__":
    sys.exit(main())
