/* Checks what comes in, chooses the instruction set, and shares rows out to threads. */
#include "kernels.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "call.h"
#include "threads.h"

enum {
    /* The least of a weight for each thread, some 50 microseconds: where the other core is busy, waking a thread costs 10
     * of them, and where it is free, two threads begin to gain in the median (`benchmarks/thread_work.py`). */
    BYTES_A_THREAD = 3 << 17,
    /* Bytes handed out at once: few enough that threads end together. */
    BYTES_A_PART = 1 << 15,
    /* Numbers side by side in the widest instruction set. */
    MOST_LANES = 16,
};

const Kernels *guidedq_kernels(int set) {
    const Kernels *found[5];
    int count = 0;
#if defined(__x86_64__)
    const int avx512 =
        __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
#if AVX512VNNI
    if (avx512 && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
        __builtin_cpu_supports("avx512vnni"))
        found[count++] = &kernels_avx512vnni;
#endif
    if (avx512) found[count++] = &kernels_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found[count++] = &kernels_avx2;
#elif defined(__aarch64__)
    found[count++] = &kernels_neon;
#endif
    found[count++] = &kernels_portable;
    return set >= 0 && set < count ? found[set] : NULL;
}

const char *guidedq_instruction_set(int set) {
    const Kernels *kernels = guidedq_kernels(set);
    return kernels ? kernels->name : NULL;
}

/* Whether `rows` of `width` bytes each, from byte `first` on, lie in a blob of `limit` bytes. */
static int lies_within(int64_t first, int64_t rows, int64_t width, int64_t limit) {
    return first >= 0 && first <= limit && (width == 0 || rows <= (limit - first) / width);
}

/* Whether a segment's numbers are possible and its regions lie in the blob. */
static int is_sound(const Segment *segment, const Layout *layout) {
    const int64_t columns = layout->columns, rows = segment->rows, limit = layout->bytes;
    if (segment->kind < AFFINE || segment->kind > SINGLE || rows < 1 || rows > layout->rows) return 0;
    const int64_t widest = segment->kind <= PATCHED ? 8 : 32;
    const int64_t widths[] = {segment->bits, segment->bits, 16, 16, 32};
    if (segment->bits != widths[segment->kind] || segment->bits < 1 || segment->bits > widest) return 0;
    if (!lies_within(segment->codes, rows, (int64_t)row_bytes(segment, (size_t)columns), limit)) return 0;
    if (segment->kind > PATCHED) return segment->groups == 0;
    if (segment->group < 1 || segment->group > columns) return 0;
    if (segment->groups != (columns + segment->group - 1) / segment->group) return 0;
    if (segment->outliers < 0 || segment->outliers > columns) return 0;
    if (!lies_within(segment->outlier_columns, rows, segment->outliers * 2, limit)) return 0;
    if (segment->kind == PATCHED)
        return segment->groups == 1 && segment->symmetric && lies_within(segment->scales, rows, 1, limit) &&
               lies_within(segment->outlier_values, rows, segment->outliers, limit);
    const int64_t zero_bytes = (int64_t)packed_bytes((size_t)segment->groups, (size_t)segment->bits);
    return lies_within(segment->scales, rows, segment->groups * 2, limit) &&
           (segment->symmetric || lies_within(segment->zero_points, rows, zero_bytes, limit)) &&
           lies_within(segment->outlier_values, rows, segment->outliers * 2, limit);
}

static int is_whole(const Layout *layout) {
    const int64_t most = INT32_MAX;
    if (layout->rows < 1 || layout->rows > most || layout->columns < 1 || layout->columns > most) return 0;
    if (layout->segments < 1 || layout->segments > MOST_SEGMENTS) return 0;
    if (layout->column_scales >= 0 &&
        !lies_within(layout->column_scales, 1, (int64_t)packed_bytes((size_t)layout->columns, 4), layout->bytes))
        return 0;
    int64_t rows = 0;
    for (int64_t s = 0; s < layout->segments; s++) {
        if (!is_sound(&layout->segment[s], layout)) return 0;
        rows += layout->segment[s].rows;
    }
    return rows == layout->rows;
}

/* The columns' scales (`guidedq/quant/packing.py`, 6), to be freed; `*found` stays NULL if all are 1. */
static int read_column_scales(const Layout *layout, const uint8_t *blob, const float *scales, float **found) {
    if (layout->column_scales < 0) return DONE;
    float *columns = malloc((size_t)layout->columns * sizeof(float));
    if (!columns) return NO_MEMORY;
    for (int64_t i = 0; i < layout->columns; i++) {
        const int step = blob[layout->column_scales + i / 2] >> (i % 2 * 4) & 15;
        columns[i] = scales[192 + 4 * (step - 8)];
    }
    *found = columns;
    return DONE;
}

/* The inputs times the columns' scales, for segments that have these; to be freed. */
static int scale_inputs(Call *call, float **scaled) {
    const size_t columns = (size_t)call->layout->columns;
    call->scaled = call->inputs;
    if (!call->columns) return DONE;
    float *values = *scaled = malloc(call->count * columns * sizeof(float) + 1);
    if (!values) return NO_MEMORY;
    for (size_t m = 0; m < call->count; m++)
        for (size_t i = 0; i < columns; i++) values[m * columns + i] = call->inputs[m * columns + i] * call->columns[i];
    call->scaled = values;
    return DONE;
}

