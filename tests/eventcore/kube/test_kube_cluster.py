"""The client against the embedded Kubernetes API: the rules that the workers and watchers build on hold there."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from eventcore.errors import (
    AlreadyExistsError,
    ConflictError,
    ForbiddenError,
    GoneError,
    InvalidError,
    NotFoundError,
    UnauthorizedError,
)
from eventcore.kube import METADATA, METADATA_LIST, KubeClient, ObjectRef, api_path
from eventcore.kube_watch import list_pages, watch
from eventcore.settings import Settings
from tether.devcluster.api import ApiOptions, EmbeddedApi

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tether.devcluster.pki import ClusterPki

MAPS = api_path("", "v1", "configmaps", namespace="default")
SECRETS = api_path("", "v1", "secrets", namespace="default")
NAMESPACES = api_path("", "v1", "namespaces")


@pytest.fixture
async def api(pki: ClusterPki) -> AsyncIterator[EmbeddedApi]:
    api = EmbeddedApi(ApiOptions(bookmark_every=0.05, history=50, capsule=False), pki=pki)
    await api.start()
    yield api
    await api.stop()


@pytest.fixture
async def login(api: EmbeddedApi, tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[KubeClient]]]:
    """Return a function that connects, as cluster-admin or with the fields of a kubeconfig's user."""
    clients: list[KubeClient] = []

    async def connect(**user: str) -> KubeClient:
        path = tmp_path / f"kubeconfig-{len(clients)}"
        path.write_text(api.kubeconfig(**user) if user else api.admin_kubeconfig())
        client = await KubeClient.connect(Settings(kubeconfig=str(path)))
        clients.append(client)
        return client

    yield connect
    for client in clients:
        await client.close()


@pytest.fixture
async def admin(login: Callable[..., Awaitable[KubeClient]]) -> KubeClient:
    return await login()


def decoded(body: bytes | msgspec.Raw) -> Any:
    return msgspec.json.decode(body)


def config_map(name: str, **metadata: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, **metadata}, "data": {"a": "1"}}


async def versions_of(client: KubeClient, path: str) -> str:
    return [page async for page in list_pages(client, path)][-1].resource_version


async def test_an_object_is_created_once_read_and_deleted_by_its_uid(admin: KubeClient) -> None:
    made = decoded(await admin.create(MAPS, config_map("x")))
    with pytest.raises(AlreadyExistsError):
        await admin.create(MAPS, config_map("x"))
    assert decoded(await admin.get(f"{MAPS}/x"))["metadata"]["uid"] == made["metadata"]["uid"]
    with pytest.raises(ConflictError):
        await admin.delete(f"{MAPS}/x", uid="00000000-0000-0000-0000-000000000000")
    assert await admin.delete(f"{MAPS}/x", uid=made["metadata"]["uid"])
    assert not await admin.delete(f"{MAPS}/x")
    with pytest.raises(NotFoundError, match='configmaps "x" not found') as caught:
        await admin.get(f"{MAPS}/x")
    assert caught.value.reason == "NotFound"


async def test_an_api_that_is_not_served_is_not_found(admin: KubeClient) -> None:
    with pytest.raises(NotFoundError):
        await admin.get("/apis/capsule.clastix.io/v1beta2/tenants")


async def test_replacing_an_old_version_is_a_conflict(admin: KubeClient) -> None:
    made = decoded(await admin.create(MAPS, config_map("x")))
    await admin.merge_patch(f"{MAPS}/x", {"data": {"a": "2"}})
    with pytest.raises(ConflictError):
        await admin.replace(f"{MAPS}/x", made)


async def test_a_json_patch_with_a_failing_test_changes_nothing(admin: KubeClient) -> None:
    await admin.create(MAPS, config_map("x"))
    operations = [
        {"op": "test", "path": "/data/a", "value": "other"},
        {"op": "replace", "path": "/data/a", "value": "2"},
    ]
    with pytest.raises(InvalidError):
        await admin.json_patch(f"{MAPS}/x", operations)
    assert decoded(await admin.get(f"{MAPS}/x"))["data"] == {"a": "1"}


async def test_applying_over_another_manager_is_a_conflict_unless_forced(admin: KubeClient) -> None:
    await admin.apply(f"{MAPS}/x", config_map("x"), manager="one")
    mine = {**config_map("x"), "data": {"a": "2"}}
    with pytest.raises(ConflictError) as caught:
        await admin.apply(f"{MAPS}/x", mine, manager="two")
    assert "FieldManagerConflict" in caught.value.causes
    assert decoded(await admin.apply(f"{MAPS}/x", mine, manager="two", force=True))["data"] == {"a": "2"}


