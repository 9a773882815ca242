"""What an account asks for by annotations on its ServiceAccount, or an administrator on its Tenant: pure.

An account has every right at home, so whoever acts as it can write these. All that they decide is what stands in
kubeconfigs of its own tenants and how its own token is made, which the same people could do by hand. What is malformed
is ignored, and said.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from eventcore.objects import ANNOTATION_CONFIGMAP, ANNOTATION_NAMESPACES, ANNOTATION_PROXY_URL
from eventcore.selectors import parse_selector
from workers.desired import ANNOTATION_MODE, TokenMode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eventcore.objects import ServiceAccount, Tenant
    from eventcore.settings import Settings


_URL: Final = re.compile(r"https://[^\s/@?#]+(/[^\s?#]*)?")
_LONGEST_URL: Final = 2048


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for one account. ``problems``: a line for each annotation that is ignored, for who wrote it."""

    token_mode: TokenMode
    proxy_url: str
    config_map: Literal["", "beside", "instead"] = ""
    problems: tuple[str, ...] = ()


def options(service_account: ServiceAccount, tenants: Iterable[Tenant], settings: Settings) -> Options:
    """Return what holds for an account: its annotations, else those of its tenants, else the settings.

    Of several tenants that say something, the first in the order of names counts.
    """
    annotations = service_account.metadata.annotations
    problems: list[str] = []
    mode = settings.token_mode
    match annotations.get(ANNOTATION_MODE):
        case "bound" | "static" as mode:
            pass
        case None:
            pass
        case other:
            problems.append(f"annotation {ANNOTATION_MODE} is {other[:40]!r}, so it is ignored: use bound or static")
    config_map: Literal["", "beside", "instead"] = ""
    match annotations.get(ANNOTATION_CONFIGMAP):
        case None:
            pass
        case ("beside" | "instead") as wanted if settings.kubeconfig_configmaps:
            config_map = wanted
        case "beside" | "instead":
            problems.append(
                f"annotation {ANNOTATION_CONFIGMAP} is ignored, since ConfigMaps are off here: an administrator sets "
                "TETHER_KUBECONFIG_CONFIGMAPS=true"
            )
        case other:
            problems.append(
                f"annotation {ANNOTATION_CONFIGMAP} is {other[:40]!r}, so it is ignored: use beside or instead"
            )
    try:
        parse_selector(annotations.get(ANNOTATION_NAMESPACES, ""))
    except ValueError as error:
        problems.append(
            f"annotation {ANNOTATION_NAMESPACES}: {error}; until it is one, no tenant namespace gets a copy"
        )
    where = [(service_account.metadata, "annotation")]
    ordered = sorted(tenants, key=lambda tenant: tenant.metadata.name)
    where += [(tenant.metadata, f"Tenant {tenant.metadata.name}, annotation") for tenant in ordered]
    urls: list[str] = []
    for metadata, what in where:
        url = metadata.annotations.get(ANNOTATION_PROXY_URL)
        if url is not None and _URL.fullmatch(url) and len(url) <= _LONGEST_URL:
            urls.append(url)
        elif url is not None:
            problems.append(
                f"{what} {ANNOTATION_PROXY_URL} is not a URL such as https://proxy.example:9001, so it is ignored"
            )
    return Options(
        token_mode=mode, proxy_url=(*urls, settings.proxy_url)[0], config_map=config_map, problems=tuple(problems)
    )
