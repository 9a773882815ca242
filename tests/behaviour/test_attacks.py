"""What a tenant may try, with its generated kubeconfigs and through Flux: each attack of the guide and what is near it.

Every attack goes through three doors with one token: the proxy, the proxy as Flux sends it, and the API server itself.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from eventcore.kube import api_path

if TYPE_CHECKING:
    from tests.kubeapi import Client, Reply

pytestmark = pytest.mark.xdist_group("cluster")

Tenancy = Any
Object = dict[str, Any]
ACCOUNT = "gitops-reconciler"
ENABLED = "capsule.addon.fluxcd/enabled"
RBAC = "rbac.authorization.k8s.io"
CAPSULE = "capsule.clastix.io"
TENANT_LABEL = "capsule.clastix.io/tenant"
MADE = 201

NAMESPACED = [
    ("", "v1", "secrets"),
    ("", "v1", "configmaps"),
    ("", "v1", "pods"),
    ("", "v1", "serviceaccounts"),
    ("", "v1", "persistentvolumeclaims"),
    ("", "v1", "resourcequotas"),
    ("apps", "v1", "deployments"),
    ("networking.k8s.io", "v1", "networkpolicies"),
    (RBAC, "v1", "roles"),
    (RBAC, "v1", "rolebindings"),
]
CLUSTER_SCOPED = [
    ("", "v1", "nodes"),
    ("", "v1", "persistentvolumes"),
    (RBAC, "v1", "clusterroles"),
    (RBAC, "v1", "clusterrolebindings"),
    ("apiextensions.k8s.io", "v1", "customresourcedefinitions"),
    ("storage.k8s.io", "v1", "storageclasses"),
    ("scheduling.k8s.io", "v1", "priorityclasses"),
    ("node.k8s.io", "v1", "runtimeclasses"),
    ("networking.k8s.io", "v1", "ingressclasses"),
    (CAPSULE, "v1beta2", "tenants"),
    (CAPSULE, "v1beta2", "capsuleconfigurations"),
]


@asynccontextmanager
async def doors(tenancy: Tenancy) -> AsyncIterator[dict[str, Client]]:
    """Yield the ways in that the tenant's token opens."""
    token = await tenancy.token()
    async with AsyncExitStack() as stack:
        through = await stack.enter_async_context(tenancy.cluster.wire(token))
        direct = await stack.enter_async_context(tenancy.cluster.wire(token, direct=True))
        yield {"proxy": through, "flux": through.acting(tenancy.user), "api": direct}


async def both(tenancy: Tenancy, other: Tenancy) -> tuple[str, str]:
    """Make two tenants with a namespace each, and return these."""
    await tenancy.make()
    await other.make()
    return await tenancy.make_usable("production"), await other.make_usable("production")


async def every_verb(client: Client, collection: str, name: str) -> dict[str, int]:
    """Try every verb on a kind, and return the codes of the answers; a watch that opens ends at once."""
    one = f"{collection}/{name}"
    body: Object = {"metadata": {"name": name}}
    answers = {
        "list": await client.get(collection),
        "watch": await client.get(collection, params={"watch": "true", "timeoutSeconds": "1"}),
        "get": await client.get(one),
        "create": await client.post(collection, body),
        "update": await client.put(one, body),
        "patch": await client.patch(one, {"metadata": {"labels": {"mine": "true"}}}),
        "delete": await client.delete(one),
        "deletecollection": await client.delete(collection),
    }
    return {verb: answer.status for verb, answer in answers.items()}


def refused(answer: Reply) -> bool:
    """Tell whether a request was refused: by RBAC, or by Capsule's webhook, which has 400 and 500 for it too."""
    denied = answer.status in {400, 500} and "denied the request" in str(answer.body.get("message"))
    return answer.status == 403 or denied


def binding(name: str, role: str, subject: Object) -> Object:
    return {
        "metadata": {"name": name},
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role},
        "subjects": [subject],
    }


async def test_the_secrets_and_everything_else_of_other_namespaces_are_out_of_reach_with_every_verb(
    tenancy: Tenancy, other: Tenancy
) -> None:
    _, foreign = await both(tenancy, other)
    async with doors(tenancy) as clients:
        for door, client in clients.items():
            for namespace in (foreign, other.home, "kube-system", "capsule-system"):
                for group, version, plural in NAMESPACED:
                    collection = api_path(group, version, plural, namespace=namespace)
                    answers = await every_verb(client, collection, f"{ACCOUNT}-kubeconfig")
                    assert set(answers.values()) == {403}, (door, collection, answers)
    # And what was tried on the other's credentials did nothing.
    await other.must("Secret", foreign, f"{ACCOUNT}-kubeconfig")


