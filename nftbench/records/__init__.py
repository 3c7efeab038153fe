"""What is written down: a cell, its record, and the folders in which records and models are kept."""
