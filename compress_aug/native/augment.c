/* Augmentation plans on the CPU: image by image, every step while the image is still in the cache.
 *
 * The bytes are those of compress_aug/augment/grouped.py and of Pillow. That holds only without contracted or
 * reordered floating point: -ffp-contract=off, and no -ffast-math.
 *
 * Plain loops that a compiler vectorises; the one exception is the table lookup. This file is compiled once for
 * each instruction set (see levels.c), with LEVEL as the suffix of what it exports.
 */
#include "frame.h"
#include "places.h"
#include "values.h"

#ifndef LEVEL
#define LEVEL baseline
#endif
#define JOIN(name, level) name##_##level
#define JOINED(name, level) JOIN(name, level)
#define EXPORTED(name) __attribute__((visibility("default"))) JOINED(name, LEVEL)

/* The values of compress_aug.augment.Operation. */
enum {
    IDENTITY, POSTERIZE, SOLARIZE, EQUALIZE, AUTO_CONTRAST, BRIGHTNESS, CONTRAST, COLOR, SHARPNESS,
    TRANSLATE_X, TRANSLATE_Y, SHEAR_X, SHEAR_Y, ROTATE, CUTOUT, CROP, FLIP, OPERATIONS
};

/* The arguments of `augment`. */
typedef struct {
    const int64_t *operations;
    const double *arguments;
    const int64_t *places;
    int64_t steps;
    const double *maps;
    const int32_t *map_rows;
    int bilinear;
} Plan;

typedef struct {
    int64_t operation;
    double argument;
    const int64_t *place;
    const double *map;
} Step;

static Step step_of(const Plan *plan, int64_t image, int64_t number) {
    static const int64_t nowhere[2] = {0, 0};
    const int64_t row = image * plan->steps + number;
    Step step = {.operation = plan->operations[row], .argument = plan->arguments[row]};
    step.place = plan->places ? plan->places + 2 * row : nowhere;
    step.map = step.operation == ROTATE ? plan->maps + 6 * plan->map_rows[row] : NULL;
    return step;
}

/* Whether a step leaves every image as it is. */
static int idle(const Step *step, int64_t channels) {
    switch (step->operation) {
    case IDENTITY: return 1;
    case POSTERIZE: return step->argument == 8.0;
    case SOLARIZE: return step->argument > 255.0;
    case COLOR: return channels == 1 || step->argument == 1.0;
    case BRIGHTNESS: case CONTRAST: case SHARPNESS: return step->argument == 1.0;
    case TRANSLATE_X: case TRANSLATE_Y: case SHEAR_X: case SHEAR_Y: case ROTATE: return step->argument == 0.0;
    case CROP: return step->place[0] == 0 && step->place[1] == 0;
    default: return 0;
    }
}

static void warp(const Frame *frame, IMAGES, const Step *step, int bilinear) {
    const double shear = step->argument;
    const double along_x[6] = {1.0, shear, 0.0, 0.0, 1.0, 0.0}, along_y[6] = {1.0, 0.0, 0.0, shear, 1.0, 0.0};
    const double *map = step->operation == ROTATE ? step->map : step->operation == SHEAR_X ? along_x : along_y;
    for (int i = 0; i < 6; i++) {
        /* With larger numbers, infinite ones and nan no pixel comes from inside, and sums might be nan. */
        if (!(map[i] > -1e15 && map[i] < 1e15)) {
            paint_image(frame, out);
            return;
        }
    }
    if (bilinear) warp_bilinear(frame, in, out, map);
    else if (step->operation == ROTATE) warp_nearest(frame, in, out, map);
    else if (step->operation == SHEAR_X) shear_x(frame, in, out, shear);
    else shear_y(frame, in, out, shear);
}

