"""What is pinned, and what the pins say."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from controlplane import pins
from controlplane.pins import PinError


def go_mod(folder: str) -> str:
    return (pins.HERE / folder / "go.mod").read_text()


def test_every_tool_is_pinned_and_named_as_a_tool_of_its_go_mod() -> None:
    for line in pins.CAPSULE_FOLDERS:
        for tool in (*pins.tools({"TETHER_CAPSULE": line}), *pins.FLUX):
            text = go_mod(tool.folder)
            assert re.fullmatch(r"v\d+\.\d+\.\d+", pins.version_of(tool))
            assert re.search(rf"^(tool |\t){re.escape(tool.package)}$", text, re.MULTILINE)


def test_the_only_go_code_is_that_of_the_clients_for_the_tests() -> None:
    programs = {f"{pins.CLIENTS}/{tool.package[2:]}/main.go" for tool in (pins.INFORMER, pins.KUBELET)}
    assert {str(path.relative_to(pins.HERE)) for path in pins.HERE.rglob("*.go")} == programs


def test_a_program_of_our_own_is_built_on_the_libraries_of_the_pinned_kubernetes() -> None:
    release = pins.version_of(pins.API_SERVER).removeprefix("v1.")
    for module in ("k8s.io/api", "k8s.io/apimachinery", "k8s.io/client-go", "k8s.io/kubelet"):
        assert pins.pinned_version(go_mod(pins.CLIENTS), module) == f"v0.{release}"


def test_another_source_of_a_program_of_our_own_is_another_cache_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(pins.HERE / pins.CLIENTS, tmp_path / pins.CLIENTS)
    monkeypatch.setattr(pins, "HERE", tmp_path)
    before = pins.cache_key(pins.INFORMER)
    with (tmp_path / pins.CLIENTS / "informer" / "main.go").open("a") as source:
        source.write("// changed")
    assert pins.cache_key(pins.INFORMER) != before


def test_the_staging_repositories_of_kubernetes_are_those_of_its_own_release() -> None:
    text = go_mod("kubernetes")
    minor, patch = pins.pinned_version(text, "k8s.io/kubernetes").removeprefix("v1.").split(".")
    replaced = re.findall(r"^\t(\S+) => (\S+) (\S+)$", text, re.MULTILINE)
    assert ("k8s.io/api", "k8s.io/api", f"v0.{minor}.{patch}") in replaced
    assert {(old, version) for old, _, version in replaced} == {(new, f"v0.{minor}.{patch}") for _, new, _ in replaced}


def test_each_line_of_capsule_is_the_version_that_its_name_says() -> None:
    for line in pins.CAPSULE_FOLDERS:
        capsule = pins.tools({"TETHER_CAPSULE": line})[-1]
        assert pins.version_of(capsule).startswith(f"v{line}.")


def test_each_controller_of_flux_is_built_with_its_own_api() -> None:
    for tool in pins.FLUX:
        assert pins.pinned_version(go_mod("flux"), f"{tool.module}/api") == pins.version_of(tool)


def test_without_a_choice_the_newest_capsule_runs() -> None:
    assert pins.tools({})[-1] == pins.tools({"TETHER_CAPSULE": "0.14"})[-1]


def test_a_capsule_outside_the_matrix_is_refused_with_what_there_is() -> None:
    with pytest.raises(PinError, match=r"TETHER_CAPSULE=0\.3 is not one of 0\.14, 0\.13"):
        pins.tools({"TETHER_CAPSULE": "0.3"})


def test_a_module_is_found_as_a_single_requirement_and_in_a_block() -> None:
    assert pins.pinned_version("require a.b/c v1.2.3\n", "a.b/c") == "v1.2.3"
    assert pins.pinned_version("require (\n\ta.b/c v1.2.3 // indirect\n)\n", "a.b/c") == "v1.2.3"


def test_a_longer_path_and_a_replacement_are_not_a_requirement() -> None:
    with pytest.raises(PinError, match=r"no version of a\.b/c"):
        pins.pinned_version("require (\n\ta.b/c/d v1.0.0\n)\nreplace (\n\ta.b/c v1.2.3 => ../c\n)\n", "a.b/c")


def test_the_version_of_kubernetes_is_stamped_where_discovery_and_clients_read_it() -> None:
    flags = pins.link_flags(pins.API_SERVER, "v1.35.4")
    assert "-X k8s.io/component-base/version.gitVersion=v1.35.4" in flags
    assert "-X k8s.io/component-base/version.gitMinor=35" in flags
    assert "-X k8s.io/client-go/pkg/version.gitVersion=v1.35.4" in flags


def test_the_cache_key_names_tool_and_version_and_differs_by_recipe() -> None:
    newest, oldest = (pins.tools({"TETHER_CAPSULE": line})[-1] for line in ("0.14", "0.13"))
    tools = (*pins.tools({}), oldest, *pins.FLUX)
    assert len({pins.cache_key(tool) for tool in tools}) == len(tools)
    assert pins.cache_key(newest).startswith(f"capsule-{pins.version_of(newest)}-")
