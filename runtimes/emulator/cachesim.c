/* A QEMU TCG plugin (user mode) that counts instructions and drives a cache model with every access of the guest.
 *
 * Arguments, each key=value:
 *   out=FILE            one line of counters per mark and one at the end, see below; written as they happen
 *   l1i=SIZE:WAYS:LINE  instruction cache, private to each thread; bytes
 *   l1d=SIZE:WAYS:LINE  data cache, private to each thread
 *   l2=…, l3=…, l4=…    unified levels behind them, in this order; `:shared` at the end makes one cache of all
 *                       threads. No line may be shorter than one of a level before it
 *   start=mark          do nothing, at the full speed of QEMU, until the guest first marks; that mark writes no line
 *   threads=marking     count only what the thread does that marks; the others still use the shared caches
 *   trace=FILE          also record what drives the model, for tests: "thread r|w address bytes" per access and
 *                       "thread i address bytes instructions" per block, addresses in hexadecimal
 *
 * A line of counters is `MARK thread instructions accesses bytes l1i l1d l2 l3 l4`, totals since the start over all
 * threads (`thread` is the one that marked; with threads=marking they are its own); l1i … l4 are misses. MARK is the second argument of the marking system
 * call prctl(0x45504d4b, MARK), which no kernel knows (it answers EINVAL), or "end". A process that the guest forks
 * writes nothing; a guest that a signal ends, or that becomes another program by execve, writes no "end".
 *
 * Accesses are counted as QEMU makes them: version 7 splits a vector access into parts of 8 bytes, and does not tell
 * of what the kernel reads and writes in a system call, nor of memory that aarch64 clears by whole blocks (dc zva). An
 * access that crosses a line touches both. Instructions are counted, and their lines fetched, as a translation block
 * is entered.
 */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "caches.h"
#include "geometry.h"
#include "qemu.h"

EXPORT int qemu_plugin_version = PLUGIN_API;

#define MARK 0x45504d4bu
#define LIKELY(condition) __builtin_expect(!!(condition), 1)
enum { MAX_THREADS = 4096, SIZES = 8, KINDS = 1 << 18 };

typedef struct {
    _Alignas(64) Cache cache[LEVELS]; /* of private levels; shared ones stay empty */
    uint64_t instructions;
    uint64_t accesses[SIZES]; /* by the binary logarithm of their bytes */
    uint64_t misses[LEVELS];
} Thread;

typedef struct {
    uint64_t address, first_line, last_line;
    uint32_t bytes, instructions;
} Block;

static Cache shared[LEVELS];
static atomic_flag shared_lock = ATOMIC_FLAG_INIT;
static bool alone = true; /* until there is a second thread; changes while there is only the first */
static Thread *_Atomic threads[MAX_THREADS];
static _Atomic uint8_t bytes_of[KINDS]; /* of an access by QEMU's word for its kind; 0 is unknown */
static int64_t prctl_number;
static atomic_bool waiting; /* for the first mark */
static bool marking_only;
static pid_t owner; /* the process that writes; its forks do not */
static FILE *out, *trace;

static inline Thread *thread_of(unsigned index)
{
    return atomic_load_explicit(&threads[index], memory_order_relaxed);
}

static bool touch_shared(Cache *cache, uint64_t line)
{
    if (alone)
        return cache_touch(cache, line);
    for (int tries = 1; atomic_flag_test_and_set_explicit(&shared_lock, memory_order_acquire); tries++)
        if (tries % 64 == 0)
            sched_yield(); /* the holder may be off the CPU */
    bool hit = cache_touch(cache, line);
    atomic_flag_clear_explicit(&shared_lock, memory_order_release);
    return hit;
}

/* Touches a line of a first level and, where it was missing, the same address in the levels behind. */
static void fetch(Thread *thread, int first, uint64_t line)
{
    if (cache_touch(&thread->cache[first], line))
        return;
    thread->misses[first]++;
    uint64_t address = line << thread->cache[first].line_shift;
    for (int level = 2; level < levels; level++) {
        bool common = geometry[level].shared;
        Cache *cache = common ? &shared[level] : &thread->cache[level];
        uint64_t wanted = address >> cache->line_shift;
        if (common ? touch_shared(cache, wanted) : cache_touch(cache, wanted))
            return;
        thread->misses[level]++;
    }
}

