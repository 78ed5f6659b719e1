/* The operations that change values and not places. */
#ifndef VALUES_H
#define VALUES_H

#include "frame.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512VBMI__) && defined(__AVX512BW__)
/* The whole table lies in four registers. */
static int64_t look_up_wide(IMAGES, int64_t count, const uint8_t *table) {
    const __m512i a = _mm512_loadu_si512(table), b = _mm512_loadu_si512(table + 64);
    const __m512i c = _mm512_loadu_si512(table + 128), d = _mm512_loadu_si512(table + 192);
    int64_t i = 0;
    for (; i + 64 <= count; i += 64) {
        __m512i x = _mm512_loadu_si512(in + i);
        __m512i low = _mm512_permutex2var_epi8(a, x, b), high = _mm512_permutex2var_epi8(c, x, d);
        _mm512_storeu_si512(out + i, _mm512_mask_blend_epi8(_mm512_movepi8_mask(x), low, high));
    }
    return i;
}
#elif defined(__AVX2__)
/* A shuffle looks up 16 entries and gives 0 where the index is "negative". With 16 less at each step and tables
 * of differences (by xor), what is left at the end is the entry: 3 instructions for each of the 16 parts. */
static int64_t look_up_wide(IMAGES, int64_t count, const uint8_t *table) {
    __m256i part[16];
    const __m256i sixteen = _mm256_set1_epi8(16), half = _mm256_set1_epi8((char)0x80);
    for (int k = 0; k < 16; k++) {
        __m128i entries = _mm_loadu_si128((const __m128i *)(table + 16 * k));
        if (k % 8) entries = _mm_xor_si128(entries, _mm_loadu_si128((const __m128i *)(table + 16 * k - 16)));
        part[k] = _mm256_broadcastsi128_si256(entries);
    }
    int64_t i = 0;
    for (; i + 32 <= count; i += 32) {
        __m256i x = _mm256_loadu_si256((const __m256i *)(in + i)), y = _mm256_xor_si256(x, half);
        __m256i low = _mm256_shuffle_epi8(part[0], x), high = _mm256_shuffle_epi8(part[8], y);
        for (int k = 1; k < 8; k++) {
            x = _mm256_subs_epi8(x, sixteen);
            y = _mm256_subs_epi8(y, sixteen);
            low = _mm256_xor_si256(low, _mm256_shuffle_epi8(part[k], x));
            high = _mm256_xor_si256(high, _mm256_shuffle_epi8(part[8 + k], y));
        }
        _mm256_storeu_si256((__m256i *)(out + i), _mm256_xor_si256(low, high));
    }
    return i;
}
#else
static int64_t look_up_wide(IMAGES, int64_t count, const uint8_t *table) {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8)
        for (int k = 0; k < 8; k++) out[i + k] = table[in[i + k]];
    return i;
}
#endif

static void look_up(IMAGES, int64_t count, const uint8_t *table) {
    for (int64_t i = look_up_wide(in, out, count, table); i < count; i++) out[i] = table[in[i]];
}

static void posterize(const Frame *frame, IMAGES, double bits) {
    const uint8_t mask = (uint8_t)(0xFF00 >> clamp(round_down(bits), 0, 16));
    for (int64_t i = 0; i < frame->channels * frame->pixels; i++) out[i] = in[i] & mask;
}

static void solarize(const Frame *frame, IMAGES, double threshold) {
    const int64_t lowest = -round_down(-threshold);
    const int64_t count = frame->channels * frame->pixels;
    if (lowest > 255) {
        memcpy(out, in, (size_t)count);
        return;
    }
    const uint8_t first = (uint8_t)(lowest < 0 ? 0 : lowest);
    for (int64_t i = 0; i < count; i++) out[i] = in[i] ^ (in[i] >= first ? 255 : 0);
}

/* Two roundings, as in Pillow; the cast cuts towards zero. */
static inline int mixed(int value, int degenerate, float factor) {
    return (int)((float)degenerate + factor * (float)(value - degenerate));
}

