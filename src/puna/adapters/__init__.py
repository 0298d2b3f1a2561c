"""Low-rank adapters over a model whose weights stay as they are: made, trained, merged, and several served at once."""
