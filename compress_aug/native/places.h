/* The operations that move pixels, and the one that paints them over. */
#ifndef PLACES_H
#define PLACES_H

#include "frame.h"

/* Pillow's 16.16 numbers, moved to the centre of the pixel. */
typedef struct {
    int64_t a, b, c, d, e, f;
} Fixed;

static int64_t fixed(double value) { return round_down(value * 65536.0 + 0.5); }

static Fixed fixed_point(const double *map) {
    const double x = map[2] + map[0] * 0.5 + map[1] * 0.5, y = map[5] + map[3] * 0.5 + map[4] * 0.5;
    return (Fixed){fixed(map[0]), fixed(map[1]), fixed(x), fixed(map[3]), fixed(map[4]), fixed(y)};
}

/* How far from a pixel the one lies that moves to its place. */
static int64_t translation(double pixels) { return fixed(0.5 - pixels) >> 16; }

/* Pixel (y, x) comes from (y + down, x + right). */
static void shift(const Frame *frame, IMAGES, int64_t down, int64_t right) {
    const int64_t height = frame->height, width = frame->width;
    down = clamp(down, -height, height);
    right = clamp(right, -width, width);
    const int64_t top = down < 0 ? -down : 0, bottom = down > 0 ? height - down : height;
    const int64_t left = right < 0 ? -right : 0, end = right > 0 ? width - right : width;
    if (top >= bottom || left >= end) {
        paint_image(frame, out);
        return;
    }
    /* All rows in one copy, and then the columns painted over that came from the row beside. */
    const int64_t first = top * width + left, length = (bottom - 1) * width + end - first;
    for (int64_t c = 0; c < frame->channels; c++, in += frame->pixels, out += frame->pixels) {
        const uint8_t fill = frame->fill[c];
        memcpy(out + first, in + first + down * width + right, (size_t)length);
        memset(out, fill, (size_t)(top * width));
        memset(out + bottom * width, fill, (size_t)((height - bottom) * width));
        if (left > 0)
            for (int64_t y = top; y < bottom; y++) paint_bytes(out + y * width, fill, left);
        if (end < width)
            for (int64_t y = top; y < bottom; y++) paint_bytes(out + y * width + end, fill, width - end);
    }
}

static void shear_x(const Frame *frame, IMAGES, double pixels_per_row) {
    const double map[6] = {1.0, pixels_per_row, 0.0, 0.0, 1.0, 0.0};
    const Fixed at = fixed_point(map);
    const int64_t width = frame->width;
    for (int64_t c = 0; c < frame->channels; c++) {
        const uint8_t fill = frame->fill[c];
        for (int64_t y = 0; y < frame->height; y++, in += width, out += width) {
            const int64_t right = clamp((at.c + at.b * y) >> 16, -width, width);
            if (right >= 0) {
                copy_bytes(in + right, out, width - right);
                paint_bytes(out + width - right, fill, right);
            } else {
                paint_bytes(out, fill, -right);
                copy_bytes(in, out - right, width + right);
            }
        }
    }
}

/* In rows y..end-1 of one channel, columns x..stop-1 come from `down` rows further down. */
static inline void shift_columns(const Frame *frame, IMAGES, uint8_t fill, int64_t y, int64_t end, int64_t x,
                                 int64_t stop, int64_t down) {
    const int64_t width = frame->width, count = stop - x;
    const int64_t top = clamp(-down, y, end), bottom = clamp(frame->height - down, top, end);
    uint8_t *to = out + y * width + x;
    for (; y < top; y++, to += width) paint_bytes(to, fill, count);
    const uint8_t *from = in + clamp(y + down, 0, frame->height) * width + x;
    /* More than is needed where the next columns, which come later, write over it. */
    if (count <= 8 && x + 8 <= width) {
        for (; y < bottom; y++, from += width, to += width) memcpy(to, from, 8);
    } else if (count <= 16 && x + 16 <= width) {
        for (; y < bottom; y++, from += width, to += width) memcpy(to, from, 16);
    } else {
        for (; y < bottom; y++, from += width, to += width) copy_bytes(from, to, count);
    }
    for (; y < end; y++, to += width) paint_bytes(to, fill, count);
}

/* Neighbouring columns that move by the same number of rows move together; a few rows at a time, for the cache. */
static void shear_y(const Frame *frame, IMAGES, double pixels_per_column) {
    const double map[6] = {1.0, 0.0, 0.0, pixels_per_column, 1.0, 0.0};
    const Fixed at = fixed_point(map);
    const int64_t width = frame->width, height = frame->height, rows = 64;
    int32_t *stops = frame->corner[0], *downs = frame->corner[1];
    int64_t runs = 0;
    for (int64_t x = 0; x < width; x++) {
        const int32_t down = (int32_t)clamp((at.f + at.d * x) >> 16, -height, height);
        if (runs == 0 || downs[runs - 1] != down) downs[runs++] = down;
        stops[runs - 1] = (int32_t)(x + 1);
    }
    for (int64_t c = 0; c < frame->channels; c++, in += frame->pixels, out += frame->pixels) {
        for (int64_t y = 0; y < height; y += rows) {
            const int64_t end = y + rows < height ? y + rows : height;
            for (int64_t r = 0, x = 0; r < runs; x = stops[r++])
                shift_columns(frame, in, out, frame->fill[c], y, end, x, stops[r], downs[r]);
        }
    }
}

