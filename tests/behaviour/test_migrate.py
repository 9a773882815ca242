"""Taking over from capsule-addon-fluxcd: its objects, made by hand as it makes them, become Tether's."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from eventcore.errors import AlreadyExistsError, ForbiddenError, KubeError
from eventcore.kube import api_path
from tests.repeating import repeating

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.slow]

Tenancy = Any
Object = dict[str, Any]
ACCOUNT = "gitops-reconciler"
NAMESPACES = api_path("", "v1", "namespaces")
RBAC = "rbac.authorization.k8s.io"
COMPONENT = "capsule-tether.io/component"
RESOURCES = api_path("capsule.clastix.io", "v1beta2", "globaltenantresources")
DEFINITIONS = api_path("apiextensions.k8s.io", "v1", "customresourcedefinitions")


class Addon:
    """What capsule-addon-fluxcd makes for one account, by hand."""

    def __init__(self, tenancy: Tenancy, until: Any) -> None:
        self.tenancy = tenancy
        self.until = until
        self.resource = f"{tenancy.name}-{ACCOUNT}-kubeconfig"
        self.server = tenancy.cluster.environ["TETHER_PROXY_URL"]

    async def make(self, *namespaces: str) -> list[str]:
        """Make account, Tenant, rights, token, kubeconfig, namespaces, their copies, and only then the annotation."""
        tenancy = self.tenancy
        await tenancy.make(enabled=False)
        await self._rights()
        await tenancy.apply(self._token_secret())
        token = await self.token()
        await tenancy.apply(self._kubeconfig(tenancy.home, token))
        made = await self._namespaces(namespaces)
        for name in made:
            await tenancy.apply(self._kubeconfig(name, token))
        await self._replicate()
        return made

    async def enable(self) -> None:
        await self.tenancy.apply(
            self.tenancy.account(
                **{"capsule.addon.fluxcd/enabled": "true", "capsule.addon.fluxcd/kubeconfig-global": "true"}
            )
        )

    async def run(self) -> None:
        """Make its Deployment; no pod runs here."""
        labels = {"app.kubernetes.io/name": "capsule-addon-fluxcd"}
        container = {"name": "manager", "image": "capsule-addon-fluxcd"}
        body = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "addon", "labels": labels},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
            },
        }
        await self.tenancy.admin.create(api_path("apps", "v1", "deployments", namespace=self.tenancy.home), body)

    async def token(self) -> str:
        async def filled() -> str:
            secret = await self.tenancy.get("Secret", self.tenancy.home, f"{ACCOUNT}-token")
            data = (secret or {}).get("data") or {}
            return base64.b64decode(data.get("token", "")).decode()

        return str(await self.until(filled))

    def _token_secret(self) -> Object:
        metadata = {
            "name": f"{ACCOUNT}-token",
            "namespace": self.tenancy.home,
            "annotations": {"kubernetes.io/service-account.name": ACCOUNT},
        }
        kind = "kubernetes.io/service-account-token"
        return {"apiVersion": "v1", "kind": "Secret", "type": kind, "metadata": metadata}

    def _kubeconfig(self, namespace: str, token: str) -> Object:
        authority = base64.b64encode(Path(self.tenancy.cluster.environ["TETHER_PROXY_CA_FILE"]).read_bytes()).decode()
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "default", "cluster": {"server": self.server, "certificate-authority-data": authority}}
            ],
            "users": [{"name": "default", "user": {"token": token}}],
            "contexts": [
                {"name": "default", "context": {"cluster": "default", "user": "default", "namespace": "default"}}
            ],
            "current-context": "default",
        }
        data = {"kubeconfig": base64.b64encode(yaml.safe_dump(config).encode()).decode()}
        metadata = {"name": f"{ACCOUNT}-kubeconfig", "namespace": namespace}
        return {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata, "data": data}

    async def _rights(self) -> None:
        tenancy = self.tenancy
        subject = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": tenancy.home}
        rule = {"apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"], "resourceNames": [tenancy.user]}

        def ref(name: str) -> Object:
            return {"apiGroup": RBAC, "kind": "ClusterRole", "name": name}

        version = f"{RBAC}/v1"
        await tenancy.apply(
            {
                "apiVersion": version,
                "kind": "RoleBinding",
                "metadata": {"name": ACCOUNT, "namespace": tenancy.home},
                "roleRef": ref("cluster-admin"),
                "subjects": [subject],
            },
            {
                "apiVersion": version,
                "kind": "ClusterRole",
                "metadata": {"name": tenancy.impersonator},
                "rules": [rule],
            },
            {
                "apiVersion": version,
                "kind": "ClusterRoleBinding",
                "metadata": {"name": tenancy.impersonator},
                "roleRef": ref(tenancy.impersonator),
                "subjects": [subject],
            },
        )

    async def _namespaces(self, suffixes: tuple[str, ...]) -> list[str]:
        names = [f"{self.tenancy.name}-{suffix}" for suffix in suffixes]
        for name in names:
            body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
            async with self.tenancy.acting() as client:

                async def create(client: Any = client, body: Object = body) -> bool:
                    try:
                        await client.create(NAMESPACES, body)
                    except ForbiddenError:
                        return False  # Capsule's right to do so follows a little later
                    return True

                await self.until(create)
        return names

    async def _replicate(self) -> None:
        """Make the GlobalTenantResource; the embedded API has no such kind until it is defined."""
        tenancy = self.tenancy
        if tenancy.cluster.kind == "embedded":
            with contextlib.suppress(AlreadyExistsError):
                await tenancy.admin.create(DEFINITIONS, DEFINITION)
        secret = await tenancy.must("Secret", tenancy.home, f"{ACCOUNT}-kubeconfig")
        secret["metadata"].pop("managedFields", None)
        body = {
            "apiVersion": "capsule.clastix.io/v1beta2",
            "kind": "GlobalTenantResource",
            "metadata": {"name": self.resource, "labels": {"app.kubernetes.io/managed-by": "capsule-addon-fluxcd"}},
            "spec": {
                "tenantSelector": {"matchLabels": {"kubernetes.io/metadata.name": tenancy.name}},
                "resources": [{"rawItems": [secret]}],
            },
        }

        async def made() -> bool:
            try:
                await tenancy.admin.create(RESOURCES, body)
            except AlreadyExistsError:
                return True
            except KubeError as error:
                if error.status != 404:
                    raise
                return False  # the definition is not served yet
            return True

        await self.until(made)


DEFINITION: Object = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "globaltenantresources.capsule.clastix.io"},
    "spec": {
        "group": "capsule.clastix.io",
        "scope": "Cluster",
        "names": {
            "plural": "globaltenantresources",
            "singular": "globaltenantresource",
            "kind": "GlobalTenantResource",
            "listKind": "GlobalTenantResourceList",
        },
        "versions": [
            {
                "name": "v1beta2",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {"spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
                    }
                },
            }
        ],
    },
}


@pytest.fixture
def addon(tenancy: Tenancy, until: Any) -> Addon:
    return Addon(tenancy, until)


class Flux:
    """A client that does as Flux does: reads the Secret, asks with what is in it, again and again."""

    def __init__(self, tenancy: Tenancy, namespace: str) -> None:
        self.tenancy = tenancy
        self.namespace = namespace
        self.refused: list[str] = []
        self.tokens: list[str] = []
        self.asked = 0

    async def ask(self) -> None:
        secret = await self.tenancy.get("Secret", self.namespace, f"{ACCOUNT}-kubeconfig")
        if secret is None:
            self.refused.append(f"there is no kubeconfig in {self.namespace}")
            return
        content = base64.b64decode(secret["data"]["kubeconfig"])
        file = self.tenancy.cluster.folder / f"flux-{self.namespace}.kubeconfig"
        file.touch(mode=0o600)
        file.write_bytes(content)
        token = yaml.safe_load(content)["users"][0]["user"]["token"]
        if token not in self.tokens:
            self.tokens.append(token)
        async with self.tenancy.cluster.client(file) as client:
            for path in (NAMESPACES, api_path("", "v1", "configmaps", namespace=self.tenancy.home)):
                try:
                    await client.get(path)
                except KubeError as error:
                    self.refused.append(f"{path} with token {self.tokens.index(token)}: {error}")
                self.asked += 1


@asynccontextmanager
async def polling(tenancy: Tenancy, *namespaces: str) -> AsyncIterator[list[Flux]]:
    clients = [Flux(tenancy, namespace) for namespace in namespaces]
    async with AsyncExitStack() as stack:
        for client in clients:
            await stack.enter_async_context(repeating(client.ask, 0.0))
        yield clients


async def run(tenancy: Tenancy, *arguments: str) -> tuple[int, str]:
    admin = str(tenancy.cluster.folder / "admin.kubeconfig")
    done = await asyncio.to_thread(
        tenancy.cluster.tether, "migrate", f"{tenancy.home}/{ACCOUNT}", "--kubeconfig", admin, *arguments
    )
    return done.returncode, done.stdout + done.stderr


async def versions(tenancy: Tenancy, addon: Addon, *namespaces: str) -> dict[str, str]:
    found = {}
    for kind, namespace, name in (
        ("GlobalTenantResource", "", addon.resource),
        ("Namespace", "", tenancy.home),
        ("Secret", tenancy.home, f"{ACCOUNT}-token"),
        ("RoleBinding", tenancy.home, ACCOUNT),
        ("ClusterRole", "", tenancy.impersonator),
        *(("Secret", namespace, f"{ACCOUNT}-kubeconfig") for namespace in (tenancy.home, *namespaces)),
    ):
        found[f"{kind}/{namespace}/{name}"] = (await tenancy.must(kind, namespace, name))["metadata"]["uid"]
    return found


async def test_a_dry_run_says_every_step_and_changes_nothing(tenancy: Tenancy, addon: Addon) -> None:
    # Given an account of the addon, on a cluster where Tether runs
    (name,) = await addon.make("production")
    await addon.enable()
    before, token = await versions(tenancy, addon, name), await addon.token()

    # When the migration is only asked for
    code, said = await run(tenancy, "--dry-run")

    # Then it tells what it would do, without a token, and nothing changed
    assert code == 0, said
    for what in (
        f"GlobalTenantResource/{addon.resource}",
        f"Secret/{tenancy.home}/{ACCOUNT}-token-migration",
        f"Secret/{name}/{ACCOUNT}-kubeconfig",
        f"RoleBinding/{tenancy.home}/{ACCOUNT}",
        f"ClusterRole/{tenancy.impersonator}",
    ):
        assert what in said
    assert token not in said
    assert token.rsplit(".", 1)[1] not in said
    assert await versions(tenancy, addon, name) == before
    assert await addon.token() == token


async def test_flux_is_never_refused_while_the_addon_is_replaced(tenancy: Tenancy, addon: Addon, until: Any) -> None:
    # Given an account of the addon with two namespaces, and clients that use its kubeconfigs as Flux does
    names = await addon.make("production", "development")
    await addon.enable()
    await addon.run()
    old = await addon.token()
    async with polling(tenancy, tenancy.home, names[0]) as clients:

        async def all_asked() -> bool:
            return all(client.asked >= 4 for client in clients)

        await until(all_asked)

        # When it is migrated
        code, said = await run(tenancy, "--token-overlap", "2s")
        assert code == 0, said
        assert old not in said

        async def new_token() -> bool:
            return all(len(client.tokens) >= 3 for client in clients)

        await until(new_token)

    # Then no request was refused, and each client went from the old token over the second one to Tether's
    for client in clients:
        assert client.refused == []
        assert client.tokens[0] == old
        assert len(client.tokens) == 3

    # And the addon makes nothing anew
    deployment = await tenancy.admin.get(api_path("apps", "v1", "deployments", namespace=tenancy.home, name="addon"))
    assert msgspec.json.decode(deployment)["spec"]["replicas"] == 0

    # And everything of it is gone, or Tether's
    await tenancy.gone("GlobalTenantResource", "", addon.resource)
    await tenancy.gone("Secret", tenancy.home, f"{ACCOUNT}-token-migration")
    for kind, namespace, name in (
        ("RoleBinding", tenancy.home, ACCOUNT),
        ("ClusterRole", "", tenancy.impersonator),
        ("ClusterRoleBinding", "", tenancy.impersonator),
        ("Secret", tenancy.home, f"{ACCOUNT}-token"),
        *(("Secret", namespace, f"{ACCOUNT}-kubeconfig") for namespace in (tenancy.home, *names)),
    ):
        obj = await tenancy.must(kind, namespace, name)
        assert COMPONENT in obj["metadata"]["labels"], f"{kind}/{namespace}/{name}"
    secret = await tenancy.must("Secret", tenancy.home, f"{ACCOUNT}-token")
    assert secret["type"] == "Opaque"

    # And the token that never expired is refused
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": old}}
    answer = await tenancy.admin.create(api_path("authentication.k8s.io", "v1", "tokenreviews"), review)
    assert not msgspec.json.decode(answer)["status"].get("authenticated")

    # And a second run finds nothing to do
    code, said = await run(tenancy)
    assert (code, said.splitlines()[-1]) == (0, "nothing of capsule-addon-fluxcd is left")


async def test_a_client_that_polls_notices_a_token_that_is_gone(tenancy: Tenancy, addon: Addon, until: Any) -> None:
    # Given an account that nobody migrates
    await addon.make()
    async with polling(tenancy, tenancy.home) as (client,):

        async def asked() -> bool:
            return client.asked >= 4

        await until(asked)
        assert client.refused == []

        # When its token is removed at once, as a careless migration would
        await tenancy.admin.delete(api_path("", "v1", "secrets", namespace=tenancy.home, name=f"{ACCOUNT}-token"))

        # Then the client of the other tests would have seen it
        async def refused() -> bool:
            return any("Unauthorized" in text for text in client.refused)

        await until(refused)


async def test_a_migration_that_was_killed_goes_on_where_it_stopped(tenancy: Tenancy, addon: Addon) -> None:
    # Given a migration that is killed while it waits, with every kubeconfig on the second token
    (name,) = await addon.make("production")
    await addon.enable()
    async with polling(tenancy, tenancy.home, name) as clients:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "tether.cli",
            "migrate",
            f"{tenancy.home}/{ACCOUNT}",
            "--kubeconfig",
            str(tenancy.cluster.folder / "admin.kubeconfig"),
            "--token-overlap",
            "1h",
            env={**os.environ, **tenancy.cluster.environ},
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout
        async with asyncio.timeout(60):
            while "waits" not in (line := (await process.stdout.readline()).decode()):
                assert line, "it ended before it waited"
        process.kill()
        await process.communicate()
        assert await tenancy.must("Secret", tenancy.home, f"{ACCOUNT}-token-migration")

        # When it is run again
        code, said = await run(tenancy, "--token-overlap", "2s")
        assert code == 0, said

    # Then it finished, and nobody was refused
    assert [client.refused for client in clients] == [[], []]
    await tenancy.gone("Secret", tenancy.home, f"{ACCOUNT}-token-migration")


async def test_nothing_is_touched_while_tether_does_not_run(tenancy: Tenancy, addon: Addon) -> None:
    await addon.make()
    await addon.enable()
    before = await versions(tenancy, addon)
    code, said = await run(tenancy, "--nats-url", "nats://127.0.0.1:1", "--nats-connect-timeout", "1s")
    assert code == 1, said
    assert "no NATS server answers" in said
    assert await versions(tenancy, addon) == before


async def test_the_doctor_names_what_is_to_be_migrated_and_is_content_afterwards(
    tenancy: Tenancy, addon: Addon
) -> None:
    await addon.make()
    await addon.enable()

    async def told() -> str:
        config = str(tenancy.cluster.folder / "admin.kubeconfig")
        done = await asyncio.to_thread(tenancy.cluster.tether, "doctor", "--problems", "--kubeconfig", config)
        lines = done.stdout.splitlines()
        return "\n".join(line for line in lines if tenancy.name in line)

    before = await told()
    assert f"GlobalTenantResource/{addon.resource}" in before
    assert f"Secret/{tenancy.home}/{ACCOUNT}-token: is the addon's" in before
    assert f"tether migrate {tenancy.home}/{ACCOUNT}" in before
    code, said = await run(tenancy, "--token-overlap", "0s")
    assert code == 0, said
    assert await told() == ""


async def test_an_account_that_has_no_right_to_anything_is_not_migrated(tenancy: Tenancy) -> None:
    await tenancy.make(enabled=False)
    code, said = await run(tenancy)
    assert code == 1
    assert f"{tenancy.home}/{ACCOUNT} is not migrated" in said


async def test_a_token_that_somebody_else_still_holds_is_not_removed_until_he_lets_go(
    tenancy: Tenancy, addon: Addon
) -> None:
    # Given a Secret elsewhere with the addon's token, which no migration can know how to change
    (name,) = await addon.make("production")
    await addon.enable()
    old = await addon.token()
    data = {"password": base64.b64encode(old.encode()).decode()}
    metadata = {"name": "ci", "namespace": name}
    await tenancy.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data})

    # When it is migrated
    code, said = await run(tenancy, "--token-overlap", "0s")

    # Then the command names the holder and leaves the token alone
    assert code == 1, said
    assert f"Secret/{name}/ci" in said
    assert await addon.token() == old

    # And once the holder is gone, it goes on where it stopped
    await tenancy.admin.delete(api_path("", "v1", "secrets", namespace=name, name="ci"))
    code, said = await run(tenancy, "--token-overlap", "0s")
    assert code == 0, said
    secret = await tenancy.must("Secret", tenancy.home, f"{ACCOUNT}-token")
    assert secret["type"] == "Opaque"


async def test_the_home_namespace_leaves_the_tenant_when_capsule_allows_it(
    tenancy: Tenancy, addon: Addon, until: Any
) -> None:
    # Given a home namespace that the addon made a member of the Tenant
    await addon.make()
    await tenancy.join(tenancy)
    await addon.enable()

    # When it is asked to keep the home, it does not mention it
    _, said = await run(tenancy, "--dry-run", "--keep-home")
    assert f"Namespace/{tenancy.home}" not in said
    _, said = await run(tenancy, "--dry-run")
    assert f"Namespace/{tenancy.home}" in said

    # When somebody migrates whom Capsule does not count among its administrators
    code, said = await run(tenancy, "--token-overlap", "0s")
    namespace = await tenancy.must("Namespace", "", tenancy.home)

    # Then all but that is done, and the right that is lacking is named
    assert code == 1, said
    assert "spec.administrators" in said
    assert "kubernetes-admin" in said
    assert namespace["metadata"]["ownerReferences"]
    assert (await tenancy.must("Secret", tenancy.home, f"{ACCOUNT}-token"))["type"] == "Opaque"

    # And with that right the same command finishes
    async def finishes() -> bool:
        code, _ = await run(tenancy, "--token-overlap", "0s")
        return code == 0

    async with tenancy.as_administrator():
        await until(finishes)  # Capsule's webhook knows of its administrators a moment later
    namespace = await tenancy.must("Namespace", "", tenancy.home)
    assert not namespace["metadata"].get("ownerReferences")
    assert "capsule.clastix.io/tenant" not in namespace["metadata"]["labels"]

    # And the account still works at home
    async with tenancy.acting() as client:
        await client.get(api_path("", "v1", "configmaps", namespace=tenancy.home))
