"""Owners that do not want to go: what an account can do at home, where it is cluster-admin, to outlive its revocation.

Each case is the life of a hostile tenant: onboarded, tampering as its own account at the API server, revoked.
Afterwards nothing of what it was given works, as soon as with anybody else, and the victim beside it notices nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Final

from eventcore.kube import api_path
from tests.attack.cases import Attack, Case, Ground
from tests.attack.objects import GENERATIONS
from tests.attack.stage import NAMESPACES
from tests.attack.victim import KUBECONFIG, How, StuckError, Victim
from tests.behaviour.conftest import ACCOUNT, Tenancy, path
from tests.kubeapi import Client

Object = dict[str, Any]
Tamper = Callable[[Victim, Client], Awaitable[None]]
_RBAC: Final = "rbac.authorization.k8s.io"
_TOKEN: Final = f"{ACCOUNT}-token"
_OWN: Final = "capsule-tether.io/"
_MARKS: Final = (f"{_OWN}component", f"{_OWN}account", f"{_OWN}tenant", f"{_OWN}generation", f"{_OWN}account-uid")


async def done(request: Awaitable[Any]) -> None:
    """Do what is part of an attack: what the API server refuses is no fault of anybody's."""
    answer = await request
    if answer.status >= 500:
        raise RuntimeError(f"the API server failed: {answer.status} {answer.body}")


def _places(victim: Victim) -> dict[str, str]:
    """Return what it was given at home, by what it is."""
    home = victim.tenancy.home
    return {
        "its RoleBinding": path("RoleBinding", home, ACCOUNT),
        "its token Secret": path("Secret", home, _TOKEN),
        "its binding Secret": path("Secret", home, f"{_TOKEN}-1"),
        "its kubeconfig": path("Secret", home, KUBECONFIG),
    }


def patching(what: str, patch: Object) -> Tamper:
    """Patch one of the things that it was given."""

    async def tamper(victim: Victim, client: Client) -> None:
        await done(client.patch(_places(victim)[what], patch))

    return tamper


def deleting(what: str) -> Tamper:
    """Delete one of the things that it was given."""

    async def tamper(victim: Victim, client: Client) -> None:
        await done(client.delete(_places(victim)[what]))

    return tamper


def together(*tampers: Tamper) -> Tamper:
    """One thing after another."""

    async def tamper(victim: Victim, client: Client) -> None:
        for one in tampers:
            await one(victim, client)

    return tamper


def stripped(what: str) -> Tamper:
    """Take all of Tether's labels and annotations off."""
    empty = dict.fromkeys(_MARKS)
    return patching(what, {"metadata": {"labels": empty, "annotations": empty}})


def finalized(what: str) -> Tamper:
    """Put a finalizer on that nobody answers to."""
    return patching(what, {"metadata": {"finalizers": ["mallory.example/never"]}})


def annotated(what: str, **marks: str) -> Tamper:
    """Change marks of Tether's."""
    return patching(what, {"metadata": {"annotations": {_OWN + key.replace("_", "-"): v for key, v in marks.items()}}})


async def mint(victim: Victim, client: Client) -> None:
    """Mint a token for itself that is bound to nothing, and go on with it afterwards."""
    collection = f"{path('ServiceAccount', victim.tenancy.home, ACCOUNT)}/token"
    body = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"expirationSeconds": 86_400},
    }
    answer = await client.post(collection, body)
    if answer.status != 201:
        raise RuntimeError(f"no token: {answer.status} {answer.body}")
    victim.minted = answer.body["status"]["token"]


async def rebind(victim: Victim, client: Client) -> None:
    """Make its RoleBinding anew, without marks."""
    target = _places(victim)["its RoleBinding"]
    await done(client.delete(target))
    body = {
        "metadata": {"name": ACCOUNT},
        "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": victim.tenancy.home}],
    }
    await done(client.post(path("RoleBinding", victim.tenancy.home), body))


