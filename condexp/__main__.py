"""``python -m condexp`` is the console script."""

import sys

# -m puts the current folder first, where a file of the user's would be taken for a library's.
if not sys.flags.safe_path:
    sys.path.append(sys.path.pop(0))

from condexp.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