async def test_applying_with_a_uid_never_makes_a_new_object(admin: KubeClient) -> None:
    made = decoded(await admin.create(MAPS, config_map("x")))
    await admin.delete(f"{MAPS}/x")
    with pytest.raises(ConflictError):
        await admin.apply(f"{MAPS}/x", config_map("x", uid=made["metadata"]["uid"]), manager="tether", force=True)
    with pytest.raises(NotFoundError):
        await admin.get(f"{MAPS}/x")


async def test_metadata_alone_never_carries_the_content_of_a_secret(admin: KubeClient) -> None:
    value = base64.b64encode(b"hunter2").decode()
    await admin.create(SECRETS, {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"k": value}})
    version = await versions_of(admin, SECRETS)
    seen = [await admin.get(f"{SECRETS}/s", accept=METADATA)]
    async for page in list_pages(admin, SECRETS, accept=METADATA_LIST):
        seen += [bytes(item) for item in page.items]
    await admin.merge_patch(f"{SECRETS}/s", {"metadata": {"labels": {"a": "b"}}})
    async with aclosing(watch(admin, SECRETS, resource_version=version, accept=METADATA)) as events:
        async for event in events:
            if event.type == "MODIFIED":
                seen.append(bytes(event.object))
                break
    assert len(seen) == 3
    assert all(decoded(one)["kind"] == "PartialObjectMetadata" for one in seen)
    assert all(value.encode() not in one for one in seen)


async def test_a_token_lives_as_long_as_the_secret_that_it_is_bound_to(
    admin: KubeClient, login: Callable[..., Awaitable[KubeClient]]
) -> None:
    accounts = api_path("", "v1", "serviceaccounts", namespace="default")
    await admin.create(accounts, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "gitops"}})
    secret = decoded(await admin.create(SECRETS, {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bind"}}))
    bound = ("bind", secret["metadata"]["uid"])
    issued = await admin.token_request("default", "gitops", expiration_seconds=600, bound_secret=bound)

    account = await login(token=issued.token)
    with pytest.raises(ForbiddenError, match=r'User "system:serviceaccount:default:gitops" cannot list'):
        await account.get(NAMESPACES)
    await admin.delete(f"{SECRETS}/bind")
    with pytest.raises(UnauthorizedError):
        await account.get(NAMESPACES)


async def test_a_life_that_is_too_short_is_invalid(admin: KubeClient) -> None:
    accounts = api_path("", "v1", "serviceaccounts", namespace="default")
    await admin.create(accounts, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "gitops"}})
    with pytest.raises(InvalidError):
        await admin.token_request("default", "gitops", expiration_seconds=10)


async def test_an_event_can_be_read_beside_its_object(admin: KubeClient) -> None:
    about = ObjectRef(api_version="v1", kind="ConfigMap", namespace="default", name="x", uid="u1")
    await admin.event(about, reason="Refused", message="somebody else made it", kind="Warning")
    path = api_path("", "v1", "events", namespace="default")
    found = decoded(await admin.get(path, params={"fieldSelector": "involvedObject.name=x"}))["items"]
    assert [(event["reason"], event["message"]) for event in found] == [("Refused", "somebody else made it")]


async def test_all_pages_of_a_list_are_one_snapshot(admin: KubeClient) -> None:
    for number in range(5):
        await admin.create(MAPS, config_map(f"x-{number}", labels={"mine": "yes"}))
    names: list[str] = []
    versions: set[str] = set()
    async for page in list_pages(admin, MAPS, params={"labelSelector": "mine=yes"}, page_size=2):
        names += [decoded(item)["metadata"]["name"] for item in page.items]
        versions.add(page.resource_version)
        if len(names) == 2:
            await admin.delete(f"{MAPS}/x-4")
    assert names == [f"x-{number}" for number in range(5)]
    assert len(versions) == 1


async def test_a_watch_goes_on_from_where_a_list_ended(admin: KubeClient) -> None:
    version = await versions_of(admin, MAPS)
    await admin.create(MAPS, config_map("x"))
    await admin.delete(f"{MAPS}/x")
    kinds: list[str] = []
    async with aclosing(watch(admin, MAPS, resource_version=version, timeout=30.0)) as events:
        async for event in events:
            kinds.append(event.type)
            if event.type == "BOOKMARK":
                break
    assert kinds == ["ADDED", "DELETED", "BOOKMARK"]


async def test_a_watch_ends_by_itself_after_its_timeout(admin: KubeClient) -> None:
    version = await versions_of(admin, MAPS)
    async with asyncio.timeout(30):
        kinds = {event.type async for event in watch(admin, MAPS, resource_version=version, timeout=1.0)}
    assert kinds <= {"BOOKMARK"}


async def test_a_watch_from_forgotten_history_is_gone(admin: KubeClient) -> None:
    version = await versions_of(admin, MAPS)
    for number in range(60):
        await admin.merge_patch(f"{NAMESPACES}/default", {"metadata": {"labels": {"n": str(number)}}})
    with pytest.raises(GoneError):
        async with aclosing(watch(admin, MAPS, resource_version=version)) as events:
            await anext(events)
