/* The first of two threads ends and the second lives on while the marks are made: a gap in QEMU's numbers. */
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>

#include "mark.h"

enum { NOTHING, BOTH_LIVE, FIRST_ENDED };
static atomic_int stage = NOTHING;

static void *early(void *unused)
{
    while (atomic_load(&stage) < BOTH_LIVE)
        ;
    return unused;
}

static void *late(void *unused)
{
    atomic_store(&stage, BOTH_LIVE);
    while (atomic_load(&stage) < FIRST_ENDED)
        ;
    mark(2);
    return unused;
}

int main(void)
{
    pthread_t first, second;
    if (pthread_create(&first, NULL, early, NULL) || pthread_create(&second, NULL, late, NULL))
        return 3;
    pthread_join(first, NULL);
    mark(1);
    atomic_store(&stage, FIRST_ENDED);
    pthread_join(second, NULL);
    mark(3);
    return 0;
}