async def test_no_kind_of_the_cluster_is_written_and_nothing_foreign_is_read(tenancy: Tenancy, other: Tenancy) -> None:
    await both(tenancy, other)
    async with doors(tenancy) as clients:
        for door, client in clients.items():
            for group, version, plural in CLUSTER_SCOPED:
                collection = api_path(group, version, plural)
                answers = await every_verb(client, collection, other.name)
                written = {verb: code for verb, code in answers.items() if verb not in {"list", "watch"}}
                assert set(written.values()) == {403}, (door, collection, answers)
                listed = await client.get(collection)
                # The proxy may show what the tenant itself may use, which is nothing here but its own Tenant.
                shown = [item["metadata"]["name"] for item in listed.body.get("items", [])]
                assert listed.status == 403 or (door != "api" and set(shown) <= {tenancy.name}), (door, collection)


async def test_lists_over_all_namespaces_show_nothing_of_others(tenancy: Tenancy, other: Tenancy) -> None:
    own, foreign = await both(tenancy, other)
    async with doors(tenancy) as clients:
        for door, client in clients.items():
            for group, version, plural in NAMESPACED:
                listed = await client.get(api_path(group, version, plural))
                found = {item["metadata"]["namespace"] for item in listed.body.get("items", [])}
                assert listed.status == 403 or found <= {own, tenancy.home}, (door, plural)
                assert foreign not in found


async def test_flux_without_kubeconfig_and_account_acts_for_an_account_without_rights(
    cluster: Any, tenancy: Tenancy, other: Tenancy
) -> None:
    own, foreign = await both(tenancy, other)
    # Given Flux's own account, which may do anything, and an object of the tenant that names neither
    async with cluster.wire() as controller:
        # Then the default account is sent for it, and that of the tenant's namespace may do nothing anywhere
        flux = controller.acting(f"system:serviceaccount:{own}:{ACCOUNT}")
        for namespace in (own, foreign, tenancy.home, "kube-system"):
            answers = await every_verb(flux, api_path("", "v1", "secrets", namespace=namespace), "any")
            assert set(answers.values()) == {403}, namespace
        # And at home it is the owner, with the owner's rights and no more.
        home = controller.acting(tenancy.user)
        assert (await home.get(api_path("", "v1", "secrets", namespace=tenancy.home))).status == 200
        for namespace in (foreign, other.home, "kube-system"):
            answers = await every_verb(home, api_path("", "v1", "secrets", namespace=namespace), "any")
            assert set(answers.values()) == {403}, namespace
        grab = binding(tenancy.name, "cluster-admin", {"kind": "User", "apiGroup": RBAC, "name": tenancy.user})
        assert (await home.post(api_path(RBAC, "v1", "clusterrolebindings"), grab)).status == 403


async def test_a_privileged_account_that_is_named_is_its_namesake_in_the_tenants_namespace(
    cluster: Any, tenancy: Tenancy, other: Tenancy
) -> None:
    own, foreign = await both(tenancy, other)
    names = ("kustomize-controller", "helm-controller", "tether-worker", "cluster-admin")
    async with tenancy.acting() as client:
        # Given the tenant makes accounts of these names
        for name in names:
            body = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": own}}
            await client.create(api_path("", "v1", "serviceaccounts", namespace=own), body)
    async with cluster.wire() as controller:
        for name in names:
            # When Flux acts for them (it names accounts of the object's own namespace alone), then they may nothing
            flux = controller.acting(f"system:serviceaccount:{own}:{name}")
            for namespace in (own, foreign, "kube-system", "flux-system"):
                answers = await every_verb(flux, api_path("", "v1", "secrets", namespace=namespace), "any")
                assert set(answers.values()) == {403}, (name, namespace)


