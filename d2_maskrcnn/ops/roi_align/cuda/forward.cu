// ROIAlign over all levels of a feature pyramid in one launch.
//
// A block computes some bins of one box. First its threads compute the taps of the box's bins along each axis: cells with weights, with
// samples of the same cell merged. Then each warp computes one bin after the other as the sum over all pairs of a tap along y and a tap
// along x; its lanes have neighboring channels. Bins with many taps, which occur only with a large sampling ratio or a box far larger
// than its level's canonical size, and boxes with many bins along an axis have their taps recomputed in registers instead.

#include "roi_align.cuh"

#define PACK_BYTES 16
#define FORWARD_WARPS 8
#define BINS_PER_BLOCK 32
#define KEPT_BINS 64  // along both axes together
#define KEPT_TAPS 8   // of a bin along one axis

struct Tap {
  int cell;
  Coord weight;
};

// How a bin's samples along an axis become taps: all cells from the first sample to the last one, or, if samples are so far apart that
// these are more, the two cells of each sample.
struct TapList {
  int first, count;
  bool by_sample;
};

__device__ inline TapList list_taps(const Axis& axis, int bin) {
  TapList list = {0, 0, false};
  if (axis.samples < 1) return list;
  const Coord start = bin_start(axis, bin);
  const int a = take_sample(axis, start, 0).low, b = take_sample(axis, start, axis.samples - 1).low;
  const int span = (a < b ? b - a : a - b) + 2;
  list.first = a < b ? a : b;
  list.by_sample = (Coord)span > 2 * axis.samples;
  list.count = list.by_sample ? 2 * (int)axis.samples : span;
  return list;
}

__device__ inline Tap make_tap(const Params& params, const Axis& axis, int bin, const TapList& list, int index) {
  Tap tap = {0, 0};
  if (index >= list.count) return tap;
  if (list.by_sample) {
    const Sample sample = take_sample(axis, bin_start(axis, bin), (Coord)(index / 2));
    tap.cell = sample.low + index % 2;
    if (sample.inside) tap.weight = (index % 2 ? sample.high_weight : 1 - sample.high_weight) * axis.share;
  } else {
    Coord weight[1] = {0};
    tap.cell = list.first + index;
    add_cell_weights(params, axis, bin, tap.cell, weight);
    tap.weight = weight[0];
  }
  tap.cell = tap.cell < axis.size ? tap.cell : axis.size - 1;  // outside the border, with weight 0
  return tap;
}

// Taps of a box's bins along both axes in shared memory, those along y first.
struct alignas(16) KeptTap {
  Index offset;  // of the cell's row, or of the cell in its row, in elements
  Coord weight;
};
struct KeptTaps {
  KeptTap taps[KEPT_BINS][KEPT_TAPS];
  int counts[KEPT_BINS];
  int complete;  // whether the taps of every bin fit
};

__device__ inline void keep_taps(const Params& params, const Box& box, KeptTaps& kept) {
  const Level& level = params.levels[box.level];
  const int num_bins = params.bins_y + params.bins_x;
  const int num_taps = num_bins <= KEPT_BINS ? num_bins * KEPT_TAPS : 0;
  if (threadIdx.x == 0) kept.complete = num_taps > 0;
  __syncthreads();
  for (int i = threadIdx.x; i < num_taps; i += FORWARD_WARPS * WARP) {
    const int place = i / KEPT_TAPS, index = i % KEPT_TAPS;
    const bool along_y = place < params.bins_y;
    const Axis& axis = along_y ? box.y : box.x;
    const int bin = along_y ? place : place - params.bins_y;
    const TapList list = list_taps(axis, bin);
    if (list.count > KEPT_TAPS) kept.complete = 0;  // every thread that writes it writes the same
    const Tap tap = make_tap(params, axis, bin, list, index);
    kept.taps[place][index].offset = tap.cell * (along_y ? level.row_stride : level.column_stride);
    kept.taps[place][index].weight = tap.weight;
    kept.counts[place] = list.count;
  }
  __syncthreads();
}

template <int COUNT>
__device__ inline void add_pack(const SCALAR* cell, Coord weight, Coord (&total)[COUNT]) {
  const Pack<SCALAR, COUNT> pack = *(const Pack<SCALAR, COUNT>*)cell;
#pragma unroll
  for (int c = 0; c < COUNT; ++c) total[c] += weight * (Coord)widen(pack.items[c]);
}

