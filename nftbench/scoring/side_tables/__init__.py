"""Tables beside the ranking, one file each, for claims and findings that it does not rank."""
