"""The machine that figures were measured on, as data that goes beside them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from edgepack.devices.facts import facts_from_probe
from edgepack.devices.local import LocalDevice
from edgepack.targets.probe import target_from_probe
from edgepack.targets.target import HOST

CONVERTERS = ("torch", "litert-torch")


def conditions() -> dict[str, Any]:
    """CPU, cores, caches in bytes, instruction sets, versions, and the day."""
    from edgepack.backends.registry import TOOLS
    from edgepack.workspace import tool_versions

    report = LocalDevice().probe()
    facts, host = facts_from_probe(report, "local"), target_from_probe(report, HOST)
    main = host.main_cluster
    caches = {"L1d": main.L1d, "L2": main.L2, "L3": main.L3}
    versions = tool_versions(TOOLS)
    return {
        "day": datetime.now(UTC).date().isoformat(),
        "cpu": facts.cpu_model or facts.device_model or facts.machine,
        "arch": facts.machine,
        "cores": host.cores,
        "virtual": "hypervisor" in facts.features,
        "isa": list(host.isa),
        "caches_bytes": {name: cache.size_bytes for name, cache in caches.items() if cache is not None},
        "ram_bytes": facts.ram_bytes,
        "runtimes": dict(sorted(facts.runtimes.items())),
        "converters": {name: versions[name] for name in CONVERTERS if name in versions},
        "python": facts.python,
    }