static inline uint8_t byte_of(int value) { return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value); }

/* Up to a factor of 100 the result fits 16 bits, and cutting it to a byte there is twice as fast. */
static void blend(IMAGES, const uint8_t *restrict degenerate, int64_t count, float factor) {
    if (factor > -100.0f && factor < 100.0f) {
        for (int64_t i = 0; i < count; i++) {
            int16_t value = (int16_t)mixed(in[i], degenerate[i], factor);
            value = value < 0 ? 0 : value;
            out[i] = (uint8_t)(value > 255 ? 255 : value);
        }
    } else {
        for (int64_t i = 0; i < count; i++) out[i] = byte_of(mixed(in[i], degenerate[i], factor));
    }
}

/* Any larger factor gives the same images; nan leaves them as they are. */
static float blend_factor(double argument) {
    const double limit = 65536.0;
    if (argument != argument) return 1.0f;
    return (float)(argument > limit ? limit : argument < -limit ? -limit : argument);
}

static void blend_with_level(const Frame *frame, IMAGES, int level, float factor) {
    uint8_t table[256];
    for (int i = 0; i < 256; i++) table[i] = byte_of(mixed(i, level, factor));
    look_up(in, out, frame->channels * frame->pixels, table);
}

/* Weights are those of ITU-R 601 in 1/65536. */
static inline uint8_t luma(uint8_t red, uint8_t green, uint8_t blue) {
    return (uint8_t)((19595u * red + 38470u * green + 7471u * blue + 32768u) >> 16);
}

static void contrast(const Frame *frame, IMAGES, float factor) {
    const int64_t pixels = frame->pixels;
    const uint8_t *red = in, *green = in + pixels, *blue = in + 2 * pixels;
    int64_t total = 0;
    for (int64_t start = 0; start < pixels; start += BLOCK) {
        const int64_t stop = start + BLOCK < pixels ? start + BLOCK : pixels;
        int32_t sum = 0;
        if (frame->channels == 3) {
            for (int64_t i = start; i < stop; i++) sum += luma(red[i], green[i], blue[i]);
        } else {
            for (int64_t i = start; i < stop; i++) sum += in[i];
        }
        total += sum;
    }
    blend_with_level(frame, in, out, (int)((2 * total + pixels) / (2 * pixels)), factor);
}

static void color(const Frame *frame, IMAGES, float factor) {
    const int64_t pixels = frame->pixels;
    const uint8_t *red = in, *green = in + pixels, *blue = in + 2 * pixels;
    uint8_t grey[BLOCK];
    for (int64_t start = 0; start < pixels; start += BLOCK) {
        const int64_t count = pixels - start < BLOCK ? pixels - start : BLOCK;
        for (int64_t i = 0; i < count; i++) grey[i] = luma(red[start + i], green[start + i], blue[start + i]);
        for (int64_t i = start; i < 3 * pixels; i += pixels) blend(in + i, out + i, grey, count, factor);
    }
}

/* Consecutive pixels, rows and all: what wraps round at the border is put right by the caller. */
static void sharpen_line(IMAGES, int64_t count, int64_t width, float factor) {
    uint16_t column[BLOCK + 2];
    uint8_t smooth[BLOCK];
    for (int64_t i = 0; i < count + 2; i++)
        column[i] = (uint16_t)(in[i - 1 - width] + in[i - 1] + in[i - 1 + width]);
    for (int64_t i = 0; i < count; i++) {
        const uint16_t sum = (uint16_t)(column[i] + column[i + 1] + column[i + 2] + 4 * in[i]);
        /* sum / 13, halves up, which do not occur: 20165 / 2**19 is exact for every sum of bytes. */
        const uint16_t thirteenth = (uint16_t)(((uint32_t)(uint16_t)(2 * sum + 13) * 20165u) >> 16);
        smooth[i] = (uint8_t)(thirteenth >> 3);
    }
    blend(in, out, smooth, count, factor);
}

