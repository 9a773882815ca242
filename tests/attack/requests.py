"""Requests of everybody to the proxy: for what is the victim's, in names that are not theirs, with hostile words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final
from urllib.parse import quote

from tests.attack.asking import EMPTY, REFUSED, Ask, Table, acting, asking
from tests.attack.cases import Case, Who
from tests.attack.objects import GENERATIONS, SELECTORS
from tests.attack.stage import NAMESPACES, Stage
from tests.attack.world import CLASS, NODE
from tests.behaviour.conftest import ACCOUNT, path

RBAC: Final = "/apis/rbac.authorization.k8s.io/v1"
CAPSULE: Final = "/apis/capsule.clastix.io/v1beta2"
EVERYBODY: Final[tuple[Who, ...]] = ("mallory", "developer", "former", "pod", "unknown")
SERVED: Final[tuple[Who, ...]] = ("mallory", "developer", "former", "pod")


def _binding(stage: Stage) -> dict[str, object]:
    subject = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": stage.mallory.home}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
    return {"metadata": {"name": stage.mallory.name}, "roleRef": role, "subjects": [subject]}


def _watched(stage: Stage) -> str:
    return f"{NAMESPACES}?watch=1&timeoutSeconds=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"


TARGETS: Final[Table] = {
    "the victim's Secrets": lambda s: Ask(path=path("Secret", s.foreign)),
    "a watch of the victim's Secrets": lambda s: Ask(path=f"{path('Secret', s.foreign)}?watch=1&timeoutSeconds=1"),
    "the victim's kubeconfig": lambda s: Ask(path=path("Secret", s.bystander.home, f"{ACCOUNT}-kubeconfig")),
    "the victim's namespace": lambda s: Ask(path=path("Namespace", "", s.foreign)),
    "the victim's namespace by a field": lambda s: Ask(
        path=f"{NAMESPACES}?fieldSelector=metadata.name%3D{s.foreign}", expected=EMPTY
    ),
    "the victim's namespaces by a label": lambda s: Ask(
        path=f"{NAMESPACES}?labelSelector=capsule.clastix.io%2Ftenant%3D{s.bystander.name}", expected=EMPTY
    ),
    "all namespaces but its own, by a label": lambda s: Ask(
        path=f"{NAMESPACES}?labelSelector=capsule.clastix.io%2Ftenant%21%3D{s.mallory.name}", expected=EMPTY
    ),
    "a watch of namespaces from their beginning": lambda s: Ask(path=_watched(s), expected=EMPTY),
    "a watch by the old path": lambda _: Ask(path="/api/v1/watch/namespaces?timeoutSeconds=1", expected=EMPTY),
    "the victim's Tenant": lambda s: Ask(path=path("Tenant", "", s.bystander.name)),
    "the victim by the URL of its tenant": lambda s: Ask(
        path=f"/tenant/{s.bystander.name}{NAMESPACES}", expected=EMPTY
    ),
    "every Secret there is": lambda _: Ask(path="/api/v1/secrets"),
    "a token for the victim's account": lambda s: Ask(
        method="POST",
        path=f"{path('ServiceAccount', s.bystander.home, ACCOUNT)}/token",
        body={"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}},
    ),
    "an account enabled at the victim's home": lambda s: Ask(
        method="PATCH",
        path=path("ServiceAccount", s.bystander.home, ACCOUNT),
        body={"metadata": {"annotations": {"capsule.addon.fluxcd/enabled": None}}},
    ),
    "the end of the victim's namespace": lambda s: Ask(method="DELETE", path=path("Namespace", "", s.foreign)),
    "the victim's namespace finalized": lambda s: Ask(
        method="PUT",
        path=f"{path('Namespace', '', s.foreign)}/finalize",
        body={"metadata": {"name": s.foreign}, "spec": {"finalizers": []}},
    ),
    "the victim's namespace with its own label": lambda s: Ask(
        method="PATCH",
        path=path("Namespace", "", s.foreign),
        body={"metadata": {"labels": {"capsule.clastix.io/tenant": s.mallory.name}}},
    ),
    "the Tenant with itself as owner": lambda s: Ask(
        method="PATCH",
        path=path("Tenant", "", s.bystander.name),
        body={"spec": {"owners": [{"kind": "ServiceAccount", "name": s.mallory.user}]}},
    ),
    "the victim's role": lambda s: Ask(
        method="PATCH", path=f"{RBAC}/clusterroles/{s.bystander.impersonator}", body={"rules": []}
    ),
    "cluster-admin everywhere": lambda s: Ask(
        method="POST", path=f"{RBAC}/clusterrolebindings", body=_binding(s) | {"kind": "ClusterRoleBinding"}
    ),
    "cluster-admin at the victim's": lambda s: Ask(
        method="POST", path=path("RoleBinding", s.foreign), body=_binding(s) | {"kind": "RoleBinding"}
    ),
    "the end of a node": lambda _: Ask(method="DELETE", path=f"/api/v1/nodes/{NODE}"),
    "a node labelled": lambda _: Ask(
        method="PATCH", path=f"/api/v1/nodes/{NODE}", body={"metadata": {"labels": {"pool": "mine"}}}
    ),
    "the end of a class": lambda _: Ask(
        method="DELETE", path=f"/apis/storage.k8s.io/v1/storageclasses/{CLASS}"
    ),
    "rules for everybody": lambda s: Ask(
        method="POST",
        path="/apis/capsule.clastix.io/v1beta1/globalproxysettings",
        body={
            "apiVersion": "capsule.clastix.io/v1beta1",
            "kind": "GlobalProxySettings",
            "metadata": {"name": s.mallory.name},
            "spec": {"rules": [{"subjects": [{"kind": "Group", "name": "system:authenticated"}]}]},
        },
    ),
    "the proxy's own certificate": lambda _: Ask(path=path("Secret", "capsule-system", "capsule-proxy")),
}  # fmt: skip
QUICK: Final = {"the victim's Secrets", "the victim's namespace", "the end of a node", "cluster-admin everywhere"}

_MASTERS: Final = "system:masters"
ELSE: Final[Table] = {
    "the victim": lambda s: Ask(path=NAMESPACES, headers=acting(s.bystander.user)),
    "the victim who comes next": lambda s: Ask(path=NAMESPACES, headers=acting(s.victim.user)),
    "the administrator": lambda _: Ask(path=NAMESPACES, headers=acting("kubernetes-admin", _MASTERS)),
    "nobody in system:masters": lambda _: Ask(path=NAMESPACES, headers=acting("nobody", _MASTERS)),
    "the proxy": lambda _: Ask(path=NAMESPACES, headers=acting("system:serviceaccount:capsule-system:tether-proxy")),
    "a worker": lambda _: Ask(
        path="/api/v1/secrets", headers=acting("system:serviceaccount:capsule-system:tether-worker")
    ),
    "a node": lambda _: Ask(path="/api/v1/secrets", headers=acting(f"system:node:{NODE}", "system:nodes")),
    "a group without a user": lambda _: Ask(path=NAMESPACES, headers=acting("", _MASTERS)[1:]),
    "an empty user and a group": lambda _: Ask(path=NAMESPACES, headers=acting("", _MASTERS)),
    "the victim by two headers": lambda s: Ask(
        path=NAMESPACES, headers=(*acting(s.mallory.user), *acting(s.bystander.user))
    ),
    "the victim's group": lambda s: Ask(
        path=NAMESPACES, headers=acting(s.mallory.user, f"system:serviceaccounts:{s.bystander.home}")
    ),
    "the victim, in other letters": lambda s: Ask(path=NAMESPACES, headers=(("iMPERSONATE-uSER", s.bystander.user),)),
    "a user's name of 60,000 letters": lambda _: Ask(path=NAMESPACES, headers=acting("a" * 60_000)),
    "an account's name of many colons": lambda _: Ask(
        path=NAMESPACES, headers=acting("system:serviceaccount:" + ":" * 20_000)
    ),
}
SELF: Final[dict[str, Callable[[Stage, str], tuple[tuple[str, str], ...]]]] = {
    "in system:masters": lambda _, user: acting(user, _MASTERS),
    "with a uid": lambda _, user: acting(user, Uid="00000000-0000-0000-0000-000000000000"),
    "with an extra": lambda _, user: acting(user, Extra_scopes="all"),
    "with an encoded extra": lambda _, user: (*acting(user), ("Impersonate-Extra-%41", "a")),
    "with an extra that is twice encoded": lambda _, user: (*acting(user), ("Impersonate-Extra-%2541", "a")),
    "with an extra that is not encoded": lambda _, user: (*acting(user), ("Impersonate-Extra-%zz", "a")),
    "with the victim's groups": lambda s, user: acting(user, f"system:serviceaccounts:{s.bystander.home}"),
    "in a group of blanks": lambda _, user: acting(user, " " * 200),
}


def of_targets() -> Iterator[Case]:
    """What is the victim's, asked for by everybody."""
    for what, make in TARGETS.items():
        for who in EVERYBODY:
            yield Case(
                name=f"asks for {what}",
                section="C",
                who=who,
                attack=asking(who, make),
                quick=what in QUICK and who in {"mallory", "unknown"},
                shares=True,
            )


