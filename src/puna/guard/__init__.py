"""Protections on both sides of a model: what a text hides, whether it attacks the prompt, whether code is unsafe."""
