"""What an operator sees of the proxy: series, access lines, audit records, readiness; and what is never seen."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from eventcore import logs
from eventcore.errors import KubeUnreachableError
from eventcore.events import AuditRecord
from eventcore.kube import KubeClient
from eventcore.metrics import Metrics
from proxycore import main
from proxycore.access_log import AccessLine, AccessLog
from proxycore.measures import Measures
from proxycore.patterns import pattern
from proxycore.requestinfo import parse
from tests.proxycore.test_forwarding import CALLER, Between, Seen, run_between, send

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tether.devcluster.pki import ClusterPki

NAMESPACES = "/api/v1/namespaces"
DOCS = Path(__file__).parents[2] / "docs/proxy.md"
SHARED = ("tether_view_", "tether_bus_", "tether_kube_", "tether_proxy_", "capsule_proxy_")
"""What a proxy process has something to say in; the rest of what all processes know stands in docs/operating.md."""


class Lines:
    """Access lines as they are written, and a way to wait for one more."""

    def __init__(self) -> None:
        self.text = ""
        self._loop = asyncio.get_running_loop()
        self._came = asyncio.Event()

    def write(self, text: str) -> None:
        self.text += text
        self._loop.call_soon_threadsafe(self._came.set)

    async def take(self, count: int) -> list[AccessLine]:
        async with asyncio.timeout(15):
            while self.text.count("\n") < count:
                self._came.clear()
                await self._came.wait()
        found = [msgspec.json.decode(line, type=AccessLine) for line in self.text.splitlines()]
        assert len(found) == count
        return found


@pytest.fixture
async def lines(monkeypatch: pytest.MonkeyPatch) -> Lines:
    found = Lines()
    monkeypatch.setattr("proxycore.access_log._to_stdout", found.write)
    return found


@pytest.fixture
async def between(tmp_path: Path, pki: ClusterPki, serving: tuple[str, str], lines: Lines) -> AsyncIterator[Between]:
    del lines  # before the proxy is made
    async with run_between(tmp_path, pki, serving, access_log=True, audit_all=True) as found:
        yield found


def values(between: Between) -> dict[str, float]:
    return {
        sample.name + "".join(f" {key}={value}" for key, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(between.role.metrics.render().decode())
        for sample in family.samples
    }


async def test_each_request_is_one_line_that_says_who_what_and_how_long(between: Between, lines: Lines) -> None:
    async def answer(_: Seen, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await send(writer, b'{"kind": "Pod"}', "Audit-Id: 0a1b")

    between.upstream.answer = answer
    target = "/apis/apps/v1/namespaces/oil-production/deployments/web/status?pretty=1"
    async with between.request("GET", target, headers={"X-Request-Id": "abc-1"}) as found:
        assert found.status == 200
    async with between.request("GET", "/version") as found:
        assert found.status == 200
    async with between.session.get(between.url + NAMESPACES) as refused:
        assert refused.status == 401

    named, other, unknown = await lines.take(3)
    assert (named.user, named.groups, named.peer, named.request) == ("dana", 2, "127.0.0.1", "abc-1")
    assert (named.method, named.verb, named.resource) == ("GET", "get", "deployments/status.apps")
    assert (named.namespace, named.name, named.path) == ("oil-production", "web", "")
    assert (named.route, named.code, named.gone, named.bytes) == ("forward", 200, False, 15)
    assert named.seconds >= named.identity + named.decision + named.upstream - 1e-5
    assert min(named.identity, named.decision, named.upstream) > 0
    assert (other.path, other.resource, other.request) == ("/version", "", "0a1b")
    assert (unknown.user, unknown.route, unknown.code, unknown.upstream) == ("", "refused", 401, 0.0)


async def test_nothing_secret_is_in_any_line_at_any_level(
    between: Between, lines: Lines, capfd: pytest.CaptureFixture[str]
) -> None:
    jwt = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzb21lYm9keSJ9.c2lnbmF0dXJl"
    between.upstream.answer = refuse
    count = 0
    for level in get_args(logs.Level):
        logs.configure(level, "json", "proxy")
        for token, target, headers in (
            (CALLER, f"/api/v1/pods?token={jwt}&password=hunter2", {"Cookie": "session=cookie-value"}),
            (jwt, "/version?access_token=hunter2", {"X-Request-Id": jwt, "X-Api-Key": "hunter2"}),
            (CALLER, f"/api/v1/namespaces/{jwt}/secrets/{jwt}", {"Audit-Id": jwt}),
            (CALLER, f"/healthz/{jwt}", {"X-Request-Id": f"{jwt} hunter2"}),
            (CALLER, "/api/v1/pods", {"Impersonate-User": jwt}),
            (CALLER, "/api//v1?token=hunter2", {"Cookie": "session=cookie-value"}),
        ):
            async with between.request("GET", target, headers={"Authorization": f"Bearer {token}", **headers}) as found:
                assert found.status >= 400
            count += 1
    found_lines = await lines.take(count)

    out, err = capfd.readouterr()
    for text in (lines.text, out, err):
        assert not re.search(rf"{CALLER}|hunter2|cookie-value|eyJ|c2lnbmF0dXJl", text)
    assert {line.code for line in found_lines} >= {400, 401, 403}
    assert not any(line.request for line in found_lines)


async def refuse(_: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    del reader
    await send(writer, b'{"kind": "Status"}', line="403 Forbidden")


async def test_a_client_that_goes_and_a_watch_that_ends_are_lines_too(between: Between, lines: Lines) -> None:
    begun = asyncio.Event()

    async def forever(_: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n")
        await writer.drain()
        begun.set()
        await reader.read()

    between.upstream.answer = forever
    async with between.request("GET", "/api/v1/namespaces/oil-production/pods?watch=1") as found:
        assert await found.content.readline() == b"{}\n"
        await begun.wait()
        seen = values(between)
        assert seen["tether_proxy_watches source=forwarded"] == 1.0
        assert seen["tether_proxy_connections"] == 1.0
        found.close()

    (line,) = await lines.take(1)
    assert (line.verb, line.code, line.gone, line.bytes) == ("watch", 200, True, 3)
    assert values(between)["tether_proxy_watches source=forwarded"] == 0.0


async def test_the_series_tell_routes_stages_caches_and_patterns(between: Between, lines: Lines) -> None:
    async with between.request("GET", "/apis/apps/v1/namespaces/oil-production/deployments/web") as found:
        assert found.status == 200
    async with between.request("GET", f"{NAMESPACES}?resourceVersion=0") as found:
        assert found.status == 200
    await lines.take(2)

    seen = values(between)
    deployment = "/apis/{group}/{version}/namespaces/{namespace}/{resource}/{name}"
    assert seen["tether_proxy_requests_total code=200 route=forward verb=get"] == 1.0
    assert seen[f"capsule_proxy_requests_total path={deployment} status=200"] == 1.0
    assert seen[f"capsule_proxy_response_time_seconds_count path={NAMESPACES}"] == 1.0
    assert seen["tether_proxy_stage_seconds_count stage=identity"] == 2.0
    assert seen["tether_proxy_stage_seconds_count stage=decision"] == 2.0
    assert seen["tether_proxy_stage_seconds_count stage=upstream"] == 1.0  # the list came from memory
    assert 0.0 <= seen["tether_proxy_cache_age_seconds"] < 30.0
    assert seen["tether_proxy_cache_entries cache=access"] == 3.0
    assert seen["tether_proxy_cache_entries cache=identities"] == 1.0
    assert seen["tether_proxy_cache_entries cache=lists"] == 1.0
    assert seen["tether_proxy_tunnels"] == 0.0
    assert seen["tether_proxy_identity_total result=failed"] == 0.0
    assert seen["tether_proxy_certificate_expiry_timestamp_seconds"] > 0.0


async def test_with_audit_all_every_decision_is_recorded_and_every_refusal_too(between: Between) -> None:
    between.upstream.answer = refuse
    for _ in range(2):
        async with between.request("GET", "/api/v1/pods?token=hunter2") as found:
            assert found.status == 403
    got: list[AuditRecord] = []
    async with asyncio.timeout(15):
        while len(got) < 4:
            got = await records(between)
            await asyncio.sleep(0.02)  # records go out in the background

    assert [(one.action, one.outcome) for one in got] == [("decided", "done"), ("refused", "refused")] * 2
    assert got[0].message == "Forward for dana: GET /api/v1/pods: decided by the grants"
    assert got[0].object == "pods//"


async def records(between: Between) -> list[AuditRecord]:
    js = between.service.access.bus.js
    state = await between.service.access.bus.stream_state("AUDIT")
    return [
        msgspec.json.decode((await js.get_msg("AUDIT", seq)).data or b"", type=AuditRecord)
        for seq in range(1, state.last_sequence + 1)
    ]


async def test_without_access_log_and_audit_all_nothing_is_made_for_them(
    tmp_path: Path, pki: ClusterPki, serving: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no(*_: object, **__: object) -> None:
        raise AssertionError("made although nobody asked for it")

    monkeypatch.setattr(AccessLog, "take", no)
    monkeypatch.setattr("proxycore.auditing.Auditor.decided", no)
    async with run_between(tmp_path, pki, serving) as between, between.request("GET", "/version") as found:
        assert found.status == 200
        assert await records(between) == []


def test_lines_that_nobody_takes_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxycore.access_log.WAITING", 2)
    monkeypatch.setattr("proxycore.access_log.line_of", lambda *_, **__: {"a": 1})
    metrics = Metrics()
    written: list[str] = []
    log = AccessLog(Measures(metrics), written.append)

    for _ in range(5):  # the thread has not begun: nobody reads
        log.take(cast("Any", None), gone=False)
    log.start()
    log.close()

    assert "".join(written) == '{"a":1}\n' * 2
    assert metrics.registry.get_sample_value("tether_proxy_access_lines_dropped_total") == 3.0


def test_a_stdout_that_is_gone_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("proxycore.access_log.line_of", lambda *_, **__: {"a": 1})
    metrics = Metrics()
    log = AccessLog(Measures(metrics), gone)
    log.start()
    log.take(cast("Any", None), gone=False)
    log.close()

    assert metrics.registry.get_sample_value("tether_proxy_access_lines_dropped_total") == 1.0


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        (NAMESPACES, NAMESPACES),
        (f"{NAMESPACES}/oil", f"{NAMESPACES}/{{name}}"),
        (f"{NAMESPACES}/oil/status", f"{NAMESPACES}/{{name}}/{{subresource}}"),
        ("/api/v1/nodes/n1", "/api/v1/nodes/{name}"),
        ("/apis/storage.k8s.io/v1/storageclasses", "/apis/storage.k8s.io/{version}/storageclasses"),
        ("/api/v1/pods", "/api/{version}/{resource}"),
        (f"{NAMESPACES}/oil/pods/a/log", "/api/{version}/namespaces/{namespace}/{resource}/{name}/{subresource}"),
        ("/apis/x.io/v1/things/one", "/apis/{group}/{version}/{resource}/{name}"),
        ("/version", "/version"),
        ("/logs/of/somebody", "/{path}"),
    ],
)
def test_a_pattern_holds_no_name(target: str, wanted: str) -> None:
    assert pattern(parse("GET", target)) == wanted


def test_patterns_are_few_whatever_is_asked_for() -> None:
    groups = [f"g{number}.io" for number in range(30)]
    targets = [f"/apis/{group}/v{number}/r{number}/n" for number, group in enumerate(groups)]
    targets += [f"/x{number}/y" for number in range(30)]

    assert {pattern(parse("GET", target)) for target in targets} == {
        "/apis/{group}/{version}/{resource}/{name}",
        "/{path}",
    }


def test_the_documentation_has_a_row_for_each_series_and_no_other() -> None:
    metrics = Metrics()
    Measures(metrics)
    registered = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in metrics.registry.collect()
        if family.name.startswith(SHARED)
    }
    written = set(re.findall(r"^\| `((?:tether|capsule)_[a-z_]+)", DOCS.read_text(), re.MULTILINE))

    assert written == registered


async def test_an_api_server_that_does_not_answer_is_a_metric_and_a_line_and_takes_no_readiness(
    tmp_path: Path,
    pki: ClusterPki,
    serving: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    async def away(_: KubeClient) -> Any:
        raise KubeUnreachableError("no answer")

    monkeypatch.setattr(main, "REACH_INTERVAL", 0.02)
    logs.configure("info", "json", "proxy")
    async with run_between(tmp_path, pki, serving) as between:
        await until(lambda: between.role.readiness.ready)
        with monkeypatch.context() as patched:
            patched.setattr(KubeClient, "version", away)
            await until(lambda: values(between)["tether_proxy_api_up"] == 0)
            assert between.role.readiness.ready
        await until(lambda: values(between)["tether_proxy_api_up"] == 1)

    said = capfd.readouterr().err
    assert said.count("the API server does not answer the proxy") == said.count("the API server answers again") == 1


async def test_it_is_not_ready_before_the_api_server_has_answered_once(
    tmp_path: Path, pki: ClusterPki, serving: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_: KubeClient) -> Any:
        raise KubeUnreachableError("no answer")

    monkeypatch.setattr(main, "REACH_INTERVAL", 0.02)
    with monkeypatch.context() as patched:
        patched.setattr(KubeClient, "version", away)
        async with run_between(tmp_path, pki, serving) as between:
            readiness = between.role.readiness
            await until(lambda: [name for name, _ in readiness.failing()] == ["api"])
            patched.undo()
            await until(lambda: readiness.ready)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while not holds():
            await asyncio.sleep(0.01)  # readiness is asked, it does not tell
