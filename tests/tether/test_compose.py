"""docker-compose.yml: nobody gets an administrator's kubeconfig, and NATS is for the roles, each as its own user."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tether.dev_accounts import ROLES
from tether.dev_nats import OPERATOR, USERS
from tether.devcluster.nats import find_binary

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
USER_OF = {
    "topology": OPERATOR,
    "watch": "watcher",
    "route": "router",
    "work": "worker",
    "proxy": "proxy",
}
KUBE = {"watch", "work", "proxy"}


def kubeconfigs(service: dict[str, Any]) -> list[str]:
    return [volume for volume in service.get("volumes", ()) if "/etc/tether/kubeconfig" in volume]


def test_every_service_is_nats_or_a_role_with_its_own_user() -> None:
    assert set(SERVICES) == {"nats", *USER_OF}
    for name, user in USER_OF.items():
        service = SERVICES[name]
        assert service["environment"]["TETHER_NATS_USER"] == user
        assert service["secrets"] == [{"source": user, "target": "nats"}]
        assert service["environment"]["TETHER_NATS_PASSWORD_FILE"] == "/run/secrets/nats"
        assert COMPOSE["secrets"][user] == {"environment": f"{user.upper()}_PASSWORD"}
    assert set(USER_OF.values()) == set(USERS) == set(COMPOSE["secrets"])


def test_no_password_stands_in_the_file_or_in_the_environment_of_a_role() -> None:
    passwords = SERVICES["nats"]["environment"]
    assert set(passwords) == {f"{user.upper()}_PASSWORD" for user in USERS}
    assert all(value == f"${{{name}:?see the head of docker-compose.yml}}" for name, value in passwords.items())
    for name in USER_OF:
        assert not [variable for variable in SERVICES[name]["environment"] if variable.endswith("_PASSWORD")]


def test_nats_is_reached_by_the_roles_alone() -> None:
    assert "ports" not in SERVICES["nats"]
    assert SERVICES["nats"]["networks"] == ["bus"]
    assert COMPOSE["networks"]["bus"] == {"internal": True}
    assert all(service.get("network_mode") is None for service in SERVICES.values())
    assert {name for name, service in SERVICES.items() if "ports" in service} == {"proxy"}


def test_each_role_has_a_kubeconfig_of_its_own_if_it_needs_one() -> None:
    found = {name: kubeconfigs(service) for name, service in SERVICES.items()}
    assert {name for name, some in found.items() if some} == KUBE
    for name in KUBE:
        assert found[name] == [f"${{KUBECONFIGS:-./kubeconfigs}}/{USER_OF[name]}:/etc/tether/kubeconfig:ro"]
        assert SERVICES[name]["networks"] == ["bus", "cluster"]
    for name in set(SERVICES) - KUBE:
        assert SERVICES[name]["networks"] == ["bus"]
    assert "KUBECONFIG}" not in TEXT
    assert "KUBECONFIG:" not in TEXT.replace("TETHER_KUBECONFIG:", "")


def test_the_head_says_how_to_make_what_is_needed() -> None:
    head = TEXT.partition("x-role:")[0]
    (roles,) = re.findall(r"for role in ([a-z ]+);", head)
    assert set(roles.split()) == {USER_OF[name] for name in KUBE} < set(ROLES)
    (users,) = re.findall(r"for user in ([A-Z ]+);", head)
    assert {user.lower() for user in users.split()} == set(USERS)
    for account in roles.split():
        assert f"name: tether-{account}" in (ROOT / "deploy" / "rbac" / f"{account}.yaml").read_text()


@pytest.mark.parametrize("missing", [None, "PROXY_PASSWORD"])
def test_nats_takes_its_configuration_and_none_without_the_passwords(missing: str | None) -> None:
    environ = {f"{user.upper()}_PASSWORD": f"p-{user}" for user in USERS}
    environ.pop(missing or "", None)
    done = subprocess.run(  # noqa: S603 -- its own binary
        [str(find_binary()), "-t", "-c", str(ROOT / "deploy" / "nats.conf")],
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode == 0) == (missing is None), done.stderr
    assert missing is None or missing in done.stderr
    mounted = [volume.split(":")[0] for volume in SERVICES["nats"]["volumes"]]
    assert {"./deploy/nats.conf", "./deploy/nats-users.conf"} <= set(mounted)
