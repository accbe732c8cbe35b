"""The code that a fresh interpreter begins with."""

# The same code in the new process as in this one, however this one found it. Python is started with
# -P: a json.py in the current folder is not Python's.
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); import {0}; sys.exit({0}.main())"
)
