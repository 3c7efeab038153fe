"""Papers' own metrics, one file each: read by the referee off a release, shown beside a claim, never scored."""
