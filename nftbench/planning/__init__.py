"""A suite becomes cells with keys; plugins are found by name. Nothing here runs anything."""
