"""How tensors print, against PyTorch's own output."""
