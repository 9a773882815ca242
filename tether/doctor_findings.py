"""What is right and what is wrong with the parts of a cluster that all tenants share. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from eventcore.bus_limits import NEEDED_PAYLOAD
from eventcore.clock import TOLERANCE, apart
from eventcore.objects import CAPSULE_GROUP
from tether.doctor_snapshot import SEVERITIES, Finding
from tether.doctor_tenants import tenant_findings
from tether.former_owners import former_findings
from workers.entitlement import REQUIRED_KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from tether.cluster_lists import Deployment
    from tether.doctor_snapshot import Bus, Severity, Snapshot

CAPSULE: Final = f"{CAPSULE_GROUP}/v1beta2"
FLUX: Final = {
    "kustomize.toolkit.fluxcd.io": ("v1", "kustomizations"),
    "source.toolkit.fluxcd.io": ("v1", "gitrepositories"),
    "helm.toolkit.fluxcd.io": ("v2", "helmreleases"),
}
"""Groups of Flux: the version that is current, and a kind of it."""
NEARLY_FULL: Final = 0.8
"""Share of the size of AUDIT from which it is told."""
OLD: Final = 60.0
"""Seconds after which nobody watches any more: marks come every few seconds."""
SOON_DAYS: Final = 14
EXIT_CODES: Final[dict[Severity, int]] = {"ok": 0, "note": 0, "warning": 3, "error": 4}
"""1 and 2 are those of every command: could not look, wrong usage."""

_CROSS: Final = "--no-cross-namespace-refs"
_REMOTE: Final = "--no-remote-bases"
_DEFAULT: Final = "--default-service-account"
LOCKDOWN: Final = {
    "kustomize-controller": (_CROSS, _REMOTE, _DEFAULT),
    "helm-controller": (_CROSS, _DEFAULT),
    "notification-controller": (_CROSS,),
    "image-reflector-controller": (_CROSS,),
    "image-automation-controller": (_CROSS,),
}
_DANGER: Final = {
    _CROSS: "its objects may refer to other tenants' sources and secrets",
    _REMOTE: "it builds from any URL that a tenant names",
    _DEFAULT: "an object that names no account is applied with the controller's own rights",
}


def findings(snapshot: Snapshot) -> list[Finding]:
    """Return every finding, in the order in which one mends them."""
    return [
        *_unreadable(snapshot),
        *_kinds(snapshot),
        *_configuration(snapshot),
        *_bus(snapshot),
        *_clocks(snapshot),
        *_rights(snapshot),
        *_flux(snapshot),
        *_authority(snapshot),
        *tenant_findings(snapshot),
        *former_findings(snapshot.former),
        *_addon(snapshot),
        *_leftovers(snapshot),
    ]


def worst(found: Iterable[Finding]) -> Severity:
    """Return the highest severity, ``ok`` for none."""
    return max((finding.severity for finding in found), key=SEVERITIES.index, default="ok")


def _finding(severity: Severity, check: str, about: str, message: str, remedy: str = "") -> Finding:
    return Finding(severity=severity, check=check, object=about, message=message, remedy=remedy)


def _unreadable(snapshot: Snapshot) -> Iterator[Finding]:
    yield _finding("ok", "cluster", snapshot.server, f"answers, Kubernetes {snapshot.version}")
    for what, why in sorted(snapshot.unreadable.items()):
        yield _finding(
            "warning", "cluster", what, f"cannot be read, so it is not judged: {why}", "run this as a cluster-admin"
        )


def _kinds(snapshot: Snapshot) -> Iterator[Finding]:
    served = snapshot.served.get(CAPSULE, ())
    for plural in ("tenants", "capsuleconfigurations"):
        name = f"{plural}.{CAPSULE_GROUP}"
        if plural in served:
            yield _finding("ok", "kinds", name, "is served as v1beta2")
        else:
            yield _finding("error", "kinds", name, "v1beta2 is not served", "install Capsule 0.7 or later")
    if "tenantowners" in served:
        yield _finding("ok", "kinds", f"tenantowners.{CAPSULE_GROUP}", "is served as v1beta2")
    elif served:
        text = "is not served: owners come from spec.owners alone (Capsule before 0.12)"
        yield _finding("note", "kinds", f"tenantowners.{CAPSULE_GROUP}", text)
    groups = {name.partition("/")[0] for name in snapshot.served}
    if not groups & set(FLUX):
        yield _finding("note", "kinds", "Flux", "is not installed, so no tenant can reconcile yet", "install Flux 2")
        return
    for group, (version, plural) in FLUX.items():
        if plural in snapshot.served.get(f"{group}/{version}", ()):
            yield _finding("ok", "kinds", f"{plural}.{group}", f"is served as {version}")
        elif group in groups:
            text = f"is not served as {version}"
            yield _finding("warning", "kinds", f"{plural}.{group}", text, "upgrade Flux to 2.3 or later")


def _configuration(snapshot: Snapshot) -> Iterator[Finding]:
    if "capsuleconfigurations" not in snapshot.served.get(CAPSULE, ()):
        return
    name = f"CapsuleConfiguration/{snapshot.configuration}"
    names = {configuration.metadata.name for configuration in snapshot.tenancy.configurations}
    if snapshot.configuration in names:
        yield _finding("ok", "configuration", name, "is there")
    else:
        others = f"; there is {', '.join(sorted(names))}" if names else ""
        remedy = "create it, or set --capsule-configuration-name as Capsule's own --configuration-name"
        yield _finding("error", "configuration", name, f"does not exist{others}", remedy)


def _bus(snapshot: Snapshot) -> Iterator[Finding]:
    bus = snapshot.bus
    if bus is None:
        return
    if bus.error:
        yield _finding("error", "bus", bus.url, bus.error, "start NATS, or set --nats-url")
        return
    for difference in bus.differences:
        severity: Severity = "error" if difference.endswith("is missing") else "warning"
        yield _finding(severity, "bus", bus.url, difference, "run `tether topology apply`")
    if not bus.differences:
        yield _finding("ok", "bus", bus.url, "answers, and its streams and consumers are as they should be")
    if bus.max_payload < NEEDED_PAYLOAD:
        text = f"takes messages of {bus.max_payload} bytes at most: an object that is larger grants nothing"
        yield _finding("error", "bus", bus.url, text, f"set max_payload to 4 MiB, at least to {NEEDED_PAYLOAD} bytes")
    for one in bus.set_aside:
        what, _, remedy = one.message.partition(": ")
        yield _finding("error", "set-aside", one.object, f"{what}, so it grants nothing", remedy)
    yield from _processes(bus)


def _clocks(snapshot: Snapshot) -> Iterator[Finding]:
    skews = {"this machine": snapshot.skew}
    if snapshot.bus is not None and not snapshot.bus.error:
        skews["NATS"] = snapshot.bus.skew
    wrong = {whose: skew for whose, skew in skews.items() if abs(skew) > TOLERANCE}
    for whose, skew in wrong.items():
        text = f"is {apart(skew)} that of the API server"
        yield _finding("warning", "clocks", f"clock of {whose}", text, "set it by NTP; Tether itself corrects for it")
    if not wrong:
        yield _finding("ok", "clocks", ", ".join(skews), "go with the API server's")


def _processes(bus: Bus) -> Iterator[Finding]:
    for kind in sorted({*REQUIRED_KINDS, *bus.ages}):
        age = bus.ages.get(kind)
        if age is None:
            text = "no watcher has ever looked at it, so nothing is reconciled"
            yield _finding("error", "watchers", kind, text, "start `tether watch`")
        elif age > OLD:
            text = f"no watcher has looked at it for {age:.0f} s"
            yield _finding("error", "watchers", kind, text, "look at the log of `tether watch`, or start it")
    if bus.ages and all(bus.ages.get(kind, OLD + 1) <= OLD for kind in {*REQUIRED_KINDS, *bus.ages}):
        yield _finding("ok", "watchers", f"{len(bus.ages)} kinds", "are watched")
    for worker in bus.idle:
        yield _finding("error", "workers", worker, "nobody runs it", f"start `tether work {worker}`")
    if not bus.idle and not bus.differences:
        yield _finding("ok", "workers", "rbac, token, kubeconfig, access", "run")
    if bus.dead_letters:
        text = f"holds {bus.dead_letters} requests that could not be handled"
        yield _finding("warning", "workers", "stream DLQ", text, "`tether status` says which and why")
    if bus.audit_fill >= NEARLY_FULL:
        text = f"holds {bus.audit_fill:.0%} of its size: its oldest records go before --audit-max-age is over"
        todo = "raise --audit-max-bytes and run `tether topology apply`, or keep a copy of `tether audit tail --json`"
        yield _finding("warning", "bus", "stream AUDIT", text, todo)


def _rights(snapshot: Snapshot) -> Iterator[Finding]:
    for account in snapshot.absent:
        yield _finding("error", "rights", account, "does not exist", "kubectl apply -f deploy/rbac")
    for account in sorted({right.account for right in snapshot.rights}):
        rights = [right for right in snapshot.rights if right.account == account]
        lacking = [right.right for right in rights if not right.allowed]
        if lacking:
            remedy = "kubectl apply -f deploy/rbac, and look whether something took it away again"
            yield _finding("error", "rights", account, f"may not {', '.join(lacking)}", remedy)
        else:
            yield _finding("ok", "rights", account, f"has its {len(rights)} rights")


def flag(deployment: Deployment, name: str) -> str | None:
    """Return the value of a flag of a controller, "" for one without a value, None when it is not set."""
    for container in deployment.spec.template.spec.containers:
        words = [*container.command, *container.args]
        for at, word in enumerate(words):
            if word == name:
                following = words[at + 1] if at + 1 < len(words) else ""
                return "" if following.startswith("-") else following
            if word.startswith(f"{name}="):
                return word.partition("=")[2]
    return None


def _flux(snapshot: Snapshot) -> Iterator[Finding]:
    names = {state.account.name for state in snapshot.accounts}
    for deployment in snapshot.flux:
        wanted = LOCKDOWN.get(deployment.metadata.name)
        if wanted is None:
            continue
        about = f"Deployment/{deployment.metadata.namespace}/{deployment.metadata.name}"
        lacking = [name for name in wanted if not _is_set(deployment, name)]
        for name in lacking:
            example = f"{name}=gitops-reconciler" if name == _DEFAULT else f"{name}=true"
            remedy = f"add {example} to the arguments of its container"
            yield _finding("error", "lockdown", about, f"runs without {name}: {_DANGER[name]}", remedy)
        if not lacking:
            yield _finding("ok", "lockdown", about, f"runs with {', '.join(wanted)}")
        default = flag(deployment, _DEFAULT) if _DEFAULT in wanted else None
        if default and names and default not in names:
            text = f"impersonates {default} by default, which is the name of no enabled account"
            remedy = f"name it in the Flux objects' spec.serviceAccountName, or set {_DEFAULT}={min(names)}"
            yield _finding("note", "lockdown", about, text, remedy)


def _is_set(deployment: Deployment, name: str) -> bool:
    value = flag(deployment, name)
    if name == _DEFAULT:
        return bool(value)
    # A flag of Go that is yes or no takes its value after "=" alone: "--flag false" sets it.
    words = [word for c in deployment.spec.template.spec.containers for word in (*c.command, *c.args)]
    return name in words or (value is not None and value.lower() in {"true", "t", "1"})


def _authority(snapshot: Snapshot) -> Iterator[Finding]:
    authority = snapshot.authority
    if authority is None:
        return
    about = authority.source
    if authority.problem:
        remedy = "put the proxy's CA there, or name another place with the settings --proxy-ca-*"
        yield _finding("error", "authority", about, authority.problem, remedy)
    else:
        yield from expiry(snapshot.time, authority.expires, "authority", about, "renew the proxy's CA")


def expiry(time: datetime, expires: datetime | None, check: str, about: str, remedy: str) -> Iterator[Finding]:
    """Judge when something ends."""
    if expires is None:
        return
    day = f"{expires:%Y-%m-%d %H:%M}"
    if expires <= time:
        yield _finding("error", check, about, f"expired on {day}", remedy)
    elif (expires - time).days < SOON_DAYS:
        yield _finding("warning", check, about, f"expires on {day}", remedy)
    else:
        yield _finding("ok", check, about, f"is good until {day}")


def _addon(snapshot: Snapshot) -> Iterator[Finding]:
    survey = snapshot.survey
    for namespace, name in survey.addons:
        text = "capsule-addon-fluxcd runs beside Tether, and both make the same objects"
        yield _finding("error", "addon", f"Deployment/{namespace}/{name}", text, "run `tether migrate`")
    for name in survey.orphans:
        text = "holds a token in clear, of an account that is not enabled or owns no Tenant"
        about = f"GlobalTenantResource/{name}"
        yield _finding("error", "addon", about, text, f"kubectl delete globaltenantresource {name}")
    clean = True
    for found in survey.found:
        migrate = f"run `tether migrate {found.account}`"
        for resource in found.resources:
            clean = False
            about = f"GlobalTenantResource/{resource.name}"
            text = f"holds the token of {found.account} in clear, and overwrites the kubeconfigs that Tether makes"
            yield _finding("error", "addon", about, text, migrate)
        if found.token == "static":  # noqa: S105 -- a state, not a token
            clean = False
            text = "is the addon's: its token never expires, and Tether cannot make its own in this place"
            yield _finding("error", "addon", f"Secret/{found.account}-token", text, migrate)
        if found.bridge != "absent":
            clean = False
            text = "a migration was not finished, and left a second token"
            yield _finding("warning", "addon", str(found.account), text, migrate)
        if found.rights:
            clean = False
            names = ", ".join(map(str, found.rights))
            text = f"was not made by Tether ({names}), so it stays when the account is disabled"
            remedy = f"from Git that is right; from the addon: {migrate}"
            yield _finding("note", "addon", str(found.account), text, remedy)
    if clean and not survey.addons and not survey.orphans:
        yield _finding("ok", "addon", "capsule-addon-fluxcd", "left nothing in the way")


def _leftovers(snapshot: Snapshot) -> Iterator[Finding]:
    for one in snapshot.leftovers:
        about = f"{one.kind}/{one.namespace}/{one.name}"
        text = f"holds up the end of its namespace by {', '.join(one.finalizers)}"
        remedy = (
            "let Flux finish if it still runs and has a kubeconfig; else `kubectl patch --type merge "
            '-p \'{"metadata":{"finalizers":null}}\'`, which leaves what it applied'
        )
        yield _finding("warning", "finalizers", about, text, remedy)
