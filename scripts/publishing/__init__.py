"""The output of a run: maps, fields, sidecars, the quality page, and their verification."""
