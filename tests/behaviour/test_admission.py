"""The admission policies: Tether works under them, and whoever has taken over a worker's account makes nothing else.

A real API server alone evaluates them; the embedded one serves no ``admissionregistration.k8s.io``.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from eventcore.kube import api_path
from tests.behaviour.states import Whole
from tests.behaviour.tampering import Tamper, hold, hold_while_it_goes, mark_for_another, strip
from tether import manifests

if TYPE_CHECKING:
    from tests.kubeapi import Client, Reply

pytestmark = pytest.mark.xdist_group("cluster")

Tenancy = Any
Object = dict[str, Any]
ACCOUNT = "gitops-reconciler"
ENABLED = "capsule.addon.fluxcd/enabled"
COMPONENT = "capsule-tether.io/component"
MARK = "capsule-tether.io/account"
RBAC = "rbac.authorization.k8s.io"
ASKS = "capsule-tether.io/proxy-ca"
NAMESPACES = api_path("", "v1", "namespaces")
ROLES, BINDINGS = api_path(RBAC, "v1", "clusterroles"), api_path(RBAC, "v1", "clusterrolebindings")
CONFIGURATION = api_path("capsule.clastix.io", "v1beta2", "capsuleconfigurations", name="default")
WORKER = "system:serviceaccount:capsule-system:tether-worker"
SETTINGS = api_path("capsule.clastix.io", "v1beta1", "globalproxysettings")
A_RULE: Object = {
    "subjects": [{"kind": "User", "name": "dana"}],
    "clusterResources": [{"apiGroups": ["*"], "resources": ["*"], "selector": {"matchLabels": {"a": "b"}}}],
}
A_SETTING: Object = {
    "apiVersion": "capsule.clastix.io/v1beta1",
    "kind": "GlobalProxySettings",
    "spec": {"rules": [A_RULE]},
}
DRY = {"dryRun": "All"}


@pytest.fixture
async def worker(cluster: Any, admin: Any, until: Any) -> AsyncIterator[Client]:
    """Whoever has the account of all workers, with the policies in force for as long as a test lasts."""
    objects = manifests.read(manifests.shipped("deploy/admission"))
    applier = manifests.Applier(admin, "person")
    await applier.apply(manifests.read(manifests.shipped("deploy/optional/worker-users.yaml")))
    async with cluster.wire() as administrator:
        client = administrator.acting(WORKER)
        await applier.apply(manifests.read(manifests.shipped("deploy/crds")))
        await applier.apply(objects)
        try:
            for collection in (ROLES, BINDINGS, *(place(kind, "default") for kind in ("secrets", "rolebindings"))):

                async def in_force(collection: str = collection) -> bool:
                    body: Object = {"metadata": {"name": "canary"}}
                    if "bindings" in collection:
                        body["roleRef"] = {"apiGroup": RBAC, "kind": "ClusterRole", "name": "view"}
                    return denied(await client.post(collection, body, params=DRY))

                await until(in_force)

            async def over_users() -> bool:
                return denied(await client.patch(CONFIGURATION, {"metadata": {"labels": {"canary": "a"}}}, **DRY))

            await until(over_users)
            yield client
        finally:
            for obj in reversed(objects):
                await admin.delete(await applier.path(obj))


def place(kind: str, namespace: str) -> str:
    return api_path(RBAC if kind == "rolebindings" else "", "v1", kind, namespace=namespace)


def denied(answer: Reply) -> bool:
    """Tell whether a policy refused; RBAC's refusals are other ones."""
    return answer.status == 422 and "ValidatingAdmissionPolicy" in answer.body["message"]


def as_new(found: Object, **metadata: Any) -> Object:
    """Return an object as somebody would make it anew, with other metadata."""
    new = deepcopy(found)
    kept = {key: new["metadata"].get(key) for key in ("name", "namespace", "labels", "annotations")}
    new["metadata"] = {key: value for key, value in (kept | metadata).items() if value is not None}
    return new


