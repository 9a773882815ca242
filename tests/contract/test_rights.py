"""Rights: RBAC, what nobody may give away, reviews of rights, and acting as somebody else."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.conftest import Until
from tests.contract.tenants import may
from tests.kubeapi import Client, Object, Reply

pytestmark = pytest.mark.xdist_group("contract")

RBAC = "/apis/rbac.authorization.k8s.io/v1"
GROUP = "rbac.authorization.k8s.io"
REVIEWS = "/apis/authorization.k8s.io/v1"


def _rule(verbs: list[str], resources: list[str], group: str = "", **more: Any) -> Object:
    return {"apiGroups": [group], "resources": resources, "verbs": verbs, **more}


async def _must(reply: Reply) -> Object:
    assert reply.status in {200, 201}, reply
    body: Object = reply.body
    return body


async def _grant(admin: Client, until: Until[Any], user: str, *rules: Object, namespace: str = "") -> Client:
    """Give a user rights, in one namespace or everywhere, and return a client of it once they count."""
    kind, where = (
        ("Role", f"{RBAC}/namespaces/{namespace}/roles") if namespace else ("ClusterRole", f"{RBAC}/clusterroles")
    )
    name = f"{user}-{namespace}" if namespace else user
    await _must(await admin.post(where, {"metadata": {"name": name}, "rules": [*rules, _rule(["get"], [f"x{name}"])]}))
    subject = {"apiGroup": GROUP, "kind": "User", "name": user}
    body = {
        "metadata": {"name": name},
        "roleRef": {"apiGroup": GROUP, "kind": kind, "name": name},
        "subjects": [subject],
    }
    await _must(await admin.post(where.replace("roles", "rolebindings"), body))
    client = admin.acting(user, "system:authenticated")
    await until(lambda: may(client, "get", f"x{name}", namespace=namespace))
    return client


async def test_a_right_holds_where_it_is_given(admin: Client, namespace: str, name: str, until: Until[Any]) -> None:
    # given
    user = await _grant(admin, until, name, _rule(["get", "list"], ["configmaps"]), namespace=namespace)
    # when
    own = await user.get(f"/api/v1/namespaces/{namespace}/configmaps")
    elsewhere = await user.get("/api/v1/namespaces/default/configmaps")
    everywhere = await user.get("/api/v1/configmaps")
    other = await user.post(f"/api/v1/namespaces/{namespace}/configmaps", {"metadata": {"name": "a"}})
    # then
    assert [reply.status for reply in (own, elsewhere, everywhere, other)] == [200, 403, 403, 403]
    assert everywhere.body["message"] == (
        f'configmaps is forbidden: User "{name}" cannot list resource "configmaps" in API group "" at the cluster scope'
    )
    assert elsewhere.body["message"].endswith('in API group "" in the namespace "default"')
    assert elsewhere.body["reason"] == "Forbidden"


async def test_a_right_to_one_name_is_a_right_to_that_name(
    admin: Client, namespace: str, name: str, until: Until[Any]
) -> None:
    # given
    rule = _rule(["get"], ["secrets"], resourceNames=["mine"])
    user = await _grant(admin, until, name, rule, namespace=namespace)
    # when
    mine = await user.get(f"/api/v1/namespaces/{namespace}/secrets/mine")
    other = await user.get(f"/api/v1/namespaces/{namespace}/secrets/other")
    # then
    assert [mine.status, other.status] == [404, 403]


async def test_a_right_to_a_kind_is_none_to_its_subresources(
    admin: Client, namespace: str, name: str, until: Until[Any]
) -> None:
    # given
    user = await _grant(admin, until, name, _rule(["*"], ["serviceaccounts"]), namespace=namespace)
    # when
    refused = await user.post(f"/api/v1/namespaces/{namespace}/serviceaccounts/default/token", {"spec": {}})
    # then
    assert refused.status == 403
    assert 'cannot create resource "serviceaccounts/token"' in refused.body["message"]


@pytest.mark.parametrize("extra", [[], ["escalate"], ["bind"]])
async def test_nobody_gives_rights_that_it_lacks_without_escalate_or_bind(
    admin: Client, namespace: str, name: str, until: Until[Any], extra: list[str]
) -> None:
    # given
    verbs = ["get", "create", "update", "patch"]
    rules = (
        _rule([*verbs, *extra], ["roles", "clusterroles"], GROUP),
        _rule(verbs, ["rolebindings"], GROUP),
        _rule(["get"], ["configmaps"]),
    )
    user = await _grant(admin, until, name, *rules, namespace=namespace)
    path = f"{RBAC}/namespaces/{namespace}"

    def binding(role: str) -> Object:
        reference = {"apiGroup": GROUP, "kind": "ClusterRole", "name": role}
        return {"metadata": {"generateName": "b-"}, "roleRef": reference, "subjects": []}

    # when
    less = await user.post(f"{path}/roles", {"metadata": {"name": "r"}, "rules": [_rule(["get"], ["configmaps"])]})
    more = await user.post(f"{path}/roles", {"metadata": {"name": "s"}, "rules": [_rule(["get"], ["secrets"])]})
    grown = await user.patch(f"{path}/roles/r", {"rules": [_rule(["*"], ["*"], "*")]})
    bound = await user.post(f"{path}/rolebindings", binding("cluster-admin"))
    # then
    escalates, binds = "escalate" in extra, "bind" in extra
    expected = [201, 201 if escalates else 403, 200 if escalates else 403, 201 if binds else 403]
    assert [reply.status for reply in (less, more, grown, bound)] == expected
    if not extra:
        words = "is attempting to grant RBAC permissions not currently held"
        assert all(words in reply.body["message"] for reply in (more, grown, bound))
        assert '{APIGroups:[""], Resources:["secrets"], Verbs:["get"]}' in more.body["message"]


async def test_a_role_that_is_not_there_cannot_be_bound_by_those_who_may_not_bind(
    admin: Client, namespace: str, name: str, until: Until[Any]
) -> None:
    # given
    user = await _grant(admin, until, name, _rule(["create"], ["rolebindings"], GROUP), namespace=namespace)
    body = {"metadata": {"name": "b"}, "roleRef": {"apiGroup": GROUP, "kind": "Role", "name": "nothing"}}
    # when
    refused = await user.post(f"{RBAC}/namespaces/{namespace}/rolebindings", body)
    # then
    assert refused.status == 404, refused


async def test_the_roles_for_people_are_filled(admin: Client, until: Until[bool]) -> None:
    async def rules(role: str) -> list[Object]:
        found: list[Object] = (await admin.get(f"{RBAC}/clusterroles/{role}")).body.get("rules") or []
        return found

    def gives(found: list[Object], verb: str, resource: str) -> bool:
        return any(verb in rule["verbs"] and resource in rule.get("resources", []) for rule in found)

    # when
    admins, editors, viewers = await rules("admin"), await rules("edit"), await rules("view")
    # then
    assert gives(admins, "create", "rolebindings")
    assert gives(admins, "get", "secrets")
    assert gives(editors, "create", "configmaps")
    assert gives(editors, "impersonate", "serviceaccounts")
    assert not gives(editors, "create", "rolebindings")
    assert gives(viewers, "list", "configmaps")
    assert not gives(viewers, "get", "secrets")


async def test_a_labelled_role_joins_the_role_that_gathers_and_leaves_it(
    admin: Client, name: str, until: Until[bool]
) -> None:
    # given
    roles = f"{RBAC}/clusterroles"
    selector = {"matchLabels": {f"example.org/{name}": "true"}}
    await admin.post(roles, {"metadata": {"name": name}, "aggregationRule": {"clusterRoleSelectors": [selector]}})
    part = {"name": f"{name}-part", "labels": {f"example.org/{name}": "true"}}

    async def rules() -> list[Object]:
        found: list[Object] = (await admin.get(f"{roles}/{name}")).body.get("rules") or []
        return found

    async def holds() -> bool:
        return await rules() == [_rule(["get"], ["things"], "example.org")]

    async def empty() -> bool:
        return not await rules()

    # when
    await admin.post(roles, {"metadata": part, "rules": [_rule(["get"], ["things"], "example.org")]})
    # then
    await until(holds)
    await admin.delete(f"{roles}/{name}-part")
    await until(empty)


async def test_reviews_tell_what_somebody_may(admin: Client, namespace: str, name: str, until: Until[Any]) -> None:
    # given
    user = await _grant(admin, until, name, _rule(["get", "list"], ["configmaps"]), namespace=namespace)
    asked = {"verb": "list", "resource": "configmaps", "namespace": namespace}
    # when
    of_user = await admin.post(f"{REVIEWS}/subjectaccessreviews", {"spec": {"user": name, "resourceAttributes": asked}})
    of_other = await admin.post(
        f"{REVIEWS}/subjectaccessreviews", {"spec": {"user": "nobody", "resourceAttributes": asked}}
    )
    of_group = await admin.post(
        f"{REVIEWS}/subjectaccessreviews",
        {"spec": {"user": "x", "groups": ["system:masters"], "nonResourceAttributes": {"path": "/x", "verb": "get"}}},
    )
    local = await admin.post(
        f"/apis/authorization.k8s.io/v1/namespaces/{namespace}/localsubjectaccessreviews",
        {"metadata": {"namespace": namespace}, "spec": {"user": name, "resourceAttributes": asked}},
    )
    refused = await user.post(f"{REVIEWS}/subjectaccessreviews", {"spec": {"user": name, "resourceAttributes": asked}})
    rules = await user.post(f"{REVIEWS}/selfsubjectrulesreviews", {"spec": {"namespace": namespace}})
    # then
    allowed = [reply.body["status"]["allowed"] for reply in (of_user, of_other, of_group, local)]
    assert allowed == [True, False, True, True]
    assert of_user.body["status"]["reason"].startswith("RBAC: allowed by RoleBinding")
    assert refused.status == 403
    wanted = {"verbs": ["get", "list"], "apiGroups": [""], "resources": ["configmaps"]}
    assert wanted in rules.body["status"]["resourceRules"]
    assert rules.body["status"]["incomplete"] is False


async def test_a_review_without_a_subject_is_invalid(admin: Client) -> None:
    # when
    attributes = {"verb": "get", "resource": "pods"}
    refused = await admin.post(f"{REVIEWS}/subjectaccessreviews", {"spec": {"resourceAttributes": attributes}})
    # then
    assert (refused.status, refused.body["reason"]) == (422, "Invalid")
