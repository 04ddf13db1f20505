/* What each instruction set's file needs before its lanes: the order in which kernels read codes.
 *
 * A word holds as many codes as fit into 32 bits when eight, or four, of them begin on half a byte: eight codes up to
 * 4 bits, four above. One code of a word is had by a mask alone: it then counts `2 ** place` times, for which the inputs
 * make up. Four words take at most 16 bytes. */
#ifndef GUIDEDQ_INSTRUCTIONS_H
#define GUIDEDQ_INSTRUCTIONS_H

#include "call.h"

#define INLINE static inline __attribute__((always_inline, unused))

#define WORD_CODES(bits) ((bits) <= 4 ? 8 : 4)
#define WORD_BITS(bits) ((bits) * WORD_CODES(bits))
#define FOUR_WORDS(bits) (WORD_BITS(bits) / 2) /* bytes */
#define FIRST_BIT(bits, word) ((word) * WORD_BITS(bits))

/* Bytes of four words among their 16: each word's begin at the byte that has its first bit. */
#define PICK_BYTE(bits, i) (char)(FIRST_BIT(bits, (i) / 4) / 8 + (i) % 4)
#define PICK_FOUR(bits, i) PICK_BYTE(bits, i), PICK_BYTE(bits, i + 1), PICK_BYTE(bits, i + 2), PICK_BYTE(bits, i + 3)
#define PICK_ALL(bits) PICK_FOUR(bits, 0), PICK_FOUR(bits, 4), PICK_FOUR(bits, 8), PICK_FOUR(bits, 12)

enum {
    READ_AHEAD = 64,    /* bytes behind a row's end which a kernel may look at */
    MOST_UNPACKED = 64, /* codes that are unpacked at once, whether or not there are so many */
};

#endif
