/* y = W x in NUMBER, ROWS x COLUMNS, REPEATS times: one read of a weight and one of x per step. */
#include <stdlib.h>

#ifndef NUMBER
#define NUMBER float
#endif

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    long rows = atol(argv[1]), columns = atol(argv[2]), repeats = atol(argv[3]);
    NUMBER *weights = malloc(sizeof(NUMBER) * (size_t)(rows * columns));
    NUMBER *x = malloc(sizeof(NUMBER) * (size_t)columns), *y = malloc(sizeof(NUMBER) * (size_t)rows), total = 0;
    if (!weights || !x || !y)
        return 3;
    for (long i = 0; i < rows * columns; i++)
        weights[i] = 1;
    for (long i = 0; i < columns; i++)
        x[i] = 1;
    for (long repeat = 0; repeat < repeats; repeat++)
        for (long row = 0; row < rows; row++) {
            NUMBER sum = 0;
            for (long column = 0; column < columns; column++)
                sum += weights[row * columns + column] * x[column];
            y[row] = sum;
        }
    for (long row = 0; row < rows; row++)
        total += y[row];
    return total == (NUMBER)rows * (NUMBER)columns ? 0 : 1;
}
