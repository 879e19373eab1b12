/* Ways to end or to multiply: leave fork | exec | abort. */
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "mark.h"

static int forked(void)
{
    pid_t child = fork();
    if (child == 0) {
        mark(100);
        exit(0);
    }
    int status = 1;
    if (child < 0 || waitpid(child, &status, 0) != child)
        return 3;
    mark(2);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 4;
}

int main(int argc, char **argv)
{
    mark(1);
    if (argc == 2 && strcmp(argv[1], "fork") == 0)
        return forked();
    if (argc == 2 && strcmp(argv[1], "exec") == 0)
        execl("/bin/true", "true", (char *)NULL);
    if (argc == 2 && strcmp(argv[1], "abort") == 0)
        abort();
    return 2;
}
