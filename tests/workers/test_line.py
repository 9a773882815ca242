"""The guide's example through watcher, router and workers, on a real nats-server and the embedded API."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventcore import topology
from eventcore.grants import ConfigGrant, SubjectGrant
from eventcore.keys import key
from workers.main import replay

if TYPE_CHECKING:
    from tests.workers.conftest import Line

HOME, NAME = "oil-system", "gitops-reconciler"
ACCOUNT = f"{HOME}/{NAME}"
USER = f"system:serviceaccount:{HOME}:{NAME}"
KUBECONFIG = f"{NAME}-kubeconfig"
TOKEN = f"{NAME}-token"
IMPERSONATOR = f"{HOME}-{NAME}-impersonator"
ENABLED = "capsule.addon.fluxcd_enabled"


async def nothing_is_left(line: Line, token: str) -> None:
    """Wait until the account has nothing any more, at home, in the tenant, in the cluster, in the bucket."""
    for kind, namespace, name in (
        ("RoleBinding", HOME, NAME),
        ("ClusterRole", "", IMPERSONATOR),
        ("ClusterRoleBinding", "", IMPERSONATOR),
        ("Secret", HOME, TOKEN),
        ("Secret", HOME, f"{TOKEN}-1"),
        ("Secret", HOME, KUBECONFIG),
        ("Secret", "oil-production", KUBECONFIG),
    ):
        await line.until_gone(kind, namespace, name)

    async def no_grant() -> bool:
        return await line.grant("account", HOME, NAME) is None

    await line.until(no_grant, "the account's grant is gone")
    assert not await line.accepts(token)


async def test_the_example_of_the_guide_gets_rights_a_token_and_a_kubeconfig_in_every_namespace(line: Line) -> None:
    # given the line runs; when the files of the guide are applied, and the tenant makes a namespace
    async with line.everything():
        await line.settle()

        # then the rights are those of the guide
        binding = await line.must("RoleBinding", HOME, NAME)
        assert binding["roleRef"]["name"] == "cluster-admin"
        assert [(s["kind"], s["namespace"], s["name"]) for s in binding["subjects"]] == [("ServiceAccount", HOME, NAME)]
        role = await line.must("ClusterRole", "", IMPERSONATOR)
        assert role["rules"] == [
            {"apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"], "resourceNames": [USER]}
        ]
        # and the kubeconfig in the tenant's namespace works there, with the token of home
        config = await line.kubeconfig("oil-production")
        assert config is not None
        assert config["contexts"][0]["context"]["namespace"] == "oil-production"
        assert config["clusters"][0]["cluster"]["server"] == line.settings.proxy_url
        token = await line.token("oil-production")
        assert token == await line.token(HOME)
        assert await line.accepts(token)
        secret = await line.must("Secret", "oil-production", KUBECONFIG)
        assert secret["data"]["value"] == secret["data"]["kubeconfig"]
        assert secret["metadata"]["labels"]["reconcile.fluxcd.io/watch"] == "Enabled"
        # and the proxy's grants say who may see what
        await line.until(lambda: line.grant("subject", "ServiceAccount", USER), "the grant of the subject")
        assert await line.grant("subject", "ServiceAccount", USER) == SubjectGrant(
            subject_kind="ServiceAccount", name=USER, tenants=("oil",)
        )
        config_grant = await line.grant("config")
        assert isinstance(config_grant, ConfigGrant)
        assert f"system:serviceaccounts:{HOME}" in {user.name for user in config_grant.users}
        # and every step is in the audit, with the event that caused it
        for component, action, part in (
            ("rbac", "granted", f"RoleBinding/{HOME}/{NAME}"),
            ("rbac", "granted", f"ClusterRole/{IMPERSONATOR}"),
            ("rbac", "granted", f"ClusterRoleBinding/{IMPERSONATOR}"),
            ("token", "minted", f"Secret/{HOME}/{TOKEN}"),
            ("kubeconfig", "distributed", f"Secret/{HOME}/{KUBECONFIG}"),
            ("kubeconfig", "distributed", f"Secret/oil-production/{KUBECONFIG}"),
            ("access", "granted", "access/tenant/oil"),
        ):
            record = await line.until_recorded(component, action, part)
            assert record.cause
        # and the home namespace is left as it was
        home = await line.must("Namespace", "", HOME)
        assert "ownerReferences" not in home["metadata"]
        assert "capsule.clastix.io/tenant" not in home["metadata"]["labels"]


async def test_no_secret_is_in_the_files_of_nats(line: Line) -> None:
    # given everything of the example was made, rotated once, and NATS has written it down
    async with line.everything():
        await line.settle()
        secrets = [await line.token(HOME)]
        await line.patch("Secret", HOME, TOKEN, {"metadata": {"annotations": {"capsule-tether.io/rotate": "1"}}})
        await line.until_recorded("token", "rotated", TOKEN)

        async def rewritten() -> bool:
            return await line.token("oil-production") not in {"", *secrets}

        await line.until(rewritten, "the second token in the tenant's namespace")
        secrets.append(await line.token("oil-production"))
    await line.nats.stop()

    # when its files are searched
    files = [path for path in line.nats.folder.rglob("*") if path.is_file()]
    found = {path.name for path in files for secret in secrets if secret.encode() in path.read_bytes()}

    # then no token and no part of one is there
    assert any(b"gitops-reconciler-token" in path.read_bytes() for path in files)
    assert all(secrets)
    assert found == set()
    signatures = [secret.rsplit(".", 1)[1].encode() for secret in secrets]
    assert not [path for path in files for part in signatures if part in path.read_bytes()]


async def test_everything_goes_when_the_annotation_is_taken_off(line: Line) -> None:
    # given the example runs
    async with line.everything():
        await line.settle()
        token = await line.token(HOME)

        # when the account is not enabled any more
        await line.annotate(ACCOUNT, **{ENABLED: None})

        # then nothing of it is left, and the grant went before the token
        await nothing_is_left(line, token)
        binding = await line.until_recorded("token", "revoked", f"{TOKEN}-1")
        revoked = [record.object for record in line.audit if record.action == "revoked"]
        assert revoked.index(f"access/account/{ACCOUNT}") < revoked.index(binding.object)


async def test_everything_goes_when_the_account_is_no_longer_an_owner(line: Line) -> None:
    async with line.everything():
        # given the example runs
        await line.settle()
        token = await line.token(HOME)

        # when the Tenant gets another owner
        await line.patch("Tenant", "", "oil", {"spec": {"owners": [{"kind": "User", "name": "dana"}]}})

        # then nothing of the account is left, and only the new owner has the tenant
        await nothing_is_left(line, token)

        async def handed_over() -> bool:
            return await line.grant("subject", "ServiceAccount", USER) is None and bool(
                await line.grant("subject", "User", "dana")
            )

        await line.until(handed_over, "the grants of the subjects")


async def test_everything_goes_when_the_tenant_is_deleted(line: Line) -> None:
    async with line.everything():
        # given the example runs
        await line.settle()
        token = await line.token(HOME)

        # when its Tenant is deleted
        await line.delete("Tenant", "", "oil")

        # then nothing of the account is left, and the home namespace still stands
        await nothing_is_left(line, token)

        async def no_grant() -> bool:
            return await line.grant("tenant", "oil") is None

        await line.until(no_grant, "the grant of the tenant is gone")
        assert await line.get("Namespace", "", HOME)


async def test_everything_goes_when_the_account_is_deleted(line: Line) -> None:
    async with line.everything():
        await line.settle()
        token = await line.token(HOME)

        await line.delete("ServiceAccount", HOME, NAME)

        await nothing_is_left(line, token)


async def test_an_account_that_was_made_again_gets_a_token_of_its_own(line: Line) -> None:
    async with line.everything():
        # given the example runs
        await line.settle()
        old = await line.token(HOME)
        account = await line.must("ServiceAccount", HOME, NAME)

        # when the account is deleted and made again under the same name
        await line.delete("ServiceAccount", HOME, NAME)
        await line.apply_files("oil.yaml")

        # then every kubeconfig holds a token of the new account
        async def replaced() -> bool:
            tokens = {await line.token(HOME), await line.token("oil-production")}
            return len(tokens) == 1 and not tokens & {"", old} and await line.accepts(tokens.pop())

        await line.until(replaced, "the new token in every kubeconfig")
        fresh = await line.must("ServiceAccount", HOME, NAME)
        assert fresh["metadata"]["uid"] != account["metadata"]["uid"]
        assert not await line.accepts(old)


async def test_a_replay_brings_wiped_grants_back_without_touching_the_cluster(line: Line) -> None:
    async with line.everything():
        # given the example runs, and its grants were wiped by hand
        await line.settle()
        await line.until(lambda: line.grant("subject", "ServiceAccount", USER), "the grant of the subject")
        keys = [("tenant", "oil"), ("account", HOME, NAME), ("subject", "ServiceAccount", USER), ("config",)]
        before = {parts: await line.grant(*parts) for parts in keys}
        for parts in keys:
            entry = await line.bus.kv_get(key(*parts))
            assert entry is not None
            await line.bus.kv_delete(key(*parts), revision=entry.revision)
        version = line.api.store.version

        # when everything is replayed
        assert await replay(line.bus) > len(keys)

        # then the grants are as they were, and nothing was written to the cluster
        async def back() -> bool:
            return {parts: await line.grant(*parts) for parts in keys} == before

        await line.until(back, "the grants")
        assert line.api.store.version == version


async def test_the_loss_of_objects_takes_nothing_from_anybody(line: Line) -> None:
    async with line.everything():
        # given the example runs
        await line.settle()
        token = await line.token("oil-production")
        records = len(line.audit)

        # when the stream is lost and made anew, and filled by the watcher
        await line.bus.js.delete_stream(topology.OBJECTS)
        await topology.apply(line.bus, line.settings)
        await line.make_namespace(HOME, "oil-development")
        await line.until_there("Secret", "oil-development", KUBECONFIG)
        await line.until_granted("oil", "oil-development", "oil-production")

        # then the token is the same everywhere, and nothing in the cluster was taken or replaced meanwhile
        assert await line.token("oil-development") == token
        assert await line.accepts(token)
        cluster = [record for record in line.audit[records:] if record.component != "access"]
        assert {record.action for record in cluster} <= {"distributed"}
