/* What the operations share: the working space of one image, and moves of a few bytes. */
#ifndef FRAME_H
#define FRAME_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 1024, TABLES = 4 };

typedef struct {
    int64_t channels, height, width, pixels;
    uint8_t fill[3];
    uint8_t *between[2];  /* images between one step and the next */
    uint32_t *packed;  /* (pixels + 1), a pixel in four bytes; the last one holds the fill */
    int32_t *missed;  /* (BLOCK + width), -1 for pixels that come from outside, 0 for the others */
    int32_t *corner[4];  /* (BLOCK + width) each, where the neighbours of a pixel lie in `packed` */
    double *whole[2], *part[2];  /* (BLOCK + width) each, the column and the row a pixel comes from */
} Frame;

/* What an image becomes: from `in` to `out`, which never overlap. */
#define IMAGES const uint8_t *restrict in, uint8_t *restrict out

static int64_t clamp(int64_t value, int64_t low, int64_t high) {
    return value < low ? low : value > high ? high : value;
}

/* A double rounded down. What no image can need is cut off, so that nothing overflows later; nan is 0. */
static int64_t round_down(double value) {
    const double limit = 70368744177664.0; /* 2**46, times a side of 2**16 stays below 2**63 */
    if (!(value > -limit)) return value <= -limit ? -(int64_t)limit : 0;
    if (value > limit) return (int64_t)limit;
    int64_t whole = (int64_t)value;
    return whole - (value < (double)whole);
}

/* Rows are short: below 64 bytes a call of memcpy or memset costs more than what it does. */
static inline void copy_bytes(IMAGES, int64_t count) {
    if (count >= 64) {
        memcpy(out, in, (size_t)count);
    } else if (count >= 32) {
        memcpy(out, in, 32);
        memcpy(out + count - 32, in + count - 32, 32);
    } else if (count >= 16) {
        memcpy(out, in, 16);
        memcpy(out + count - 16, in + count - 16, 16);
    } else if (count >= 8) {
        memcpy(out, in, 8);
        memcpy(out + count - 8, in + count - 8, 8);
    } else if (count >= 4) {
        memcpy(out, in, 4);
        memcpy(out + count - 4, in + count - 4, 4);
    } else {
        for (int64_t i = 0; i < count; i++) out[i] = in[i];
    }
}

static inline void paint_bytes(uint8_t *out, uint8_t value, int64_t count) {
    if (count >= 64) {
        memset(out, value, (size_t)count);
    } else if (count >= 32) {
        memset(out, value, 32);
        memset(out + count - 32, value, 32);
    } else if (count >= 16) {
        memset(out, value, 16);
        memset(out + count - 16, value, 16);
    } else if (count >= 8) {
        memset(out, value, 8);
        memset(out + count - 8, value, 8);
    } else if (count >= 4) {
        memset(out, value, 4);
        memset(out + count - 4, value, 4);
    } else {
        for (int64_t i = 0; i < count; i++) out[i] = value;
    }
}

static void paint_image(const Frame *frame, uint8_t *out) {
    for (int64_t c = 0; c < frame->channels; c++)
        memset(out + c * frame->pixels, frame->fill[c], (size_t)frame->pixels);
}

#endif
