/* Checks what comes in for a nested weight, and shares its rows out to threads. */
#include <stdatomic.h>
#include <stdlib.h>

#include "call.h"
#include "kernels.h"
#include "threads.h"

enum {
    LANE_ROWS = 16,  /* rows that lie side by side */
    WORD_BITS = 32,
    WIDEST = 8,
    BYTES_A_WAKING = 1 << 18, /* of a weight, that are worth a thread's waking, some 20 microseconds */
};

static int is_whole(const PlaneLayout *layout) {
    const int64_t most = INT32_MAX, rows = layout->rows, columns = layout->columns;
    if (rows < 1 || rows > most || columns < 1 || columns > most) return 0;
    if (layout->widest < 1 || layout->widest > WIDEST || layout->read < 1 || layout->read > layout->widest) return 0;
    if (layout->group < 1 || layout->group > columns || (layout->group % WORD_BITS && layout->group != columns)) return 0;
    if (layout->groups != (columns + layout->group - 1) / layout->group) return 0;
    const int64_t padded = (rows + LANE_ROWS - 1) / LANE_ROWS * LANE_ROWS, words = (columns + WORD_BITS - 1) / WORD_BITS;
    return layout->words / layout->widest / words >= padded && layout->grids / layout->groups >= padded &&
           (layout->shifts == 0 || layout->shifts >= rows);
}

typedef struct {
    const PlaneCall *call;
    int (*work)(const PlaneCall *call, size_t first, size_t last);
    size_t count;
    size_t each;
    atomic_int outcome;
} Job;

static void do_part(void *context, size_t part) {
    Job *job = context;
    const size_t first = part * job->each, last = first + job->each;
    const int outcome = job->work(job->call, first, last < job->count ? last : job->count);
    if (outcome != DONE) atomic_store(&job->outcome, outcome);
}

/* `bytes` is what one of `count` costs. */
static int share_out(const PlaneCall *call, int (*work)(const PlaneCall *, size_t, size_t), size_t count, size_t bytes,
                     int threads) {
    Job job = {.call = call, .work = work, .count = count, .each = BYTES_A_WAKING / 8 / bytes + 1, .outcome = DONE};
    const size_t worth = count * bytes / BYTES_A_WAKING + 1;
    run_parts(worth < (size_t)threads ? (int)worth : threads, (count + job.each - 1) / job.each, do_part, &job);
    return atomic_load(&job.outcome);
}

int guidedq_multiply_planes(const PlaneLayout *layout, const uint32_t *planes, const uint16_t *scales,
                            const uint8_t *zero_points, const uint8_t *shifts, float ratio, const float *inputs,
                            int64_t count, float *outputs, int threads, int set) {
    const Kernels *kernels = guidedq_kernels(set);
    if (!kernels) return NO_SUCH_INSTRUCTIONS;
    if (!is_whole(layout) || threads < 1 || count < 0 || count > MOST_INPUTS) return BAD_LAYOUT;
    PlaneCall call = {.layout = layout, .planes = planes, .scales = scales, .zero_points = zero_points,
                      .shifts = shifts, .ratio = ratio, .inputs = inputs, .outputs = outputs};
    call.count = (size_t)count;
    int outcome = kernels->prepare_planes(&call);
    const size_t blocks = ((size_t)layout->rows + LANE_ROWS - 1) / LANE_ROWS;
    const size_t bytes = (size_t)(layout->columns * layout->read) * LANE_ROWS / 8 + 1;
    if (outcome == DONE) outcome = share_out(&call, kernels->multiply_planes, blocks, bytes, threads);
    free(call.tables);
    return outcome;
}

int guidedq_dequantize_planes(const PlaneLayout *layout, const uint32_t *planes, const uint16_t *scales,
                              const uint8_t *zero_points, const uint8_t *shifts, float ratio, const int64_t *wanted,
                              int64_t first_row, int64_t count, float *outputs, int threads, int set) {
    const Kernels *kernels = guidedq_kernels(set);
    if (!kernels) return NO_SUCH_INSTRUCTIONS;
    if (!is_whole(layout) || threads < 1 || count < 0) return BAD_LAYOUT;
    PlaneCall call = {.layout = layout, .planes = planes, .scales = scales, .zero_points = zero_points,
                      .shifts = shifts, .ratio = ratio, .wanted = wanted, .first_row = first_row, .outputs = outputs};
    return share_out(&call, kernels->dequantize_planes, (size_t)count, (size_t)layout->columns * sizeof(float), threads);
}
