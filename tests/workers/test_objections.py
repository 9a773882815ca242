"""Before anything is taken the API server may object; a failure is no objection, and nobody guesses."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore.clock import now
from eventcore.errors import (
    ForbiddenError,
    KubeError,
    KubeUnreachableError,
    NotFoundError,
    ServerError,
    TooManyRequestsError,
)
from eventcore.events import Mark
from eventcore.kube_paths import is_path_segment, object_path
from eventcore.settings import Settings
from workers.entitlement import OBJECTION, REQUIRED_KINDS, Entitlement, Judge, OutdatedError
from workers.ownership import Account
from workers.relations import Relations

OIL = Account("oil-system", "gitops-reconciler")
ENABLED = {"capsule.addon.fluxcd/enabled": "true"}
ACCOUNT = {"metadata": {"name": OIL.name, "namespace": OIL.namespace, "uid": "u1", "annotations": ENABLED}}
TENANT = {
    "metadata": {"name": "oil", "uid": "t1"},
    "spec": {"owners": [{"kind": "ServiceAccount", "name": OIL.username}]},
}
HOME = {"metadata": {"name": OIL.namespace}}
REFUSALS = [
    ForbiddenError("no right", status=403),
    NotFoundError("no such kind", status=404),
    KubeError("bad request", status=400),
]
FAILURES = [
    ServerError("etcd is away", status=500),
    TooManyRequestsError("later", status=429),
    KubeUnreachableError("no answer"),
]


class Api:
    """An API server of three objects; an exception in place of one is raised, None hangs."""

    def __init__(self, **objects: Any) -> None:
        self.objects = {"serviceaccounts": ACCOUNT, "namespaces": HOME, "tenants": TENANT, **objects}
        self.asked: list[str] = []

    async def get_as(self, kind: type[Any], path: str) -> Any:
        self.asked.append(path)
        plural = path.split("/")[-2]
        found = self.objects[plural]
        if isinstance(found, Exception):
            raise found
        if found is None:
            await asyncio.Event().wait()
        if found["metadata"]["name"] != path.rsplit("/", maxsplit=1)[-1]:
            raise NotFoundError(path, status=404)
        return msgspec.convert(found, kind)


def judge(api: Api, *, age: float = 1.0) -> Judge:
    """Return a judge whose view is empty, and was vouched for so many seconds ago."""
    mark = Mark(kind="any", resource_version="1", time=now() - timedelta(seconds=age))
    view = SimpleNamespace(mark=lambda _: mark, age=lambda _: age)
    return Judge(cast("Any", api), cast("Any", SimpleNamespace(view=view)), Relations(), Settings())


async def test_an_owner_by_the_api_server_loses_nothing() -> None:
    with pytest.raises(OutdatedError, match="owns Tenant oil"):
        await judge(Api()).confirm_lost(OIL, ["gas", "oil"])


async def test_who_is_gone_or_switched_off_at_the_api_server_loses_everything() -> None:
    off = {"metadata": {**ACCOUNT["metadata"], "annotations": {}}}
    for account in (off, NotFoundError("gone", status=404)):
        await judge(Api(serviceaccounts=account)).confirm_lost(OIL, ["oil"])


@pytest.mark.parametrize("error", [*REFUSALS, *FAILURES], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("plural", ["serviceaccounts", "tenants"])
async def test_a_failure_is_no_objection_while_watchers_vouch(plural: str, error: KubeError) -> None:
    await judge(Api(**{plural: error})).confirm_lost(OIL, ["oil"])


async def test_a_tenant_that_cannot_be_asked_hides_no_other() -> None:
    api = Api()
    asked = api.get_as

    async def get_as(kind: type[Any], path: str) -> Any:
        if path.endswith("/gas"):
            raise ForbiddenError("no right", status=403)
        return await asked(kind, path)

    api.get_as = get_as  # type: ignore[method-assign]
    with pytest.raises(OutdatedError, match="owns Tenant oil"):
        await judge(api).confirm_lost(OIL, ["gas", "oil"])


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
async def test_where_neither_api_server_nor_watchers_say_it_nothing_is_taken(error: KubeError) -> None:
    stale = Settings().max_view_age + 1

    with pytest.raises(OutdatedError, match="neither"):
        await judge(Api(serviceaccounts=error), age=stale).confirm_lost(OIL, ["oil"])
    with pytest.raises(OutdatedError, match="neither"):
        await judge(Api(namespaces=error), age=stale).confirm_left(OIL, "oil-production", ["oil"])


async def test_an_api_server_that_hangs_holds_nothing_up_for_longer_than_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Settings().reconcile_timeout / 2 > OBJECTION
    monkeypatch.setattr("workers.entitlement.OBJECTION", 0.05)

    async with asyncio.timeout(5):
        await judge(Api(serviceaccounts=None)).confirm_lost(OIL, ["oil"])
        await judge(Api(namespaces=None)).confirm_left(OIL, "oil-production", ["oil"])


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../secrets", "%2e%2e", "a" * 254])
async def test_a_name_that_no_object_has_asks_for_nothing(name: str) -> None:
    api = Api()

    await judge(api).confirm_lost(OIL, [name])

    assert [path for path in api.asked if "tenants" in path] == []


@given(st.text(max_size=300))
def test_the_path_of_an_object_is_never_that_of_a_collection_or_of_another_object(name: str) -> None:
    try:
        path = object_path("", "v1", "secrets", name, namespace="oil")
    except NotFoundError:
        assert not is_path_segment(name)
    else:
        assert len(path.split("/")) == len(["", "api", "v1", "namespaces", "oil", "secrets", "x"])
        assert path.split("/")[-1] not in {"", ".", ".."}


@pytest.mark.parametrize("uid", ["u2", ""])
async def test_an_account_made_anew_under_its_name_just_before_gets_nothing_of_the_one_before(uid: str) -> None:
    # Given the API server has an account of another uid, enabled and an owner like the one before
    api = Api()

    await judge(api).confirm(Entitlement(OIL, "u1", ("oil",)))

    with pytest.raises(OutdatedError, match="has just been changed"):
        await judge(api).confirm(Entitlement(OIL, uid, ("oil",)))


async def test_what_is_served_is_remembered_through_a_failure_of_the_api_server() -> None:
    class Discovery:
        fails = False

        async def get_as(self, kind: type[Any], _path: str) -> Any:
            if self.fails:
                raise ServerError("away", status=500)
            return msgspec.convert({"resources": [{"name": "tenants"}]}, kind)

    mark = Mark(kind="any", resource_version="1", time=now())
    view = SimpleNamespace(mark=lambda kind: mark if kind in REQUIRED_KINDS else None)
    api = Discovery()
    one = Judge(cast("Any", api), cast("Any", SimpleNamespace(view=view)), Relations(), Settings())
    assert await one.missing() == ""

    api.fails = True
    one._served_at -= 60  # noqa: SLF001 -- instead of waiting until it is asked again

    assert await one.missing() == ""
