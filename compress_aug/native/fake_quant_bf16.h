/* Fake quantization of bfloat16 with instructions made for it: the very bits of fake_quant.c's loops, several times
 * faster. Included there where the level has them (AVX512-BF16).
 *
 * Nothing is divided. `quotient` multiplies by 1 / scale and corrects the product by what a fused multiply-add says
 * is left: for a numerator of 8 significant bits this gives what division gives for every scale (all 2**30 pairs of
 * significands were compared). It holds where nothing overflows or leaves the normal numbers: `is_within_reach` says
 * of a scale, and `are_within_reach` of gradients, whether they are such; the others go the ordinary way. (Scales
 * above 1 would make zeros, whose sign is another, of values too small to be normal.)
 */
#include <immintrin.h>

/* Far beyond the end of every grid, in steps. */
#define FAR 1048576.0f

enum { WIDTH = 16, LEAST_GRADIENT = (127 - 70) << 7, LARGEST_GRADIENT = (127 + 60) << 7 };

static int is_within_reach(float scale, const Grid *grid) {
    return scale >= 0x1p-30f && scale <= 1.0f && grid->smallest >= -65536.0f && grid->largest <= 65536.0f;
}

/* Whether every gradient is zero or has a size from 2**-70 to 2**60. */
static int are_within_reach(const uint16_t *gradient, int64_t count) {
    uint16_t least = 0xffff, largest = 0;
    for (int64_t i = 0; i < count; i++) {
        const uint16_t size = gradient[i] & 0x7fff, wrapped = (uint16_t)(size - 1); /* of a zero, the largest */
        least = wrapped < least ? wrapped : least;
        largest = size > largest ? size : largest;
    }
    return largest <= LARGEST_GRADIENT && least >= LEAST_GRADIENT;
}

INLINE __m512 widened(__m256i halves) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16)); }

INLINE __m512 loaded(const uint16_t *from) { return widened(_mm256_loadu_si256((const __m256i *)from)); }

INLINE __m256i narrowed(__m512 values) { return (__m256i)_mm512_cvtneps_pbh(values); }

/* A result as bfloat16 would hold it. */
INLINE __m512 held_wide(__m512 values) { return widened(narrowed(values)); }

INLINE __m512 quotient(__m512 numerator, __m512 scale, __m512 inverse) {
    const __m512 product = _mm512_mul_ps(numerator, inverse);
    return _mm512_fmadd_ps(_mm512_fnmadd_ps(product, scale, numerator), inverse, product);
}

/* No number stays none, and of two zeros it is that of `values` that stays. */
INLINE __m512 within_wide(__m512 values, __m512 low, __m512 high) {
    return _mm512_max_ps(low, _mm512_min_ps(high, values));
}

INLINE __m512 all(float value) { return _mm512_set1_ps(value); }

/* Whole steps before they are cut to the grid. Zero is added before the rounding to bfloat16, which makes zeros, with
 * their sign, of numbers that are not normal. */
INLINE __m512 steps_of(__m512 exact) {
    return _mm512_roundscale_ps(held_wide(_mm512_add_ps(exact, all(0.0f))), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* Where values are cut off before anything else, so that quotients stay finite. */
INLINE float cut_below(const Grid *grid, float scale) {
    return grid->clips && grid->low > -FAR * scale ? grid->low : -FAR * scale;
}

INLINE float cut_above(const Grid *grid, float scale) {
    return grid->clips && grid->high < FAR * scale ? grid->high : FAR * scale;
}

/* As many values of a row as whole vectors take; returns how many. */
static int64_t quantize_row_wide(const uint16_t *restrict input, uint16_t *restrict output, int64_t columns,
                                 float scale, const Grid *grid) {
    const __m512 step = all(scale), inverse = all(1.0f / scale);
    const __m512 low = all(cut_below(grid, scale)), high = all(cut_above(grid, scale));
    const __m512 smallest = all(grid->smallest), largest = all(grid->largest);
    int64_t i = 0;
    for (; i + WIDTH <= columns; i += WIDTH) {
        const __m512 exact = quotient(within_wide(loaded(input + i), low, high), step, inverse);
        const __m512 steps = within_wide(steps_of(exact), smallest, largest);
        _mm256_storeu_si256((__m256i *)(output + i), narrowed(_mm512_mul_ps(steps, step)));
    }
    return i;
}

/* The gradients of one vector; returns what they add to that of the scale. */
INLINE __m512 gradient_wide(const uint16_t *restrict input, const uint16_t *restrict gradient,
                            uint16_t *restrict result, __m512 step, __m512 inverse, const Grid *grid, float low,
                            float high, const int clips) {
    const __m512 values = loaded(input), above = loaded(gradient);
    const __m512 exact = quotient(within_wide(values, all(low), all(high)), step, inverse), steps = steps_of(exact);
    const __m512 smallest = all(grid->smallest), largest = all(grid->largest);
    const __mmask16 outside =
        _mm512_cmp_ps_mask(steps, largest, _CMP_GT_OQ) | _mm512_cmp_ps_mask(steps, smallest, _CMP_LT_OQ);
    const __mmask16 cut = clips ? _mm512_cmp_ps_mask(values, all(grid->low), _CMP_LE_OQ) |
                                      _mm512_cmp_ps_mask(values, all(grid->high), _CMP_GE_OQ)
                                : 0;
    const __m512 back = quotient(held_wide(_mm512_mul_ps(above, step)), step, inverse);
    const __mmask16 kept = (__mmask16) ~(outside | cut);
    _mm256_storeu_si256((__m256i *)result, narrowed(_mm512_maskz_mov_ps(kept, back)));
    const __m512 inside = _mm512_maskz_mov_ps((__mmask16)~outside, exact);
    return _mm512_mul_ps(above, _mm512_sub_ps(within_wide(steps, smallest, largest), inside));
}

INLINE double block_gradient_wide(const uint16_t *restrict input, const uint16_t *restrict gradient,
                                  uint16_t *restrict result, int64_t count, float scale, const Grid *grid,
                                  const int clips) {
    const __m512 step = all(scale), inverse = all(1.0f / scale);
    const float low = cut_below(grid, scale), high = cut_above(grid, scale);
    __m512 first = all(0.0f), second = all(0.0f);
    float sums[LANES], below;
    double sum = 0.0;
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        first = _mm512_add_ps(first, gradient_wide(input + i, gradient + i, result + i, step, inverse, grid, low, high,
                                                   clips));
        second = _mm512_add_ps(second, gradient_wide(input + i + WIDTH, gradient + i + WIDTH, result + i + WIDTH, step,
                                                     inverse, grid, low, high, clips));
    }
    for (; i < count; i++) {
        sum += (double)gradient_of(load(input, i, BFLOAT16), load(gradient, i, BFLOAT16), &below, scale, grid, BFLOAT16,
                                   clips, 0);
        store(result, i, below, BFLOAT16);
    }
    _mm512_storeu_ps(sums, first);
    _mm512_storeu_ps(sums + WIDTH, second);
    for (int lane = 0; lane < LANES; lane++) sum += (double)sums[lane];
    return sum;
}
