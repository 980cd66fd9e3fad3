"""How a tape is stored and run; knows no Tensor (see README.md beside this file)."""
