/* Eight numbers side by side, by AVX2, FMA and F16C. */
enum { LANES = 8 };
typedef __m256 Vector;
typedef __m256i Words;

INLINE Vector vector_of(float value) { return _mm256_set1_ps(value); }
INLINE Vector load_vector(const float *from) { return _mm256_loadu_ps(from); }
INLINE void store_vector(float *to, Vector v) { _mm256_storeu_ps(to, v); }
INLINE Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
INLINE Vector subtract(Vector a, Vector b) { return _mm256_sub_ps(a, b); }
INLINE Vector multiply_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }

INLINE float sum(Vector v) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

INLINE __m128i load_sixteen(const uint8_t *from) { return _mm_loadu_si128((const __m128i *)from); }

INLINE Vector vector_of_bytes(const uint8_t *from) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)from)));
}
INLINE Vector vector_of_halves(const uint8_t *from) { return _mm256_cvtph_ps(load_sixteen(from)); }
INLINE Vector vector_of_bfloats(const uint8_t *from) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_sixteen(from)), 16));
}

INLINE Words load_words(const uint8_t *from, const int bits) {
    __m256i packed = _mm256_castsi128_si256(load_sixteen(from));
    packed = _mm256_inserti128_si256(packed, load_sixteen(from + FOUR_WORDS(bits)), 1);
    if (WORD_BITS(bits) == 32) return packed;
    packed = _mm256_shuffle_epi8(packed, _mm256_broadcastsi128_si256(PICK(bits)));
    if (WORD_BITS(bits) % 8) packed = _mm256_srlv_epi32(packed, _mm256_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4));
    return packed;
}

INLINE Vector masked(Words w, uint32_t mask) {
    return _mm256_cvtepi32_ps(_mm256_and_si256(w, _mm256_set1_epi32((int)mask)));
}
INLINE Vector shifted(Words w, const int by) { return _mm256_cvtepi32_ps(_mm256_srli_epi32(w, by)); }

typedef struct { __m256 low, high; } Table; /* sixteen numbers, one of which four bits choose */
INLINE Table load_table(const float *from) {
    Table table = {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)};
    return table;
}
INLINE Words words_at(const uint32_t *from) { return _mm256_loadu_si256((const __m256i *)from); }
INLINE Words next_columns(Words w) { return _mm256_srli_epi32(w, 4); }
INLINE Vector look_up(Table table, Words w) {
    const __m256 low = _mm256_permutevar8x32_ps(table.low, w), high = _mm256_permutevar8x32_ps(table.high, w);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(w, 28)));
}
