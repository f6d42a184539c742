"""The chemistry pack."""
