"""CUDA kernels of ROIAlign, compiled with NVRTC at first use."""
