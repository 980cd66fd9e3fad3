"""Benchmarks: tapegrad beside PyTorch, and figures of the engine alone."""
