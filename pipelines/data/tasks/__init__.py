"""Work of Ray Data tasks: they read shards and return blocks of crops, with the time of each stage."""
