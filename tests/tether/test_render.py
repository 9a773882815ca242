"""`tether tenant render`: the guide's tenant to the byte, names of every shape, what is optional, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tether import cli
from tether.devcluster.pki import ClusterPki
from tether.render import PRIVILEGED, Git, Options, as_yaml, check, sections
from tether.render_configuration import addition, merged, section
from workers.names import MAX_NAME, cluster_role_name, kubeconfig_name
from workers.ownership import Account

Object = dict[str, Any]

GOLDEN = Path(__file__).parent / "golden" / "tenant-oil.yaml"
OIL = Account("oil-system", "gitops-reconciler")
OPTIONS = Options(tenant="oil", account=OIL, git=Git(url="https://github.com/oil/oil-apps"))
RENDER = ["tenant", "render", "oil", "--owner", "oil-system/gitops-reconciler"]

label = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)
subdomain = st.lists(label, min_size=1, max_size=5).map(".".join).filter(lambda name: len(name) <= MAX_NAME)


def but(**changes: Any) -> Options:
    return msgspec.structs.replace(OPTIONS, **changes)


def rendered(options: Options = OPTIONS) -> list[Object]:
    return list(yaml.safe_load_all(as_yaml(sections(options))))


def kinds(options: Options) -> list[str]:
    return [obj["kind"] for obj in rendered(options)]


def one(kind: str, options: Options = OPTIONS) -> Object:
    found: Object
    (found,) = [obj for obj in rendered(options) if obj["kind"] == kind]
    return found


def test_the_tenant_of_the_guide_is_rendered_to_the_byte(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.run([*RENDER, "--git-url", "https://github.com/oil/oil-apps"])

    assert code == 0
    assert capsys.readouterr().out == GOLDEN.read_text()


def test_the_tenant_of_the_guide_says_what_the_example_says() -> None:
    example = yaml.safe_load_all((Path(__file__).parents[2] / "examples" / "oil.yaml").read_text())

    for wanted in example:
        found = one(wanted["kind"])
        assert found["metadata"]["name"] == wanted["metadata"]["name"]
        assert found["metadata"].get("annotations") == wanted["metadata"].get("annotations")
        assert found.get("spec") == wanted.get("spec")


def test_the_whole_set_stands_in_the_order_in_which_it_is_applied_in_the_order_in_which_it_stands() -> None:
    assert kinds(OPTIONS) == [
        "Namespace",
        "ServiceAccount",
        "RoleBinding",
        "ClusterRole",
        "ClusterRoleBinding",
        "Tenant",
        "GitRepository",
        "Kustomization",
    ]


def test_flux_logs_in_with_the_distributed_kubeconfig_and_acts_as_the_account() -> None:
    spec = one("Kustomization")["spec"]

    assert spec["serviceAccountName"] == "gitops-reconciler"
    assert spec["kubeConfig"] == {"secretRef": {"name": "gitops-reconciler-kubeconfig", "key": "kubeconfig"}}
    assert spec["sourceRef"] == {"kind": "GitRepository", "name": "oil"}
    assert (
        one("GitRepository")["metadata"]["namespace"] == one("Kustomization")["metadata"]["namespace"] == "oil-system"
    )


@given(label, label.filter(lambda name: name not in PRIVILEGED), subdomain)
def test_every_legal_name_is_rendered_and_read_back_as_it_was(tenant: str, namespace: str, name: str) -> None:
    account = Account(namespace, name)
    options = but(tenant=tenant, account=account)
    check(options)

    text = as_yaml(sections(options))

    objects = list(yaml.safe_load_all(text))
    assert objects == [part.obj for part in sections(options)]
    assert text == as_yaml(sections(options))
    assert all(len(obj["metadata"]["name"]) <= MAX_NAME for obj in objects)
    names = {obj["kind"]: obj["metadata"]["name"] for obj in objects}
    assert names["ClusterRole"] == names["ClusterRoleBinding"] == cluster_role_name(account)
    secret = next(obj for obj in objects if obj["kind"] == "Kustomization")["spec"]["kubeConfig"]["secretRef"]
    assert secret["name"] == kubeconfig_name(account)


@pytest.mark.parametrize(
    "name", ["1e3", "0x1f", "1_000", "1.5", "y", "n", "on", "null", "12", "2001-01-01", "1-2", "-0"]
)
def test_a_name_that_looks_like_something_else_stands_in_quotes(name: str) -> None:
    text = as_yaml(sections(but(users=(name,), git=None)))

    assert f"name: '{name}'\n" in text


def is_label(name: str) -> bool:
    """Tell whether RFC 1123 takes a name for a label, without a regular expression."""
    legal = set("abcdefghijklmnopqrstuvwxyz0123456789-")
    return 0 < len(name) <= 63 and set(name) <= legal and name[0] != "-" and name[-1] != "-"


strange = st.text("aZ0-._/é \n", max_size=6) | st.text("a", min_size=62, max_size=65) | label


@given(strange, strange)
def test_a_tenant_is_taken_exactly_where_its_names_are_labels(tenant: str, namespace: str) -> None:
    options = but(tenant=tenant, account=Account(namespace, "gitops-reconciler"))

    if is_label(tenant) and is_label(namespace) and namespace not in PRIVILEGED:
        check(options)
    else:
        with pytest.raises(ValueError, match=r"\A.+\Z"):
            check(options)


@given(st.lists(strange, max_size=4).map(".".join))
def test_an_account_is_taken_exactly_where_its_name_is_a_subdomain(name: str) -> None:
    options = but(account=Account("oil-system", name))

    # Only a name's whole length is limited, not that of its parts, as Kubernetes has it.
    if 0 < len(name) <= MAX_NAME and all(
        is_label(part[:1] + part[-1:]) and is_label_of_any_length(part) for part in name.split(".")
    ):
        check(options)
    else:
        with pytest.raises(ValueError, match=r"\A.+\Z"):
            check(options)


def is_label_of_any_length(part: str) -> bool:
    return all(is_label(letter) or letter == "-" for letter in part)


@pytest.mark.parametrize("namespace", sorted(PRIVILEGED))
def test_a_privileged_namespace_is_no_home(namespace: str) -> None:
    with pytest.raises(ValueError, match="give the account a namespace of its own"):
        check(but(account=Account(namespace, "gitops-reconciler")))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--owner", "oil-system"], "is not NAMESPACE/ACCOUNT"),
        (["--owner", "Oil/x"], "--owner 'Oil/x' is not NAMESPACE/ACCOUNT"),
        (["--owner", "kube-system/x"], "give the account a namespace of its own"),
        (["--git-branch", "main"], "do nothing without --git-url"),
        (["--no-prune"], "do nothing without --git-url"),
        (["--git-url", "git@github.com:oil/oil"], "must begin with https://"),
        (["--git-url", "https://oil:hunter2@github.com/oil"], "holds credentials"),
        (["--git-url", "https://hunter2@github.com/oil"], "holds credentials"),
        (["--git-url", "https://[x/y"], "is not a URL"),
        (["--git-url", "https://a/b", "--git-interval", "often"], "is not a duration"),
        (["--git-url", "https://a/b", "--git-branch", ""], "--git-branch needs a name"),
        (["--git-url", "https://a/b", "--git-secret", "A"], "--git-secret, 'A'"),
        (["--git-url", "https://a/b", "--target-namespace", "a.b"], "--target-namespace, 'a.b'"),
        (["--home-cluster-role", "a/b"], "is not the name of a ClusterRole"),
        (["--cluster-role", ""], "is not the name of a ClusterRole"),
        (["--user", " "], "--user and --group need a name"),
        (["--namespace-quota", "-1"], "-1 is not in the range"),
        (["--secretless"], "give --proxy-ca-file"),
        (["--secretless", "--proxy-ca-file", str(GOLDEN)], "does not hold certificates alone"),
    ],
)
def test_what_cannot_be_is_wrong_usage_in_one_line(
    flags: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.run([*RENDER, *flags])

    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert says in err
    assert "hunter2" not in err


def test_the_account_may_be_given_by_its_user_name(capsys: pytest.CaptureFixture[str]) -> None:
    codes = [cli.run([*RENDER, "--owner", "system:serviceaccount:oil-system:gitops-reconciler"]), cli.run(RENDER)]

    out = capsys.readouterr().out
    assert codes == [0, 0]
    assert out[: len(out) // 2] == out[len(out) // 2 :]


def test_each_optional_part_can_be_left_out() -> None:
    assert {"GitRepository", "Kustomization"}.isdisjoint(kinds(but(git=None)))
    assert {"RoleBinding", "ClusterRole", "ClusterRoleBinding"}.isdisjoint(kinds(but(rbac=False)))
    assert "annotations" not in one("ServiceAccount", but(annotation=False))["metadata"]
    assert "additionalRoleBindings" not in one("Tenant", but(additional_role_bindings=False))["spec"]
    assert "CapsuleConfiguration" not in kinds(OPTIONS)


@pytest.mark.parametrize(("given_", "value"), [(None, None), (True, "true"), (False, "false")])
def test_the_distribution_is_said_only_when_asked_for(given_: bool | None, value: str | None) -> None:
    annotations = one("ServiceAccount", but(kubeconfig_global=given_))["metadata"]["annotations"]

    assert annotations.get("capsule.addon.fluxcd/kubeconfig-global") == value


def test_each_option_of_the_command_reaches_its_field(capsys: pytest.CaptureFixture[str]) -> None:
    git = ["--git-url", "ssh://git@github.com/oil/all", "--git-branch", "live", "--git-path", "config"]
    more = ["--git-interval", "5m", "--git-secret", "deploy-key", "--no-prune", "--target-namespace", "oil-production"]
    roles = ["--home-cluster-role", "edit", "--cluster-role", "admin", "--namespace-quota", "7"]
    people = ["--user", "zoe", "--user", "dana", "--group", "oil-devs"]

    code = cli.run([*RENDER, *git, *more, *roles, *people])

    objects = {obj["kind"]: obj for obj in yaml.safe_load_all(capsys.readouterr().out)}
    assert code == 0
    assert objects["GitRepository"]["spec"] == {
        "interval": "5m",
        "url": "ssh://git@github.com/oil/all",
        "ref": {"branch": "live"},
        "secretRef": {"name": "deploy-key"},
    }
    spec = objects["Kustomization"]["spec"]
    assert (spec["path"], spec["prune"], spec["targetNamespace"]) == ("config", False, "oil-production")
    assert objects["RoleBinding"]["roleRef"]["name"] == "edit"
    tenant = objects["Tenant"]["spec"]
    assert tenant["additionalRoleBindings"][0]["clusterRoleName"] == "admin"
    assert tenant["namespaceOptions"] == {"quota": 7}
    assert [(owner["kind"], owner["name"]) for owner in tenant["owners"]] == [
        ("ServiceAccount", OIL.username),
        ("User", "dana"),
        ("User", "zoe"),
        ("Group", "oil-devs"),
    ]


def test_without_a_stored_secret_flux_asks_for_its_own_token(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ca = ClusterPki.load_or_create(None).ca_pem
    (tmp_path / "ca.crt").write_text(ca)
    flags = ["--secretless", "--proxy-url", "https://proxy:9001", "--proxy-ca-file", str(tmp_path / "ca.crt")]

    code = cli.run([*RENDER, *flags, "--git-url", "https://a/b"])

    objects = {obj["kind"]: obj for obj in yaml.safe_load_all(capsys.readouterr().out)}
    assert code == 0
    assert objects["ConfigMap"]["data"] == {
        "provider": "generic",
        "address": "https://proxy:9001",
        "ca.crt": ca,
        "audiences": "https://kubernetes.default.svc.cluster.local",
        "serviceAccountName": "gitops-reconciler",
    }
    name = objects["ConfigMap"]["metadata"]["name"]
    assert objects["Kustomization"]["spec"]["kubeConfig"] == {"configMapRef": {"name": name}}


def test_no_rendered_object_carries_a_mark_of_the_workers() -> None:
    assert "capsule-tether.io/" not in as_yaml(sections(OPTIONS))


def configuration(**spec: Any) -> Object:
    metadata = {
        "name": "default",
        "uid": "u",
        "resourceVersion": "1",
        "generation": 3,
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "managedFields": [{}],
        "labels": {"app.kubernetes.io/managed-by": "Helm"},
        "annotations": {
            "kubectl.kubernetes.io/last-applied-configuration": "{}",
            "meta.helm.sh/release-name": "capsule",
        },
    }
    spec = {"enableTLSReconciler": True, "forceTenantPrefix": False, "nodeMetadata": {"x": [1]}} | spec
    api = "capsule.clastix.io/v1beta2"
    return {"apiVersion": api, "kind": "CapsuleConfiguration", "metadata": metadata, "spec": spec}


def test_the_group_is_added_to_the_configuration_and_every_other_field_kept() -> None:
    existing = configuration(userGroups=["capsule.clastix.io", "b"])
    before = msgspec.json.encode(existing)

    made = merged(existing, OIL)

    expected = ["capsule.clastix.io", "b", "system:serviceaccounts:oil-system"]
    assert made["spec"] == existing["spec"] | {"userGroups": expected}
    assert made["metadata"] == {
        "name": "default",
        "labels": {"app.kubernetes.io/managed-by": "Helm"},
        "annotations": {"meta.helm.sh/release-name": "capsule"},
    }
    assert msgspec.json.encode(existing) == before


def test_where_capsule_knows_users_the_account_alone_is_added() -> None:
    admins = {"kind": "Group", "name": "projectcapsule.dev"}
    entry = {"kind": "ServiceAccount", "name": OIL.username}

    assert merged(configuration(users=[admins]), OIL)["spec"]["users"] == [admins, entry]
    reported = configuration(userGroups=["a"]) | {"status": {"users": [admins]}}
    assert addition(reported, OIL) == ("users", entry)
    assert "status" not in merged(reported, OIL)


@pytest.mark.parametrize(
    "existing",
    [
        configuration(userGroups=["system:serviceaccounts:oil-system"]),
        configuration(userNames=[OIL.username]),
        configuration(users=[{"kind": "Group", "name": "system:serviceaccounts:oil-system"}]),
        configuration(users=[{"kind": "ServiceAccount", "name": OIL.username}]),
        configuration() | {"status": {"users": [{"kind": "ServiceAccount", "name": OIL.username}]}},
    ],
)
def test_an_account_that_is_a_capsule_user_is_not_added_again(existing: Object) -> None:
    made = section(existing, OIL)

    assert made.obj["spec"] == existing["spec"]
    assert "nothing was added" in made.comment


@given(st.lists(st.text()), st.lists(label))
def test_what_is_merged_once_is_merged(groups: list[str], names: list[str]) -> None:
    once = merged(configuration(userGroups=groups, userNames=names), OIL)

    assert merged(once, OIL) == once
    assert addition(once, OIL) is None
