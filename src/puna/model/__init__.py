"""Llama 4 as mathematics: ids and tiles in, logits out. One straight line, without a branch on device or cache."""