// Sums one lane's channels of a bin whose taps are in shared memory.
template <int COUNT>
__device__ inline void sum_kept_taps(
    const Params& params, const KeptTaps& kept, int bin_y, int bin_x, const SCALAR* map, Coord (&total)[COUNT]) {
  const int place_x = params.bins_y + bin_x, count_x = kept.counts[place_x];
  for (int i = 0; i < kept.counts[bin_y]; ++i) {
    const KeptTap along_y = kept.taps[bin_y][i];
    const SCALAR* row = map + along_y.offset;
#pragma unroll 4
    for (int j = 0; j < count_x; ++j) {
      const KeptTap along_x = kept.taps[place_x][j];
      add_pack<COUNT>(row + along_x.offset, along_y.weight * along_x.weight, total);
    }
  }
}

// The same for a bin with any number of taps: each lane computes one tap and shares it with the others.
template <int COUNT>
__device__ inline void sum_taps(
    const Params& params, const Box& box, int bin_y, int bin_x, const SCALAR* map, bool active, Coord (&total)[COUNT]) {
  const Level& level = params.levels[box.level];
  const int lane = threadIdx.x % WARP;
  const TapList list_y = list_taps(box.y, bin_y), list_x = list_taps(box.x, bin_x);
  for (int base_y = 0; base_y < list_y.count; base_y += WARP) {
    const Tap mine_y = make_tap(params, box.y, bin_y, list_y, base_y + lane);
    const int count_y = min(list_y.count - base_y, WARP);
    for (int base_x = 0; base_x < list_x.count; base_x += WARP) {
      const Tap mine_x = make_tap(params, box.x, bin_x, list_x, base_x + lane);
      const int count_x = min(list_x.count - base_x, WARP);
      for (int i = 0; i < count_y; ++i) {
        const SCALAR* row = map + __shfl_sync(FULL_MASK, mine_y.cell, i) * level.row_stride;
        const Coord weight_y = __shfl_sync(FULL_MASK, mine_y.weight, i);
        for (int j = 0; j < count_x; ++j) {
          const SCALAR* cell = row + __shfl_sync(FULL_MASK, mine_x.cell, j) * level.column_stride;
          const Coord weight = weight_y * __shfl_sync(FULL_MASK, mine_x.weight, j);
          if (active) add_pack<COUNT>(cell, weight, total);
        }
      }
    }
  }
}

// Computes all channels of one bin, as many at a time as a warp has.
template <int COUNT>
__device__ inline void pool_bin(
    const Params& params, const Box& box, const KeptTaps& kept, int bin_y, int bin_x, const SCALAR* image, SCALAR* result) {
  const Level& level = params.levels[box.level];
  for (int base = 0; base < params.channels; base += WARP * COUNT) {
    const int channel = base + (threadIdx.x % WARP) * COUNT;
    const bool active = channel < params.channels;
    const SCALAR* map = image + channel * level.channel_stride;
    Coord total[COUNT] = {};
    if (!kept.complete) {
      sum_taps<COUNT>(params, box, bin_y, bin_x, map, active, total);
    } else if (active) {
      sum_kept_taps<COUNT>(params, kept, bin_y, bin_x, map, total);
    }
    if (!active) continue;
    Pack<SCALAR, COUNT> pack;
#pragma unroll
    for (int c = 0; c < COUNT; ++c) narrow(total[c], pack.items[c]);
    *(Pack<SCALAR, COUNT>*)(result + channel) = pack;
  }
}

template <int COUNT>
__device__ inline void pool_box(const Params& params) {
  __shared__ KeptTaps kept;
  const int index = blockIdx.x, bins_per_box = params.bins_y * params.bins_x;
  const Box box = load_box(params, index);
  keep_taps(params, box, kept);
  const Level& level = params.levels[box.level];
  const SCALAR* image = level.data + image_of(params, index) * level.image_stride;
  const int end = min((int)(blockIdx.y + 1) * BINS_PER_BLOCK, bins_per_box);
  for (int bin = blockIdx.y * BINS_PER_BLOCK + threadIdx.x / WARP; bin < end; bin += FORWARD_WARPS) {
    SCALAR* result = params.bins + ((Index)index * bins_per_box + bin) * params.channels;
    pool_bin<COUNT>(params, box, kept, bin / params.bins_x, bin % params.bins_x, image, result);
  }
}

// Channels-last features whose channels are a multiple of a pack.
extern "C" __global__ void __launch_bounds__(FORWARD_WARPS * WARP) forward_packed(const __grid_constant__ Params params) {
  pool_box<PACK_BYTES / sizeof(SCALAR)>(params);
}

// Features with any strides, such as NCHW memory; slower.
extern "C" __global__ void __launch_bounds__(FORWARD_WARPS * WARP) forward_strided(const __grid_constant__ Params params) {
  pool_box<1>(params);
}
