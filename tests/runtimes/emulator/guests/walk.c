/* Walks of known length between marks: one read of 8 bytes per line of 64, four instructions per step.
 *
 * walk STEPS...: mark 0, walk, mark 1, walk, mark 2, ...
 */
#include <stdlib.h>

#include "mark.h"

static void walk(const char *at, long steps)
{
    __asm__ volatile("1: movq (%0), %%rax\n add $64, %0\n dec %1\n jnz 1b" : "+r"(at), "+r"(steps) : : "rax", "memory");
}

int main(int argc, char **argv)
{
    long *steps = calloc((size_t)argc, sizeof(long)), most = 0;
    if (!steps)
        return 3;
    for (int i = 1; i < argc; i++) {
        steps[i] = atol(argv[i]);
        most = steps[i] > most ? steps[i] : most;
    }
    char *buffer = aligned_alloc(64, (size_t)most * 64);
    if (!buffer)
        return 3;
    mark(0);
    for (int i = 1; i < argc; i++) {
        walk(buffer, steps[i]);
        mark((unsigned)i);
    }
    return 0;
}
