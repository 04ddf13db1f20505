/* What all products of a row need: room to work in, its codes, its groups' sums, its outliers. */
#include <stdlib.h>

/* Room for the work on one row. */
typedef struct {
    uint8_t *codes;     /* a row's codes: packed, with READ_AHEAD zeros behind, or a byte each */
    uint8_t *zero_points; /* likewise a byte each */
    float *scales;      /* of groups, zeros up to a whole vector */
    float *products;    /* scale times zero point, likewise */
    float *word_scales; /* of the group of each word, or block */
    float *block_scales; /* [inputs, blocks]: the scale of a block's codes times that of its inputs */
    float *row;
} Scratch;

INLINE size_t whole(size_t count, size_t of) { return (count + of - 1) / of * of; }

enum { LINE = 64 }; /* bytes; what is stored across two lines of the cache is slow to come back */

/* Room for so many bytes from the beginning of a line, to be freed; NULL if there is none. */
static void *found_lines(size_t bytes) { return aligned_alloc(LINE, whole(bytes, LINE)); }

/* Digits of an input, and where they are. */
INLINE size_t digit_stride(const Blocks *blocks) { return blocks->each * blocks->count * INTEGER_BLOCK; }
INLINE int8_t *digits_of(const Blocks *blocks, size_t input) { return blocks->digits + input * digit_stride(blocks); }

/* Middles of an input. */
INLINE size_t middle_stride(const Blocks *blocks) { return 2 * blocks->scale_stride; }

/* Blocks of columns that inputs in integers have, up to a whole vector. */
INLINE size_t padded_blocks(const Layout *layout) {
    return whole(whole((size_t)layout->columns, INTEGER_BLOCK) / INTEGER_BLOCK, LINE / 4);
}

static int find_scratch(const Call *call, size_t inputs, Scratch *scratch) {
    const Layout *layout = call->layout;
    const size_t columns = (size_t)layout->columns, blocks = padded_blocks(layout);
    size_t groups = 0;
    for (int64_t s = 0; s < layout->segments; s++)
        if ((size_t)layout->segment[s].groups > groups) groups = (size_t)layout->segment[s].groups;
    const size_t floats = whole(groups, LINE / 4), words = whole(columns, LINE) / 4 + LANES;
    const size_t bytes = whole(columns + READ_AHEAD, LINE), products = inputs * blocks;
    scratch->scales = found_lines((2 * floats + words + products + whole(columns, LINE / 4)) * sizeof(float) +
                                  bytes + floats + MOST_UNPACKED);
    if (!scratch->scales) return NO_MEMORY;
    scratch->products = scratch->scales + floats;
    scratch->word_scales = scratch->products + floats;
    scratch->block_scales = scratch->word_scales + words;
    scratch->row = scratch->block_scales + products;
    scratch->codes = (uint8_t *)(scratch->row + whole(columns, LINE / 4));
    scratch->zero_points = scratch->codes + bytes;
    return DONE;
}

static void sum_groups(const Segment *segment, const float *inputs, size_t columns, float *sums) {
    const size_t width = (size_t)segment->group;
    for (size_t start = 0; start < columns; start += width) {
        double total = 0.0;
        for (size_t i = start; i < start + width && i < columns; i++) total += inputs[i];
        *sums++ = (float)total;
    }
}

INLINE int code_at(const uint8_t *codes, size_t column, size_t bits) {
    uint16_t two = codes[column * bits / 8];
    if (column * bits % 8 + bits > 8) two |= (uint16_t)(codes[column * bits / 8 + 1] << 8);
    return two >> (column * bits % 8) & ((1 << bits) - 1);
}

/* Put outliers in place of what their codes said. */
static int replace_outliers(const Call *call, const Segment *segment, size_t row, const Scratch *scratch, float *sums) {
    const size_t columns = (size_t)call->layout->columns, bits = (size_t)segment->bits;
    const uint8_t *codes = call->blob + segment->codes + row * row_bytes(segment, columns);
    const uint8_t *zero_points = call->blob + segment->zero_points + row * zero_bytes(segment);
    for (size_t i = 0; i < (size_t)segment->outliers; i++) {
        const size_t column = outlier_column(call, segment, row, i);
        if (column >= columns) return NO_SUCH_COLUMN;
        const size_t group = column / (size_t)segment->group;
        const int zero = segment->symmetric ? 1 << (bits - 1) : code_at(zero_points, group, bits);
        const float said = (float)(code_at(codes, column, bits) - zero) * scratch->scales[group];
        const float more = outlier_value(call, segment, row, i) - said;
        for (size_t m = 0; m < call->count; m++) sums[m] += more * call->inputs[m * columns + column];
    }
    return DONE;
}

/* What a row's patches make with an input, but for the row's scale; `*outcome` says if a column is none. */
INLINE float sum_patches(const Call *call, const Segment *segment, size_t row, const float *inputs, int *outcome) {
    const size_t columns = (size_t)call->layout->columns;
    float totals[2] = {0.0f, 0.0f}; /* for the processor to work on both at once */
    for (size_t i = 0; i < (size_t)segment->outliers; i++) {
        const size_t column = outlier_column(call, segment, row, i);
        if (column >= columns) {
            *outcome = NO_SUCH_COLUMN;
            return 0.0f;
        }
        totals[i % 2] += (float)patch_at(call, segment, row, i) * inputs[column];
    }
    return totals[0] + totals[1];
}

/* A row's codes, with READ_AHEAD bytes behind them. */
static const uint8_t *codes_of(const Call *call, const Segment *segment, size_t row, Scratch *scratch) {
    const size_t bytes = row_bytes(segment, (size_t)call->layout->columns);
    const uint8_t *codes = call->blob + segment->codes + row * bytes;
    if (call->blob + call->layout->bytes - codes >= (ptrdiff_t)(bytes + READ_AHEAD)) return codes;
    memcpy(scratch->codes, codes, bytes);
    memset(scratch->codes + bytes, 0, READ_AHEAD);
    return scratch->codes;
}
