"""The header by which a proxy in front tells the certificate of its client (XFCC), in Envoy's syntax: pure.

``Hash=<sha256>;Cert="<URL-encoded PEM>";Subject="..."``. It is one header with one entry: with more of them nobody
could tell which proxy said what. Nothing but the certificate itself is believed.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from proxycore.client_certificates import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Sequence

_PAIR: Final = re.compile(r'\s*+([A-Za-z]++)=(?:"((?:[^"\\]++|\\.)*+)"|([^",;=\s]*+))\s*+')
_MARK: Final = "-----BEGIN CERTIFICATE-----"
MOST_PAIRS: Final = 64
_ONCE: Final = frozenset({"cert", "hash", "chain", "subject", "by"})


def certificate_of(values: Sequence[str]) -> bytes | None:
    """Return the certificate (DER) that the header's values tell; None when they are not exactly one good entry."""
    pairs = _pairs(values[0]) if len(values) == 1 else None
    if pairs is None:
        return None
    try:
        pem = unquote(pairs.get("cert", ""), errors="strict")
        if pem.count(_MARK) != 1:
            return None
        der = x509.load_pem_x509_certificate(pem.encode("ascii")).public_bytes(Encoding.DER)
    except UNREADABLE:  # UnicodeError is a ValueError
        return None
    told = pairs.get("hash")
    return der if told is None or told.lower() == hashlib.sha256(der).hexdigest() else None


def _pairs(text: str) -> dict[str, str] | None:
    """Return the pairs of one entry, keys in lower case; None for two entries, too many pairs, or another syntax."""
    found: dict[str, str] = {}
    place = 0
    for _ in range(MOST_PAIRS):
        match = _PAIR.match(text, place)
        if match is None:
            return None
        key, quoted, bare = match[1].lower(), match[2], match[3]
        if key in found and key in _ONCE:
            return None
        found[key] = bare if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        place = match.end()
        if place == len(text):
            return found
        if text[place] != ";":
            return None
        place += 1
    return None
