"""The order of samples: the plan of which rows are read when, and the ledger of consumed samples. Pure numpy."""
