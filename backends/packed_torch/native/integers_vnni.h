/* Codes of any width times inputs in integers, in blocks of INTEGER_BLOCK columns, by AVX-512 VNNI and VBMI on 256 bits:
 * there are more units for these than for 512, and half as many sums to convert. Sums within a block are exact; blocks
 * are added in float32. All inputs are taken: where they are not rounded to int8, each is three digits, which costs less
 * than float32, whose inputs take four times the loads. What stays in float: groups that are no whole blocks, and numbers. */
typedef struct { __m256i first, second; } Block; /* of codes, a byte each, in the order of `column_at` */

INLINE int by_integers(const Call *call, const Segment *segment) {
    (void)call;
    return segment->kind == PATCHED || segment->groups == 1 || segment->group % INTEGER_BLOCK == 0;
}

/* The column of a block that comes at each place, so that codes meet their inputs after the fewest steps. */
INLINE size_t column_at(const int bits, const size_t place) {
    const size_t half = place / 32, within = place % 32;
    if (bits == 4) return 2 * within + half;
    if (bits == 2 || bits == 3) return 16 * (within / 8) + 8 * half + within % 8;
    return place;
}

/* Where in a word of 64 bits each of eight codes begins. */
#define EIGHT_AT(bits, first)                                                                                          \
    (char)(first), (char)((first) + (bits)), (char)((first) + 2 * (bits)), (char)((first) + 3 * (bits)),               \
        (char)((first) + 4 * (bits)), (char)((first) + 5 * (bits)), (char)((first) + 6 * (bits)),                      \
        (char)((first) + 7 * (bits))

/* Eight codes of each word, from bit `first` on. */
INLINE __m256i eights(const int bits, __m256i words, const int first) {
    const __m256i starts = _mm256_broadcastq_epi64(_mm_setr_epi8(EIGHT_AT(bits, first), EIGHT_AT(bits, first)));
    return _mm256_and_si256(_mm256_multishift_epi64_epi8(starts, words), _mm256_set1_epi8((char)((1 << bits) - 1)));
}

#define WORD_AT(first) EIGHT_AT(1, first) /* eight bytes */

/* Four words of 64 bits, each `bytes` behind the last. */
INLINE __m256i words_apart(const uint8_t *from, const int bytes) {
    const __m256i places = _mm256_setr_epi8(WORD_AT(0), WORD_AT(bytes), WORD_AT(2 * bytes), WORD_AT(3 * bytes));
    return _mm256_permutexvar_epi8(places, _mm256_loadu_si256((const __m256i *)(const void *)from));
}

INLINE Block block_at(const int bits, const uint8_t *codes) {
    if (bits == 1) {
        uint32_t masks[2];
        memcpy(masks, codes, 8);
        return (Block){_mm256_maskz_set1_epi8(masks[0], 1), _mm256_maskz_set1_epi8(masks[1], 1)};
    }
    if (bits <= 3) { /* sixteen codes to a word */
        const __m256i words = words_apart(codes, 2 * bits);
        return (Block){eights(bits, words, 0), eights(bits, words, 8 * bits)};
    }
    if (bits == 4) {
        const __m256i pairs = _mm256_loadu_si256((const __m256i *)(const void *)codes), mask = _mm256_set1_epi8(15);
        return (Block){_mm256_and_si256(pairs, mask), _mm256_and_si256(_mm256_srli_epi16(pairs, 4), mask)};
    }
    if (bits < 8) {
        const __m256i first = words_apart(codes, bits), second = words_apart(codes + 4 * bits, bits);
        return (Block){eights(bits, first, 0), eights(bits, second, 0)};
    }
    const __m256i *bytes = (const __m256i *)(const void *)codes;
    return (Block){_mm256_loadu_si256(bytes), _mm256_loadu_si256(bytes + 1)};
}

/* What is taken from a code, for codes lie far from zero, and sums would cancel. */
INLINE int integer_middle(const int bits) { return 1 << (bits - 1); }

