"""The embedded cluster: nats-server and a Kubernetes API over TLS, for development and tests, never production."""