async def test_tether_does_all_its_work_under_the_policies(
    cluster: Any,
    worker: Client,
    tenancy: Tenancy,
    until: Any,
) -> None:
    rights = manifests.read(manifests.shipped("deploy/optional") / "configmaps.yaml")
    applier = manifests.Applier(tenancy.admin, "person")
    await applier.apply(rights)
    on = {
        "TETHER_FLUX_SERVICE_ACCOUNT": ACCOUNT,
        "TETHER_CAPSULE_USERS": "true",
        "TETHER_KUBECONFIG_CONFIGMAPS": "true",
    }
    await cluster.restart("watcher", "router", "worker", **on)
    entry = {"kind": "ServiceAccount", "name": tenancy.user}

    async def listed() -> bool:
        return entry in (await tenancy.must("CapsuleConfiguration", "", "default"))["spec"].get("users", [])

    async def unlisted() -> bool:
        return not await listed()

    try:
        # Given an owner that is enabled gets everything, in its namespaces too
        await tenancy.make()
        own = await tenancy.make_usable("production")
        lockdown = f"tether:lockdown:{tenancy.home}:{ACCOUNT}"
        await tenancy.must("Secret", own, f"{ACCOUNT}-kubeconfig")
        await tenancy.must("RoleBinding", own, lockdown)
        before = await tenancy.must("ClusterRoleBinding", "", tenancy.impersonator)
        await until(listed)
        await tenancy.admin.create(SETTINGS, A_SETTING | {"metadata": {"name": tenancy.name}})

        async def has_a_status() -> bool:
            found = msgspec.json.decode(await tenancy.admin.get(f"{SETTINGS}/{tenancy.name}"))
            return bool(found.get("status", {}).get("observedGeneration") == 1)

        await until(has_a_status)

        # When somebody edits what Tether made, then it is put right
        subjects = [{"kind": "User", "apiGroup": RBAC, "name": "mallory"}]
        await tenancy.admin.merge_patch(f"{BINDINGS}/{tenancy.impersonator}", {"subjects": subjects})
        await tenancy.admin.delete(f"{place('secrets', tenancy.home)}/{ACCOUNT}-token")
        await tenancy.must("Secret", tenancy.home, f"{ACCOUNT}-token-2")

        async def put_right() -> bool:
            found = await tenancy.get("ClusterRoleBinding", "", tenancy.impersonator)
            return found is not None and bool(found["subjects"] == before["subjects"])

        await until(put_right)

        # When a namespace asks for the proxy's CA, then it has it, of either kind, and the account its ConfigMap
        for kind in ("secret", "configmap"):
            await tenancy.admin.merge_patch(f"{NAMESPACES}/{own}", {"metadata": {"annotations": {ASKS: kind}}})
            copy = await tenancy.must("Secret" if kind == "secret" else "ConfigMap", own, "capsule-proxy")
            assert set(copy["data"]) == ({"ca", "ca.crt"} if kind == "secret" else {"ca.crt"})
        await tenancy.gone("Secret", own, "capsule-proxy")
        beside = {"capsule-tether.io/kubeconfig-configmap": "beside"}
        await tenancy.apply(tenancy.account(**{ENABLED: "true"}, **beside))
        await tenancy.must("ConfigMap", tenancy.home, f"{ACCOUNT}-kubeconfig")
        await tenancy.admin.merge_patch(f"{NAMESPACES}/{own}", {"metadata": {"annotations": {ASKS: None}}})
        await tenancy.gone("ConfigMap", own, "capsule-proxy")

        # When it is switched off, then everything goes
        await tenancy.apply(tenancy.account(**{ENABLED: "false"}))
        for kind, namespace, name in (
            ("RoleBinding", own, lockdown),
            ("Secret", own, f"{ACCOUNT}-kubeconfig"),
            ("Secret", tenancy.home, f"{ACCOUNT}-token"),
            ("ConfigMap", tenancy.home, f"{ACCOUNT}-kubeconfig"),
            ("RoleBinding", tenancy.home, ACCOUNT),
            ("ClusterRoleBinding", "", tenancy.impersonator),
            ("ClusterRole", "", tenancy.impersonator),
        ):
            await tenancy.gone(kind, namespace, name)
        await until(unlisted)
    finally:
        await cluster.restart("watcher", "router", "worker")
        for obj in reversed(rights):
            await tenancy.admin.delete(await applier.path(obj))


