"""Batch gradient jobs: one value and gradient for each sample of a data set, from disk to disk."""

from tapegrad.batch._journal import Failure
from tapegrad.batch._report import Report
from tapegrad.batch._run import run

__all__ = ["Failure", "Report", "run"]
