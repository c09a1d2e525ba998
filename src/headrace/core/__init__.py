"""Everything that decides. Pure: standard library and types/errors/machine only."""
