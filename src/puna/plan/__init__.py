"""What a model takes of given machines, before any of it runs: bytes of each rank, best layout, floors, energy."""
