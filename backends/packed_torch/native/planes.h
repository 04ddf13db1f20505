/* Products of nested weights, plane by plane: see `guidedq/backends/packed_torch/planes.py` for how they lie.
 *
 * Four columns' inputs have sixteen signed half sums; four bits of a plane choose one. So a plane costs a shift, a look-up
 * and an addition for each four columns of LANES rows, whatever the weight's width, and planes that are not read cost
 * nothing. Bits count as -1/2 and 1/2, so that codes lie around zero and their sums do not cancel. */
#include <stdlib.h>

enum { BLOCK_ROWS = 16, WORD_COLUMNS = 32, TABLE = 16, TABLES = 8 /* of a word's columns */ };

INLINE size_t words_of(const PlaneLayout *layout) { return ((size_t)layout->columns + WORD_COLUMNS - 1) / WORD_COLUMNS; }

/* The sixteen sums of each four columns of each input, and each group's sum. */
static int prepare_planes(PlaneCall *call) {
    const PlaneLayout *layout = call->layout;
    const size_t columns = (size_t)layout->columns, words = words_of(layout), groups = (size_t)layout->groups;
    call->stride = words * TABLES * TABLE;
    call->tables = malloc(call->count * (call->stride + groups) * sizeof(float) + 1);
    if (!call->tables) return NO_MEMORY;
    call->group_sums = call->tables + call->count * call->stride;
    for (size_t m = 0; m < call->count; m++) {
        const float *inputs = call->inputs + m * columns;
        for (size_t first = 0; first < words * WORD_COLUMNS; first += 4) {
            float *table = call->tables + m * call->stride + first / 4 * TABLE;
            float four[4];
            for (size_t i = 0; i < 4; i++) four[i] = first + i < columns ? 0.5f * inputs[first + i] : 0.0f;
            for (int bits = 0; bits < TABLE; bits++)
                table[bits] = (bits & 1 ? four[0] : -four[0]) + (bits & 2 ? four[1] : -four[1]) +
                              (bits & 4 ? four[2] : -four[2]) + (bits & 8 ? four[3] : -four[3]);
        }
        for (size_t group = 0; group < groups; group++) {
            double total = 0.0;
            for (size_t i = group * (size_t)layout->group; i < (group + 1) * (size_t)layout->group && i < columns; i++)
                total += inputs[i];
            call->group_sums[m * groups + group] = (float)total;
        }
    }
    return DONE;
}

/* The planes' weighted sum for LANES rows over some words. */
INLINE Vector multiply_words_of_planes(const int read, const uint32_t *words, size_t plane_words, const float *table,
                                       size_t count) {
    Vector sums[8], others[8]; /* two of each, for the processor to work on both at once */
    for (int p = 0; p < read; p++) sums[p] = others[p] = vector_of(0.0f);
    for (size_t word = 0; word < count; word++, table += TABLES * TABLE) {
        Words bits[8];
        for (int p = 0; p < read; p++) bits[p] = words_at(words + (size_t)p * plane_words + word * BLOCK_ROWS);
        for (int i = 0; i < TABLES; i += 2) {
            const Table even = load_table(table + i * TABLE), odd = load_table(table + (i + 1) * TABLE);
            for (int p = 0; p < read; p++) {
                sums[p] = add(sums[p], look_up(even, bits[p]));
                bits[p] = next_columns(bits[p]);
                others[p] = add(others[p], look_up(odd, bits[p]));
                bits[p] = next_columns(bits[p]);
            }
        }
    }
    const Vector two = vector_of(2.0f);
    Vector total = add(sums[0], others[0]);
    for (int p = 1; p < read; p++) total = multiply_add(total, two, add(sums[p], others[p]));
    return total;
}

static Vector multiply_some(int read, const uint32_t *words, size_t plane_words, const float *table, size_t count) {
    switch (read) {
        case 1: return multiply_words_of_planes(1, words, plane_words, table, count);
        case 2: return multiply_words_of_planes(2, words, plane_words, table, count);
        case 3: return multiply_words_of_planes(3, words, plane_words, table, count);
        case 4: return multiply_words_of_planes(4, words, plane_words, table, count);
        case 5: return multiply_words_of_planes(5, words, plane_words, table, count);
        case 6: return multiply_words_of_planes(6, words, plane_words, table, count);
        case 7: return multiply_words_of_planes(7, words, plane_words, table, count);
        default: return multiply_words_of_planes(8, words, plane_words, table, count);
    }
}