/* Rounds a call's inputs to int8 by blocks. `*rounded`, to be freed, holds all that the call then has of them. */
static int round_inputs(Call *call, float **rounded) {
    const size_t columns = (size_t)call->layout->columns, blocks = (columns + INTEGER_BLOCK - 1) / INTEGER_BLOCK;
    const float nearest = 12582912.0f; /* 1.5 * 2^23: what is added to it loses its fraction, ties to even */
    const size_t stride = (blocks + MOST_LANES - 1) / MOST_LANES * MOST_LANES;
    float *values = calloc(call->count * (columns + stride + blocks * INTEGER_BLOCK / 4) + 1, sizeof(float));
    if (!values) return NO_MEMORY;
    float *scales = values + call->count * columns;
    int8_t *codes = (int8_t *)(scales + call->count * stride);
    for (size_t m = 0; m < call->count; m++)
        for (size_t block = 0; block < blocks; block++) {
            const size_t first = block * INTEGER_BLOCK, rest = columns - first;
            const size_t width = rest < INTEGER_BLOCK ? rest : INTEGER_BLOCK;
            const float *from = call->inputs + m * columns + first;
            float largest = 0.0f, nothing = 0.0f; /* NaN, as then all of the block is, if a number is not finite */
            for (size_t i = 0; i < width; i++) {
                largest = fabsf(from[i]) > largest ? fabsf(from[i]) : largest;
                nothing += from[i] - from[i];
            }
            const float steps = 127.0f / (largest > 0.0f ? largest : 1.0f), scale = largest / 127.0f + nothing;
            scales[m * stride + block] = scale;
            for (size_t i = 0; i < width; i++) {
                const float scaled = from[i] * steps, within = scaled < 127.0f ? scaled : 127.0f;
                const float code = ((within > -127.0f ? within : -127.0f) + nearest) - nearest;
                codes[(m * blocks + block) * INTEGER_BLOCK + i] = (int8_t)code;
                values[m * columns + first + i] = code * scale;
            }
        }
    call->inputs = *rounded = values;
    call->input_codes = codes;
    call->input_scales = scales;
    call->scale_stride = stride;
    return DONE;
}

typedef struct {
    const Call *call;
    int (*work)(const Call *call, size_t first, size_t last);
    size_t rows;
    size_t rows_a_part;
    atomic_int outcome;
} Job;

static void do_part(void *context, size_t part) {
    Job *job = context;
    const size_t first = part * job->rows_a_part, last = first + job->rows_a_part;
    const int outcome = job->work(job->call, first, last < job->rows ? last : job->rows);
    if (outcome != DONE) atomic_store(&job->outcome, outcome);
}

/* `bytes` is what a row costs. */
static int share_out(const Call *call, int (*work)(const Call *, size_t, size_t), size_t rows, size_t bytes,
                     int threads) {
    const size_t each = BYTES_A_PART / bytes + 1;
    Job job = {.call = call, .work = work, .rows = rows, .rows_a_part = each, .outcome = DONE};
    const size_t worth = rows * bytes / BYTES_A_THREAD; /* threads; none: this one alone */
    run_parts(worth < (size_t)threads ? (int)worth : threads, (rows + each - 1) / each, do_part, &job);
    return atomic_load(&job.outcome);
}

int guidedq_multiply(const Layout *layout, const uint8_t *blob, const float *scales, const int32_t *listed,
                     const float *inputs, int64_t count, float *outputs, int threads, int set, int integers) {
    const Kernels *kernels = guidedq_kernels(set);
    if (!kernels) return NO_SUCH_INSTRUCTIONS;
    if (!is_whole(layout) || threads < 1 || count < 0 || count > MOST_INPUTS) return BAD_LAYOUT;
    float *columns = NULL, *rounded = NULL, *scaled = NULL;
    Call call = {.layout = layout, .blob = blob, .scales = scales, .rows = listed, .inputs = inputs, .outputs = outputs};
    call.count = (size_t)count;
    int outcome = read_column_scales(layout, blob, scales, &columns);
    call.columns = columns;
    if (outcome == DONE && integers) outcome = round_inputs(&call, &rounded);
    if (outcome == DONE) outcome = scale_inputs(&call, &scaled);
    if (outcome == DONE) outcome = kernels->prepare(&call);
    const size_t rows = (size_t)layout->rows;
    if (outcome == DONE) outcome = share_out(&call, kernels->multiply, rows, (size_t)layout->bytes / rows + 1, threads);
    for (int s = 0; s < MOST_SEGMENTS; s++)
        if (!call.prepared[s].shared) free(call.prepared[s].values);
    free(scaled);
    free(rounded);
    free(columns);
    return outcome;
}

int guidedq_dequantize(const Layout *layout, const uint8_t *blob, const float *scales, const int32_t *places,
                       const int64_t *wanted, int64_t first_row, int64_t count, float *outputs, int threads, int set) {
    const Kernels *kernels = guidedq_kernels(set);
    if (!kernels) return NO_SUCH_INSTRUCTIONS;
    if (!is_whole(layout) || threads < 1 || count < 0) return BAD_LAYOUT;
    float *columns = NULL;
    Call call = {.layout = layout, .blob = blob, .scales = scales, .rows = places, .wanted = wanted,
                 .first_row = first_row, .outputs = outputs};
    call.count = (size_t)count;
    int outcome = read_column_scales(layout, blob, scales, &columns);
    call.columns = columns;
    const size_t bytes = (size_t)layout->columns * sizeof(float);
    if (outcome == DONE) outcome = share_out(&call, kernels->dequantize, call.count, bytes, threads);
    free(columns);
    return outcome;
}
