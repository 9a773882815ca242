"""Objects that cannot be handled: every kind that an attacker may write, with hostile names, marks, words and sizes.

A poison object grants nothing and nobody else notices it. Most of them are written by the developer, who may make
Secrets, ConfigMaps and accounts in one namespace; bindings, roles and ProxySettings by the hostile tenant's owner.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from eventcore.kube import api_path
from tests.attack.cases import Attack, Case, Ground, Who
from tests.behaviour.conftest import ACCOUNT, path

if TYPE_CHECKING:
    from tests.kubeapi import Reply

Object = dict[str, Any]
COMPONENT: Final = "capsule-tether.io/component"
MARK: Final = "attack"
_AT_ONCE: Final = 16
_PROXY: Final = ("capsule.clastix.io", "v1beta1")
VICTIM: Final = "@victim@"
"""Replaced by the home of the victim whose life comes next."""

ACCOUNTS: Final[dict[str, str]] = {
    "of 6,000 letters": "x/" + "a" * 6000,
    "of 200,000 letters": "x/" + "a" * 200_000,
    "a home of 6,000 letters": "x" * 6000 + "/a",
    "of 5,000 dots": "x/" + "a." * 2500,
    "of 1,400 emoji": "x/" + "\U0001f600" * 1400,
    "without a slash": "x" * 3000,
    "of slashes": "/" * 5000,
    "empty": "",
    "blank": " ",
    "a slash alone": "/",
    "with wildcards of subjects": "*/>",
    "a subject of the grants": "$KV.access.tenant/x",
    "dots of subjects": "x/..a..b.",
    "a new line": "x/a\nPUB objects.x 0\r\n",
    "control characters": "x/\x1b[2J\x07\x00\x7f",
    "a lone surrogate's neighbour": "x/\ufffe\uffff\u202e",
    "a path": "../../api/v1/secrets/x",
    "percent": "x/%00%2f%0a%",
    "the victim's": f"{VICTIM}/{ACCOUNT}",
    "the victim's and a slash": f"{VICTIM}/{ACCOUNT}/",
    "the victim's and a blank": f"{VICTIM}/{ACCOUNT} ",
    "the victim's in capitals": f"{VICTIM}/{ACCOUNT.upper()}",
}
GENERATIONS: Final[dict[str, str]] = {
    "5,000 digits": "9" * 5000,
    "200,000 digits": "9" * 200_000,
    "24 digits": "9" * 24,
    "19 digits": "9" * 19,
    "negative": "-5",
    "zero": "0",
    "with an exponent": "1e9",
    "of another script": "\u0663\u0664",
    "with underscores": "1_000_000",
    "with blanks": "  7  ",
    "hexadecimal": "0x7f",
    "not a number": "nan",
    "empty": "",
}
SELECTORS: Final[dict[str, str]] = {
    "of commas that never end": "a in (" + ",  " * 30 + "!",
    "of 20,000 blanks": " " * 20_000 + "!",
    "of 200,000 brackets": "(" * 200_000,
    "of 36,000 terms": ",".join(["a=b"] * 36_000),
    "of 5,000 values": "a in (" + ",".join(f"v{number}" for number in range(5000)) + ")",
    "of negations": "!" * 100_000,
    "of tabs and an open bracket": "a in" + "\t" * 50_000 + "(",
    "of nested words": "a notin (b,(c,(d" * 5000,
}
NAMES: Final[dict[str, Callable[[str, int], str]]] = {
    "of 5,000 letters": lambda mark, number: f"{mark}-{number}-" + "a" * 5000,
    "of 1,500 dots": lambda mark, number: f"{mark}-{number}" + ".a" * 1500,
    "of 1,300 emoji": lambda mark, number: f"{mark}-{number}-" + "\U0001f600" * 1300,
    "with wildcards": lambda mark, number: f"{mark}.{number}.*.>",
    "with new lines": lambda mark, number: f"{mark}\r\nPUB objects.x {number}\r\n",
    "with control characters": lambda mark, number: f"{mark}\x1b]0;{number}\x07",
    "with colons and blanks": lambda mark, number: f"system: {mark} : {number}",
}


def marked(ground: Ground, name: str, marks: dict[str, str], *, component: str | None = "token") -> Object:
    """Return metadata with Tether's marks and the case's own label, by which all is removed again."""
    home = ground.stage.victim.home
    annotations = {f"capsule-tether.io/{key}": value.replace(VICTIM, home) for key, value in marks.items()}
    labels = {MARK: ground.mark} | ({} if component is None else {COMPONENT: component})
    return {"metadata": {"name": name, "labels": labels, "annotations": annotations}}


async def write(ground: Ground, who: Who, collection: str, bodies: list[Object]) -> None:
    """Write objects as an attacker at the API server; what it refuses is told beside the case."""
    client = await ground.stage.door(who, direct=True)
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(body: Object) -> Reply:
        async with gate:
            return await client.post(collection, body)

    answers = await asyncio.gather(*(one(body) for body in bodies))
    ground.later(lambda: ground.stage.admin.delete(f"{collection}?labelSelector={MARK}%3D{ground.mark}"))
    refused = [answer for answer in answers if answer.status != 201]
    if refused:
        ground.notes.append(f"{len(refused)} of {len(bodies)} are refused by the API server: {refused[0].status}")


def secrets(marks: dict[str, str], *, count: int = 1, component: str | None = "token", kind: str = "Secret") -> Attack:
    """Marked Secrets or ConfigMaps of the developer."""

    async def attack(ground: Ground) -> AsyncIterator[None]:
        bodies = [marked(ground, f"{ground.mark}-{number}", marks, component=component) for number in range(count)]
        await write(ground, "developer", path(kind, ground.stage.field), bodies)
        yield

    return attack


def of_secrets() -> Iterator[Case]:
    """Marks on Secrets: whose they claim to be, of which generation, of what kind."""
    for what, account in ACCOUNTS.items():
        for component in ("token", "kubeconfig"):
            yield Case(
                name=f"{component} Secret whose account is {what}",
                section="A1",
                who="developer",
                attack=secrets({"account": account}, component=component),
                quick=what in {"of 6,000 letters", "a new line"},
            )
    for what, text in GENERATIONS.items():
        yield Case(
            name=f"Secret of the victim's account, generation {what}",
            section="A6",
            who="developer",
            attack=secrets({"account": f"{VICTIM}/{ACCOUNT}", "generation": text}),
            quick=what in {"5,000 digits", "24 digits"},
        )
    for what, text in ACCOUNTS.items():
        yield Case(
            name=f"Secret of the victim's account, tenant {what}",
            section="B8",
            who="developer",
            attack=secrets({"account": f"{VICTIM}/{ACCOUNT}", "tenant": text}),
        )
    for key in ("expires", "minted", "retire", "written", "rotate", "binding", "account-uid"):
        yield Case(
            name=f"Secret of the victim's account, {key} of 5,000 digits",
            section="A6",
            who="developer",
            attack=secrets({"account": f"{VICTIM}/{ACCOUNT}", key: "9" * 5000}),
        )
    for component in ("ca", "", "kubeconfig.token", "x" * 63):
        yield Case(
            name=f"Secret with component {component[:20]!r}",
            section="A1",
            who="developer",
            attack=secrets({"account": f"{VICTIM}/{ACCOUNT}", "tenant": VICTIM}, component=component),
        )
    yield Case(
        name="400 Secrets that claim to be the victim's tokens",
        section="B8",
        who="developer",
        attack=secrets({"account": f"{VICTIM}/{ACCOUNT}", "generation": "3"}, count=400),
        quick=True,
        alone=True,
    )
    yield Case(
        name="300 Secrets of as many accounts that are nowhere",
        section="A1",
        who="developer",
        attack=_of_nobody,
        alone=True,
    )
    yield Case(
        name="ConfigMap whose account is of 6,000 letters",
        section="A1",
        who="developer",
        attack=secrets({"account": "x/" + "a" * 6000}, component="kubeconfig", kind="ConfigMap"),
    )


async def _of_nobody(ground: Ground) -> AsyncIterator[None]:
    bodies = [
        marked(ground, f"{ground.mark}-{number}", {"account": f"nowhere-{number}/{'a' * 200}", "generation": "1"})
        for number in range(300)
    ]
    await write(ground, "developer", path("Secret", ground.stage.field), bodies)
    yield


def of_names() -> Iterator[Case]:
    """Objects of RBAC, whose names may be anything, and accounts."""
    for kind in ("RoleBinding", "Role"):
        for what, make in NAMES.items():
            yield Case(
                name=f"100 {kind}s with names {what}",
                section="A2",
                who="mallory",
                attack=_named(kind, make),
                alone=True,
                quick=kind == "RoleBinding" and what == "of 5,000 letters",
            )
    for what, text in SELECTORS.items():
        yield Case(
            name=f"its own enabled account asks for kubeconfigs by a selector {what}",
            section="A3",
            who="mallory",
            attack=_choosing("kubeconfig-namespaces", text),
            alone=True,
            quick=what == "of commas that never end",
        )
    for key in ("proxy-url", "kubeconfig-configmap", "token-mode", "rotate", "cluster-resources"):
        yield Case(
            name=f"its own enabled account carries {key} of 60,000 letters",
            section="A3",
            who="mallory",
            attack=_choosing(key, "https://" + "a" * 60_000),
            alone=True,
        )
    yield Case(
        name="200 accounts enabled by the developer", section="A3", who="developer", attack=_accounts, alone=True
    )


def _named(kind: str, make: Callable[[str, int], str]) -> Attack:
    async def attack(ground: Ground) -> AsyncIterator[None]:
        role: Object = {"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}}
        subject = {"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "somebody" * 400}
        bodies = [
            marked(ground, make(ground.mark, number), {"account": f"{VICTIM}/{ACCOUNT}"})
            | (role | {"subjects": [subject]} if kind == "RoleBinding" else {"rules": []})
            for number in range(100)
        ]
        await write(ground, "mallory", path(kind, ground.stage.field), bodies)
        yield

    return attack


def _choosing(key: str, text: str) -> Attack:
    async def attack(ground: Ground) -> AsyncIterator[None]:
        stage = ground.stage
        target = path("ServiceAccount", stage.mallory.home, ACCOUNT)
        clear = {"metadata": {"annotations": {f"capsule-tether.io/{key}": None}}}
        ground.later(lambda: stage.admin.merge_patch(target, clear))
        client = await stage.door("mallory", direct=True)
        answer = await client.patch(target, {"metadata": {"annotations": {f"capsule-tether.io/{key}": text}}})
        if answer.status != 200:
            ground.notes.append(f"refused by the API server: {answer.status}")
        yield

    return attack


async def _accounts(ground: Ground) -> AsyncIterator[None]:
    bodies = [marked(ground, f"{ground.mark}-{number}", {}) for number in range(200)]
    for body in bodies:
        body["metadata"]["annotations"] = {"capsule.addon.fluxcd/enabled": "true"}
    await write(ground, "developer", path("ServiceAccount", ground.stage.field), bodies)
    yield


def of_settings() -> Iterator[Case]:
    """ProxySettings that are too large, too many or mean nothing."""
    everything: Object = {"apiGroups": ["*"], "resources": ["*"], "selector": {"matchLabels": {"a": "b"}}}
    shapes: dict[str, Object] = {
        "a name of 6,000 letters": {"kind": "User", "name": "a" * 6000},
        "a name of 200,000 letters": {"kind": "User", "name": "a" * 200_000},
        "a name with new lines and wildcards": {"kind": "User", "name": "a\r\nPUB objects.> 0\r\n*.>"},
        "an account's name that is none": {"kind": "ServiceAccount", "name": "system:serviceaccount:" + ":" * 5000},
        "2,000 resources": {"kind": "User", "name": "a", "clusterResources": [everything] * 2000},
        "5,000 expressions": {
            "kind": "User",
            "name": "a",
            "clusterResources": [
                everything
                | {"selector": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}] * 5000}}
            ],
        },
    }
    for what, subject in shapes.items():
        yield Case(
            name=f"ProxySetting whose subject has {what}",
            section="A1",
            who="mallory",
            attack=_settings(lambda subject=subject: [subject]),  # type: ignore[misc]  # bound at once
            alone=True,
            quick=what == "a name of 6,000 letters",
        )
    yield Case(
        name="ProxySetting of 5,000 subjects",
        section="A5",
        who="mallory",
        attack=_settings(lambda: [{"kind": "User", "name": f"user-{number}"} for number in range(5000)]),
        alone=True,
    )


def _settings(subjects: Callable[[], list[Object]]) -> Attack:
    async def attack(ground: Ground) -> AsyncIterator[None]:
        bodies = [
            {
                "apiVersion": "/".join(_PROXY),
                "kind": "ProxySetting",
                "metadata": {"name": f"{ground.mark}-{number}", "labels": {MARK: ground.mark}},
                "spec": {"subjects": subjects()},
            }
            for number in range(3)
        ]
        await write(ground, "mallory", api_path(*_PROXY, "proxysettings", namespace=ground.stage.field), bodies)
        yield

    return attack


def cases() -> Iterator[Case]:
    """All cases of this room."""
    yield from of_secrets()
    yield from of_names()
    yield from of_settings()