@pytest.mark.parametrize("tamper", [strip, mark_for_another, hold, hold_while_it_goes])
async def test_what_an_account_does_to_its_objects_at_home_is_no_rescue_under_the_policies_either(
    cluster: Any, worker: Client, tenancy: Tenancy, tamper: Tamper
) -> None:
    # Given an account that has everything, under the policies
    await tenancy.make()
    account = Whole(tenancy)
    token = await account.has()

    # When it spoils the marks of what it has or holds it, and is switched off
    async with cluster.client(cluster.as_token(token, direct=True)) as client:
        await tamper(client, account)
    await tenancy.apply(tenancy.account(**{ENABLED: "false"}))

    # Then nothing is left
    await account.has_nothing(token, owner=True)


async def test_with_the_workers_account_nobody_grants_anything_else(
    worker: Client, tenancy: Tenancy, other: Tenancy
) -> None:
    await tenancy.make()
    await other.make()
    home = await tenancy.must("RoleBinding", tenancy.home, ACCOUNT)
    role = await tenancy.must("ClusterRole", "", tenancy.impersonator)
    binding = await tenancy.must("ClusterRoleBinding", "", tenancy.impersonator)
    mallory = {"kind": "User", "apiGroup": RBAC, "name": "mallory"}
    everything = {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}
    mine, theirs = home["subjects"][0], {**home["subjects"][0], "namespace": other.home}
    admin_role = {"apiGroup": RBAC, "kind": "ClusterRole", "name": "cluster-admin"}
    marks = {MARK: f"{tenancy.home}/second"}

    # Given objects of our shape are accepted, what is refused below is refused for its difference
    await tenancy.admin.delete(f"{place('rolebindings', tenancy.home)}/{ACCOUNT}")
    # (Tether makes it anew at the same time, so either comes first.)
    assert (await worker.post(place("rolebindings", tenancy.home), as_new(home), params=DRY)).status in {201, 409}

    bindings, elsewhere = place("rolebindings", tenancy.home), place("rolebindings", "kube-system")
    one, at_home, account, shape, named = (
        "must bind one ServiceAccount of its own namespace",
        "at home it must bear the name",
        "must name an account",
        "itself and nothing else",
        "the name of an impersonator role",
    )
    at_system = {"namespace": "kube-system", "annotations": {MARK: f"kube-system/{ACCOUNT}"}}
    lockdown = f"tether:lockdown:{tenancy.home}:{ACCOUNT}"
    aggregated = {COMPONENT: "rbac", "rbac.authorization.k8s.io/aggregate-to-admin": "true"}
    rule = role["rules"][0]
    everybody = {"kind": "Group", "apiGroup": RBAC, "name": "system:authenticated"}
    owner = [{"apiVersion": "v1", "kind": "Pod", "name": "a", "uid": "a"}]
    tries = [
        (one, bindings, as_new(home) | {"subjects": [mallory]}),
        (one, bindings, as_new(home) | {"subjects": [mine, mallory]}),
        (one, bindings, as_new(home) | {"subjects": []}),
        (one, bindings, as_new(home) | {"subjects": [theirs]}),
        (at_home, bindings, as_new(home) | {"subjects": [{**mine, "name": "default"}]}),
        (at_home, bindings, as_new(home, name="a")),
        (at_home, bindings, as_new(home, name=None, generateName="a")),
        ("must be rbac", bindings, as_new(home, labels=None)),
        (account, bindings, as_new(home, annotations=None)),
        (account, bindings, as_new(home, name="second", annotations=marks)),
        ("have no owner", bindings, as_new(home, ownerReferences=owner)),
        ("the role must be one", bindings, as_new(home) | {"roleRef": {**admin_role, "name": "edit"}}),
        (account, elsewhere, as_new(home, **at_system) | {"subjects": [{**mine, "namespace": "kube-system"}]}),
        (one, elsewhere, as_new(home, namespace="kube-system")),
        (one, place("rolebindings", other.home), as_new(home, namespace=other.home)),
        ("in a namespace of the tenant", bindings, as_new(home, name=lockdown)),
        ("in a tenant's namespace it must", bindings, as_new(home, name=f"{lockdown}x")),
        (named, ROLES, as_new(role, name="a-impersonator")),
        (named, ROLES, as_new(role, name=f"{tenancy.home}-0123456789")),
        (shape, ROLES, as_new(role) | {"rules": [everything]}),
        (shape, ROLES, as_new(role) | {"rules": [*role["rules"], everything]}),
        (shape, ROLES, as_new(role) | {"rules": [{**rule, "resourceNames": [other.user]}]}),
        (shape, ROLES, as_new(role) | {"rules": [{**rule, "resourceNames": [tenancy.user, other.user]}]}),
        (shape, ROLES, as_new(role) | {"rules": [{**rule, "resources": ["users", "groups"]}]}),
        (shape, ROLES, as_new(role) | {"rules": [{"nonResourceURLs": ["/metrics"], "verbs": ["get"]}]}),
        ("must not aggregate", ROLES, as_new(role) | {"aggregationRule": {"clusterRoleSelectors": [{}]}}),
        ("must not be aggregated", ROLES, as_new(role, labels=aggregated)),
        ("of its own name", BINDINGS, as_new(binding) | {"roleRef": admin_role}),
        ("of its own name", BINDINGS, as_new(binding) | {"roleRef": admin_role, "subjects": [mallory]}),
        ("must bind the account", BINDINGS, as_new(binding) | {"subjects": [theirs]}),
        ("must bind the account", BINDINGS, as_new(binding) | {"subjects": [mine, theirs]}),
        ("must bind the account", BINDINGS, as_new(binding) | {"subjects": [everybody]}),
        (named, BINDINGS, as_new(binding, name="a") | {"roleRef": {**admin_role, "name": "a"}}),
    ]
    for why, collection, body in tries:
        answer = await worker.post(collection, body, params=DRY)
        assert denied(answer), (why, body, answer)
        assert why in answer.body["message"], (body, answer)

    # Names with a hash are ours too
    hashed = f"{tenancy.impersonator}-0123456789"
    assert (await worker.post(ROLES, as_new(role, name=hashed), params=DRY)).status == 201

    # Nor is what is there changed, marked or deleted: ours into something else, or somebody else's
    own = {
        "rules": (f"{ROLES}/{tenancy.impersonator}", {"rules": [everything]}),
        "subjects": (f"{BINDINGS}/{tenancy.impersonator}", {"subjects": [mallory]}),
        "marks of another account": (
            f"{ROLES}/{tenancy.impersonator}",
            {"metadata": {"annotations": {MARK: f"{other.home}/{ACCOUNT}"}}},
        ),
        "marks off": (f"{ROLES}/{tenancy.impersonator}", {"metadata": {"labels": {COMPONENT: None}}}),
        "a role of Kubernetes": (f"{ROLES}/view", {"rules": [everything]}),
        "marks on": (f"{ROLES}/view", {"metadata": {"labels": {COMPONENT: "rbac"}, "annotations": marks}}),
        "a binding of Kubernetes": (f"{BINDINGS}/cluster-admin", {"subjects": [mallory]}),
    }
    for what, (path, patch) in own.items():
        answer = await worker.patch(path, patch, **DRY)
        assert denied(answer), (what, answer)
    for path in (f"{ROLES}/view", f"{BINDINGS}/cluster-admin", f"{elsewhere}/system::leader-locking-kube-scheduler"):
        answer = await worker.delete(path, params=DRY)
        assert denied(answer), (path, answer)


