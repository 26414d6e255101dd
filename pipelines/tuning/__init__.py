"""Studies: many runs of one recipe, whose settings a searcher proposes and a scheduler stops early."""
