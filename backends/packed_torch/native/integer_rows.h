/* Rows of codes times inputs in integers, block by block: scales, zero points and outliers around what the instruction
 * set's own file does. Inputs that are rounded to int8 have one digit to a block's scale; where all others are taken,
 * these have three, 24 bits, which is what a float32 has. */

INLINE int is_rounded(const Call *call, const Segment *segment) { return call->input_codes && segment->kind == AFFINE; }

/* Room for a segment's inputs. */
static int find_blocks(const Call *call, const Segment *segment, Prepared *prepared) {
    const size_t columns = (size_t)call->layout->columns, count = call->count;
    Blocks *blocks = &prepared->blocks;
    blocks->count = is_rounded(call, segment) ? 1 : 3;
    blocks->each = whole(columns, INTEGER_BLOCK) / INTEGER_BLOCK;
    blocks->scale_stride = padded_blocks(call->layout);
    prepared->group_stride = segment->kind == AFFINE ? whole((size_t)segment->groups, LINE / 4) : 0;
    const size_t floats = count * (prepared->group_stride + blocks->scale_stride + middle_stride(blocks));
    const size_t bytes = floats * sizeof(float) + count * blocks->each * blocks->count * INTEGER_BLOCK;
    prepared->values = found_lines(bytes + LINE);
    if (!prepared->values) return NO_MEMORY;
    memset(prepared->values, 0, bytes);
    prepared->group_sums = prepared->values;
    blocks->scales = prepared->values + count * prepared->group_stride;
    blocks->middles = (int32_t *)(blocks->scales + count * blocks->scale_stride);
    blocks->digits = (int8_t *)(blocks->middles + count * middle_stride(blocks));
    return DONE;
}

/* The inputs of a segment that is multiplied in integers. */
static int prepare_integers(const Call *call, const Segment *segment, Prepared *prepared) {
    const size_t columns = (size_t)call->layout->columns;
    if (find_blocks(call, segment, prepared) != DONE) return NO_MEMORY;
    const Blocks *blocks = &prepared->blocks;
    uint8_t order[INTEGER_BLOCK];
    for (size_t i = 0; i < INTEGER_BLOCK; i++) order[i] = (uint8_t)column_at((int)segment->bits, i);
    for (size_t m = 0; m < call->count; m++) {
        const float *inputs = (segment->kind == PATCHED ? call->scaled : call->inputs) + m * columns;
        if (segment->kind == AFFINE)
            sum_groups(segment, inputs, columns, prepared->group_sums + m * prepared->group_stride);
        int8_t *digits = digits_of(blocks, m);
        if (blocks->count == 1) {
            const size_t length = blocks->each * INTEGER_BLOCK;
            const int8_t *codes = call->input_codes + m * length;
            memcpy(blocks->scales + m * blocks->scale_stride, call->input_scales + m * call->scale_stride,
                   blocks->each * sizeof(float));
            for (size_t i = 0; i < length; i++)
                digits[i] = codes[i / INTEGER_BLOCK * INTEGER_BLOCK + order[i % INTEGER_BLOCK]];
        } else {
            for (size_t first = 0; first < columns; first += INTEGER_BLOCK) {
                const size_t width = columns - first < INTEGER_BLOCK ? columns - first : INTEGER_BLOCK;
                blocks->scales[m * blocks->scale_stride + first / INTEGER_BLOCK] =
                    split_block(inputs + first, width, order, digits + first * blocks->count);
            }
        }
        sum_middles((int)segment->bits, blocks, digits, blocks->middles + m * middle_stride(blocks));
    }
    return DONE;
}

/* A row's zero points, a byte each. */
INLINE const uint8_t *zero_points_of(const Call *call, const Segment *segment, size_t row, Scratch *scratch) {
    const size_t groups = (size_t)segment->groups;
    const uint8_t *packed = call->blob + segment->zero_points + row * zero_bytes(segment);
    if (segment->symmetric) memset(scratch->zero_points, 1 << (segment->bits - 1), groups);
    else unpack_codes(packed, call->blob + call->layout->bytes, (int)segment->bits, groups, scratch->zero_points);
    return scratch->zero_points;
}