/* Any access: of a kind met for the first time, across lines, or of another line than the latest of a set. */
__attribute__((noinline)) static void slow_access(Thread *thread, mem_info info, uint64_t address)
{
    unsigned shift = qemu_plugin_mem_size_shift(info) % SIZES;
    if (info < KINDS)
        atomic_store_explicit(&bytes_of[info], (uint8_t)(1u << shift), memory_order_relaxed);
    thread->accesses[shift]++;
    uint32_t line_shift = thread->cache[L1D].line_shift;
    uint64_t last = (address + (1u << shift) - 1) >> line_shift;
    for (uint64_t line = address >> line_shift; line <= last; line++)
        fetch(thread, L1D, line);
}

/* Runs for every access, so the frequent case is kept short: touching the latest line of a set again changes nothing,
 * and QEMU is asked for a size once per kind of access, since a call costs more than all the rest. */
static void on_access(unsigned index, mem_info info, uint64_t address, void *unused)
{
    (void)unused;
    Thread *thread = thread_of(index);
    const Cache *cache = &thread->cache[L1D];
    unsigned bytes = LIKELY(info < KINDS) ? atomic_load_explicit(&bytes_of[info], memory_order_relaxed) : 0;
    uint64_t line = address >> cache->line_shift, last = (address + bytes - 1) >> cache->line_shift;
    if (LIKELY(bytes && line == last && cache_latest(cache, line)))
        thread->accesses[__builtin_ctz(bytes)]++;
    else
        slow_access(thread, info, address);
}

__attribute__((noinline)) static void slow_block(Thread *thread, const Block *block)
{
    for (uint64_t line = block->first_line; line <= block->last_line; line++)
        if (!cache_latest(&thread->cache[L1I], line))
            fetch(thread, L1I, line);
}

/* As above: most blocks lie on one line or two, the latest of their sets. */
static void on_block(unsigned index, void *data)
{
    const Block *block = data;
    Thread *thread = thread_of(index);
    const Cache *cache = &thread->cache[L1I];
    thread->instructions += block->instructions;
    bool latest = cache_latest(cache, block->first_line) & cache_latest(cache, block->last_line);
    if (!LIKELY(latest && block->last_line - block->first_line < 2))
        slow_block(thread, block);
}

/* Records in the order in which the model was driven, also of several threads: one at a time. */
static void traced_access(unsigned index, mem_info info, uint64_t address, void *unused)
{
    if (getpid() != owner)
        return;
    flockfile(trace);
    fprintf(trace, "%u %c %" PRIx64 " %u\n", index, qemu_plugin_mem_is_store(info) ? 'w' : 'r', address,
            1u << qemu_plugin_mem_size_shift(info));
    on_access(index, info, address, unused);
    funlockfile(trace);
}

static void traced_block(unsigned index, void *data)
{
    const Block *block = data;
    if (getpid() != owner)
        return;
    flockfile(trace);
    fprintf(trace, "%u i %" PRIx64 " %u %u\n", index, block->address, block->bytes, block->instructions);
    on_block(index, data);
    funlockfile(trace);
}

/* Blocks live as long as QEMU: it may run a translation at any time until it throws all of them away. */
static void on_translate(plugin_id id, struct qemu_plugin_tb *tb)
{
    (void)id;
    size_t count = qemu_plugin_tb_n_insns(tb);
    Block *block = malloc(sizeof(Block));
    if (!block)
        fail("out of memory", NULL);
    const struct qemu_plugin_insn *last = qemu_plugin_tb_get_insn(tb, count - 1);
    uint64_t start = qemu_plugin_insn_vaddr(qemu_plugin_tb_get_insn(tb, 0));
    uint64_t end = qemu_plugin_insn_vaddr(last) + qemu_plugin_insn_size(last);
    uint32_t line = geometry[L1I].line;
    *block = (Block){start, start / line, (end - 1) / line, (uint32_t)(end - start), (uint32_t)count};
    mem_cb access = trace ? traced_access : on_access;
    for (size_t i = 0; i < count; i++)
        qemu_plugin_register_vcpu_mem_cb(qemu_plugin_tb_get_insn(tb, i), access, NO_REGISTERS, READ_AND_WRITE, NULL);
    qemu_plugin_register_vcpu_tb_exec_cb(tb, trace ? traced_block : on_block, NO_REGISTERS, block);
}

/* Runs in the thread that makes the new one. */
static void on_thread(plugin_id id, unsigned index)
{
    (void)id;
    if (index >= MAX_THREADS)
        fail("too many threads", NULL);
    if (index > 0 && alone)
        alone = false;
    if (thread_of(index))
        return; /* a number used again: the new thread continues on the same core */
    Thread *thread = aligned_alloc(_Alignof(Thread), sizeof(Thread));
    if (!thread)
        fail("out of memory", NULL);
    memset(thread, 0, sizeof(Thread));
    for (int level = 0; level < levels; level++) {
        const Geometry *g = &geometry[level];
        if (!g->shared && !cache_init(&thread->cache[level], g->size, g->ways, g->line))
            fail("out of memory", names[level]);
    }
    atomic_store_explicit(&threads[index], thread, memory_order_release);
}

