"""``python -m iolift`` is the console script ``iolift``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
