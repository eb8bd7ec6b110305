"""The Grafana dashboard: made by `build`, kept as JSON beside it."""
