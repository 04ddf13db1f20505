/* From a row's bytes to numbers, bit for bit those of the reference (`guidedq/quant/grid.py`). Included once for each
 * instruction set, so that compilers use it in these loops. */
#include <string.h>

static void dequantize_groups(const uint8_t *codes, const float *scales, const uint8_t *zero_points,
                              const Segment *segment, size_t columns, float *values) {
    const size_t width = (size_t)segment->group;
    for (size_t group = 0, start = 0; start < columns; group++, start += width) {
        const size_t end = start + width < columns ? start + width : columns;
        const float scale = scales[group];
        const int zero = segment->symmetric ? 1 << (segment->bits - 1) : zero_points[group];
        for (size_t i = start; i < end; i++) values[i] = (float)((int)codes[i] - zero) * scale;
    }
}

static void dequantize_floats(const uint8_t *from, int64_t kind, size_t columns, float *values) {
    size_t i = 0;
    if (kind == SINGLE) memcpy(values, from, 4 * columns);
    else if (kind == HALF) {
        for (; i + LANES <= columns; i += LANES) store_vector(values + i, vector_of_halves(from + 2 * i));
        for (; i < columns; i++) values[i] = half_at(from + 2 * i);
    } else {
        for (; i + LANES <= columns; i += LANES) store_vector(values + i, vector_of_bfloats(from + 2 * i));
        for (; i < columns; i++) values[i] = bfloat_at(from + 2 * i);
    }
}

/* Outlier number `which` of a row. A column beyond the row says that the blob was damaged since it was loaded. */
INLINE size_t outlier_column(const Call *call, const Segment *segment, size_t row, size_t which) {
    uint16_t column;
    const size_t place = row * (size_t)segment->outliers + which;
    memcpy(&column, call->blob + segment->outlier_columns + 2 * place, 2);
    return column;
}

INLINE float outlier_value(const Call *call, const Segment *segment, size_t row, size_t which) {
    const size_t place = row * (size_t)segment->outliers + which;
    return half_at(call->blob + segment->outlier_values + 2 * place);
}

/* What a patch adds to the code of a column. */
INLINE int patch_at(const Call *call, const Segment *segment, size_t row, size_t which) {
    return (int8_t)call->blob[(size_t)segment->outlier_values + row * (size_t)segment->outliers + which];
}

/* A row's scale. */
INLINE float patched_scale(const Call *call, const Segment *segment, size_t row) {
    return call->scales[call->blob[(size_t)segment->scales + row]];
}

/* Bytes of a row's packed zero points. */
INLINE size_t zero_bytes(const Segment *segment) { return packed_bytes((size_t)segment->groups, (size_t)segment->bits); }
