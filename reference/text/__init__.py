"""Between text and tokens, beside tokenizer.py: kinds of decoders, added tokens, lengths, fill-in-the-middle."""