/* What is added to `2 ** (widest - read) * code` in a row, but for the zero point. */
INLINE float shift_of(const PlaneCall *call, size_t row) {
    const PlaneLayout *layout = call->layout;
    const float step = (float)(1 << (layout->widest - layout->read));
    return layout->shifts ? step * ((float)((int)call->shifts[row] - 4) / 16.0f) : 0.0f;
}

/* Blocks of rows from `first` to `last`. */
static int multiply_planes(const PlaneCall *call, size_t first, size_t last) {
    const PlaneLayout *layout = call->layout;
    const size_t rows = (size_t)layout->rows, words = words_of(layout), groups = (size_t)layout->groups;
    const size_t padded = (rows + BLOCK_ROWS - 1) / BLOCK_ROWS * BLOCK_ROWS, plane_words = padded * words;
    const size_t group_words = (size_t)(layout->group + WORD_COLUMNS - 1) / WORD_COLUMNS;
    const Vector step = vector_of((float)(1 << (layout->widest - layout->read)));
    const float middle = 0.5f * (float)((1 << layout->widest) - 1);
    for (size_t row = first * BLOCK_ROWS; row < last * BLOCK_ROWS; row += LANES) {
        const uint32_t *block = call->planes + row / BLOCK_ROWS * words * BLOCK_ROWS + row % BLOCK_ROWS;
        float added[LANES], sums[LANES];
        for (size_t i = 0; i < LANES; i++) added[i] = row + i < rows ? shift_of(call, row + i) + middle : 0.0f;
        for (size_t m = 0; m < call->count; m++) {
            const float *tables = call->tables + m * call->stride;
            Vector total = vector_of(0.0f);
            for (size_t group = 0, word = 0; group < groups; group++, word += group_words) {
                const size_t count = word + group_words < words ? group_words : words - word;
                const Vector sum = multiply_some((int)layout->read, block + word * BLOCK_ROWS, plane_words,
                                                 tables + word * TABLES * TABLE, count);
                const size_t place = group * padded + row;
                const Vector scale = vector_of_halves((const uint8_t *)(call->scales + place));
                const Vector zero = subtract(load_vector(added), vector_of_bytes(call->zero_points + place));
                const Vector inputs = vector_of(call->group_sums[m * groups + group]);
                const Vector part = multiply_add(sum, step, multiply_add(zero, inputs, vector_of(0.0f)));
                total = multiply_add(part, scale, total);
            }
            store_vector(sums, total);
            for (size_t i = 0; i < LANES && row + i < rows; i++)
                call->outputs[m * rows + row + i] = call->ratio * sums[i];
        }
    }
    return DONE;
}

/* Wanted rows from `first` to `last`, bit for bit as the reference (`guidedq/artifacts/nested_segment.py`). */
static int dequantize_planes(const PlaneCall *call, size_t first, size_t last) {
    const PlaneLayout *layout = call->layout;
    const size_t rows = (size_t)layout->rows, columns = (size_t)layout->columns, words = words_of(layout);
    const size_t padded = (rows + BLOCK_ROWS - 1) / BLOCK_ROWS * BLOCK_ROWS, plane_words = padded * words;
    const int read = (int)layout->read;
    const float step = (float)(1 << (layout->widest - read)), middle = 0.5f * (float)((1 << read) - 1);
    for (size_t i = first; i < last; i++) {
        const size_t row = (size_t)(call->wanted ? call->wanted[i] : call->first_row + (int64_t)i);
        if (row >= rows) return NO_SUCH_ROW;
        const uint32_t *from = call->planes + row / BLOCK_ROWS * words * BLOCK_ROWS + row % BLOCK_ROWS;
        float *values = call->outputs + i * columns;
        const float center = shift_of(call, row) + 0.5f * (float)((1 << layout->widest) - 1);
        for (size_t word = 0; word < words; word++, from += BLOCK_ROWS) {
            uint32_t codes[WORD_COLUMNS] = {0};
            for (int p = 0; p < read; p++) {
                const uint32_t bits = from[(size_t)p * plane_words];
                for (int j = 0; j < WORD_COLUMNS; j++) codes[j] = codes[j] << 1 | (bits >> j & 1);
            }
            const size_t column = word * WORD_COLUMNS, place = column / (size_t)layout->group * padded + row;
            const float scale = half_at((const uint8_t *)(call->scales + place)) * call->ratio;
            const float added = center - (float)call->zero_points[place];
            for (size_t j = 0; j < WORD_COLUMNS && column + j < columns; j++)
                values[column + j] = (((float)codes[j] - middle) * step + added) * scale;
        }
    }
    return DONE;
}
