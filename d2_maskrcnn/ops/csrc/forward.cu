// ROIAlign over all levels of a feature pyramid in one launch.
//
// A warp computes one bin of one box, its lanes side by side along the channels. First the lanes work out the bin's taps along each
// axis, a tap to a lane: cells with their weights, in which samples that fall on the same cell are merged. Then they go through the
// product of the two lists together, each lane for its own channels.

#include "roi_align.cuh"

#define PACK_BYTES 16

struct Tap {
  int cell;
  Coord weight;
};

// How a bin's samples along an axis become taps: all cells from the first sample's to the last one's, or, where samples are so far
// apart that these are more, the two cells of each sample.
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
  tap.cell = tap.cell < axis.size ? tap.cell : axis.size - 1;  // beyond the border, with weight zero
  return tap;
}

// One lane's channels of a bin: the sum over all pairs of a tap along y and a tap along x.
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
#pragma unroll 4
        for (int j = 0; j < count_x; ++j) {
          const SCALAR* cell = row + __shfl_sync(FULL_MASK, mine_x.cell, j) * level.column_stride;
          const Coord weight = weight_y * __shfl_sync(FULL_MASK, mine_x.weight, j);
          if (!active) continue;
          const Pack<SCALAR, COUNT> pack = *(const Pack<SCALAR, COUNT>*)cell;
#pragma unroll
          for (int c = 0; c < COUNT; ++c) total[c] += weight * (Coord)widen(pack.items[c]);
        }
      }
    }
  }
}

template <int COUNT>
__device__ inline void pool_bin(const Params& params, Index bin) {
  const int bins_per_box = params.bins_y * params.bins_x;
  const int index = (int)(bin / bins_per_box), place = (int)(bin % bins_per_box);
  const Box box = load_box(params, index);
  const Level& level = params.levels[box.level];
  const SCALAR* image = level.data + image_of(params, index) * level.image_stride;
  for (int base = 0; base < params.channels; base += WARP * COUNT) {
    const int channel = base + (threadIdx.x % WARP) * COUNT;
    const bool active = channel < params.channels;
    Coord total[COUNT] = {};
    sum_taps<COUNT>(
        params, box, place / params.bins_x, place % params.bins_x, image + channel * level.channel_stride, active, total);
    if (!active) continue;
    Pack<SCALAR, COUNT> pack;
#pragma unroll
    for (int c = 0; c < COUNT; ++c) narrow(total[c], pack.items[c]);
    *(Pack<SCALAR, COUNT>*)(params.bins + bin * params.channels + channel) = pack;
  }
}

template <int COUNT>
__device__ inline void pool_all(const Params& params) {
  const Index warp = (Index)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
  if (warp < (Index)params.num_boxes * params.bins_y * params.bins_x) pool_bin<COUNT>(params, warp);
}

// Channels-last features whose channels are a multiple of a pack.
extern "C" __global__ void __launch_bounds__(128) forward_packed(const __grid_constant__ Params params) {
  pool_all<PACK_BYTES / sizeof(SCALAR)>(params);
}

// Features with any strides: right for NCHW memory too, but slower.
extern "C" __global__ void __launch_bounds__(128) forward_strided(const __grid_constant__ Params params) {
  pool_all<1>(params);
}
