"""The data plane: HTTP/1.1 on both sides of the proxy, with no rule of who may do what.

Reading order: heads (what a request may look like), chunks (how a body is framed), client (one connection of a client),
listener (the port), pool (connections to the API server), outgoing (how either kind of connection sends). What
becomes of a request is decided in `proxycore.server`.
"""