async def test_an_account_that_the_tenant_makes_as_mighty_as_it_can_stays_within_its_namespace(
    cluster: Any, tenancy: Tenancy, other: Tenancy, until: Any
) -> None:
    own, foreign = await both(tenancy, other)
    mighty = {"kind": "ServiceAccount", "name": "mighty", "namespace": own}
    bindings = api_path(RBAC, "v1", "rolebindings", namespace=own)
    async with doors(tenancy) as clients:
        client = clients["proxy"]
        body = {"metadata": {"name": "mighty"}}
        made = await client.post(api_path("", "v1", "serviceaccounts", namespace=own), body)
        assert made.status == MADE, made
        # Given it is bound to cluster-admin where the tenant may do so, and tried everywhere else
        assert (await client.post(bindings, binding("mighty", "cluster-admin", mighty))).status == MADE
        for door in clients.values():
            for namespace in (foreign, other.home, "kube-system", "flux-system"):
                there = api_path(RBAC, "v1", "rolebindings", namespace=namespace)
                assert (await door.post(there, binding("mighty", "view", mighty))).status == 403
            everywhere = api_path(RBAC, "v1", "clusterrolebindings")
            assert (await door.post(everywhere, binding("mighty", "cluster-admin", mighty))).status == 403
    async with cluster.wire() as controller:
        acting = controller.acting(f"system:serviceaccount:{own}:mighty")

        async def works() -> bool:
            answer = await acting.get(api_path("", "v1", "secrets", namespace=own))
            return bool(answer.status == 200)

        # Then it works there, and nowhere else
        await until(works)
        for namespace in (foreign, other.home, tenancy.home, "kube-system"):
            answers = await every_verb(acting, api_path("", "v1", "secrets", namespace=namespace), "any")
            assert set(answers.values()) == {403}, namespace


async def test_no_kubeconfig_opens_another_identity(tenancy: Tenancy, other: Tenancy) -> None:
    _, foreign = await both(tenancy, other)
    users = (
        "system:serviceaccount:flux-system:kustomize-controller",
        "system:serviceaccount:kube-system:default",
        "system:serviceaccount:capsule-system:tether-worker",
        f"system:serviceaccount:{foreign}:default",
        other.user,
        "system:admin",
        "system:kube-controller-manager",
        "kubernetes-admin",
    )
    async with doors(tenancy) as clients:
        for door in ("proxy", "api"):
            client = clients[door]
            asked = [client.acting(user) for user in users]
            asked += [client.acting(user, "system:masters") for user in (tenancy.user, "anybody")]
            asked.append(client.acting(tenancy.user, f"system:serviceaccounts:{other.home}"))
            asked.append(client.acting(tenancy.user, Uid="00000000-0000-0000-0000-000000000000"))
            asked.append(client.acting(tenancy.user, Extra_scopes="all"))
            for one in asked:
                answer = await one.get("/api/v1/namespaces")
                assert answer.status == 403, (door, answer)
                assert "cannot impersonate" in answer.body["message"], (door, one.headers)


async def test_foreign_credentials_in_a_kubeconfig_do_not_help(cluster: Any, tenancy: Tenancy, other: Tenancy) -> None:
    own, foreign = await both(tenancy, other)
    secrets = api_path("", "v1", "secrets", namespace=foreign)
    account = f"system:serviceaccount:{own}:{ACCOUNT}"
    # An administrator's, in a kubeconfig that Flux uses for the tenant: the tenant's account is sent with it.
    async with cluster.wire() as stolen:
        assert set((await every_verb(stolen.acting(account), secrets, "any")).values()) == {403}
    # Another tenant's: it may not act for this tenant's account.
    async with cluster.wire(await other.token()) as stolen:
        refused = await stolen.acting(account).get(secrets)
        assert refused.status == 403
        assert "cannot impersonate" in refused.body["message"]
    # Forged ones: the claims of another account under the signature of one's own.
    head, claims, signature = (await tenancy.token()).split(".")
    text = base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)).replace(
        tenancy.home.encode(), other.home.encode()
    )
    forged = ".".join((head, base64.urlsafe_b64encode(text).rstrip(b"=").decode(), signature))
    for direct in (False, True):
        for token in (forged, f"{head}.{claims}.", "nobody"):
            async with cluster.wire(token, direct=direct) as client:
                assert (await client.get(secrets)).status == 401


