#!/usr/bin/env python3
"""Measures the machine it runs on: real clock, read bandwidth, latency of its caches. See CONTRACT.md for the report.

One file, the standard library alone, Python 3.9 or newer, about 10 s. One JSON object goes to stdout, everything else
to stderr. What Python cannot time (one load, one addition) is done by a few dozen instructions of machine code that
this file writes into memory; where that is not allowed, the C library's memchr still reads.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import glob
import json
import mmap
import os
import platform
import re
import struct
import sys
import threading
import time

SCHEMA_VERSION = 1
KIB, MIB = 1 << 10, 1 << 20
SMALLEST_READ, SMALLEST_CHASE, LARGEST = 16 * KIB, 4 * KIB, 64 * MIB
LARGEST_EVER = 512 * MIB  # for caches that 64 MiB would fit into
LINE = 64
ADDS = 512  # in one turn of the clock's loop: its counter and branch are lost among them
CHASED = 64  # loads in one turn of the chase's loop
FACTOR, SEED = 6364136223846793005, 20080229
DRIFT = 0.02
TRIES = 3  # of a block whose clock drifts
PROT_READ_EXEC = mmap.PROT_READ | mmap.PROT_EXEC if hasattr(mmap, "PROT_EXEC") else 0


# ---------------------------------------------------------------- machine code


def x86_64(wide):
    """The four functions for x86-64 (System V calls); `wide` reads with AVX."""
    clock = bytes.fromhex("31c0 ba01000000")  # xor eax,eax; mov edx,1
    body = bytes.fromhex("4801d0") * ADDS + bytes.fromhex("48ffcf")  # add rax,rdx …; dec rdi
    clock += body + jump_back(len(body)) + b"\xc3"
    # rax runs 128 bytes ahead of the data, so that the offsets of a 256-byte turn fit into a signed byte.
    step = 32 if wide else 16
    load = bytes.fromhex("c5fc10" if wide else "0f10")  # vmovups ymm / movups xmm, [rax + offset]
    turn = b"".join(
        load + bytes([0x40 | (at // step % 8) << 3, (at - 128) & 0xFF]) for at in range(0, 256, step)
    ) + bytes.fromhex("480500010000 4839c8")  # add rax,256; cmp rax,rcx
    turn += jump_back(len(turn))
    outer = bytes.fromhex("488d8780000000 488d8c3780000000") + turn  # lea rax,[rdi+128]; lea rcx,[rdi+rsi+128]
    outer += bytes.fromhex("48ffca")  # dec rdx
    read = outer + jump_back(len(outer)) + (b"\xc5\xf8\x77" if wide else b"") + b"\xc3"  # vzeroupper; ret
    body = bytes.fromhex("488b3f") * CHASED + bytes.fromhex("48ffce")  # mov rdi,[rdi] …; dec rsi
    chase = body + jump_back(len(body)) + bytes.fromhex("4889f8c3")  # mov rax,rdi; ret
    # every line points at itself: mov [rax],rax; add rax,64; cmp rax,r8
    body = bytes.fromhex("488900 4883c040 4c39c0")
    link = bytes.fromhex("4c8d0437 4889f8") + body + jump_back(len(body))  # lea r8,[rdi+rsi]; mov rax,rdi
    link += bytes.fromhex("4889d1 49ba") + struct.pack("<Q", FACTOR)  # mov rcx,rdx; mov r10,FACTOR
    link += bytes.fromhex("4989f1 49c1e906 49ffc9 4983e840")  # mov r9,rsi; shr r9,6; dec r9; sub r8,64
    # imul rcx,r10; inc rcx; mov rax,rcx; mul r9; shl rdx,6
    body = bytes.fromhex("490fafca 48ffc1 4889c8 49f7e1 48c1e206")
    body += bytes.fromhex("488b0417 498b30 498900 48893417")  # swaps [rdi+rdx] and [r8] through rax and rsi
    body += bytes.fromhex("4983e840 49ffc9")  # sub r8,64; dec r9
    link += body + jump_back(len(body)) + b"\xc3"
    return {"clock": clock, "read": read, "chase": chase, "link": link}


def jump_back(length):
    """jne over the `length` bytes before it, in its long form."""
    return b"\x0f\x85" + struct.pack("<i", -length - 6)


def aarch64():
    """The four functions for 64-bit Arm. d8 to d15 belong to the caller and stay untouched."""
    ret = 0xD65F03C0
    clock = [0xD2800001, 0xD2800022]  # mov x1,0; mov x2,1
    clock += [0x8B020021] * ADDS + [0xF1000400, branch_back(ADDS + 1), ret]  # add x1,x1,x2 …; subs x0,x0,1
    # ldp q,q,[x3,offset]: sixteen registers, so that an in-order core has four lines under way
    pairs = [(0, 1), (2, 3), (4, 5), (6, 7), (16, 17), (18, 19), (20, 21), (22, 23)]
    turn = [0xAD400000 | 2 * i << 15 | second << 10 | 3 << 5 | first for i, (first, second) in enumerate(pairs)]
    turn += [0x91040063, 0xEB04007F]  # add x3,x3,256; cmp x3,x4
    read = [0xAA0003E3, 0x8B010004, *turn, branch_back(len(turn)), 0xF1000442]  # mov x3,x0; add x4,x0,x1; subs x2,x2,1
    read += [branch_back(len(read)), ret]
    chase = [0xF9400000] * CHASED + [0xF1000421, branch_back(CHASED + 1), ret]  # ldr x0,[x0] …; subs x1,x1,1
    turn = [0xF90000A5, 0x910100A5, 0xEB0400BF]  # every line points at itself: str x5,[x5]; add x5,x5,64; cmp x5,x4
    link = [0x8B010004, 0xAA0003E5, *turn, branch_back(len(turn))]  # add x4,x0,x1; mov x5,x0
    parts = [FACTOR >> shift & 0xFFFF for shift in (0, 16, 32, 48)]  # movz x6,…; movk x6,…
    link += [(0xF2800000 if i else 0xD2800000) | i << 21 | part << 5 | 6 for i, part in enumerate(parts)]
    link += [0xD346FC27, 0xD10004E7, 0xD1010084, 0xD280002B]  # lsr x7,x1,6; sub x7,x7,1; sub x4,x4,64; mov x11,1
    turn = [0x9B062C42, 0x9BC77C48, 0xD37AE508]  # madd x2,x2,x6,x11; umulh x8,x2,x7; lsl x8,x8,6
    turn += [0xF8686809, 0xF940008A, 0xF9000089, 0xF828680A]  # swaps [x0,x8] and [x4] through x9 and x10
    turn += [0xD1010084, 0xF10004E7]  # sub x4,x4,64; subs x7,x7,1
    link += [*turn, branch_back(len(turn)), ret]
    functions = {"clock": clock, "read": read, "chase": chase, "link": link}
    return {name: struct.pack(f"<{len(words)}I", *words) for name, words in functions.items()}


def branch_back(count):
    """b.ne over the `count` instructions before it."""
    return 0x54000001 | (-count & 0x7FFFF) << 5


ARGUMENTS = {"clock": 1, "read": 3, "chase": 2, "link": 3}


class NoCodeError(Exception):
    """Machine code cannot be run here; the message says why."""


class Code:
    """The functions as callables: `clock(turns)`, `read(address, bytes, passes)`, `chase(address, turns)` and
    `link(address, bytes, seed)`. ctypes gives up the interpreter's lock while they run.

    `link` makes the lines of a buffer one cycle of pointers in random order (Sattolo 1986: from the last line down,
    each is swapped with a random one before it); its random numbers are the high bits of Knuth's MMIX generator.
    """

    def __init__(self):
        machine = platform.machine()
        self.libc = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
        if machine not in ("x86_64", "aarch64") or struct.calcsize("P") != 8 or sys.platform != "linux":
            raise NoCodeError(
                f"no machine code for a {8 * struct.calcsize('P')}-bit {machine} process on {sys.platform}"
            )
        flags = re.search(r"^flags\s*:(.*)$", read_text("/proc/cpuinfo"), re.MULTILINE)
        functions = aarch64() if machine == "aarch64" else x86_64(flags is not None and "avx" in flags[1].split())
        starts, text = {}, b""
        for name, code in functions.items():
            starts[name] = len(text)
            text += code + b"\x00" * (-len(code) % 64)
        address = self.executable(text)
        for name, start in starts.items():
            kind = ctypes.CFUNCTYPE(ctypes.c_void_p, *[ctypes.c_size_t] * ARGUMENTS[name])
            setattr(self, name, kind(address + start))

    def executable(self, text):
        """Address of a copy of `text` that may be executed and no longer written.

        The kernel makes the instruction cache see a page when it first becomes executable; `__clear_cache` asks for it
        in so many words, where the compiler's library is there.
        """
        size = -(-len(text) // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            self.memory = private(size)
        except OSError as err:
            raise NoCodeError(f"no page for machine code: {err.strerror}") from err
        self.memory[: len(text)] = text
        address = address_of(self.memory)
        if self.libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), PROT_READ_EXEC) != 0:
            raise NoCodeError(f"a page may not be made executable here: {os.strerror(ctypes.get_errno())}")
        with contextlib.suppress(OSError, AttributeError):
            flush = ctypes.CDLL("libgcc_s.so.1")["__clear_cache"]
            flush(ctypes.c_void_p(address), ctypes.c_void_p(address + len(text)))
        return address


class Memchr:
    """The reader without machine code: libc looks for a byte that is not there."""

    def __init__(self):
        self.memchr = ctypes.CDLL(None).memchr
        self.memchr.restype = ctypes.c_void_p
        self.memchr.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

    def read(self, address, size, passes):
        """Reads a buffer of ones `passes` times."""
        for _ in range(passes):
            self.memchr(address, 0, size)


def private(size):
    """Memory as malloc gives it; Python's own default, shared with children, never lies in huge pages."""
    if os.name == "posix":
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, size)


