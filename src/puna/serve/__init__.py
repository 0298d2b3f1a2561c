"""The HTTP face: OpenAI's API over one model that answers everybody together.

Read in this order: `schema` (what travels), `convert` (requests to prompts and options), `worker` (the one thread that
runs the model), `stream` (pieces to chunks and whole answers), `metrics`, `app` (routes, and what a server
owes its host).
"""
