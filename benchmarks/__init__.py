"""Measurements that can be re-run; each prints ratios from one process, with their spread."""
