"""Every object that Tether writes for an account, whole: what it says, whose it is, and where it stands."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
import yaml

from eventcore.kube import ObjectRef
from workers.desired import (
    Target,
    Token,
    account_ref,
    authority_copy,
    binding_secret,
    digest,
    encoded,
    flux_config_map,
    home_role_binding,
    impersonator,
    kubeconfig,
    kubeconfig_secret,
    lockdown_role_binding,
    moment,
    namespace_ref,
    timestamp,
    token_audiences,
    token_secret,
)
from workers.names import lockdown_name
from workers.ownership import Account

SA = Account("oil-system", "sa")
FLUX = Account("oil-1", "default")
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
RBAC = "rbac.authorization.k8s.io"
ME = {"kind": "ServiceAccount", "name": "sa", "namespace": "oil-system"}
TOKEN = Token(
    generation=3,
    binding="sa-token-3",
    binding_uid="b3",
    account_uid="u1",
    minted=NOON,
    expires=NOON + timedelta(hours=1),
    written=NOON + timedelta(seconds=1),
    retire=NOON + timedelta(minutes=5),
    digest="d",
)
SAID = {
    "capsule-tether.io/generation": "3",
    "capsule-tether.io/binding": "sa-token-3",
    "capsule-tether.io/binding-uid": "b3",
    "capsule-tether.io/account-uid": "u1",
    "capsule-tether.io/minted": "2026-01-01T12:00:00Z",
    "capsule-tether.io/expires": "2026-01-01T13:00:00Z",
    "capsule-tether.io/written": "2026-01-01T12:00:01Z",
    "capsule-tether.io/retire": "2026-01-01T12:05:00Z",
    "capsule-tether.io/digest": "d",
    "capsule-tether.io/token-mode": "bound",
}


def body(component: str, version: str, kind: str, name: str, namespace: str = "oil-system", **more: Any) -> Any:
    """Return an object of ours for the account."""
    metadata: dict[str, Any] = {
        "name": name,
        "labels": {"capsule-tether.io/component": component} | more.pop("labels", {}),
        "annotations": {"capsule-tether.io/account": "oil-system/sa", "capsule-tether.io/tenant": "oil"}
        | more.pop("annotations", {}),
    }
    if namespace:
        metadata["namespace"] = namespace
    if owners := more.pop("owners", None):
        metadata["ownerReferences"] = owners
    return {"apiVersion": version, "kind": kind, "metadata": metadata} | more


def role(name: str) -> dict[str, str]:
    return {"apiGroup": RBAC, "kind": "ClusterRole", "name": name}


def test_the_rights_at_home() -> None:
    assert home_role_binding(SA, "oil", "cluster-admin").body() == body(
        "rbac", f"{RBAC}/v1", "RoleBinding", "sa", roleRef=role("cluster-admin"), subjects=[ME]
    )


def test_the_rights_of_flux_in_a_namespace_of_the_tenant() -> None:
    flux = {"kind": "ServiceAccount", "name": "default", "namespace": "oil-1"}

    assert lockdown_role_binding(SA, "oil", FLUX, "admin").body() == body(
        "rbac",
        f"{RBAC}/v1",
        "RoleBinding",
        lockdown_name(SA),
        namespace="oil-1",
        roleRef=role("admin"),
        subjects=[flux],
    )


def test_the_right_to_impersonate_oneself_and_nobody_else() -> None:
    found = [one.body() for one in impersonator(SA, "oil", "i")]
    rule = {"apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"], "resourceNames": [SA.username]}

    assert found == [
        body("rbac", f"{RBAC}/v1", "ClusterRole", "i", namespace="", rules=[rule]),
        body("rbac", f"{RBAC}/v1", "ClusterRoleBinding", "i", namespace="", roleRef=role("i"), subjects=[ME]),
    ]


def test_the_role_remembers_the_rolebinding_of_an_administrator() -> None:
    first, second = (one.body()["metadata"]["annotations"] for one in impersonator(SA, "oil", "i", left="u9"))

    assert first["capsule-tether.io/left-binding"] == "u9"
    assert "capsule-tether.io/left-binding" not in second


def test_the_secret_that_a_token_is_bound_to_is_empty_and_goes_with_the_account() -> None:
    owner = {"apiVersion": "v1", "kind": "ServiceAccount", "name": "sa", "uid": "u1"}
    about = {"capsule-tether.io/generation": "3", "capsule-tether.io/account-uid": "u1"}

    assert binding_secret(SA, "oil", "u1", 3).body() == body(
        "token",
        "v1",
        "Secret",
        "sa-token-3",
        annotations=about | {"capsule-tether.io/token-mode": "bound"},
        owners=[owner],
        type="Opaque",
    )
    assert binding_secret(SA, "oil", "u1", 3, "static").body() == body(
        "token",
        "v1",
        "Secret",
        "sa-token-3",
        annotations=about | {"capsule-tether.io/token-mode": "static", "kubernetes.io/service-account.name": "sa"},
        owners=[owner],
        type="kubernetes.io/service-account-token",
    )


def test_the_secret_of_the_token() -> None:
    assert token_secret(SA, "oil", TOKEN, "t").body() == body(
        "token", "v1", "Secret", "sa-token", annotations=SAID, type="Opaque", data={"token": "dA=="}
    )


def test_what_the_annotations_say_of_a_token_is_read_again_and_nothing_that_lacks_a_part() -> None:
    assert Token.of_annotations(SAID) == TOKEN
    static = msgspec.structs.replace(TOKEN, mode="static")
    assert Token.of_annotations(static.annotations()) == static
    assert Token.of_annotations({**SAID, "capsule-tether.io/token-mode": "other"}) == TOKEN
    for name in SAID:
        left = {key: value for key, value in SAID.items() if key != name}
        assert Token.of_annotations(left) == (TOKEN if name == "capsule-tether.io/token-mode" else None)


@pytest.mark.parametrize(("days", "good"), [(3650, True), (3651, False)])
def test_a_token_whose_overlap_is_longer_than_any_is_none(days: int, *, good: bool) -> None:
    token = msgspec.structs.replace(TOKEN, retire=TOKEN.written + timedelta(days=days))

    assert Token.of_annotations(token.annotations()) == (token if good else None)
    assert Token.of_annotations(SAID | {"capsule-tether.io/generation": "0"}) is None


def test_the_kubeconfig_stands_under_both_keys_or_those_that_were_chosen() -> None:
    target = Target("Secret", "oil-1", "sa-kubeconfig")
    about = {"capsule-tether.io/generation": "3", "capsule-tether.io/digest": "d"}
    watched = {"reconcile.fluxcd.io/watch": "Enabled"}

    def made(**more: Any) -> Any:
        return kubeconfig_secret(SA, "oil", target, config=b"c", generation=3, token_digest="d", **more).body()

    for data, more in (({"kubeconfig": "Yw==", "value": "Yw=="}, {}), ({"k": "Yw=="}, {"keys": ("k",)})):
        assert made(**more) == body(
            "kubeconfig",
            "v1",
            "Secret",
            "sa-kubeconfig",
            namespace="oil-1",
            labels=watched,
            annotations=about,
            type="Opaque",
            data=data,
        )
    plain = kubeconfig_secret(SA, "oil", target, config=b"c", generation=3).body()
    assert plain["metadata"]["annotations"]["capsule-tether.io/digest"] == ""


def test_the_config_map_with_which_flux_asks_for_tokens_itself() -> None:
    target = Target("ConfigMap", "oil-system", "sa-kubeconfig")
    found = flux_config_map(SA, "oil", target, server="https://p", trust=b"ca", audiences=("a", "b"))

    assert found.body() == body(
        "kubeconfig",
        "v1",
        "ConfigMap",
        "sa-kubeconfig",
        labels={"reconcile.fluxcd.io/watch": "Enabled"},
        data={
            "provider": "generic",
            "address": "https://p",
            "ca.crt": "ca",
            "audiences": "a\nb",
            "serviceAccountName": "sa",
        },
    )


def test_a_copy_of_the_ca_is_nobodys() -> None:
    metadata = {"labels": {"capsule-tether.io/component": "ca"}, "annotations": {}, "namespace": "oil-1", "name": "ca"}

    assert authority_copy(Target("Secret", "oil-1", "ca"), b"ca").body() == {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        "type": "Opaque",
        "data": {"ca": "Y2E=", "ca.crt": "Y2E="},
    }
    assert authority_copy(Target("ConfigMap", "oil-1", "ca"), b"ca").body() == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": {"ca.crt": "ca"},
    }


def test_a_uid_in_the_body_names_the_very_object() -> None:
    assert home_role_binding(SA, "oil", "r").body("u")["metadata"]["uid"] == "u"


@pytest.mark.parametrize(
    ("target", "text", "collection"),
    [
        (Target("Secret", "ns", "n"), "Secret/ns/n", "/api/v1/namespaces/ns/secrets"),
        (Target("ConfigMap", "ns", "n"), "ConfigMap/ns/n", "/api/v1/namespaces/ns/configmaps"),
        (Target("RoleBinding", "ns", "n"), "RoleBinding/ns/n", f"/apis/{RBAC}/v1/namespaces/ns/rolebindings"),
        (Target("ClusterRole", "", "n"), "ClusterRole/n", f"/apis/{RBAC}/v1/clusterroles"),
        (Target("ClusterRoleBinding", "", "n"), "ClusterRoleBinding/n", f"/apis/{RBAC}/v1/clusterrolebindings"),
    ],
)
def test_a_target_is_where_its_kind_is(target: Target, text: str, collection: str) -> None:
    assert (str(target), target.collection, target.path) == (text, collection, f"{collection}/n")


def test_events_refer_to_the_account_and_to_the_namespace() -> None:
    about = {"api_version": "v1", "uid": "u"}

    assert account_ref(SA, "u") == ObjectRef(kind="ServiceAccount", name="sa", namespace="oil-system", **about)
    assert namespace_ref("oil-1", "u") == ObjectRef(kind="Namespace", name="oil-1", **about)
    assert account_ref(SA).uid == namespace_ref("oil-1").uid == ""


def test_a_kubeconfig_is_whole() -> None:
    found = yaml.safe_load(kubeconfig(server="https://p", ca=b"ca", token="t" * 200, namespace="oil-1"))

    assert found == {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "default", "cluster": {"server": "https://p", "certificate-authority-data": "Y2E="}}],
        "users": [{"name": "default", "user": {"token": "t" * 200}}],
        "contexts": [{"name": "default", "context": {"cluster": "default", "user": "default", "namespace": "oil-1"}}],
        "current-context": "default",
        "preferences": {},
    }


def test_times_are_read_and_written_with_their_zone_alone() -> None:
    assert timestamp(NOON.astimezone(timezone(timedelta(hours=9)))) == "2026-01-01T12:00:00Z"
    assert moment({"a": "2026-01-01T12:00:00Z"}, "a") == NOON
    for text in ("2026-01-01T12:00:00", "", "noon"):
        assert moment({"a": text}, "a") is None
    assert moment({}, "a") is None


def test_a_digest_and_base64_are_as_they_were() -> None:
    assert digest("t") == "e3b98a4da31a127d"
    assert encoded(b"ca") == "Y2E="


def jwt(payload: bytes) -> str:
    return "h." + base64.urlsafe_b64encode(payload).decode().rstrip("=") + ".s"


@pytest.mark.parametrize(
    ("payload", "audiences"),
    [
        (b'{"aud":"a"}', ("a",)),
        (b'{"aud":["a","b"]}', ("a", "b")),
        (b'{"aud":["a","b"], "x":"??>>"}', ("a", "b")),
        (b"{}", ()),
        (b'{"aud":1}', ()),
        (b"x", ()),
    ],
)
def test_a_token_says_whom_it_is_for(payload: bytes, audiences: tuple[str, ...]) -> None:
    assert token_audiences(jwt(payload)) == audiences
    assert token_audiences("none") == ()
