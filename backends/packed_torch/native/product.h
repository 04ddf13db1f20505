/* Rows of codes times inputs, without unpacking: see `instructions.h` for the order of the inputs. */

/* Codes wider than 4 bits lie far from zero, so the middle is taken from them first; else sums would cancel. */
INLINE float middle_of(const int bits) { return bits > 4 ? (float)(1 << (bits - 1)) : 0.0f; }

/* What a code counts too much when it stands at `place` in its word. */
INLINE float weight_of(const int bits, const int place) {
    return bits * (place + 1) == 32 ? 1.0f : (float)(1 << (bits * place));
}

/* One code of each word, times its weight. */
INLINE Vector codes_at(Words words, const int bits, const int place) {
    Vector codes;
    if (bits * (place + 1) == 32) codes = shifted(words, 32 - bits);
    else codes = masked(words, ((1u << bits) - 1) << (bits * place));
    return bits > 4 ? subtract(codes, vector_of(middle_of(bits) * weight_of(bits, place))) : codes;
}

/* A row times some inputs, each `stride` behind the last. `scales`, if any, has one for each word. */
INLINE void multiply_row(const int bits, const int inputs, const uint8_t *codes, const float *scales,
                         const float *values, size_t stride, size_t blocks, float *sums) {
    const int length = WORD_CODES(bits);
    Vector totals[4];
    for (int m = 0; m < inputs; m++) totals[m] = vector_of(0.0f);
    for (size_t block = 0; block < blocks; block++) {
        const Words words = load_words(codes + block * (LANES * WORD_BITS(bits) / 8), bits);
        const float *here = values + block * (size_t)(LANES * length);
        Vector parts[4], others[4]; /* two sums, for the processor to work on both at once */
        for (int m = 0; m < inputs; m++) parts[m] = others[m] = vector_of(0.0f);
#pragma GCC unroll 4
        for (int place = 0; place < length; place += 2) {
            const Vector even = codes_at(words, bits, place), odd = codes_at(words, bits, place + 1);
            for (int m = 0; m < inputs; m++) {
                const float *input = here + (size_t)m * stride + place * LANES;
                parts[m] = multiply_add(even, load_vector(input), parts[m]);
                others[m] = multiply_add(odd, load_vector(input + LANES), others[m]);
            }
        }
        for (int m = 0; m < inputs; m++) parts[m] = add(parts[m], others[m]);
        if (scales) {
            const Vector scale = load_vector(scales + block * LANES);
            for (int m = 0; m < inputs; m++) totals[m] = multiply_add(parts[m], scale, totals[m]);
        } else {
            for (int m = 0; m < inputs; m++) totals[m] = add(totals[m], parts[m]);
        }
    }
    for (int m = 0; m < inputs; m++) sums[m] = sum(totals[m]);
}

#define MULTIPLY(name, inputs)                                                                                         \
    static void name(int bits, const uint8_t *codes, const float *scales, const float *values, size_t stride,          \
                     size_t blocks, float *sums) {                                                                     \
        switch (bits) {                                                                                                \
            case 1: multiply_row(1, inputs, codes, scales, values, stride, blocks, sums); break;                       \
            case 2: multiply_row(2, inputs, codes, scales, values, stride, blocks, sums); break;                       \
            case 3: multiply_row(3, inputs, codes, scales, values, stride, blocks, sums); break;                       \
            case 4: multiply_row(4, inputs, codes, scales, values, stride, blocks, sums); break;                       \
            case 5: multiply_row(5, inputs, codes, scales, values, stride, blocks, sums); break;                       \
            case 6: multiply_row(6, inputs, codes, scales, values, stride, blocks, sums); break;                       \
            case 7: multiply_row(7, inputs, codes, scales, values, stride, blocks, sums); break;                       \
            default: multiply_row(8, inputs, codes, scales, values, stride, blocks, sums); break;                      \
        }                                                                                                              \
    }
MULTIPLY(multiply_one, 1)
MULTIPLY(multiply_two, 2)
MULTIPLY(multiply_four, 4)

static void multiply_codes(int bits, const uint8_t *codes, const float *scales, const Prepared *inputs, size_t count,
                           size_t blocks, float *sums) {
    const float *values = inputs->values;
    const size_t stride = inputs->stride;
    size_t m = 0;
    for (; m + 4 <= count; m += 4) multiply_four(bits, codes, scales, values + m * stride, stride, blocks, sums + m);
    for (; m + 2 <= count; m += 2) multiply_two(bits, codes, scales, values + m * stride, stride, blocks, sums + m);
    if (m < count) multiply_one(bits, codes, scales, values + m * stride, stride, blocks, sums + m);
}

INLINE Vector vector_at(const int kind, const uint8_t *row, size_t i) {
    if (kind == HALF) return vector_of_halves(row + 2 * i);
    return kind == BFLOAT ? vector_of_bfloats(row + 2 * i) : load_vector((const float *)(const void *)row + i);
}

INLINE float number_at(const int kind, const uint8_t *row, size_t i) {
    if (kind == HALF) return half_at(row + 2 * i);
    return kind == BFLOAT ? bfloat_at(row + 2 * i) : ((const float *)(const void *)row)[i];
}

/* A row of numbers, aligned if they are SINGLE, times one input. */
INLINE float multiply_numbers(const int kind, const uint8_t *row, const float *input, size_t columns) {
    Vector totals[4] = {vector_of(0.0f), vector_of(0.0f), vector_of(0.0f), vector_of(0.0f)};
    float last = 0.0f;
    size_t i = 0;
    for (; i + 4 * LANES <= columns; i += 4 * LANES)
        for (size_t k = 0; k < 4; k++)
            totals[k] = multiply_add(vector_at(kind, row, i + k * LANES), load_vector(input + i + k * LANES), totals[k]);
    for (; i + LANES <= columns; i += LANES)
        totals[0] = multiply_add(vector_at(kind, row, i), load_vector(input + i), totals[0]);
    for (; i < columns; i++) last += number_at(kind, row, i) * input[i];
    return sum(add(add(totals[0], totals[1]), add(totals[2], totals[3]))) + last;
}

/* Two rows of numbers, of which `count` is a whole number of vectors. */
static float multiply_padded(const float *a, const float *b, size_t count) {
    Vector total = vector_of(0.0f);
    for (size_t i = 0; i < count; i += LANES) total = multiply_add(load_vector(a + i), load_vector(b + i), total);
    return sum(total);
}