async def test_with_the_workers_account_nobody_makes_other_secrets_and_tokens(
    worker: Client, tenancy: Tenancy, other: Tenancy
) -> None:
    await tenancy.make()
    await other.make()
    foreign = await other.make_usable("production")
    await tenancy.apply(
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": "second", "namespace": tenancy.home},
        }
    )
    home, system, theirs = (place("secrets", namespace) for namespace in (tenancy.home, "kube-system", foreign))
    config = await tenancy.must("Secret", tenancy.home, f"{ACCOUNT}-kubeconfig")
    token = await tenancy.must("Secret", tenancy.home, f"{ACCOUNT}-token")
    legacy = "kubernetes.io/service-account-token"

    def static(name: str, account: str, mark: str) -> Object:
        annotations = {MARK: mark, "kubernetes.io/service-account.name": account}
        metadata = {"name": name, "labels": {COMPONENT: "token"}, "annotations": annotations}
        return {"metadata": metadata, "type": legacy}

    # Given Secrets of our shape are accepted
    own_mark = f"{tenancy.home}/{ACCOUNT}"
    for body in (as_new(config, name=f"{ACCOUNT}-again"), static(f"{ACCOUNT}-token-9", ACCOUNT, own_mark)):
        accepted = await worker.post(home, body, params=DRY)
        assert accepted.status == 201, accepted

    own, account = f"{ACCOUNT}-a", "must name an account"
    platform = {"namespace": "kube-system", "annotations": {MARK: f"kube-system/{ACCOUNT}"}}
    tries = [
        ("must be token or kubeconfig", home, as_new(config, name=own, labels=None)),
        ("must be token or kubeconfig", home, as_new(config, name=own, labels={COMPONENT: "rbac"})),
        (account, home, as_new(config, name=own, annotations=None)),
        ("must begin with the name", home, as_new(config, name="a")),
        ("stays in the home", theirs, as_new(token, namespace=foreign, name=own)),
        ("in a namespace of the tenant", theirs, as_new(config, namespace=foreign, name=own)),
        ("in a namespace of the tenant", system, as_new(config, namespace="kube-system", name=own)),
        (account, system, as_new(config, name=own, **platform)),
        ("a static token of its account", home, static(own, "second", own_mark)),
        (account, home, static("second-a", "second", f"{tenancy.home}/second")),
        (account, system, static("default-a", "default", "kube-system/default")),
        ("Opaque", home, as_new(config, name=own) | {"type": "bootstrap.kubernetes.io/token"}),
        (
            "nobody but its account",
            home,
            as_new(token, name=own, ownerReferences=[{"apiVersion": "v1", "kind": "Pod", "name": "a", "uid": "a"}]),
        ),
    ]
    for why, collection, body in tries:
        answer = await worker.post(collection, body, params=DRY)
        assert denied(answer), (why, body, answer)
        assert why in answer.body["message"], (body, answer)

    foreign_secret = f"{place('secrets', 'capsule-system')}/capsule-proxy"
    assert denied(await worker.patch(foreign_secret, {"data": {"ca.crt": "Zm9yZWlnbg=="}}, **DRY))
    assert denied(await worker.delete(foreign_secret, params=DRY))
    stolen = {"metadata": {"annotations": {MARK: f"{other.home}/{ACCOUNT}"}}}
    assert denied(await worker.patch(f"{home}/{ACCOUNT}-kubeconfig", stolen, **DRY))

    def asked(**bound: str) -> Object:
        spec: Object = {"expirationSeconds": 600}
        return {"spec": spec | ({"boundObjectRef": {"apiVersion": "v1"} | bound} if bound else {})}

    tokens = {
        "no binding": (own_mark, asked()),
        "another binding": (own_mark, asked(kind="Secret", name=f"{ACCOUNT}-kubeconfig")),
        "a pod": (own_mark, asked(kind="Pod", name=f"{ACCOUNT}-token-1")),
        "another account": (f"{tenancy.home}/second", asked(kind="Secret", name="second-token-1")),
        "the platform's": ("kube-system/default", asked(kind="Secret", name="default-token-1")),
    }
    for what, (whose, body) in tokens.items():
        namespace, name = whose.split("/")
        answer = await worker.post(f"{place('serviceaccounts', namespace)}/{name}/token", body)
        assert denied(answer), (what, answer)


