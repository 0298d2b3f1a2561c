"""Messages and pictures become the ids and tiles that a model reads; ids that it writes become text and messages."""
