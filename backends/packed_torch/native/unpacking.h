/* A row's codes into a byte each, by 64-bit arithmetic, and its scales. */
#include <string.h>

/* `count` codes into a byte each, up to seven bytes more; nothing from `limit` on is read. The three steps of
 * `guidedq/quant/bit_stream.py`: eight codes fill `bits` bytes, which shifts and masks spread over eight. */
static void unpack_codes(const uint8_t *from, const uint8_t *limit, int bits, size_t count, uint8_t *codes) {
    if (bits == 8) {
        memcpy(codes, from, count);
        return;
    }
    const uint64_t fours = (UINT64_C(1) << (4 * bits)) - 1;
    const uint64_t twos = ((UINT64_C(1) << (2 * bits)) - 1) * UINT64_C(0x100000001);
    const uint64_t ones = ((UINT64_C(1) << bits) - 1) * UINT64_C(0x1000100010001);
    for (size_t done = 0; done < count; done += 8, from += bits) {
        uint64_t word = 0;
        if (limit - from >= 8) memcpy(&word, from, 8);
        else memcpy(&word, from, (size_t)(limit - from));
        word = (word & fours) | ((word << (4 * (8 - bits))) & (fours << 32));
        word = (word & twos) | ((word << (2 * (8 - bits))) & (twos << 16));
        word = (word & ones) | ((word << (8 - bits)) & (ones << 8));
        memcpy(codes + done, &word, 8);
    }
}

/* The scales of a row's groups, and zeros up to a whole vector. */
static void read_scales(const uint8_t *from, size_t groups, float *scales) {
    size_t group = 0;
    for (; group + LANES <= groups; group += LANES) store_vector(scales + group, vector_of_halves(from + 2 * group));
    for (; group % LANES || group < groups; group++) scales[group] = group < groups ? half_at(from + 2 * group) : 0.0f;
}
