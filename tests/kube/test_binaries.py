"""Where a program comes from, and that it is built once, whole, and never silently left out."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from controlplane import binaries, pins
from controlplane.binaries import BinariesError

from tests.kube.conftest import Toolchain

NOBODY = {"PATH": ""}


class Said(list[str]):
    """What the code under test told a person."""

    def __call__(self, text: str) -> None:
        self.append(text)


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_without_any_source_there_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    said = Said()
    with pytest.raises(BinariesError) as caught:
        binaries.resolve({**NOBODY, "TETHER_CACHE": str(tmp_path)}, said)
    message = str(caught.value)
    assert message.startswith("etcd has no source: ")
    assert "put go 1." in message
    assert "KUBEBUILDER_ASSETS" in message
    assert "\n" not in message
    assert said == []


def test_the_folder_of_envtest_comes_first(tmp_path: Path, toolchain: Toolchain) -> None:
    given = executable(tmp_path / "assets" / "etcd")
    said = Said()
    path = binaries.resolve_one(pins.ETCD, {**toolchain.environ, "KUBEBUILDER_ASSETS": str(given.parent)}, said)
    assert path == given
    assert said == [f"etcd: KUBEBUILDER_ASSETS {given}"]
    assert toolchain.builds == []


def test_what_the_folder_of_envtest_lacks_is_looked_for_elsewhere(tmp_path: Path, toolchain: Toolchain) -> None:
    given = executable(tmp_path / "assets" / "etcd")
    environ = {**toolchain.environ, "KUBEBUILDER_ASSETS": str(given.parent)}
    path = binaries.resolve_one(pins.CONTROLLER_MANAGER, environ, Said())
    assert path.is_relative_to(toolchain.cache)


def test_kubectl_is_taken_from_the_path(tmp_path: Path) -> None:
    given = executable(tmp_path / "bin" / "kubectl")
    said = Said()
    assert binaries.resolve_one(pins.KUBECTL, {"PATH": str(given.parent)}, said) == given
    assert said == [f"kubectl: PATH {given}"]


def test_a_server_is_not_taken_from_the_path(tmp_path: Path) -> None:
    given = executable(tmp_path / "bin" / "etcd")
    environ = {"PATH": str(given.parent), "TETHER_CACHE": str(tmp_path)}
    with pytest.raises(BinariesError, match="no `go` is on the PATH"):
        binaries.resolve_one(pins.ETCD, environ, Said())


def test_a_build_happens_once_and_then_the_cache_is_the_source(toolchain: Toolchain) -> None:
    first = binaries.resolve_one(pins.ETCD, toolchain.environ, Said())
    said = Said()
    second = binaries.resolve_one(pins.ETCD, toolchain.environ, said)
    assert first == second
    assert len(toolchain.builds) == 1
    assert said == [f"etcd {pins.version_of(pins.ETCD)}: cache {first.parent}"]


def test_the_cache_is_enough_without_a_toolchain(toolchain: Toolchain) -> None:
    built = binaries.resolve_one(pins.ETCD, toolchain.environ, Said())
    assert binaries.resolve_one(pins.ETCD, {**toolchain.environ, **NOBODY}, Said()) == built


def test_a_build_takes_the_toolchain_that_is_there_and_makes_a_static_program(toolchain: Toolchain) -> None:
    built = binaries.resolve_one(pins.ETCD, toolchain.environ, Said())
    assert built.read_text() == "GOTOOLCHAIN=local CGO_ENABLED=0"
    assert "-trimpath" in toolchain.builds[0]
    assert "-mod=readonly" in toolchain.builds[0]


def test_a_toolchain_that_is_too_old_is_named_with_what_is_needed(toolchain: Toolchain) -> None:
    toolchain.set("version", "go1.19rc1 X:custom")
    with pytest.raises(BinariesError, match=r"needs go 1\.\d+.* or later, and .*/bin/go is 1\.19rc1"):
        binaries.resolve_one(pins.ETCD, toolchain.environ, Said())
    assert toolchain.builds == []


def test_a_refused_build_says_why_in_one_line_and_leaves_nothing_that_looks_built(toolchain: Toolchain) -> None:
    toolchain.set("refusal", "go: verifying module: checksum mismatch")
    with pytest.raises(BinariesError) as caught:
        binaries.resolve_one(pins.ETCD, toolchain.environ, Said())
    assert str(caught.value).endswith("failed: go: verifying module: checksum mismatch")
    assert "\n" not in str(caught.value)
    assert [path for path in toolchain.cache.rglob("*") if path.is_dir() or path.name == "etcd"] == [
        toolchain.cache / "controlplane"
    ]


async def test_two_that_need_the_same_program_build_it_once(toolchain: Toolchain) -> None:
    # given a build that does not end
    toolchain.set("hold", "")
    waiting = threading.Event()
    one = asyncio.create_task(asyncio.to_thread(binaries.resolve_one, pins.ETCD, toolchain.environ, Said()))
    while not (toolchain.folder / "building").exists():
        assert not one.done(), one.exception()
        await asyncio.sleep(0.01)
    # when another begins, and finds the first at work
    say = lambda text: waiting.set() if "waiting" in text else None  # noqa: E731 - as short as it is
    other = asyncio.create_task(asyncio.to_thread(binaries.resolve_one, pins.ETCD, toolchain.environ, say))
    assert await asyncio.to_thread(waiting.wait, 30)
    (toolchain.folder / "hold").unlink()
    # then both have it, and it was built once
    assert await one == await other
    assert len(toolchain.builds) == 1


def test_capsule_is_built_from_a_patched_copy_and_its_chart_is_kept(toolchain: Toolchain) -> None:
    capsule = pins.tools({})[-1]
    for patch in capsule.patches:
        path = toolchain.folder / "module" / patch.path
        toolchain.source(patch.path, (path.read_text() if path.exists() else "") + patch.old + "\n")
    toolchain.source("charts/capsule/Chart.yaml", "name: capsule\n")
    built = binaries.resolve_one(capsule, toolchain.environ, Said())
    assert "-modfile=" in toolchain.builds[0]
    assert (built.parent / "chart" / "Chart.yaml").read_text() == "name: capsule\n"
    assert sorted(path.name for path in built.parent.iterdir()) == ["capsule", "chart"]


def test_fluxs_controllers_are_built_as_they_are_and_their_crds_are_kept(toolchain: Toolchain) -> None:
    toolchain.source("config/crd/bases/things.yaml", "kind: CustomResourceDefinition\n")
    flux = binaries.resolve_flux(toolchain.environ, Said())
    assert list(flux.controllers) == ["source-controller", "kustomize-controller", "helm-controller"]
    assert len(toolchain.builds) == 3
    assert not any("-modfile=" in build for build in toolchain.builds)
    for program, crds in zip(flux.controllers.values(), flux.crds, strict=True):
        assert program.parent == crds.parent
        assert [file.name for file in crds.iterdir()] == ["things.yaml"]


def test_a_source_that_the_patch_does_not_fit_is_not_built(toolchain: Toolchain) -> None:
    capsule = pins.tools({})[-1]
    for patch in capsule.patches:
        toolchain.source(patch.path, "package main\n")
    with pytest.raises(BinariesError, match=r"does not hold .* once; the patch needs a look"):
        binaries.resolve_one(capsule, toolchain.environ, Said())
    assert toolchain.builds == []