static void apply_step(const Frame *frame, IMAGES, const Step *step, int bilinear) {
    const double argument = step->argument;
    switch (step->operation) {
    case POSTERIZE: posterize(frame, in, out, argument); break;
    case SOLARIZE: solarize(frame, in, out, argument); break;
    case EQUALIZE: equalize(frame, in, out); break;
    case AUTO_CONTRAST: auto_contrast(frame, in, out); break;
    case BRIGHTNESS: blend_with_level(frame, in, out, 0, blend_factor(argument)); break;
    case CONTRAST: contrast(frame, in, out, blend_factor(argument)); break;
    case COLOR: color(frame, in, out, blend_factor(argument)); break;
    case SHARPNESS: sharpness(frame, in, out, blend_factor(argument)); break;
    case TRANSLATE_X: shift(frame, in, out, 0, translation(argument)); break;
    case TRANSLATE_Y: shift(frame, in, out, translation(argument), 0); break;
    case CUTOUT: cutout(frame, in, out, argument, step->place); break;
    case CROP: shift(frame, in, out, step->place[0], step->place[1]); break;
    case FLIP: flip(frame, in, out); break;
    default: warp(frame, in, out, step, bilinear);
    }
}

/* All steps of one image. Returns 0, or 2 at an operation that is not known. */
static int follow(const Frame *frame, const Plan *plan, int64_t image, IMAGES) {
    int64_t last = plan->steps - 1;
    while (last >= 0) {
        const Step step = step_of(plan, image, last);
        if (!idle(&step, frame->channels)) break;
        last--;
    }
    if (last < 0) memcpy(out, in, (size_t)(frame->channels * frame->pixels));
    const uint8_t *from = in;
    for (int64_t number = 0, side = 0; number <= last; number++) {
        const Step step = step_of(plan, image, number);
        if (step.operation < 0 || step.operation >= OPERATIONS) return 2;
        if (idle(&step, frame->channels)) continue;
        uint8_t *to = number == last ? out : frame->between[side];
        apply_step(frame, from, to, &step, plan->bilinear);
        from = to;
        side = !side;
    }
    return 0;
}

static void *carve(uint8_t **memory, int64_t bytes) {
    void *piece = *memory;
    *memory += (bytes + 63) / 64 * 64;
    return piece;
}

/* Give the frame its working space, in one piece to be freed; NULL if there is no memory. */
static void *set_up(Frame *frame) {
    const int64_t bytes = frame->channels * frame->pixels, wide = BLOCK + frame->width;
    uint8_t *memory = malloc((size_t)(2 * bytes + 4 * (frame->pixels + 1) + 52 * wide + 64 * 12)), *rest = memory;
    if (memory == NULL) return NULL;
    for (int i = 0; i < 2; i++) frame->between[i] = carve(&rest, bytes);
    frame->packed = carve(&rest, 4 * (frame->pixels + 1));
    frame->missed = carve(&rest, 4 * wide);
    for (int i = 0; i < 4; i++) frame->corner[i] = carve(&rest, 4 * wide);
    for (int i = 0; i < 2; i++) {
        frame->whole[i] = carve(&rest, 8 * wide);
        frame->part[i] = carve(&rest, 8 * wide);
    }
    return memory;
}

/* Follow a plan.
 *
 * images, result: (count, channels, height, width), apart from each other; channels is 1 or 3, sides up to 32767
 * operations:     (count, steps)
 * arguments:      (count, steps)
 * places:         (count, steps, 2), or NULL if no step needs one
 * maps:           (any, 6), affine maps of the rotations
 * map_rows:       (count, steps), for each rotation its row of `maps`
 * fill:           (channels)
 *
 * Returns 0, 1 if there is not enough memory, 2 at an operation that is not known.
 */
int EXPORTED(augment)(const uint8_t *images, uint8_t *result, int64_t count, int64_t channels, int64_t height,
                      int64_t width, const int64_t *operations, const double *arguments, const int64_t *places,
                      int64_t steps, const double *maps, const int32_t *map_rows, const uint8_t *fill,
                      int bilinear) {
    const Plan plan = {operations, arguments, places, steps, maps, map_rows, bilinear};
    Frame frame = {.channels = channels, .height = height, .width = width, .pixels = height * width};
    memcpy(frame.fill, fill, (size_t)channels);
    void *memory = set_up(&frame);
    int problem = memory == NULL;
    const int64_t bytes = channels * frame.pixels;
    for (int64_t n = 0; n < count && !problem; n++)
        problem = follow(&frame, &plan, n, images + n * bytes, result + n * bytes);
    free(memory);
    return problem;
}