def of_identities() -> Iterator[Case]:
    """Names that are not theirs, and their own with more than they are."""
    for what, make in ELSE.items():
        for who in EVERYBODY:
            yield Case(name=f"acts as {what}", section="C11", who=who, attack=asking(who, make), shares=True)
    for what, headers in SELF.items():
        for who in SERVED:

            def ask(stage: Stage, who: Who = who, headers: object = headers) -> Ask:
                found = headers(stage, stage.attackers[who].user)  # type: ignore[operator]  # bound at once
                return Ask(path=NAMESPACES, headers=found)

            yield Case(name=f"acts as itself {what}", section="C11", who=who, attack=asking(who, ask), shares=True)


def of_words() -> Iterator[Case]:
    """Selectors and numbers that take a parser long, or that it cannot hold."""
    for what, text in SELECTORS.items():
        for field in ("labelSelector", "fieldSelector"):
            query = f"{field}={quote(text, safe='')}"

            def asks(_: Stage, query: str = query) -> list[Ask]:
                kinds = (NAMESPACES, f"{CAPSULE}/tenants", "/api/v1/nodes", "/api/v1/pods")
                return [Ask(path=f"{kind}?{query}", expected=EMPTY, times=3) for kind in kinds]

            for who in ("mallory", "unknown"):
                yield Case(
                    name=f"twelve requests with a {field} {what}",
                    section="A4",
                    who=who,
                    attack=asking(who, asks),
                    quick=who == "mallory" and field == "labelSelector" and what == "of 20,000 blanks",
                )
    for what, text in GENERATIONS.items():
        if what in {"empty", "zero", "negative"}:
            continue  # these are no errors in every field
        for field in ("timeoutSeconds", "limit", "resourceVersion"):

            def numbers(stage: Stage, field: str = field, text: str = text) -> list[Ask]:
                kinds = (NAMESPACES, f"{CAPSULE}/tenants", path("ConfigMap", stage.field))
                watch = "&watch=1" if field == "resourceVersion" else ""
                query = f"{field}={quote(text, safe='')}{watch}"
                return [Ask(path=f"{kind}?{query}", expected=REFUSED) for kind in kinds]

            if (field, what) == ("resourceVersion", "19 digits"):
                continue  # a number that may come
            name = f"lists with a {field} {what}"
            yield Case(name=name, section="A6", who="mallory", attack=asking("mallory", numbers), shares=True)


def cases() -> Iterator[Case]:
    """All cases of this room."""
    yield from of_targets()
    yield from of_identities()
    yield from of_words()
