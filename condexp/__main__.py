"""``python -m condexp`` is the console script."""

import sys

from condexp.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
