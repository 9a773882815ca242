"""A target is read as kube-apiserver reads it, or refused."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxycore.requestinfo import RequestInfo, parse
from proxycore.statuses import RefusedError

NAME = st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,10}[a-z0-9])?", fullmatch=True)


def fields(info: RequestInfo) -> tuple[str, ...]:
    return info.verb, info.group, info.version, info.namespace, info.resource, info.subresource, info.name


CASES = [
    ("GET", "/api/v1/namespaces", ("list", "", "v1", "", "namespaces", "", "")),
    ("GET", "/api/v1/namespaces/", ("list", "", "v1", "", "namespaces", "", "")),
    ("GET", "/api/v1/namespaces?watch=1", ("watch", "", "v1", "", "namespaces", "", "")),
    ("GET", "/api/v1/namespaces?watch=True", ("watch", "", "v1", "", "namespaces", "", "")),
    ("GET", "/api/v1/namespaces?watch=false", ("list", "", "v1", "", "namespaces", "", "")),
    ("GET", "/api/v1/namespaces?watch=0", ("list", "", "v1", "", "namespaces", "", "")),
    ("GET", "/api/v1/namespaces/oil", ("get", "", "v1", "oil", "namespaces", "", "oil")),
    ("GET", "/api/v1/namespaces/oil?watch=true", ("get", "", "v1", "oil", "namespaces", "", "oil")),
    ("GET", "/api/v1/namespaces/oil/status", ("get", "", "v1", "oil", "namespaces", "status", "oil")),
    ("PUT", "/api/v1/namespaces/oil/finalize", ("update", "", "v1", "oil", "namespaces", "finalize", "oil")),
    ("GET", "/api/v1/namespaces/oil/pods", ("list", "", "v1", "oil", "pods", "", "")),
    ("GET", "/api/v1/namespaces/oil/pods/p", ("get", "", "v1", "oil", "pods", "", "p")),
    ("GET", "/api/v1/namespaces/oil/pods/p/log", ("get", "", "v1", "oil", "pods", "log", "p")),
    ("POST", "/api/v1/namespaces/oil/pods/p/exec", ("create", "", "v1", "oil", "pods", "exec", "p")),
    ("GET", "/api/v1/watch/namespaces", ("watch", "", "v1", "", "namespaces", "", "")),
    ("GET", "/api/v1/watch/namespaces/oil", ("watch", "", "v1", "oil", "namespaces", "", "oil")),
    ("GET", "/api/v1/watch/namespaces/oil/pods", ("watch", "", "v1", "oil", "pods", "", "")),
    ("DELETE", "/api/v1/namespaces/oil/pods", ("deletecollection", "", "v1", "oil", "pods", "", "")),
    ("DELETE", "/api/v1/namespaces/oil/pods/p", ("delete", "", "v1", "oil", "pods", "", "p")),
    ("HEAD", "/api/v1/nodes", ("list", "", "v1", "", "nodes", "", "")),
    ("PATCH", "/apis/apps/v1/namespaces/a/deployments/d", ("patch", "apps", "v1", "a", "deployments", "", "d")),
    ("GET", "/apis/a.b/v1/tenants/oil", ("get", "a.b", "v1", "", "tenants", "", "oil")),
]


@pytest.mark.parametrize(("method", "target", "wanted"), CASES, ids=[f"{case[0]} {case[1]}" for case in CASES])
def test_a_resource_path_is_read_as_the_api_server_reads_it(method: str, target: str, wanted: tuple[str, ...]) -> None:
    info = parse(method, target)

    assert info.is_resource
    assert fields(info) == wanted


@pytest.mark.parametrize(
    "target", ["/", "/api", "/api/v1", "/apis", "/apis/apps", "/apis/apps/v1", "/version", "/x/y/z"]
)
def test_other_paths_are_no_resources(target: str) -> None:
    info = parse("GET", target)

    assert not info.is_resource
    assert info.verb == "get"


@pytest.mark.parametrize("target", ["/api/v1/namespaces/a/namespaces", "/api/v1/watch/namespaces/a/namespaces/a"])
def test_namespaces_inside_of_one_are_nothing_that_is_answered_here(target: str) -> None:
    info = parse("GET", target)

    assert not info.is_resource
    assert not info.is_namespaces


@pytest.mark.parametrize("kind", ["apis/apps/v1/namespaces", "api/v2/namespaces", "apis/x/v1/namespaces/a"])
def test_namespaces_of_another_group_or_version_are_not_namespaces(kind: str) -> None:
    assert not parse("GET", f"/{kind}").is_namespaces


REFUSED = [
    "",
    "*",
    "api/v1",
    "https://x/api",
    "/api/v1/../secrets",
    "/api/./v1",
    "/api/v1/namespaces/..",
    "/api/v1/%2e%2e/x",
    "/api/v1/%2E/x",
    "/api/v1/namespaces/.%2e",
    "/api/v1/namespaces%2fkube-system",
    "/api/v1/namespaces/a%2Fb",
    "/api/v1/namespaces/a%5cb",
    "/api/v1/namespaces\\kube-system",
    "//api/v1/namespaces",
    "/api//v1/namespaces",
    "/api/v1/namespaces//",
    "/api/v1/namespaces/%00",
    "/api/v1/namespaces/a%0ab",
    "/api/v1/namespaces/%7f",
    "/api/v1/namespaces/%252e",
    "/api/v1/namespaces/%zz",
    "/api/v1/namespaces/%2",
    "/api/v1/namespaces/%ff",
    "/api/v1/namespaces#a",
    "/api/v1/namespaces?a;b",
    "/api/v1/namespaces?a=%",
    "/api/v1/name spaces",
    "/api/v1/namespäces",
    "/api/v1/watch",
    "/api/v1/proxy",
]


@pytest.mark.parametrize("target", REFUSED)
def test_a_target_that_could_mean_two_things_is_refused(target: str) -> None:
    with pytest.raises(RefusedError) as caught:
        parse("GET", target)

    assert caught.value.status.code == 400


@given(st.sampled_from(["GET", "POST", "DELETE"]), st.text(max_size=40))
def test_any_text_is_read_or_refused(method: str, tail: str) -> None:
    try:
        info = parse(method, "/api/v1/" + tail)
    except RefusedError:
        return
    path = info.target.partition("?")[0]
    assert info.path == unquote(path)
    assert ".." not in info.path.split("/")


@given(NAME, NAME, NAME, st.sampled_from(["", "log", "exec"]))
def test_percent_encoding_a_name_changes_nothing(namespace: str, resource: str, name: str, subresource: str) -> None:
    tail = f"/{subresource}" if subresource else ""
    plain = f"/api/v1/namespaces/{namespace}/x{resource}/{name}{tail}"
    encoded = f"/api/v1/namespaces/{escaped(namespace)}/{escaped('x' + resource)}/{escaped(name)}{tail}"

    assert fields(parse("GET", plain)) == fields(parse("GET", encoded))
    assert parse("GET", encoded).target == encoded


def escaped(text: str) -> str:
    return "".join(f"%{ord(char):02x}" for char in text)
