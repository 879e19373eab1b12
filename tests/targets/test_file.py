"""Targets: the shipped facts, a user's own file over them, and every way such a file can be wrong."""

# The table of bad files is wider than the line on purpose; L2 is an attribute and no constant.
# ruff: noqa: E501, SIM300

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepack.errors import TargetsError
from edgepack.targets.file import check_file, get_target, load_targets
from edgepack.targets.probe import target_from_probe
from edgepack.targets.target import HOST, Bandwidth, Cache

K, M, G = 1 << 10, 1 << 20, 1 << 30
LISTED = {
    "rpi-zero2w": ("aarch64", 4, 512 * K),
    "rpi3b+": ("aarch64", 4, 512 * K),
    "rpi4": ("aarch64", 4, 1 * M),
    "rpi5": ("aarch64", 4, 2 * M),
    "beaglebone-black": ("armv7l", 1, 256 * K),
    "jetson-nano": ("aarch64", 4, 2 * M),
    "rk3566": ("aarch64", 4, 512 * K),
    "rk3588": ("aarch64", 8, 3 * M),
    "orangepi-zero2": ("aarch64", 4, 256 * K),
    "visionfive2": ("riscv64", 4, 2 * M),
    "pixel6a": ("aarch64", 8, 8 * M),
    "android-a53": ("aarch64", 8, 32 * K),
    "n100": ("x86_64", 4, 6 * M),
    "j4125": ("x86_64", 4, 4 * M),
}

GOOD = """\
schema_version: 1
targets:
  board:
    description: My board
    arch: aarch64
    isa: [neon]
    clusters:
      a53:
        core: cortex-a53
        cores: 2
        L2: {size_bytes: 256K, shared: cluster}
    ram_bytes: 256M
    runtimes: {onnx: onnxruntime}
"""


