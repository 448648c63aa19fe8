"""GET /: the page that shows the sampler at work."""
