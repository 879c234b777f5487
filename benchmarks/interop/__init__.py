"""The tools themselves on our files: `make interop`."""
