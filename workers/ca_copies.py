"""The proxy's CA for whoever else must trust it: a copy in each namespace whose annotation asks for one.

What is copied is what kubeconfigs trust: public certificates and never a key, so it does no harm that a tenant can
annotate its own namespaces too. Only the named object is touched, and only where Tether made it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from eventcore.consumer import Done, Retry
from eventcore.objects import ANNOTATION_PROXY_CA
from workers.authority import AuthorityError
from workers.context import until
from workers.desired import Target, authority_copy, namespace_ref

if TYPE_CHECKING:
    from eventcore.consumer import Result, Run
    from eventcore.keys import Key
    from eventcore.objects import Namespace
    from eventcore.settings import Settings
    from workers.authority import Authority
    from workers.context import Context

NAME: Final = "capsule-proxy"
"""The name of a copy, that of the source in the guide."""
PATIENCE: Final = 3
"""Tries after which an Event says that there is no CA to copy."""
_PARTS: Final = 2
_KINDS: Final = {"secret": "Secret", "configmap": "ConfigMap"}


def is_copy(key: Key) -> bool:
    """Tell whether a key of the kubeconfig worker is that of a copy."""
    return len(key.parts) == _PARTS


def wish(namespace: Namespace | None, settings: Settings) -> tuple[str, str]:
    """Return the kind of the copy that a namespace is to have, "" for none, and why its annotation is ignored."""
    if namespace is None or namespace.terminating:
        return "", ""
    asked = namespace.metadata.annotations.get(ANNOTATION_PROXY_CA)
    if asked is None:
        return "", ""
    if namespace.metadata.name == settings.proxy_ca_namespace:
        return "", f"annotation {ANNOTATION_PROXY_CA} is ignored here, where the proxy's CA comes from"
    kind = _KINDS.get(asked, "")
    if not kind:
        return "", f"annotation {ANNOTATION_PROXY_CA} is {asked[:40]!r}, so it is ignored: use secret or configmap"
    if kind == "ConfigMap" and not settings.kubeconfig_configmaps:
        return "", (
            f"annotation {ANNOTATION_PROXY_CA} is ignored, since ConfigMaps are off here: use secret, or an "
            "administrator sets TETHER_KUBECONFIG_CONFIGMAPS=true"
        )
    return kind, ""


async def copy_authority(context: Context, authority: Authority, run: Run) -> Result:
    """Bring the copy in one namespace to what its annotation asks for."""
    name = run.key.parts[1]
    namespace = context.relations.namespaces.get(name)
    kind, problem = wish(namespace, context.settings)
    uid = namespace.metadata.uid if namespace is not None else ""
    await _tell(context, run, name, uid, "AnnotationIgnored", problem)
    if not kind:
        if namespace is not None and name != context.settings.proxy_ca_namespace:
            await _remove_others(context, run, name, kind)
        return Done()
    try:
        trust = await authority.trust(run)
    except AuthorityError as error:
        if run.request.attempt >= PATIENCE:
            await _tell(context, run, name, uid, "ProxyCAWaits", str(error))
        return Retry(str(error))
    await _tell(context, run, name, uid, "ProxyCAWaits", trust.problem)
    manifest = authority_copy(Target(kind, name, NAME), trust.bundle)
    await context.writer.ensure(run, manifest, _permitted, action="distributed")
    await _remove_others(context, run, name, kind)
    return until(trust.ends)


async def _permitted() -> None:
    """Permit: what is public may stand anywhere."""


async def _remove_others(context: Context, run: Run, namespace: str, kind: str) -> None:
    """Remove what is there of another kind than the wished one; ConfigMaps only where Tether may touch them."""
    for other in _KINDS.values():
        if other != kind and (other != "ConfigMap" or context.settings.kubeconfig_configmaps):
            await context.writer.remove(run, Target(other, namespace, NAME), None, action="removed")


async def _tell(context: Context, run: Run, namespace: str, uid: str, reason: str, message: str) -> None:
    """Say something about the copy on the Namespace; "": the matter is settled."""
    topic = f"{reason} ca {namespace}"
    if message:
        await context.writer.tell(run, topic, namespace_ref(namespace, uid), reason=reason, message=message)
    else:
        context.writer.settle(topic)
