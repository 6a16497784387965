"""What the agent tells: status, metrics, logs, and the HTTP server they are read from."""
