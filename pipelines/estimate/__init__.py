"""What a run will take, before it starts: time, cost, memory, storage, and whether its checks pass."""
