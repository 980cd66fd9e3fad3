"""Random programs, run with PyTorch and with tapegrad; see `python -m tests.programs --help`."""
