"""Programs that examine and measure the engine; nothing that serves a token.

bench     one table of measured ratios: its groups (engine_rows, server_rows, peer_rows), the workbench they share,
          bare programs, ratios
peers     servers not written here, started on the bench's model; gguf, the form in which llama.cpp reads it
doctor    what `gnomon doctor` does: environment, parity, same_bytes, speed, of an examined model; lines
measure   sides in turn, the machine's limits, a model of random weights
clients   who asks for completions, of an engine or over HTTP
"""