static void sharpness(const Frame *frame, IMAGES, float factor) {
    const int64_t height = frame->height, width = frame->width, pixels = frame->pixels;
    if (height < 3 || width < 3) {
        memcpy(out, in, (size_t)(frame->channels * pixels));
        return;
    }
    for (int64_t c = 0; c < frame->channels; c++, in += pixels, out += pixels) {
        const int64_t end = pixels - width - 1;
        copy_bytes(in, out, width);
        copy_bytes(in + pixels - width, out + pixels - width, width);
        for (int64_t i = width + 1; i < end; i += BLOCK)
            sharpen_line(in + i, out + i, end - i < BLOCK ? end - i : BLOCK, width, factor);
        for (int64_t i = width; i < pixels; i += width) {
            out[i] = in[i];
            out[i - 1] = in[i - 1];
        }
    }
}

static void auto_contrast(const Frame *frame, IMAGES) {
    for (int64_t c = 0; c < frame->channels; c++, in += frame->pixels, out += frame->pixels) {
        uint8_t low = 255, high = 0, table[256];
        for (int64_t i = 0; i < frame->pixels; i++) {
            low = in[i] < low ? in[i] : low;
            high = in[i] > high ? in[i] : high;
        }
        if (low == high) {
            memcpy(out, in, (size_t)frame->pixels);
            continue;
        }
        const double scale = 255.0 / (high - low), offset = -low * scale;
        for (int i = 0; i < 256; i++) {
            table[i] = byte_of((int)(i * scale + offset));
        }
        look_up(in, out, frame->pixels, table);
    }
}

/* Several tables: counting equal neighbours in one would wait for the count before. */
static void count_values(const uint8_t *in, int64_t count, uint32_t *total) {
    uint32_t tables[TABLES][256];
    memset(tables, 0, sizeof tables);
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        uint64_t eight;
        memcpy(&eight, in + i, 8);
        for (int k = 0; k < 8; k++) tables[k % TABLES][(eight >> (8 * k)) & 255]++;
    }
    for (; i < count; i++) tables[0][in[i]]++;
    for (int v = 0; v < 256; v++) total[v] = tables[0][v] + tables[1][v] + tables[2][v] + tables[3][v];
}

/* `table` spreads these counts of `pixels` values evenly over 0..255. step: more than 0. */
static void equalizing(const uint32_t *counts, uint32_t step, int64_t pixels, uint8_t *table) {
    uint32_t before[256], sums[5] = {step / 2};
    /* Four sums at once, because each addition waits for the one before. */
    for (int q = 1; q < 5; q++) sums[q] = 0;
    for (int v = 0; v < 64; v++) {
        for (int q = 0; q < 4; q++) {
            before[64 * q + v] = sums[q];
            sums[q] += counts[64 * q + v];
        }
    }
    for (int q = 0, more = 0; q < 4; q++) {
        for (int v = 0; v < 64; v++) before[64 * q + v] += (uint32_t)more;
        more += (int)sums[q];
    }
    if (pixels < 1 << 23) {
        /* Whole numbers as small as these are exact, and no quotient of them rounds up to a whole number. */
        for (int v = 0; v < 256; v++) table[v] = byte_of((int)((float)(int)before[v] / (float)(int)step));
    } else {
        for (int v = 0; v < 256; v++) table[v] = byte_of((int)(before[v] / step));
    }
}

static void equalize(const Frame *frame, IMAGES) {
    for (int64_t c = 0; c < frame->channels; c++, in += frame->pixels, out += frame->pixels) {
        uint32_t counts[256];
        uint8_t table[256];
        count_values(in, frame->pixels, counts);
        int last = 255;
        while (counts[last] == 0) last--;
        const uint32_t step = (uint32_t)(frame->pixels - counts[last]) / 255;
        if (step == 0) {
            memcpy(out, in, (size_t)frame->pixels);
            continue;
        }
        equalizing(counts, step, frame->pixels, table);
        look_up(in, out, frame->pixels, table);
    }
}

#endif