async def test_with_the_workers_account_a_copy_of_the_ca_is_that_alone(
    worker: Client, tenancy: Tenancy, until: Any
) -> None:
    # Given the worker may write ConfigMaps, and namespaces that ask for a copy, of each kind and not at all
    await tenancy.make()
    rights = manifests.read(manifests.shipped("deploy/optional") / "configmaps.yaml")
    applier = manifests.Applier(tenancy.admin, "person")
    await applier.apply(rights)
    places = {kind: f"{kind}-{tenancy.name}" for kind in ("secret", "configmap", "neither")}
    for kind, name in places.items():
        metadata: Object = {"name": name, "annotations": {} if kind == "neither" else {ASKS: kind}}
        await tenancy.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    made = as_new(await tenancy.must("Secret", places["secret"], "capsule-proxy"))
    await tenancy.admin.delete(f"{place('secrets', places['secret'])}/capsule-proxy")
    ours = {COMPONENT: "ca"}
    ca = base64.b64decode(made["data"]["ca"]).decode()
    text: Object = {"metadata": {"name": "capsule-proxy", "labels": ours}, "data": {"ca.crt": ca}}
    flux = {"provider": "generic", "serviceAccountName": ACCOUNT}
    mark = {MARK: f"{tenancy.home}/{ACCOUNT}"}
    of_account: Object = {
        "metadata": {"name": f"{ACCOUNT}-a", "labels": {COMPONENT: "kubeconfig"}, "annotations": mark},
        "data": flux,
    }
    secrets = {kind: place("secrets", name) for kind, name in places.items()}
    maps = {kind: place("configmaps", name) for kind, name in places.items()}
    home = place("configmaps", tenancy.home)

    async def accepted() -> bool:
        # Tether makes its own at the same time, and RBAC takes a moment to hold.
        tried = [(secrets["secret"], made), (maps["configmap"], text), (home, of_account)]
        return {(await worker.post(where, body, params=DRY)).status for where, body in tried} <= {201, 409}

    try:
        await until(accepted)
        named, alone, holds = "under its own name", "the CA and nothing else", "what Flux reads, or the CA"
        owner = [{"apiVersion": "v1", "kind": "Pod", "name": "a", "uid": "a"}]
        more = {"data": {**made["data"], "tls.key": "eA=="}}
        service = {"type": "kubernetes.io/service-account-token"}
        of_default = {"annotations": {"kubernetes.io/service-account.name": "default"}}
        tries = [
            (named, secrets["neither"], as_new(made, namespace=None)),
            (named, secrets["configmap"], as_new(made, namespace=None)),
            (named, place("secrets", "capsule-system"), as_new(made, namespace=None)),
            (named, place("secrets", "kube-system"), as_new(made, namespace=None)),
            (named, secrets["secret"], as_new(made, name="another")),
            (alone, secrets["secret"], as_new(made) | more),
            (alone, secrets["secret"], as_new(made, **of_default) | service),
            (alone, secrets["secret"], as_new(made) | {"type": "example.com/other"}),
            (alone, secrets["secret"], as_new(made, ownerReferences=owner)),
            (alone, secrets["secret"], as_new(made, annotations=mark)),
            (named, maps["neither"], as_new(text) | {"data": text["data"]}),
            (named, maps["secret"], as_new(text)),
            (named, place("configmaps", "kube-system"), as_new(text)),
            (named, maps["configmap"], as_new(text, name="kube-root-ca.crt")),
            (holds, maps["configmap"], as_new(text) | {"data": {"ca.crt": ca, "more": "x"}}),
            (holds, maps["configmap"], as_new(text) | {"binaryData": {"more": "eA=="}}),
            ("must be kubeconfig", maps["configmap"], as_new(text, labels=None)),
            ("must name an account", home, as_new(of_account, annotations=None)),
            ("in the home of its account", maps["configmap"], as_new(of_account)),
            ("in the home of its account", home, as_new(of_account, name="a")),
            (holds, home, as_new(of_account) | {"data": flux | {"more": "x"}}),
            ("have no owner", home, as_new(of_account, ownerReferences=owner)),
        ]
        for why, collection, body in tries:
            answer = await worker.post(collection, body, params=DRY)
            assert denied(answer), (why, body, answer)
            assert why in answer.body["message"], (body, answer)

        # Nor is somebody else's made into a copy, or deleted
        root = f"{maps['configmap']}/kube-root-ca.crt"
        assert denied(await worker.patch(root, {"data": {"ca.crt": "x"}}, **DRY))
        assert denied(await worker.patch(root, {"metadata": {"labels": ours}}, **DRY))
        assert denied(await worker.delete(root, params=DRY))
    finally:
        for obj in reversed(rights):
            await tenancy.admin.delete(await applier.path(obj))
        for name in places.values():
            await tenancy.admin.delete(f"{NAMESPACES}/{name}")


