"""Records become scores, verdicts and ranks. Nothing here trains or writes anything."""
