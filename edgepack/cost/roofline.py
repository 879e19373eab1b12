"""A layer's time from the data sheet of the CPU: what is left where nothing was measured or counted.

t = max(multiplications / rate, weight bytes / bandwidth of the level they fit in) + overhead per operator, after the
roofline of Williams, Waterman and Patterson (2009). Rates are instructions per multiplication, counted in the runtimes'
own kernels, over the instructions per second of the core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgepack.backends.registry import FACTS
from edgepack.cost.model import LatencyEstimate
from edgepack.model.point import Point, is_linear
from edgepack.model.scheme import INT8_BITS, Format, Scheme
from edgepack.model.structure import Op
from edgepack.targets.target import Bandwidth, Cluster, Target

NAME = "roofline of targets.yaml"
NOMINAL_NAME = "roofline, nominal constants"

NOMINAL_MHZ: Mapping[str, float] = {"x86_64": 2500.0, "i686": 1500.0, "aarch64": 1500.0}
"""Clocks where targets.yaml and the kernel name none; 1000 MHz for all other architectures. Usual for the class."""
OTHER_MHZ = 1000.0
NOMINAL_IPC = 2.0
"""Instructions per cycle where targets.yaml lacks them: cores that issue two to four sustain about this."""
NOMINAL_READ_GB_S: Mapping[str, float] = {"x86_64": 10.0, "i686": 4.0, "aarch64": 4.0}
OTHER_READ_GB_S = 1.0
"""Streaming read of one core: between the boards of targets.yaml."""
L2_BYTES_PER_CYCLE, L3_BYTES_PER_CYCLE = 12.0, 6.0
"""Sustained by one core, nominal: a quarter to three quarters of the most that makers' manuals give."""
CACHE_SHARE = 0.75
"""Of a cache that weights may fill: activations, code and the runtime's own data take the rest."""
NOMINAL_LAST_CACHE_BYTES = 512 << 10
"""Of the last cache where none is known."""

ERROR_SHARE = 0.3
"""Usual deviation from the emulated tables of the five shipped CPUs, as `tests/cost/test_roofline.py` shows."""
NOMINAL_ERROR_SHARE = 0.5


@dataclass(frozen=True)
class Kernels:
    """Instructions per multiplication and per weight, by what the instruction set offers.

    Attributes:
        fp32, int8: per multiplication, with the loads that go with it.
        nbits: per multiplication of ONNX Runtime's n-bit kernels; None where it has none for this instruction set and
            decodes the weights to float32 first.
    """

    fp32: float
    int8: float
    nbits: float | None


KERNELS: Sequence[tuple[frozenset[str], Kernels]] = (
    (frozenset({"avx512f", "avx512-vnni"}), Kernels(0.10, 0.04, 0.06)),
    (frozenset({"avx2", "avx-vnni"}), Kernels(0.19, 0.07, 0.09)),
    (frozenset({"avx512f"}), Kernels(0.10, 0.07, 0.15)),
    (frozenset({"avx2"}), Kernels(0.19, 0.10, 0.22)),
    (frozenset({"avx"}), Kernels(0.30, 0.30, None)),
    (frozenset({"sse4.2"}), Kernels(0.60, 0.35, None)),
    (frozenset({"neon", "i8mm"}), Kernels(0.32, 0.07, 0.11)),
    (frozenset({"neon", "dotprod"}), Kernels(0.32, 0.10, 0.15)),
    (frozenset({"neon"}), Kernels(0.32, 0.26, None)),
)
"""The first set that a target has all of. Arm without and with dot product: counted on an emulated Cortex-A72 and A76
(2048x2048, 16 rows: ONNX Runtime 0.31, 0.25, 0.10 and LiteRT 0.34, 0.29, 0.09). AVX2: that layer timed at one row, at
the nominal clock and instructions per cycle. i8mm and the rest of x86: lanes per instruction in the makers' manuals, in
proportion to those."""
SCALAR = Kernels(2.2, 3.0, None)
"""Load, load, multiply-add, and a share of the loop; int8 sign-extends and adds apart."""
ARMV7_FACTOR = 2.0
"""Its vector unit is 64 bits wide at most cores of that generation."""

DECODE: Mapping[int, float] = {4: 3.0, 8: 15.0}
"""Instructions per weight to decode n bits to float32 without a kernel, once per inference: counted on an emulated
Cortex-A72, 3.4 and 16.3 million for 1024x1024."""
UNPACK_FACTOR = 1.15
"""Of weights that share a byte. LiteRT unpacks two of 4 bits before it multiplies: an emulated Cortex-A72 and x86 agree
within a third."""