/* The eighth of it, as each of the eight parts of a sum has its share; of narrow codes, as some of the parts have. */
INLINE int middle_share(const int bits) { return bits > 4 ? integer_middle(bits) / 8 : 1; }
INLINE __mmask8 with_share(const int bits) { return bits > 3 ? 0xff : (__mmask8)((1 << integer_middle(bits)) - 1); }

enum { LARGEST_DIGITS = 127 << 16 };

/* A block of numbers as three digits in the order given. Returns their scale: NaN, as then all of the block is, if a
 * number is not finite. */
static float split_block(const float *inputs, size_t width, const uint8_t *order, int8_t *digits) {
    __m512 values[4], largest = _mm512_setzero_ps(), nothing = _mm512_setzero_ps();
    for (size_t i = 0; i < 4; i++) {
        const size_t left = width > 16 * i ? width - 16 * i : 0;
        const __mmask16 there = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
        values[i] = _mm512_maskz_loadu_ps(there, inputs + 16 * i);
        largest = _mm512_max_ps(largest, _mm512_abs_ps(values[i]));
        nothing = _mm512_add_ps(nothing, _mm512_sub_ps(values[i], values[i]));
    }
    const float most = _mm512_reduce_max_ps(largest);
    const __m512 steps = _mm512_set1_ps(most > 1e-31f ? (float)LARGEST_DIGITS / most : 0.0f);
    uint8_t bytes[3][INTEGER_BLOCK];
    for (size_t i = 0; i < 4; i++) {
        __m512i number = _mm512_cvtps_epi32(_mm512_mul_ps(values[i], steps));
        for (size_t digit = 3; digit-- > 0;) {
            const __m512i low = _mm512_srai_epi32(_mm512_slli_epi32(number, 24), 24);
            _mm_storeu_si128((__m128i *)(void *)(bytes[digit] + 16 * i), _mm512_cvtepi32_epi8(low));
            number = _mm512_srai_epi32(_mm512_sub_epi32(number, low), 8);
        }
    }
    const __m512i places = _mm512_loadu_si512(order);
    for (size_t digit = 0; digit < 3; digit++) {
        const __m512i own = _mm512_permutexvar_epi8(places, _mm512_loadu_si512(bytes[digit]));
        _mm512_storeu_si512(digits + digit * INTEGER_BLOCK, own);
    }
    return most / (float)LARGEST_DIGITS + _mm512_reduce_add_ps(nothing);
}

/* One sum of four codes times a digit in each of eight parts, twice, and `more` to the first. */
INLINE __m256i add_products(Block codes, const int8_t *digits, __m256i more) {
    const __m256i *from = (const __m256i *)(const void *)digits;
    more = _mm256_dpbusd_epi32(more, codes.first, _mm256_load_si256(from));
    return _mm256_dpbusd_epi32(more, codes.second, _mm256_load_si256(from + 1));
}

INLINE int32_t sum_of_digits(const int8_t *digits) {
    const __m512i own = _mm512_load_si512(digits), one = _mm512_set1_epi8(1);
    return _mm512_reduce_add_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), one, own));
}

/* For each block of an input, what its codes' middle adds to each part of its sums. */
static void sum_middles(int bits, const Blocks *blocks, const int8_t *digits, int32_t *middles) {
    const int middle = middle_share(bits);
    for (size_t block = 0; block < blocks->each; block++, middles += 2, digits += blocks->count * INTEGER_BLOCK) {
        middles[0] = -middle * sum_of_digits(digits + (blocks->count - 1) * INTEGER_BLOCK);
        if (blocks->count == 3)
            middles[1] = -middle * (256 * sum_of_digits(digits) + sum_of_digits(digits + INTEGER_BLOCK));
    }
}

INLINE float sum_of_eight(__m256 v) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

/* Sums of an input so far, in eight parts: of its last digit, and of those above. */
typedef struct { __m256 low, high; } Sums;

