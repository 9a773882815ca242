"""Where connections come from: the network that counts as one peer."""

from __future__ import annotations

import functools
import ipaddress
from typing import Final

_IPV6_PREFIX: Final = 64
"""Whoever has one address of such a network has all of them."""


@functools.lru_cache(4096)
def network_of(peer: str) -> str:
    """Return what an address is counted as: itself for IPv4, its /64 for IPv6, any other text as it is."""
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return peer
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped is not None:
        return str(mapped)
    return str(address) if address.version == 4 else str(ipaddress.ip_network((int(address), _IPV6_PREFIX), False))  # noqa: PLR2004, FBT003 - the version of IP; host bits are meant to be there
