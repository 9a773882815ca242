"""Measurements: what stands between a request and its answer, and what it costs."""
