/* A row's scales, and its codes into a byte each, by AVX-512 and VBMI. Sixty-four codes at a time: eight fill `bits` bytes,
 * which come to lie in eight bytes of their own, and there each code is shifted to its byte. */
#define NTH_OF_EIGHT(bits, eight, i) (char)((eight) * (bits) + (i))
#define EIGHT_BYTES(bits, eight)                                                                                       \
    NTH_OF_EIGHT(bits, eight, 7), NTH_OF_EIGHT(bits, eight, 6), NTH_OF_EIGHT(bits, eight, 5),                          \
        NTH_OF_EIGHT(bits, eight, 4), NTH_OF_EIGHT(bits, eight, 3), NTH_OF_EIGHT(bits, eight, 2),                      \
        NTH_OF_EIGHT(bits, eight, 1), NTH_OF_EIGHT(bits, eight, 0)
#define ALL_BYTES(bits)                                                                                                \
    EIGHT_BYTES(bits, 7), EIGHT_BYTES(bits, 6), EIGHT_BYTES(bits, 5), EIGHT_BYTES(bits, 4), EIGHT_BYTES(bits, 3),      \
        EIGHT_BYTES(bits, 2), EIGHT_BYTES(bits, 1), EIGHT_BYTES(bits, 0)

/* A byte for each of the codes at the beginning of 64 bytes. */
INLINE __m512i sixty_four_codes(const int bits, __m512i packed) {
    if (bits == 8) return packed;
    const __m512i eights = _mm512_permutexvar_epi8(_mm512_set_epi8(ALL_BYTES(bits)), packed);
    const int64_t first_bits = INT64_C(0x0706050403020100) * bits;
    const __m512i spread = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(first_bits), eights);
    return _mm512_and_si512(spread, _mm512_set1_epi8((char)((1 << bits) - 1)));
}

/* A mask of as many bytes. */
INLINE __mmask64 first_bytes(size_t count) { return count >= 64 ? ~UINT64_C(0) : (UINT64_C(1) << count) - 1; }

/* `count` codes into a byte each, up to 63 bytes more; nothing from `limit` on is read. */
static void unpack_codes(const uint8_t *from, const uint8_t *limit, int bits, size_t count, uint8_t *codes) {
    for (size_t done = 0; done < count; done += 64, from += 8 * bits) {
        const size_t left = (size_t)(limit - from);
        const __m512i packed = _mm512_maskz_loadu_epi8(first_bytes(left), from);
        __m512i spread;
        switch (bits) {
            case 1: spread = sixty_four_codes(1, packed); break;
            case 2: spread = sixty_four_codes(2, packed); break;
            case 3: spread = sixty_four_codes(3, packed); break;
            case 4: spread = sixty_four_codes(4, packed); break;
            case 5: spread = sixty_four_codes(5, packed); break;
            case 6: spread = sixty_four_codes(6, packed); break;
            case 7: spread = sixty_four_codes(7, packed); break;
            default: spread = packed; break;
        }
        _mm512_storeu_si512(codes + done, spread);
    }
}

/* The scales of a row's groups, and zeros up to a whole vector. */
INLINE void read_scales(const uint8_t *from, size_t groups, float *scales) {
    for (size_t group = 0; group < groups; group += LANES) {
        const __mmask16 there = (__mmask16)first_bytes(groups - group);
        store_vector(scales + group, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(there, from + 2 * group)));
    }
}
