/* The plugin without QEMU: recorded lines from stdin drive its callbacks as QEMU would.
 *
 * The arguments are the plugin's; a line is one of its trace.
 */
#include "cachesim.c"

struct qemu_plugin_insn {
    uint64_t address;
    size_t bytes;
};
struct qemu_plugin_tb {
    size_t count;
    struct qemu_plugin_insn *first;
};

static vcpu_cb thread_hook;
static tb_cb translate_hook;
static exec_cb block_hook;
static void *block_data;
static mem_cb access_hook;
static exit_cb exit_hook;

void qemu_plugin_register_vcpu_init_cb(plugin_id id, vcpu_cb hook) { (void)id, thread_hook = hook; }
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, tb_cb hook) { (void)id, translate_hook = hook; }
void qemu_plugin_register_vcpu_syscall_cb(plugin_id id, syscall_cb hook) { (void)id, (void)hook; }
void qemu_plugin_register_atexit_cb(plugin_id id, exit_cb hook, void *data) { (void)id, (void)data, exit_hook = hook; }
void qemu_plugin_reset(plugin_id id, reset_cb hook) { (void)id, (void)hook; }
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *block, exec_cb hook, int flags, void *data)
{
    (void)block, (void)flags, block_hook = hook, block_data = data;
}
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *at, mem_cb hook, int flags, int which, void *data)
{
    (void)at, (void)flags, (void)which, (void)data, access_hook = hook;
}
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block) { return block->count; }
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *block, size_t i) { return block->first + i; }
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *at) { return at->address; }
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *at) { return at->bytes; }
unsigned qemu_plugin_mem_size_shift(mem_info info) { return info & 7; }
bool qemu_plugin_mem_is_store(mem_info info) { return info & 8; }

/* Translates and enters a block: instructions of one byte, the last takes the rest. */
static void enter_block(unsigned thread, uint64_t address, size_t bytes, size_t count)
{
    struct qemu_plugin_insn *list = calloc(count, sizeof *list);
    for (size_t i = 0; i < count; i++)
        list[i] = (struct qemu_plugin_insn){address + i, i + 1 < count ? 1 : bytes - i};
    translate_hook(0, &(struct qemu_plugin_tb){count, list});
    block_hook(thread, block_data);
    free(list);
}

int main(int argc, char **argv)
{
    const qemu_info info = {"x86_64", {0, PLUGIN_API}, false};
    if (qemu_plugin_install(0, &info, argc - 1, argv + 1))
        return 1;
    /* Any block registers what is called for an access. */
    translate_hook(0, &(struct qemu_plugin_tb){1, &(struct qemu_plugin_insn){0, 1}});
    char kind;
    unsigned thread, bytes;
    uint64_t address;
    while (scanf("%u %c %" SCNx64 " %u", &thread, &kind, &address, &bytes) == 4) {
        unsigned count = 0;
        if (kind == 'i' && scanf("%u", &count) != 1)
            return 2;
        thread_hook(0, thread);
        if (kind == 'i')
            enter_block(thread, address, bytes, count);
        else /* with bits that change nothing, some of them beyond those that the plugin remembers */
            access_hook(thread, (mem_info)__builtin_ctz(bytes) | (kind == 'w' ? 8u : 0u) | ((mem_info)address & 1) << 20,
                        address, NULL);
    }
    exit_hook(0, NULL);
    return 0;
}
