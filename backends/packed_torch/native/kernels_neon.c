/* The kernels by NEON, which every 64-bit ARM processor has. */
#if defined(__aarch64__)
#include <arm_neon.h>

#include "instructions.h"

#define INTEGERS 0

static inline uint8x16_t pick_of(const uint8_t bytes[16]) { return vld1q_u8(bytes); }
#define PICK(bits) pick_of((const uint8_t[16]){PICK_ALL(bits)})

#include "numbers.h"
#include "lanes_neon.h"
#include "unpacking.h"
#include "codes.h"
#include "product.h"
#include "scratch.h"
#include "rows.h"
#include "planes.h"

const Kernels kernels_neon = {"neon", prepare, multiply, dequantize,
                                prepare_planes, multiply_planes, dequantize_planes};
#else
typedef int nothing_on_other_processors;
#endif
