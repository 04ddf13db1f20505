/* Random weights, and random damage to their layouts, through every kernel: numbers against a slow twin in double, and
 * memory under the sanitizers, for the blob ends where its malloc does. Arguments: a seed and a number of weights. */
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

static double code_at(const uint8_t *from, size_t place, size_t bits) {
    int code = 0;
    for (size_t i = 0; i < bits; i++) code |= (from[(place * bits + i) / 8] >> (place * bits + i) % 8 & 1) << i;
    return code;
}

static double half_at(const uint8_t *from) {
    const int word = from[0] | from[1] << 8, exponent = word >> 10 & 31, fraction = word & 1023;
    const double magnitude = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
    return word & 0x8000 ? -magnitude : magnitude;
}

static void write_half(uint8_t *to) { /* of any size below 2 */
    to[0] = (uint8_t)draw(256);
    to[1] = (uint8_t)draw(0x40);
}

/* The scale of a column in a segment. */
static double column_scale(const Layout *layout, const uint8_t *blob, const float *scales, const Segment *s, size_t column) {
    if (s->kind != PATCHED || layout->column_scales < 0) return 1;
    return scales[160 + 4 * (int)code_at(blob + layout->column_scales, column, 4)];
}

static size_t outlier_column(const uint8_t *blob, const Segment *s, size_t place) {
    const uint8_t *at = blob + s->outlier_columns + 2 * place;
    return (size_t)(at[0] | at[1] << 8);
}

/* The value of a weight; `*size` is what the kernels' sums have for it: some take the middle from codes first, others
 * take codes whole. */
static double twin(const Layout *layout, const uint8_t *blob, const float *scales, const Segment *s, size_t row,
                   size_t column, int whole, double *size) {
    const size_t columns = (size_t)layout->columns;
    const uint8_t *codes = blob + s->codes + row * row_bytes(s, columns);
    double value;
    if (s->kind == HALF) value = half_at(codes + 2 * column);
    else if (s->kind == BFLOAT || s->kind == SINGLE) {
        float found = 0;
        const size_t bytes = s->kind == SINGLE ? 4 : 2;
        memcpy((char *)&found + 4 - bytes, codes + bytes * column, bytes);
        value = found;
    } else if (s->kind == PATCHED) {
        const double scale = scales[blob[(size_t)s->scales + row]] * column_scale(layout, blob, scales, s, column);
        const double middle = (double)(1 << (s->bits - 1)), code = code_at(codes, column, (size_t)s->bits);
        value = (code - middle) * scale;
        *size = fabs(value) + (whole || s->bits <= 4 ? (code + middle) * scale : 0);
        for (size_t i = 0; i < (size_t)s->outliers; i++) {
            const size_t place = row * (size_t)s->outliers + i;
            if (outlier_column(blob, s, place) == column) value += (int8_t)blob[(size_t)s->outlier_values + place] * scale;
        }
        *size += fabs(value);
        return value;
    } else {
        const size_t bits = (size_t)s->bits, group = column / (size_t)s->group, groups = (size_t)s->groups;
        const double scale = half_at(blob + s->scales + 2 * (row * groups + group));
        const double middle = (double)(1 << (bits - 1)), code = code_at(codes, column, bits);
        const double zero = s->symmetric ? middle
                            : code_at(blob + s->zero_points + row * packed_bytes(groups, bits), group, bits);
        value = scale * (code - zero);
        *size = fabs(scale) * (bits > 4 ? fabs(code - middle) + fabs(zero - middle) : code + zero);
        if (whole) *size += fabs(scale) * (bits > 4 ? code + zero : 2 * middle);
        for (size_t i = 0; i < (size_t)s->outliers; i++) {
            const size_t place = row * (size_t)s->outliers + i;
            if (outlier_column(blob, s, place) != column) continue;
            *size += 2 * fabs(value);
            value = half_at(blob + s->outlier_values + 2 * place);
            *size += fabs(value);
        }
        return value;
    }
    *size = fabs(value);
    return value;
}

