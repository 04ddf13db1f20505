/* What each instruction set does with a call: prepare its inputs, multiply some rows, dequantize some rows. */
INLINE size_t block_codes(const Segment *segment) { return (size_t)LANES * WORD_CODES(segment->bits); }

/* Whether codes are multiplied as they lie: words must not straddle groups. */
INLINE int by_words(const Segment *segment) {
    if (segment->kind > PATCHED) return 0;
    return segment->groups == 1 || segment->group % WORD_CODES(segment->bits) == 0;
}

/* Whether zero points differ from what `multiply_row` has taken from the codes. */
INLINE int has_zero_points(const Segment *segment) {
    return !(segment->symmetric && segment->bits > 4);
}

/* What `multiply_row` leaves of a symmetric format's zero point. */
INLINE float zero_left(const Segment *segment) { return segment->bits > 4 ? 0.0f : (float)(1 << (segment->bits - 1)); }

/* What a segment's codes are multiplied by. */
INLINE const float *inputs_of(const Call *call, const Segment *segment) {
    return segment->kind == PATCHED ? call->scaled : call->inputs;
}

static void order_inputs(const Call *call, const Segment *segment, const float *inputs, float *ordered) {
    const size_t length = WORD_CODES(segment->bits), columns = (size_t)call->layout->columns;
    float weights[8];
    for (size_t place = 0; place < length; place++) weights[place] = 1.0f / weight_of((int)segment->bits, (int)place);
    for (size_t i = 0; i < columns; ordered += block_codes(segment))
        for (size_t lane = 0; lane < LANES; lane++)
            for (size_t place = 0; place < length && i < columns; place++, i++)
                ordered[place * LANES + lane] = inputs[i] * weights[place];
}

static int prepare_segment(Call *call, const Segment *segment, Prepared *prepared) {
    const size_t columns = (size_t)call->layout->columns;
#if INTEGERS
    if (by_integers(call, segment)) return prepare_integers(call, segment, prepared);
#endif
    prepared->stride = whole(columns, block_codes(segment));
    prepared->group_stride = whole((size_t)segment->groups, LANES);
    prepared->values = calloc(call->count * (prepared->stride + prepared->group_stride) + 1, sizeof(float));
    if (!prepared->values) return NO_MEMORY;
    prepared->group_sums = prepared->values + call->count * prepared->stride;
    for (size_t m = 0; m < call->count; m++) {
        const float *inputs = inputs_of(call, segment) + m * columns;
        order_inputs(call, segment, inputs, prepared->values + m * prepared->stride);
        if (has_zero_points(segment))
            sum_groups(segment, inputs, columns, prepared->group_sums + m * prepared->group_stride);
    }
    return DONE;
}

/* All PATCHED segments of one width take the same inputs. */
static int prepare(Call *call) {
    Prepared *patched[9] = {NULL};
    for (int64_t s = 0; s < call->layout->segments; s++) {
        const Segment *segment = &call->layout->segment[s];
        if (!by_words(segment)) continue;
        Prepared *own = &call->prepared[s], **earlier = segment->kind == PATCHED ? &patched[segment->bits] : NULL;
        if (earlier && *earlier) {
            *own = **earlier;
            own->shared = 1;
            continue;
        }
        if (prepare_segment(call, segment, own) != DONE) return NO_MEMORY;
        if (earlier) *earlier = own;
    }
    return DONE;
}

/* Scale times zero point of each group, as far as `multiply_row` has left it. */
static void zero_products(const Call *call, const Segment *segment, size_t row, Scratch *scratch) {
    const size_t groups = (size_t)segment->groups, padded = whole(groups, LANES);
    if (segment->symmetric) {
        for (size_t g = 0; g < padded; g++) scratch->products[g] = scratch->scales[g] * zero_left(segment);
        return;
    }
    const uint8_t *packed = call->blob + segment->zero_points + row * zero_bytes(segment);
    unpack_codes(packed, call->blob + call->layout->bytes, (int)segment->bits, groups, scratch->zero_points);
    const Vector middle = vector_of(middle_of((int)segment->bits));
    for (size_t g = 0; g < padded; g += LANES) { /* behind the last group, any number times the scale zero */
        const Vector zero_point = subtract(vector_of_bytes(scratch->zero_points + g), middle);
        const Vector scale = load_vector(scratch->scales + g);
        store_vector(scratch->products + g, multiply_add(zero_point, scale, vector_of(0.0f)));
    }
}