async def test_with_more_rights_by_mistake_a_worker_still_writes_nothing_else(
    worker: Client, tenancy: Tenancy, until: Any
) -> None:
    # Given an administrator bound the worker to cluster-admin
    name = f"mistake-{tenancy.name}"
    subject = {"kind": "ServiceAccount", "name": "tether-worker", "namespace": "capsule-system"}
    body = {"roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": "cluster-admin"}, "subjects": [subject]}
    await tenancy.apply({"apiVersion": f"{RBAC}/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name}} | body)
    try:
        tries: list[tuple[str, Object]] = [
            (api_path("", "v1", "namespaces"), {}),
            (api_path("", "v1", "configmaps", namespace="default"), {}),
            (api_path("", "v1", "serviceaccounts", namespace="kube-system"), {}),
            (api_path(RBAC, "v1", "roles", namespace="kube-system"), {"rules": []}),
            (SETTINGS, A_SETTING),
        ]
        for collection, new in tries:

            async def refused(collection: str = collection, new: Object = new) -> bool:
                return denied(await worker.post(collection, {"metadata": {"name": name}} | new, params=DRY))

            await until(refused)
    finally:
        await tenancy.admin.delete(f"{BINDINGS}/{name}")


async def test_with_the_workers_account_nobody_makes_other_users_of_capsule(worker: Client, tenancy: Tenancy) -> None:
    # Given entries of an administrator, and one that Tether added
    account, key = f"{tenancy.home}/{ACCOUNT}", "capsule-tether.io/user-a"
    mine = {"kind": "ServiceAccount", "name": tenancy.user}
    by_hand = {"kind": "Group", "name": f"by-hand-{tenancy.name}"}
    found = await tenancy.must("CapsuleConfiguration", "", "default")
    before = found["spec"].get("users") or []
    await tenancy.admin.merge_patch(CONFIGURATION, {"spec": {"users": [*before, by_hand]}})
    users = [*before, by_hand]
    memory = {"metadata": {"annotations": {key: f"users {account} {tenancy.name}"}}}
    try:
        # Then an entry of our shape is accepted, in every list
        for spec in (
            {"users": [*users, mine]},
            {"userNames": [tenancy.user]},
            {"userGroups": [*found["spec"]["userGroups"], f"system:serviceaccounts:{tenancy.home}"]},
        ):
            accepted = await worker.patch(CONFIGURATION, {"spec": spec} | memory, **DRY)
            assert accepted.status == 200, accepted.body["message"]

        # And what is refused below is refused for its difference
        system = {"kind": "ServiceAccount", "name": f"system:serviceaccount:kube-system:{ACCOUNT}"}
        at_system = {"metadata": {"annotations": {key: f"users kube-system/{ACCOUNT} {tenancy.name}"}}}
        second = {"kind": "ServiceAccount", "name": f"system:serviceaccount:{tenancy.home}:second"}
        of_second = {"metadata": {"annotations": {key: f"users {tenancy.home}/second {tenancy.name}"}}}
        entry, fields, note = "no entry may change", "nothing but the lists", "no annotation may change"
        tries = [
            (entry, {"spec": {"users": [*users, mine]}}),
            (entry, memory | {"spec": {"users": [*users, {"kind": "Group", "name": "system:authenticated"}]}}),
            (entry, memory | {"spec": {"users": [*users, mine | {"kind": "User"}]}}),
            (entry, memory | {"spec": {"users": before}}),
            (entry, memory | {"spec": {"users": None}}),
            (entry, memory | {"spec": {"users": [by_hand, *before, {"kind": "User", "name": "a"}]}}),
            (entry, memory | {"spec": {"userNames": ["mallory"]}}),
            (entry, memory | {"spec": {"userGroups": ["system:authenticated"]}}),
            (entry, at_system | {"spec": {"users": [*users, system]}}),
            (entry, of_second | {"spec": {"users": [*users, second]}}),
            (fields, memory | {"spec": {"administrators": [mine]}}),
            (fields, memory | {"spec": {"allowServiceAccountPromotion": True}}),
            (fields, memory | {"spec": {"ignoreUserWithGroups": ["a"]}}),
            (note, {"metadata": {"annotations": {"a": "b"}}}),
            ("no label may change", {"metadata": {"labels": {"a": "b"}}}),
        ]
        for why, patch in tries:
            answer = await worker.patch(CONFIGURATION, patch, **DRY)
            assert denied(answer), (why, patch, answer)
            assert why in answer.body["message"], (patch, answer)
    finally:
        await tenancy.admin.merge_patch(CONFIGURATION, {"spec": {"users": before or None}})
