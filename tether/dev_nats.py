"""NATS of a development cluster: each role logs in as its own user, and who does not log in is the operator."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from tether import manifests
from tether.dev_accounts import ROLES
from tether.dev_layout import write_private
from tether.devcluster.nats import render_config

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tether.dev_layout import Layout

OPERATOR: Final = "operator"
USERS: Final = (OPERATOR, *ROLES)


def write_config(layout: Layout, port: int) -> Path:
    """Write the configuration of nats-server, and the passwords that are not there yet; return its file."""
    for user in USERS:
        if not _password_file(layout, user).exists():
            write_private(_password_file(layout, user), f"p{secrets.token_hex(16)}\n")
    passwords = {user: _password_file(layout, user).read_text().strip() for user in USERS}
    config = layout.nats / "nats.conf"
    extra = users_config(passwords)
    write_private(config, render_config(port=port, store_dir=layout.nats / "jetstream", extra=extra))
    return config


def users_config(passwords: Mapping[str, str]) -> str:
    """Return the users of nats-server with these passwords."""
    lines = [f"{user.upper()}_PASSWORD: {password}" for user, password in passwords.items()]
    # On this machine alone, where `tether audit tail` and its like should need no login.
    lines.append(f"no_auth_user: {OPERATOR}")
    return "\n".join([*lines, manifests.shipped("deploy/nats-users.conf").read_text()])


def login(layout: Layout, role: str) -> dict[str, str]:
    """Return the settings by which a role logs in."""
    return {"TETHER_NATS_USER": role, "TETHER_NATS_PASSWORD_FILE": str(_password_file(layout, role))}


def _password_file(layout: Layout, user: str) -> Path:
    return layout.nats / f"{user}.password"
