"""The tests of puna, one file per source file; and policy (the house), reference (plain twins), route (end to end)."""
