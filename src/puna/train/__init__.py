"""Training: documents in, trained weights and records out.

`corpus` reads the sources into documents, `drawings` and `questions` make the ones that nobody wrote, `vocab` learns a
vocabulary from them; the remaining files turn documents into batches, batches into steps and steps into a checkpoint.
Nothing here knows how a model is served.
"""