static Layout *random_layout(void) {
    Layout *layout = calloc(1, sizeof(Layout) + MOST_SEGMENTS * sizeof(Segment));
    layout->columns = PICK(1, 2, 7, 8, 9, 31, 32, 63, 64, 65, 96, 127, 128, 129, 200, 257, 520);
    layout->segments = 1 + draw(4);
    layout->column_scales = draw(2) ? 0 : -1;
    size_t end = layout->column_scales < 0 ? draw(3) : packed_bytes((size_t)layout->columns, 4);
    for (int64_t i = 0; i < layout->segments; i++) {
        Segment *s = &layout->segment[i];
        s->kind = PICK(AFFINE, AFFINE, AFFINE, AFFINE, AFFINE, PATCHED, PATCHED, HALF, BFLOAT, SINGLE);
        s->rows = 1 + draw(6);
        layout->rows += s->rows;
        s->bits = (const int[]){1 + (int)draw(8), 1 + (int)draw(8), 16, 16, 32}[s->kind];
        const size_t rows = (size_t)s->rows, columns = (size_t)layout->columns;
        s->codes = (int64_t)end;
        end += rows * row_bytes(s, columns);
        if (s->kind > PATCHED) continue;
        const int patched = s->kind == PATCHED;
        const int64_t asked = patched ? 100000 : PICK(1, 3, 4, 8, 12, 16, 20, 32, 64, 128, 192, 100000);
        s->group = asked < layout->columns ? asked : layout->columns;
        s->groups = (layout->columns + s->group - 1) / s->group;
        s->symmetric = patched || draw(2);
        s->outliers = draw(3) ? 0 : draw((uint32_t)(columns < 4 ? columns + 1 : 4));
        s->scales = (int64_t)end, end += rows * (patched ? 1 : (size_t)s->groups * 2);
        s->zero_points = (int64_t)end;
        if (!s->symmetric) end += rows * packed_bytes((size_t)s->groups, (size_t)s->bits);
        s->outlier_columns = (int64_t)end, end += rows * (size_t)s->outliers * 2;
        s->outlier_values = (int64_t)end, end += rows * (size_t)s->outliers * (patched ? 1 : 2);
    }
    layout->bytes = (int64_t)end;
    return layout;
}

/* A patched code, for no patch to make too much of it. */
static void write_middle(uint8_t *codes, size_t place, size_t bits) {
    for (size_t i = 0; i < bits; i++) {
        const size_t bit = place * bits + i;
        codes[bit / 8] = (uint8_t)((codes[bit / 8] & ~(1 << bit % 8)) | (i + 1 == bits) << bit % 8);
    }
}

static uint8_t *random_blob(const Layout *layout) {
    uint8_t *blob = malloc((size_t)layout->bytes);
    for (int64_t i = 0; i < layout->bytes; i++) blob[i] = (uint8_t)draw(256);
    for (int64_t i = 0; i < layout->segments; i++) {
        const Segment *s = &layout->segment[i];
        const size_t rows = (size_t)s->rows, columns = (size_t)layout->columns, outliers = (size_t)s->outliers;
        for (size_t j = 0; s->kind >= HALF && j < rows * row_bytes(s, columns); j += s->kind == SINGLE ? 4 : 2)
            write_half(blob + s->codes + j + (s->kind == SINGLE ? 2 : 0));
        for (size_t j = 0; s->kind == PATCHED && j < rows; j++) blob[(size_t)s->scales + j] = (uint8_t)(100 + draw(90));
        for (size_t j = 0; s->kind == AFFINE && j < rows * (size_t)s->groups; j++) write_half(blob + s->scales + 2 * j);
        for (size_t j = 0; j < rows * outliers; j++) {
            const size_t column = j % outliers; /* ascending: the first columns */
            blob[(size_t)s->outlier_columns + 2 * j] = (uint8_t)column;
            blob[(size_t)s->outlier_columns + 2 * j + 1] = 0;
            if (s->kind == AFFINE) write_half(blob + s->outlier_values + 2 * j);
            else write_middle(blob + s->codes + j / outliers * row_bytes(s, columns), column, (size_t)s->bits);
        }
    }
    return blob;
}

static int wrong(const char *what, int set, double found, double expected) {
    fprintf(stderr, "%s by %s: found %.9g, expected %.9g\n", what, guidedq_instruction_set(set), found, expected);
    return 1;
}

/* The nearest of 255 steps for each number of a block, in place. */
static void round_blocks(float *inputs, size_t columns) {
    for (size_t first = 0; first < columns; first += INTEGER_BLOCK) {
        const size_t end = columns - first < INTEGER_BLOCK ? columns : first + INTEGER_BLOCK;
        float largest = 0;
        for (size_t i = first; i < end; i++) largest = fmaxf(largest, fabsf(inputs[i]));
        for (size_t i = first; i < end; i++)
            if (largest > 0) inputs[i] = rintf(inputs[i] * (127.0f / largest)) * (largest / 127.0f);
    }
}

/* The largest number of each column's block, scaled as in a segment: inputs may have become 24 bits of it. */
static void largest_of_blocks(const Layout *layout, const uint8_t *blob, const float *scales, const Segment *s,
                              const float *inputs, double *largest) {
    const size_t columns = (size_t)layout->columns;
    for (size_t first = 0; first < columns; first += INTEGER_BLOCK) {
        const size_t end = columns - first < INTEGER_BLOCK ? columns : first + INTEGER_BLOCK;
        double most = 0;
        for (size_t i = first; i < end; i++)
            most = fmax(most, fabs(inputs[i]) * column_scale(layout, blob, scales, s, i));
        for (size_t i = first; i < end; i++) largest[i] = most / column_scale(layout, blob, scales, s, i);
    }
}