/* Each group's scale for each of its words. What is written too far, the next group, or nobody, needs. */
static void spread_scales(const Segment *segment, size_t words, Scratch *scratch) {
    const size_t each = (size_t)segment->group / WORD_CODES(segment->bits);
    for (size_t group = 0; group < (size_t)segment->groups; group++) {
        const Vector scale = vector_of(scratch->scales[group]);
        const size_t end = group + 1 < (size_t)segment->groups ? (group + 1) * each : words;
        for (size_t word = group * each; word < end; word += LANES) store_vector(scratch->word_scales + word, scale);
    }
}

static int multiply_words(const Call *call, const Segment *segment, size_t row, Scratch *scratch, float *sums) {
    const Prepared *prepared = &call->prepared[segment - call->layout->segment];
    const size_t blocks = prepared->stride / block_codes(segment);
    const uint8_t *codes = codes_of(call, segment, row, scratch);
    const int patched = segment->kind == PATCHED, grouped = segment->groups > 1;
    if (patched) {
        memset(scratch->scales, 0, LANES * sizeof(float));
        scratch->scales[0] = patched_scale(call, segment, row);
    } else {
        const size_t groups = (size_t)segment->groups;
        read_scales(call->blob + segment->scales + row * groups * 2, groups, scratch->scales);
    }
    if (grouped) spread_scales(segment, blocks * LANES, scratch);
    multiply_codes((int)segment->bits, codes, grouped ? scratch->word_scales : NULL, prepared, call->count, blocks, sums);
    int outcome = DONE;
    for (size_t m = 0; patched && m < call->count; m++)
        sums[m] += sum_patches(call, segment, row, call->scaled + m * (size_t)call->layout->columns, &outcome);
    for (size_t m = 0; !grouped && m < call->count; m++) sums[m] *= scratch->scales[0];
    if (has_zero_points(segment)) {
        zero_products(call, segment, row, scratch);
        for (size_t m = 0; m < call->count; m++)
            sums[m] -= multiply_padded(scratch->products, prepared->group_sums + m * prepared->group_stride,
                                       prepared->group_stride);
    }
    return patched ? outcome : replace_outliers(call, segment, row, scratch, sums);
}

/* A row of which the codes are unpacked. */
static int dequantize_patched(const Call *call, const Segment *segment, size_t row, Scratch *scratch, float *values) {
    const size_t columns = (size_t)call->layout->columns;
    const int middle = 1 << (segment->bits - 1);
    const float scale = patched_scale(call, segment, row);
    for (size_t i = 0; i < columns; i++) scratch->codes[i] = (uint8_t)(scratch->codes[i] - middle);
    for (size_t i = 0; i < (size_t)segment->outliers; i++) {
        const size_t column = outlier_column(call, segment, row, i);
        if (column >= columns) return NO_SUCH_COLUMN;
        scratch->codes[column] = (uint8_t)(scratch->codes[column] + patch_at(call, segment, row, i));
    }
    for (size_t i = 0; i < columns; i++)
        values[i] = (float)(int8_t)scratch->codes[i] * (call->columns ? call->columns[i] : 1.0f) * scale;
    return DONE;
}

