"""OBJECTS to WORK to Kubernetes: the router and the reconcilers."""
