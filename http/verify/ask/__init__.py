"""How a server is asked, and what is kept of its answers."""
