"""kubectl itself: what a person types works and says what a person reads."""

from __future__ import annotations

import asyncio
import json
import shutil

import pytest

from tests.kubeapi import Client, Kubectl

pytestmark = [pytest.mark.xdist_group("contract"), pytest.mark.kubectl]

CONFIG_MAP = """
apiVersion: v1
kind: ConfigMap
metadata: {name: a, labels: {app: demo}}
data: {k: "1"}
"""
CHANGED = CONFIG_MAP.replace('"1"', '"2"')


async def test_get_prints_a_table_yaml_and_fields(kubectl: Kubectl, namespace: str) -> None:
    # when
    table = await kubectl("get", "ns", namespace)
    yaml = await kubectl("get", "namespace", namespace, "-o", "yaml")
    field = await kubectl("get", "namespaces", namespace, "-o", "jsonpath={.metadata.name}")
    # then
    assert table.out.splitlines()[0].split() == ["NAME", "STATUS", "AGE"]
    assert table.out.splitlines()[1].split()[:2] == [namespace, "Active"]
    assert "kind: Namespace" in yaml.out
    assert field.out == namespace


async def test_get_selects(kubectl: Kubectl, namespace: str) -> None:
    # given
    await kubectl("apply", "-n", namespace, "-f", "-", stdin=CONFIG_MAP)
    # when
    labelled = await kubectl("get", "cm", "-n", namespace, "-l", "app in (demo)", "-o", "name")
    named = await kubectl("get", "cm", "-n", namespace, "--field-selector", "metadata.name!=a", "-o", "name")
    everywhere = await kubectl("get", "cm", "-A", "-l", "app=demo", "--no-headers", "--chunk-size=1")
    # then
    assert labelled.out.split() == ["configmap/a"]
    assert "configmap/a" not in named.out
    assert [namespace, "a", "1"] in [line.split()[:3] for line in everywhere.out.splitlines()]


async def test_get_watches(kubectl: Kubectl, admin: Client, namespace: str) -> None:
    # given
    selected = ("-n", namespace, "-l", "app=demo", "--no-headers")
    watching = asyncio.create_task(kubectl("get", "cm", *selected, "-w", "--request-timeout=3s", expect=None))
    # when
    for name in ("one", "two"):
        body = {"metadata": {"name": name, "labels": {"app": "demo"}}}
        await admin.post(f"/api/v1/namespaces/{namespace}/configmaps", body)
    # then
    watched = await watching
    assert [line.split()[0] for line in watched.out.splitlines()] == ["one", "two"]


async def test_create_sends_protobuf_that_arrives_whole(kubectl: Kubectl, namespace: str) -> None:
    # when
    here, account = ("-n", namespace), f"{namespace}:sa"
    made = [
        await kubectl("create", *here, "secret", "generic", "s", "--from-literal=k=v", "--type=example.org/t"),
        await kubectl("create", *here, "configmap", "c", "--from-literal=k=v"),
        await kubectl("create", *here, "serviceaccount", "sa"),
        await kubectl("create", *here, "role", "r", "--verb=get,list", "--resource=pods,deployments.apps"),
        await kubectl("create", *here, "rolebinding", "b", "--role=r", "--user=jane", f"--serviceaccount={account}"),
        await kubectl("create", *here, "quota", "q", "--hard=pods=2,cpu=1"),
        await kubectl("create", "clusterrole", namespace, f"--aggregation-rule={namespace}=b"),
        await kubectl("create", "clusterrolebinding", namespace, "--clusterrole=view", "--group=devs"),
    ]

    async def read(kind: str, name: str) -> dict[str, object]:
        read: dict[str, object] = json.loads((await kubectl("get", *here, kind, name, "-o", "json")).out)
        return read

    # then
    group = "rbac.authorization.k8s.io"
    assert [one.out for one in made] == [
        "secret/s created\n",
        "configmap/c created\n",
        "serviceaccount/sa created\n",
        f"role.{group}/r created\n",
        f"rolebinding.{group}/b created\n",
        "resourcequota/q created\n",
        f"clusterrole.{group}/{namespace} created\n",
        f"clusterrolebinding.{group}/{namespace} created\n",
    ]
    secret, role, binding = await read("secret", "s"), await read("role", "r"), await read("rolebinding", "b")
    assert (secret["data"], secret["type"]) == ({"k": "dg=="}, "example.org/t")
    assert role["rules"] == [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]},
        {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get", "list"]},
    ]
    assert binding["subjects"] == [
        {"apiGroup": group, "kind": "User", "name": "jane"},
        {"kind": "ServiceAccount", "name": "sa", "namespace": namespace},
    ]
    gathering = await read("clusterrole", namespace)
    assert gathering["aggregationRule"] == {"clusterRoleSelectors": [{"matchLabels": {namespace: "b"}}]}


