"""What a model can do, measured: tasks, and records of their results."""
