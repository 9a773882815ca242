"""`tether tenant render` on a cluster: what it prints is applied as it is, and the workers find it done."""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import msgspec
import pytest
import yaml

from eventcore.errors import AlreadyExistsError, NotFoundError, TooManyRequestsError
from eventcore.kube import KubeClient, api_path
from tests.kubeapi import find_kubectl

pytestmark = pytest.mark.xdist_group("cluster")

Tenancy = Any
Object = dict[str, Any]
ACCOUNT = "gitops-reconciler"
KUBECONFIG = f"{ACCOUNT}-kubeconfig"
ENABLED = "capsule.addon.fluxcd/enabled"
CONFIGURATION = api_path("capsule.clastix.io", "v1beta2", "capsuleconfigurations", name="default")
CRDS = api_path("apiextensions.k8s.io", "v1", "customresourcedefinitions")
FLUX = {
    "gitrepositories.source.toolkit.fluxcd.io": ("GitRepository", ["interval", "url"]),
    "kustomizations.kustomize.toolkit.fluxcd.io": ("Kustomization", ["interval", "prune", "sourceRef"]),
}


async def render(tenancy: Tenancy, *flags: str) -> str:
    """Run the command for a tenant; return what it printed."""
    owner = f"{tenancy.home}/{ACCOUNT}"
    done = await asyncio.to_thread(tenancy.cluster.tether, "tenant", "render", tenancy.name, "--owner", owner, *flags)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return str(done.stdout)


def objects(text: str) -> list[Object]:
    return list(yaml.safe_load_all(text))


