"""The chunking of a call in virtual time: `python -m benchmarks.simulate`."""
