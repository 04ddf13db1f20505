/* A packed weight as the kernels see it: where each region of the blob lies (`guidedq/quant/packing.py`). */
#ifndef GUIDEDQ_WEIGHT_H
#define GUIDEDQ_WEIGHT_H

#include <stddef.h>
#include <stdint.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "blobs are little-endian, and so are these kernels"
#endif

/* PATCHED: rows whose codes are stored by their entropy, as they lie in memory. All of a row's columns are one group. */
enum { AFFINE, PATCHED, HALF, BFLOAT, SINGLE };

/* What a call says of itself. `native/library.py` turns all but the first into errors. */
enum { DONE, BAD_LAYOUT, NO_MEMORY, NO_SUCH_ROW, NO_SUCH_COLUMN, NO_SUCH_INSTRUCTIONS };

/* The rows of one format. The last five are the first bytes of its regions in the blob. */
typedef struct {
    int64_t kind;
    int64_t bits;
    int64_t group; /* columns of a full group */
    int64_t groups;
    int64_t symmetric;
    int64_t outliers; /* in each row; of PATCHED the patches, whose values are signed bytes */
    int64_t rows;
    int64_t codes; /* or values */
    int64_t scales;
    int64_t zero_points;
    int64_t outlier_columns;
    int64_t outlier_values;
} Segment;

typedef struct {
    int64_t rows;
    int64_t columns;
    int64_t bytes;
    int64_t column_scales; /* first byte, or -1: all are 1 */
    int64_t segments;
    Segment segment[];
} Layout;

/* A nested weight in memory, and how much of it is read; the last three say how long its arrays are. */
typedef struct {
    int64_t rows;
    int64_t columns;
    int64_t group; /* columns of a full group, a multiple of 32 unless it is the only one */
    int64_t groups;
    int64_t widest; /* planes that are held */
    int64_t read;   /* planes that are read */
    int64_t words;  /* of all planes */
    int64_t grids;  /* scales, and zero points */
    int64_t shifts; /* of rows, 0: all are 0 */
} PlaneLayout;

enum { MOST_SEGMENTS = 8, MOST_INPUTS = 16, INTEGER_BLOCK = 64 };

/* Bytes of `count` codes of `bits` bits. */
static inline size_t packed_bytes(size_t count, size_t bits) { return (count * bits + 7) / 8; }

/* Bytes of a row's codes, or values. */
static inline size_t row_bytes(const Segment *segment, size_t columns) { return packed_bytes(columns, segment->bits); }

#endif
