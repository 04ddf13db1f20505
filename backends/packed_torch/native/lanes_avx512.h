/* Sixteen numbers side by side, by AVX-512 (F, BW, DQ). */
enum { LANES = 16 };
typedef __m512 Vector;
typedef __m512i Words;

INLINE Vector vector_of(float value) { return _mm512_set1_ps(value); }
INLINE Vector load_vector(const float *from) { return _mm512_loadu_ps(from); }
INLINE void store_vector(float *to, Vector v) { _mm512_storeu_ps(to, v); }
INLINE Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
INLINE Vector subtract(Vector a, Vector b) { return _mm512_sub_ps(a, b); }
INLINE Vector multiply_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
INLINE float sum(Vector v) { return _mm512_reduce_add_ps(v); }

INLINE __m128i load_sixteen(const uint8_t *from) { return _mm_loadu_si128((const __m128i *)from); }
INLINE __m256i load_thirty_two(const uint8_t *from) { return _mm256_loadu_si256((const __m256i *)from); }

INLINE Vector vector_of_bytes(const uint8_t *from) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(load_sixteen(from)));
}
INLINE Vector vector_of_halves(const uint8_t *from) { return _mm512_cvtph_ps(load_thirty_two(from)); }
INLINE Vector vector_of_bfloats(const uint8_t *from) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_thirty_two(from)), 16));
}

INLINE Words load_words(const uint8_t *from, const int bits) {
    __m512i packed = _mm512_castsi128_si512(load_sixteen(from));
    packed = _mm512_inserti32x4(packed, load_sixteen(from + FOUR_WORDS(bits)), 1);
    packed = _mm512_inserti32x4(packed, load_sixteen(from + 2 * FOUR_WORDS(bits)), 2);
    packed = _mm512_inserti32x4(packed, load_sixteen(from + 3 * FOUR_WORDS(bits)), 3);
    if (WORD_BITS(bits) == 32) return packed;
    packed = _mm512_shuffle_epi8(packed, _mm512_broadcast_i32x4(PICK(bits)));
    if (WORD_BITS(bits) % 8)
        packed = _mm512_srlv_epi32(packed, _mm512_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4));
    return packed;
}

INLINE Vector masked(Words w, uint32_t mask) {
    return _mm512_cvtepi32_ps(_mm512_and_si512(w, _mm512_set1_epi32((int)mask)));
}
INLINE Vector shifted(Words w, const int by) { return _mm512_cvtepi32_ps(_mm512_srli_epi32(w, (unsigned)by)); }

typedef __m512 Table; /* sixteen numbers, one of which four bits choose */
INLINE Table load_table(const float *from) { return _mm512_loadu_ps(from); }
INLINE Words words_at(const uint32_t *from) { return _mm512_loadu_si512((const void *)from); }
INLINE Words next_columns(Words w) { return _mm512_srli_epi32(w, 4); }
INLINE Vector look_up(Table table, Words w) { return _mm512_permutexvar_ps(w, table); }
