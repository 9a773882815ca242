"""What `tether certs` makes of what it finds: the proxy's authority and its serving certificate, renewed in time. Pure.

A new authority is announced first: for the overlap ``ca.crt`` holds it beside the one before, while the proxy still
shows a certificate of the one before. So whoever trusts only the old one is served all that time, whoever reads again
trusts both, and only then the new one signs.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
from typing import TYPE_CHECKING, Any, Final

import msgspec

from eventcore.errors import StartError
from tether.certs_x509 import Pair, certificates, hosts_of, is_host, new_authority, new_serving, signed_by, usable

if TYPE_CHECKING:
    from collections.abc import Mapping

Object = dict[str, Any]

LABELS: Final = {"app.kubernetes.io/part-of": "tether", "app.kubernetes.io/managed-by": "tether"}
ANNOTATION_SWITCH: Final = "capsule-tether.io/switch-at"
"""On the authority's Secret: when the authority that is announced begins to sign."""
CA_KEYS: Final = ("ca.crt", "ca")
"""Under both, since older readers know ``ca`` alone."""
RENEW_SHARE: Final = 3
"""A certificate is renewed when a third of its life is left, an authority likewise."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for; lives are durations."""

    namespace: str = "capsule-system"
    secret: str = "capsule-proxy"  # noqa: S105 - an object's name
    authority: str = "capsule-proxy-authority"
    hosts: tuple[str, ...] = ()
    life: dt.timedelta = dt.timedelta(days=90)
    ca_life: dt.timedelta = dt.timedelta(days=1825)
    overlap: dt.timedelta = dt.timedelta(days=1)
    rotate: bool = False
    adopt: bool = False


class Signing(msgspec.Struct, frozen=True):
    """The authority that signs, the one that is announced, and when that one takes over.

    ``current`` is None where what serves was signed by an authority whose key is not ours.
    """

    current: Pair | None = None
    coming: Pair | None = None
    switch_at: dt.datetime | None = None


class Serving(msgspec.Struct, frozen=True):
    """What the proxy serves, and what clients are told to trust (PEM, one each)."""

    pair: Pair | None = None
    trusted: tuple[str, ...] = ()


class Plan(msgspec.Struct, frozen=True):
    """What is to be there, and what had to be done for it, a line each; no line: nothing to do."""

    signing: Signing
    serving: Serving
    done: tuple[str, ...] = ()

    @property
    def next_look(self) -> dt.datetime:
        """When something has to be done next, if nothing changes."""
        pairs = (self.serving.pair, self.signing.current)
        moments = [renewal(pair) for pair in pairs if pair is not None]
        return min([*moments, *([self.signing.switch_at] if self.signing.switch_at else [])])


def service_hosts(service: str, namespace: str, domain: str) -> tuple[str, ...]:
    """Return the names by which a Service is reached inside a cluster."""
    return service, f"{service}.{namespace}", f"{service}.{namespace}.svc", f"{service}.{namespace}.svc.{domain}"


def check(options: Options) -> None:
    """Refuse what cannot be; StartError says which and what to do."""
    for host in options.hosts:
        if not is_host(host):
            raise StartError(f"--san {host!r} is neither a DNS name in small letters nor an IP address")
    if options.life < dt.timedelta(hours=1):
        raise StartError("--life must be at least 1h, so that there is time to renew")
    if options.ca_life < options.life * RENEW_SHARE:
        raise StartError(f"--ca-life must be at least {RENEW_SHARE} times --life: an authority outlives what it signs")
    if options.overlap < dt.timedelta() or options.overlap > options.ca_life / RENEW_SHARE:
        raise StartError("--overlap must be between 0 and a third of --ca-life")
    if options.secret == options.authority:
        raise StartError("--name and --authority-name must differ: the key of the authority stays apart")


def renewal(pair: Pair) -> dt.datetime:
    """Return when a certificate is to be renewed."""
    leaf = pair.leaf
    return leaf.not_valid_after_utc - (leaf.not_valid_after_utc - leaf.not_valid_before_utc) / RENEW_SHARE


def plan(signing: Signing, serving: Serving, options: Options, moment: dt.datetime) -> Plan:
    """Return what is to be there now."""
    done: list[str] = []
    signing = _signing(signing, serving, options, moment, done)
    trusted = _trusted(signing, serving)
    pair = serving.pair
    if signing.current is not None and (why := _unfit(pair, signing.current, options, moment)):
        pair = new_serving(signing.current, options.hosts, options.life, moment)
        done.append(f"serving certificate {'made' if serving.pair is None else 'renewed'}: {why}")
    if trusted != serving.trusted:
        done.append(f"ca.crt holds {len(trusted)} certificate{'s' if len(trusted) > 1 else ''}")
    return Plan(signing, Serving(pair, trusted), tuple(done))


def _signing(found: Signing, serving: Serving, options: Options, moment: dt.datetime, done: list[str]) -> Signing:
    """Return who signs now and later: one that is needed is made and announced, an announced one takes over in time."""
    current = found.current if found.current is not None and found.current.expires > moment else None
    coming, switch_at = found.coming, found.switch_at
    stays = current is not None or _holds(serving, options, moment)
    why = _why_new(current, options, moment, stays=stays) if coming is None else ""
    if why:
        coming = new_authority(options.secret, options.ca_life, moment)
        done.append(f"authority made: {why}")
    if coming is None:
        return Signing(current)
    if why or options.rotate:
        # A rotation that is under way can be hastened, not put off.
        switch_at = min(switch_at or moment + options.overlap, moment + options.overlap)
    if stays and switch_at is not None and switch_at > moment:
        if switch_at != found.switch_at:
            done.append(f"authority announced: it signs from {_text(switch_at)}")
        return Signing(current, coming, switch_at)
    if not why:
        done.append("authority changed: the announced one signs now")
    return Signing(coming)


