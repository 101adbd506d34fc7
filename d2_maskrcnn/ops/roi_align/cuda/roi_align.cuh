// Code of both the forward and the backward kernel: number types, launch parameters and the geometry of boxes.
//
// Compiled by NVRTC without CUDA's headers. The macros SCALAR (a type of scalars.cuh), COORD (float or double) and PARAMS_SIZE are
// compiler options. Coordinates, weights and sums are COORD whatever the features are.

#include "scalars.cuh"

typedef COORD Coord;
typedef long long Index;  // element offsets: feature maps and results may have more than 2^31 elements

#define MAX_LEVELS 16
#define MAX_IMAGES 64
#define WARP 32
#define FULL_MASK 0xffffffffu
#define FEW_SAMPLES 8

// One feature level, or its gradient, in elements of SCALAR.
struct Level {
  SCALAR* data;
  Index image_stride, channel_stride, row_stride, column_stride;
  Coord scale;      // cells per input pixel
  Coord threshold;  // smallest sqrt(area) in input pixels of a box that belongs to this level or a coarser one
  int height, width;
  int first_tile, tiles_across;  // backward: index of the level's first tile, tiles in a row of tiles
};

struct Params {
  Level levels[MAX_LEVELS];
  int image_end[MAX_IMAGES];  // boxes of image i: from image_end[i - 1] (0 for the first) to image_end[i]
  const Coord* boxes;         // (boxes, 4) XYXY in input pixels
  SCALAR* bins;               // (boxes, bins_y, bins_x, channels): pooled, or its gradient
  Coord offset;               // subtracted from scaled coordinates
  Coord least_length;         // of a box, in cells; negative for no limit
  int num_levels, num_images, num_boxes, channels;
  int bins_y, bins_x, sampling_ratio, num_tiles;
};
static_assert(sizeof(Params) == PARAMS_SIZE, "the launcher packs the parameters differently");

// Products and sums that the compiler must not fuse: rounding differently can change the number of adaptive samples, which must be the
// same in every backend.
__device__ inline float product(float a, float b) { return __fmul_rn(a, b); }
__device__ inline float sum(float a, float b) { return __fadd_rn(a, b); }
__device__ inline double product(double a, double b) { return __dmul_rn(a, b); }
__device__ inline double sum(double a, double b) { return __dadd_rn(a, b); }

__device__ inline Coord larger(Coord a, Coord b) { return a > b ? a : b; }    // b if a is NaN
__device__ inline Coord smaller(Coord a, Coord b) { return a < b ? a : b; }

// A box along one axis of its level, in cells; the center of cell i is at i.
struct Axis {
  Coord start, bin_length, samples;  // samples: in a bin, a whole number
  Coord share;                       // 1 / samples: a bin is the mean of its samples
  int size;                          // cells of the level
};

__device__ inline Axis make_axis(const Params& params, Coord first, Coord last, Coord scale, int size, int bins) {
  Axis axis;
  axis.start = sum(product(first, scale), -params.offset);
  Coord length = sum(sum(product(last, scale), -params.offset), -axis.start);
  if (params.least_length >= 0) length = length < params.least_length ? params.least_length : length;
  axis.bin_length = length / (Coord)bins;
  axis.samples = (Coord)params.sampling_ratio;
  if (params.sampling_ratio == 0) {
    axis.samples = larger(ceil(axis.bin_length), (Coord)0);
    if (!isfinite(axis.samples)) axis.samples = 0;
  }
  axis.share = 1 / larger(axis.samples, (Coord)1);
  axis.size = size;
  return axis;
}

struct Box {
  Axis y, x;
  int level;
};

// Level by equation 1 of the FPN paper, from comparing the box's size with each level's threshold.
__device__ inline int level_of(const Params& params, const Coord* box) {
  const Coord size = sqrt(product(sum(box[2], -box[0]), sum(box[3], -box[1])));
  int level = 0;
  for (int i = 1; i < params.num_levels; ++i) level += size >= params.levels[i].threshold;
  return level;
}

__device__ inline Box load_box(const Params& params, int index) {
  Coord edges[4];
  for (int i = 0; i < 4; ++i) edges[i] = params.boxes[4 * (Index)index + i];
  Box box;
  box.level = level_of(params, edges);
  const Level& level = params.levels[box.level];
  box.y = make_axis(params, edges[1], edges[3], level.scale, level.height, params.bins_y);
  box.x = make_axis(params, edges[0], edges[2], level.scale, level.width, params.bins_x);
  return box;
}

__device__ inline int image_of(const Params& params, int box) {
  int image = 0;
  while (image < params.num_images - 1 && box >= params.image_end[image]) ++image;
  return image;
}

__device__ inline Coord bin_start(const Axis& axis, int bin) { return sum(axis.start, product((Coord)bin, axis.bin_length)); }

// A bilinear sample along one axis: cell `low` with weight 1 - high_weight, cell low + 1 with high_weight.
struct Sample {
  int low;
  Coord high_weight;
  bool inside;
};

__device__ inline Sample take_sample(const Axis& axis, Coord start, Coord i) {
  Coord position = sum(start, product(sum(i, (Coord)0.5), axis.bin_length) / axis.samples);
  Sample sample;
  sample.inside = position >= -1 && position <= axis.size;  // false if it is NaN
  position = smaller(larger(position, 0), (Coord)(axis.size - 1));
  const Coord low = floor(position);
  sample.low = (int)low;
  sample.high_weight = position - low;
  return sample;
}

// First index and number of a bin's samples that can touch cells from `first` to `last`. If the bin has few samples, all of them; of
// many, which occur only with a box far larger than the map or a large sampling ratio, distant ones are skipped.
struct SampleRange {
  Coord begin;
  int count;
};

__device__ inline SampleRange samples_near(const Params& params, const Axis& axis, Coord start, int first, int last) {
  SampleRange range = {0, (int)smaller(axis.samples, 1 << 24)};
  if (axis.samples <= FEW_SAMPLES || axis.bin_length <= 0) return range;
  const Coord step = axis.bin_length / axis.samples;
  range.begin = larger(floor(((Coord)(first - 1) - start) / step) - 2, 0);
  const Coord end = smaller(floor(((Coord)(last + 1) - start) / step) + 3, axis.samples);
  // Adaptive samples are more than half a cell apart, so few are near. If coordinates are so large that they have no fraction, `end`
  // is meaningless and this limits the work.
  const Coord most = params.sampling_ratio > 0 ? (Coord)params.sampling_ratio : (Coord)(2 * (last - first) + 16);
  range.count = (int)larger(smaller(end - range.begin, most), 0);
  return range;
}

// Adds the weight of cell first + i in a bin to weights[i].
template <int CELLS>
__device__ inline void add_cell_weights(const Params& params, const Axis& axis, int bin, int first, Coord (&weights)[CELLS]) {
  const Coord start = bin_start(axis, bin);
  const SampleRange range = samples_near(params, axis, start, first, first + CELLS - 1);
  for (int k = 0; k < range.count; ++k) {
    const Coord i = range.begin + (Coord)k;
    if (i >= axis.samples) break;
    const Sample sample = take_sample(axis, start, i);
    if (!sample.inside) continue;
    const Coord high = sample.high_weight * axis.share, low = (1 - sample.high_weight) * axis.share;
#pragma unroll
    for (int j = 0; j < CELLS; ++j) {
      if (sample.low == first + j) weights[j] += low;
      if (sample.low + 1 == first + j) weights[j] += high;
    }
  }
}
