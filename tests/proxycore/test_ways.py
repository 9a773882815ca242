"""The ways to tell who calls, on the wire: which counts first, what each is worth, and what reaches the API server."""

from __future__ import annotations

import base64
import itertools
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from eventcore.errors import KubeUnreachableError, SettingsError
from eventcore.settings import Settings
from proxycore.callers import CallerRules
from proxycore.client_authorities import ClientAuthorities
from proxycore.client_certificates import ClientCertificates
from tests.proxycore.certificates import Authority, Pair
from tests.proxycore.conftest import IMPERSONATION, Reply, World
from tests.proxycore.test_forwarding import CALLER, PROXY_TOKEN, Between, run_between
from tether.devcluster.pki import ClusterPki

NAMESPACES = "/api/v1/namespaces"
WHOAMI = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
PROXY = "system:serviceaccount:capsule-system:tether-proxy"
READS_AUTHORITIES = {
    "apiGroups": [""],
    "resources": ["configmaps"],
    "resourceNames": ["extension-apiserver-authentication"],
    "verbs": ["get"],
}


class Visitor:
    """A client of the proxy that shows a certificate, or none."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session = session
        self.url = url

    async def request(self, method: str, target: str, **options: Any) -> Reply:
        async with self.session.request(method, self.url + target, **options) as response:
            raw = await response.read()
            body = msgspec.json.decode(raw) if response.content_type == "application/json" and raw else raw
            return Reply(response.status, body, dict(response.headers))

    async def whoami(self, **headers: str) -> dict[str, Any]:
        reply = await self.request("POST", WHOAMI, json={"kind": "SelfSubjectReview"}, headers=headers)
        assert reply.status == 201, reply
        found: dict[str, Any] = reply.body["status"]["userInfo"]
        return found


@asynccontextmanager
async def visiting(url: str, pki: ClusterPki, folder: Path, both: str = "") -> AsyncIterator[Visitor]:
    """Yield a client with this certificate and key (PEM)."""
    tls = ssl.create_default_context(cadata=pki.ca_pem)
    if both:
        pair = folder / f"{abs(hash(both))}.pem"
        pair.write_text(both)
        tls.load_cert_chain(pair)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as session:
        yield Visitor(session, url)


@pytest.fixture
async def certified(world: World) -> World:
    """A world whose proxy knows the cluster's authorities, and may act for others."""
    await world.allow("reads-authorities", PROXY, [READS_AUTHORITIES])
    await world.allow("proxy-impersonates", PROXY, IMPERSONATION)
    assert await authorities(world).look()
    return world


def authorities(world: World) -> ClientAuthorities:
    found = world.service._authorities  # noqa: SLF001 - a test need not wait for the next look
    assert found is not None
    return found


async def oil_of_alice(world: World) -> None:
    await world.capsule_users(("Group", "devs"))
    await world.tenant("oil", "oil-production")
    await world.tenant("gas", "gas-production")
    await world.owns("User", "alice", "oil")
    await world.owns("Group", "gas-owners", "gas")
    await world.settle()


# Client certificates.


async def test_a_certificate_is_its_user_and_groups_to_the_filter_and_to_the_api_server(
    certified: World, pki: ClusterPki, tmp_path: Path
) -> None:
    await oil_of_alice(certified)
    one = "".join(pki.client_certificate("alice", ["devs"]))
    two = "".join(pki.client_certificate("alice", ["devs", "gas-owners"]))

    async with visiting(certified.url, pki, tmp_path, one) as alice:
        listed = await alice.request("GET", NAMESPACES)
        found = await alice.whoami()
        elsewhere = await alice.request("GET", f"{NAMESPACES}/gas-production/configmaps")
    async with visiting(certified.url, pki, tmp_path, two) as alice:
        both = await alice.request("GET", NAMESPACES)

    assert listed.names == ["oil-production"]
    assert both.names == ["gas-production", "oil-production"]
    assert (found["username"], set(found["groups"])) == ("alice", {"devs", "system:authenticated"})
    assert elsewhere.status == 403
    assert 'User "alice" cannot list resource "configmaps"' in elsewhere.body["message"]


