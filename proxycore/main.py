"""The role ``tether proxy``: memory, then a TLS port, until it is told to stop."""

from __future__ import annotations

import asyncio
import errno
import gc
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec
import uvloop

from eventcore.errors import KubeError, StartError
from eventcore.joining import join
from eventcore.kube import METADATA_LIST, KubeClient, api_path
from eventcore.kube_auth import KubeAuth
from eventcore.numbers import version
from eventcore.reading import Reader
from eventcore.sockets import file_limit
from eventcore.topology import ACCESS, OBJECTS
from eventcore.waiting import end, pause
from proxycore.access_log import AccessLog
from proxycore.access_reviews import AccessReviews
from proxycore.across import Crossing
from proxycore.auditing import Auditor
from proxycore.authentication import Authenticator
from proxycore.callers import CERTIFICATE, FORWARDED, CallerRules, Callers
from proxycore.certificates import ServingCertificate
from proxycore.client_authorities import ClientAuthorities
from proxycore.client_certificates import ClientCertificates
from proxycore.completeness import Completeness
from proxycore.discovery import Discovery
from proxycore.failed_tokens import FailedTokens
from proxycore.feed import NamespaceFeed
from proxycore.filtered import FilteredKinds
from proxycore.freshness import KINDS, REFLECTED, Freshener
from proxycore.group_filter import GroupFilter
from proxycore.impersonating import Impersonator
from proxycore.local_tokens import ClusterKeys, LocalTokens
from proxycore.measures import Measures
from proxycore.plane.accepting import Limits
from proxycore.plane.listener import Listener
from proxycore.rights import Rights
from proxycore.server import Proxy
from proxycore.turns import Paced
from proxycore.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventcore.bus import Bus
    from eventcore.process import Role
    from eventcore.settings import Settings
    from proxycore.authentication import Poster

REACH_INTERVAL: Final = 5.0
END_SECONDS: Final = 2.0
AUTHORITIES_SECONDS: Final = 2.0


