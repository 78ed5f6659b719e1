/* Fake quantization and its gradient on the CPU: one pass over memory each.
 *
 * The values are those of Brevitas' chain of torch operations (divide, add the zero point, round, clamp, multiply),
 * each of which rounds to the type of the tensor. That holds only without contracted or reordered floating point:
 * -ffp-contract=off, and no -ffast-math. A value that is no number stays none.
 *
 * Plain loops that a compiler vectorises. This file is compiled once for each instruction set (see levels.c), with
 * LEVEL as the suffix of what it exports.
 */
#include <stdint.h>
#include <string.h>

#include "team.h"

#ifndef LEVEL
#define LEVEL baseline
#endif
#define JOIN(name, level) name##_##level
#define JOINED(name, level) JOIN(name, level)
#define EXPORTED(name) __attribute__((visibility("default"))) JOINED(name, LEVEL)
#define INLINE static inline __attribute__((always_inline))

/* Products are summed in single precision within a block, as so many sums side by side; blocks in double precision.
 * The same at every level and for every number of threads. */
enum { BLOCK = 2048, LANES = 32 };

/* What a tensor may hold: the values of `is_bfloat16`. */
enum { FLOAT32, BFLOAT16 };

/* smallest, largest: where the grid ends, in steps
 * low, high:         where values are cut off before they are quantized, as ReLU (0, infinity) and ReLU6 (0, 6) do
 * clips:             whether they are
 * passes:            whether the gradient passes where the grid ends
 */
typedef struct {
    float smallest, largest, low, high;
    int clips, passes;
} Grid;

INLINE uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

INLINE float with_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The upper half of the nearest bfloat16, to even at a tie. What is no number stays none if its lower half is zero, as
 * in everything that comes from a bfloat16, an operation or `usual`. */
INLINE uint32_t upper_half(float value) {
    const uint32_t bits = bits_of(value);
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

/* A scale; if it is no number, the one that operations give. */
static float usual(float scale) {
    return scale == scale ? scale : with_bits(0x7fc00000);
}

/* A result as a tensor of the type would hold it. */
INLINE float held(float value, int type) {
    return type == BFLOAT16 ? with_bits(upper_half(value) << 16) : value;
}

INLINE float load(const void *from, int64_t i, int type) {
    return type == BFLOAT16 ? with_bits((uint32_t)((const uint16_t *)from)[i] << 16) : ((const float *)from)[i];
}

INLINE void store(void *to, int64_t i, float value, int type) {
    if (type == BFLOAT16) ((uint16_t *)to)[i] = (uint16_t)upper_half(value);
    else ((float *)to)[i] = value;
}

/* The nearest whole number, to even at a tie. From 2**22 on it may be off, but no grid reaches that far. */
INLINE float nearest(float value) {
    const float shift = 12582912.0f; /* 1.5 * 2**23, above which floats are whole */
    const float rounded = (value + shift) - shift;
    return with_bits(bits_of(rounded) | (bits_of(value) & 0x80000000u)); /* what rounds to zero keeps its sign */
}

INLINE float within(float value, float low, float high) {
    value = value > high ? high : value;
    return value < low ? low : value;
}

INLINE void quantize_row(const void *restrict input, void *restrict output, int64_t columns, float scale,
                         const Grid *grid, const int type, const int clips) {
    const float smallest = grid->smallest, largest = grid->largest, low = grid->low, high = grid->high;
    for (int64_t i = 0; i < columns; i++) {
        float value = load(input, i, type);
        if (clips) value = within(value, low, high);
        /* Adding the zero point makes a negative zero positive. */
        const float steps = held(value / scale, type) + 0.0f;
        store(output, i, within(nearest(steps), smallest, largest) * scale, type);
    }
}

/* The gradient of one value; returns what it adds to that of the scale. */
INLINE float gradient_of(float value, float gradient, float *result, float scale, const Grid *grid, const int type,
                         const int clips, const int passes) {
    const float cut = clips ? within(value, grid->low, grid->high) : value;
    const float exact = cut / scale, steps = nearest(held(exact, type) + 0.0f);
    const int is_outside = passes ? 0 : (steps > grid->largest) | (steps < grid->smallest);
    const int is_cut = clips ? (value <= grid->low) | (value >= grid->high) : 0;
    const float back = held(gradient * scale, type) / scale;
    *result = is_outside | is_cut ? 0.0f : back;
    return gradient * (within(steps, grid->smallest, grid->largest) - (is_outside ? 0.0f : exact));
}

/* The gradients of up to BLOCK values; returns that of the scale. What `type` says is where results are rounded. */
INLINE double block_gradient(const float *restrict input, const float *restrict gradient, float *restrict result,
                             int64_t count, float scale, const Grid *given, const int type, const int clips,
                             const int passes) {
    const Grid grid = *given;
    float sums[LANES] = {0};
    double sum = 0.0;
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        for (int lane = 0; lane < LANES; lane++)
            sums[lane] += gradient_of(input[i + lane], gradient[i + lane], result + i + lane, scale, &grid, type, clips,
                                      passes);
    }
    for (; i < count; i++)
        sum += (double)gradient_of(input[i], gradient[i], result + i, scale, &grid, type, clips, passes);
    for (int lane = 0; lane < LANES; lane++) sum += (double)sums[lane];
    return sum;
}