def address_of(memory):
    """Where an mmap lies."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


# ---------------------------------------------------------------- what the kernel says


def read_text(path, default=""):
    """A small text file, or the default where the kernel does not give it."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip("\x00\n ")
    except OSError:
        return default


def cpu_list(text):
    """[0, 1, 2, 5] of "0-2,5"."""
    cpus = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        cpus.extend(range(int(first), int(last or first) + 1))
    return cpus


def free_bytes():
    """Memory that may be taken without harm: a quarter of what is available, also to this container."""
    found = [int(kib) * KIB for kib in re.findall(r"^MemAvailable:\s+(\d+) kB", read_text("/proc/meminfo"), re.M)]
    limit = read_text("/sys/fs/cgroup/memory.max")
    found += [int(limit)] if limit.isdigit() else []
    return min(found, default=256 * MIB) // 4


def largest_cache_bytes():
    """Size of the largest cache that the kernel lists, 0 where it lists none."""
    sizes = [read_text(path) for path in glob.glob("/sys/devices/system/cpu/cpu[0-9]*/cache/index[0-9]*/size")]
    found = [re.fullmatch(r"(\d+)([KMG]?)", size) for size in sizes]
    return max((int(size[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[size[2]] for size in found if size), default=0)


def huge_bytes():
    """How much of this process lies in huge pages, None where the kernel does not say."""
    found = re.search(r"^AnonHugePages:\s+(\d+) kB", read_text("/proc/self/smaps_rollup"), re.MULTILINE)
    return int(found[1]) * KIB if found else None


def temperature_c():
    """The hottest thermal zone, °C, None where there is none."""
    zones = [read_text(path) for path in glob.glob("/sys/class/thermal/thermal_zone*/temp")]
    return max((int(zone) / 1000 for zone in zones if zone.lstrip("-").isdigit()), default=None)


def pin(cpus):
    """Keeps the calling thread on these CPUs, where the machine can."""
    if cpus and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)


# ---------------------------------------------------------------- what is measured


def seconds(call, *arguments):
    """Of one call."""
    start = time.perf_counter_ns()
    call(*arguments)
    return max(time.perf_counter_ns() - start, 1) * 1e-9


def turns_for(call, wanted_s):
    """How many turns of `call(turns)` take about `wanted_s`: doubled until they can be timed, then scaled."""
    turns = 1
    while True:
        taken = seconds(call, turns)
        if taken >= wanted_s / 4:
            return max(1, round(turns * wanted_s / taken))
        turns *= 2


class Clock:
    """The real clock: a core does one of dependent additions a cycle, so the fastest of many chains tells."""

    def __init__(self, code, plan):
        self.code = code
        self.runs = plan["clock_runs"]
        if code is not None:
            code.clock(40 * turns_for(code.clock, 1e-3))  # a governor needs its time to raise the clock
            self.turns = turns_for(code.clock, 1e-3)

    def hz(self):
        """Now, None without machine code."""
        if self.code is None:
            return None
        return ADDS * self.turns / min(seconds(self.code.clock, self.turns) for _ in range(self.runs))


def read_sizes(most, quick):
    """Powers of two and what lies half-way, 16 KiB to 64 MiB; above it powers of two up to `most`."""
    sizes, size = [], SMALLEST_READ
    while size <= max(most, LARGEST):
        sizes += [size] if quick or size >= LARGEST else [size, size * 3 // 2]
        size *= 2
    return [size for size in sizes if size <= most]


def chase_sizes(most, quick):
    """Four sizes an octave (quick: two), 4 KiB to 64 MiB."""
    found, size = [], SMALLEST_CHASE
    while size <= most:
        found += [size * part // 4 for part in ((4, 6) if quick else (4, 5, 6, 7))]
        size *= 2
    return [size for size in found if size <= most]


class Chase:
    """Loads that each wait for the one before, over a working set of its own size."""

    def __init__(self, code, most, plan):
        self.code, self.plan = code, plan
        self.memory = private(most + 2 * MIB)
        with contextlib.suppress(AttributeError, OSError):  # in small pages the misses of the TLB look like a cache's
            self.memory.madvise(mmap.MADV_HUGEPAGE)
        self.start = -(-address_of(self.memory) // (2 * MIB)) * 2 * MIB

    def point(self, size):
        """{bytes, load_s}: seconds per load of several repeats."""
        self.code.link(self.start, size, SEED)
        at = self.code.chase(
            self.start, -(-size // (LINE * CHASED))
        )  # once round: what the caches keep is as it will be
        turns = turns_for(lambda turns: self.code.chase(at, turns), self.plan["chase_s"])
        load_s = []
        for _ in range(self.plan["repeats"]):
            start = time.perf_counter_ns()
            at = self.code.chase(at, turns)
            load_s.append((time.perf_counter_ns() - start) * 1e-9 / (turns * CHASED))
        return {"bytes": size, "load_s": load_s}


class Reader:
    """`threads` threads, each on a CPU of its own, read a buffer of its own over and over."""

    def __init__(self, reader, threads, cpus, most, plan):
        self.reader, self.threads, self.cpus, self.plan = reader, threads, cpus, plan
        self.memories = [private(most) for _ in range(threads)]
        self.addresses = [address_of(memory) for memory in self.memories]
        self.run(lambda index: ctypes.memset(self.addresses[index], 1, most))  # from its own CPU, for its own memory

    def run(self, work):
        """`work(index)` in every thread at once; raises what a thread raised."""
        failures = []

        def task(index):
            try:
                pin(self.cpus[-1 - index : len(self.cpus) - index])
                work(index)
            except BaseException as err:  # noqa: BLE001 (handed to the main thread)
                failures.append(err)
                barrier.abort()

        barrier = self.barrier = threading.Barrier(self.threads)
        threads = [threading.Thread(target=task, args=(index,), daemon=True) for index in range(self.threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise next((err for err in failures if not isinstance(err, threading.BrokenBarrierError)), failures[0])

    def point(self, size):
        """{bytes (of one thread), threads, bytes_per_s (of all, from the first start to the last end)} of a size."""
        times = [[None] * self.threads for _ in range(self.plan["repeats"])]
        passes = [0]

        def work(index):
            def read(times):
                self.reader.read(self.addresses[index], size, times)

            read(1)
            if index == 0:
                passes[0] = turns_for(read, self.plan["read_s"])
            for repeat in times:
                self.barrier.wait()
                start = time.perf_counter_ns()
                read(passes[0])
                repeat[index] = (start, time.perf_counter_ns())

        self.run(work)
        rates = []
        for repeat in times:
            taken = max(end for _, end in repeat) - min(start for start, _ in repeat)
            rates.append(self.threads * size * passes[0] / max(taken * 1e-9, 1e-9))
        return {"bytes": size, "threads": self.threads, "bytes_per_s": rates}


def measured(what, point, sizes, clock, blocks, plan):
    """`point(size)` of all sizes in blocks; a block over which the clock drifts is measured again."""
    found = []
    for start in range(0, len(sizes), plan["block"]):
        for attempt in range(1, TRIES + 1):
            before = clock.hz() if attempt > 1 or not blocks else blocks[-1]["clock_hz"][1]
            points = [point(size) for size in sizes[start : start + plan["block"]]]
            after = clock.hz()
            drifted = after is not None and abs(after / before - 1) > DRIFT
            if not drifted:
                break
        blocks.append(
            {
                "measures": what,
                "bytes": [points[0]["bytes"], points[-1]["bytes"]],
                "clock_hz": [before, after],
                "attempts": attempt,
                "drifted": drifted,
            }
        )
        found += points
    return found


def sweep(args):
    """The whole of it; see CONTRACT.md."""
    started = time.perf_counter()
    cpus = cpu_list(args.cpus) if args.cpus else []
    pin(cpus)
    if hasattr(os, "sched_getaffinity"):
        cpus = sorted(os.sched_getaffinity(0))
    threads = min(args.threads, len(cpus) or os.cpu_count() or 1)
    pin(cpus[-1:])  # the first CPUs serve the kernel's interrupts
    plan = {"repeats": 5, "read_s": 0.012, "chase_s": 0.003, "clock_runs": 16, "block": 6}
    if args.quick:
        plan.update(repeats=3, read_s=0.004, chase_s=0.001, clock_runs=8)
    free, warm_c = free_bytes(), temperature_c()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    try:
        code, reason = Code(), None
    except NoCodeError as err:
        code, reason = None, str(err)
    clock, blocks = Clock(code, plan), []
    reader = code or Memchr()
    report = {
        "machine": platform.machine(),
        "cpus": cpus,
        "threads": threads,
        "quick": args.quick,
        "load_average": load,
    }
    report.update(reader="loads" if code else "memchr", code_unavailable=reason, bandwidth=[])
    wanted = min(max(LARGEST, 4 * largest_cache_bytes()), LARGEST_EVER)
    for count in sorted({1, threads}):
        most = max(min(wanted, free // count), SMALLEST_READ)
        read = Reader(reader, count, cpus, most, plan)
        sizes = read_sizes(most, args.quick)
        report["bandwidth"] += measured(f"read, threads {count}", read.point, sizes, clock, blocks, plan)
        del read  # its buffers go before the next ones come
    report["latency"], report["huge_bytes"] = [], None
    if code:
        most = max(min(LARGEST, free), SMALLEST_CHASE)
        chase = Chase(code, most, plan)
        report["latency"] = measured("latency", chase.point, chase_sizes(most, args.quick), clock, blocks, plan)
        report["huge_bytes"] = huge_bytes()
    clocks = [hz for block in blocks for hz in block["clock_hz"] if hz is not None]
    report.update(clock_hz=max(clocks, default=None), blocks=blocks, temperature_c=[warm_c, temperature_c()])
    return {**report, "seconds": time.perf_counter() - started}


# ---------------------------------------------------------------- the door


def parse(argv):
    """The arguments; see CONTRACT.md."""
    parser = argparse.ArgumentParser(description="Measures this machine's clock, bandwidth and caches; JSON on stdout.")
    parser.add_argument("--threads", type=int, default=1, help="most threads that read at once; 1 is always measured")
    parser.add_argument("--cpus", help="CPUs to stay on, such as 0-2,5")
    parser.add_argument("--quick", action="store_true", help="fewer sizes, shorter times")
    args = parser.parse_args(argv)
    if not 1 <= args.threads <= 4096:
        parser.error("--threads starts at 1")
    if args.cpus and not re.fullmatch(r"\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*", args.cpus):
        parser.error("--cpus is a list such as 0-2,5")
    return args


def main(argv):
    """Measures; returns the exit code: 0 measured, 1 failed with an `error` in the report, 2 bad arguments."""
    args = parse(argv)
    report = {"schema_version": SCHEMA_VERSION, "mode": "sweep"}
    code = 0
    try:
        report.update(sweep(args))
    except Exception as err:  # noqa: BLE001 (the process ends here, and the report carries what it was)
        report["error"], code = {"kind": "failed", "message": f"{type(err).__name__}: {err}"[:4000]}, 1
    json.dump(report, sys.stdout, allow_nan=False)
    sys.stdout.write("\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
