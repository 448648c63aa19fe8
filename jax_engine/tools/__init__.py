"""Programs that examine and measure the engine; nothing that serves a token."""
