"""``python -m condexp`` is the console script."""

import sys

from condexp.cli import main

if __name__ == "__main__":
    sys.exit(main())