/* Three channels side by side: one load moves a pixel. */
static void pack(const Frame *frame, const uint8_t *in) {
    const int64_t pixels = frame->pixels;
    uint32_t *restrict packed = frame->packed;
    if (frame->channels == 3) {
        for (int64_t i = 0; i < pixels; i++)
            packed[i] = in[i] | (uint32_t)in[pixels + i] << 8 | (uint32_t)in[2 * pixels + i] << 16;
    } else {
        for (int64_t i = 0; i < pixels; i++) packed[i] = in[i];
    }
    packed[pixels] = frame->fill[0] | (uint32_t)frame->fill[1] << 8 | (uint32_t)frame->fill[2] << 16;
}

static void take(const Frame *frame, uint8_t *restrict out, int64_t count) {
    uint32_t taken[BLOCK];
    const int64_t pixels = frame->pixels;
    const uint32_t *packed = frame->packed;
    const int32_t *place = frame->corner[0];
    for (int64_t start = 0; start < count; start += BLOCK, place += BLOCK, out += BLOCK) {
        const int64_t length = count - start < BLOCK ? count - start : BLOCK;
        for (int64_t i = 0; i < length; i++) taken[i] = packed[place[i]];
        for (int64_t i = 0; i < length; i++) out[i] = (uint8_t)taken[i];
        if (frame->channels == 1) continue;
        for (int64_t i = 0; i < length; i++) out[pixels + i] = (uint8_t)(taken[i] >> 8);
        for (int64_t i = 0; i < length; i++) out[2 * pixels + i] = (uint8_t)(taken[i] >> 16);
    }
}

static int64_t magnitude(int64_t value) { return value < 0 ? -value : value; }

/* Where the pixels of row y come from. */
static void nearest_row(const Frame *frame, const Fixed *at, int64_t y, int32_t *restrict place) {
    const int64_t width = frame->width, height = frame->height, last_x = width - 1, last_y = height - 1;
    const int64_t x_start = at->c + at->b * y, y_start = at->f + at->e * y;
    const int64_t x_reach = magnitude(at->c) + magnitude(at->b) * last_y + magnitude(at->a) * last_x;
    const int64_t y_reach = magnitude(at->f) + magnitude(at->e) * last_y + magnitude(at->d) * last_x;
    const int32_t outside = (int32_t)frame->pixels;
    if (x_reach <= INT32_MAX && y_reach <= INT32_MAX) {
        const int32_t a = (int32_t)at->a, d = (int32_t)at->d, w = (int32_t)width, h = (int32_t)height;
        const int32_t xs = (int32_t)x_start, ys = (int32_t)y_start;
        for (int32_t x = 0; x < w; x++) {
            const int32_t from_x = (xs + a * x) >> 16, from_y = (ys + d * x) >> 16;
            const int inside = ((uint32_t)from_x < (uint32_t)w) & ((uint32_t)from_y < (uint32_t)h);
            place[x] = inside ? from_y * w + from_x : outside;
        }
        return;
    }
    for (int64_t x = 0; x < width; x++) {
        const int64_t from_x = (x_start + at->a * x) >> 16, from_y = (y_start + at->d * x) >> 16;
        const int inside = from_x >= 0 && from_x < width && from_y >= 0 && from_y < height;
        place[x] = inside ? (int32_t)(from_y * width + from_x) : outside;
    }
}

static void warp_nearest(const Frame *frame, IMAGES, const double *map) {
    const Fixed at = fixed_point(map);
    const int64_t width = frame->width, height = frame->height;
    const int64_t rows = width < BLOCK ? BLOCK / width : 1;
    pack(frame, in);
    for (int64_t y = 0; y < height; y += rows) {
        const int64_t stop = y + rows < height ? y + rows : height;
        for (int64_t row = y; row < stop; row++)
            nearest_row(frame, &at, row, frame->corner[0] + (row - y) * width);
        take(frame, out + y * width, (stop - y) * width);
    }
}

/* A double of less than 2**31 rounded down, in a way that every vector unit has: from 2**52 on there are no
 * fractions. 3 * 2**51 leaves room for negative values. */
static inline double floor_of(double value) {
    const double large = 6755399441055744.0, nearest = (value + large) - large;
    return nearest - (nearest > value ? 1.0 : 0.0);
}

