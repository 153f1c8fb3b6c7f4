"""Speed and memory against the usual pipeline (transformers and TRL): `python -m benchmarks.learn --help`."""
