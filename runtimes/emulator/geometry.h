/* The caches that the plugin's arguments ask for, checked. */
#ifndef EDGEPACK_GEOMETRY_H
#define EDGEPACK_GEOMETRY_H

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "caches.h"

enum { L1I = 0, L1D = 1, LEVELS = 5 };

typedef struct {
    uint64_t size;
    uint32_t ways, line;
    bool shared;
} Geometry;

static const char *const names[LEVELS] = {"l1i=", "l1d=", "l2=", "l3=", "l4="};
static Geometry geometry[LEVELS];
static int levels = 2; /* L1I, L1D and the unified ones in use */

/* Ends QEMU at once: other threads may be running, so nothing is cleaned up. */
static void fail(const char *message, const char *detail)
{
    fprintf(stderr, "cachesim: %s%s%s\n", message, detail ? ": " : "", detail ? detail : "");
    _exit(1);
}

/* Reads `SIZE:WAYS:LINE[:shared]`. */
static void parse_cache(int level, const char *text)
{
    Geometry *g = &geometry[level];
    if (g->size)
        fail("given twice", names[level]);
    uint64_t ways = 0, line = 0;
    int end = 0;
    if (sscanf(text, "%" SCNu64 ":%" SCNu64 ":%" SCNu64 "%n", &g->size, &ways, &line, &end) < 3)
        fail("expected SIZE:WAYS:LINE[:shared]", text);
    g->shared = strcmp(text + end, ":shared") == 0;
    if (strchr(text, '-') || (text[end] && !g->shared))
        fail("expected SIZE:WAYS:LINE[:shared]", text);
    if (g->shared && level < 2)
        fail("a cache of the first level is private", text);
    if (!cache_valid(g->size, ways, line))
        fail("no whole number of sets, or a line that is no power of two from 16 to 4096", text);
    g->ways = (uint32_t)ways;
    g->line = (uint32_t)line;
    levels = level + 1 > levels ? level + 1 : levels;
}

/* Every level up to the last is there, and lines do not get shorter from level to level. */
static void check_levels(void)
{
    uint32_t longest = 0;
    for (int level = 0; level < levels; level++) {
        if (!geometry[level].size)
            fail("a cache is missing", names[level]);
        if (level >= 2 && geometry[level].line < longest)
            fail("lines shorter than those of a level before", names[level]);
        longest = geometry[level].line > longest ? geometry[level].line : longest;
    }
}

/* Takes `name=value` apart where it has this name. */
static const char *value_of(const char *argument, const char *name)
{
    size_t length = strlen(name);
    return strncmp(argument, name, length) == 0 ? argument + length : NULL;
}

static bool parse_level(const char *argument)
{
    for (int level = 0; level < LEVELS; level++) {
        const char *text = value_of(argument, names[level]);
        if (text) {
            parse_cache(level, text);
            return true;
        }
    }
    return false;
}

#endif
