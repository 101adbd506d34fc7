// Gradient of ROIAlign over all levels in one launch, without atomics: each feature cell gathers its gradient.
//
// A block computes a tile of cells of one level of one image; each of its warps has a row of the tile, and the lanes of a warp have
// neighboring channels. The block reads the image's boxes in order, lists those of its level that reach its tile and computes their
// bins' weights for the tile's rows and columns; then each warp adds the contributions of these bins to its cells. Every sum is taken
// in the same order on every run, and no memory is needed besides the gradients.

#include "roi_align.cuh"

#define PACK_BYTES 16
#define TILE 8  // cells along each side of a tile; one warp per row
#define THREADS (TILE * WARP)
#define BATCH 8       // boxes whose weights are computed together
#define KEPT_BINS 16  // of a box along an axis whose weights are in shared memory at a time

struct Tile {
  int level, image, y, x;  // y, x: of its first cell
};

__device__ inline Tile locate_tile(const Params& params, int index) {
  Tile tile;
  tile.level = params.num_levels - 1;  // the coarsest first, as its tiles take longest
  while (index < params.levels[tile.level].first_tile) --tile.level;
  const Level& level = params.levels[tile.level];
  const int tiles_down = (level.height + TILE - 1) / TILE;
  const int place = index - level.first_tile;
  tile.image = place / (level.tiles_across * tiles_down);
  tile.y = place / level.tiles_across % tiles_down * TILE;
  tile.x = place % level.tiles_across * TILE;
  return tile;
}

// Whether samples of the box may touch cells from `first` to `first + TILE - 1`; false for a box that is NaN.
__device__ inline bool reaches(const Axis& axis, int bins, int first) {
  const Coord end = axis.start + axis.bin_length * (Coord)bins;
  const Coord low = smaller(axis.start, end), high = axis.start > end ? axis.start : end;
  return low - 2 <= (Coord)(first + TILE) && high + 2 >= (Coord)first;
}

struct Listed {
  int index;
  Box box;
};

// Writes the boxes from `begin` to `begin + THREADS - 1` (before `end`) that reach the tile into `list`, in order; returns their number.
__device__ inline int list_boxes(
    const Params& params, const Tile& tile, int begin, int end, Listed* list, int* warp_counts) {
  const int index = begin + threadIdx.x, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  Listed mine = {index, load_box(params, index < end ? index : begin)};
  const Box& box = mine.box;
  const bool reached = index < end && box.level == tile.level && reaches(box.y, params.bins_y, tile.y) &&
                     reaches(box.x, params.bins_x, tile.x);
  const unsigned votes = __ballot_sync(FULL_MASK, reached);
  if (lane == 0) warp_counts[warp] = __popc(votes);
  __syncthreads();
  int before = __popc(votes & ((1u << lane) - 1)), total = 0;
  for (int i = 0; i < TILE; ++i) {
    if (i < warp) before += warp_counts[i];
    total += warp_counts[i];
  }
  if (reached) list[before] = mine;
  __syncthreads();
  return total;
}

// Weights of KEPT_BINS bins of a box for the rows and the columns of a tile.
struct KeptWeights {
  Coord y[TILE][KEPT_BINS], x[TILE][KEPT_BINS];
};

// Computes, with the whole block, the weights of `count` boxes for their bins from (first_y, first_x) on.
__device__ inline void keep_weights(
    const Params& params, const Tile& tile, const Listed* list, int count, int first_y, int first_x, KeptWeights* kept) {
  const int of_an_axis = TILE * KEPT_BINS;
  for (int i = threadIdx.x; i < count * 2 * of_an_axis; i += THREADS) {
    const int bin = i % KEPT_BINS, cell = i / KEPT_BINS % TILE;
    const bool along_y = i / of_an_axis % 2 == 0;
    const Box& box = list[i / (2 * of_an_axis)].box;
    KeptWeights& target = kept[i / (2 * of_an_axis)];
    Coord weight[1] = {0};
    if (along_y) {
      if (first_y + bin < params.bins_y) add_cell_weights(params, box.y, first_y + bin, tile.y + cell, weight);
      target.y[cell][bin] = weight[0];
    } else {
      if (first_x + bin < params.bins_x) add_cell_weights(params, box.x, first_x + bin, tile.x + cell, weight);
      target.x[cell][bin] = weight[0];
    }
  }
  __syncthreads();
}