async def test_namespaces_of_the_platform_and_of_others_are_not_taken_over(tenancy: Tenancy, other: Tenancy) -> None:
    own, foreign = await both(tenancy, other)
    await tenancy.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "flux-system"}})
    tenant = await tenancy.must("Tenant", "", tenancy.name)
    reference = {
        "apiVersion": f"{CAPSULE}/v1beta2",
        "kind": "Tenant",
        "name": tenancy.name,
        "uid": tenant["metadata"]["uid"],
    }
    label = {TENANT_LABEL: tenancy.name}
    targets = ("flux-system", "kube-system", "default", "capsule-system", foreign, other.home)
    before = {name: (await tenancy.must("Namespace", "", name))["metadata"] for name in targets}
    async with doors(tenancy) as clients:
        for door, client in clients.items():
            for name in targets:
                path = api_path("", "v1", "namespaces", name=name)
                whole = {"metadata": {"name": name, "labels": label, "ownerReferences": [reference]}}
                obj = {"apiVersion": "v1", "kind": "Namespace", **whole}
                answers = {
                    "label": await client.patch(path, {"metadata": {"labels": label}}),
                    "reference": await client.patch(path, {"metadata": {"ownerReferences": [reference]}}),
                    "both": await client.patch(path, whole),
                    "apply": await client.apply(path, obj, "flux", force="true"),
                    "replace": await client.put(path, whole),
                    "status": await client.patch(f"{path}/status", {"status": {"phase": "Terminating"}}),
                    "finalize": await client.put(f"{path}/finalize", {"metadata": {"name": name}, "spec": {}}),
                    "delete": await client.delete(path),
                }
                got = {what: (one.status, one.body) for what, one in answers.items() if not refused(one)}
                assert not got, (door, name)
    after = {name: (await tenancy.must("Namespace", "", name))["metadata"] for name in targets}
    for name in targets:
        for part in ("uid", "labels", "ownerReferences", "deletionTimestamp"):
            assert after[name].get(part) == before[name].get(part), name
    # Nor is one's own given to another tenant, or made as another's.
    theirs = {TENANT_LABEL: other.name}
    async with doors(tenancy) as clients:
        for door, client in clients.items():
            given = await client.patch(api_path("", "v1", "namespaces", name=own), {"metadata": {"labels": theirs}})
            # Capsule refuses it, or puts the right label back in the same request.
            assert refused(given) or given.body["metadata"]["labels"][TENANT_LABEL] == tenancy.name, (door, given)
            body = {"metadata": {"name": f"{other.name}-{door}", "labels": theirs}}
            made = await client.post(api_path("", "v1", "namespaces"), body)
            assert refused(made), (door, made)


async def test_rights_are_not_widened_at_their_source(tenancy: Tenancy, other: Tenancy) -> None:
    await both(tenancy, other)
    roles, everywhere = api_path(RBAC, "v1", "clusterroles"), api_path(RBAC, "v1", "clusterrolebindings")
    tenants, owners = api_path(CAPSULE, "v1beta2", "tenants"), api_path(CAPSULE, "v1beta2", "tenantowners")
    configuration = api_path(CAPSULE, "v1beta2", "capsuleconfigurations", name="default")
    rule = {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}
    subject = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": tenancy.home}
    me = {"kind": "ServiceAccount", "name": tenancy.user}
    async with doors(tenancy) as clients:
        for door, client in clients.items():
            answers = {
                "our role": await client.patch(f"{roles}/{tenancy.impersonator}", {"rules": [rule]}),
                "our binding": await client.patch(f"{everywhere}/{tenancy.impersonator}", {"subjects": [subject]}),
                "a role": await client.post(roles, {"metadata": {"name": tenancy.name}, "rules": [rule]}),
                "a binding": await client.post(everywhere, binding(tenancy.name, "cluster-admin", subject)),
                "own tenant": await client.patch(f"{tenants}/{tenancy.name}", {"spec": {"owners": [me]}}),
                "other tenant": await client.patch(f"{tenants}/{other.name}", {"spec": {"owners": [me]}}),
                "an owner": await client.post(owners, {"metadata": {"name": tenancy.name}, "spec": me}),
                "configuration": await client.patch(configuration, {"spec": {"userGroups": []}}),
                "approval": await client.patch(f"{tenants}/{other.name}/status", {"status": {"owners": [me]}}),
            }
            codes = {what: answer.status for what, answer in answers.items()}
            assert set(codes.values()) == {403}, (door, codes)


