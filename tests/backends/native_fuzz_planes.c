/* Random nested weights, and random damage to their layouts, through every kernel: numbers against a slow twin in double,
 * and memory under the sanitizers. Arguments: a seed and a number of weights. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

static uint64_t state;
static uint32_t draw(uint32_t below) { /* splitmix64 */
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)((z ^ (z >> 31)) >> 32) % below;
}
#define PICK(...) ((const int[]){__VA_ARGS__})[draw(sizeof((const int[]){__VA_ARGS__}) / sizeof(int))]

typedef struct {
    PlaneLayout layout;
    uint32_t *planes;
    uint16_t *scales;
    uint8_t *zero_points, *shifts;
    float ratio;
    size_t padded, words;
} Weight;

static Weight random_weight(void) {
    Weight weight = {.ratio = 0.5f + (float)draw(1000) / 1000};
    PlaneLayout *layout = &weight.layout;
    layout->rows = PICK(1, 2, 15, 16, 17, 31, 33, 48);
    layout->columns = PICK(1, 3, 4, 31, 32, 33, 64, 65, 100, 172, 257);
    const int64_t asked = PICK(32, 64, 96, 100000);
    layout->group = asked < layout->columns ? asked : layout->columns;
    layout->groups = (layout->columns + layout->group - 1) / layout->group;
    layout->widest = 1 + draw(8);
    layout->read = 1 + draw((uint32_t)layout->widest);
    weight.padded = ((size_t)layout->rows + 15) / 16 * 16, weight.words = ((size_t)layout->columns + 31) / 32;
    layout->words = (int64_t)((size_t)layout->widest * weight.padded * weight.words);
    layout->grids = (int64_t)((size_t)layout->groups * weight.padded);
    layout->shifts = draw(2) ? layout->rows : 0;
    weight.planes = malloc((size_t)layout->words * 4);
    weight.scales = malloc((size_t)layout->grids * 2);
    weight.zero_points = malloc((size_t)layout->grids);
    weight.shifts = malloc((size_t)layout->shifts + 1);
    for (int64_t i = 0; i < layout->words; i++) weight.planes[i] = draw(UINT32_MAX);
    for (int64_t i = 0; i < layout->grids; i++) weight.scales[i] = (uint16_t)(0x2000 + draw(0x1800));
    for (int64_t i = 0; i < layout->grids; i++) weight.zero_points[i] = (uint8_t)draw(1u << layout->widest);
    for (int64_t i = 0; i < layout->shifts; i++) weight.shifts[i] = (uint8_t)draw(8);
    return weight;
}

/* A weight's value, by single bits; `*size` is what the kernels' sums have for it. */
static double twin(const Weight *weight, size_t row, size_t column, double *size) {
    const PlaneLayout *layout = &weight->layout;
    int code = 0;
    for (size_t p = 0; p < (size_t)layout->read; p++) {
        const size_t word = (p * weight->padded / 16 + row / 16) * weight->words * 16 + column / 32 * 16 + row % 16;
        code = code << 1 | (int)(weight->planes[word] >> column % 32 & 1);
    }
    const size_t place = column / (size_t)layout->group * weight->padded + row;
    const int half = weight->scales[place];
    const double scale = ldexp(1024 + (half & 1023), (half >> 10) - 25) * (double)weight->ratio;
    const double step = ldexp(1, (int)(layout->widest - layout->read));
    const double shift = layout->shifts ? (weight->shifts[row] - 4) / 16.0 : 0.0;
    const double added = (ldexp(1, (int)layout->widest) - 1) / 2 - weight->zero_points[place];
    const double level = step * (code - (ldexp(1, (int)layout->read) - 1) / 2 + shift);
    *size = scale * (step * ldexp(1, (int)layout->read) + fabs(added));
    return scale * (level + added);
}

static int wrong(const char *what, int set, double found, double expected) {
    fprintf(stderr, "%s by %s: found %.9g, expected %.9g\n", what, guidedq_instruction_set(set), found, expected);
    return 1;
}