/* A row's scales times those of each input's blocks, and what its zero points add to each sum. */
INLINE void scale_blocks(const Call *call, const Segment *segment, size_t row, Scratch *scratch, float *zeros) {
    const Prepared *prepared = &call->prepared[segment - call->layout->segment];
    const Blocks *inputs = &prepared->blocks;
    const size_t groups = (size_t)segment->groups, stride = inputs->scale_stride;
    const size_t each = groups == 1 ? inputs->each : (size_t)segment->group / INTEGER_BLOCK;
    float *scales = scratch->scales, *products = scratch->block_scales, *spread = scratch->word_scales;
    const Vector middle = vector_of((float)integer_middle((int)segment->bits));
    const uint8_t *zero_points = zero_points_of(call, segment, row, scratch);
    read_scales(call->blob + segment->scales + row * groups * 2, groups, scales);
    if (each == 1) spread = scales;
    else
        for (size_t group = 0, block = 0; group < groups; group++)
            for (const size_t end = block + each; block < inputs->each && block < end; block++)
                spread[block] = scales[group];
    for (size_t m = 0; m < call->count; m++) {
        const float *own = inputs->scales + m * stride, *sums = prepared->group_sums + m * prepared->group_stride;
        Vector total = vector_of(0.0f);
        for (size_t group = 0; group < groups; group += LANES) { /* behind the last, any number times the scale zero */
            const Vector sum = multiply_add(load_vector(scales + group), load_vector(sums + group), vector_of(0.0f));
            total = multiply_add(subtract(vector_of_bytes(zero_points + group), middle), sum, total);
        }
        for (size_t block = 0; block < inputs->each; block += LANES)
            store_vector(products + m * stride + block,
                         multiply_add(load_vector(spread + block), load_vector(own + block), vector_of(0.0f)));
        zeros[m] = sum(total);
    }
}

/* `rows` rows from `row` on, for codes of `bits` bits and inputs of `count` digits; `listed` says which they are. */
INLINE int multiply_run(const int bits, const size_t count, const Call *call, const Segment *segment, size_t row,
                        size_t rows, const int32_t *listed, Scratch *scratch) {
    const Blocks *blocks = &call->prepared[segment - call->layout->segment].blocks;
    const size_t all = (size_t)call->layout->rows;
    for (size_t end = row + rows; row < end; row++, listed++) {
        const uint8_t *codes = codes_of(call, segment, row, scratch);
        float sums[MOST_INPUTS];
        if ((size_t)*listed >= all) return NO_SUCH_ROW;
        if (segment->kind == PATCHED) {
            const float scale = patched_scale(call, segment, row);
            const size_t columns = (size_t)call->layout->columns;
            int outcome = DONE;
            multiply_integers(bits, count, codes, blocks, blocks->scales, call->count, sums);
            for (size_t m = 0; m < call->count; m++) {
                const float more = sum_patches(call, segment, row, call->scaled + m * columns, &outcome);
                call->outputs[m * all + (size_t)*listed] = scale * (sums[m] + more);
            }
            if (outcome != DONE) return outcome;
        } else {
            float zeros[MOST_INPUTS];
            scale_blocks(call, segment, row, scratch, zeros);
            multiply_integers(bits, count, codes, blocks, scratch->block_scales, call->count, sums);
            for (size_t m = 0; m < call->count; m++) sums[m] -= zeros[m];
            if (segment->outliers && replace_outliers(call, segment, row, scratch, sums) != DONE) return NO_SUCH_COLUMN;
            for (size_t m = 0; m < call->count; m++) call->outputs[m * all + (size_t)*listed] = sums[m];
        }
    }
    return DONE;
}

#define RUN(bits, count, name)                                                                                         \
    static int name(const Call *call, const Segment *segment, size_t row, size_t rows, const int32_t *listed,          \
                    Scratch *scratch) {                                                                                \
        return multiply_run(bits, count, call, segment, row, rows, listed, scratch);                                   \
    }
#define BOTH_RUNS(bits)                                                                                                \
    RUN(bits, 1, one_digit_##bits)                                                                                     \
    RUN(bits, 3, three_digits_##bits)
BOTH_RUNS(1)
BOTH_RUNS(2)
BOTH_RUNS(3)
BOTH_RUNS(4)
BOTH_RUNS(5)
BOTH_RUNS(6)
BOTH_RUNS(7)
BOTH_RUNS(8)

/* `rows` rows of a segment from `row` on. */
static int multiply_in_integers(const Call *call, const Segment *segment, size_t row, size_t rows,
                                const int32_t *listed, Scratch *scratch) {
#define RUNS_OF(bits) {one_digit_##bits, three_digits_##bits}
    static int (*const by_bits[][2])(const Call *, const Segment *, size_t, size_t, const int32_t *, Scratch *) = {
        RUNS_OF(1), RUNS_OF(2), RUNS_OF(3), RUNS_OF(4), RUNS_OF(5), RUNS_OF(6), RUNS_OF(7), RUNS_OF(8)};
    const size_t digits = call->prepared[segment - call->layout->segment].blocks.count;
    return by_bits[segment->bits - 1][digits == 3](call, segment, row, rows, listed, scratch);
}
