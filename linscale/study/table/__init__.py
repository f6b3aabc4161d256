"""Laws from a table of runs, one row a point: what `linscale fit` does."""
