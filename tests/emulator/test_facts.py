from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from edgepack.emulator.facts import cpu_files, write_facts
from edgepack.targets.file import load_targets
from edgepack.targets.target import Target
from edgepack.workspace import shipped

AARCH64 = [target for target in load_targets().values() if target.arch == "aarch64"]


def _runner():
    spec = importlib.util.spec_from_file_location("runner", shipped("runtimes/runner.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("target", AARCH64, ids=lambda target: target.name)
def test_the_runner_reads_the_target_back_from_the_files(target: Target, tmp_path: Path) -> None:
    write_facts(target, tmp_path)
    runner = _runner()
    cpuinfo = (tmp_path / "proc/cpuinfo").read_text()
    numbers = [block for block in cpuinfo.split("\n\n") if block.strip()]
    parts = [runner.ARM_CORES[runner.first_match(block, r"^CPU part\s*:\s*(\S+)$")] for block in numbers]
    assert parts == [cluster.core for cluster in target.clusters for _ in range(cluster.cores)]
    caches = runner.read_caches(str(tmp_path / "sys/devices/system/cpu"))
    found = {(cache["level"], cache["type"], cache["size_bytes"], cache["ways"]) for cache in caches}
    levels = {"L1d": (1, "data"), "L1i": (1, "instruction"), "L2": (2, "unified"), "L3": (3, "unified")}
    expected = {
        (*levels[name], cache.size_bytes, cache.ways)
        for cluster in target.clusters
        for name in levels
        if (cache := getattr(cluster, name)) is not None
    }
    assert found == expected


def test_features_follow_the_instruction_set() -> None:
    by_name = {target.name: target for target in AARCH64}
    old, new = (set(cpu_files(by_name[name])["proc/cpuinfo"].split()) for name in ("rpi4", "rpi5"))
    assert new - old >= {"asimddp", "fphp", "asimdhp", "atomics"}


def test_a_cortex_a55_is_of_a_revision_that_is_known_for_dot_products() -> None:
    """cpuinfo takes r0 of this core to lack them, whatever its features say; boards have r2."""
    (target,) = [target for target in AARCH64 if target.name == "rk3566"]
    assert "CPU variant\t: 0x2\n" in cpu_files(target)["proc/cpuinfo"]


def test_a_shared_cache_lists_the_cores_of_its_cluster() -> None:
    by_name = {target.name: target for target in AARCH64}
    files = cpu_files(by_name["rpi4"])
    assert files["sys/devices/system/cpu/cpu2/cache/index2/shared_cpu_list"] == "0-3\n"
    assert files["sys/devices/system/cpu/cpu2/cache/index0/shared_cpu_list"] == "2\n"
    assert files["sys/devices/system/cpu/present"] == "0-3\n"