/* Where the pixels of row y come from, cut to the image, as whole and fractional parts; and whether they do. */
static void bilinear_places(const Frame *frame, const double *map, int64_t y) {
    const double row = (double)y + 0.5, wide = (double)frame->width, high = (double)frame->height;
    const double a = map[0], b = map[1] * row, c = map[2], d = map[3], e = map[4] * row, f = map[5];
    const int32_t width = (int32_t)frame->width;
    double *restrict x_whole = frame->whole[0], *restrict x_part = frame->part[0];
    double *restrict y_whole = frame->whole[1], *restrict y_part = frame->part[1];
    int32_t *restrict missed = frame->missed;
    for (int32_t x = 0; x < width; x++) {
        const double column = (double)x + 0.5, from_x = a * column + b + c, from_y = d * column + e + f;
        const double cut_x = (from_x < 0.0 ? 0.0 : from_x > wide ? wide : from_x) - 0.5;
        const double cut_y = (from_y < 0.0 ? 0.0 : from_y > high ? high : from_y) - 0.5;
        x_whole[x] = floor_of(cut_x);
        y_whole[x] = floor_of(cut_y);
        x_part[x] = cut_x - floor_of(cut_x);
        y_part[x] = cut_y - floor_of(cut_y);
        missed[x] = -((from_x < 0.0) | (from_x >= wide) | (from_y < 0.0) | (from_y >= high));
    }
}

/* The places of the four neighbours of each pixel; what comes from outside has the fill for all of them. */
static void bilinear_corners(const Frame *frame) {
    const int32_t width = (int32_t)frame->width, last_x = width - 1, last_y = (int32_t)frame->height - 1;
    const int32_t outside = (int32_t)frame->pixels;
    const double *x_whole = frame->whole[0], *y_whole = frame->whole[1];
    const int32_t *missed = frame->missed;
    int32_t *restrict corner0 = frame->corner[0], *restrict corner1 = frame->corner[1];
    int32_t *restrict corner2 = frame->corner[2], *restrict corner3 = frame->corner[3];
    for (int32_t x = 0; x < width; x++) {
        const int32_t x0 = (int32_t)x_whole[x], y0 = (int32_t)y_whole[x];
        const int32_t left = x0 < 0 ? 0 : x0, right = x0 < last_x ? x0 + 1 : last_x;
        const int32_t upper = (y0 < 0 ? 0 : y0) * width, lower = (y0 < last_y ? y0 + 1 : last_y) * width;
        const int32_t keep = ~missed[x], fill = outside & missed[x];
        corner0[x] = ((upper + left) & keep) | fill;
        corner1[x] = ((upper + right) & keep) | fill;
        corner2[x] = ((lower + left) & keep) | fill;
        corner3[x] = ((lower + right) & keep) | fill;
    }
}

static void mix_row(const Frame *frame, uint8_t *restrict out) {
    uint32_t pixel[4][BLOCK];
    const uint32_t *packed = frame->packed;
    for (int64_t start = 0; start < frame->width; start += BLOCK) {
        const int64_t count = frame->width - start < BLOCK ? frame->width - start : BLOCK;
        const double *right = frame->part[0] + start, *down = frame->part[1] + start;
        for (int k = 0; k < 4; k++)
            for (int64_t i = 0; i < count; i++) pixel[k][i] = packed[frame->corner[k][start + i]];
        for (int64_t c = 0; c < frame->channels; c++) {
            const int bits = (int)(8 * c);
            uint8_t *restrict to = out + c * frame->pixels + start;
            for (int64_t i = 0; i < count; i++) {
                const int32_t p0 = (int32_t)(pixel[0][i] >> bits & 255), p1 = (int32_t)(pixel[1][i] >> bits & 255);
                const int32_t p2 = (int32_t)(pixel[2][i] >> bits & 255), p3 = (int32_t)(pixel[3][i] >> bits & 255);
                const double upper = p0 + (p1 - p0) * right[i], lower = p2 + (p3 - p2) * right[i];
                to[i] = (uint8_t)(int32_t)(upper + (lower - upper) * down[i]);
            }
        }
    }
}

static void warp_bilinear(const Frame *frame, IMAGES, const double *map) {
    pack(frame, in);
    for (int64_t y = 0; y < frame->height; y++) {
        bilinear_places(frame, map, y);
        bilinear_corners(frame);
        mix_row(frame, out + y * frame->width);
    }
}

static void cutout(const Frame *frame, IMAGES, double side, const int64_t *place) {
    const int64_t reach = round_down(side) / 2, height = frame->height, width = frame->width;
    const int64_t far = INT64_C(1) << 60, row = clamp(place[0], -far, far), column = clamp(place[1], -far, far);
    const int64_t top = clamp(row - reach, 0, height), bottom = clamp(row + reach, top, height);
    const int64_t left = clamp(column - reach, 0, width), right = clamp(column + reach, left, width);
    memcpy(out, in, (size_t)(frame->channels * frame->pixels));
    for (int64_t c = 0; c < frame->channels; c++, out += frame->pixels)
        for (int64_t y = top; y < bottom; y++) paint_bytes(out + y * width + left, frame->fill[c], right - left);
}

static void flip(const Frame *frame, IMAGES) {
    const int64_t width = frame->width;
    for (int64_t y = 0; y < frame->channels * frame->height; y++, in += width, out += width)
        for (int64_t x = 0; x < width; x++) out[x] = in[width - 1 - x];
}

#endif
