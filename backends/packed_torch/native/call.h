/* What one call works on, and the table of what each instruction set does with it. */
#ifndef GUIDEDQ_CALL_H
#define GUIDEDQ_CALL_H

#include "weight.h"

/* The inputs of one segment, ready for its kernel. */
typedef struct {
    float *values;     /* [inputs, stride], in the order in which the kernel reads codes; NULL: take them as they came */
    float *group_sums; /* [inputs, group_stride]: the sum of each group's inputs, zeros behind; NULL: not needed */
    size_t stride;
    size_t group_stride;
    int shared; /* `values` belong to an earlier segment */
} Prepared;

typedef struct {
    const Layout *layout;
    const uint8_t *blob;
    const float *scales;       /* what each byte stands for as a scale, 256 of them */
    const float *columns;      /* the columns' scales, NULL: all 1 */
    const int32_t *rows;       /* product: row listed at each place; rows: place of each row */
    const int64_t *wanted;     /* rows: which; NULL: all from `first_row` on */
    int64_t first_row;
    const float *inputs;       /* product: [count, columns] */
    size_t count;              /* product: inputs; rows: rows wanted */
    float *outputs;            /* product: [count, rows]; rows: [count, columns] */
    Prepared prepared[MOST_SEGMENTS];
} Call;

/* Each works on the places, or wanted rows, from `first` to `last`, and returns DONE or why not. */
typedef struct {
    const char *name;
    int (*prepare)(Call *call);
    int (*multiply)(const Call *call, size_t first, size_t last);
    int (*dequantize)(const Call *call, size_t first, size_t last);
} Kernels;

extern const Kernels kernels_portable, kernels_neon, kernels_avx2, kernels_avx512;

#endif
