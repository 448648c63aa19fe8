"""What the server says of itself to machines: OpenAPI and capabilities."""
