"""Preparing text for training: raw files in; the documents worth learning from, and a report of what went, out.

`run` holds the stages. `documents` reads, `words` turns a text into numbers, `language` tags it, and each other file is
one reason for which a document goes. Memory does not grow with the corpus: what must be remembered lies in
files (`spill`).
"""
