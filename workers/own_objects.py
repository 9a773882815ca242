"""Which objects Tether made, and for whom: told by the labels, annotations and name of one object alone.

Pure. `workers.relations` keeps the index over them, and the router asks the same of an object that has just changed.
"""

from __future__ import annotations

from typing import Final

import msgspec

from eventcore.keys import ObjectKey
from eventcore.objects import ANNOTATION_ACCOUNT, COMPONENT_CA, LABEL_COMPONENT, Meta
from workers.desired import ANNOTATION_GENERATION
from workers.names import is_kubeconfig_name, is_token_name, lockdown_name
from workers.own_annotations import generation_in
from workers.ownership import Account

OWN_KINDS: Final = frozenset({"Secret", "ConfigMap", "RoleBinding", "ClusterRole", "ClusterRoleBinding"})


class OwnObject(msgspec.Struct, frozen=True):
    """An object that Tether made, as OBJECTS shows it: metadata only."""

    key: ObjectKey
    metadata: Meta

    @property
    def component(self) -> str:
        return self.metadata.labels.get(LABEL_COMPONENT, "")


def own_account(metadata: Meta | None) -> Account | None:
    """Return the account that an object of ours was made for, None where Tether writes none of the kind for it.

    Whoever may write in a namespace can mark an object with anybody's account; it counts only where ours would be, and
    under a name that ours could have.
    """
    account = Account.of_text(metadata.annotations.get(ANNOTATION_ACCOUNT, "")) if metadata else None
    return account if metadata and account and _is_in_place(metadata, account) else None


def _is_in_place(metadata: Meta, account: Account) -> bool:
    match metadata.labels.get(LABEL_COMPONENT):
        case "token":
            generation = generation_in(metadata.annotations.get(ANNOTATION_GENERATION, ""))
            return metadata.namespace == account.namespace and is_token_name(account, metadata.name, generation)
        case "kubeconfig":
            return is_kubeconfig_name(account, metadata.name)
        case "rbac":
            return metadata.namespace in {"", account.namespace} or metadata.name == lockdown_name(account)
        case _:
            return False


def is_ca_copy(metadata: Meta | None) -> bool:
    """Tell whether an object of ours is a copy of the proxy's CA."""
    return metadata is not None and metadata.labels.get(LABEL_COMPONENT) == COMPONENT_CA


def is_lockdown(key: ObjectKey, account: Account) -> bool:
    """Tell whether an object of ours is the RoleBinding of Flux's default account."""
    return key.kind == "RoleBinding" and key.name == lockdown_name(account)
