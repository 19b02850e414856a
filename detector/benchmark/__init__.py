"""Benchmarks: workloads in processes of their own, in alternating rounds, and what their times say."""
