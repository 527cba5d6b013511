"""``python -m deqlm`` is the command ``deqlm``."""

import sys

from deqlm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
