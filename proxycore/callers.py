"""Who sends a request: the ways to tell, in the order of ``auth_preferred_types``, and who is never filtered.

The first way that finds somebody counts. A credential that is there and worth nothing is 401, also on a public path:
only who shows none is anonymous there, and goes to the API server with no credential at all.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

import msgspec

from eventcore.errors import SettingsError
from proxycore.acting import ANONYMOUS_USER
from proxycore.authentication import Caller
from proxycore.headers import bearer_token, shows_token
from proxycore.identities import Identity
from proxycore.statuses import RefusedError, unauthorized
from proxycore.xfcc import certificate_of

if TYPE_CHECKING:
    from eventcore.settings import Settings
    from proxycore.accounting import Meaning
    from proxycore.authentication import Authenticator
    from proxycore.client_certificates import ClientCertificates
    from proxycore.measures import Tally
    from proxycore.plane.exchange import Request
    from proxycore.requestinfo import RequestInfo

BEARER: Final = "BearerToken"
CERTIFICATE: Final = "TLSCertificate"
FORWARDED: Final = "XForwardedClientCert"
TYPES: Final = (BEARER, CERTIFICATE, FORWARDED)
ANONYMOUS: Final = Caller(identity=Identity(user=ANONYMOUS_USER, groups=("system:unauthenticated",)))
_READS: Final = frozenset({"GET", "HEAD"})
_TOKEN: Final = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")
_TAKEN: Final = frozenset({"authorization", "host", "content-length", "connection", "transfer-encoding", "accept"})

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class CallerRules(msgspec.Struct, frozen=True, kw_only=True):
    """The settings about callers, read and checked. Names of headers are in lower case."""

    order: tuple[str, ...] = (BEARER, CERTIFICATE)
    xfcc_header: str = "x-forwarded-client-cert"
    networks: tuple[_Network, ...] = ()
    public: frozenset[str] = frozenset()
    allowed: frozenset[str] = frozenset()
    ignored_users: frozenset[str] = frozenset()
    ignored_groups: frozenset[str] = frozenset()

    @classmethod
    def of(cls, settings: Settings) -> CallerRules:
        """Read the settings; SettingsError names the flag, its value, and what is allowed."""
        order = settings.words("auth_preferred_types")
        if not order or not set(order) <= set(TYPES) or len(set(order)) < len(order):
            raise SettingsError(
                f"--auth-preferred-types {settings.auth_preferred_types!r}: name some of {', '.join(TYPES)}, each once"
            )
        header = settings.xfcc_header_name.lower()
        if not header or not set(header) <= _TOKEN or header in _TAKEN:
            raise SettingsError(f"--xfcc-header-name {settings.xfcc_header_name!r} is not the name of a header for it")
        return cls(
            order=order,
            xfcc_header=header,
            networks=tuple(_network(text) for text in settings.words("trusted_proxy_cidrs")),
            public=_paths(settings, "public_paths"),
            allowed=_paths(settings, "allowed_paths"),
            ignored_users=frozenset(settings.words("ignored_username")),
            ignored_groups=frozenset(settings.words("ignored_user_group")),
        )

    def trusts(self, peer: str) -> bool:
        """Tell whether an address may tell whose certificate it saw."""
        try:
            address = ipaddress.ip_address(peer.partition("%")[0])
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self.networks)


class Callers:
    """Identifies the sender of a request."""

    def __init__(
        self, rules: CallerRules, authenticator: Authenticator, certificates: ClientCertificates, tally: Tally
    ) -> None:
        self._rules = rules
        self._authenticator = authenticator
        self._certificates = certificates
        self._counts = tally.identities
        self.own_headers = frozenset({rules.xfcc_header.replace("_", "-")})
        """Headers that are for the proxy alone, in lower case and with hyphens."""

    async def identify(self, request: Request, info: RequestInfo) -> tuple[Caller, str]:
        """Return the caller and the token that told it, "" for none.

        RefusedError 401, 429 where too many tokens of nobody came from there, 503 when nobody can tell.
        """
        shown = False
        refusal: RefusedError | None = None
        for way in self._rules.order:
            if way == BEARER:
                token = bearer_token(request.headers)
                if not token:
                    continue
                try:
                    return await self._authenticator.identify(token, request.peer), token
                except RefusedError as error:
                    refusal = error
            else:
                certificate = request.certificate if way == CERTIFICATE else self._told(request)
                shown |= certificate is not None
                identity = self._certificates.identify(certificate) if certificate else None
                if identity is not None:
                    self._counts["certificate" if way == CERTIFICATE else "xfcc"] += 1
                    return Caller(identity=identity, by_certificate=True), ""
        if refusal is not None:
            raise refusal
        if not shown and self._is_public(request, info) and not shows_token(request.headers):
            self._counts["anonymous"] += 1
            return ANONYMOUS, ""
        raise RefusedError(unauthorized())

    def known(self, request: Request, meaning: Meaning) -> Caller | None:
        """Return what `identify` would if that is a token which is remembered; None when it has to be asked."""
        for way in self._rules.order:
            if way == BEARER:
                if meaning.token:
                    return self._authenticator.recall(meaning.token_digest)
            elif (request.certificate if way == CERTIFICATE else self._told(request)) is not None:
                return None
        return None

    def passes(self, info: RequestInfo, identity: Identity) -> bool:
        """Tell whether a request goes to the API server as its caller, whatever the grants say.

        A URL that is narrowed to a tenant asks for the filter, so there nobody is exempt.
        """
        rules = self._rules
        return not info.tenant and (
            identity.user == ANONYMOUS_USER
            or info.path in rules.allowed
            or identity.user in rules.ignored_users
            or not rules.ignored_groups.isdisjoint(identity.groups)
        )

    def _told(self, request: Request) -> bytes | None:
        """Return the certificate that a trusted proxy in front tells of, b"" when what it tells is not usable."""
        values = [value for name, value in request.headers if name.lower() == self._rules.xfcc_header]
        if not values or not self._rules.trusts(request.peer):
            return None
        return certificate_of(values) or b""

    def _is_public(self, request: Request, info: RequestInfo) -> bool:
        return request.method in _READS and not info.tenant and info.path in self._rules.public


def _network(text: str) -> _Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise SettingsError(f"--trusted-proxy-cidrs: {error}; write networks such as 10.0.0.0/8") from None


def _paths(settings: Settings, name: str) -> frozenset[str]:
    found = settings.words(name)
    for path in found:
        if not path.startswith("/") or set("?#%* ") & set(path):
            raise SettingsError(f"--{name.replace('_', '-')}: {path!r} is not a path such as /version")
    return frozenset(found)