static int dequantize_row(const Call *call, const Segment *segment, size_t row, Scratch *scratch, float *values) {
    const size_t columns = (size_t)call->layout->columns;
    const uint8_t *limit = call->blob + call->layout->bytes;
    const uint8_t *codes = call->blob + segment->codes + row * row_bytes(segment, columns);
    if (segment->kind > PATCHED) {
        dequantize_floats(codes, segment->kind, columns, values);
        return DONE;
    }
    const size_t groups = (size_t)segment->groups;
    unpack_codes(codes, limit, (int)segment->bits, columns, scratch->codes);
    if (segment->kind == PATCHED) return dequantize_patched(call, segment, row, scratch, values);
    read_scales(call->blob + segment->scales + row * groups * 2, groups, scratch->scales);
    const uint8_t *zero_points = call->blob + segment->zero_points + row * zero_bytes(segment);
    if (!segment->symmetric) unpack_codes(zero_points, limit, (int)segment->bits, groups, scratch->zero_points);
    dequantize_groups(scratch->codes, scratch->scales, scratch->zero_points, segment, columns, values);
    for (size_t i = 0; i < (size_t)segment->outliers; i++) {
        const size_t column = outlier_column(call, segment, row, i);
        if (column >= columns) return NO_SUCH_COLUMN;
        values[column] = outlier_value(call, segment, row, i);
    }
    return DONE;
}

/* Codes whose words straddle groups, and floating point: a row is read into float32, but for a single input. */
static int multiply_values(const Call *call, const Segment *segment, size_t row, Scratch *scratch, float *sums) {
    const size_t columns = (size_t)call->layout->columns;
    const uint8_t *stored = call->blob + segment->codes + row * row_bytes(segment, columns);
    if (call->count == 1 && (segment->kind == HALF || segment->kind == BFLOAT)) {
        sums[0] = segment->kind == HALF ? multiply_numbers(HALF, stored, call->inputs, columns)
                                        : multiply_numbers(BFLOAT, stored, call->inputs, columns);
        return DONE;
    }
    const int outcome = dequantize_row(call, segment, row, scratch, scratch->row);
    for (size_t m = 0; outcome == DONE && m < call->count; m++)
        sums[m] = multiply_numbers(SINGLE, (const uint8_t *)scratch->row, call->inputs + m * columns, columns);
    return outcome;
}

/* The segment that has a place, and the place's number in it; NULL if there is no such place. */
INLINE const Segment *segment_of(const Layout *layout, size_t *place) {
    for (int64_t s = 0; s < layout->segments; s++) {
        if (*place < (size_t)layout->segment[s].rows) return &layout->segment[s];
        *place -= (size_t)layout->segment[s].rows;
    }
    return NULL;
}

static int multiply(const Call *call, size_t first, size_t last) {
    const size_t rows = (size_t)call->layout->rows;
    Scratch scratch;
    float sums[MOST_INPUTS];
    int outcome = find_scratch(call, call->count, &scratch);
    if (outcome != DONE) return outcome;
    for (size_t place = first, done; outcome == DONE && place < last; place += done) {
        size_t own = place;
        const Segment *segment = segment_of(call->layout, &own);
#if INTEGERS
        if (call->prepared[segment - call->layout->segment].blocks.digits) {
            done = (size_t)segment->rows - own < last - place ? (size_t)segment->rows - own : last - place;
            outcome = multiply_in_integers(call, segment, own, done, call->rows + place, &scratch);
            continue;
        }
#endif
        const size_t row = (size_t)call->rows[place];
        if (row >= rows) {
            outcome = NO_SUCH_ROW;
            break;
        }
        done = 1;
        outcome = (by_words(segment) ? multiply_words : multiply_values)(call, segment, own, &scratch, sums);
        for (size_t m = 0; m < call->count; m++) call->outputs[m * rows + row] = sums[m];
    }
    free(scratch.scales);
    return outcome;
}

static int dequantize(const Call *call, size_t first, size_t last) {
    const size_t rows = (size_t)call->layout->rows, columns = (size_t)call->layout->columns;
    Scratch scratch;
    int outcome = find_scratch(call, 0, &scratch);
    if (outcome != DONE) return outcome;
    for (size_t i = first; outcome == DONE && i < last; i++) {
        const size_t row = (size_t)(call->wanted ? call->wanted[i] : call->first_row + (int64_t)i);
        size_t place = row < rows ? (size_t)call->rows[row] : rows;
        const Segment *segment = segment_of(call->layout, &place);
        outcome = segment ? dequantize_row(call, segment, place, &scratch, call->outputs + i * columns) : NO_SUCH_ROW;
    }
    free(scratch.scales);
    return outcome;
}
