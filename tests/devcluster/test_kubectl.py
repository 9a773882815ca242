"""kubectl itself against the embedded API: what a person types works, and says what a person reads."""

from __future__ import annotations

import asyncio
import json
import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kubeapi import Client, Kubectl
    from tether.devcluster.api import EmbeddedApi

pytestmark = pytest.mark.kubectl

CONFIG_MAP = """
apiVersion: v1
kind: ConfigMap
metadata: {name: a, labels: {app: demo}}
data: {k: "1"}
"""
WIDGETS = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.org}
spec:
  group: example.org
  scope: Namespaced
  names: {plural: widgets, kind: Widget, shortNames: [wd]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    additionalPrinterColumns: [{name: Size, type: integer, jsonPath: .spec.size}]
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [size]
            description: What the widget should be.
            properties: {size: {type: integer}}
          status: {type: object, x-kubernetes-preserve-unknown-fields: true}
"""
WIDGET = """
apiVersion: example.org/v1
kind: Widget
metadata: {name: w}
spec: {size: 3}
"""


async def test_get_prints_a_table_and_yaml(kubectl: Kubectl) -> None:
    # when
    table = await kubectl("get", "namespaces")
    yaml = await kubectl("get", "ns", "default", "-o", "yaml")
    name = await kubectl("get", "ns", "default", "-o", "jsonpath={.metadata.name}")
    # then
    assert table.out.splitlines()[0].split() == ["NAME", "STATUS", "AGE"]
    assert "default" in table.out
    assert "kind: Namespace" in yaml.out
    assert name.out == "default"


async def test_get_selects_by_label_field_and_over_all_namespaces(kubectl: Kubectl) -> None:
    # given
    await kubectl("create", "namespace", "other")
    await kubectl("apply", "-f", "-", stdin=CONFIG_MAP)
    await kubectl("apply", "-n", "other", "-f", "-", stdin=CONFIG_MAP)
    # when
    labelled = await kubectl("get", "cm", "-l", "app in (demo)", "-o", "name")
    named = await kubectl("get", "cm", "--field-selector", "metadata.name!=a", "-o", "name")
    everywhere = await kubectl("get", "cm", "-A", "-l", "app=demo", "--no-headers")
    chunked = await kubectl("get", "cm", "-A", "-l", "app=demo", "--chunk-size=1", "--no-headers")
    # then
    assert labelled.out.split() == ["configmap/a"]
    assert "configmap/a" not in named.out
    assert [line.split()[:2] for line in everywhere.out.splitlines()] == [["default", "a"], ["other", "a"]]
    assert chunked.out.splitlines()[0].split()[:2] == ["default", "a"]
    assert len(chunked.out.splitlines()) == 2


async def test_get_watches(kubectl: Kubectl, client: Client) -> None:
    # given
    watching = asyncio.create_task(
        kubectl("get", "cm", "-l", "app=demo", "-w", "--request-timeout=2s", "--no-headers", expect=None)
    )
    path = "/api/v1/namespaces/default/configmaps"
    # when
    for name in ("one", "two"):
        await client.post(path, {"metadata": {"name": name, "labels": {"app": "demo"}}})
    # then
    watched = await watching
    assert [line.split()[0] for line in watched.out.splitlines()] == ["one", "two"]


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["namespace", "x"], "namespace/x"),
        (["configmap", "x", "--from-literal=k=v"], "configmap/x"),
        (["secret", "generic", "x", "--from-literal=k=v"], "secret/x"),
        (["serviceaccount", "x"], "serviceaccount/x"),
        (["role", "x", "--verb=get,list", "--resource=pods,deployments.apps"], "role.rbac.authorization.k8s.io/x"),
        (["clusterrole", "x", "--verb=get", "--non-resource-url=/x"], "clusterrole.rbac.authorization.k8s.io/x"),
        (["clusterrole", "x", "--aggregation-rule=a=b"], "clusterrole.rbac.authorization.k8s.io/x"),
        (
            ["rolebinding", "x", "--clusterrole=view", "--user=jane", "--serviceaccount=default:default"],
            "rolebinding.rbac.authorization.k8s.io/x",
        ),
        (
            ["clusterrolebinding", "x", "--clusterrole=view", "--group=devs"],
            "clusterrolebinding.rbac.authorization.k8s.io/x",
        ),
        (["quota", "x", "--hard=pods=2,cpu=1"], "resourcequota/x"),
    ],
)
async def test_create_makes_what_it_is_asked_for(kubectl: Kubectl, arguments: list[str], kind: str) -> None:
    # when
    made = await kubectl("create", *arguments)
    # then
    assert made.out == f"{kind} created\n"
    assert (await kubectl("get", kind, "-o", "name")).out == f"{kind}\n"


async def test_what_create_sends_in_protobuf_arrives_whole(kubectl: Kubectl) -> None:
    # when
    await kubectl("create", "secret", "generic", "s", "--from-literal=k=v", "--type=example.org/t")
    await kubectl("create", "role", "r", "--verb=get,list", "--resource=pods,deployments.apps", "--resource-name=a")
    await kubectl("create", "rolebinding", "b", "--role=r", "--user=jane", "--serviceaccount=ns:sa", "--group=g")
    await kubectl("create", "quota", "q", "--hard=pods=2,cpu=1", "--scopes=BestEffort")
    await kubectl("create", "clusterrole", "c", "--aggregation-rule=a=b")
    # then
    secret = json.loads((await kubectl("get", "secret", "s", "-o", "json")).out)
    assert (secret["data"], secret["type"]) == ({"k": "dg=="}, "example.org/t")
    role = json.loads((await kubectl("get", "role", "r", "-o", "json")).out)
    assert role["rules"] == [
        {"apiGroups": [""], "resourceNames": ["a"], "resources": ["pods"], "verbs": ["get", "list"]},
        {"apiGroups": ["apps"], "resourceNames": ["a"], "resources": ["deployments"], "verbs": ["get", "list"]},
    ]
    binding = json.loads((await kubectl("get", "rolebinding", "b", "-o", "json")).out)
    group = "rbac.authorization.k8s.io"
    assert binding["roleRef"] == {"apiGroup": group, "kind": "Role", "name": "r"}
    assert binding["subjects"] == [
        {"apiGroup": group, "kind": "User", "name": "jane"},
        {"apiGroup": group, "kind": "Group", "name": "g"},
        {"kind": "ServiceAccount", "name": "sa", "namespace": "ns"},
    ]
    quota = json.loads((await kubectl("get", "quota", "q", "-o", "json")).out)
    assert quota["spec"] == {"hard": {"cpu": "1", "pods": "2"}, "scopes": ["BestEffort"]}
    gathering = json.loads((await kubectl("get", "clusterrole", "c", "-o", "json")).out)
    assert gathering["aggregationRule"] == {"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]}


async def test_create_deployment_arrives_whole(kubectl: Kubectl) -> None:
    await kubectl(
        "create", "deployment", "web", "--image=example.org/web:1", "--replicas=2", "--port=80", "--", "serve"
    )

    made = json.loads((await kubectl("get", "deployment", "web", "-o", "json")).out)["spec"]

    assert (made["replicas"], made["selector"]["matchLabels"]) == (2, {"app": "web"})
    (container,) = made["template"]["spec"]["containers"]
    assert (container["name"], container["image"], container["command"]) == ("web", "example.org/web:1", ["serve"])
    assert container["ports"] == [{"containerPort": 80}]


async def test_create_says_what_exists_already(kubectl: Kubectl) -> None:
    # given
    await kubectl("create", "namespace", "x")
    # when
    again = await kubectl("create", "namespace", "x", expect=1)
    # then
    assert again.err.strip() == 'Error from server (AlreadyExists): namespaces "x" already exists'


async def test_apply_creates_configures_and_leaves_unchanged(kubectl: Kubectl) -> None:
    # when
    said = [
        (await kubectl("apply", "-f", "-", stdin=text)).out
        for text in (CONFIG_MAP, CONFIG_MAP, CONFIG_MAP.replace('"1"', '"2"'))
    ]
    # then
    assert said == ["configmap/a created\n", "configmap/a unchanged\n", "configmap/a configured\n"]


async def test_apply_on_the_server_shows_conflicts_and_forces(kubectl: Kubectl) -> None:
    # given
    server = ("apply", "--server-side", "-f", "-")
    await kubectl(*server, "--field-manager=one", stdin=CONFIG_MAP)
    changed = CONFIG_MAP.replace('"1"', '"2"')
    # when
    refused = await kubectl(*server, "--field-manager=two", stdin=changed, expect=1)
    forced = await kubectl(*server, "--field-manager=two", "--force-conflicts", stdin=changed)
    # then
    assert 'Apply failed with 1 conflict: conflict with "one": .data.k' in refused.err
    assert forced.out == "configmap/a serverside-applied\n"
    assert (await kubectl("get", "cm", "a", "-o", "jsonpath={.data.k}")).out == "2"


async def test_apply_prunes_what_was_applied_before(kubectl: Kubectl) -> None:
    # given
    await kubectl("apply", "-f", "-", stdin=CONFIG_MAP.replace('{k: "1"}', '{k: "1", l: "1"}'))
    # when
    await kubectl("apply", "-f", "-", stdin=CONFIG_MAP)
    # then
    assert json.loads((await kubectl("get", "cm", "a", "-o", "jsonpath={.data}")).out) == {"k": "1"}


async def test_diff_shows_what_apply_would_change(kubectl: Kubectl) -> None:
    # given
    assert shutil.which("diff"), "kubectl diff runs the program diff"
    await kubectl("apply", "-f", "-", stdin=CONFIG_MAP)
    # when
    same = await kubectl("diff", "-f", "-", stdin=CONFIG_MAP)
    other = await kubectl("diff", "-f", "-", stdin=CONFIG_MAP.replace('"1"', '"2"'), expect=1)
    # then
    assert same.out == ""
    assert '-  k: "1"\n+  k: "2"' in other.out


@pytest.mark.parametrize(
    ("kind", "patch"),
    [
        ("strategic", '{"data":{"k":"9"}}'),
        ("merge", '{"data":{"k":"9"}}'),
        ("json", '[{"op":"replace","path":"/data/k","value":"9"}]'),
    ],
)
async def test_patch_changes_one_field(kubectl: Kubectl, kind: str, patch: str) -> None:
    # given
    await kubectl("apply", "-f", "-", stdin=CONFIG_MAP)
    # when
    await kubectl("patch", "cm", "a", "--type", kind, "-p", patch)
    # then
    assert (await kubectl("get", "cm", "a", "-o", "jsonpath={.data.k}")).out == "9"


async def test_label_annotate_and_replace(kubectl: Kubectl) -> None:
    # given
    await kubectl("apply", "-f", "-", stdin=CONFIG_MAP)
    # when
    await kubectl("label", "cm", "a", "x=y", "app-")
    await kubectl("annotate", "cm", "a", "note=hello")
    labels = (await kubectl("get", "cm", "a", "-o", "jsonpath={.metadata.labels}")).out
    await kubectl("replace", "-f", "-", stdin=CONFIG_MAP)
    # then
    assert json.loads(labels) == {"x": "y"}
    assert json.loads((await kubectl("get", "cm", "a", "-o", "jsonpath={.metadata.labels}")).out) == {"app": "demo"}


async def test_delete_waits_for_finalizers(kubectl: Kubectl) -> None:
    # given
    await kubectl("apply", "-f", "-", stdin=CONFIG_MAP.replace("labels:", "finalizers: [example.org/hold], labels:"))
    # when
    await kubectl("delete", "cm", "a", "--wait=false")
    marked = (await kubectl("get", "cm", "a", "-o", "jsonpath={.metadata.deletionTimestamp}")).out
    await kubectl("patch", "cm", "a", "--type", "merge", "-p", '{"metadata":{"finalizers":null}}')
    # then
    assert marked
    gone = await kubectl("get", "cm", "a", expect=1)
    assert gone.err.strip() == 'Error from server (NotFound): configmaps "a" not found'


async def test_delete_of_a_namespace_takes_all_in_it(kubectl: Kubectl) -> None:
    # given
    await kubectl("create", "namespace", "x")
    await kubectl("apply", "-n", "x", "-f", "-", stdin=CONFIG_MAP)
    # when
    await kubectl("delete", "namespace", "x", "--timeout=20s")
    # then
    assert (await kubectl("get", "cm", "-n", "x", "-o", "name")).out == ""
    assert "not found" in (await kubectl("get", "ns", "x", expect=1)).err


async def test_a_definition_and_then_its_objects(kubectl: Kubectl) -> None:
    # when
    await kubectl("apply", "-f", "-", stdin=WIDGETS)
    await kubectl("wait", "--for=condition=Established", "crd/widgets.example.org", "--timeout=20s")
    await kubectl("apply", "-f", "-", stdin=WIDGET)
    # then
    table = (await kubectl("get", "wd")).out.splitlines()
    assert [line.split() for line in table] == [["NAME", "SIZE"], ["w", "3"]]
    assert "widgets" in (await kubectl("api-resources", "--api-group=example.org")).out
    assert "What the widget should be." in (await kubectl("explain", "widget.spec")).out
    # when
    wrong = await kubectl("apply", "-f", "-", stdin=WIDGET.replace("3", "three"), expect=1)
    unknown = await kubectl("apply", "-f", "-", stdin=WIDGET.replace("size: 3", "size: 3, what: 1"), expect=1)
    # then
    assert "spec.size in body must be of type integer" in wrong.err
    assert 'strict decoding error: unknown field "spec.what"' in unknown.err
    # when
    await kubectl("delete", "crd", "widgets.example.org", "--timeout=20s")
    # then
    assert "could not find the requested resource" in (await kubectl("get", "widgets", expect=1)).err


async def test_wait_follows_a_condition(kubectl: Kubectl) -> None:
    # given
    await kubectl("apply", "-f", "-", stdin=WIDGETS)
    await kubectl("apply", "-f", "-", stdin=WIDGET)
    waiting = asyncio.create_task(kubectl("wait", "--for=condition=Ready", "widget/w", "--timeout=30s"))
    # when
    status = '{"status":{"conditions":[{"type":"Ready","status":"True"}]}}'
    await kubectl("patch", "widget", "w", "--subresource=status", "--type=merge", "-p", status)
    # then
    assert (await waiting).out == "widget.example.org/w condition met\n"


async def test_auth_tells_rights_and_identity(kubectl: Kubectl) -> None:
    # when
    mine = await kubectl("auth", "can-i", "create", "namespaces")
    hers = await kubectl("auth", "can-i", "create", "namespaces", "--as", "jane", expect=1)
    listed = await kubectl("auth", "can-i", "--list")
    me = await kubectl("auth", "whoami")
    she = await kubectl("auth", "whoami", "--as", "jane", "--as-group", "devs")
    # then
    assert (mine.out, hers.out) == ("yes\n", "no\n")
    assert "*.*" in listed.out
    assert "kubernetes-admin" in me.out
    assert "jane" in she.out
    assert "devs" in she.out


async def test_create_token_gives_a_token_that_works(kubectl: Kubectl, api: EmbeddedApi) -> None:
    # given
    await kubectl("create", "serviceaccount", "robot")
    await kubectl("create", "rolebinding", "robot", "--clusterrole=view", "--serviceaccount=default:robot")
    # when
    token = (await kubectl("create", "token", "robot", "--duration=700s")).out.strip()
    as_robot = api.kubeconfig(token=token)
    # then
    assert "system:serviceaccount:default:robot" in (await kubectl("auth", "whoami", kubeconfig=as_robot)).out
    assert "kube-root-ca.crt" in (await kubectl("get", "cm", kubeconfig=as_robot)).out
    refused = await kubectl("get", "namespaces", kubeconfig=as_robot, expect=1)
    assert refused.err.strip() == (
        'Error from server (Forbidden): namespaces is forbidden: User "system:serviceaccount:default:robot" cannot '
        'list resource "namespaces" in API group "" at the cluster scope'
    )


async def test_a_wrong_token_is_unauthorized(kubectl: Kubectl, api: EmbeddedApi) -> None:
    # when
    refused = await kubectl("get", "namespaces", kubeconfig=api.kubeconfig(token="nonsense"), expect=1)
    # then
    assert "You must be logged in to the server" in refused.err


async def test_impersonation_shows_what_somebody_else_may(kubectl: Kubectl) -> None:
    # when
    refused = await kubectl("get", "pods", "--as", "jane", expect=1)
    allowed = await kubectl("get", "namespaces", "--as", "jane", "--as-group", "system:masters", "-o", "name")
    # then
    assert 'User "jane" cannot list resource "pods"' in refused.err
    assert "namespace/default" in allowed.out


async def test_describe_and_raw(kubectl: Kubectl, tmp_path: Path) -> None:
    # given
    manifest = tmp_path / "cm.yaml"
    manifest.write_text(CONFIG_MAP)
    await kubectl("create", "-f", str(manifest))
    # then
    assert "Namespace:    default" in (await kubectl("describe", "cm", "a")).out
    assert (await kubectl("get", "--raw", "/readyz")).out == "ok"
    assert "v1.32" in (await kubectl("version")).out