/* Loops over one type are vectorised best: bfloat16 becomes float32, a block at a time, and is made from it. */
static void widen(const uint16_t *restrict input, float *restrict output, int64_t count) {
    for (int64_t i = 0; i < count; i++) output[i] = load(input, i, BFLOAT16);
}

static void narrow(const float *restrict input, uint16_t *restrict output, int64_t count) {
    for (int64_t i = 0; i < count; i++) store(output, i, input[i], BFLOAT16);
}

#if defined(__AVX512BF16__)
#include "fake_quant_bf16.h"
#endif

static double block_gradient_bfloat16(const void *input, const void *gradient, void *result, int64_t count,
                                      float scale, const Grid *grid) {
#if defined(__AVX512BF16__)
    if (is_within_reach(scale, grid) && are_within_reach(gradient, count))
        return grid->clips ? block_gradient_wide(input, gradient, result, count, scale, grid, 1)
                           : block_gradient_wide(input, gradient, result, count, scale, grid, 0);
#endif
    float values[BLOCK], above[BLOCK], below[BLOCK];
    widen(input, values, count);
    widen(gradient, above, count);
    const double sum = grid->clips ? block_gradient(values, above, below, count, scale, grid, BFLOAT16, 1, 0)
                                   : block_gradient(values, above, below, count, scale, grid, BFLOAT16, 0, 0);
    narrow(below, result, count);
    return sum;
}

static double block_gradient_float32(const void *input, const void *gradient, void *result, int64_t count,
                                     float scale, const Grid *grid) {
    if (grid->clips) return block_gradient(input, gradient, result, count, scale, grid, FLOAT32, 1, 0);
    if (grid->passes) return block_gradient(input, gradient, result, count, scale, grid, FLOAT32, 0, 1);
    return block_gradient(input, gradient, result, count, scale, grid, FLOAT32, 0, 0);
}

static void quantize_row_bfloat16(const uint16_t *restrict input, uint16_t *restrict output, int64_t columns,
                                  float scale, const Grid *grid) {
    int64_t done = 0;
#if defined(__AVX512BF16__)
    if (is_within_reach(scale, grid)) done = quantize_row_wide(input, output, columns, scale, grid);
#endif
    if (grid->clips) quantize_row(input + done, output + done, columns - done, scale, grid, BFLOAT16, 1);
    else quantize_row(input + done, output + done, columns - done, scale, grid, BFLOAT16, 0);
}

/* A position in a tensor, counted in values. */
static void *at(const void *values, int64_t position, int type) {
    return (char *)values + position * (type == BFLOAT16 ? 2 : 4);
}

/* What is to be done: the arguments of `fake_quant` or `fake_quant_gradient`, whose `gradient` is null or not. */
typedef struct {
    const void *input, *gradient;
    void *result;
    double *sums;
    int64_t rows, columns;
    const float *scales;
    Grid grid;
    int type;
} Work;

