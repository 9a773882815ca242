"""What happens by itself in the cluster: namespaces empty and go, dependents follow owners, accounts appear."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING

import pytest

from tether.devcluster import bootstrap, controllers
from tether.devcluster.contracts import Object
from tether.devcluster.rbac import CLUSTER_ROLES
from tether.devcluster.resources import CONFIG_MAPS, NAMESPACES, SECRETS, SERVICE_ACCOUNTS
from tether.devcluster.store import Store
from tether.devcluster.tokens import TokenIssuer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tether.devcluster.contracts import Resource
    from tether.devcluster.pki import ClusterPki

    Settle = Callable[[], None]

PERSISTENT_VOLUMES = "persistentvolumes"


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store()
    bootstrap.apply(store)
    store.create(NAMESPACES, {"metadata": {"name": "oil"}})
    yield store
    store.close()


@pytest.fixture
def issuer(store: Store, pki: ClusterPki) -> TokenIssuer:
    return TokenIssuer(store, pki)


@pytest.fixture
def settle(store: Store, issuer: TokenIssuer) -> Settle:
    """Let all controllers work until nothing changes."""
    return lambda: controllers.settle(store, controllers.kubernetes(store, issuer))


def make(
    store: Store,
    name: str,
    *,
    namespace: str = "oil",
    owners: tuple[Object, ...] = (),
    finalizers: tuple[str, ...] = (),
) -> Object:
    meta: Object = {"name": name, "namespace": namespace}
    meta |= {"ownerReferences": list(owners)} if owners else {}
    meta |= {"finalizers": list(finalizers)} if finalizers else {}
    return store.create(CONFIG_MAPS, {"metadata": meta})


def reference(obj: Object, **more: str) -> Object:
    meta = obj["metadata"]
    return {"apiVersion": obj["apiVersion"], "kind": obj["kind"], "name": meta["name"], "uid": meta["uid"]} | more


def kind(store: Store, plural: str) -> Resource:
    found = store.resource("", plural)
    assert found is not None
    return found


def has(store: Store, name: str, *, namespace: str = "oil") -> bool:
    return store.get(CONFIG_MAPS, namespace, name) is not None


def test_every_namespace_has_its_default_account_and_the_authority(
    store: Store, settle: Settle, pki: ClusterPki
) -> None:
    settle()

    for namespace in (*bootstrap.FIRST_NAMESPACES, "oil"):
        assert store.get(SERVICE_ACCOUNTS, namespace, "default") is not None
        root = store.get(CONFIG_MAPS, namespace, "kube-root-ca.crt")
        assert root is not None
        assert root["data"] == {"ca.crt": pki.ca_pem}


def test_the_default_account_and_the_authority_come_back(store: Store, settle: Settle, pki: ClusterPki) -> None:
    settle()
    store.delete(SERVICE_ACCOUNTS, "oil", "default")
    root = store.get(CONFIG_MAPS, "oil", "kube-root-ca.crt")
    assert root is not None
    store.update(CONFIG_MAPS, {**root, "data": {"ca.crt": "forged"}})

    settle()

    assert store.get(SERVICE_ACCOUNTS, "oil", "default") is not None
    root = store.get(CONFIG_MAPS, "oil", "kube-root-ca.crt")
    assert root is not None
    assert root["data"] == {"ca.crt": pki.ca_pem}


def test_a_deleted_namespace_takes_all_that_is_in_it_along(store: Store, settle: Settle) -> None:
    settle()
    make(store, "inside")
    make(store, "outside", namespace="default")

    store.delete(NAMESPACES, "", "oil")
    settle()

    assert store.get(NAMESPACES, "", "oil") is None
    assert not [obj for resource in store.resources() for obj in store.list(resource, "oil") if resource.namespaced]
    assert has(store, "outside", namespace="default")


def test_a_namespace_waits_for_the_finalizers_in_it(store: Store, settle: Settle) -> None:
    held = make(store, "held", finalizers=("example.com/hold",))
    store.delete(NAMESPACES, "", "oil")

    settle()
    namespace = store.get(NAMESPACES, "", "oil")
    assert namespace is not None
    assert namespace["status"]["phase"] == "Terminating"
    assert has(store, "held")

    store.update(CONFIG_MAPS, {**held, "metadata": {"name": "held", "namespace": "oil"}})
    settle()

    assert store.get(NAMESPACES, "", "oil") is None


def test_a_dependent_goes_with_its_only_owner(store: Store, settle: Settle) -> None:
    owner = make(store, "owner")
    make(store, "dependent", owners=(reference(owner),))
    settle()
    assert has(store, "dependent")

    store.delete(CONFIG_MAPS, "oil", "owner")
    settle()

    assert not has(store, "dependent")


def test_a_chain_of_owners_goes_link_by_link(store: Store, settle: Settle) -> None:
    first = make(store, "first")
    second = make(store, "second", owners=(reference(first),))
    make(store, "third", owners=(reference(second),))

    store.delete(CONFIG_MAPS, "oil", "first")
    settle()

    assert not has(store, "second")
    assert not has(store, "third")


def test_a_dependent_stays_while_one_owner_lives_and_forgets_the_other(store: Store, settle: Settle) -> None:
    one, other = make(store, "one"), make(store, "other")
    make(store, "dependent", owners=(reference(one), reference(other)))

    store.delete(CONFIG_MAPS, "oil", "one")
    settle()

    dependent = store.get(CONFIG_MAPS, "oil", "dependent")
    assert dependent is not None
    assert dependent["metadata"]["ownerReferences"] == [reference(other)]


def test_an_owner_made_again_under_the_same_name_owns_nothing(store: Store, settle: Settle) -> None:
    owner = make(store, "owner")
    make(store, "dependent", owners=(reference(owner),))
    store.delete(CONFIG_MAPS, "oil", "owner")
    make(store, "owner")

    settle()

    assert has(store, "owner")
    assert not has(store, "dependent")


def test_an_owner_in_another_namespace_counts_as_absent(store: Store, settle: Settle) -> None:
    owner = make(store, "owner", namespace="default")
    make(store, "dependent", owners=(reference(owner),))

    settle()

    assert not has(store, "dependent")


def test_a_cluster_scoped_owner_takes_its_dependents_along(store: Store, settle: Settle) -> None:
    volumes = kind(store, PERSISTENT_VOLUMES)
    owner = store.create(volumes, {"metadata": {"name": "owner"}})
    make(store, "dependent", owners=(reference(owner),))
    settle()
    assert has(store, "dependent")

    store.delete(volumes, "", "owner")
    settle()

    assert not has(store, "dependent")


def test_a_cluster_scoped_object_with_a_namespaced_owner_is_never_collected(store: Store, settle: Settle) -> None:
    owner = make(store, "owner")
    volumes = kind(store, PERSISTENT_VOLUMES)
    store.create(volumes, {"metadata": {"name": "dependent", "ownerReferences": [reference(owner)]}})
    store.delete(CONFIG_MAPS, "oil", "owner")

    settle()

    assert store.get(volumes, "", "dependent") is not None


def test_an_owner_of_an_unknown_kind_keeps_its_dependents(store: Store, settle: Settle) -> None:
    owner = {"apiVersion": "example.com/v1", "kind": "Unknown", "name": "owner", "uid": "1"}
    make(store, "dependent", owners=(owner,))

    settle()

    assert has(store, "dependent")


def test_a_dependent_with_a_finalizer_waits_for_it(store: Store, settle: Settle) -> None:
    owner = make(store, "owner")
    make(store, "dependent", owners=(reference(owner),), finalizers=("example.com/hold",))

    store.delete(CONFIG_MAPS, "oil", "owner")
    settle()

    dependent = store.get(CONFIG_MAPS, "oil", "dependent")
    assert dependent is not None
    assert dependent["metadata"]["deletionTimestamp"]


def test_in_foreground_deletion_the_owner_goes_after_its_dependents(store: Store, settle: Settle) -> None:
    owner = make(store, "owner", finalizers=("foregroundDeletion",))
    meta = {"name": "dependent", "namespace": "oil"}
    make(store, "dependent", owners=(reference(owner),), finalizers=("example.com/hold",))
    store.delete(CONFIG_MAPS, "oil", "owner")

    settle()
    assert has(store, "owner")

    store.update(CONFIG_MAPS, {"metadata": meta | {"ownerReferences": [reference(owner)]}})
    settle()

    assert not has(store, "dependent")
    assert not has(store, "owner")


def test_orphaned_dependents_stay_without_their_owner(store: Store, settle: Settle) -> None:
    owner = make(store, "owner", finalizers=("orphan",))
    make(store, "dependent", owners=(reference(owner),))

    store.delete(CONFIG_MAPS, "oil", "owner")
    settle()

    dependent = store.get(CONFIG_MAPS, "oil", "dependent")
    assert dependent is not None
    assert not dependent["metadata"]["ownerReferences"]
    assert not has(store, "owner")


def token_secret(store: Store, account: str = "gitops") -> None:
    annotations = {"kubernetes.io/service-account.name": account}
    meta = {"name": "token", "namespace": "oil", "annotations": annotations}
    store.create(SECRETS, {"metadata": meta, "type": "kubernetes.io/service-account-token"})


def test_a_token_secret_is_filled_and_valid(store: Store, settle: Settle, issuer: TokenIssuer, pki: ClusterPki) -> None:
    account = store.create(SERVICE_ACCOUNTS, {"metadata": {"name": "gitops", "namespace": "oil"}})
    token_secret(store)

    settle()

    secret = store.get(SECRETS, "oil", "token")
    assert secret is not None
    data = {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}
    assert data["namespace"] == "oil"
    assert data["ca.crt"] == pki.ca_pem
    assert issuer.verify(data["token"]).user.username == "system:serviceaccount:oil:gitops"
    assert secret["metadata"]["annotations"]["kubernetes.io/service-account.uid"] == account["metadata"]["uid"]
    version = store.version
    settle()
    assert store.version == version


def test_a_token_secret_goes_with_its_account(store: Store, settle: Settle) -> None:
    store.create(SERVICE_ACCOUNTS, {"metadata": {"name": "gitops", "namespace": "oil"}})
    token_secret(store)
    settle()

    store.delete(SERVICE_ACCOUNTS, "oil", "gitops")
    settle()

    assert store.get(SECRETS, "oil", "token") is None


def test_a_token_secret_of_an_account_made_again_goes_too(store: Store, settle: Settle) -> None:
    store.create(SERVICE_ACCOUNTS, {"metadata": {"name": "gitops", "namespace": "oil"}})
    token_secret(store)
    settle()
    store.delete(SERVICE_ACCOUNTS, "oil", "gitops")
    store.create(SERVICE_ACCOUNTS, {"metadata": {"name": "gitops", "namespace": "oil"}})

    settle()

    assert store.get(SECRETS, "oil", "token") is None


def test_another_kind_of_secret_is_left_alone(store: Store, settle: Settle) -> None:
    annotations = {"kubernetes.io/service-account.name": "absent"}
    secret = store.create(
        SECRETS, {"metadata": {"name": "plain", "namespace": "oil", "annotations": annotations}, "type": "Opaque"}
    )

    settle()

    assert store.get(SECRETS, "oil", "plain") == secret


def test_a_labelled_role_joins_and_leaves_the_role_that_gathers(store: Store, settle: Settle) -> None:
    rule = {"apiGroups": ["kustomize.toolkit.fluxcd.io"], "resources": ["kustomizations"], "verbs": ["get"]}
    labels = {"rbac.authorization.k8s.io/aggregate-to-view": "true"}

    store.create(CLUSTER_ROLES, {"metadata": {"name": "flux-view", "labels": labels}, "rules": [rule]})
    settle()
    for name in ("view", "edit", "admin"):
        gathered = store.get(CLUSTER_ROLES, "", name)
        assert gathered is not None
        assert rule in gathered["rules"]

    store.delete(CLUSTER_ROLES, "", "flux-view")
    settle()
    for name in ("view", "edit", "admin"):
        gathered = store.get(CLUSTER_ROLES, "", name)
        assert gathered is not None
        assert rule not in gathered["rules"]


async def until(store: Store, holds: Callable[[], bool]) -> None:
    """Wait for changes until the state is as wanted."""
    changes = store.changes()
    async with asyncio.timeout(10):
        while not holds():
            await changes.wait()
            changes.pending()
    changes.close()


async def test_running_controllers_follow_changes_also_after_their_watch_was_cut(
    store: Store, issuer: TokenIssuer
) -> None:
    task = asyncio.create_task(controllers.run(store, issuer))
    await until(store, lambda: has(store, "kube-root-ca.crt"))

    store.close_watches()
    store.create(NAMESPACES, {"metadata": {"name": "gas"}})
    await until(store, lambda: has(store, "kube-root-ca.crt", namespace="gas"))

    owner = make(store, "owner")
    make(store, "dependent", owners=(reference(owner),))
    store.delete(CONFIG_MAPS, "oil", "owner")
    await until(store, lambda: not has(store, "dependent"))

    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()


async def test_a_restart_catches_up_with_what_was_left_undone(tmp_path: Path, pki: ClusterPki) -> None:
    before = Store(tmp_path / "objects.sqlite")
    bootstrap.apply(before)
    before.create(NAMESPACES, {"metadata": {"name": "oil"}})
    owner = make(before, "owner")
    make(before, "dependent", owners=(reference(owner),))
    before.delete(CONFIG_MAPS, "oil", "owner")
    before.delete(NAMESPACES, "", "kube-public")
    before.close()

    after = Store(tmp_path / "objects.sqlite")
    task = asyncio.create_task(controllers.run(after, TokenIssuer(after, pki)))
    await until(after, lambda: not has(after, "dependent") and after.get(NAMESPACES, "", "kube-public") is None)

    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    after.close()


async def test_a_refused_reconcile_ends_no_controller(store: Store, issuer: TokenIssuer) -> None:
    class Refuses:
        """Every reconcile is refused, as a write into a namespace that goes away would be."""

        def all_keys(self) -> list[controllers.Key]:
            return [("oil",)]

        def keys(self, change: object) -> list[controllers.Key]:
            del change
            return [("oil",)]

        def reconcile(self, key: controllers.Key) -> None:
            store.get(NAMESPACES, "", key[0])
            store.create(NAMESPACES, {"metadata": {"name": key[0]}})

    task = asyncio.create_task(controllers.follow(store, [Refuses(), *controllers.kubernetes(store, issuer)]))

    await until(store, lambda: has(store, "kube-root-ca.crt"))

    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