@dataclass(frozen=True)
class Roofline:
    """The data sheet of a target as a source of costs; it has an answer for every layer.

    Attributes:
        kernels: of its instruction set.
        instructions_s: that it executes in a second, all threads together.
        levels: (bytes, bytes per second) of each level of memory beyond the first, smallest first; the last is the
            memory itself.
        nominal: whether one of the constants stands for what is not known of this target.
    """

    kernels: Kernels
    instructions_s: float
    levels: tuple[tuple[float, float], ...]
    nominal: bool

    @property
    def name(self) -> str:
        """See `CostSource`."""
        return NOMINAL_NAME if self.nominal else NAME

    def estimates(self, points: Sequence[Point]) -> list[LatencyEstimate | None]:
        """See `CostSource`; None for schemes that are put together from others, and for all but plain matrices."""
        error = NOMINAL_ERROR_SHARE if self.nominal else ERROR_SHARE
        return [
            None
            if point.structure.is_correction or not is_linear(point.ops)
            else LatencyEstimate(self.latency_s(point), self.name, error)
            for point in points
        ]

    def knows(self, scheme: Scheme) -> bool:
        """See `CostSource`."""
        return True

    def call_s(self, fmt: Format) -> float:
        """See `CostSource`."""
        return FACTS[fmt].call_instructions / self.instructions_s

    def latency_s(self, point: Point) -> float:
        """Seconds of one inference of a layer, without the call of the runtime."""
        bits = point.scheme.bits_read
        bandwidth = self._bandwidth(point.weights * bits / 8)
        total = 0.0
        for op in point.ops:
            compute = self._instructions(point.scheme, op) / self.instructions_s
            total += max(compute, op.weights * bits / 8 / bandwidth)
            total += _overhead(point.scheme, op) / self.instructions_s
        return total

    def _instructions(self, scheme: Scheme, op: Op) -> float:
        """Of the multiplications, and of decoding the weights where that comes first."""
        if scheme.granularity == "block":
            if self.kernels.nbits is None:
                return op.weights * DECODE.get(scheme.bits, max(DECODE.values())) + op.macs * self.kernels.fp32
            return op.macs * self.kernels.nbits
        if scheme.computes_in_float:
            return op.macs * self.kernels.fp32
        return op.macs * self.kernels.int8 * (UNPACK_FACTOR if scheme.bits < INT8_BITS else 1.0)

    def _bandwidth(self, weight_bytes: float) -> float:
        """Of the level that the weights fit in. What fits the first is bound by instructions alone."""
        return next((rate for size, rate in self.levels if weight_bytes <= size), self.levels[-1][1])


def _overhead(scheme: Scheme, op: Op) -> float:
    """Instructions around one product: of the operators, and of bringing its inputs and outputs into order."""
    facts = FACTS[scheme.backend]
    floats = scheme.computes_in_float or scheme.granularity == "block"  # as the runtime sees them
    per_input, per_output = facts.float_values if floats else facts.integer_values
    return scheme.instructions_per_op + op.vectors * (per_input * op.columns + per_output * op.rows)


def roofline(target: Target, threads: int = 1) -> Roofline:
    """The roofline of a target's main cluster.

    Args:
        target: any; what is not known of it is taken as nominal, and the name says so.
        threads: over which the work is spread evenly, as far as there are cores.
    """
    cluster = target.main_cluster
    nominal = cluster.frequency_mhz is None or cluster.ipc is None or cluster.read is None or not cluster.data_caches
    megahertz = cluster.frequency_mhz or NOMINAL_MHZ.get(target.arch, OTHER_MHZ)
    ipc = NOMINAL_IPC if cluster.ipc is None else 2 / (1 / cluster.ipc.low + 1 / cluster.ipc.high)
    workers = max(1, min(threads, cluster.cores))
    hertz = megahertz * 1e6
    return Roofline(_kernels(target), hertz * ipc * workers, _levels(target, cluster, hertz, workers), nominal)


def _kernels(target: Target) -> Kernels:
    isa = set(target.isa)
    found = next((kernels for needed, kernels in KERNELS if needed <= isa), SCALAR)
    if target.arch.startswith("armv") and found is not SCALAR:
        return Kernels(found.fp32 * ARMV7_FACTOR, found.int8 * ARMV7_FACTOR, None)
    return found


def _levels(target: Target, cluster: Cluster, hertz: float, workers: int) -> tuple[tuple[float, float], ...]:
    """Private caches grow with the threads, shared ones serve them all at once. No cache is slower than the memory."""
    read = _read_bytes_s(target, cluster, workers)
    levels = [(CACHE_SHARE * cluster.L1d.size_bytes * workers, float("inf"))] if cluster.L1d is not None else []
    for cache, per_cycle in ((cluster.L2, L2_BYTES_PER_CYCLE), (cluster.L3, L3_BYTES_PER_CYCLE)):
        if cache is not None:
            sharers = workers if cache.shared == "core" else 1
            levels.append((CACHE_SHARE * cache.size_bytes * sharers, max(read, per_cycle * hertz * workers)))
    if len(levels) <= 1:
        levels.append((CACHE_SHARE * NOMINAL_LAST_CACHE_BYTES, max(read, L2_BYTES_PER_CYCLE * hertz * workers)))
    return (*levels, (float("inf"), read))


def _read_bytes_s(target: Target, cluster: Cluster, workers: int) -> float:
    read: Bandwidth | None = cluster.read if workers == 1 else (cluster.read_all_cores or cluster.read)
    if read is None:
        return NOMINAL_READ_GB_S.get(target.arch, OTHER_READ_GB_S) * 1e9
    return (read.low_gb_s + read.high_gb_s) / 2 * 1e9