// Adds the contributions of some bins of one box to the warp's cells: along y for each column of bins, then along x. `bins` is the first.
template <int COUNT>
__device__ inline void add_bins(
    const Params& params, const KeptWeights& kept, const SCALAR* bins, bool active, Coord (&total)[TILE][COUNT]) {
  const int lane = threadIdx.x % WARP, bin = lane % KEPT_BINS, row_of_tile = threadIdx.x / WARP;
  const unsigned kept_mask = (1u << KEPT_BINS) - 1;
  const unsigned rows = __ballot_sync(FULL_MASK, kept.y[row_of_tile][bin] != 0) & kept_mask;
  if (rows == 0) return;
  bool any = false;
#pragma unroll
  for (int j = 0; j < TILE; ++j) any = any || kept.x[j][bin] != 0;
  unsigned columns = __ballot_sync(FULL_MASK, any) & kept_mask;
  if (!active) return;
  for (; columns != 0; columns &= columns - 1) {
    const int column = __ffs(columns) - 1;
    Coord partial[COUNT] = {};
    for (unsigned rest = rows; rest != 0; rest &= rest - 1) {
      const int row = __ffs(rest) - 1;
      const Coord weight = kept.y[row_of_tile][row];
      const Index place = (Index)(row * params.bins_x + column) * params.channels;
      const Pack<SCALAR, COUNT> pack = *(const Pack<SCALAR, COUNT>*)(bins + place);
#pragma unroll
      for (int c = 0; c < COUNT; ++c) partial[c] += weight * (Coord)widen(pack.items[c]);
    }
#pragma unroll
    for (int j = 0; j < TILE; ++j) {
      const Coord weight = kept.x[j][column];
#pragma unroll
      for (int c = 0; c < COUNT; ++c) total[j][c] += weight * partial[c];
    }
  }
}

// Adds the contributions of the listed boxes to the warp's cells, in the list's order.
template <int COUNT>
__device__ inline void add_boxes(
    const Params& params, const Tile& tile, const Listed* list, int count, int channel, KeptWeights* kept,
    Coord (&total)[TILE][COUNT]) {
  const bool active = channel < params.channels;
  for (int first = 0; first < count; first += BATCH) {
    const int batch = min(count - first, BATCH);
    for (int y = 0; y < params.bins_y; y += KEPT_BINS) {
      for (int x = 0; x < params.bins_x; x += KEPT_BINS) {
        keep_weights(params, tile, list + first, batch, y, x, kept);
        for (int i = 0; i < batch; ++i) {
          const Index bin = ((Index)list[first + i].index * params.bins_y + y) * params.bins_x + x;
          add_bins<COUNT>(params, kept[i], params.bins + bin * params.channels + channel, active, total);
        }
        __syncthreads();  // before the weights are overwritten
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
  __shared__ Listed list[THREADS];
  __shared__ KeptWeights kept[BATCH];
  __shared__ int warp_counts[TILE];
  const Tile tile = locate_tile(params, blockIdx.x);
  const int y = tile.y + threadIdx.x / WARP;
  const int channel = (blockIdx.y * WARP + threadIdx.x % WARP) * COUNT;
  const int end = params.image_end[tile.image];
  Coord total[TILE][COUNT] = {};
  for (int begin = tile.image == 0 ? 0 : params.image_end[tile.image - 1]; begin < end; begin += THREADS) {
    const int count = list_boxes(params, tile, begin, end, list, warp_counts);
    add_boxes<COUNT>(params, tile, list, count, channel, kept, total);
    __syncthreads();  // before the list is overwritten
  }
  if (y < params.levels[tile.level].height && channel < params.channels) store_row<COUNT>(params, tile, y, channel, total);
}

// Channels are a multiple of a pack.
extern "C" __global__ void __launch_bounds__(THREADS) backward_packed(const __grid_constant__ Params params) {
  gather_tile<PACK_BYTES / sizeof(SCALAR)>(params);
}

// Any number of channels.
extern "C" __global__ void __launch_bounds__(THREADS) backward_strided(const __grid_constant__ Params params) {
  gather_tile<1>(params);
}
