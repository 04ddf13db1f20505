/* Codes of 2 to 6 bits times inputs rounded to int8, in blocks of INTEGER_BLOCK columns, by the integer instructions of
 * AVX2. Sums within a block are exact; blocks are added in float32. Whoever has no such instructions, and segments whose
 * groups are no whole blocks, multiply the rounded inputs as any others. */
typedef __m256i Bytes;

INLINE int by_integers(const Call *call, const Segment *segment) {
    return call->input_codes && segment->kind == AFFINE && segment->bits >= 2 && segment->bits <= 6 &&
           (segment->groups == 1 || segment->group % INTEGER_BLOCK == 0);
}

/* Inputs that are not rounded stay in float. */
INLINE float split_block(const float *inputs, size_t width, const uint8_t *order, int8_t *digits) {
    (void)inputs, (void)width, (void)order, (void)digits;
    return 0.0f;
}

/* Codes are multiplied as they are. */
INLINE int integer_middle(const int bits) { return (void)bits, 0; }
INLINE void sum_middles(int bits, const Blocks *blocks, const int8_t *digits, int32_t *middles) {
    (void)bits, (void)blocks, (void)digits, (void)middles;
}

/* The column of a block that comes at each place, so that codes meet their inputs after the fewest shifts. */
INLINE size_t column_at(const int bits, const size_t place) {
    const size_t half = place / 32, within = place % 32;
    if (bits == 4) return 2 * within + half;
    if (bits == 3) return 4 * (within / 2) + (within % 2 ? 3 - half : half);
    if (bits == 2) return 4 * (within % 16) + 2 * half + within / 16;
    return place;
}

INLINE Bytes two_parts(const uint8_t *from, const int apart) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(load_sixteen(from)), load_sixteen(from + apart), 1);
}
INLINE Bytes pick(Bytes v, __m128i bytes) { return _mm256_shuffle_epi8(v, _mm256_broadcastsi128_si256(bytes)); }
INLINE Bytes of_halves(Bytes v, const int mask) { return _mm256_and_si256(v, _mm256_set1_epi16((short)mask)); }

/* Codes of 3 or 6 bits: every half begins at bit 4 with the 12 bits of four codes, or of two. */
INLINE Bytes twelve_bits(const uint8_t *from) {
    const __m128i bytes = _mm_setr_epi8(0, 1, 1, 2, 3, 4, 4, 5, 6, 7, 7, 8, 9, 10, 10, 11);
    return _mm256_mullo_epi16(pick(two_parts(from, 12), bytes), _mm256_set1_epi32(0x00010010));
}

/* Codes of 5 bits: every half ends with two of them. */
INLINE Bytes ten_bits(const uint8_t *from) {
    const __m128i bytes = _mm_setr_epi8(0, 1, 1, 2, 2, 3, 3, 4, 5, 6, 6, 7, 7, 8, 8, 9);
    return _mm256_mullo_epi16(pick(two_parts(from, 10), bytes), _mm256_set1_epi64x(0x0001000400100040));
}

/* Half of a block's codes, a byte each, in the order of `column_at`. */
INLINE Bytes half_block(const int bits, const uint8_t *codes, const int half) {
    if (bits == 2) {
        const Bytes v = _mm256_broadcastsi128_si256(load_sixteen(codes));
        const Bytes two = _mm256_srlv_epi32(v, _mm256_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2));
        return of_halves(half ? _mm256_srli_epi16(two, 4) : two, 0x0303);
    }
    if (bits == 3) {
        const Bytes v = twelve_bits(codes);
        if (half) return _mm256_or_si256(of_halves(_mm256_srli_epi16(v, 7), 7), of_halves(_mm256_srli_epi16(v, 2), 0x700));
        return _mm256_or_si256(of_halves(_mm256_srli_epi16(v, 4), 7), of_halves(_mm256_srli_epi16(v, 5), 0x700));
    }
    if (bits == 4) {
        const Bytes v = two_parts(codes, 16);
        return of_halves(half ? _mm256_srli_epi16(v, 4) : v, 0x0f0f);
    }
    if (bits == 5) {
        const Bytes v = ten_bits(codes + 20 * half);
        return _mm256_or_si256(of_halves(_mm256_srli_epi16(v, 6), 0x1f), of_halves(_mm256_srli_epi16(v, 3), 0x1f00));
    }
    const Bytes v = twelve_bits(codes + 24 * half);
    return _mm256_or_si256(of_halves(_mm256_srli_epi16(v, 4), 0x3f), of_halves(_mm256_srli_epi16(v, 2), 0x3f00));
}

/* Eight sums, which together are a block's codes times its inputs. No sum of 16 bits exceeds 4 * 63 * 127. */
INLINE __m256 multiply_block(const int bits, const uint8_t *codes, const int8_t *inputs) {
    const Bytes low = _mm256_loadu_si256((const Bytes *)(const void *)inputs);
    const Bytes high = _mm256_loadu_si256((const Bytes *)(const void *)(inputs + 32));
    const Bytes pairs = _mm256_add_epi16(_mm256_maddubs_epi16(half_block(bits, codes, 0), low),
                                         _mm256_maddubs_epi16(half_block(bits, codes, 1), high));
    return _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

INLINE float multiply_blocks(const int bits, const uint8_t *codes, const int8_t *inputs, const float *scales,
                             size_t blocks) {
    const size_t bytes = INTEGER_BLOCK / 8 * (size_t)bits;
    __m256 totals[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()}; /* for the processor to work on both at once */
    size_t block = 0;
    for (; block + 2 <= blocks; block += 2)
        for (size_t k = 0; k < 2; k++)
            totals[k] = _mm256_fmadd_ps(
                multiply_block(bits, codes + (block + k) * bytes, inputs + (block + k) * INTEGER_BLOCK),
                _mm256_broadcast_ss(scales + block + k), totals[k]);
    if (block < blocks)
        totals[0] = _mm256_fmadd_ps(multiply_block(bits, codes + block * bytes, inputs + block * INTEGER_BLOCK),
                                    _mm256_broadcast_ss(scales + block), totals[0]);
    const __m256 total = _mm256_add_ps(totals[0], totals[1]);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(total), _mm256_extractf128_ps(total, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

/* A row's codes times some inputs of one digit; `scales` has one for each block of each. */
INLINE void multiply_integers(const int bits, const size_t digits, const uint8_t *codes, const Blocks *inputs,
                              const float *scales, size_t count, float *sums) {
    for (size_t m = 0; digits == 1 && m < count; m++)
        sums[m] = multiply_blocks(bits, codes, digits_of(inputs, m), scales + m * inputs->scale_stride, inputs->each);
}
