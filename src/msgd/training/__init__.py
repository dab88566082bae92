"""Training: one loop, one patience rule, snapshots, for all models and backends."""
