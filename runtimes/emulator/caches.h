/* The cache model: set-associative levels with LRU replacement that allocate on reads and writes alike.
 *
 * A line is looked up level by level until one has it, and every level that missed takes it in. There is no prefetcher,
 * no write-back traffic, no coherence, and addresses are virtual. Private levels belong to one thread and need no lock;
 * the caller locks shared ones.
 */
#ifndef EDGEPACK_CACHES_H
#define EDGEPACK_CACHES_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

enum { MIN_LINE = 16, MAX_LINE = 4096, MAX_WAYS = 1 << 16 }; /* lines in bytes */

typedef struct {
    uint64_t *tags; /* sets x ways line numbers + 1, most recently used first; 0 is empty */
    uint32_t sets, ways, line_shift;
    uint32_t mask; /* sets - 1 where sets is a power of two, else 0 */
} Cache;

/* True where size, ways and line size make a whole number of sets and the line is a power of two. */
static inline bool cache_valid(uint64_t size, uint64_t ways, uint64_t line)
{
    if (!size || !ways || ways > MAX_WAYS || line < MIN_LINE || line > MAX_LINE || (line & (line - 1)))
        return false;
    return size % (ways * line) == 0 && size / (ways * line) <= UINT32_MAX;
}

/* Makes an empty cache of a valid geometry; false where memory is short. */
static inline bool cache_init(Cache *cache, uint64_t size, uint32_t ways, uint32_t line)
{
    cache->sets = (uint32_t)(size / ((uint64_t)ways * line));
    cache->ways = ways;
    cache->line_shift = (uint32_t)__builtin_ctz(line);
    cache->mask = (cache->sets & (cache->sets - 1)) ? 0 : cache->sets - 1;
    cache->tags = calloc((size_t)cache->sets * ways, sizeof(uint64_t));
    return cache->tags != NULL;
}

/* A cheap look: true only where the line (an address without its offset) is the most recently used of its set, so that
 * touching it would change nothing. Where sets are no power of two it looks into set 0 and mostly says false. */
static inline bool cache_latest(const Cache *cache, uint64_t line)
{
    return cache->tags[(size_t)(line & cache->mask) * cache->ways] == line + 1;
}

/* Looks a line up and makes it the most recently used of its set; true where it was there. */
static inline bool cache_touch(Cache *cache, uint64_t line)
{
    uint64_t tag = line + 1;
    size_t set = cache->mask || cache->sets == 1 ? (line & cache->mask) : line % cache->sets;
    uint64_t *tags = cache->tags + set * cache->ways;
    uint64_t carried = tags[0];
    if (carried == tag)
        return true;
    tags[0] = tag;
    for (uint32_t way = 1; way < cache->ways; way++) {
        uint64_t here = tags[way];
        tags[way] = carried;
        if (here == tag)
            return true;
        carried = here;
    }
    return false;
}

#endif