class _Meta(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str


class _Listed(msgspec.Struct, frozen=True):
    metadata: _Meta


def new_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop that the proxy is made for: its TLS is in C. asyncio's own works too, and slower."""
    return uvloop.new_event_loop()


async def proxy(role: Role, not_heeded: Sequence[str] = ()) -> None:
    """Serve tenants until ``role.stopping``; then end watches, finish what is in hand, and return.

    ``not_heeded``: what was asked for and has no effect, a line each, for the log.
    """
    for line in not_heeded:
        role.log.warning(line)
    tls = serving_tls(role.settings)
    CallerRules.of(role.settings)  # what is wrong is said before anything is asked of NATS
    GroupFilter.of(role.settings)
    _warn(role)
    role.readiness.expect("api", "port")
    auth = await KubeAuth.load(role.settings)
    bus = await join(role, "proxy", [OBJECTS, ACCESS])
    if bus is None:
        return
    service = Service(role, bus, auth, tls)
    sparing = asyncio.ensure_future(spare_the_collector(service))
    try:
        await service.run()
    finally:
        await end(sparing)
        await bus.close()


async def spare_the_collector(service: Service) -> None:
    """Once memory is loaded, let the garbage collector look at it no more.

    Requests leave no cycles behind, but each is some allocations nearer to the next collection, and one that goes
    through all objects of a large cluster holds up every request for as long as it takes.
    """
    for reader in (service.objects, service.access):
        loaded = False
        while not loaded:
            with suppress(TimeoutError):
                await reader.wait_for(0, 60.0)
                loaded = True
    gc.collect()
    gc.freeze()


class Service:
    """All parts of one proxy process. ``port`` is known once ``listening`` is set."""

    def __init__(self, role: Role, bus: Bus, auth: KubeAuth, tls: ssl.SSLContext | None) -> None:
        rules, groups = CallerRules.of(role.settings), GroupFilter.of(role.settings)
        settings, metrics = role.settings, role.metrics
        self.port = 0
        self.metrics = metrics
        self.listening = asyncio.Event()
        self.objects = Reader.objects(bus, metrics)
        self.access = Reader.access(
            bus, metrics, rules=settings.proxy_cluster_scoped, reflects=settings.enable_reflector
        )
        self._role = role
        self._rules = rules
        role.readiness.expect("api", "port")
        self._tls = tls
        self._kube = KubeClient(auth, request_timeout=settings.kube_request_timeout, metrics=metrics)
        # Apart from that: each open watch of another kind holds a connection, and callers cause as many reviews as they
        # like.
        self._kinds = KubeClient(auth, request_timeout=settings.kube_request_timeout, metrics=metrics)
        self._reviews = KubeClient(auth, request_timeout=settings.kube_request_timeout, metrics=metrics)
        self._upstream = Upstream(auth, read_seconds=settings.kube_request_timeout)
        self.feed = NamespaceFeed(self.objects, self.access, self._measure)
        self.measures = Measures(metrics)
        kinds = KINDS + (REFLECTED if settings.enable_reflector else ())
        completeness = Completeness(
            self.objects, self.access, kinds=kinds, configuration=settings.capsule_configuration_name
        )
        self._freshener = Freshener(
            self.objects,
            self.access,
            limit=settings.max_view_age,
            metrics=metrics,
            readiness=role.readiness,
            completeness=completeness,
            kinds=kinds,
        )
        rate = settings.client_connection_qps
        reviews: Poster = self._reviews
        if rate:
            reviews = Paced(self._reviews, rate=rate, burst=settings.client_connection_burst)
        self._authenticator = Authenticator(
            reviews,
            ttl=settings.identity_cache_ttl,
            tally=self.measures.tally,
            local=self._local_tokens(),
            failures=FailedTokens(settings.failed_token_rate, exempt=rules.trusts),
        )
        certificates = ClientCertificates(ttl=settings.identity_cache_ttl)
        self._authorities: ClientAuthorities | None = None
        if {CERTIFICATE, FORWARDED} & set(rules.order):
            port = tls if CERTIFICATE in rules.order else None
            self._authorities = ClientAuthorities(certificates, port, self._kube, file=settings.client_ca_file)
        self.access.listen(self._authenticator.grants_changed)
        self._auditor = Auditor(bus, self.measures, everything=settings.audit_all)
        self._access_log = AccessLog(self.measures) if settings.access_log else None
        self._access_reviews = AccessReviews(reviews)
        self._impersonator = Impersonator(
            self._access_reviews,
            ttl=settings.identity_cache_ttl,
            groups=groups,
            skip_review=settings.skip_impersonation_review,
        )
        discovery = Discovery(self._kube)
        self.kinds = FilteredKinds(self._kinds, self._upstream, discovery)
        self.crossing = self._make_crossing(discovery) if settings.proxy_all_namespaced else None
        self._show_sizes()
        self._proxy = Proxy(
            callers=Callers(rules, self._authenticator, certificates, self.measures.tally),
            authenticator=self._authenticator,
            impersonator=self._impersonator,
            access=self.access,
            objects=self.objects,
            feed=self.feed,
            kinds=self.kinds,
            freshener=self._freshener,
            upstream=self._upstream,
            auditor=self._auditor,
            measures=self.measures,
            access_log=self._access_log,
            stopping=role.stopping,
            crossing=self.crossing,
        )

    def _show_sizes(self) -> None:
        show = self.measures.watch_size
        show("objects", lambda: len(self.objects.view.records()))
        show("access", lambda: len(self.access.view.records()))
        show("identities", lambda: self._authenticator.size)
        show("impersonations", lambda: self._access_reviews.size)
        self.measures.cache_age.set_function(lambda: self._freshener.now().age)
        self.measures.stale.set_function(lambda: float(not self._freshener.now().fresh))

    @property
    def fresh(self) -> bool:
        """Whether memory is current enough to decide by."""
        return self._freshener.now().fresh

    async def run(self) -> None:
        """Serve until the role is told to stop; StartError when the port cannot be had."""
        stopping, settings = self._role.stopping, self._role.settings
        if self._access_log is not None:
            self._access_log.start()
        over = asyncio.Event()  # the end of the background tasks: after the last request
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [
                    tasks.create_task(background.run(over))
                    for background in (self.objects, self.access, self.feed, self._auditor)
                ]
                tasks.create_task(self._freshener.run(stopping))
                tasks.create_task(_reach(self._role, self._kube, self.measures))
                if self._tls is not None:
                    files = settings.proxy_tls_cert, settings.proxy_tls_key
                    certificate = ServingCertificate(self._tls, *files, self.measures)
                    tasks.create_task(certificate.run(stopping))
                await self._know_authorities(tasks)
                try:
                    await self._listen()
                finally:
                    stopping.set()
                    over.set()
                    await _end(running)
        finally:
            if self._access_log is not None:
                await asyncio.to_thread(self._access_log.close)
            self._upstream.close()
            self.kinds.close()
            for client in (self._kube, self._kinds, self._reviews):
                await client.close()

    async def _listen(self) -> None:
        settings, readiness = self._role.settings, self._role.readiness
        limits = Limits.of(
            settings.max_connections,
            settings.peer_connection_share,
            files=file_limit(),
            exempt=self._rules.trusts,
        )
        refused = self.measures.connections_refused
        listener = Listener(
            self._proxy.handle,
            limits=limits,
            on_refused=self._proxy.count_refused,
            on_turned_away=lambda reason: refused.labels(reason).inc(),
        )
        self.measures.connections_most.set(limits.most)
        self.measures.connections.set_function(lambda: float(listener.size))
        try:
            try:
                await listener.start(settings.proxy_host, settings.proxy_port, self._tls)
            except OSError as error:
                raise StartError(_cannot_listen(settings, error)) from error
            self.port = listener.port
            self.listening.set()
            readiness.set("port", ok=True)
            self._role.log.info("proxy listens", host=settings.proxy_host, port=self.port, most_connections=limits.most)
            await self._role.stopping.wait()
            readiness.set("port", ok=False, why="stopping")
        finally:
            await listener.close(max(1.0, settings.shutdown_grace - 5))

    async def _know_authorities(self, tasks: asyncio.TaskGroup) -> None:
        """Follow the authorities of client certificates; the port waits a moment for the first reading, no longer."""
        if self._authorities is None:
            return
        tasks.create_task(self._authorities.run(self._role.stopping))
        with suppress(TimeoutError):
            async with asyncio.timeout(AUTHORITIES_SECONDS):
                await self._authorities.looked.wait()

    def _make_crossing(self, discovery: Discovery) -> Crossing:
        rights = Rights(self._access_reviews, self.objects, limit=self._role.settings.max_view_age)
        return Crossing(self.access, discovery, rights)

    def _local_tokens(self) -> LocalTokens:
        return LocalTokens(ClusterKeys(self._kube), lambda: self.access.view, lambda: self._freshener.now().fresh)

    async def _measure(self) -> int:
        """Return the resourceVersion that the API server has for Namespaces now."""
        path = api_path("", "v1", "namespaces")
        found = await self._kube.get_as(_Listed, path, params={"limit": 1}, accept=METADATA_LIST)
        return version(found.metadata.resource_version) or 0


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    """Give tasks that were told to stop a moment, then cancel those that still run: NATS may be away."""
    _, late = await asyncio.wait(tasks, timeout=END_SECONDS)
    for task in late:
        task.cancel()


async def _reach(role: Role, kube: KubeClient, measures: Measures) -> None:
    """Say whether the API server answers. Readiness takes one answer: without one later, each request is told so."""
    answered = True
    while not role.stopping.is_set():
        try:
            await kube.version()
        except KubeError as error:
            if answered:
                role.log.warning("the API server does not answer the proxy", error=error)
            answered = False
        else:
            if not answered:
                role.log.info("the API server answers again")
            answered = True
            role.readiness.set("api", ok=True)
        measures.api_up.set(answered)
        await pause(role.stopping, REACH_INTERVAL)


def _warn(role: Role) -> None:
    if role.settings.skip_impersonation_review:
        role.log.warning("DANGER: impersonation is not reviewed: every caller may act as every user and group")
    if not role.settings.enable_ssl:
        role.log.warning("the port speaks plain HTTP: whoever sees its traffic has the tokens in it")


def serving_tls(settings: Settings) -> ssl.SSLContext | None:
    """Return the context of the port for tenants, None for plain HTTP; StartError when the files cannot be used."""
    if not settings.enable_ssl:
        if settings.proxy_tls_cert:
            raise StartError("--enable-ssl=false and a serving certificate contradict each other: set one of the two")
        return None
    if not settings.proxy_tls_cert:
        raise StartError(
            "tokens pass through the proxy, so it needs a certificate: set --proxy-tls-cert and --proxy-tls-key "
            "(--enable-ssl=false serves plain HTTP behind what ends TLS)"
        )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(settings.proxy_tls_cert, settings.proxy_tls_key)
    except OSError as error:  # ssl.SSLError is one
        raise StartError(
            f"cannot use the certificate {settings.proxy_tls_cert} with the key {settings.proxy_tls_key}: "
            f"{error.strerror or error}; both must be PEM and belong together"
        ) from error
    return context


def _cannot_listen(settings: Settings, error: OSError) -> str:
    where = f"port {settings.proxy_port} on {settings.proxy_host}"
    if error.errno == errno.EADDRINUSE:
        return f"{where} is in use: stop what listens there, or set --proxy-port"
    return f"cannot listen at {where} ({error.strerror or error}): set --proxy-host and --proxy-port"
