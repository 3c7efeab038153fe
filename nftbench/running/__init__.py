"""A plan carried out: base models, releases, what owners and attackers are given, the referee's measurements."""
