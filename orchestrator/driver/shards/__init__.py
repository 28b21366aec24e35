"""``run --shard``: one of several drivers that share a study."""
