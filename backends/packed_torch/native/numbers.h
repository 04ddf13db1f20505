/* Single numbers in a blob, which is aligned to nothing. */
#include <string.h>

/* IEEE binary16, any value: an exponent of its own scale, then the sign. */
INLINE float half_at(const uint8_t *from) {
    uint16_t half;
    memcpy(&half, from, 2);
    uint32_t magnitude = (uint32_t)(half & 0x7fff) << 13, sign = (uint32_t)(half & 0x8000) << 16;
    float value;
    if (magnitude >= 0x7c00u << 13) {
        magnitude += 0x70000000u; /* infinity or NaN: the exponent's upper bits */
        memcpy(&value, &magnitude, 4);
    } else {
        memcpy(&value, &magnitude, 4);
        value *= 0x1p112f; /* exact, also for subnormal halves */
    }
    memcpy(&magnitude, &value, 4);
    magnitude |= sign;
    memcpy(&value, &magnitude, 4);
    return value;
}

INLINE float bfloat_at(const uint8_t *from) {
    uint16_t upper;
    memcpy(&upper, from, 2);
    uint32_t word = (uint32_t)upper << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
}