@pytest.mark.slow
async def test_with_the_role_admin_alone_quotas_and_limits_stay_as_the_administrator_made_them(
    tenancy: Tenancy, other: Tenancy
) -> None:
    # Given a tenant without the guide's additional binding to cluster-admin, and a quota
    await tenancy.make()
    body = tenancy.tenant(tenancy.user)
    body["spec"]["additionalRoleBindings"] = []
    await tenancy.apply(body)
    own = await tenancy.make_usable("production")
    for kind in ("resourcequotas", "limitranges"):
        collection = api_path("", "v1", kind, namespace=own)
        async with tenancy.cluster.wire() as administrator:
            assert (await administrator.post(collection, {"metadata": {"name": "fixed"}, "spec": {}})).status in {
                MADE,
                422,
            }
        async with doors(tenancy) as clients:
            for door, client in clients.items():
                answers = await every_verb(client, collection, "fixed")
                written = {verb: code for verb, code in answers.items() if verb not in {"list", "watch", "get"}}
                assert set(written.values()) == {403}, (door, kind, answers)


async def test_what_a_tenant_may_do_for_itself_works_through_its_kubeconfig(
    tenancy: Tenancy, other: Tenancy, until: Any
) -> None:
    own, _ = await both(tenancy, other)
    subject = {"kind": "User", "apiGroup": RBAC, "name": "dana"}
    rule = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}
    policies = api_path("networking.k8s.io", "v1", "networkpolicies", namespace=own)
    async with doors(tenancy) as clients:
        for door, client in clients.items():
            name = f"own-{door}"

            async def policy(client: Client = client, name: str = name) -> bool:
                body = {"metadata": {"name": name}, "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}}
                return (await client.post(policies, body)).status == MADE

            await until(policy)
            roles, bindings = (api_path(RBAC, "v1", kind, namespace=own) for kind in ("roles", "rolebindings"))
            assert (await client.post(roles, {"metadata": {"name": name}, "rules": [rule]})).status == MADE
            assert (await client.post(bindings, binding(name, "view", subject))).status == MADE
            review = {"spec": {"resourceAttributes": {"verb": "get", "resource": "pods", "namespace": own}}}
            asked = await client.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
            assert asked.body["status"]["allowed"] is True


async def test_an_account_that_the_tenant_enables_by_itself_gets_nothing(tenancy: Tenancy, other: Tenancy) -> None:
    await tenancy.make()
    own = await tenancy.make_usable("production")
    async with tenancy.acting() as client:
        # Given accounts that own no tenant carry the annotation, in the tenant's namespace and at home
        for namespace in (own, tenancy.home):
            metadata = {"name": "second", "namespace": namespace, "annotations": {ENABLED: "true"}}
            body = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}
            await client.create(api_path("", "v1", "serviceaccounts", namespace=namespace), body)
    # When another tenant, made later, has everything
    await other.make()
    await other.must("Secret", other.home, f"{ACCOUNT}-kubeconfig")

    # Then there is nothing for them
    for namespace in (own, tenancy.home):
        assert await tenancy.get("Secret", namespace, "second-kubeconfig") is None
        assert await tenancy.get("Secret", namespace, "second-token") is None
        assert await tenancy.get("RoleBinding", namespace, "second") is None


async def test_forged_marks_of_another_account_bring_no_credential(
    tenancy: Tenancy, other: Tenancy, until: Any
) -> None:
    own, foreign = await both(tenancy, other)
    stolen = {"capsule-tether.io/account": f"{other.home}/{ACCOUNT}", "capsule-tether.io/tenant": other.name}
    secrets = api_path("", "v1", "secrets", namespace=own)
    async with tenancy.acting() as client:
        # Given Secrets of the tenant that look like the other account's token and kubeconfig
        for component, name in (("token", "forged-token"), ("kubeconfig", f"{ACCOUNT}-forged")):
            marks = {"labels": {"capsule-tether.io/component": component}, "annotations": stolen}
            body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": own, **marks}}
            await client.create(secrets, body)
    # When Tether has looked at them: the forged kubeconfig is taken away
    await tenancy.gone("Secret", own, f"{ACCOUNT}-forged")

    # Then what is there of the other's in this namespace is nothing, and each tenant has its own
    token = await other.token()
    async with tenancy.cluster.wire() as administrator:
        listed = await administrator.get(secrets)
    held = [base64.b64decode(value) for item in listed.body["items"] for value in (item.get("data") or {}).values()]
    assert held
    assert not [value for value in held if token.encode() in value]
    assert (await other.token()) in (await other.secret(foreign, f"{ACCOUNT}-kubeconfig", "value")).decode()
