"""The project's own benchmark: model shapes, lengths as real data has them, arms in processes of their own, a table."""