/* Other threads go on counting, without a lock: a total of several threads is exact only while they rest. */
static inline uint64_t seen(const uint64_t *count)
{
    return __atomic_load_n(count, __ATOMIC_RELAXED);
}

static void print_counts(const char *mark, unsigned index)
{
    uint64_t instructions = 0, accesses = 0, bytes = 0, misses[LEVELS] = {0};
    for (int i = 0; i < MAX_THREADS; i++) {
        const Thread *thread = atomic_load_explicit(&threads[i], memory_order_acquire);
        if (!thread || (marking_only && i != (int)index))
            continue;
        instructions += seen(&thread->instructions);
        for (int shift = 0; shift < SIZES; shift++) {
            accesses += seen(&thread->accesses[shift]);
            bytes += seen(&thread->accesses[shift]) << shift;
        }
        for (int level = 0; level < LEVELS; level++)
            misses[level] += seen(&thread->misses[level]);
    }
    flockfile(out);
    fprintf(out, "%s %u %" PRIu64 " %" PRIu64 " %" PRIu64, mark, index, instructions, accesses, bytes);
    for (int level = 0; level < LEVELS; level++)
        fprintf(out, " %" PRIu64, misses[level]);
    fputc('\n', out);
    if (fflush(out) || ferror(out))
        fail("cannot write the counters", strerror(errno));
    funlockfile(out);
}

static void watch(plugin_id id);

static void on_syscall(plugin_id id, unsigned index, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4,
                       uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number != prctl_number || (uint32_t)a1 != MARK || getpid() != owner)
        return;
    if (atomic_exchange(&waiting, false)) {
        qemu_plugin_reset(id, watch); /* throws away every translation: from here on all code is instrumented */
        return;
    }
    char mark[24];
    snprintf(mark, sizeof mark, "%" PRIu32, (uint32_t)a2);
    print_counts(mark, index);
}

static void on_exit_(plugin_id id, void *unused)
{
    (void)id, (void)unused;
    static atomic_flag ended = ATOMIC_FLAG_INIT; /* two threads may end the process at the same time */
    if (getpid() != owner || atomic_flag_test_and_set(&ended))
        return;
    bool torn = trace && ferror(trace);
    if (trace && (fclose(trace) || torn))
        fail("cannot write the trace", strerror(errno));
    print_counts("end", 0);
    if (fclose(out))
        fail("cannot write the counters", strerror(errno));
}

/* Registers what is needed now: everything, or only what hears the first mark. */
static void watch(plugin_id id)
{
    qemu_plugin_register_vcpu_init_cb(id, on_thread);
    qemu_plugin_register_vcpu_syscall_cb(id, on_syscall);
    qemu_plugin_register_atexit_cb(id, on_exit_, NULL);
    if (!atomic_load(&waiting))
        qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
}

static FILE *create(const char *path)
{
    FILE *file = fopen(path, "w");
    if (!file) {
        fprintf(stderr, "cachesim: %s: %s\n", path, strerror(errno));
        _exit(1);
    }
    return file;
}

EXPORT int qemu_plugin_install(plugin_id id, const qemu_info *info, int argc, char **argv)
{
    const char *out_path = NULL, *trace_path = NULL;
    for (int i = 0; i < argc; i++) {
        const char *value;
        if ((value = value_of(argv[i], "out=")))
            out_path = value;
        else if ((value = value_of(argv[i], "trace=")))
            trace_path = value;
        else if (strcmp(argv[i], "start=mark") == 0)
            waiting = true;
        else if (strcmp(argv[i], "threads=marking") == 0)
            marking_only = true;
        else if (!parse_level(argv[i]))
            fail("unknown argument", argv[i]);
    }
    if (!out_path)
        fail("out= is missing", NULL);
    check_levels();
    if (info->system_emulation)
        fail("made for user mode", NULL);
    if (strcmp(info->target_name, "aarch64") == 0)
        prctl_number = 167;
    else if (strcmp(info->target_name, "x86_64") == 0)
        prctl_number = 157;
    else
        fail("no system call number of prctl known for", info->target_name);
    for (int level = 2; level < levels; level++) {
        const Geometry *g = &geometry[level];
        if (g->shared && !cache_init(&shared[level], g->size, g->ways, g->line))
            fail("out of memory", names[level]);
    }
    owner = getpid();
    out = create(out_path);
    trace = trace_path ? create(trace_path) : NULL;
    watch(id);
    return 0;
}
