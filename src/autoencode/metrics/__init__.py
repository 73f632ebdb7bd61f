"""Measures of images, codes, scores and rankings: pure functions of tensors and arrays."""
