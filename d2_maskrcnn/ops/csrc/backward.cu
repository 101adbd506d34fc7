// Gradient of ROIAlign over all levels in one launch, without atomics: each feature cell gathers what it is owed.
//
// A block owns a tile of cells of one level of one image, each of its warps a row of the tile, its lanes side by side along the
// channels. The block goes through the image's boxes in order, keeps those of its level that reach its tile, and each warp adds what
// the bins of such a box owe to the warp's cells. So every sum is taken in one order, whatever runs when, in memory of nothing but the
// gradients.

#include "roi_align.cuh"

#define PACK_BYTES 16
#define TILE 8  // cells along each side of a tile; a warp for each row
#define THREADS (TILE * WARP)

struct Tile {
  int level, image, y, x;  // y, x: of its first cell
};

__device__ inline Tile locate_tile(const Params& params, int index) {
  Tile tile;
  tile.level = params.num_levels - 1;  // the coarsest first: they take longest
  while (index < params.levels[tile.level].first_tile) --tile.level;
  const Level& level = params.levels[tile.level];
  const int tiles_down = (level.height + TILE - 1) / TILE;
  const int place = index - level.first_tile;
  tile.image = place / (level.tiles_across * tiles_down);
  tile.y = place / level.tiles_across % tiles_down * TILE;
  tile.x = place % level.tiles_across * TILE;
  return tile;
}

// Whether samples of the box may touch cells from `first` to `first + TILE - 1`; false where the box is not a number.
__device__ inline bool reaches(const Axis& axis, int bins, int first) {
  const Coord end = axis.start + axis.bin_length * (Coord)bins;
  const Coord low = smaller(axis.start, end), high = axis.start > end ? axis.start : end;
  return low - 2 <= (Coord)(first + TILE) && high + 2 >= (Coord)first;
}

// Puts the boxes among `begin` .. `begin + THREADS - 1` (before `end`) that reach the tile into `list`, in order; returns how many.
__device__ inline int list_boxes(const Params& params, const Tile& tile, int begin, int end, int* list, int* warp_counts) {
  const int index = begin + threadIdx.x, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  bool found = false;
  if (index < end) {
    const Box box = load_box(params, index);
    found = box.level == tile.level && reaches(box.y, params.bins_y, tile.y) && reaches(box.x, params.bins_x, tile.x);
  }
  const unsigned votes = __ballot_sync(FULL_MASK, found);
  if (lane == 0) warp_counts[warp] = __popc(votes);
  __syncthreads();
  int before = __popc(votes & ((1u << lane) - 1)), total = 0;
  for (int i = 0; i < TILE; ++i) {
    if (i < warp) before += warp_counts[i];
    total += warp_counts[i];
  }
  if (found) list[before] = index;
  __syncthreads();
  return total;
}

// Adds what one box owes to the warp's cells: first along y for each column of bins, then along x.
template <int COUNT>
__device__ inline void add_box(
    const Params& params, const Box& box, int index, int y, int x, int channel, bool active, Coord (&total)[TILE][COUNT]) {
  const int lane = threadIdx.x % WARP;
  const SCALAR* bins = params.bins + (Index)index * params.bins_y * params.bins_x * params.channels + channel;
  for (int base_y = 0; base_y < params.bins_y; base_y += WARP) {
    Coord mine_y[1] = {0};  // of bin base_y + lane for the warp's row
    if (base_y + lane < params.bins_y) add_cell_weights(params, box.y, base_y + lane, y, mine_y);
    const unsigned rows = __ballot_sync(FULL_MASK, mine_y[0] != 0);
    if (rows == 0) continue;
    for (int base_x = 0; base_x < params.bins_x; base_x += WARP) {
      Coord mine_x[TILE] = {};  // of bin base_x + lane for each of the warp's cells
      if (base_x + lane < params.bins_x) add_cell_weights(params, box.x, base_x + lane, x, mine_x);
      bool any = false;
#pragma unroll
      for (int j = 0; j < TILE; ++j) any = any || mine_x[j] != 0;
      for (unsigned columns = __ballot_sync(FULL_MASK, any); columns != 0; columns &= columns - 1) {
        const int column = __ffs(columns) - 1;
        Coord owed[COUNT] = {};
        for (unsigned rest = rows; rest != 0; rest &= rest - 1) {
          const int row = __ffs(rest) - 1;
          const Coord weight = __shfl_sync(FULL_MASK, mine_y[0], row);
          if (!active) continue;
          const Index bin = (Index)(base_y + row) * params.bins_x + base_x + column;
          const Pack<SCALAR, COUNT> pack = *(const Pack<SCALAR, COUNT>*)(bins + bin * params.channels);
#pragma unroll
          for (int c = 0; c < COUNT; ++c) owed[c] += weight * (Coord)widen(pack.items[c]);
        }
#pragma unroll
        for (int j = 0; j < TILE; ++j) {
          const Coord weight = __shfl_sync(FULL_MASK, mine_x[j], column);
#pragma unroll
          for (int c = 0; c < COUNT; ++c) total[j][c] += weight * owed[c];
        }
      }
    }
  }
}

template <int COUNT>
__device__ inline void store_row(
    const Params& params, const Tile& tile, int y, int channel, const Coord (&total)[TILE][COUNT]) {
  const Level& level = params.levels[tile.level];
  SCALAR* row = level.data + tile.image * level.image_stride + y * level.row_stride + channel * level.channel_stride;
#pragma unroll
  for (int j = 0; j < TILE; ++j) {
    if (tile.x + j >= level.width) break;
    Pack<SCALAR, COUNT> pack;
#pragma unroll
    for (int c = 0; c < COUNT; ++c) narrow(total[j][c], pack.items[c]);
    *(Pack<SCALAR, COUNT>*)(row + (tile.x + j) * level.column_stride) = pack;
  }
}

template <int COUNT>
__device__ inline void gather_tile(const Params& params) {
  __shared__ int list[THREADS];
  __shared__ int warp_counts[TILE];
  const Tile tile = locate_tile(params, blockIdx.x);
  const int y = tile.y + threadIdx.x / WARP;
  const int channel = (blockIdx.y * WARP + threadIdx.x % WARP) * COUNT;
  const bool active = channel < params.channels;
  const bool row_exists = y < params.levels[tile.level].height;
  const int end = params.image_end[tile.image];
  Coord total[TILE][COUNT] = {};
  for (int begin = tile.image == 0 ? 0 : params.image_end[tile.image - 1]; begin < end; begin += THREADS) {
    const int count = list_boxes(params, tile, begin, end, list, warp_counts);
    for (int i = 0; row_exists && i < count; ++i) {
      add_box<COUNT>(params, load_box(params, list[i]), list[i], y, tile.x, channel, active, total);
    }
    __syncthreads();  // before the list is written again
  }
  if (row_exists && active) store_row<COUNT>(params, tile, y, channel, total);
}

// Channels are a multiple of a pack.
extern "C" __global__ void __launch_bounds__(THREADS) backward_packed(const __grid_constant__ Params params) {
  gather_tile<PACK_BYTES / sizeof(SCALAR)>(params);
}

// Any number of channels.
extern "C" __global__ void __launch_bounds__(THREADS) backward_strided(const __grid_constant__ Params params) {
  gather_tile<1>(params);
}
