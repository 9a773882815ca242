"""The modules that decide, each with the tests that decide about it: of its own room, quick, without servers."""

from __future__ import annotations

from typing import Final

TESTS: Final[dict[str, tuple[str, ...]]] = {
    "proxycore/policy.py": ("deciding",),
    "proxycore/rules.py": ("scopes",),
    "proxycore/acting.py": ("acting_decided", "acting"),
    "proxycore/impersonating.py": ("acting_decided", "impersonating"),
    "proxycore/identities.py": ("identities", "pure_parts"),
    "proxycore/local_tokens.py": ("rules_local_tokens",),
    "proxycore/client_certificates.py": ("client_certificates",),
    "proxycore/headers.py": ("pure_parts", "acting"),
    "workers/ownership.py": ("owners", "ownership"),
    "workers/entitlement.py": ("judging", "objections"),
    "workers/relations.py": ("routing", "cluster_rules", "own_index"),
    "workers/desired.py": ("manifests", "desired"),
    "eventcore/publishable.py": ("publishable", "objects"),
    "eventcore/keys.py": ("key_bounds", "keys"),
}


def tests(module: str) -> list[str]:
    """Return the files of a module's tests."""
    room = module.partition("/")[0]
    return [f"tests/{room}/test_{name}.py" for name in TESTS[module]]
