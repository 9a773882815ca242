"""The shared floor: events, keys, topology, bus, views, Kubernetes client, settings, logs, metrics, health."""
