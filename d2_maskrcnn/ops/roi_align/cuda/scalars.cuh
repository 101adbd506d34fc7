// Number types of features, without CUDA's headers, which a machine with only the driver may not have.
//
// widen(T) converts to float (double for double) and narrow(COORD, T&) rounds back, for each type T.

struct float16 {
  unsigned short bits;
};
struct bfloat16 {
  unsigned short bits;
};

__device__ inline float widen(float value) { return value; }
__device__ inline double widen(double value) { return value; }
__device__ inline float widen(bfloat16 value) { return __uint_as_float((unsigned)value.bits << 16); }

#ifdef __CUDA_ARCH__
__device__ inline float widen(float16 value) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
}
__device__ inline unsigned short float16_bits(float value) {
  unsigned short result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result) : "f"(value));
  return result;
}
#endif

__device__ inline void narrow(COORD value, float& result) { result = (float)value; }
__device__ inline void narrow(COORD value, double& result) { result = (double)value; }
__device__ inline void narrow(COORD value, float16& result) { result.bits = float16_bits((float)value); }
__device__ inline void narrow(COORD value, bfloat16& result) {
  const unsigned bits = __float_as_uint((float)value);
  const unsigned rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  result.bits = (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : (unsigned short)rounded;
}

// COUNT neighboring channels, read and written in one instruction: 16 bytes, or one channel if alignment or strides require it.
template <typename T, int COUNT>
struct alignas(sizeof(T) * COUNT) Pack {
  T items[COUNT];
};
