"""One draw, shown: a finished sequence replayed, explained as a table, drawn as a picture."""
