"""The names of the objects that Tether makes: those of the existing addon, with a hash where one is taken or too long.

Pure. A hash is of the account alone, so every worker arrives at the same name.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from workers.own_annotations import generation_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from workers.ownership import Account

MAX_NAME: Final = 253
_HASH: Final = 10
_CERTAIN: Final = 200
"""So much of an account's name begins every name that is made of it, also one that is cut."""


def role_binding_name(account: Account) -> str:
    """Return the name of the RoleBinding at home: the account's own."""
    return account.name


def cluster_role_name(account: Account) -> str:
    """Return the plain name of the impersonator ClusterRole and its binding.

    Not unique: ``a-b`` and ``c`` make the same as ``a`` and ``b-c``; see :func:`settled_cluster_role_name`.
    """
    return fit(f"{account.namespace}-{account.name}-impersonator", account)


def same_cluster_role(account: Account) -> Iterator[Account]:
    """Yield every other account whose plain name for the ClusterRole is the same, whether it exists or not."""
    whole = f"{account.namespace}-{account.name}"
    for at, letter in enumerate(whole):
        if letter == "-" and 0 < at < len(whole) - 1 and at != len(account.namespace):
            yield type(account)(whole[:at], whole[at + 1 :])


def settled_cluster_role_name(account: Account, exists: Callable[[Account], bool]) -> str:
    """Return the name that an account really gets.

    Of the accounts with one plain name that exist, the first in order keeps it, and the others get a hash.
    """
    plain = cluster_role_name(account)
    taken = any(other < account and exists(other) for other in same_cluster_role(account))
    return with_hash(plain, account) if taken else plain


def lockdown_name(account: Account) -> str:
    """Return the name of the RoleBinding that an account's opt-in brings to each namespace of its tenant.

    No name in it holds a colon, so it is the account's alone.
    """
    return fit(f"tether:lockdown:{account.namespace}:{account.name}", account)


def token_name(account: Account) -> str:
    """Return the name of the Secret that holds the current token."""
    return fit(f"{account.name}-token", account)


def binding_name(account: Account, generation: int) -> str:
    """Return the name of the empty Secret that the tokens of a generation are bound to."""
    return fit(f"{account.name}-token-{generation}", account)


def is_token_name(account: Account, name: str, generation: int) -> bool:
    """Tell whether Tether gives a name to a Secret of an account's token; a name that is cut needs its generation."""
    if name == token_name(account):
        return True
    number = generation_in(name.removeprefix(f"{account.name}-token-")) or generation
    return number > 0 and name == binding_name(account, number)


def is_kubeconfig_name(account: Account, name: str) -> bool:
    """Tell whether a kubeconfig of an account can have a name, by some suffix: that is a setting, and may change."""
    return name.startswith(f"{account.name}-"[:_CERTAIN])


def kubeconfig_name(account: Account, suffix: str = "kubeconfig") -> str:
    """Return the plain name of the kubeconfig Secret, the same for same-named accounts of different homes."""
    return fit(f"{account.name}-{suffix}", account)


def hashed_kubeconfig_name(account: Account, suffix: str = "kubeconfig") -> str:
    """Return the name of the kubeconfig Secret where the plain one belongs to another account."""
    return with_hash(f"{account.name}-{suffix}", account)


def fit(name: str, account: Account) -> str:
    """Return the name, shortened with a hash when Kubernetes would refuse its length."""
    return name if len(name) <= MAX_NAME else with_hash(name, account)


def with_hash(name: str, account: Account) -> str:
    """Return the name with a hash of account and name at its end, in at most MAX_NAME characters."""
    digest = hashlib.sha256(f"{account}:{name}".encode()).hexdigest()[:_HASH]
    return f"{name[: MAX_NAME - _HASH - 1].rstrip('-.')}-{digest}"
