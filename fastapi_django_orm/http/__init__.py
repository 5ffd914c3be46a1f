"""What an application answers over HTTP: published repositories, /refresh/ and /health/."""
