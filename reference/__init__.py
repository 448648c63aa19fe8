"""The reference: what every parameter of `POST /v1/completions` means."""
