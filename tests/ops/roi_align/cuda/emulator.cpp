// Runs a CUDA kernel on the host, for tests on machines without a GPU: the kernel's own source, compiled as C++.
//
// The threads of a block are fibers that take turns. A fiber runs until it has to wait for others (__syncthreads, or an exchange
// within its warp), so synchronization works as on a GPU. Blocks run one after the other. KERNEL_FILE names the source.

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#define __device__
#define __global__
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(threads)

struct Dim3 {
  unsigned x, y, z;
};
static Dim3 threadIdx, blockIdx, blockDim;

static const int WARP_LANES = 32;
static const size_t STACK_BYTES = 256 << 10;

struct Fiber {
  ucontext_t first;
  jmp_buf place;
  bool started = false, done = false;
  std::unique_ptr<char[]> stack{new char[STACK_BYTES]};
};
struct Barrier {
  int arrived = 0;
  unsigned long round = 0;
};

static std::vector<Fiber> fibers;
static Barrier block_barrier;
static std::vector<Barrier> warp_barriers;
static std::vector<unsigned long long> exchanged;  // one slot per thread
static jmp_buf scheduler;
static int current;
static unsigned long progress;  // grows whenever a thread ends or a barrier opens
static void (*body)(const void*);
static const void* arguments;

static void yield() {
  if (_setjmp(fibers[current].place) == 0) _longjmp(scheduler, 1);
}

static void wait_for(Barrier& barrier, int count) {
  const unsigned long round = barrier.round;
  if (++barrier.arrived == count) {
    barrier.arrived = 0;
    ++barrier.round;
    ++progress;
  }
  while (barrier.round == round) yield();
}

static void __syncthreads() { wait_for(block_barrier, blockDim.x); }

template <typename T>
static T __shfl_sync(unsigned, T value, int lane) {
  const int warp = current / WARP_LANES;
  std::memcpy(&exchanged[current], &value, sizeof(T));
  wait_for(warp_barriers[warp], WARP_LANES);
  std::memcpy(&value, &exchanged[warp * WARP_LANES + lane], sizeof(T));
  wait_for(warp_barriers[warp], WARP_LANES);
  return value;
}

static unsigned __ballot_sync(unsigned, bool vote) {
  unsigned votes = 0;
  for (int lane = 0; lane < WARP_LANES; ++lane) votes |= (unsigned)__shfl_sync(0, vote, lane) << lane;
  return votes;
}

static int __popc(unsigned bits) { return __builtin_popcount(bits); }
static int __ffs(unsigned bits) { return __builtin_ffs(bits); }
static int min(int a, int b) { return a < b ? a : b; }
static float __fmul_rn(float a, float b) { return a * b; }
static float __fadd_rn(float a, float b) { return a + b; }
static double __dmul_rn(double a, double b) { return a * b; }
static double __dadd_rn(double a, double b) { return a + b; }
static float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
static unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
using std::ceil;
using std::floor;
using std::isfinite;
using std::sqrt;

// IEEE half precision; the GPU has instructions for these two.
struct float16;
static float widen_bits(unsigned short bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const float sign = bits & 0x8000 ? -1.0f : 1.0f;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24));
}
static unsigned short float16_bits(float value) {
  const unsigned short sign = std::signbit(value) ? 0x8000 : 0;
  const float size = std::fabs(value);
  if (std::isnan(value)) return 0x7fff;
  if (size >= 65520.0f) return sign | 0x7c00;
  if (size < 6.103515625e-05f) return sign | (unsigned short)std::nearbyint(size * 16777216.0f);
  int exponent;
  const float fraction = std::frexp(size, &exponent);  // in [0.5, 1)
  return sign | (unsigned short)(((exponent + 13) << 10) + (int)std::nearbyint(fraction * 2048.0f));
}
static float widen(float16 value);

#include KERNEL_FILE

static float widen(float16 value) { return widen_bits(value.bits); }

static void start_fiber() {
  body(arguments);
  fibers[current].done = true;
  _longjmp(scheduler, 1);
}

// Lets fiber `index` run until it waits or ends.
static void resume(int index) {
  current = index;
  threadIdx = {(unsigned)index, 0, 0};
  Fiber& fiber = fibers[index];
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.place, 1);
  fiber.started = true;
  setcontext(&fiber.first);
}

// Returns false in a deadlock.
static bool run_block() {
  for (Fiber& fiber : fibers) {
    fiber.started = fiber.done = false;
    getcontext(&fiber.first);
    fiber.first.uc_stack.ss_sp = fiber.stack.get();
    fiber.first.uc_stack.ss_size = STACK_BYTES;
    fiber.first.uc_link = nullptr;
    makecontext(&fiber.first, start_fiber, 0);
  }
  for (size_t left = fibers.size(); left > 0;) {
    const unsigned long before = progress;
    for (size_t i = 0; i < fibers.size(); ++i) {
      if (fibers[i].done) continue;
      resume((int)i);
      if (!fibers[i].done) continue;
      --left;
      ++progress;
    }
    if (progress == before) return false;
  }
  return true;
}

static void (*kernel)(Params);
static void call_kernel(const void* params) { kernel(*(const Params*)params); }

// One launch of `function`, whose argument is `params`; returns 0, or 1 in a deadlock.
extern "C" int emulate(void (*function)(Params), unsigned blocks_x, unsigned blocks_y, unsigned threads, const Params* params) {
  kernel = function;
  body = call_kernel;
  arguments = params;
  blockDim = {threads, 1, 1};
  fibers = std::vector<Fiber>(threads);
  warp_barriers.assign(threads / WARP_LANES, Barrier());
  block_barrier = Barrier();
  exchanged.assign(threads, 0);
  for (unsigned y = 0; y < blocks_y; ++y) {
    for (unsigned x = 0; x < blocks_x; ++x) {
      blockIdx = {x, y, 0};
      if (!run_block()) return 1;
    }
  }
  return 0;
}
