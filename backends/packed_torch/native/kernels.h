/* What the library exports: a plain C interface, called through ctypes (`library.py`). */
#ifndef GUIDEDQ_KERNELS_H
#define GUIDEDQ_KERNELS_H

#include "weight.h"

#define EXPORT __attribute__((visibility("default")))

/* The name of instruction set number `set`, best first, of those that this processor has; NULL beyond the last. */
EXPORT const char *guidedq_instruction_set(int set);

/* outputs[count, rows] = inputs[count, columns] times the weight, transposed.
 *
 * layout, blob: the weight; its layout is checked against the blob's length and against itself.
 * scales:       what each byte stands for as a scale, 256 of them.
 * listed:       rows, segment after segment.
 * integers:     whether inputs are rounded to symmetric int8 first, each INTEGER_BLOCK columns with a scale of their own
 *               (`guidedq/ir/activation_rounding.py`). */
EXPORT int guidedq_multiply(const Layout *layout, const uint8_t *blob, const float *scales, const int32_t *listed,
                            const float *inputs, int64_t count, float *outputs, int threads, int set, int integers);

/* outputs[count, columns] = rows of the weight: those in `wanted`, or, if that is NULL, those from `first_row` on.
 *
 * places: where each row is listed. */
EXPORT int guidedq_dequantize(const Layout *layout, const uint8_t *blob, const float *scales, const int32_t *places,
                              const int64_t *wanted, int64_t first_row, int64_t count, float *outputs, int threads,
                              int set);

/* The same for a nested weight, of which `layout` says how many planes are read. `ratio` multiplies its scales, `shifts`
 * (one for each row) move its zero points; see `guidedq/quant/nested.py`. */
EXPORT int guidedq_multiply_planes(const PlaneLayout *layout, const uint32_t *planes, const uint16_t *scales,
                                   const uint8_t *zero_points, const uint8_t *shifts, float ratio, const float *inputs,
                                   int64_t count, float *outputs, int threads, int set);

EXPORT int guidedq_dequantize_planes(const PlaneLayout *layout, const uint32_t *planes, const uint16_t *scales,
                                     const uint8_t *zero_points, const uint8_t *shifts, float ratio,
                                     const int64_t *wanted, int64_t first_row, int64_t count, float *outputs,
                                     int threads, int set);

#endif
