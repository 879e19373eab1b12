/* Marks for the plugin. */
#ifndef MARK_H
#define MARK_H

static inline void mark(unsigned number)
{
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(157L), "D"(0x45504d4bL), "S"((long)number) : "rcx", "r11", "memory");
    (void)result;
}

#endif
