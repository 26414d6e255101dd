"""Side-by-side measurements that a user can run; each prints a table and can write JSON."""
