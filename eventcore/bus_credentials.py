"""How a process logs in to NATS: the files and the user of the settings as options of nats-py.

Password and TLS files are read here, before the connection is tried, so that one that cannot be used is told by its
variable and not taken for a server that does not answer.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eventcore.errors import SettingsError

if TYPE_CHECKING:
    from eventcore.settings import Settings


def credentials(settings: Settings) -> dict[str, Any]:
    """Return the options of nats-py's ``connect`` that log in; SettingsError for unusable password or TLS files."""
    options: dict[str, Any] = {}
    if settings.nats_creds_file:
        options["user_credentials"] = settings.nats_creds_file
    if settings.nats_user:
        options["user"] = settings.nats_user
        try:
            options["password"] = Path(settings.nats_password_file).read_text().strip()
        except OSError as error:
            raise SettingsError(
                f"TETHER_NATS_PASSWORD_FILE={settings.nats_password_file!r} cannot be read: {error.strerror}"
            ) from error
    if settings.nats_ca_file or settings.nats_cert_file:
        try:
            options["tls"] = ssl.create_default_context(cafile=settings.nats_ca_file or None)
            if settings.nats_cert_file:
                options["tls"].load_cert_chain(settings.nats_cert_file, settings.nats_key_file)
        except OSError as error:  # SSLError is one
            raise SettingsError(
                f"the TLS files for NATS cannot be used ({error}): TETHER_NATS_CA_FILE={settings.nats_ca_file!r}, "
                f"TETHER_NATS_CERT_FILE={settings.nats_cert_file!r}, TETHER_NATS_KEY_FILE={settings.nats_key_file!r}"
            ) from error
    return options
