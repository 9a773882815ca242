"""Kubernetes to OBJECTS: list and watch each kind, publish what changed."""
