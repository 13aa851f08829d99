"""What a run leaves: maps, fields, sidecars, the quality page, and their verification."""
