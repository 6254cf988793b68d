"""Stand-in for flash_attn, which needs CUDA to build: OpenRLHF 0.11 imports four of its names when it is loaded."""

__version__ = "0.0.0"
