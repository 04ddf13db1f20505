/* Eight numbers side by side, by NEON: two registers of four. */
enum { LANES = 8 };
typedef struct { float32x4_t low, high; } Vector;
typedef struct { uint32x4_t low, high; } Words;

INLINE Vector pair(float32x4_t low, float32x4_t high) { Vector v = {low, high}; return v; }
INLINE Vector vector_of(float value) { return pair(vdupq_n_f32(value), vdupq_n_f32(value)); }
INLINE Vector load_vector(const float *from) { return pair(vld1q_f32(from), vld1q_f32(from + 4)); }
INLINE void store_vector(float *to, Vector v) {
    vst1q_f32(to, v.low);
    vst1q_f32(to + 4, v.high);
}
INLINE Vector add(Vector a, Vector b) { return pair(vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)); }
INLINE Vector subtract(Vector a, Vector b) { return pair(vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)); }
INLINE Vector multiply_add(Vector a, Vector b, Vector c) {
    return pair(vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high));
}
INLINE float sum(Vector v) { return vaddvq_f32(vaddq_f32(v.low, v.high)); }

INLINE Vector vector_of_integers(Words w) {
    return pair(vcvtq_f32_u32(w.low), vcvtq_f32_u32(w.high));
}
INLINE Words words_of_shorts(uint16x8_t shorts) {
    Words w = {vmovl_u16(vget_low_u16(shorts)), vmovl_u16(vget_high_u16(shorts))};
    return w;
}
INLINE Vector vector_of_bytes(const uint8_t *from) {
    return vector_of_integers(words_of_shorts(vmovl_u8(vld1_u8(from))));
}
INLINE Vector vector_of_halves(const uint8_t *from) {
    float16x8_t halves = vreinterpretq_f16_u8(vld1q_u8(from));
    return pair(vcvt_f32_f16(vget_low_f16(halves)), vcvt_f32_f16(vget_high_f16(halves)));
}
INLINE Vector vector_of_bfloats(const uint8_t *from) {
    Words w = words_of_shorts(vreinterpretq_u16_u8(vld1q_u8(from)));
    return pair(vreinterpretq_f32_u32(vshlq_n_u32(w.low, 16)), vreinterpretq_f32_u32(vshlq_n_u32(w.high, 16)));
}

INLINE uint32x4_t load_four_words(const uint8_t *from, const int bits) {
    static const int32_t odd_words[4] = {0, -4, 0, -4};
    uint8x16_t packed = vld1q_u8(from);
    if (WORD_BITS(bits) == 32) return vreinterpretq_u32_u8(packed);
    uint32x4_t four = vreinterpretq_u32_u8(vqtbl1q_u8(packed, PICK(bits)));
    return WORD_BITS(bits) % 8 ? vshlq_u32(four, vld1q_s32(odd_words)) : four;
}
INLINE Words load_words(const uint8_t *from, const int bits) {
    Words w = {load_four_words(from, bits), load_four_words(from + FOUR_WORDS(bits), bits)};
    return w;
}

INLINE Vector masked(Words w, uint32_t mask) {
    Words kept = {vandq_u32(w.low, vdupq_n_u32(mask)), vandq_u32(w.high, vdupq_n_u32(mask))};
    return vector_of_integers(kept);
}
INLINE Vector shifted(Words w, const int by) {
    const int32x4_t left = vdupq_n_s32(-by);
    Words kept = {vshlq_u32(w.low, left), vshlq_u32(w.high, left)};
    return vector_of_integers(kept);
}

typedef const float *Table; /* sixteen numbers, one of which four bits choose */
INLINE Table load_table(const float *from) { return from; }
INLINE Words words_at(const uint32_t *from) {
    Words w = {vld1q_u32(from), vld1q_u32(from + 4)};
    return w;
}
INLINE Words next_columns(Words w) {
    Words next = {vshrq_n_u32(w.low, 4), vshrq_n_u32(w.high, 4)};
    return next;
}
INLINE Vector look_up(Table table, Words w) {
    uint32_t bits[8];
    float found[8];
    vst1q_u32(bits, w.low);
    vst1q_u32(bits + 4, w.high);
    for (int i = 0; i < 8; i++) found[i] = table[bits[i] & 15];
    return load_vector(found);
}
