"""Callbacks for other trainers, on top of :func:`condexp.record_run`."""
