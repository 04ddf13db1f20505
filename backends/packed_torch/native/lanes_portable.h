/* Eight numbers side by side, in plain C: loops that compilers turn into whatever vectors the machine has. */
#include <string.h>

enum { LANES = 8 };
typedef struct { float lane[LANES]; } Vector;
typedef struct { uint32_t lane[LANES]; } Words;

#define EACH for (int i = 0; i < LANES; i++)

INLINE Vector vector_of(float value) { Vector v; EACH v.lane[i] = value; return v; }
INLINE Vector load_vector(const float *from) { Vector v; memcpy(&v, from, sizeof v); return v; }
INLINE void store_vector(float *to, Vector v) { memcpy(to, &v, sizeof v); }
INLINE Vector add(Vector a, Vector b) { EACH a.lane[i] += b.lane[i]; return a; }
INLINE Vector subtract(Vector a, Vector b) { EACH a.lane[i] -= b.lane[i]; return a; }
INLINE Vector multiply_add(Vector a, Vector b, Vector c) { EACH c.lane[i] += a.lane[i] * b.lane[i]; return c; }

INLINE float sum(Vector v) {
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) v.lane[i] += v.lane[i + half];
    return v.lane[0];
}

INLINE Vector vector_of_bytes(const uint8_t *from) { Vector v; EACH v.lane[i] = from[i]; return v; }
INLINE Vector vector_of_halves(const uint8_t *from) { Vector v; EACH v.lane[i] = half_at(from + 2 * i); return v; }
INLINE Vector vector_of_bfloats(const uint8_t *from) { Vector v; EACH v.lane[i] = bfloat_at(from + 2 * i); return v; }

INLINE Words load_words(const uint8_t *from, const int bits) {
    Words w;
    EACH {
        memcpy(&w.lane[i], from + FIRST_BIT(bits, i) / 8, 4);
        w.lane[i] >>= FIRST_BIT(bits, i) % 8;
    }
    return w;
}

INLINE Vector masked(Words w, uint32_t mask) { Vector v; EACH v.lane[i] = (float)(int32_t)(w.lane[i] & mask); return v; }
INLINE Vector shifted(Words w, const int by) { Vector v; EACH v.lane[i] = (float)(int32_t)(w.lane[i] >> by); return v; }

typedef const float *Table; /* sixteen numbers, one of which four bits choose */
INLINE Table load_table(const float *from) { return from; }
INLINE Words words_at(const uint32_t *from) { Words w; memcpy(&w, from, sizeof w); return w; }
INLINE Words next_columns(Words w) { EACH w.lane[i] >>= 4; return w; }
INLINE Vector look_up(Table table, Words w) { Vector v; EACH v.lane[i] = table[w.lane[i] & 15]; return v; }
