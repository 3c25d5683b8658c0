"""Benchmarks of the zoo's own, which need no download: small counterparts of published ones, and what draws them."""
