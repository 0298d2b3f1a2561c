"""The tests of puna. One file per source file, mirrored; and policy/ (the house), reference/ (plain twins), route/ (end to end)."""