async def test_what_a_certificates_caller_says_of_itself_does_not_reach_the_api_server(
    certified: World, pki: ClusterPki, tmp_path: Path
) -> None:
    one = "".join(pki.client_certificate("alice", ["devs"]))
    async with visiting(certified.url, pki, tmp_path, one) as alice:
        forged = await alice.whoami(**{"X-Remote-User": "admin", "X-Remote-Group": "system:masters"})
        asked = [
            await alice.request("GET", NAMESPACES, headers={"Impersonate-User": user, **more})
            for user, more in (
                ("root", {}),
                ("alice", {"Impersonate-Group": "system:masters"}),
                ("alice", {}),  # without the group that its certificate has
                ("alice", {"Impersonate-Group": "system:authenticated"}),
            )
        ]

    assert (forged["username"], forged["groups"]) == ("alice", ["devs", "system:authenticated"])
    for reply in asked:
        assert reply.status == 403, reply
        assert 'User "alice" cannot impersonate resource "users"' in reply.body["message"]


@pytest.mark.parametrize("flaw", ["of another authority", "for servers"])
async def test_a_certificate_that_is_none_of_a_client_ends_in_the_handshake(
    world: World, pki: ClusterPki, tmp_path: Path, flaw: str
) -> None:
    mine = Authority()
    (tmp_path / "clients.crt").write_text(mine.pem)
    pairs = {
        "of another authority": Authority().client("alice").both,
        "for servers": "".join(pki.issue_serving(["localhost"])),
    }
    (tmp_path / "clients.crt").write_text(mine.pem + (pki.ca_pem if flaw == "for servers" else ""))
    async with world.proxy(client_ca_file=str(tmp_path / "clients.crt")) as second:
        async with visiting(f"https://127.0.0.1:{second.port}", pki, tmp_path, pairs[flaw]) as visitor:
            with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
                await visitor.request("GET", "/version")
        async with visiting(f"https://127.0.0.1:{second.port}", pki, tmp_path, mine.client("alice").both) as good:
            assert (await good.request("GET", "/version")).status != 401


async def test_an_expired_certificate_and_one_that_is_not_good_yet_are_401(
    world: World, pki: ClusterPki, tmp_path: Path
) -> None:
    mine = Authority()
    (tmp_path / "clients.crt").write_text(mine.pem)
    async with world.proxy(client_ca_file=str(tmp_path / "clients.crt")) as second:
        for begins, ends in ((-2, -1), (1, 2)):
            both = mine.client("alice", begins=begins, ends=ends).both
            async with visiting(f"https://127.0.0.1:{second.port}", pki, tmp_path, both) as visitor:
                found = await visitor.request("GET", "/version")
                assert (found.status, found.body["message"]) == (401, "Unauthorized")


async def test_an_authority_that_is_taken_away_counts_no_more_on_connections_that_are_open(
    certified: World, pki: ClusterPki, tmp_path: Path
) -> None:
    mine, next_one = Authority("first"), Authority("second")
    (tmp_path / "clients.crt").write_text(mine.pem)
    async with (
        certified.proxy(client_ca_file=str(tmp_path / "clients.crt")) as second,
        visiting(f"https://127.0.0.1:{second.port}", pki, tmp_path, mine.client("alice").both) as alice,
    ):
        assert (await alice.request("GET", "/version")).status == 200
        (tmp_path / "clients.crt").write_text(next_one.pem)
        look = second._authorities  # noqa: SLF001 - a test need not wait for the next look
        assert look is not None
        assert await look.look()

        assert (await alice.request("GET", "/version")).status == 401
        async with visiting(alice.url, pki, tmp_path, next_one.client("bob").both) as bob:
            assert (await bob.request("GET", "/version")).status == 200