static int compare(const Layout *layout, const uint8_t *blob, const float *scales, const int32_t *order, int set) {
    const size_t rows = (size_t)layout->rows, columns = (size_t)layout->columns, count = draw(MOST_INPUTS + 1);
    float *inputs = malloc(count * columns * sizeof(float)), *outputs = malloc(count * rows * sizeof(float));
    float *values = malloc(rows * columns * sizeof(float));
    double *largest = malloc(columns * sizeof(double));
    for (size_t i = 0; i < count * columns; i++) inputs[i] = (float)draw(20001) / 10000 - 1;
    const int threads = 1 + (int)draw(3);
    const int integers = (int)draw(2), vnni = !strcmp(guidedq_instruction_set(set), "avx512vnni");
    int bad = guidedq_multiply(layout, blob, scales, order, inputs, (int64_t)count, outputs, threads, set, integers);
    for (size_t m = 0; integers && m < count; m++) round_blocks(inputs + m * columns, columns);
    bad |= guidedq_dequantize(layout, blob, scales, order, NULL, 0, layout->rows, values, threads, set) != DONE;
    const double unit = ldexp(1, -24) * ((double)columns / 8 + 32); /* of a float32 sum in eight lanes */
    for (size_t place = 0, first = 0, segment = 0; !bad && place < rows; place++) {
        if (place - first == (size_t)layout->segment[segment].rows) first = place, segment++;
        const Segment *s = &layout->segment[segment];
        for (size_t m = 0; m <= count && !bad; m++) { /* the last one compares values */
            double sum = 0, size = 0, bound = 0;
            if (m < count) largest_of_blocks(layout, blob, scales, s, inputs + m * columns, largest);
            for (size_t i = 0; i < columns && !bad; i++) {
                const double value = twin(layout, blob, scales, s, place - first, i, integers || vnni, &size);
                if (m == count) {
                    if (fabs(values[place * columns + i] - value) > fabs(value) * 2e-7)
                        bad = wrong("value", set, values[place * columns + i], value);
                } else {
                    sum += value * inputs[m * columns + i];
                    bound += size * (unit * fabs(inputs[m * columns + i]) + (vnni ? ldexp(largest[i], -23) : 0));
                }
            }
            if (m < count && fabs(outputs[m * rows + place] - sum) > bound + 1e-30)
                bad = wrong("product", set, outputs[m * rows + place], sum);
        }
    }
    free(inputs), free(outputs), free(values), free(largest);
    return bad;
}

/* One number of the layout, one byte of the blob, or one place is another, and inputs are extreme: any answer will do, but no other memory is touched.
 * Rows, columns and the blob's length stay, for the caller's own buffers are as large as these say. */
static void damage(Layout *layout, uint8_t *blob, const float *scales, int32_t *order, int set) {
    const size_t rows = (size_t)layout->rows, columns = (size_t)layout->columns;
    int64_t *numbers = (int64_t *)layout;
    const uint32_t header = 3, some = header + draw(2 + 12 * (uint32_t)layout->segments);
    if (!draw(3)) order[draw((uint32_t)rows)] = PICK(-1, -7, 2147483647, (int)rows);
    else if (draw(2)) blob[draw((uint32_t)layout->bytes)] ^= (uint8_t)(1 + draw(255));
    else numbers[some] = draw(2) ? numbers[some] + PICK(-1, 1, 7, -64, 4096) : PICK(-1, 0, 2147483647);
    float *inputs = calloc(columns, sizeof(float)), *outputs = malloc(rows * columns * sizeof(float));
    const float extreme[] = {0.0f, NAN, INFINITY, -3e38f, 1e-40f, 1e-31f};
    for (size_t i = 0; i < columns; i++) inputs[i] = extreme[draw(sizeof(extreme) / sizeof(float))];
    guidedq_multiply(layout, blob, scales, order, inputs, 1, outputs, 1, set, (int)draw(2));
    guidedq_dequantize(layout, blob, scales, order, NULL, 0, (int64_t)rows, outputs, 1, set);
    free(inputs), free(outputs);
}

int main(int arguments, char **argument) {
    state = arguments > 1 ? strtoull(argument[1], NULL, 10) : 0;
    const long weights = arguments > 2 ? strtol(argument[2], NULL, 10) : 1000;
    float scales[256];
    for (int i = 0; i < 256; i++) scales[i] = (float)exp2(i / 8.0 - 24);
    for (long i = 0; i < weights; i++) {
        Layout *layout = random_layout();
        uint8_t *blob = random_blob(layout);
        int32_t *order = malloc((size_t)layout->rows * sizeof(int32_t));
        for (int32_t row = 0; row < layout->rows; row++) order[row] = row;
        int bad = 0, set = 0;
        for (; !bad && guidedq_instruction_set(set); set++) bad = compare(layout, blob, scales, order, set);
        if (!bad) damage(layout, blob, scales, order, (int)draw((uint32_t)set));
        free(order), free(blob), free(layout);
        if (bad) return 1;
    }
    printf("%ld weights by", weights);
    for (int set = 0; guidedq_instruction_set(set); set++) printf(" %s", guidedq_instruction_set(set));
    printf("\n");
    return 0;
}