async def flood_at_home(victim: Victim, client: Client) -> None:
    """Make 300 Secrets that look like generations of its token."""
    home = victim.tenancy.home
    marks = {"labels": {f"{_OWN}component": "token"}}
    annotations = {f"{_OWN}account": f"{home}/{ACCOUNT}"}
    gate = asyncio.Semaphore(16)

    async def one(number: int) -> None:
        metadata = {"name": f"{_TOKEN}-{number}", **marks}
        metadata["annotations"] = annotations | {f"{_OWN}generation": str(number)}
        async with gate:
            await done(client.post(path("Secret", home), {"metadata": metadata}))

    await asyncio.gather(*(one(number) for number in range(100, 400)))


async def legacy(victim: Victim, client: Client) -> None:
    """Make a Secret that a control plane fills with a token for ever."""
    metadata = {"name": "kept", "annotations": {"kubernetes.io/service-account.name": ACCOUNT}}
    await done(
        client.post(
            path("Secret", victim.tenancy.home), {"metadata": metadata, "type": "kubernetes.io/service-account-token"}
        )
    )


async def foreign_owner(victim: Victim, client: Client) -> None:
    """Give what it has another owner, so that something else is to decide about its end."""
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "none", "uid": "00000000-0000-0000-0000-000000000000"}
    for target in _places(victim).values():
        await done(client.patch(target, {"metadata": {"ownerReferences": [reference]}}))


async def dying(victim: Victim, client: Client) -> None:
    """Have its RoleBinding deleted while a finalizer keeps it: it binds until it is gone."""
    await finalized("its RoleBinding")(victim, client)
    await deleting("its RoleBinding")(victim, client)


TAMPERS: Final[dict[str, Tamper]] = {
    **{f"takes the marks off {what}": stripped(what) for what in ("its RoleBinding", "its token Secret")},
    **{f"takes the marks off {what}": stripped(what) for what in ("its binding Secret", "its kubeconfig")},
    "takes the marks off everything": together(
        *(stripped(what) for what in ("its RoleBinding", "its token Secret", "its binding Secret", "its kubeconfig"))
    ),
    **{f"puts a finalizer on {what}": finalized(what) for what in ("its RoleBinding", "its token Secret")},
    **{f"puts a finalizer on {what}": finalized(what) for what in ("its binding Secret", "its kubeconfig")},
    "keeps its RoleBinding between life and death": dying,
    "takes the marks off its RoleBinding and puts a finalizer on": together(
        finalized("its RoleBinding"), stripped("its RoleBinding")
    ),
    "makes its token Secret immutable": patching("its token Secret", {"immutable": True}),
    "makes its binding Secret immutable": patching("its binding Secret", {"immutable": True}),
    "makes its kubeconfig immutable": patching("its kubeconfig", {"immutable": True}),
    "says that its token is of no tenant": annotated("its token Secret", tenant=""),
    "says that its token is of a path": annotated("its token Secret", tenant="../../namespaces"),
    "says that its token is of a question": annotated("its token Secret", tenant="a?watch=1#"),
    "says that its token is of 60,000 letters": annotated("its token Secret", tenant="a" * 60_000),
    "says that its token is another account's": annotated("its token Secret", account="kube-system/default"),
    "says that its token is nobody's": annotated("its token Secret", account=""),
    "says that its RoleBinding is another account's": annotated("its RoleBinding", account="kube-system/default"),
    "says that its kubeconfig is of no tenant": annotated("its kubeconfig", tenant=""),
    **{
        f"says that its token is of the generation {what}": annotated("its token Secret", generation=text)
        for what, text in GENERATIONS.items()
        if what in {"5,000 digits", "24 digits", "negative", "not a number", "empty"}
    },
    "says that its token expires in 5,000 digits": annotated("its token Secret", expires="9" * 5000, minted="9" * 5000),
    "says that its token is bound to nothing": annotated("its token Secret", binding="", binding_uid=""),
    "says that its token is bound to something else": annotated("its token Secret", binding="kube-root-ca.crt"),
    "empties its token Secret": patching("its token Secret", {"data": None}),
    "puts another token into its Secret": patching("its token Secret", {"stringData": {"token": "e30.e30.e30"}}),
    "deletes its token Secret": deleting("its token Secret"),
    "makes its RoleBinding anew without marks": rebind,
    "makes 300 Secrets like those of its token": flood_at_home,
    "makes a Secret for a token that never ends": legacy,
    "gives all it has another owner": foreign_owner,
}
MINTING: Final[dict[str, Tamper]] = {
    "mints a token for itself": mint,
    "mints a token and takes the marks off its RoleBinding": together(mint, stripped("its RoleBinding")),
    "mints a token and makes its RoleBinding anew": together(mint, rebind),
    "mints a token and puts a finalizer on its RoleBinding": together(mint, finalized("its RoleBinding")),
    "mints a token and says that its token is of no tenant": together(mint, annotated("its token Secret", tenant="")),
}
QUICK: Final = {
    "takes the marks off its RoleBinding",
    "puts a finalizer on its RoleBinding",
    "puts a finalizer on its binding Secret",
    "says that its token is of no tenant",
    "mints a token and takes the marks off its RoleBinding",
}


