/* What is used of QEMU's plugin interface (qemu-plugin.h), which distributions ship without its header.
 *
 * PLUGIN_API is the version that the plugin asks for: 1 up to QEMU 8, 2 from 9 on; what is declared here is the same in
 * both.
 */
#ifndef EDGEPACK_QEMU_H
#define EDGEPACK_QEMU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))
#ifndef PLUGIN_API
#define PLUGIN_API 1
#endif

typedef uint64_t plugin_id;
typedef uint32_t mem_info;
typedef struct {
    const char *target_name;
    struct { int min, cur; } version;
    bool system_emulation;
} qemu_info;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { NO_REGISTERS = 0 };
enum { READ_AND_WRITE = 3 };
typedef void (*vcpu_cb)(plugin_id, unsigned);
typedef void (*reset_cb)(plugin_id);
typedef void (*tb_cb)(plugin_id, struct qemu_plugin_tb *);
typedef void (*exec_cb)(unsigned, void *);
typedef void (*mem_cb)(unsigned, mem_info, uint64_t, void *);
typedef void (*exit_cb)(plugin_id, void *);
typedef void (*syscall_cb)(plugin_id, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                           uint64_t, uint64_t);
void qemu_plugin_register_vcpu_init_cb(plugin_id, vcpu_cb);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, tb_cb);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, exec_cb, int, void *);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *, mem_cb, int, int, void *);
void qemu_plugin_register_vcpu_syscall_cb(plugin_id, syscall_cb);
void qemu_plugin_register_atexit_cb(plugin_id, exit_cb, void *);
void qemu_plugin_reset(plugin_id, reset_cb);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);
unsigned qemu_plugin_mem_size_shift(mem_info);
bool qemu_plugin_mem_is_store(mem_info);

#endif
