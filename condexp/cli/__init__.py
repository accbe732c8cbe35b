"""The command line: one file a verb, its arguments and what it prints."""
