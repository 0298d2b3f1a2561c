"""One file per operation that has fast paths. Each offers one function to the model, its plain twin beside it."""
