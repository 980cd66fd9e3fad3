"""Transformations of functions of tensors."""
