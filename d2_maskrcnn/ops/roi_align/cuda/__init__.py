"""CUDA kernels of ROIAlign, compiled with NVRTC and checked against the portable path at first use."""