async def test_errors_read_as_everywhere(kubectl: Kubectl, namespace: str) -> None:
    # when
    again = await kubectl("create", "namespace", namespace, expect=1)
    absent = await kubectl("get", "secret", "-n", namespace, "nothing", expect=1)
    denied = await kubectl("get", "secrets", "-n", namespace, "--as", "jane", expect=1)
    typo = await kubectl("apply", "-n", namespace, "-f", "-", stdin=CONFIG_MAP.replace("\ndata:", "\ndate:"), expect=1)
    # then
    assert again.err.strip() == f'Error from server (AlreadyExists): namespaces "{namespace}" already exists'
    assert absent.err.strip() == 'Error from server (NotFound): secrets "nothing" not found'
    assert denied.err.strip() == (
        'Error from server (Forbidden): secrets is forbidden: User "jane" cannot list resource "secrets" '
        f'in API group "" in the namespace "{namespace}"'
    )
    assert 'strict decoding error: unknown field "date"' in typo.err


async def test_a_kind_that_is_not_there_is_named(kubectl: Kubectl, name: str) -> None:
    # when
    thing = f"apiVersion: example.org/v1\nkind: {name.capitalize()}\nmetadata: {{name: a}}\n"
    refused = await kubectl("apply", "-f", "-", stdin=thing, expect=1)
    # then
    assert f'no matches for kind "{name.capitalize()}" in version "example.org/v1"' in refused.err
    assert "ensure CRDs are installed first" in refused.err


async def test_apply_creates_configures_prunes_and_leaves_unchanged(kubectl: Kubectl, namespace: str) -> None:
    # when
    texts = (CONFIG_MAP, CONFIG_MAP, CHANGED, CONFIG_MAP.replace("k:", "l:"))
    said = [(await kubectl("apply", "-n", namespace, "-f", "-", stdin=text)).out for text in texts]
    # then
    assert said == [f"configmap/a {word}\n" for word in ("created", "unchanged", "configured", "configured")]
    data = await kubectl("get", "cm", "a", "-n", namespace, "-o", "jsonpath={.data}")
    assert json.loads(data.out) == {"l": "1"}


async def test_apply_on_the_server_shows_conflicts_and_forces(kubectl: Kubectl, namespace: str) -> None:
    # given
    server = ("apply", "--server-side", "-n", namespace, "-f", "-")
    await kubectl(*server, "--field-manager=one", stdin=CONFIG_MAP)
    # when
    refused = await kubectl(*server, "--field-manager=two", stdin=CHANGED, expect=1)
    forced = await kubectl(*server, "--field-manager=two", "--force-conflicts", stdin=CHANGED)
    # then
    assert 'Apply failed with 1 conflict: conflict with "one": .data.k' in refused.err
    assert forced.out == "configmap/a serverside-applied\n"


async def test_diff_shows_what_apply_would_change(kubectl: Kubectl, namespace: str) -> None:
    # given
    assert shutil.which("diff"), "kubectl diff runs the program diff"
    await kubectl("apply", "-n", namespace, "-f", "-", stdin=CONFIG_MAP)
    # when
    same = await kubectl("diff", "-n", namespace, "-f", "-", stdin=CONFIG_MAP)
    other = await kubectl("diff", "-n", namespace, "-f", "-", stdin=CHANGED, expect=1)
    # then
    assert same.out == ""
    assert '-  k: "1"\n+  k: "2"' in other.out


async def test_patch_label_annotate_and_replace(kubectl: Kubectl, namespace: str) -> None:
    # given
    here = ("-n", namespace)
    await kubectl("apply", *here, "-f", "-", stdin=CONFIG_MAP)
    # when
    found = []
    for kind, patch in (
        ("strategic", '{"data":{"k":"7"}}'),
        ("merge", '{"data":{"k":"8"}}'),
        ("json", '[{"op":"replace","path":"/data/k","value":"9"}]'),
    ):
        await kubectl("patch", *here, "cm", "a", "--type", kind, "-p", patch)
        found.append((await kubectl("get", *here, "cm", "a", "-o", "jsonpath={.data.k}")).out)
    await kubectl("label", *here, "cm", "a", "x=y", "app-")
    await kubectl("annotate", *here, "cm", "a", "note=hello")
    labels = (await kubectl("get", *here, "cm", "a", "-o", "jsonpath={.metadata.labels}")).out
    await kubectl("replace", *here, "-f", "-", stdin=CONFIG_MAP)
    # then
    assert found == ["7", "8", "9"]
    assert json.loads(labels) == {"x": "y"}
    assert (await kubectl("get", *here, "cm", "a", "-o", "jsonpath={.data.k}")).out == "1"