async def test_a_bundle_that_is_broken_changes_nothing_and_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = Authority()
    file = tmp_path / "clients.crt"
    certificates = ClientCertificates(ttl=10)
    found = ClientAuthorities(certificates, None, Unreachable(), file=str(file))
    assert not await found.look()
    file.write_text(mine.pem)
    assert await found.look()
    assert not await found.look()

    for text in ("", "nothing", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        file.write_text(text)
        assert not await found.look()
        assert not await found.look()

    assert certificates.identify(mine.client("alice").der) is not None
    said = capsys.readouterr().out
    assert said.count("no client certificate is accepted") == 1
    assert said.count("the bundle before stays") == 2  # the first two are the same trouble


class Unreachable:
    """An API server that is away."""

    async def get(self, path: str, /) -> bytes:
        raise KubeUnreachableError(f"no answer to {path}")


async def test_without_the_right_to_read_the_authorities_no_certificate_is_asked_for(
    world: World, pki: ClusterPki, tmp_path: Path
) -> None:
    async with visiting(world.url, pki, tmp_path, "".join(pki.client_certificate("alice"))) as alice:
        assert (await alice.request("GET", "/version")).status == 401


async def test_without_the_right_to_act_for_others_the_api_server_refuses(
    world: World, pki: ClusterPki, tmp_path: Path
) -> None:
    await world.allow("reads-authorities", PROXY, [READS_AUTHORITIES])
    assert await authorities(world).look()
    async with visiting(world.url, pki, tmp_path, "".join(pki.client_certificate("alice"))) as alice:
        found = await alice.request("GET", "/version")

    assert found.status == 403


# A certificate that a proxy in front tells of.


@pytest.fixture
async def behind(certified: World) -> AsyncIterator[tuple[World, str]]:
    """A proxy that believes the header from this machine."""
    types = "BearerToken,XForwardedClientCert"
    async with certified.proxy(auth_preferred_types=types, trusted_proxy_cidrs="10.0.0.0/8,127.0.0.0/8") as second:
        yield certified, f"https://127.0.0.1:{second.port}"


async def test_a_forwarded_certificate_is_verified_and_counts_as_one(
    behind: tuple[World, str], pki: ClusterPki, tmp_path: Path
) -> None:
    world, url = behind
    await oil_of_alice(world)
    alice, server = pair_of(pki.client_certificate("alice", ["devs"])), pair_of(pki.issue_serving(["localhost"]))
    async with visiting(url, pki, tmp_path) as front:
        listed = await front.request("GET", NAMESPACES, headers={"X-Forwarded-Client-Cert": alice.xfcc()})
        found = await front.whoami(**{"x-forwarded-client-cert": alice.xfcc()})
        others = {
            "of another authority": Authority().client("alice").xfcc(),
            "for servers": server.xfcc(),
            "another hash": alice.xfcc().replace(alice.hash, server.hash),
            "two entries": f"{alice.xfcc()},{alice.xfcc()}",
            "nothing": "",
        }
        codes = {
            name: (await front.request("GET", "/version", headers={"X-Forwarded-Client-Cert": value})).status
            for name, value in others.items()
        }
        twice = [("X-Forwarded-Client-Cert", alice.xfcc())] * 2
        codes["two headers"] = (await front.request("GET", "/version", headers=twice)).status

    assert listed.names == ["oil-production"]
    assert found["username"] == "alice"
    assert set(codes.values()) == {401}, codes


async def test_a_forwarded_certificate_from_elsewhere_is_no_credential(
    certified: World, pki: ClusterPki, tmp_path: Path
) -> None:
    headers = {"X-Forwarded-Client-Cert": pair_of(pki.client_certificate("alice")).xfcc()}
    types = "TLSCertificate,XForwardedClientCert,BearerToken"
    for networks in ("", "10.0.0.0/8", "128.0.0.0/1,::/0"):
        async with certified.proxy(auth_preferred_types=types, trusted_proxy_cidrs=networks) as second:
            url = f"https://127.0.0.1:{second.port}"
            async with visiting(url, pki, tmp_path) as visitor:
                assert (await visitor.request("GET", "/version", headers=headers)).status == 401


async def test_where_the_header_is_no_way_to_tell_it_is_none(certified: World, pki: ClusterPki, tmp_path: Path) -> None:
    headers = {"X-Forwarded-Client-Cert": pair_of(pki.client_certificate("alice")).xfcc()}
    async with (
        certified.proxy(trusted_proxy_cidrs="127.0.0.1/32") as second,
        visiting(f"https://127.0.0.1:{second.port}", pki, tmp_path) as visitor,
    ):
        assert (await visitor.request("GET", "/version", headers=headers)).status == 401


def pair_of(pems: tuple[str, str]) -> Pair:
    from cryptography import x509  # noqa: PLC0415 - here alone
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - here alone

    key = serialization.load_pem_private_key(pems[1].encode(), None)
    return Pair(x509.load_pem_x509_certificate(pems[0].encode()), key)  # type: ignore[arg-type]  # the key is not used


# Which counts first, and what passes.


@pytest.fixture
def ways(tmp_path: Path, pki: ClusterPki, serving: tuple[str, str]) -> Callable[..., Any]:
    """Run a proxy before a scripted API server, with settings; only there the test sees what reaches it."""
    numbers = itertools.count()

    @asynccontextmanager
    async def run(**changes: Any) -> AsyncIterator[tuple[Between, Visitor]]:
        pair = pki.client_certificate("alice", ["devs"])
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        (folder / "clients.crt").write_text(pki.ca_pem)
        changes.setdefault("client_ca_file", str(folder / "clients.crt"))
        async with (
            run_between(folder, pki, serving, **changes) as between,
            visiting(between.url, pki, folder, "".join(pair)) as visitor,
        ):
            yield between, visitor

    return run


BOTH = {"Authorization": f"Bearer {CALLER}"}


async def test_of_two_good_credentials_the_preferred_one_counts(ways: Callable[..., Any]) -> None:
    async with ways(auth_preferred_types="BearerToken,TLSCertificate") as (between, visitor):
        await visitor.request("GET", "/apis", headers=BOTH)
    bearer = between.upstream.seen[-1]
    async with ways(auth_preferred_types="TLSCertificate,BearerToken") as (between, visitor):
        await visitor.request("GET", "/apis", headers=BOTH)
    certificate = between.upstream.seen[-1]

    assert bearer.values("Authorization") == [f"Bearer {CALLER}"]
    assert bearer.values("Impersonate-User") == []
    assert certificate.values("Authorization") == [f"Bearer {PROXY_TOKEN}"]
    assert certificate.values("Impersonate-User") == ["alice"]
    assert certificate.values("Impersonate-Group") == ["devs"]


async def test_the_next_way_is_tried_where_one_finds_nobody_and_a_way_that_is_not_named_is_none(
    ways: Callable[..., Any],
) -> None:
    wrong = {"Authorization": "Bearer wrong"}
    async with ways(auth_preferred_types="BearerToken,TLSCertificate") as (between, visitor):
        assert (await visitor.request("GET", "/apis", headers=wrong)).status == 200
        assert between.upstream.seen[-1].values("Impersonate-User") == ["alice"]
        assert between.upstream.seen[-1].values("Authorization") == [f"Bearer {PROXY_TOKEN}"]
    async with ways(auth_preferred_types="BearerToken") as (between, visitor):
        for headers in (wrong, {}):
            assert (await visitor.request("GET", "/apis", headers=headers)).status == 401
        assert between.upstream.seen == []
    async with ways(auth_preferred_types="TLSCertificate") as (between, visitor):
        async with between.session.get(between.url + "/apis", headers=BOTH) as found:
            assert found.status == 401
        assert between.upstream.seen == []


async def test_a_websockets_token_is_taken_off_when_somebody_else_goes_upstream(ways: Callable[..., Any]) -> None:
    text = base64.urlsafe_b64encode(CALLER.encode()).decode().rstrip("=")
    bearer = f"base64url.bearer.authorization.k8s.io.{text}"
    async with ways(auth_preferred_types="TLSCertificate,BearerToken") as (between, visitor):
        await visitor.request("GET", "/apis", headers={"Sec-WebSocket-Protocol": f"v5.channel.k8s.io, {bearer}"})
        seen = between.upstream.seen[-1]
        assert seen.values("Sec-WebSocket-Protocol") == ["v5.channel.k8s.io"]
        assert seen.values("Impersonate-User") == ["alice"]
        for odd in (bearer + "=" * (-len(text) % 4 or 4), bearer.replace(text, "%%%"), f"{bearer}, {bearer}"):
            headers = {"Sec-WebSocket-Protocol": odd}
            async with between.session.get(between.url + "/apis", headers=headers) as found:
                assert found.status in {400, 401}, odd


async def test_the_header_of_a_proxy_in_front_never_goes_further(ways: Callable[..., Any]) -> None:
    async with ways(xfcc_header_name="X-Client-Cert", trusted_proxy_cidrs="127.0.0.1/32") as (between, visitor):
        for name in ("X-Client-Cert", "x-client-cert", "X_Client_Cert", "X-Forwarded-Client-Cert"):
            await visitor.request("GET", "/apis", headers={name: "Hash=1", "X-Kept": "1"})
            seen = between.upstream.seen[-1]
            assert seen.values("X-Kept") == ["1"]
            assert not any("client" in key.lower() for key, _ in seen.headers), seen.headers


# Who is never filtered.


async def test_ignored_users_and_groups_go_to_the_api_server_as_they_are(ways: Callable[..., Any]) -> None:
    # dana owns oil; her list is narrowed under the proxy's account unless she is ignored
    async with ways() as (between, _):
        async with between.request("GET", NAMESPACES):
            pass
        assert "labelSelector" in between.upstream.seen[-1].line
        assert between.upstream.seen[-1].values("Authorization") == [f"Bearer {PROXY_TOKEN}"]
    for changes in ({"ignored_username": "erin,dana"}, {"ignored_user_group": "devs"}):
        async with ways(**changes) as (between, _):
            for target in (NAMESPACES, f"{NAMESPACES}?watch=true", f"{NAMESPACES}/oil-production", "/api/v1/nodes"):
                async with between.request("GET", target):
                    pass
                assert between.upstream.seen[-1].line == f"GET {target} HTTP/1.1"
                assert between.upstream.seen[-1].values("Authorization") == [f"Bearer {CALLER}"]


async def test_an_allowed_path_goes_as_its_caller_and_is_never_filtered(ways: Callable[..., Any]) -> None:
    async with ways(allowed_paths=f"/version,{NAMESPACES}") as (between, _):
        async with between.request("GET", f"{NAMESPACES}?limit=5"):
            pass
        assert between.upstream.seen[-1].line == f"GET {NAMESPACES}?limit=5 HTTP/1.1"
        assert between.upstream.seen[-1].values("Authorization") == [f"Bearer {CALLER}"]
        async with between.session.get(between.url + "/version") as found:
            assert found.status == 401  # allowed is not public


# Nobody.

OAUTH = "/.well-known/oauth-authorization-server"


async def test_a_public_path_is_read_without_a_credential_and_nothing_else_is(ways: Callable[..., Any]) -> None:
    async with ways(public_paths=f"{OAUTH},/version") as (between, _):
        for method in ("GET", "HEAD"):
            async with between.session.request(
                method, between.url + OAUTH + "?a=b", headers={"X-Remote-User": "x"}
            ) as found:
                assert found.status == 200
            seen = between.upstream.seen[-1]
            assert seen.line == f"{method} {OAUTH}?a=b HTTP/1.1"
            assert not {name.lower() for name, _ in seen.headers} & {
                "authorization",
                "impersonate-user",
                "x-remote-user",
            }
        count = len(between.upstream.seen)
        for method, target, headers in (
            ("POST", OAUTH, {}),
            ("GET", OAUTH + "/", {}),
            ("GET", OAUTH + "/more", {}),
            ("GET", "/api", {}),
            ("GET", "/tenant/oil/version", {}),
            ("GET", OAUTH, {"Authorization": "Bearer wrong"}),
            ("GET", OAUTH, {"Authorization": "Basic eA=="}),
            ("GET", OAUTH, {"Sec-WebSocket-Protocol": "base64url.bearer.authorization.k8s.io.%%"}),
        ):
            async with between.session.request(method, between.url + target, headers=headers) as found:
                assert found.status == 401, (method, target, headers)
                assert (await found.json())["reason"] == "Unauthorized"
        assert len(between.upstream.seen) == count


async def test_who_is_nobody_may_not_act_as_somebody(world: World) -> None:
    async with world.proxy(public_paths="/version") as second:
        url = f"https://127.0.0.1:{second.port}/version"
        async with world.session.get(url) as found:
            assert found.status == 200  # by the API server's own rules for everybody
        async with world.session.get(url, headers={"Impersonate-User": "dana"}) as found:
            assert found.status == 403
            assert 'User "system:anonymous" cannot impersonate' in (await found.json())["message"]


# What is wrong with the settings is one clear line.


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"auth_preferred_types": "BearerToken,Basic"},
            "name some of BearerToken, TLSCertificate, XForwardedClientCert",
        ),
        ({"auth_preferred_types": ""}, "--auth-preferred-types ''"),
        ({"auth_preferred_types": "BearerToken,BearerToken"}, "each once"),
        ({"trusted_proxy_cidrs": "10.0.0.1/8"}, "has host bits set"),
        ({"trusted_proxy_cidrs": "proxy.example"}, "write networks such as 10.0.0.0/8"),
        ({"xfcc_header_name": "Authorization"}, "--xfcc-header-name 'Authorization'"),
        ({"xfcc_header_name": "a b"}, "not the name of a header"),
        ({"public_paths": "version"}, "--public-paths: 'version' is not a path"),
        ({"allowed_paths": "/api/*"}, r"--allowed-paths: '/api/\*' is not a path"),
    ],
    ids=str,
)
def test_a_setting_about_callers_that_means_nothing_is_refused(changes: dict[str, str], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        CallerRules.of(msgspec.structs.replace(Settings(), **changes))


def test_an_address_is_trusted_by_its_network_alone() -> None:
    rules = CallerRules.of(Settings(trusted_proxy_cidrs="10.0.0.0/8, fd00::/8"))

    assert all(rules.trusts(peer) for peer in ("10.1.2.3", "::ffff:10.1.2.3", "fd00::1", "fd00::1%eth0"))
    assert not any(rules.trusts(peer) for peer in ("11.0.0.1", "::1", "::ffff:11.0.0.1", "", "10.1.2.3.4", "localhost"))
    assert not CallerRules.of(Settings()).trusts("127.0.0.1")
