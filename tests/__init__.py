"""Tests: a file for each module of the package, and `semantics` for what users may rely on."""
