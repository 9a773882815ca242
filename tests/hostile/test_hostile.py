"""The hostile requests of ``make hostile`` as a test, and proof that the judge would see what it looks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.cases import TOKEN, Case, cases
from tests.hostile.judging import Reply, judge, of_answer, of_request
from tests.proxycore.test_forwarding import PROXY_TOKEN, Seen, run_between
from tether.devcluster.pki import ClusterPki


@pytest.mark.slow
async def test_no_hostile_request_misleads_the_proxy(tmp_path: Path) -> None:
    found = cases()
    assert len({case.wire for case in found}) == len(found) >= 500

    pki = ClusterPki.load_or_create(None)
    serving = pki.issue_serving(["127.0.0.1", "localhost"])
    # The grants are written once, and must count until the last request.
    async with run_between(tmp_path, pki, serving, max_view_age=600.0) as between:
        assert await judge(between, found) == []


HOST = ("Host", "127.0.0.1:1")
OWN = ("Authorization", f"Bearer {TOKEN}")


@pytest.mark.parametrize(
    ("line", "headers"),
    [
        ("GET /api/v1/secrets?smuggled=1 HTTP/1.1", [HOST, OWN]),
        ("GET /api HTTP/1.1", [HOST, OWN, ("impersonate_user", "a")]),
        ("GET /api HTTP/1.1", [HOST, OWN, ("Authorization", "Bearer other")]),
        ("GET /api HTTP/1.1", [HOST, OWN, OWN]),
        ("GET /api HTTP/1.1", [HOST]),
        ("GET /api HTTP/1.1", [HOST, HOST, OWN]),
        ("GET /api/v1/namespaces HTTP/1.1", [HOST, ("Authorization", f"Bearer {PROXY_TOKEN}")]),
        ("GET /api/v1/namespaces?labelSelector=a HTTP/1.1", [HOST, ("Authorization", f"Bearer {PROXY_TOKEN}")]),
        ("POST /api HTTP/1.1", [HOST, OWN, ("Content-Length", "5"), ("Transfer-Encoding", "chunked")]),
        ("GET /api/%2e%2E/x HTTP/1.1", [HOST, OWN]),
        ("GET /api HTTP/1.1", [HOST, OWN, ("X-Forwarded-For", "10.0.0.1")]),
        ("GET /api HTTP/1.1", [HOST, OWN, ("X-HTTP-Method-Override", "DELETE")]),
        ("GET /api HTTP/1.1", [HOST, OWN, ("Connection", "close")]),
        ("GET /tenant/oil/api HTTP/1.1", [HOST, OWN]),
    ],
)
def test_the_judge_sees_a_request_that_should_not_have_passed(line: str, headers: list[tuple[str, str]]) -> None:
    assert of_request(Seen(line, headers))


@pytest.mark.parametrize("codes", [[], [200], [400, 200], [502]])
def test_the_judge_sees_an_answer_that_is_no_refusal(codes: list[int]) -> None:
    case = Case(name="x", wire=b"", verdict="refuse")

    assert of_answer(case, Reply(codes, b"", closed=True))