/* Where a block's sums begin. */
INLINE __m256i middle_at(const int bits, const int32_t *middle) {
    return _mm256_maskz_set1_epi32(with_share(bits), *middle);
}

/* Bytes: with three digits the processor follows so many addresses that it is too late for codes from memory. */
enum { AHEAD = 8192 };

/* Where a block's numbers begin of the first of some inputs, and how far apart those of the next are. */
typedef struct {
    const uint8_t *codes;
    const int8_t *digits;
    const int32_t *middles;
    const float *scales;
    size_t digit_stride, scale_stride;
} Place;

/* The block at a place, and on to the next one. */
INLINE void multiply_block(const int bits, const size_t count, const int inputs, Place *at, Sums *sums) {
    const Block own = block_at(bits, at->codes);
    if (count == 3) _mm_prefetch((const char *)at->codes + AHEAD, _MM_HINT_T1);
    for (size_t m = 0; m < (size_t)inputs; m++) {
        const int8_t *digits = at->digits + m * at->digit_stride;
        const int32_t *middles = at->middles + 2 * m * at->scale_stride;
        const __m256 scale = _mm256_broadcast_ss(at->scales + m * at->scale_stride);
        const __m256i low = add_products(own, digits + (count - 1) * INTEGER_BLOCK, middle_at(bits, middles));
        sums[m].low = _mm256_fmadd_ps(_mm256_cvtepi32_ps(low), scale, sums[m].low);
        if (count == 1) continue;
        const __m256i highest = _mm256_slli_epi32(add_products(own, digits, _mm256_setzero_si256()), 8);
        const __m256i above = add_products(own, digits + INTEGER_BLOCK, middle_at(bits, middles + 1));
        const __m256 high = _mm256_cvtepi32_ps(_mm256_add_epi32(highest, above));
        sums[m].high = _mm256_fmadd_ps(high, scale, sums[m].high);
    }
    at->codes += INTEGER_BLOCK / 8 * bits;
    at->digits += count * INTEGER_BLOCK;
    at->middles += 2;
    at->scales++;
}

/* The part of `multiply_integers` for `inputs` inputs from number `input` on. */
INLINE void multiply_blocks(const int bits, const size_t count, const int inputs, const uint8_t *codes,
                            const Blocks *blocks, size_t input, const float *scales, float *found) {
    Sums even[4], odd[4]; /* for the processor to work on both at once */
    for (int m = 0; m < inputs; m++) even[m] = odd[m] = (Sums){_mm256_setzero_ps(), _mm256_setzero_ps()};
    Place at = {codes, digits_of(blocks, input), blocks->middles + input * middle_stride(blocks),
                scales + input * blocks->scale_stride, digit_stride(blocks), blocks->scale_stride};
    size_t left = blocks->each;
    for (; left >= 2; left -= 2) {
        multiply_block(bits, count, inputs, &at, even);
        multiply_block(bits, count, inputs, &at, odd);
    }
    if (left) multiply_block(bits, count, inputs, &at, even);
    for (int m = 0; m < inputs; m++) {
        __m256 total = _mm256_add_ps(even[m].low, odd[m].low);
        if (count == 3) {
            const __m256 high = _mm256_add_ps(even[m].high, odd[m].high);
            total = _mm256_fmadd_ps(high, _mm256_set1_ps(256.0f), total);
        }
        found[input + (size_t)m] = sum_of_eight(total);
    }
}

/* A row's codes times some inputs of `digits` digits; `scales` has one for each block of each. */
INLINE void multiply_integers(const int bits, const size_t digits, const uint8_t *codes, const Blocks *inputs,
                              const float *scales, size_t count, float *sums) {
    size_t m = 0;
    for (; m + 4 <= count; m += 4) multiply_blocks(bits, digits, 4, codes, inputs, m, scales, sums);
    for (; m + 2 <= count; m += 2) multiply_blocks(bits, digits, 2, codes, inputs, m, scales, sums);
    if (m < count) multiply_blocks(bits, digits, 1, codes, inputs, m, scales, sums);
}