static int compare(const Weight *w, int set) {
    const size_t rows = (size_t)w->layout.rows, columns = (size_t)w->layout.columns, count = draw(MOST_INPUTS + 1);
    float *inputs = malloc(count * columns * sizeof(float) + 1), *outputs = malloc(count * rows * sizeof(float) + 1);
    float *values = malloc(rows * columns * sizeof(float));
    for (size_t i = 0; i < count * columns; i++) inputs[i] = (float)draw(20001) / 10000 - 1;
    const int threads = 1 + (int)draw(3);
    int bad = guidedq_multiply_planes(&w->layout, w->planes, w->scales, w->zero_points, w->shifts, w->ratio, inputs,
                                      (int64_t)count, outputs, threads, set) != DONE;
    bad |= guidedq_dequantize_planes(&w->layout, w->planes, w->scales, w->zero_points, w->shifts, w->ratio, NULL, 0,
                                     w->layout.rows, values, threads, set) != DONE;
    const double unit = ldexp(1, -24) * ((double)columns / 4 + 32);
    for (size_t row = 0; row < rows && !bad; row++)
        for (size_t m = 0; m <= count && !bad; m++) { /* the last one compares values */
            double sum = 0, size = 0, bound = 0;
            for (size_t i = 0; i < columns && !bad; i++) {
                const double value = twin(w, row, i, &size);
                if (m == count) {
                    if (fabs(values[row * columns + i] - value) > fabs(value) * 2e-7)
                        bad = wrong("value", set, values[row * columns + i], value);
                } else sum += value * inputs[m * columns + i], bound += size * fabs(inputs[m * columns + i]);
            }
            if (!bad && m < count && fabs(outputs[m * rows + row] - sum) > unit * bound + 1e-30)
                bad = wrong("product", set, outputs[m * rows + row], sum);
        }
    free(inputs), free(outputs), free(values);
    return bad;
}

/* One number of the layout is another: any answer will do, but no other memory is touched. Rows and columns stay, for
 * the caller's own buffers are as large as these say. */
static void damage(Weight *w, int set) {
    const size_t rows = (size_t)w->layout.rows, columns = (size_t)w->layout.columns;
    int64_t *some = (int64_t *)&w->layout + 2 + draw(4); /* what follows are the true lengths of the arrays */
    *some = draw(2) ? *some + PICK(-1, 1, 7, -64, 4096) : PICK(-1, 0, 2147483647);
    float *inputs = calloc(columns, sizeof(float)), *outputs = malloc(rows * columns * sizeof(float));
    const int64_t beyond = (int64_t)rows + draw(3);
    guidedq_multiply_planes(&w->layout, w->planes, w->scales, w->zero_points, w->shifts, w->ratio, inputs, 1, outputs, 1,
                            set);
    guidedq_dequantize_planes(&w->layout, w->planes, w->scales, w->zero_points, w->shifts, w->ratio, &beyond, 0, 1,
                              outputs, 1, set);
    free(inputs), free(outputs);
}

int main(int arguments, char **argument) {
    state = arguments > 1 ? strtoull(argument[1], NULL, 10) : 0;
    const long weights = arguments > 2 ? strtol(argument[2], NULL, 10) : 1000;
    for (long i = 0; i < weights; i++) {
        Weight weight = random_weight();
        int bad = 0, set = 0;
        for (; !bad && guidedq_instruction_set(set); set++) bad = compare(&weight, set);
        if (!bad) damage(&weight, (int)draw((uint32_t)set));
        free(weight.planes), free(weight.scales), free(weight.zero_points), free(weight.shifts);
        if (bad) return 1;
    }
    printf("%ld weights by", weights);
    for (int set = 0; guidedq_instruction_set(set); set++) printf(" %s", guidedq_instruction_set(set));
    printf("\n");
    return 0;
}