def leaving(tamper: Tamper, how: How) -> Attack:
    """Return the attack of an account that tampers, and is then revoked in this way."""

    async def attack(ground: Ground) -> AsyncIterator[None]:
        stage = ground.stage
        hostile = Victim(Tenancy(stage.cluster, stage.admin), tampers=True)
        ground.later(hostile.clean)
        try:
            async with hostile.onboarded() as door:
                await hostile.work(door)
                async with stage.cluster.wire(hostile.token, direct=True) as client:
                    await tamper(hostile, client)
                await hostile.revoke(how)
        except StuckError as error:
            ground.found.stopped.append(str(error))
        ground.found.stopped += hostile.found.stopped
        # Who tampers is stopped by nobody but itself; what it kept is a leak, and when it went is judged as ever.
        ground.found.leaked += [f"outlived its end: {line}" for line in (*hostile.found.late, *hostile.found.leaked)]
        ground.took |= hostile.revoked
        if hostile.minted:
            ground.found.leaked += [line async for line in _still_may(hostile, how)]
        yield

    return attack


async def _still_may(hostile: Victim, how: How) -> AsyncIterator[str]:
    """Yield what a token that it minted for itself still opens: the account is there, and its home is not its own.

    Without the annotation alone it is an owner still, and what the Tenant gives to its owners it has.
    """
    tenancy = hostile.tenancy
    of_owners = [NAMESPACES, path("Secret", hostile.namespace), api_path("capsule.clastix.io", "v1beta2", "tenants")]
    targets = [path("Secret", tenancy.home), *([] if how == "annotation" else of_owners)]
    for direct in (False, True):
        where = "the API server" if direct else "the proxy"
        async with tenancy.cluster.wire(hostile.minted, direct=direct) as client:
            for target in targets:
                answer = await client.get(target)
                items = answer.body.get("items", []) if isinstance(answer.body, dict) else []
                if answer.status == 200 and items:
                    yield f"its own token still lists {target} at {where}: {len(items)} items"


def cases() -> Iterator[Case]:
    """All cases of this room."""
    hows: tuple[How, ...] = ("annotation", "owner")
    for what, tamper in (TAMPERS | MINTING).items():
        for how in hows:
            yield Case(
                name=f"{what}; then the administrator takes away the {how}",
                section="B9" if what in MINTING else "B7",
                who="former",
                attack=leaving(tamper, how),
                quick=what in QUICK and how == "annotation",
                alone=tamper is flood_at_home,
            )
    for how in ("tenant", "account"):
        yield Case(
            name=f"takes the marks off everything; then the administrator takes away the {how}",
            section="B7",
            who="former",
            attack=leaving(TAMPERS["takes the marks off everything"], how),
        )
