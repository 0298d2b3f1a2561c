"""Smaller numbers for the same weights: how they are chosen, where they go, and what they cost in quality."""