async def test_delete_waits_for_finalizers_and_says_what_is_gone(kubectl: Kubectl, namespace: str) -> None:
    # given
    here = ("-n", namespace)
    held = CONFIG_MAP.replace("labels:", "finalizers: [example.org/hold], labels:")
    await kubectl("apply", *here, "-f", "-", stdin=held)
    # when
    deleting = asyncio.create_task(kubectl("delete", *here, "cm", "a", "--timeout=30s"))
    await kubectl("wait", *here, "cm/a", "--for=jsonpath={.metadata.deletionTimestamp}", "--timeout=20s")
    still = deleting.done()
    await kubectl("patch", *here, "cm", "a", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    deleted = await deleting
    again = await kubectl("delete", *here, "cm", "a", "--ignore-not-found")
    # then
    assert not still
    assert 'configmap "a" deleted' in deleted.out
    assert again.out == ""


async def test_a_definition_and_its_objects_in_the_order_of_a_manifest(kubectl: Kubectl, name: str) -> None:
    # given
    definition = f"""
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {{name: {name}s.example.org}}
spec:
  group: example.org
  scope: Namespaced
  names: {{plural: {name}s, kind: {name.capitalize()}, shortNames: [{name}x]}}
  versions:
  - name: v1
    served: true
    storage: true
    additionalPrinterColumns: [{{name: Size, type: integer, jsonPath: .spec.size}}]
    schema:
      openAPIV3Schema:
        type: object
        properties: {{spec: {{type: object, required: [size], properties: {{size: {{type: integer}}}}}}}}
"""
    thing = f"""
apiVersion: example.org/v1
kind: {name.capitalize()}
metadata: {{name: w}}
spec: {{size: 3}}
"""
    # when
    await kubectl("apply", "-f", "-", stdin=definition)
    await kubectl("wait", "--for=condition=Established", f"crd/{name}s.example.org", "--timeout=20s")
    applied = await kubectl("apply", "-f", "-", stdin=thing)
    shown = await kubectl("get", f"{name}x")
    wrong = await kubectl("apply", "-f", "-", stdin=thing.replace("size: 3", "size: big"), expect=1)
    await kubectl("delete", "crd", f"{name}s.example.org", "--timeout=30s")
    # then
    assert applied.out == f"{name}.example.org/w created\n"
    assert [line.split() for line in shown.out.splitlines()] == [["NAME", "SIZE"], ["w", "3"]]
    assert "spec.size" in wrong.err


async def test_auth_tells_who_one_is_and_what_one_may(kubectl: Kubectl, namespace: str) -> None:
    # when
    admin = await kubectl("auth", "can-i", "*", "*")
    jane = await kubectl("auth", "can-i", "list", "secrets", "-n", namespace, "--as", "jane", expect=1)
    listed = await kubectl("auth", "can-i", "--list", "-n", namespace, "--as", "jane", "--as-group", "devs")
    who = await kubectl("auth", "whoami", "--as", "jane", "--as-group", "devs", "-o", "json")
    # then
    assert admin.out.strip() == "yes"
    assert jane.out.strip() == "no"
    assert "selfsubjectaccessreviews.authorization.k8s.io" in listed.out
    user = json.loads(who.out)["status"]["userInfo"]
    assert (user["username"], sorted(user["groups"])) == ("jane", ["devs", "system:authenticated"])


async def test_a_token_that_was_created_opens_the_api_and_a_wrong_one_does_not(
    kubectl: Kubectl, namespace: str
) -> None:
    # given
    token = (await kubectl("create", "token", "default", "-n", namespace, "--duration=10m")).out.strip()
    config = (await kubectl("config", "view", "--raw", "--minify", "-o", "json")).out

    def with_token(value: str) -> str:
        changed = json.loads(config)
        changed["users"][0]["user"] = {"token": value}
        return json.dumps(changed)

    # when
    who = await kubectl("auth", "whoami", "-o", "jsonpath={.status.userInfo.username}", kubeconfig=with_token(token))
    wrong = await kubectl("get", "namespaces", kubeconfig=with_token("nonsense"), expect=1)
    # then
    assert who.out == f"system:serviceaccount:{namespace}:default"
    assert "Unauthorized" in wrong.err or "must be logged in" in wrong.err