def _why_new(current: Pair | None, options: Options, moment: dt.datetime, *, stays: bool) -> str:
    """Return why there must be another authority, "" if there need not."""
    if current is None:
        return "the key of the one before is not here" if stays else "there was none"
    if options.rotate:
        return "a rotation was asked for"
    return "the one before ends" if renewal(current) <= moment else ""


def _holds(serving: Serving, options: Options, moment: dt.datetime) -> bool:
    """Tell whether what serves is good without the authority's key for as long as an overlap needs."""
    if serving.pair is None:
        return False
    leaf = serving.pair.leaf
    known = any(signed_by(leaf, Pair(one, "").leaf) for one in serving.trusted)
    return known and leaf.not_valid_before_utc <= moment and leaf.not_valid_after_utc > moment + options.overlap / 4


def _trusted(signing: Signing, serving: Serving) -> tuple[str, ...]:
    """Return what clients are to trust, the newest first."""
    if signing.coming is None:
        return (_first(signing.current),) if signing.current is not None else ()
    old = (_first(signing.current),) if signing.current is not None else serving.trusted
    return tuple(dict.fromkeys((_first(signing.coming), *old)))


def _unfit(pair: Pair | None, authority: Pair, options: Options, moment: dt.datetime) -> str:
    """Return why a serving certificate cannot stay, "" if it can."""
    if pair is None:
        return "there was none that could be used"
    leaf = pair.leaf
    if not signed_by(leaf, authority.leaf):
        return "another authority signs now"
    if hosts_of(leaf) != frozenset(options.hosts):
        return "it was for other names"
    return f"the one before ends on {_text(leaf.not_valid_after_utc)}" if renewal(pair) <= moment else ""


def _first(pair: Pair | None) -> str:
    return certificates(pair.certificate)[0] if pair is not None else ""


def _text(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


# Secrets.


def is_ours(secret: Object) -> bool:
    """Tell whether this command made a Secret."""
    return LABELS.items() <= (secret["metadata"].get("labels") or {}).items()


def read_signing(secret: Object | None) -> Signing:
    """Return what the authority's Secret says; what cannot be read counts as not there."""
    if secret is None:
        return Signing()
    data = _data(secret)
    coming = usable(data.get("next.crt", ""), data.get("next.key", ""))
    text = (secret["metadata"].get("annotations") or {}).get(ANNOTATION_SWITCH, "")
    try:
        switch_at = dt.datetime.fromisoformat(text) if coming is not None else None
    except ValueError:
        switch_at = None
    if switch_at is not None and switch_at.tzinfo is None:
        switch_at = None
    return Signing(usable(data.get("tls.crt", ""), data.get("tls.key", "")), coming, switch_at)


def read_serving(secret: Object | None) -> Serving:
    """Return what the proxy's Secret says; what cannot be read counts as not there."""
    if secret is None:
        return Serving()
    data = _data(secret)
    trusted = next((found for key in CA_KEYS if (found := certificates(data.get(key, "")))), [])
    return Serving(usable(data.get("tls.crt", ""), data.get("tls.key", "")), tuple(trusted))


def signing_secret(options: Options, signing: Signing, existing: Object | None) -> Object:
    """Return the body of the authority's Secret."""
    data: dict[str, str] = {}
    if signing.current is not None:
        data |= {"tls.crt": signing.current.certificate, "tls.key": signing.current.key}
    if signing.coming is not None:
        data |= {"next.crt": signing.coming.certificate, "next.key": signing.coming.key}
    annotations = {ANNOTATION_SWITCH: _text(signing.switch_at)} if signing.switch_at is not None else {}
    return _secret(options.namespace, options.authority, "Opaque", data, annotations, existing)


def serving_secret(options: Options, serving: Serving, existing: Object | None) -> Object:
    """Return the body of the proxy's Secret."""
    bundle = "".join(serving.trusted)
    data = dict.fromkeys(CA_KEYS, bundle)
    if serving.pair is not None:
        data |= {"tls.crt": serving.pair.certificate, "tls.key": serving.pair.key}
    return _secret(options.namespace, options.secret, "kubernetes.io/tls", data, {}, existing)


def _secret(
    namespace: str,
    name: str,
    type_: str,
    data: Mapping[str, str],
    annotations: Mapping[str, str],
    existing: Object | None,
) -> Object:
    metadata: Object = {"name": name, "namespace": namespace, "labels": LABELS, "annotations": dict(annotations)}
    if existing is not None:
        old = existing["metadata"]
        kept = {key: value for key, value in (old.get("annotations") or {}).items() if key != ANNOTATION_SWITCH}
        metadata |= {key: old[key] for key in ("uid", "resourceVersion", "ownerReferences") if key in old}
        metadata["labels"] = (old.get("labels") or {}) | LABELS
        metadata["annotations"] = kept | dict(annotations)
        type_ = existing.get("type", type_)  # nobody can change it
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": type_, "data": encoded}


def _data(secret: Object) -> dict[str, str]:
    found = {}
    for key, value in (secret.get("data") or {}).items():
        try:
            found[key] = base64.b64decode(value, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            continue
    return found