async def kubectl(tenancy: Tenancy, *arguments: str, stdin: str) -> str:
    """Run kubectl as cluster-admin; it must succeed without a warning."""
    done = await asyncio.to_thread(
        subprocess.run,
        [find_kubectl(), *arguments],
        input=stdin,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tenancy.cluster.folder),
            "KUBECONFIG": str(tenancy.cluster.folder / "admin.kubeconfig"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    return str(done.stdout)


@pytest.fixture
async def flux(admin: KubeClient, until: Any) -> AsyncIterator[None]:
    """Flux's kinds: where nobody has installed them, their names and what they require, for as long as the test."""
    made = []
    try:
        for name, (kind, required) in FLUX.items():
            plural, _, group = name.partition(".")
            try:
                await admin.create(CRDS, crd(name, kind, required))
            except AlreadyExistsError:
                continue
            made.append(name)
            await until(partial(_is, admin, api_path(group, "v1", plural), served=True))
        yield
    finally:
        for name in made:
            await admin.delete(f"{CRDS}/{name}")
            await until(partial(_is, admin, f"{CRDS}/{name}", served=False))


def crd(name: str, kind: str, required: list[str]) -> Object:
    plural, _, group = name.partition(".")
    spec = {"type": "object", "required": required, "x-kubernetes-preserve-unknown-fields": True}
    schema = {"type": "object", "required": ["spec"], "properties": {"spec": spec}}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    names = {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": name},
        "spec": {"group": group, "scope": "Namespaced", "names": names, "versions": [version]},
    }


async def _is(admin: KubeClient, path: str, *, served: bool) -> bool:
    try:
        await admin.get(path)
    except NotFoundError:
        return not served
    except TooManyRequestsError:
        return False  # a new kind's storage is still being made
    return served


async def settled(tenancy: Tenancy, until: Any) -> None:
    """Have every key worked on once more, and return when all of it is done."""
    done = await asyncio.to_thread(tenancy.cluster.tether, "replay", "--all")
    assert done.returncode == 0, done.stderr
    async with tenancy.cluster.bus() as bus:

        async def idle() -> bool:
            info = await bus.js.stream_info("WORK", subjects_filter="work.>")
            return not info.state.subjects

        await until(idle)


async def rbac(tenancy: Tenancy) -> list[Object]:
    """Return the account's RBAC objects as they are."""
    return [
        await tenancy.must("RoleBinding", tenancy.home, ACCOUNT),
        await tenancy.must("ClusterRole", "", tenancy.impersonator),
        await tenancy.must("ClusterRoleBinding", "", tenancy.impersonator),
    ]


async def allow(tenancy: Tenancy) -> None:
    """Make the account a Capsule user, as an administrator does by hand."""
    entry = {"op": "add", "path": "/spec/userGroups/-", "value": f"system:serviceaccounts:{tenancy.home}"}
    await tenancy.admin.json_patch(CONFIGURATION, [entry])


async def test_what_is_rendered_makes_a_tenant_that_works(tenancy: Tenancy) -> None:
    # Given what is rendered, applied as it is
    await tenancy.apply(*objects(await render(tenancy)))
    await allow(tenancy)

    # Then the account makes its namespaces, and the kubeconfig follows
    (name,) = await tenancy.make_namespaces("production")
    await tenancy.must("Secret", name, KUBECONFIG)


@pytest.mark.slow
async def test_rbac_that_came_from_git_counts_as_done_and_outlives_the_annotation(tenancy: Tenancy, until: Any) -> None:
    # Given the rendered objects, RBAC among them
    await tenancy.apply(*objects(await render(tenancy)))
    before = await rbac(tenancy)
    await tenancy.must("Secret", tenancy.home, KUBECONFIG)

    # When the workers have looked at every key, they have neither labelled nor written it
    await settled(tenancy, until)
    assert await rbac(tenancy) == before
    assert "capsule-tether.io" not in str(before)

    # And found nothing foreign to complain of
    events = msgspec.json.decode(await tenancy.admin.get(api_path("", "v1", "events", namespace=tenancy.home)))
    assert [event["message"] for event in events["items"] if event["reason"] == "ForeignObject"] == []

    # When the annotation goes, then what Tether made goes
    await tenancy.apply(tenancy.account())
    await tenancy.gone("Secret", tenancy.home, KUBECONFIG)
    await tenancy.gone("Secret", tenancy.home, f"{ACCOUNT}-token")

    # And what Git made stays, to the resourceVersion
    await settled(tenancy, until)
    assert await rbac(tenancy) == before


async def test_rendered_again_and_applied_again_nothing_changes(tenancy: Tenancy) -> None:
    text = await render(tenancy, "--user", "dana", "--namespace-quota", "5")
    assert await render(tenancy, "--user", "dana", "--namespace-quota", "5") == text
    await tenancy.apply(*objects(text))
    before = await tenancy.must("Tenant", "", tenancy.name)

    await tenancy.apply(*objects(text))

    after = await tenancy.must("Tenant", "", tenancy.name)
    assert after["metadata"]["generation"] == before["metadata"]["generation"]
    assert before["spec"]["namespaceOptions"]["quota"] == 5


async def test_the_configuration_is_the_clusters_own_with_the_account_added(tenancy: Tenancy, until: Any) -> None:
    # Given a configuration with users of others in it
    async def read() -> Object:
        found: Object = msgspec.json.decode(await tenancy.admin.get(CONFIGURATION))
        return found

    before = await read()
    flags = ("--capsule-configuration", "--kubeconfig", str(tenancy.cluster.folder / "admin.kubeconfig"))

    # When it is rendered and applied as a whole
    made = objects(await render(tenancy, *flags))
    (configuration,) = [obj for obj in made if obj["kind"] == "CapsuleConfiguration"]
    await tenancy.apply(*made)

    # Then every field is as it was, but for one entry more
    after = await read()
    changed = {name for name in after["spec"] if after["spec"][name] != before["spec"].get(name)}
    assert changed <= {"users", "userGroups"}
    (field,) = changed
    assert after["spec"][field][:-1] == (before["spec"].get(field) or [])
    assert tenancy.home in str(after["spec"][field][-1])
    assert configuration["spec"] == after["spec"]

    # And the account may make namespaces
    await tenancy.make_namespaces("production")

    # And rendered again, nothing is added
    async def known() -> bool:
        again = {obj["kind"]: obj for obj in objects(await render(tenancy, *flags))}
        return bool(again["CapsuleConfiguration"]["spec"] == after["spec"])

    await until(known)


async def test_without_a_stored_secret_a_token_as_flux_asks_for_it_opens_the_proxy(
    tenancy: Tenancy, until: Any
) -> None:
    # Given the ConfigMap for kubeConfig.configMapRef
    environ = tenancy.cluster.environ
    proxy = ("--proxy-url", environ["TETHER_PROXY_URL"], "--proxy-ca-file", environ["TETHER_PROXY_CA_FILE"])
    await tenancy.apply(*objects(await render(tenancy, "--secretless", *proxy)))
    await allow(tenancy)
    (name,) = await tenancy.make_namespaces("production")
    data = (await tenancy.must("ConfigMap", tenancy.home, KUBECONFIG))["data"]

    # When a token is made for the account and the audiences in it, and used at the address with the CA in it
    issued = await tenancy.admin.token_request(
        tenancy.home,
        data["serviceAccountName"],
        audiences=data["audiences"].split(),
        expiration_seconds=600,
    )
    file = tenancy.cluster.as_token(issued.token)
    config = yaml.safe_load(file.read_bytes())
    config["clusters"][0]["cluster"] = {
        "server": data["address"],
        "certificate-authority-data": base64.b64encode(data["ca.crt"].encode()).decode(),
    }
    file.write_bytes(msgspec.json.encode(config))

    # Then the proxy shows the tenant's namespaces
    async with tenancy.cluster.client(file) as client:

        async def listed() -> bool:
            items = msgspec.json.decode(await client.get(api_path("", "v1", "namespaces")))["items"]
            return [item["metadata"]["name"] for item in items] == [name]

        await until(listed)


async def test_the_doctor_finds_nothing_wrong_with_what_is_rendered(tenancy: Tenancy, until: Any) -> None:
    # Given all of it, and the kubeconfig that Tether adds
    kubeconfig = ("--kubeconfig", str(tenancy.cluster.folder / "admin.kubeconfig"))
    await tenancy.apply(*objects(await render(tenancy, "--capsule-configuration", *kubeconfig)))
    (name,) = await tenancy.make_namespaces("production")
    await tenancy.must("Secret", name, KUBECONFIG)

    async def findings() -> list[Object]:
        done = await asyncio.to_thread(tenancy.cluster.tether, "doctor", "--json", *kubeconfig)
        assert done.returncode in {0, 3, 4}, done.stderr  # of the cluster of all tests, with all that they left
        found: list[Object] = msgspec.json.decode(done.stdout)["findings"]
        return [finding for finding in found if tenancy.name in str(finding)]

    # Then the doctor knows the tenant, and has nothing against it
    async def healthy() -> bool:
        mine = await findings()
        return bool(mine) and all(finding["severity"] in {"ok", "note"} for finding in mine)

    await until(healthy)


@pytest.mark.kubectl
async def test_kubectl_and_the_api_server_take_all_of_it_with_git(tenancy: Tenancy, flux: None) -> None:
    git = ("--git-url", "https://github.com/oil/oil-apps", "--git-path", "config", "--target-namespace", "x")
    await taken(tenancy, await render(tenancy, *git))


@pytest.mark.kubectl
async def test_kubectl_and_the_api_server_take_all_of_it_without_flux(tenancy: Tenancy) -> None:
    await taken(tenancy, await render(tenancy, "--user", "1e3", "--group", "y", "--namespace-quota", "3"))


async def taken(tenancy: Tenancy, text: str) -> None:
    # Given a home that exists, as a dry run of what lies in it needs
    home, _, rest = text.partition("---\n")
    await kubectl(tenancy, "apply", "-f", "-", stdin=home)

    # Then the API server takes every object as it is, and stores none
    out = await kubectl(tenancy, "apply", "--dry-run=server", "-o", "name", "-f", "-", stdin=rest)
    assert len(out.splitlines()) == len(objects(rest))
    assert await tenancy.get("Tenant", "", tenancy.name) is None

    # And once it is applied, nothing differs any more
    await kubectl(tenancy, "apply", "-f", "-", stdin=text)
    await kubectl(tenancy, "diff", "-f", "-", stdin=text)
