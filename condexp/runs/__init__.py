"""One run: prepared (checked, nothing written), built, executed, resumed, reported."""
