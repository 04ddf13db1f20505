/* The kernels by AVX-512 with VBMI and VNNI (Ice Lake, Zen 4, and later): this file alone is compiled for these, and only
 * processors that have them come here. */
#include "call.h"

#if AVX512VNNI
#include <immintrin.h>
#include <stdlib.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(                                                                                          \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c"))),                  \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")
#endif

#include "instructions.h"

#define INTEGERS 1
#define PICK(bits) _mm_setr_epi8(PICK_ALL(bits))

#include "numbers.h"
#include "lanes_avx512.h"
#include "unpacking_vbmi.h"
#include "codes.h"
#include "product.h"
#include "scratch.h"
#include "integers_vnni.h"
#include "integer_rows.h"
#include "rows.h"
#include "planes.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

const Kernels kernels_avx512vnni = {"avx512vnni", prepare, multiply, dequantize,
                                    prepare_planes, multiply_planes, dequantize_planes};
#else
typedef int nothing_on_other_processors;
#endif