static void quantize(const Work *work, int64_t row, int64_t start, int64_t count) {
    const int64_t place = row * work->columns + start;
    const void *from = at(work->input, place, work->type);
    void *to = at(work->result, place, work->type);
    const float scale = usual(work->scales[row]);
    if (work->type == BFLOAT16) quantize_row_bfloat16(from, to, count, scale, &work->grid);
    else if (work->grid.clips) quantize_row(from, to, count, scale, &work->grid, FLOAT32, 1);
    else quantize_row(from, to, count, scale, &work->grid, FLOAT32, 0);
}

/* Of one block, whose number within the row is `block`. */
static void back_through(const Work *work, int64_t row, int64_t block, int64_t count) {
    const int64_t place = row * work->columns + block * BLOCK, blocks = (work->columns + BLOCK - 1) / BLOCK;
    const void *values = at(work->input, place, work->type), *above = at(work->gradient, place, work->type);
    void *below = at(work->result, place, work->type);
    const float scale = usual(work->scales[row]);
    work->sums[row * blocks + block] =
        work->type == BFLOAT16 ? block_gradient_bfloat16(values, above, below, count, scale, &work->grid)
                               : block_gradient_float32(values, above, below, count, scale, &work->grid);
}

/* The blocks from `start` up to `stop`, counted through all rows. */
static void do_blocks(const Work *work, int64_t start, int64_t stop) {
    const int64_t blocks = (work->columns + BLOCK - 1) / BLOCK;
    while (start < stop) {
        const int64_t row = start / blocks, block = start % blocks;
        const int64_t here = stop - start < blocks - block ? stop - start : blocks - block;
        const int64_t left = work->columns - block * BLOCK, count = here * BLOCK < left ? here * BLOCK : left;
        if (!work->gradient) quantize(work, row, block * BLOCK, count);
        else
            for (int64_t i = 0; i < here; i++)
                back_through(work, row, block + i, count - i * BLOCK < BLOCK ? count - i * BLOCK : BLOCK);
        start += here;
    }
}

static void do_share(const void *given, int64_t share, int64_t shares) {
    const Work *work = given;
    const int64_t all = work->rows * ((work->columns + BLOCK - 1) / BLOCK);
    do_blocks(work, all * share / shares, all * (share + 1) / shares);
}

/* Put values on a grid.
 *
 * input, output:     (rows, columns), apart from each other, float32 or bfloat16
 * scales:            (rows), the size of a step
 * smallest, largest, low, high, clips: see Grid
 * is_bfloat16:       what input and output hold
 * threads:           how many may work on it; their number changes nothing else
 *
 * Returns 0.
 */
int EXPORTED(fake_quant)(const void *input, void *output, int64_t rows, int64_t columns, const float *scales,
                         float smallest, float largest, float low, float high, int clips, int is_bfloat16,
                         int threads) {
    const Grid grid = {smallest, largest, low, high, clips, 0};
    const Work work = {input, 0, output, 0, rows, columns, scales, grid, is_bfloat16 ? BFLOAT16 : FLOAT32};
    in_team(do_share, &work, threads);
    return 0;
}

/* The gradient of `fake_quant`.
 *
 * input, gradient:   (rows, columns), what was quantized and the gradient of what came out
 * result:            (rows, columns), apart from them, the gradient of the input
 * sums:              (rows, blocks of up to 2048 columns), parts of the gradient of each row's scale
 * passes:            see Grid; only float32 that is not clipped may pass
 * the others:        as in `fake_quant`
 *
 * Returns 0.
 */
int EXPORTED(fake_quant_gradient)(const void *input, const void *gradient, void *result, double *sums, int64_t rows,
                                  int64_t columns, const float *scales, float smallest, float largest, float low,
                                  float high, int clips, int passes, int is_bfloat16, int threads) {
    const Grid grid = {smallest, largest, low, high, clips, passes};
    const Work work = {input, gradient, result, sums, rows, columns, scales, grid, is_bfloat16 ? BFLOAT16 : FLOAT32};
    in_team(do_share, &work, threads);
    return 0;
}
