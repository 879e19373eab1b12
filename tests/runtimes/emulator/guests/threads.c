/* Threads that read and write an array of their own and a common one, with accesses of all sizes, also across lines.
 *
 * threads LIVE ROUNDS STEPS: LIVE threads at a time, ROUNDS times one after another; mark 1 at the end.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "mark.h"

enum { COMMON = 1 << 14, MOST = 256 };

static unsigned char common[COMMON];
static long steps;
static pthread_barrier_t together;

static void *work(void *seed)
{
    static __thread unsigned char own[COMMON];
    uint32_t state = (uint32_t)(uintptr_t)seed;
    pthread_barrier_wait(&together);
    for (long i = 0; i < steps; i++) {
        state = state * 1664525u + 1013904223u;
        uint64_t wide;
        memcpy(&wide, common + state % (COMMON - 8), sizeof wide);
        uint16_t narrow = (uint16_t)wide;
        memcpy(own + (state >> 8) % (COMMON - 2), &narrow, sizeof narrow);
        own[(state >> 16) % COMMON] ^= (unsigned char)state;
    }
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    int live = atoi(argv[1]), rounds = atoi(argv[2]);
    pthread_t threads[MOST];
    steps = atol(argv[3]);
    if (pthread_barrier_init(&together, NULL, (unsigned)live))
        return 3;
    for (int round = 0; round < rounds; round++) {
        for (int i = 0; i < live; i++)
            if (pthread_create(&threads[i], NULL, work, (void *)(uintptr_t)(i + 1)))
                return 3;
        for (int i = 0; i < live; i++)
            pthread_join(threads[i], NULL);
    }
    mark(1);
    return 0;
}