@pytest.fixture
def own(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "own.yaml"
        path.write_text(text)
        return path

    return write


def problems(path: Path) -> list[str]:
    return [str(problem) for problem in check_file(path)]


@pytest.mark.parametrize("name", LISTED)
def test_every_shipped_target_has_its_facts(name: str) -> None:
    target = get_target(name)
    assert (target.arch, target.cores, target.last_level_cache_bytes) == LISTED[name]
    assert target.name == name


def test_rpi4_in_detail() -> None:
    target = get_target("rpi4")
    assert target.main_cluster.L1i == Cache(48 * K, "core", 3)
    assert target.main_cluster.L2 == Cache(1 * M, "cluster", 16)
    assert target.main_cluster.read == Bandwidth(3.7, 4.4)
    assert "dotprod" not in target.isa
    assert (target.ram_bytes, target.ram_max_bytes) == (1 * G, 8 * G)
    assert [(bad.runtime, bad.version) for bad in target.known_bad] == [("onnxruntime", "1.21.0")]


def test_an_estimate_is_marked_as_one() -> None:
    assert get_target("beaglebone-black").main_cluster.read == Bandwidth(0.7, 0.7, "estimate")
    assert get_target("pixel6a").main_cluster.L2 == Cache(1 * M, "core", None, 64, "estimate")


def test_extends_keeps_all_but_what_it_names() -> None:
    base, variant = get_target("orangepi-zero2"), get_target("orangepi-zero2-1m")
    assert variant.main_cluster.L2 == Cache(1 * M, "cluster")
    assert variant.main_cluster.L1d == base.main_cluster.L1d
    assert variant.ram_bytes == base.ram_bytes


@pytest.mark.parametrize("name", ["beaglebone-black", "visionfive2"])
def test_a_cpu_without_wheels_says_so_when_a_format_is_asked(name: str) -> None:
    target = get_target(name)
    assert target.formats == ()
    with pytest.raises(TargetsError, match=f"target {name} cannot run tflite .*no wheel for {target.arch}"):
        target.require_format("tflite")


def test_require_format_names_the_runtime() -> None:
    assert get_target("rpi5").require_format("tflite") == "ai-edge-litert"


def test_unknown_target_has_a_suggestion_and_exit_code_3() -> None:
    with pytest.raises(TargetsError, match='unknown target "rpi-4": did you mean "rpi4') as caught:
        get_target("rpi-4")
    assert caught.value.exit_code == 3
    assert "rk3588" in (caught.value.hint or "")


def test_host_is_this_machine() -> None:
    host = get_target(HOST)
    assert host.arch == platform.machine()
    assert host.cores >= 1
    assert host.formats == ("onnx", "tflite")
    assert all(cache.size_bytes > 0 for cache in host.main_cluster.data_caches)
    assert load_targets()[HOST] == host


def test_big_and_little_cores_become_clusters_with_the_fast_one_first() -> None:
    l2 = [
        {"level": 2, "type": "unified", "size_bytes": 512 * K, "ways": 8, "line_bytes": 64, "cpus": [n]} for n in (2, 3)
    ]
    l3 = {"level": 3, "type": "unified", "size_bytes": 3 * M, "ways": 12, "line_bytes": 64, "cpus": [0, 1, 2, 3]}
    shared = {"level": 2, "type": "unified", "size_bytes": 128 * K, "ways": 4, "line_bytes": 64, "cpus": [0, 1]}
    report = {
        "machine": "aarch64",
        "device_model": "Some Board",
        "cpu_model": "",
        "features": ["asimd", "asimddp"],
        "ram_bytes": 4 * G,
        "cpus": [
            {"cpu": n, "core": core, "max_khz": khz, "governor": None}
            for n, core, khz in ((0, "cortex-a55", 1800000), (1, "cortex-a55", 1800000), (2, "cortex-a76", 2300000), (3, "cortex-a76", 2300000))
        ],
        "caches": [shared, *l2, l3],
        "runtimes": {"onnxruntime": {"version": "1", "imports": False, "error": "SIGILL"}, "tflite-runtime": {"version": "2", "imports": True, "error": None}},
    }  # fmt: skip
    target = target_from_probe(report, "found")
    assert [(cluster.core, cluster.cores, cluster.frequency_mhz) for cluster in target.clusters] == [
        ("cortex-a76", 2, 2300),
        ("cortex-a55", 2, 1800),
    ]
    assert target.clusters[0].L2 == Cache(512 * K, "core", 8, 64, "probed")
    assert target.clusters[1].L2 == Cache(128 * K, "cluster", 4, 64, "probed")
    assert target.clusters[1].L3 == Cache(3 * M, "all", 12, 64, "probed")
    assert target.isa == ("neon", "dotprod")
    assert target.runtimes == {"tflite": "tflite-runtime"}
    assert target.no_runtime_reason == "no runtime for onnx is installed"


def test_own_target_beside_the_shipped_ones(own) -> None:
    targets = load_targets(own(GOOD))
    assert targets["board"].main_cluster.L2 == Cache(256 * K, "cluster")
    assert "rpi4" in targets


def test_own_entry_of_a_shipped_name_changes_only_what_it_lists(own) -> None:
    path = own("schema_version: 1\ntargets:\n  rpi4:\n    hosts: [pi@raspberrypi.local]\n    ram_max_bytes: null\n")
    targets = load_targets(path)
    assert targets["rpi4"].hosts == ("pi@raspberrypi.local",)
    assert targets["rpi4"].ram_max_bytes is None
    assert targets["rpi4"].main_cluster == get_target("rpi4").main_cluster
    assert targets["rpi4-1800mhz"].hosts == ()  # a shipped entry stands on shipped ones


def test_own_chain_of_extends(own) -> None:
    path = own(
        "schema_version: 1\ntargets:\n"
        "  b: {extends: a, ram_bytes: 2G}\n"
        "  a: {extends: rpi5, clusters: {a76: {L3: null}}}\n"
    )
    target = get_target("b", path)
    assert target.ram_bytes == 2 * G
    assert target.main_cluster.L3 is None
    assert target.main_cluster.L2 == get_target("rpi5").main_cluster.L2


def test_file_of_the_working_folder_is_found(own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own(GOOD).rename(tmp_path / "targets.yaml")
    monkeypatch.chdir(tmp_path)
    assert get_target("board").ram_bytes == 256 * M


@pytest.mark.parametrize(
    ("find", "put", "expected"),
    [
        ("cores: 2", "corse: 2", ['line 10: target board: clusters.a53.corse: unknown key "corse"; did you mean "cores"?', "line 8: target board: clusters.a53.cores: missing"][::-1]),
        ("    ram_bytes", "    ram_byte", ['line 12: target board: ram_byte: unknown key "ram_byte"; did you mean "ram_bytes"?', "line 3: target board: ram_bytes: missing"][::-1]),
        ("cores: 2", "cores: two", ["line 10: target board: clusters.a53.cores: found 'two', expected a valid integer"]),
        ("cores: 2", "cores: 0", ["line 10: target board: clusters.a53.cores: found 0, expected greater than 0"]),
        ("cores: 2", "cores: true", ["line 10: target board: clusters.a53.cores: found True, expected a valid integer"]),
        ("256K", "256Q", ["line 11: target board: clusters.a53.L2.size_bytes: found '256Q', expected a valid integer"]),
        ("shared: cluster", "shared: some", ["line 11: target board: clusters.a53.L2.shared: found 'some', expected 'core', 'cluster' or 'all'"]),
        ("onnx: onnxruntime", "onx: onnxruntime", ['line 13: target board: runtimes.onx: unknown key "onx"; did you mean "onnx"?']),
        ("{onnx: onnxruntime}", "{}", ["line 13: target board: runtimes: no runtime is listed; expected no_runtime_reason to say why"]),
        ("schema_version: 1", "schema_version: 2", ["line 1: schema_version is 2; expected 1"]),
        ("schema_version: 1\n", "", ["schema_version is missing; expected 1"]),
        ("targets:", "tragets:", ['line 2: unknown key "tragets"; did you mean "targets"?', "targets: expected a mapping of names, found nothing"]),
        ("  board:", "  host:", ['line 3: target host: "host" is probed on the machine and cannot be listed']),
        ("  board:", "  -oProxyCommand=x:", ["line 3: target -oProxyCommand=x: a target name is letters, digits and . + _ -, at most 64"]),
        ("isa: [neon]", "isa: [neon]\n    isa: []", ['line 7: "isa" is given twice; it stands on line 6 already']),
        ("isa: [neon]", "isa: &a [neon]\n    hosts: *a", ["line 7: YAML alias *a is not allowed here; use `extends`"]),
        ("isa: [neon]", "isa: [neon", ["line 7: not YAML: expected ',' or ']', but got ':'"]),
        ("ram_bytes: 256M", "ram_bytes: 256M\n    ram_max_bytes: 128M", ["line 13: target board: ram_max_bytes: found 134217728, expected at least ram_bytes 268435456"]),
        ("cores: 2", "cores: 2\n        read: {low_gb_s: .nan, high_gb_s: 2}", ["line 11: target board: clusters.a53.read.low_gb_s: found nan, expected a finite number"]),
        ("cores: 2", "cores: 2\n        read: {low_gb_s: 3, high_gb_s: 2}", ["line 11: target board: clusters.a53.read: high_gb_s 2 is below low_gb_s 3"]),
        ("description: My board\n", "extends: rip4\n", ["line 4: target board: extends: extends 'rip4', which is no target; did you mean \"rpi4\"?"]),
        ("description: My board\n", "extends: board\n", ['line 4: target board: extends: extends runs in a circle at "board"']),
        ("description: My board\n", "known_bad: []\n", ["line 3: target board: description: missing"]),
    ],
)  # fmt: skip
def test_a_bad_file_names_target_key_and_line(own, find: str, put: str, expected: list[str]) -> None:
    assert find in GOOD
    path = own(GOOD.replace(find, put, 1))
    assert problems(path) == expected
    with pytest.raises(TargetsError, match=r"own\.yaml: ") as caught:
        load_targets(path)
    assert expected[0] in caught.value.message


def test_a_host_that_ssh_would_take_for_an_option_is_refused(own) -> None:
    path = own(GOOD + "    hosts: [-oProxyCommand=sh]\n")
    assert len(problems(path)) == 1
    assert "target board: hosts.0: found '-oProxyCommand=sh'" in problems(path)[0]


def test_all_problems_are_listed_in_the_order_of_lines(own) -> None:
    path = own(GOOD.replace("cores: 2", "cores: two").replace("isa: [neon]", "isa: neon"))
    assert [problem.line for problem in check_file(path)] == [6, 10]
    with pytest.raises(TargetsError, match=r"and 1 more"):
        load_targets(path)


def test_a_good_file_has_no_problems(own) -> None:
    assert check_file(own(GOOD)) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"#" * ((256 << 10) + 1), "over 256 KiB"),
        (None, "cannot read the targets file"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "t.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TargetsError, match=message):
        check_file(path)


def test_an_empty_file_and_a_deep_one(own) -> None:
    assert problems(own("")) == ["expected the keys schema_version and targets, found nothing"]
    assert problems(own("[" * 20000 + "]" * 20000)) == ["line 1: nested over 16 deep; a targets file needs 7 levels"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(codec="utf-8"), max_size=80), at=st.integers(0, len(GOOD)))
def test_no_text_gets_past_the_door_unjudged(tmp_path: Path, text: str, at: int) -> None:
    """Whatever is spliced into a good file: a list of problems, never another exception."""
    path = tmp_path / "fuzz.yaml"
    path.write_text(GOOD[:at] + text + GOOD[at:], encoding="utf-8", newline="")
    found = check_file(path)
    if not found:
        load_targets(path)


def test_importing_targets_is_cheap() -> None:
    code = "import edgepack.targets.target, sys; print([m for m in ('yaml', 'pydantic', 'scipy', 'onnx') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
