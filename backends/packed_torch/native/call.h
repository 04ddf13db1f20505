/* What one call works on, and the table of what each instruction set does with it. */
#ifndef GUIDEDQ_CALL_H
#define GUIDEDQ_CALL_H

#include "weight.h"

/* Inputs in integers, in blocks of INTEGER_BLOCK columns: what a block's digits make, times its scale. */
typedef struct {
    int8_t *digits;   /* [inputs, blocks, count, INTEGER_BLOCK], the highest first, in the order of a segment's
                       * codes; NULL: in float */
    float *scales;    /* [inputs, scale_stride], zeros behind */
    int32_t *middles; /* [inputs, scale_stride, 2]: what the codes' middle adds to a block's sums, of the last digit and
                       * of those above it */
    size_t each;      /* blocks of an input */
    size_t count;     /* digits of a number */
    size_t scale_stride;
} Blocks;

/* The inputs of one segment, ready for its kernel. */
typedef struct {
    float *values;     /* [inputs, stride], in the order in which the kernel reads codes; NULL: take them as they came */
    float *group_sums; /* [inputs, group_stride]: the sum of each group's inputs, zeros behind; NULL: not needed */
    size_t stride;
    size_t group_stride;
    int shared;    /* `values` belong to an earlier segment */
    Blocks blocks; /* if it is multiplied in integers; they lie in `values` */
} Prepared;

typedef struct {
    const Layout *layout;
    const uint8_t *blob;
    const float *scales;       /* what each byte stands for as a scale, 256 of them */
    const float *columns;      /* the columns' scales, NULL: all 1 */
    const int32_t *rows;       /* product: row listed at each place; rows: place of each row */
    const int64_t *wanted;     /* rows: which; NULL: all from `first_row` on */
    int64_t first_row;
    const float *inputs;       /* product: [count, columns], rounded if `input_codes` are given */
    const float *scaled;       /* product: the same times the columns' scales, which PATCHED segments take */
    const int8_t *input_codes; /* product: [count, whole blocks], what `inputs` were rounded to; NULL: they were not */
    const float *input_scales; /* product: [count, scale_stride], of `input_codes`; zeros behind */
    size_t scale_stride;
    size_t count;              /* product: inputs; rows: rows wanted */
    float *outputs;            /* product: [count, rows]; rows: [count, columns] */
    Prepared prepared[MOST_SEGMENTS];
} Call;

typedef struct {
    const PlaneLayout *layout;
    const uint32_t *planes;     /* [plane, block, word, 16 rows] */
    const uint16_t *scales;     /* halves, [group, row] */
    const uint8_t *zero_points; /* [group, row] */
    const uint8_t *shifts;
    float ratio;
    const int64_t *wanted;      /* rows: which; NULL: all from `first_row` on */
    int64_t first_row;
    const float *inputs;        /* product: [count, columns] */
    size_t count;
    float *outputs;             /* product: [count, rows]; rows: [count, columns] */
    float *tables;              /* product: [count, stride], sums of inputs; freed by the caller */
    float *group_sums;          /* product: [count, groups] */
    size_t stride;
} PlaneCall;

/* Each works on the places, or wanted rows, from `first` to `last`, and returns DONE or why not. */
typedef struct {
    const char *name;
    int (*prepare)(Call *call);
    int (*multiply)(const Call *call, size_t first, size_t last);
    int (*dequantize)(const Call *call, size_t first, size_t last);
    int (*prepare_planes)(PlaneCall *call);
    int (*multiply_planes)(const PlaneCall *call, size_t first, size_t last); /* blocks of 16 rows */
    int (*dequantize_planes)(const PlaneCall *call, size_t first, size_t last);
} Kernels;

/* Those of instruction set number `set`, best first; NULL beyond the last. */
const Kernels *guidedq_kernels(int set);

/* Older compilers lack some of its intrinsics. */
#if defined(__x86_64__) && (defined(__clang__) || __GNUC__ >= 10)
#define AVX512VNNI 1
#endif

extern const Kernels kernels_portable, kernels_neon, kernels_avx2, kernels_avx512, kernels_avx512vnni;

#endif
