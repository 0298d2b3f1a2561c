"""A run in a browser, while it trains and afterwards."""
