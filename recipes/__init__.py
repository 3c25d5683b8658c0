"""The zoo's recipes: data files, read by zoo.catalog.recipe."""
